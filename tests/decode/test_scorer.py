"""Scores against an offline fit of the stored volumes, and their timing: which volumes, when ready, what is left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtevo.decode import Decoder, Score, Scorer, response_window
from rtevo.errors import GeometryError
from rtevo.records import Grid

SHAPE = (7, 8, 6)
TR_S = 0.867
SMOOTHING = 2e-5  # float32 smoothing against float64, on correlations
SINGLE = 2e-6  # volumes are float32, the offline fit is float64; on correlations


def make_decoder(seed: int = 0) -> Decoder:
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[1:6, 1:7, 1:5] = True
    return Decoder(Grid(SHAPE, np.diag([3.0, 3.0, 3.5, 1.0])), np.ones(SHAPE), mask, rng.standard_normal(SHAPE), "test")


def make_run(volumes: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return volumes (n, X, Y, Z) float32 with drift and motion in them, and motion (n, 6)."""
    rng = np.random.default_rng(seed)
    motion = np.cumsum(rng.normal(0, [0.03] * 3 + [0.0005] * 3, (volumes, 6)), axis=0)
    data = 1000 + 10 * rng.standard_normal((volumes, *SHAPE))
    data += np.tensordot(motion, rng.normal(0, 20, (6, *SHAPE)), 1)
    data += np.multiply.outer(np.arange(volumes) / volumes, rng.normal(0, 20, SHAPE))
    return data.astype(np.float32), motion


def offline(
    decoder: Decoder,
    data: np.ndarray,
    motion: np.ndarray,
    usable: list[int],
    window: range,
    fwhm_mm: float = 0,
    prior: tuple[float, float] = (1e-6, 1e-6),
    tr_s: float = 1.0,
) -> float:
    """Score one image from the stored volumes in float64: smooth, mask, regress, standardise, average, correlate."""
    rows = [row for row, i in enumerate(usable) if i in window]
    if not rows or len(rows) == len(usable):
        return math.nan
    sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / decoder.grid.voxel_size_mm
    flat = [ndimage.gaussian_filter(data[i].astype(float), sigma, mode="constant", truncate=4)[decoder.mask] for i in usable]
    series = np.array(flat)
    terms = np.column_stack([np.array(usable) * tr_s / 60, motion[usable, :3], 50 * motion[usable, 3:]])
    terms, series = terms - terms.mean(axis=0), series - series.mean(axis=0)
    b = np.linalg.lstsq(
        np.vstack([terms, np.diag([1 / prior[0]] + [1 / prior[1]] * 6)]), np.vstack([series, np.zeros((7, series.shape[1]))]), rcond=None
    )[0]
    series = series - terms @ b
    series /= series.std(axis=0)
    return float(np.corrcoef(series[rows].mean(axis=0), decoder.weights[decoder.mask])[0, 1])


def same(score: Score, expected: float, tolerance: float) -> None:
    assert math.isnan(score.score) == math.isnan(expected)
    assert math.isnan(expected) or score.score == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("fwhm_mm", "prior", "tolerance"),
    [(0.0, (0.2, 1.5), SINGLE), (0.0, (math.inf, math.inf), SINGLE), (0.0, (1e-6, 1e-6), SINGLE), (4.0, (0.2, 1.5), SMOOTHING)],
    ids=["light ridge", "least squares", "running mean", "smoothed"],
)
def test_every_score_equals_an_offline_fit_of_the_volumes_so_far(fwhm_mm: float, prior: tuple[float, float], tolerance: float) -> None:
    decoder = make_decoder()
    data, motion = make_run(70)
    onsets = {(0, k): 2.3 + 4.1 * k for k in range(12)}
    missing, unaligned = {9, 32, 33, 34}, {20}
    motion[20] = np.nan
    scorer = Scorer(decoder, TR_S, method="peak", fwhm_mm=fwhm_mm, drift_sd=prior[0], motion_sd=prior[1])
    for key, onset in onsets.items():
        scorer.add_onset(key, onset)
    scores: list[Score] = []
    for i in range(70):
        scorer.add_volume(i, None if i in missing else data[i], motion[i])
        for score in scorer.ready():
            window = response_window(score.onset_s, TR_S)
            assert window[-1] == i
            usable = [v for v in range(i + 1) if v not in missing | unaligned]
            same(score, offline(decoder, data, motion, usable, window, fwhm_mm, prior, TR_S), tolerance)
            there = [v for v in window if v in usable]
            assert (score.volumes_used, score.last_volume_index) == (len(there), there[-1] if there else -1)
            scores.append(score)
    assert [score.key for score in scores] == list(onsets)
    assert sum(score.volumes_used == 0 for score in scores) == 1  # the window of 32, 33, 34
    assert scorer.left_out == sorted(missing | unaligned)


