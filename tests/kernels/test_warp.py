"""Sampling with a displacement of each voxel against scipy.ndimage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rtevo.kernels import interpolate
from rtevo.kernels.align import pack_rows
from rtevo.kernels.rigid import matrix_from_params
from rtevo.kernels.warp import warped_rows

FLOAT32_SLACK = 1e-4  # of a unit-variance volume: coefficients are up to 27 times the samples, their tail is cut at 1.4e-7


def _sampled(volume, matrix, shift, gain):
    padded = interpolate.padded(volume.shape)
    p = interpolate.PAD
    padded[p:-p, p:-p, p:-p] = volume
    line = np.zeros(volume.shape[2] + 2 * max(interpolate.BLOCK, interpolate.TAPS), np.float32)
    interpolate.prefilter_yz(padded, 0, volume.shape[0], line)
    interpolate.prefilter_x(padded, 0, volume.shape[1] + 2 * p)
    out = np.full(volume.shape, np.nan, np.float32)
    rows, _ = pack_rows(np.ones(volume.shape))
    warped_rows(interpolate.as_line(padded), volume.shape, matrix, shift, gain, rows, 0, len(rows), out)
    return out


def _oracle(volume, matrix, shift, gain):
    """Naive: mirrored cubic spline, 0 beyond one voxel outside."""
    points = np.einsum("ab,bxyz->axyz", matrix[:3, :3], np.indices(volume.shape)) + matrix[:3, 3].reshape(3, 1, 1, 1)
    points = points + np.moveaxis(shift.astype(np.float64), -1, 0)
    found = ndimage.map_coordinates(volume.astype(np.float64), points, order=3, mode="mirror")
    top = np.array(volume.shape).reshape(3, 1, 1, 1)
    return gain * np.where(((points < -1) | (points >= top)).any(axis=0), 0.0, found)


@pytest.mark.parametrize("most_voxels", [0.0, 0.4, 3.0, 40.0])
@pytest.mark.parametrize("shape", [(12, 13, 14), (17, 6, 35)])
def test_displaced_samples_agree_with_scipy_inside_and_outside(shape, most_voxels):
    rng = np.random.default_rng(2)
    volume = rng.normal(size=shape).astype(np.float32)
    matrix = matrix_from_params([*rng.uniform(-2, 2, 3), 0.05, -0.03, 0.02], (np.array(shape) - 1) / 2)
    shift = rng.uniform(-most_voxels, most_voxels, (*shape, 3)).astype(np.float32)
    gain = rng.uniform(0, 2, shape).astype(np.float32)
    np.testing.assert_allclose(_sampled(volume, matrix, shift, gain), _oracle(volume, matrix, shift, gain), atol=FLOAT32_SLACK)
