"""Running mean and variance of volumes, voxel by voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels._compile import kernel

__all__ = ["running_moments", "running_variance"]


@kernel
def _add(volume, count, mean, squares):  # type: ignore[no-untyped-def]
    for k in range(volume.size):
        step = volume[k] - mean[k]
        mean[k] += step / count
        squares[k] += step * (volume[k] - mean[k])


def running_moments(volume: NDArray[np.float32], count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> int:
    """Add one volume to the running mean and the running sum of squared deviations, in place.

    Source: B. P. Welford (1962), Technometrics 4:419-420, doi:10.1080/00401706.1962.10490022: exact to rounding however far the mean
    lies from zero. NaN stays in the voxel that had it: leave such volumes out.

    Parameters
    ----------
    volume : ndarray (X, Y, Z)
        Any real dtype and strides.
    count : int
        Volumes taken before; 0 starts anew.
    mean, squares : ndarray, float64 (X, Y, Z), C-ordered
        Changed in place; zeros before the first volume.

    Returns
    -------
    int
        Volumes taken now.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if not volume.shape == mean.shape == squares.shape:
        raise ValueError(f"running_moments: expected equal shapes, got {volume.shape}, {mean.shape} and {squares.shape}")
    if not (mean.flags.c_contiguous and squares.flags.c_contiguous):
        raise ValueError("running_moments mean, squares: expected C-ordered arrays")
    _add(np.ascontiguousarray(volume, np.float32).reshape(-1), float(count + 1), mean.reshape(-1), squares.reshape(-1))
    return count + 1


def running_variance(count: int, squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance (n - 1) from :func:`running_moments`: NaN before the second volume."""
    return squares / (count - 1) if count > 1 else np.full(squares.shape, np.nan)