def test_a_window_without_other_volumes_has_no_score() -> None:
    decoder = make_decoder()
    data, motion = make_run(4)
    scorer = Scorer(decoder, 1.0, method="peak", fwhm_mm=0)
    scorer.add_onset((0, 0), -5.0)  # window 0, 1, 2: nothing to compare it with
    scorer.add_onset((0, 1), -4.0)
    for i in range(4):
        scorer.add_volume(i, data[i], motion[i])
    first, second = scorer.ready()
    assert (math.isnan(first.score), first.volumes_used, first.last_volume_index) == (True, 3, 2)
    assert (math.isfinite(second.score), second.volumes_used) == (True, 3)


@settings(max_examples=60)
@given(st.data())
def test_any_order_of_events_and_gaps_gives_the_offline_score(data: st.DataObject) -> None:
    decoder = make_decoder(3)
    volumes, motion = make_run(30, seed=data.draw(st.integers(0, 99)))
    gaps = data.draw(st.sets(st.integers(0, 29), max_size=12))
    onsets = data.draw(st.lists(st.floats(-8, 30), min_size=1, max_size=5))
    reported = [data.draw(st.integers(0, 29)) for _ in onsets]
    scorer = Scorer(decoder, 1.0, method="peak", fwhm_mm=0)
    scores: dict[tuple[int, int], tuple[Score, int]] = {}
    for i in range(30):
        for k, onset in enumerate(onsets):
            if reported[k] == i:
                scorer.add_onset((1, k), onset)
                scores.update({score.key: (score, i) for score in scorer.ready()})
        scorer.add_volume(i, None if i in gaps else volumes[i], motion[i])
        scores.update({score.key: (score, i + 1) for score in scorer.ready()})
    scores.update({score.key: (score, 30) for score in scorer.ready(final=True)})
    assert scorer.ready(final=True) == []
    for k, onset in enumerate(onsets):
        score, seen = scores.pop((1, k))
        window = response_window(onset, 1.0)
        usable = [i for i in range(seen) if i not in gaps]
        expected = offline(decoder, volumes, motion, usable, window)
        same(score, expected, 1e-4 if len(usable) < 9 else SINGLE)
    assert not scores


def test_scores_do_not_depend_on_when_they_are_asked_for() -> None:
    decoder = make_decoder()
    data, motion = make_run(40)
    eager, lazy = Scorer(decoder, TR_S, method="peak"), Scorer(decoder, TR_S, method="peak")
    for k in range(5):
        eager.add_onset((0, k), 4.0 * k)
        lazy.add_onset((0, k), 4.0 * k)
    asked: list[Score] = []
    for i in range(40):
        eager.add_volume(i, data[i], motion[i])
        asked += eager.ready()
        lazy.add_volume(i, data[i], motion[i])
    assert asked == [*lazy.ready()]  # to the last bit


@pytest.mark.parametrize(
    ("onset_s", "tr_s", "expected"),
    [
        (0.0, 2.0, [2, 3, 4]),  # 6 s: volume 3 starts just then
        (0.9, 2.0, [2, 3, 4]),
        (1.0, 2.0, [3, 4, 5]),  # halfway: the later one
        (4.0, 0.867, [11, 12, 13]),  # 10 / 0.867 = 11.53
        (-6.0, 1.0, [-1, 0, 1]),
    ],
)
def test_which_volumes_are_the_window(onset_s: float, tr_s: float, expected: list[int]) -> None:
    assert list(response_window(onset_s, tr_s)) == expected
    assert list(response_window(onset_s, tr_s, half_window_tr=0)) == [expected[1]]


