"""B-spline prefilter and row sampling against scipy.ndimage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rtevo.kernels import interpolate
from rtevo.kernels.align import pack_rows
from rtevo.kernels.rigid import matrix_from_params

FLOAT32_SLACK = 1e-4  # of a unit-variance volume: coefficients are up to 27 times the samples, their tail is cut at 1.4e-7


def _coefficients(volume):
    padded = interpolate.padded(volume.shape)
    p = interpolate.PAD
    padded[p:-p, p:-p, p:-p] = volume
    nx, ny, nz = volume.shape
    line = np.zeros(nz + 2 * max(interpolate.BLOCK, interpolate.TAPS), np.float32)
    interpolate.prefilter_yz(padded, 0, nx, line)
    interpolate.prefilter_x(padded, 0, ny + 2 * p)
    return padded


def _resliced(volume, matrix):
    padded = _coefficients(volume)
    out = np.full(volume.shape, np.nan, np.float32)
    line = np.zeros(volume.shape[2] + 2 * interpolate.BLOCK, np.float32)
    rows, _ = pack_rows(np.ones(volume.shape))
    interpolate.reslice_rows(padded.base, volume.shape, False, matrix, rows, 0, len(rows), line, out)
    return out


def _oracle(volume, matrix):
    """Naive: mirrored cubic spline, 0 beyond one voxel outside."""
    points = np.einsum("ab,bxyz->axyz", matrix[:3, :3], np.indices(volume.shape)) + matrix[:3, 3].reshape(3, 1, 1, 1)
    found = ndimage.map_coordinates(volume.astype(np.float64), points, order=3, mode="mirror")
    top = np.array(volume.shape).reshape(3, 1, 1, 1)
    return np.where(((points < -1) | (points >= top)).any(axis=0), 0.0, found)


@pytest.mark.parametrize("shape", [(9, 7, 5), (5, 18, 33), (4, 4, 4), (2, 3, 16), (1, 5, 1)])
def test_prefilter_agrees_with_scipy_in_body_and_padding(shape):
    volume = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = volume.astype(np.float64)
    for axis in range(3):
        if shape[axis] > 1:
            expected = ndimage.spline_filter1d(expected, 3, axis=axis, mode="mirror")
    p = interpolate.PAD
    for axis in range(3):
        n = shape[axis]
        index = np.abs(np.arange(-p, n + p)) % max(2 * n - 2, 1)
        expected = np.take(expected, np.where(index >= n, 2 * n - 2 - index, index) if n > 1 else np.zeros(n + 2 * p, int), axis=axis)
    np.testing.assert_allclose(_coefficients(volume), expected, atol=FLOAT32_SLACK)


@pytest.mark.parametrize("degrees", [0.0, 0.3, 4.0, 37.0, 178.0])
@pytest.mark.parametrize("shape", [(12, 13, 14), (17, 6, 35)])
def test_reslice_agrees_with_scipy(shape, degrees):
    rng = np.random.default_rng(2)
    volume = rng.normal(size=shape).astype(np.float32)
    params = [*rng.uniform(-2, 2, 3), *np.deg2rad(degrees * np.array([1, -0.7, 0.4]))]
    matrix = matrix_from_params(params, (np.array(shape) - 1) / 2)
    np.testing.assert_allclose(_resliced(volume, matrix), _oracle(volume, matrix), atol=FLOAT32_SLACK)


@pytest.mark.parametrize("shift", [(40.0, 0, 0), (0, -25.5, 0), (0, 0, 30.25), (0, 0, -30.25), (1.5, -2.5, 3.5)])
def test_reslice_outside_is_zero_and_never_reads_out_of_bounds(shift):
    volume = np.random.default_rng(3).normal(size=(10, 11, 12)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    np.testing.assert_allclose(_resliced(volume, matrix), _oracle(volume, matrix), atol=FLOAT32_SLACK)


@pytest.mark.parametrize("degrees", [0.0, 0.3, 4.0, 37.0])
def test_quintic_sampling_agrees_with_scipy(degrees):
    shape = (12, 13, 24)
    volume = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    padded = interpolate.padded(shape)
    p = interpolate.PAD
    padded[p:-p, p:-p, p:-p] = volume
    interpolate.mirror_padding(padded)
    matrix = matrix_from_params([0.3, -1.2, 0.7, *np.deg2rad(degrees * np.array([1, -0.7, 0.4]))], (np.array(shape) - 1) / 2)
    out, line = np.empty(shape, np.float32), np.zeros(shape[2] + 2 * interpolate.BLOCK, np.float32)
    rows, _ = pack_rows(np.ones(shape))
    interpolate.reslice_rows(padded.base, shape, True, matrix, rows, 0, len(rows), line, out)
    points = np.einsum("ab,bxyz->axyz", matrix[:3, :3], np.indices(shape)) + matrix[:3, 3].reshape(3, 1, 1, 1)
    expected = ndimage.map_coordinates(volume.astype(np.float64), points, order=5, mode="mirror", prefilter=False)
    outside = ((points < -1) | (points >= np.array(shape).reshape(3, 1, 1, 1))).any(axis=0)
    np.testing.assert_allclose(out, np.where(outside, 0.0, expected), atol=1e-5)
