"""Synthetic truth for realignment: real volumes moved by known rigid motions, with noise, activation and signal dropout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.kernels.rigid import matrix_from_params

__all__ = ["SIZES", "Truth", "displacement", "make_truth"]

SIZES = {"small": 0.2, "moderate": 1.5, "large": 4.0}  # mm and degrees, uniform in +/- size along and about each axis


@dataclass(frozen=True, eq=False)
class Truth:
    """A moved series whose motion is known.

    Parameters
    ----------
    reference : ndarray, int16 (X, Y, Z)
    volumes : list of ndarray, int16 (X, Y, Z)
    matrices : list of ndarray, float64 (4, 4)
        Reference world to volume world, RAS+ mm.
    affine : ndarray, float64 (4, 4)
    mask : ndarray, bool (X, Y, Z)
        Brain: where errors are measured.
    """

    reference: NDArray[np.int16]
    volumes: list[NDArray[np.int16]]
    matrices: list[NDArray[np.float64]]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]


Array = NDArray[np.float64]


def _blob(shape: tuple[int, ...], affine: Array, centre: Array, fwhm_mm: float, sharp: bool) -> Array:
    """Return a Gaussian blob of height 1, or a ball of that diameter."""
    points = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3].reshape(3, 1, 1, 1)
    squared = ((points - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
    if sharp:
        return (squared < (fwhm_mm / 2) ** 2).astype(float)
    return np.asarray(np.exp(-4 * np.log(2) * squared / fwhm_mm**2))


def _rician(volume: NDArray[np.float64], sigma: float, rng: np.random.Generator) -> NDArray[np.int16]:
    noise = rng.normal(scale=sigma, size=(2, *volume.shape)) if sigma else np.zeros((2, *volume.shape))
    return np.asarray(np.clip(np.rint(np.hypot(volume + noise[0], noise[1])), 0, 32767), np.int16)


def make_truth(
    base: NDArray[np.float64],
    affine: NDArray[np.float64],
    mask: NDArray[np.bool_],
    size: float,
    count: int,
    rng: np.random.Generator,
    *,
    tsnr: float = 60.0,
    noise: float = 1.0,
    activation: float = 0.0,
    dropout: float = 0.0,
    blob_mm: float = 35.0,
    sharp: bool = False,
    mode: str = "nearest",
) -> Truth:
    """Move a volume by `count` random rigid motions with quintic splines and add what real runs hold.

    Parameters
    ----------
    base : ndarray, float64 (X, Y, Z)
        A real volume; scaled to a mean of 3000 in the mask.
    size : float
        Largest translation (mm) and rotation (degrees) along and about each axis.
    tsnr : float
        Mean signal in the mask over the noise's standard deviation, in the reference too.
    noise : float
        Factor on the noise of the volumes, not of the reference.
    activation, dropout : float
        Signal change in one blob each, as a fraction: every volume has a random share 0.5 .. 1 of it.
    blob_mm : float
        Full width of the blobs.
    sharp : bool
        Balls instead of Gaussian blobs.
    mode : str
        What lies beyond the field of view: see scipy.ndimage.
    """
    base = base * (3000.0 / base[mask].mean())
    sigma = 3000.0 / tsnr
    centre = affine[:3, :3] @ ((np.array(base.shape) - 1) / 2) + affine[:3, 3]
    voxels = np.argwhere(mask)
    world = np.linalg.inv(affine)
    volumes, matrices = [], []
    spots = voxels[rng.integers(len(voxels), size=2)] @ affine[:3, :3].T + affine[:3, 3]
    active = _blob(base.shape, affine, spots[0], blob_mm, sharp)
    dark = _blob(base.shape, affine, spots[1], blob_mm, sharp)
    for _ in range(count):
        params = rng.uniform(-1, 1, 6) * size * np.array([1, 1, 1, *[np.pi / 180] * 3])
        matrix = matrix_from_params(params, centre)
        changed = base * (1 + activation * rng.uniform(0.5, 1) * active) * (1 - dropout * rng.uniform(0.5, 1) * dark)
        back = world @ np.linalg.inv(matrix) @ affine
        moved = ndimage.affine_transform(changed, back[:3, :3], back[:3, 3], order=5, mode=mode)
        volumes.append(_rician(np.maximum(moved, 0), sigma * noise, rng))
        matrices.append(matrix)
    return Truth(_rician(np.maximum(base, 0), sigma, rng), volumes, matrices, affine, mask)


def displacement(a: Array, b: Array, affine: Array, mask: NDArray[np.bool_]) -> Array:
    """Distance in mm between where two motions take each voxel of the mask: float64 (n,)."""
    points = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    difference = a - b
    return np.asarray(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1))
