"""Deconvolution against the same model solved by dense linear algebra, and what it is for: better scores and honest errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import gamma

from rtevo.decode import Deconvolver, Grid
from rtevo.decode.grid import ALONE
from rtevo.decode.hrf import response, share_of_peak

FILTER = 1e-5  # relative; the drift's start has a variance of 1e6, which costs digits in both ways of computing
TR_S = 0.867


def simulate(
    rng: np.random.Generator, images: int, cadence_s: float, contrast: float, lag_s: float = 0.0, tail_s: float = 20.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return onsets, volume times, series (AR(1) noise of variance 1, drift) and the true amplitudes."""
    onsets = 5 + cadence_s * np.arange(images)
    times = (np.arange(int((onsets[-1] + tail_s) / TR_S)) + 0.5) * TR_S
    amplitudes = contrast * (1 + rng.standard_normal(images))
    noise = np.zeros(len(times))
    noise[0] = rng.standard_normal()
    for i in range(1, len(times)):
        noise[i] = 0.3 * noise[i - 1] + np.sqrt(1 - 0.3**2) * rng.standard_normal()
    shapes = np.array([response(times - onset - lag_s, 3.0) for onset in onsets])
    return onsets, times, amplitudes @ shapes + noise + 0.04 * np.cumsum(rng.standard_normal(len(times))), amplitudes


def run(onsets: np.ndarray, times: np.ndarray, series: np.ndarray, motion: np.ndarray, grid: Grid | None = None) -> Deconvolver:
    deconvolver, shown = Deconvolver(TR_S, motion.shape[1], grid), 0
    for t_s, value, terms in zip(times, series, motion, strict=True):
        while shown < len(onsets) and onsets[shown] <= t_s:
            deconvolver.add_image((0, shown), onsets[shown], 3.0)
            shown += 1
        deconvolver.add_volume(t_s, value, terms)
    return deconvolver


def single(
    amplitude_sd: float,
    rho: float,
    drift_sd: float,
    motion_sd: float,
    lag_s: float,
    width: float = 1.0,
    share: float = 0.0,
    reach_s: float = 1.0,
) -> Grid:
    """Everything known."""
    return Grid((amplitude_sd,), (rho,), (drift_sd,), (motion_sd,), (lag_s,), (width,), ((share, reach_s),))


