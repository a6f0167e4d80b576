"""Scores from separated responses: when they come, how they improve, and what gaps and jumps do to them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from rtevo.decode import Decoder, Grid, Score, Scorer, pearson
from rtevo.decode.hrf import response
from rtevo.decode.separate import FIRST_S, Projection
from rtevo.records import Grid as VolumeGrid

SHAPE = (8, 8, 6)
TR_S = 1.0
SMALL = Grid(amplitude_sd=(0.4, 1.6, 6.4), autocorrelation=(0.2,), drift_sd=(0.02,), motion_sd=(0.0, 3.0), lag_s=(0.0,))


def make_decoder() -> Decoder:
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool)
    mask[1:7, 1:7, 1:5] = True
    return Decoder(VolumeGrid(SHAPE, np.diag([3.0, 3.0, 3.5, 1.0])), np.ones(SHAPE), mask, rng.standard_normal(SHAPE), "test")


def make_run(decoder: Decoder, onsets: dict[tuple[int, int], float], volumes: int, effect: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Return volumes with responses along the map, and their amplitudes in the order of the onsets."""
    rng = np.random.default_rng(1)
    amplitudes = rng.standard_normal(len(onsets))
    times = (np.arange(volumes) + 0.5) * TR_S
    series = sum(a * response(times - onset, 3.0) for a, onset in zip(amplitudes, onsets.values(), strict=True))
    data = 1000 + 10 * rng.standard_normal((volumes, *SHAPE)) + effect * np.multiply.outer(series, decoder.weights)
    return data.astype(np.float32), amplitudes


def score_run(
    decoder: Decoder, data: np.ndarray, onsets: dict[tuple[int, int], float], motion: np.ndarray | None = None, **options: object
) -> tuple[list[tuple[int, Score]], Scorer]:
    """Return all scores with the index of the volume after which each came."""
    scorer = Scorer(decoder, TR_S, method="deconvolve", fwhm_mm=0, grid=SMALL, **options)  # type: ignore[arg-type]
    motion = np.zeros((len(data), 6)) if motion is None else motion
    came: list[tuple[int, Score]] = []
    for i, volume in enumerate(data):
        for key, onset in onsets.items():
            if i * TR_S <= onset < (i + 1) * TR_S:
                scorer.add_onset(key, onset)
        scorer.add_volume(i, None if np.isnan(volume).all() else volume, motion[i])
        came += [(i, score) for score in scorer.ready()]
    return came, scorer


