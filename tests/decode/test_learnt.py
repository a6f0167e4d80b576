"""What a run's scorer has learnt goes over to the next run's through a file, and nothing else does."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from rtevo.decode import Decoder, Grid, Learnt, Score, Scorer, SeveralScorer
from rtevo.decode.grid import ALONE
from tests.decode.test_several import STILL, bundle, decoders

TR_S = 1.0
SMALL = Grid(amplitude_sd=(0.4, 1.6, 6.4), autocorrelation=(0.2,), drift_sd=(0.02,), lag_s=(-1.0, 0.0, 1.0), width=(1.0,), shared=(ALONE,))
ROUNDING = 1e-6  # relative: times of the second run count from its own start, or from the first's
FIRST, LENGTH = 7, 46  # images of a run, its volumes
OBJECTIVES = {"sum": "face - 0.5 * place", "ranks": "rank(face) - 0.5 * place"}
Either = Scorer | SeveralScorer


def scorer(kind: str) -> Either:
    settings: dict[str, Any] = {"fwhm_mm": 0.0, "grid": SMALL}
    if kind in OBJECTIVES:
        return SeveralScorer(bundle(decoders("face place"), OBJECTIVES[kind]), TR_S, **settings)
    return Scorer(decoders("face")[0], TR_S, method=kind, **settings)  # type: ignore[arg-type]


def volumes(seed: int, level: float) -> np.ndarray:
    """A run of noise and responses along the first map, at a level of its own."""
    rng, one = np.random.default_rng(seed), decoders("face")[0]
    data = level + 2.0 * rng.standard_normal((LENGTH, *one.mask.shape))
    for k, strength in enumerate(rng.standard_normal(FIRST)):
        at = 4 + 5 * k
        data[at + 4 : at + 8] += 3.0 * strength * one.weights
    return data.astype(np.float32)


def play(own: Either, data: np.ndarray, first: int, generation: int) -> dict[tuple[int, int], Score]:
    """Go through a run whose first volume has the number `first`; return the last score of each image."""
    found: dict[tuple[int, int], Score] = {}
    for i, volume in enumerate(data):
        if i % 5 == 4 and i // 5 < FIRST:
            own.add_onset((generation, i // 5), (first + i) * TR_S)
        own.add_volume(first + i, volume, STILL)
        found |= {score.key: score for score in own.ready()}
    found |= {score.key: score for score in own.ready(final=True)}
    return {key: score for key, score in found.items() if key[0] == generation}


def through_a_file(learnt: Learnt) -> Learnt:
    file = io.BytesIO()
    np.savez(file, **learnt)  # type: ignore[arg-type]
    file.seek(0)
    return dict(np.load(file))


@pytest.mark.parametrize("kind", ["deconvolve", "pattern", "peak", *OBJECTIVES])
def test_the_next_run_is_scored_as_if_the_scorer_had_gone_on(kind: str) -> None:
    going_on, again = scorer(kind), scorer(kind)
    play(going_on, volumes(1, 100.0), 0, 0)
    going_on.interrupt()
    again.take_over(through_a_file(going_on.learnt()))
    expected = play(going_on, volumes(2, 130.0), LENGTH, 1)
    found = play(again, volumes(2, 130.0), 0, 1)
    new = play(scorer(kind), volumes(2, 130.0), 0, 1)
    assert found.keys() == expected.keys()
    if kind != "ranks":  # which are those among a run's own images
        values = [np.array([own[key].score for key in expected]) for own in (found, expected, new)]
        np.testing.assert_allclose(values[0], values[1], rtol=ROUNDING, atol=ROUNDING)
        assert np.abs(values[0] - values[2]).max() > 1e-3  # something was learnt


def test_a_run_that_was_too_short_has_learnt_nothing() -> None:
    own = Scorer(decoders_without_noise(), TR_S, fwhm_mm=0.0, grid=SMALL)
    own.add_volume(0, volumes(1, 100.0)[0], STILL)
    own.interrupt()
    assert own.learnt() == {}
    fresh = scorer("deconvolve")
    fresh.take_over({})
    assert play(fresh, volumes(2, 130.0), 0, 1) == play(scorer("deconvolve"), volumes(2, 130.0), 0, 1)


def decoders_without_noise() -> Decoder:
    one = decoders("face")[0]
    return Decoder(one.grid, one.reference, one.mask, one.weights, one.name)


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("sd", np.zeros(3)),
        ("filter.kept", np.array([10**6])),
        ("filter.cov", np.array(np.nan)),
        ("filter.counts", np.array(["a", "b"])),
        ("free.mean", None),
    ],
)
def test_what_does_not_fit_is_refused(name: str, spoilt: np.ndarray | None) -> None:
    own = scorer("deconvolve")
    play(own, volumes(1, 100.0), 0, 0)
    own.interrupt()
    learnt = own.learnt()
    if spoilt is None:
        del learnt[name]
    elif name == "filter.cov":
        learnt[name] = np.full_like(learnt[name], np.nan)
    elif name == "filter.kept":
        learnt[name] = np.full_like(learnt[name], spoilt[0])
    else:
        learnt[name] = spoilt
    with pytest.raises(ValueError, match=name.rpartition(".")[2] if name != "filter.kept" else "parameters"):
        scorer("deconvolve").take_over(learnt)
