"""Shapes of the response and nuisance terms: what they are, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import gamma

from rtevo.decode import Decoder, Deconvolver, Grid, Scorer
from rtevo.decode.grid import ALONE
from rtevo.decode.hrf import SHAPES, basis, response
from rtevo.decode.nuisance import DRIFTS, Nuisance
from rtevo.decode.separate import Projection
from rtevo.records import Grid as VolumeGrid

POINT = Grid((2.0,), (0.2,), (0.02,), (1.0,), (0.0,), (1.0,), (ALONE,))
SAME = 1e-6  # relative: a recursion against a dense solution, the drift's start having a variance of 1e6
TR_S = 1.0


def spm(t: np.ndarray, dispersion: float = 1.0) -> np.ndarray:
    """SPM's kernel, sampled."""
    return gamma.pdf(t, 6 / dispersion, scale=dispersion) - gamma.pdf(t, 16) / 6


def test_derivatives_are_spms() -> None:
    """Against kernels convolved numerically with a boxcar of 3 s."""
    step = 0.001
    fine = np.arange(0, 40, step)

    def convolved(kernel: np.ndarray) -> np.ndarray:
        total = np.cumsum(kernel) * step
        return total - np.concatenate([np.zeros(round(3 / step)), total[: -round(3 / step)]])

    plain, wide = convolved(spm(fine)), convolved(spm(fine, 1.01))
    later = np.concatenate([np.zeros(round(1 / step)), plain[: -round(1 / step)]])
    expected = np.stack([plain, plain - later, (plain - wide) / 0.01]) / plain.max()
    at = np.arange(0.5, 30, 0.5)
    found = basis("derivatives").values(at, 3.0)
    np.testing.assert_allclose(found, expected[:, np.round(at / step).astype(int)].T, atol=5e-3)
    np.testing.assert_array_equal(found[:, 0], response(at, 3.0))


def test_a_finite_impulse_response_reads_out_the_canonical_amplitude() -> None:
    fir = basis("fir")
    centres = 2.5 * np.arange(1, 10)
    assert fir.readout @ response(centres, 3.0) == pytest.approx(1.0)
    np.testing.assert_allclose(fir.values(centres, 3.0), np.eye(9), atol=1e-12)
    assert np.linalg.eigvalsh(fir.prior).min() > 0
    assert fir.readout @ fir.prior @ fir.readout == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_equals_the_dense_solution(shape: str) -> None:
    rng = np.random.default_rng(3)
    onsets = 3.0 + 4.0 * np.arange(6)
    times = (np.arange(36) + 0.5) * TR_S
    motion, series = 0.1 * rng.standard_normal((36, 2)), 2 * rng.standard_normal(36)
    kinds = basis(shape)  # type: ignore[arg-type]
    deconvolver, shown = Deconvolver(TR_S, 2, POINT, shape=shape), 0  # type: ignore[arg-type]
    voxels = np.stack([series, series], axis=1)
    for t_s, value, terms, both in zip(times, series, motion, voxels, strict=True):
        while shown < 6 and onsets[shown] <= t_s:
            deconvolver.add_image((0, shown), onsets[shown], 3.0)
            shown += 1
        deconvolver.add_volume(t_s, value, terms, both)
    each = [kinds.values(times - onset, 3.0) for onset in onsets]
    loading = np.concatenate([sum(each), *each], axis=1)
    width = len(kinds.readout)
    prior = np.kron(np.diag([900.0] + [4.0] * 6), kinds.prior)
    cov = 0.2 ** np.abs(times[:, None] - times) + 4e-4 * np.minimum.outer(times - times[0], times - times[0]) + 1e6 + motion @ motion.T
    cov += loading @ prior @ loading.T
    select = np.zeros((6, 7 * width))
    for k in range(6):
        select[k, :width] = select[k, (k + 1) * width : (k + 2) * width] = kinds.readout
    expected = select @ prior @ loading.T @ np.linalg.solve(cov, series)
    found = deconvolver.amplitudes()
    np.testing.assert_allclose([found[0, k].value for k in range(6)], expected, rtol=1e-4, atol=1e-4)
    for k in range(6):  # with one point of the grid, voxels are taken apart exactly as the series is
        np.testing.assert_allclose(deconvolver.pattern((0, k)), [found[0, k].value] * 2, rtol=SAME, atol=SAME)
        assert found[0, k].se_apart <= found[0, k].se