def test_a_response_like_the_map_scores_high_and_the_opposite_low() -> None:
    decoder = make_decoder()
    data, motion = make_run(80)
    scorer = Scorer(decoder, 1.0, method="peak", fwhm_mm=0)
    for k, sign in enumerate((1, -1, 0)):
        onset = 20.0 * (k + 1)
        scorer.add_onset((0, k), onset)
        for i in response_window(onset, 1.0):
            data[i] += 30 * sign * decoder.weights
    for i in range(80):
        scorer.add_volume(i, data[i], motion[i])
    high, low, none = (score.score for score in scorer.ready())
    assert high > 0.8
    assert low < -0.8
    assert abs(none) < 0.3


def test_voxels_that_never_vary_are_left_out() -> None:
    decoder = make_decoder()
    data, motion = make_run(20)
    data[:, 1:3] = 0  # outside the field of view, but inside the mask
    scorer = Scorer(decoder, 1.0, method="peak", fwhm_mm=0)
    scorer.add_onset((0, 0), 5.0)
    for i in range(20):
        scorer.add_volume(i, data[i], motion[i])
    inside = decoder.mask.copy()
    inside[1:3] = False
    reduced = Decoder(decoder.grid, decoder.reference, inside, decoder.weights, "part")
    expected = offline(reduced, data, motion, list(range(13)), response_window(5.0, 1.0))
    same(scorer.ready()[0], expected, SINGLE)


def test_not_a_number_in_the_mask_leaves_the_volume_out_and_outside_does_no_harm() -> None:
    decoder = make_decoder()
    data, motion = make_run(20)
    clean, dirty = Scorer(decoder, 1.0, method="peak"), Scorer(decoder, 1.0, method="peak")
    data[:, 0, 0, 0] = 0
    spoilt = data.copy()
    spoilt[:, 0, 0, 0] = np.nan
    spoilt[4, 3, 3, 3] = np.inf
    for scorer, volumes in ((clean, data), (dirty, spoilt)):
        scorer.add_onset((0, 0), 5.0)
        for i in range(20):
            scorer.add_volume(i, None if scorer is clean and i == 4 else volumes[i], motion[i])
    assert clean.ready() == dirty.ready()
    assert dirty.left_out == [4]


def test_nothing_measured_is_nan_never_zero() -> None:
    decoder = make_decoder()
    motion = np.zeros((12, 6))
    scorer = Scorer(decoder, 1.0, method="peak")
    for k, onset in enumerate((0.0, 500.0)):
        scorer.add_onset((0, k), onset)
    for i in range(12):
        scorer.add_volume(i, None if i in (5, 6, 7) else np.full(SHAPE, 7.0), motion[i])
    scorer.add_onset((0, 2), 4.0)  # window 9, 10, 11, volumes that never vary
    assert [(score.key, score.volumes_used) for score in scorer.ready()] == [((0, 0), 0), ((0, 2), 3)]
    (last,) = scorer.ready(final=True)
    assert (last.key, last.volumes_used, last.last_volume_index) == ((0, 1), 0, -1)
    assert math.isnan(last.score)


def test_a_late_volume_joins_the_fit() -> None:
    decoder = make_decoder()
    data, motion = make_run(25)
    scorer = Scorer(decoder, 1.0, method="peak", fwhm_mm=0)
    scorer.add_onset((0, 0), 10.0)
    for i in [0, 1, 2, 3, 5, 6, 7, 8, 4, *range(9, 25)]:
        scorer.add_volume(i, data[i], motion[i])
    expected = offline(decoder, data, motion, list(range(18)), response_window(10.0, 1.0))
    same(scorer.ready()[0], expected, SINGLE)


