"""Volumes and maps on other grids: cubic B-spline sampling by any matrix, and its adjoint, with the kernels that realign volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import spline_filter

from rtevo.kernels import interpolate
from rtevo.kernels.align import pack_rows

__all__ = ["collect", "sample"]

_REACH = 2  # voxels that a cubic B-spline reaches to either side


def sample(volume: ArrayLike, matrix: ArrayLike, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Sample a volume on another grid by cubic B-splines.

    Points up to one voxel outside the volume take its mirrored edge, further out 0.

    Parameters
    ----------
    volume : array-like, (X, Y, Z)
        Any real dtype; what is not finite counts as 0.
    matrix : array-like of float, (4, 4)
        Voxel of the result to voxel of the volume; any affine one.
    shape : tuple of int, (3,)
        Of the result.

    Returns
    -------
    ndarray, float32 of that shape
    """
    data, to = _along_rows(np.asarray(volume), np.asarray(matrix, np.float64))
    nx, ny, nz = data.shape
    padded, p = interpolate.padded((nx, ny, nz)), interpolate.PAD
    padded[p:-p, p:-p, p:-p] = np.nan_to_num(np.asarray(data, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    line = np.zeros(max(nz, shape[2]) + 2 * max(interpolate.BLOCK, interpolate.TAPS), np.float32)
    interpolate.prefilter_yz(padded, 0, nx, line)
    interpolate.prefilter_x(padded, 0, ny + 2 * p)
    out = np.zeros(shape, np.float32)
    rows = pack_rows(np.ones(shape, np.float32))[0]
    flat = interpolate.as_line(padded)
    interpolate.reslice_rows(flat, (nx, ny, nz), False, to, rows, 0, len(rows), line, out)
    return out


def _along_rows(volume: NDArray[Any], matrix: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn a volume's axes so that the result's rows run along its own, upwards: the kernels are fast there."""
    last = int(np.abs(matrix[:3, 2]).argmax())
    axes = [axis for axis in range(3) if axis != last] + [last]
    volume, to = volume.transpose(axes), matrix[[*axes, 3]]
    if to[2, 2] < 0:
        volume = volume[:, :, ::-1]
        to[2] = (volume.shape[2] - 1) * to[3] - to[2]
    return volume, to


def collect(values: NDArray[Any], parts: tuple[int, int, int]) -> NDArray[np.float64]:
    """Collect values on a finer lattice into voxels, by the adjoint of cubic B-spline interpolation over its number of points.

    What is collected, times a volume and summed over the voxels, is the mean over the lattice's points of the values times the volume as
    interpolated there, times the number of voxels (away from the edges): nothing finer than the voxels comes out at a wrong place
    (aliasing), and a constant keeps its value.

    Parameters
    ----------
    values : ndarray, float (X parts[0], Y parts[1], Z parts[2])
        Each voxel is divided into so many points along each axis, symmetrically about its centre; beyond the edges the values go on as
        they end.
    parts : tuple of int, (3,)

    Returns
    -------
    ndarray, float64 (X, Y, Z)
    """
    result = np.asarray(values, np.float64)
    for axis, k in enumerate(parts):
        x = np.abs((np.arange(-_REACH * k, (_REACH + 1) * k) + 0.5) / k - 0.5)
        weights = np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - np.minimum(x, 2)) ** 3 / 6, 0.0))
        lines = np.moveaxis(result, axis, 0)
        n = len(lines) // k
        lines = np.concatenate([np.repeat(lines[:1], _REACH * k, axis=0), lines, np.repeat(lines[-1:], _REACH * k, axis=0)])
        total = np.zeros((n, *lines.shape[1:]))
        for m, weight in enumerate(weights / weights.sum()):
            if weight:
                total += weight * lines[m : m + n * k : k]
        result = np.moveaxis(total, 0, axis)
    return np.asarray(spline_filter(result, 3, mode="mirror"), np.float64)