def dense(
    onsets: np.ndarray, times: np.ndarray, series: np.ndarray, motion: np.ndarray, point: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean of the amplitudes, variance, variance if mu were known, and the log evidence but for the prior, by dense matrices."""
    amplitude_sd, rho, drift_sd, motion_sd, lag_s, width, share, reach_s = point
    shapes = np.array([response(times - onset - lag_s, 3.0, width) for onset in onsets]).T
    gaps = np.abs(times[:, np.newaxis] - times)
    walk = drift_sd**2 * np.minimum.outer(times - times[0], times - times[0])
    cov = rho ** (gaps / TR_S) + walk + 1e6 + motion_sd**2 * motion @ motion.T
    loading = np.column_stack([shapes.sum(axis=1), shapes])  # mu, then the images' deviations
    prior = np.diag([900.0] + [(1 - share) * amplitude_sd**2] * len(onsets))
    prior[1:, 1:] += share * amplitude_sd**2 * np.exp(-np.abs(onsets[:, np.newaxis] - onsets) / reach_s)
    cov += loading @ prior @ loading.T
    select = np.column_stack([np.ones(len(onsets) + 1), np.vstack([np.zeros(len(onsets)), np.eye(len(onsets))])])  # mu, images
    cross = select @ prior @ loading.T
    mean = (cross @ np.linalg.solve(cov, series))[1:]
    posterior = select @ prior @ select.T - cross @ np.linalg.solve(cov, cross.T)
    variance = np.diag(posterior)[1:]
    apart = variance - posterior[0, 1:] ** 2 / posterior[0, 0]
    first = cov[0, 0]
    quadratic = series @ np.linalg.solve(cov, series) - series[0] ** 2 / first  # the first volume is not counted
    n = len(series) - 1
    evidence = -0.5 * (np.linalg.slogdet(cov)[1] - np.log(first)) - (2 + n) / 2 * np.log(2 + quadratic)
    noise = (2 + quadratic) / (2 + n)
    return mean, variance * noise, apart * noise, evidence


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1.5, 4), st.sets(st.integers(1, 30), max_size=8))
def test_equals_the_dense_solution_of_the_same_model(seed: int, cadence_s: float, missing: set[int]) -> None:
    rng = np.random.default_rng(seed)
    onsets, times, series, _ = simulate(rng, 6, cadence_s, 2.0, tail_s=14)  # no response has passed yet
    there = np.array([i not in missing for i in range(len(times))])
    times, series = times[there], series[there]
    motion = np.cumsum(0.05 * rng.standard_normal((len(times), 2)), axis=0)
    point = np.array([1.5, 0.35, 0.05, 2.0, 0.4, 1.2, 0.6, 20.0])
    found = run(onsets, times, series, motion, single(*point)).amplitudes()
    mean, variance, apart, _ = dense(onsets, times, series, motion, point)
    np.testing.assert_allclose([found[0, k].value for k in range(6)], mean, rtol=FILTER, atol=FILTER)
    np.testing.assert_allclose([found[0, k].se for k in range(6)], np.sqrt(variance), rtol=FILTER)
    np.testing.assert_allclose([found[0, k].se_apart for k in range(6)], np.sqrt(apart), rtol=FILTER)


def test_parameters_are_weighed_by_their_evidence() -> None:
    rng = np.random.default_rng(4)
    onsets, times, series, _ = simulate(rng, 6, 4.0, 2.0)
    motion = 0.1 * rng.standard_normal((len(times), 1))
    grid = Grid((0.5, 3.0), (0.0, 0.5), (0.01, 0.1), (0.0, 2.0), (0.0, 1.0), (1.0, 1.3), (ALONE, (0.8, 15.0)))
    evidence = np.array([dense(onsets, times, series, motion, point)[3] for point in grid.points().T])
    spread, lag_s, width = grid.points()[[0, 4, 5]]
    evidence += np.log(spread / (1 + spread**2 / 4)) - 0.5 * ((lag_s - grid.lag_mean_s) / grid.lag_prior_s) ** 2
    evidence -= 0.5 * (np.log(width) / grid.width_prior) ** 2
    expected = np.exp(evidence - evidence.max())
    np.testing.assert_allclose(run(onsets, times, series, motion, grid).weights(), expected / expected.sum(), rtol=1e-3, atol=1e-6)


def test_leaving_the_filter_costs_an_image_little() -> None:
    """What an image loses then is only what later volumes would say about the drift at its time."""
    rng = np.random.default_rng(1)
    onsets, times, series, truth = simulate(rng, 40, 4.0, 2.0)
    point = np.array([2.0, 0.3, 0.04, 0.0, 0.0, 1.0, 0.0, 1.0])
    none = np.zeros((len(times), 0))
    found = run(onsets, times, series, none, single(*point)).amplitudes()
    mean, variance, _, _ = dense(onsets, times, series, none, point)
    values = np.array([found[0, k].value for k in range(40)])
    assert (np.abs(values - mean) < np.sqrt(variance)).all()
    assert np.corrcoef(values, truth)[0, 1] > np.corrcoef(mean, truth)[0, 1] - 0.01


@pytest.mark.parametrize("lag_s", [0.0, 1.0])
def test_neighbours_are_told_apart_whatever_the_lag(lag_s: float) -> None:
    deconvolved, peak = [], []
    for seed in range(4):
        onsets, times, series, truth = simulate(np.random.default_rng(seed), 40, 4.0, 4.0, lag_s)
        found = run(onsets, times, series, np.zeros((len(times), 0))).amplitudes()
        deconvolved.append(np.corrcoef([found[0, k].value for k in range(40)], truth)[0, 1])
        window = [np.abs(times - onset - 6.5) < 1.2 * TR_S for onset in onsets]
        peak.append(np.corrcoef([series[w].mean() for w in window], truth)[0, 1])
    assert np.mean(deconvolved) > 0.95
    assert np.mean(deconvolved) > np.mean(peak) + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("contrast", [0.7, 3.0])
def test_standard_errors_mean_what_they_say(contrast: float) -> None:
    inside = []
    for seed in range(8):
        onsets, times, series, truth = simulate(np.random.default_rng(seed), 40, 4.0, contrast)
        found = run(onsets, times, series, np.zeros((len(times), 0))).amplitudes()
        inside += [abs(found[0, k].value - truth[k]) < 1.96 * found[0, k].se for k in range(40)]
    assert 0.91 < np.mean(inside) < 0.98  # nominally 0.95; binomial standard error 0.01, and errors of a run go together


def test_errors_of_images_against_others_include_the_drift_s_where_they_are() -> None:
    """Images far apart share the mean, not the drift: leaving out what those that overlap share made this 1.24."""
    z = []
    point = single(4.0, 0.3, 0.04 / np.sqrt(TR_S), 0.0, 0.0)
    for seed in range(24):
        onsets, times, series, truth = simulate(np.random.default_rng(seed), 40, 8.0, 4.0)
        found = run(onsets, times, series, np.zeros((len(times), 0)), point).amplitudes()
        values, errors = np.array([(found[0, k].value, found[0, k].se_apart) for k in range(40)]).T
        z.append((values - truth - (values - truth).mean()) / errors)
    assert 0.92 < np.std(z) < 1.06


def test_without_contrast_amplitudes_shrink_to_their_mean() -> None:
    onsets, times, series, _ = simulate(np.random.default_rng(0), 40, 4.0, 0.0)
    found = run(onsets, times, series, np.zeros((len(times), 0))).amplitudes()
    values, errors = np.array([(a.value, a.se) for a in found.values()]).T
    assert values.std() < 0.3
    assert (np.abs(values) < 3 * errors).all()


def test_motion_is_taken_out_where_it_shows_and_left_where_it_does_not() -> None:
    rng = np.random.default_rng(2)
    onsets, times, series, _ = simulate(rng, 20, 4.0, 2.0)
    motion = 0.3 * rng.standard_normal((len(times), 6))
    grid = Grid()
    with_motion = grid.points()[3] > 0
    moved = run(onsets, times, series + motion @ rng.normal(0, 3, 6), motion, grid)
    still = run(onsets, times, series, motion, grid)
    assert moved.weights()[with_motion].sum() > 0.99
    assert still.weights()[with_motion].sum() < 0.01


def test_the_state_does_not_grow_with_the_run() -> None:
    onsets, times, series, _ = simulate(np.random.default_rng(0), 60, 4.0, 1.0)
    deconvolver = run(onsets, times, series, np.zeros((len(times), 0)), single(1.0, 0.3, 0.02, 0.0, 0.0))
    assert deconvolver._mean.shape[1] <= 4 + (32 + 3 + 4) // 4 + 4  # room is made for four images at once
    assert len(deconvolver.amplitudes()) == 60
    assert len(deconvolver.amplitudes(past=0)) < 12


def test_time_only_goes_forward() -> None:
    deconvolver = Deconvolver(1.0, 0)
    deconvolver.add_volume(1.0, 0.0, [])
    with pytest.raises(ValueError, match=r"volume at 1\.0 s: expected one later than the last, at 1\.0 s"):
        deconvolver.add_volume(1.0, 0.0, [])


@pytest.mark.parametrize("contrast", [1.0, 4.0])
def test_an_artefact_is_left_out_as_if_its_volume_were_missing(contrast: float) -> None:
    onsets, times, series, _ = simulate(np.random.default_rng(5), 20, 4.0, contrast)
    hit = np.isin(np.arange(len(times)), [30, 55, 56, 81])
    spoilt = series + np.where(hit, 40.0, 0.0) * np.where(np.arange(len(times)) % 2, -1, 1)
    still = np.zeros((len(times), 1))
    found = run(onsets, times, spoilt, still).amplitudes()
    expected = run(onsets, times[~hit], series[~hit], still[~hit]).amplitudes()
    assert found.keys() == expected.keys()
    for key, amplitude in expected.items():
        assert found[key].value == pytest.approx(amplitude.value, rel=1e-9, abs=1e-9)
        assert found[key].se_apart == pytest.approx(amplitude.se_apart, rel=1e-9)
        assert found[key].volumes == amplitude.volumes


def test_noise_and_strong_responses_are_no_artefacts_and_a_new_level_is_taken() -> None:
    for seed in range(4):
        onsets, times, series, _ = simulate(np.random.default_rng(seed), 30, 3.0, 4.0)
        assert run(onsets, times, series, np.zeros((len(times), 1))).volumes == len(times)
    onsets, times, series, _ = simulate(np.random.default_rng(9), 20, 4.0, 1.0)
    series[40:] += 40.0
    assert len(times) - 10 <= run(onsets, times, series, np.zeros((len(times), 1))).volumes <= len(times) - 1


def other(rng: np.random.Generator, onsets: np.ndarray, truth: np.ndarray, peak_s: float, image_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return volume times and a series made otherwise than the filter assumes: gamma responses, ARMA noise, slow cosines."""
    times = np.arange(0.5, onsets[-1] + 20, 1.0)
    lattice = np.arange(0, 40, 0.05)
    whole = np.convolve(gamma.pdf(lattice, peak_s + 1), np.ones(round(image_s / 0.05)))[: len(lattice)]
    series = sum(
        a * np.interp(times - onset, lattice, whole / whole.max(), left=0, right=0) for a, onset in zip(truth, onsets, strict=True)
    )
    white = rng.standard_normal(len(times) + 1)
    noise = lfilter([1.0, -0.4], [1.0, -0.7], white)[1:]
    return times, series + noise / noise.std() + 0.3 * np.cos(times / 25 + 6 * rng.random())


def words(onsets: np.ndarray, times: np.ndarray, series: np.ndarray, image_s: float) -> tuple[np.ndarray, np.ndarray, Deconvolver]:
    """First words, 8 s after the onsets, and last ones."""
    found, first, shown = Deconvolver(1.0, 0), np.full(len(onsets), np.nan), 0
    for t_s, value in zip(times, series, strict=True):
        while shown < len(onsets) and onsets[shown] <= t_s:
            found.add_image((0, shown), onsets[shown], image_s)
            shown += 1
        found.add_volume(t_s, value, [])
        ready = np.isnan(first) & (onsets + 8 <= t_s)
        if ready.any():
            said = found.amplitudes()
            first[ready] = [said[0, int(k)].value for k in np.flatnonzero(ready)]
    last = found.amplitudes()
    return first, np.array([last[0, k].value for k in range(len(onsets))]), found


def test_a_rising_run_is_not_taken_for_drift() -> None:
    slopes = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        onsets, truth = 8.0 + 4.0 * np.arange(50), 1.5 * (1 + rng.standard_normal(50) + np.linspace(0, 3, 50))
        first, last, found = words(onsets, *other(rng, onsets, truth, 5.0, 3.0), 3.0)
        assert np.corrcoef(last, truth)[0, 1] > 0.85
        assert found.weights()[found.grid.points()[6] > 0].sum() > 0.5  # that amplitudes share something
        slopes.append(np.polyfit(last, truth, 1)[0])
        assert np.isfinite(first).all()
    assert abs(np.mean(slopes) - 1.0) < 0.2  # three runs, each +- 0.15; 2.06 with a mean that cannot rise


@pytest.mark.slow
def test_a_late_response_is_found_and_the_last_word_is_better_than_the_first() -> None:
    """In dense blocks of like images, too."""
    for cadence_s, image_s, peak_s in ((6.0, 3.0, 8.0), (1.0, 0.5, 5.0)):
        pairs = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            dense = cadence_s < 2
            block = np.repeat(np.arange(5), 12)
            truth = 0.4 * rng.permutation([-1.0, -0.5, 0.0, 0.5, 1.0])[block] + 0.5 if dense else 1.5 * (1 + rng.standard_normal(40))
            onsets = 8.0 + cadence_s * np.arange(len(truth)) + (10.0 * block if dense else 0.0)
            first, last, found = words(onsets, *other(rng, onsets, truth, peak_s, image_s), image_s)
            pairs.append([np.corrcoef(each, truth)[0, 1] for each in (first, last)])
            if not dense:
                known = found.response()
                assert abs(known.lag_s - 3.0) < max(3 * known.lag_sd_s, 1.0)  # three standard deviations, or the grid's step
        first_r, last_r = np.mean(pairs, axis=0)
        assert last_r > first_r - 0.02  # an eighth of what a run's correlation varies by
        assert last_r > 0.6


def test_an_image_that_was_taken_away_overlaps_its_neighbours_as_it_was_seen() -> None:
    """Images 4 s apart with the same response; the third is on for 0.5 s of its 3: what it evokes is a part of the others' response."""
    onsets = [10.0 + 4 * k for k in range(8)]
    times = np.arange(60) + 0.5
    seen_s = [0.5 if k == 2 else 3.0 for k in range(8)]
    series = 0.3 * np.random.default_rng(3).standard_normal(60)
    for onset, own_s in zip(onsets, seen_s, strict=True):
        series += 2.0 * share_of_peak(own_s, 3.0) * response(times - onset, own_s)
    spread = {}
    for known in (True, False):
        found = Deconvolver(1.0, 0)
        for t_s, value in zip(times.tolist(), series.tolist(), strict=True):
            for number, onset in enumerate(onsets):
                if t_s - 1 < onset <= t_s:
                    found.add_image((0, number), onset, 3.0)
            if known and t_s - 1 < onsets[2] + 0.5 <= t_s:
                found.shown_for((0, 2), 0.5)
            found.add_volume(t_s, value, np.zeros(0))
        amplitudes = found.amplitudes()
        spread[known] = float(np.std([amplitudes[0, k].value for k in range(8) if k != 2]))  # of what is the same in truth
    assert spread[True] < 0.5 * spread[False]


def test_an_image_that_was_seen_to_its_end_counts_as_it_did() -> None:
    t_s = np.linspace(0, 20, 50)
    np.testing.assert_array_equal(share_of_peak(3.0, 3.0) * response(t_s, 3.0), response(t_s, 3.0))