@pytest.mark.parametrize("method", ["peak", "deconvolve", "pattern"])
def test_a_volume_that_comes_after_it_was_missing_is_taken_once(method: Any) -> None:
    decoder = make_decoder()
    data, motion = make_run(25)

    def scores(late: bool) -> tuple[Scorer, list[Score]]:
        scorer = Scorer(decoder, 1.0, method=method, fwhm_mm=0)
        scorer.add_onset((0, 0), 10.0)
        for i in range(25):
            scorer.add_volume(i, None if i in (4, 6) else data[i], motion[i])
            if i == 8 and late:
                scorer.add_volume(6, None, np.full(6, np.nan))  # missing still
                scorer.add_volume(4, data[4], motion[4])
        return scorer, scorer.ready(final=True)

    (scorer, found), (_, without) = scores(True), scores(False)
    assert 6 in scorer.left_out
    assert scorer.left_out.count(6) == 1
    assert (4 in scorer.left_out) == (method != "peak")
    if method == "peak":
        same(found[0], offline(decoder, data, motion, [i for i in range(18) if i != 6], response_window(10.0, 1.0)), SINGLE)
    else:
        assert repr(found) == repr(without)  # it is not used
    with pytest.raises(ValueError, match="that was not added before"):
        scorer.add_volume(4, data[4], motion[4])


def test_an_onset_far_too_late_has_no_score() -> None:
    decoder = make_decoder()
    data, motion = make_run(60)
    scorer = Scorer(decoder, 1.0, method="peak", fwhm_mm=0)
    for i in range(60):
        scorer.add_volume(i, data[i], motion[i])
    scorer.add_onset((0, 0), 40.0)
    scorer.add_onset((0, 1), 1.0)
    late, too_late = sorted(scorer.ready(), key=lambda score: -score.onset_s)
    assert late.volumes_used == 3
    assert math.isnan(too_late.score)


def test_wrong_calls_are_refused() -> None:
    decoder = make_decoder()
    scorer = Scorer(decoder, 1.0, method="peak")
    scorer.add_onset((0, 0), 1.0)
    scorer.add_volume(0, np.zeros(SHAPE, np.float32), np.zeros(6))
    with pytest.raises(ValueError, match=r"onset of \(0, 0\): expected each image once"):
        scorer.add_onset((0, 0), 3.0)
    with pytest.raises(ValueError, match="finite number of seconds"):
        scorer.add_onset((0, 1), math.nan)
    with pytest.raises(ValueError, match="volume 0: expected an index >= 0 that was not added before"):
        scorer.add_volume(0, None, np.zeros(6))
    with pytest.raises(ValueError, match="expected 6 parameters"):
        scorer.add_volume(1, None, np.zeros(5))
    with pytest.raises(GeometryError, match=r"volume 1: expected the decoder's shape \(7, 8, 6\), found \(3, 3, 3\)"):
        scorer.add_volume(1, np.zeros((3, 3, 3), np.float32), np.zeros(6))
    for name in ("fwhm_mm", "delay_s", "half_window_tr"):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number >= 0, got -1"):
            Scorer(decoder, 1.0, method="peak", **{name: -1})
    for name in ("drift_sd", "motion_sd"):
        with pytest.raises(ValueError, match=f"{name}: expected a number >= 0, got -1"):
            Scorer(decoder, 1.0, method="peak", **{name: -1})
    with pytest.raises(ValueError, match="duration_s: expected a number > 0, got 0"):
        Scorer(decoder, 1.0, duration_s=0)
    with pytest.raises(ValueError, match="motion_terms: expected 6 or 24, got 12"):
        Scorer(decoder, 1.0, motion_terms=12)
    with pytest.raises(ValueError, match="spike_mm: expected a number > 0, got 0"):
        Scorer(decoder, 1.0, spike_mm=0)
    with pytest.raises(ValueError, match="drift: expected one of walk, cosine, polynomial, got 'none'"):
        Scorer(decoder, 1.0, drift="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hrf: expected one of canonical, derivatives, fir, got 'box'"):
        Scorer(decoder, 1.0, hrf="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tr_s: expected a number > 0, got 0"):
        Scorer(decoder, 0.0, method="peak")
    with pytest.raises(ValueError, match="method: expected one of deconvolve, pattern, peak, got 'magic'"):
        Scorer(decoder, 1.0, method="magic")  # type: ignore[arg-type]
