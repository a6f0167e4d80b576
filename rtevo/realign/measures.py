"""Measures of motion and of what it leaves in the data."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.records import HEAD_RADIUS_MM

__all__ = ["dvars", "framewise_displacement"]


def framewise_displacement(params: ArrayLike, radius_mm: float = HEAD_RADIUS_MM) -> NDArray[np.float64]:
    """Framewise displacement: J. D. Power et al. (2012), NeuroImage 59:2142-2154, doi:10.1016/j.neuroimage.2011.10.018.

    The sum of the absolute differences of the six parameters between successive volumes, rotations as arc lengths on a sphere.

    Parameters
    ----------
    params : array_like, (n, 6)
        Translations (mm) and rotations (rad).
    radius_mm : float
        Radius of the sphere.

    Returns
    -------
    ndarray, float64 (n,)
        mm; NaN for the first volume, and where a volume or the one before it has no motion.

    Raises
    ------
    ValueError
        If `params` is not (n, 6).
    """
    p = np.asarray(params, np.float64)
    if p.ndim != 2 or p.shape[1] != 6:
        raise ValueError(f"framewise_displacement params: expected shape (n, 6), got {p.shape}")
    steps = np.abs(np.diff(p, axis=0, prepend=np.full((1, 6), np.nan)))
    return np.asarray(steps[:, :3].sum(axis=1) + radius_mm * steps[:, 3:].sum(axis=1))


def dvars(volumes: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """DVARS: root mean square over the mask of the change from the volume before (Power et al. 2012), in the data's units.

    Parameters
    ----------
    volumes : array_like, (X, Y, Z, n)
    mask : array_like, bool (X, Y, Z)

    Returns
    -------
    ndarray, float64 (n,)
        NaN for the first volume.

    Raises
    ------
    ValueError
        If shapes do not fit or the mask is empty.
    """
    data, inside = np.asarray(volumes), np.asarray(mask, bool)
    if data.ndim != 4 or data.shape[:3] != inside.shape:
        raise ValueError(f"dvars: expected volumes (X, Y, Z, n) and a mask (X, Y, Z), got shapes {data.shape} and {inside.shape}")
    if not inside.any():
        raise ValueError("dvars mask: expected at least one voxel, got none")
    found = np.full(data.shape[3], np.nan)
    for n in range(1, data.shape[3]):  # one pair at a time: a run may be far larger than memory holds as float64
        change = data[..., n][inside].astype(np.float64) - data[..., n - 1][inside]
        found[n] = np.sqrt((change**2).mean())
    return found
