"""Running moments and slice timing against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.kernels.running import running_moments, running_variance
from rtevo.kernels.slicetime import correct_slice_times


def test_moments_agree_with_numpy_far_from_zero():
    rng = np.random.default_rng(1)
    volumes = (1e4 + rng.normal(size=(9, 5, 6, 7))).astype(np.float32)
    count, mean, squares = 0, np.zeros((5, 6, 7)), np.zeros((5, 6, 7))
    assert np.isnan(running_variance(count, squares)).all()
    for n, volume in enumerate(volumes, 1):
        count = running_moments(np.asfortranarray(volume), count, mean, squares)
        assert count == n
    wide = volumes.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(running_variance(count, squares), wide.var(axis=0, ddof=1), rtol=1e-9)


def test_moments_refuse_other_shapes_and_orders():
    zeros = np.zeros((3, 4, 5))
    with pytest.raises(ValueError, match="equal shapes"):
        running_moments(np.zeros((3, 4, 6), np.float32), 0, zeros, zeros.copy())
    with pytest.raises(ValueError, match="C-ordered"):
        running_moments(np.zeros((3, 4, 5), np.float32), 0, np.asfortranarray(zeros), zeros.copy())


def test_slice_times_agree_with_interpolation_per_voxel():
    rng = np.random.default_rng(2)
    before, here = rng.normal(size=(2, 4, 3, 6))
    times, tr_s = np.array([0.0, 1.0, 0.2, 1.2, 0.4, 1.4]), 1.6
    found = correct_slice_times(here, before, times, tr_s, reference_s=0.3)
    for i, j, k in np.ndindex(here.shape):
        at = min(0.3, times[k])  # a slice taken earlier stays
        expected = np.interp(at, [times[k] - tr_s, times[k]], [before[i, j, k], here[i, j, k]])
        assert found[i, j, k] == pytest.approx(expected, abs=1e-6)


def test_slice_times_bring_a_slow_signal_to_one_moment():
    times, tr_s = np.linspace(0, 1.9, 20), 2.0
    ramp = [np.broadcast_to(5 * (n * tr_s + times), (3, 3, 20)) for n in range(3)]
    out = np.empty((3, 3, 20), np.float32)
    assert correct_slice_times(ramp[2], ramp[1], times, tr_s, out=out) is out
    np.testing.assert_allclose(out, 5 * 2 * tr_s, rtol=1e-6)


@pytest.mark.parametrize("wrong", [dict(tr_s=0.0), dict(slice_times_s=[0.0, 3.0]), dict(slice_times_s=[0.0]), dict(reference_s=-1.0)])
def test_slice_times_refuse(wrong):
    given = dict(volume=np.zeros((2, 2, 2)), before=np.zeros((2, 2, 2)), slice_times_s=[0.0, 0.5], tr_s=1.0) | wrong
    with pytest.raises(ValueError, match="correct_slice_times"):
        correct_slice_times(**given)