def test_terms_of_motion_and_drift() -> None:
    rng = np.random.default_rng(0)
    motion = rng.standard_normal((3, 6))
    plain, friston = Nuisance(TR_S), Nuisance(TR_S, 24, "polynomial", spike_mm=1e-3)
    spikes = []
    for k in range(3):
        plain.spike(motion[k])
        spikes.append(friston.spike(motion[k]))
    np.testing.assert_array_equal(plain.terms(2), motion[2])
    expected = np.concatenate([motion[2], motion[1], motion[2] ** 2, motion[1] ** 2])
    np.testing.assert_array_equal(friston.terms(2)[:24], expected)
    assert spikes == [False, True, True]
    assert (friston.motion, friston.drift, Nuisance(TR_S, drift="cosine").drift) == (24, 3, 8)
    x = 2 * 2.5 / 600 - 1
    np.testing.assert_allclose(friston.terms(2)[24:], [x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2])


def test_leaving_a_volume_out_is_fitting_a_spike_term() -> None:
    rng = np.random.default_rng(5)
    times = (np.arange(30) + 0.5) * TR_S
    series = rng.standard_normal(30)
    white = Grid((2.0,), (0.0,), (0.0,), (1e4,), (0.0,), (1.0,), (ALONE,))
    spike = np.zeros((30, 1))
    spike[12] = 1
    results = []
    for leave in (True, False):
        deconvolver = Deconvolver(TR_S, 0 if leave else 1, white)
        for k in range(4):
            deconvolver.add_image((0, k), 1.0 + 4 * k, 3.0)
        for i in range(30):
            if not (leave and i == 12):
                deconvolver.add_volume(times[i], series[i], [] if leave else spike[i])
        results.append([deconvolver.amplitudes()[0, k].value for k in range(4)])
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"drift": drift} for drift in DRIFTS] + [{"hrf": shape} for shape in SHAPES] + [{"motion_terms": 24}])
@pytest.mark.parametrize("method", ["deconvolve", "pattern"])
def test_scores_follow_the_responses_with_every_choice(method: str, options: dict[str, object]) -> None:
    rng = np.random.default_rng(7)
    shape = (6, 6, 5)
    decoder = Decoder(
        VolumeGrid(shape, np.diag([3.0, 3.0, 3.5, 1.0])), np.full(shape, 1000.0), np.ones(shape, bool), rng.standard_normal(shape), "map",
        {}, np.full(shape, 10.0, np.float32),
    )  # fmt: skip
    truth = rng.standard_normal(16)
    times = (np.arange(90) + 0.5) * TR_S
    series = sum(a * response(times - 5 - 4 * k, 3.0) for k, a in enumerate(truth))
    data = 1000 + 10 * rng.standard_normal((90, *shape)) + 5 * np.multiply.outer(series, decoder.weights)
    data += 0.05 * times[:, None, None, None]
    grid = Grid(amplitude_sd=(1.0, 4.0), autocorrelation=(0.1,), drift_sd=(0.02,), motion_sd=(0.0, 1.0), lag_s=(0.0,))
    scorer = Scorer(decoder, TR_S, method=method, fwhm_mm=0, grid=grid, **options)  # type: ignore[arg-type]
    scores: dict[int, float] = {}
    for i in range(90):
        for k in range(16):
            if i <= 5 + 4 * k < i + 1:
                scorer.add_onset((0, k), 5.0 + 4 * k)
        scorer.add_volume(i, data[i].astype(np.float32), 0.01 * rng.standard_normal(6) * ([1.0] * 3 + [0.02] * 3))
        scores.update({score.key[1]: score.score for score in scorer.ready(final=i == 89)})
    values = np.array([scores[k] for k in range(16)])
    assert np.corrcoef(values, truth)[0, 1] > (0.75 if options.get("hrf") == "fir" else 0.85)
    if method == "pattern":
        assert np.abs(values).max() <= 1


def test_a_pattern_is_compared_as_by_pearson() -> None:
    rng = np.random.default_rng(8)
    weights, sd = rng.standard_normal(50), rng.uniform(0.5, 2, 50)
    project = Projection(weights, sd)
    base, volume = rng.standard_normal(50).astype(np.float32), rng.standard_normal(50).astype(np.float32)
    assert project(base) == 0
    pattern = project.standardised(volume)
    amplitude = next(iter(_one_image().values()))
    assert project.compare(pattern, amplitude)[0] == pytest.approx(np.corrcoef(pattern, weights)[0, 1])
    assert project(volume) == pytest.approx(project.compare(pattern, amplitude)[0] * np.linalg.norm(pattern - pattern.mean()))


def _one_image() -> dict[tuple[int, int], object]:
    deconvolver = Deconvolver(TR_S, 0, POINT)
    deconvolver.add_image((0, 0), 0.0, 3.0)
    for i in range(10):
        deconvolver.add_volume((i + 0.5) * TR_S, float(i), [])
    return dict(deconvolver.amplitudes())