ONSETS = {(k // 8, k % 8): 2.0 + 4.0 * k for k in range(16)}


def test_scores_follow_the_responses_and_come_in_time() -> None:
    decoder = make_decoder()
    data, truth = make_run(decoder, ONSETS, 90)
    came, _ = score_run(decoder, data, ONSETS)
    first = {score.key: (i, score) for i, score in reversed(came) if score.revision == 0}
    last = {score.key: score for _, score in came}
    assert set(first) == set(ONSETS)
    for key, (i, score) in first.items():
        seen_s = (i + 0.5) * TR_S
        assert seen_s >= ONSETS[key] + FIRST_S
        assert seen_s < ONSETS[key] + FIRST_S + TR_S or i == 19  # 20 s of baseline come first
        assert 1 <= score.volumes_used <= 8
        assert score.last_volume_index == i
    values = [[s[key].score for key in ONSETS] for s in ({k: v for k, (_, v) in first.items()}, last)]
    assert np.corrcoef(values[0], truth)[0, 1] > 0.9
    assert np.corrcoef(values[1], truth)[0, 1] > 0.95


def test_revisions_are_numbered_and_worth_it() -> None:
    decoder = make_decoder()
    data, _ = make_run(decoder, ONSETS, 90)
    came, _ = score_run(decoder, data, ONSETS)
    for key in ONSETS:
        mine = [score for _, score in came if score.key == key]
        assert [score.revision for score in mine] == list(range(len(mine)))
        pairs = list(pairwise(mine))
        worth_it = [b.score_se <= 0.9 * a.score_se or abs(b.score - a.score) >= 0.25 * a.score_se for a, b in pairs]
        assert worth_it.count(False) <= 1  # once more when the response is whole, for what the volumes alone say


def test_the_unit_is_the_noise_of_a_voxel() -> None:
    decoder = make_decoder()
    data, truth = make_run(decoder, ONSETS, 90, effect=4.0)
    came, _ = score_run(decoder, data, ONSETS)
    last = {score.key: score for _, score in came}
    weights = decoder.weights[decoder.mask].astype(float)
    gain = 4.0 / 10 * np.linalg.norm(weights - weights.mean())  # noise of 10, responses of 4 weights
    slope = np.polyfit(gain * truth, [last[key].score for key in ONSETS], 1)[0]
    assert slope == pytest.approx(0.9, abs=0.15)  # a little below 1: the baseline's responses count as noise


def test_a_missing_volume_costs_certainty_not_truth() -> None:
    decoder = make_decoder()
    data, _ = make_run(decoder, ONSETS, 90)
    whole = {score.key: score for _, score in score_run(decoder, data, ONSETS)[0]}
    gaps = data.copy()
    gaps[46:50] = np.nan  # the peak of the image at 42 s
    came, scorer = score_run(decoder, gaps, ONSETS)
    last = {score.key: score for _, score in came} | {score.key: score for score in scorer.ready(final=True)}
    key = next(key for key, onset in ONSETS.items() if onset == 42.0)
    assert last[key].volumes_used < 6
    assert scorer.left_out == [46, 47, 48, 49]
    assert last[key].score_se > whole[key].score_se
    assert all(math.isfinite(score.score) for score in last.values())


@pytest.mark.parametrize("method", ["deconvolve", "pattern"])
def test_an_artefact_that_moves_nothing_is_left_out(method: str) -> None:
    decoder = make_decoder()
    data, _ = make_run(decoder, ONSETS, 90)
    gaps, spoilt = data.copy(), data.copy()
    gaps[48] = np.nan
    spoilt[48] += 100 * decoder.weights.astype(np.float32)
    last = []
    for run in (gaps, spoilt):
        scorer = Scorer(decoder, TR_S, method=method, fwhm_mm=0, grid=SMALL)  # type: ignore[arg-type]
        for i, volume in enumerate(run):
            for key, onset in ONSETS.items():
                if i * TR_S <= onset < (i + 1) * TR_S:
                    scorer.add_onset(key, onset)
            scorer.add_volume(i, None if np.isnan(volume).all() else volume, np.zeros(6))
        assert scorer.left_out == [48]
        last.append({score.key: score for score in scorer.ready(final=True)})
    for key, score in last[0].items():
        assert last[1][key].score == pytest.approx(score.score, rel=1e-6)
        assert last[1][key].volumes_used == score.volumes_used


def test_nothing_measured_is_nan_and_can_still_be_revised() -> None:
    decoder = make_decoder()
    data, _ = make_run(decoder, ONSETS, 90)
    data[30:44] = np.nan
    came, _ = score_run(decoder, data, {(0, 0): 29.5, (0, 1): 35.0})
    scores = [(score.key, score.revision, math.isnan(score.score), score.volumes_used) for _, score in came if score.revision == 0]
    assert scores == [((0, 0), 0, True, 0), ((0, 1), 0, True, 0)]
    assert any(score.key == (0, 1) and score.revision == 1 and math.isfinite(score.score) for _, score in came)


def test_final_scores_what_is_left() -> None:
    decoder = make_decoder()
    data, _ = make_run(decoder, ONSETS, 90)
    scorer = Scorer(decoder, TR_S, method="deconvolve", fwhm_mm=0, grid=SMALL)
    scorer.add_onset((0, 0), 2.0)
    scorer.add_onset((0, 1), 300.0)
    for i in range(12):
        scorer.add_volume(i, data[i], np.zeros(6))
    assert scorer.ready() == []  # still in the baseline
    first, second = scorer.ready(final=True)
    assert math.isfinite(first.score)
    assert first.score_se > 0
    assert math.isnan(second.score)
    assert second.last_volume_index == -1
    assert scorer.ready(final=True) == []


def test_a_run_without_volumes() -> None:
    scorer = Scorer(make_decoder(), TR_S, method="deconvolve")
    scorer.add_onset((0, 0), 2.0)
    for i in range(30):
        scorer.add_volume(i, None, np.full(6, np.nan))
    (score,) = scorer.ready(final=True)
    assert math.isnan(score.score)


def test_a_jump_of_the_head_is_left_out() -> None:
    decoder = make_decoder()
    data, _ = make_run(decoder, ONSETS, 90)
    motion = np.zeros((90, 6))
    spoilt = data.copy()
    spoilt[50] += 300 * decoder.weights
    motion[50:, 0] = 2.0
    clean = {s.key: s.score for _, s in score_run(decoder, data, ONSETS)[0]}
    jumped = {s.key: s.score for _, s in score_run(decoder, spoilt, ONSETS, motion)[0]}
    assert np.corrcoef([clean[key] for key in ONSETS], [jumped[key] for key in ONSETS])[0, 1] > 0.97


def test_the_projection_is_a_correlation_but_for_the_norm() -> None:
    rng = np.random.default_rng(0)
    weights, sd = rng.standard_normal(200), rng.uniform(1, 3, 200)
    sd[:20] = 0
    projection = Projection(weights, sd)
    origin, values = rng.standard_normal((2, 200)).astype(np.float32)
    assert projection(origin) == 0
    standard = (values - origin)[20:].astype(float) / sd[20:]
    expected = pearson(standard, weights[20:]) * np.linalg.norm(standard - standard.mean())
    assert projection(values) == pytest.approx(expected, rel=1e-5)
    assert not Projection(np.ones(5), np.ones(5)).usable
    assert not Projection(np.arange(5.0), np.zeros(5)).usable
