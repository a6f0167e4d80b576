"""Everything an alignment needs of its reference, prepared once.

A volume V is aligned where the step ``(Q' J)^-1 Q' (V / scale - R)`` vanishes: R is the reference and J its change with the six motion
parameters, both as quintic B-splines see them that take raw samples for coefficients (a slight smoothing, and with it hardly any
interpolation error); Q is what this module is about. Least squares has Q = J. Here Q is

* restricted to the brain: outside, noise is Rician and interpolation rings, and both pull at the outline;
* sharpened, which undoes the loss of medium frequencies to the smoothing: nearly the accuracy of white noise and sharp sampling;
* made orthogonal to every smooth change of gain, ``R(x) b(x)`` with b a cubic B-spline field with a knot every `GAIN_SPACING_MM`:
  task activation, signal dropout, changes of coil and receiver gain and drifts of the field then drop out of the estimate, at no
  cost per volume.

Sources: G. D. Hager, P. N. Belhumeur (1998), IEEE Trans. Pattern Anal. Mach. Intell. 20:1025-1039, doi:10.1109/34.722606, and S. Baker,
R. Gross, I. Matthews (2003), CMU-RI-TR-03-35 (inverse composition with linear appearance variation projected out); P. Thevenaz,
U. E. Ruttimann, M. Unser (1998), IEEE Trans. Image Process. 7:27-41, doi:10.1109/83.650848 (splines in subpixel registration).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels.align import pack_rows
from rtevo.kernels.gains import gains_removed

__all__ = ["Level", "make_levels", "seen_through_splines", "thinned"]

Array = NDArray[np.float64]

SAMPLE = 4000  # residuals that are sorted for their median
SHARPEN = 4.0
SHARPEN_SIGMA = 0.8  # voxels
SPLINE = np.array([1, 26, 66, 26, 1]) / 120.0  # quintic B-spline at whole voxels
SLOPE = np.array([-1, -10, 0, 10, 1]) / 24.0  # its derivative, as correlation taps


@dataclass(frozen=True, eq=False)
class Level:
    """A prepared reference, all of it or some of its rows; packed arrays as :mod:`rtevo.kernels.align` reads them.

    Parameters
    ----------
    rows : ndarray, int64 (n, 5)
    shares : ndarray, int64 (chunks + 1,)
        First row of each chunk; chunks hold about the same number of voxels.
    reference, weight : ndarray, float32 (size,)
        The reference in units of its mean over the mask.
    steepest : ndarray, float32 (6, size)
        Q.
    inverse : ndarray, float64 (6, 6)
        (Q' J)^-1.
    total : float
        Sum of the weights.
    sample : ndarray, int64 (n,)
        Packed positions of some voxels of full weight, spread over all rows.
    """

    rows: NDArray[np.int64]
    shares: NDArray[np.int64]
    reference: NDArray[np.float32]
    weight: NDArray[np.float32]
    steepest: NDArray[np.float32]
    inverse: Array
    total: float
    sample: NDArray[np.int64]


def _filtered(volume: Array, taps: list[Array]) -> Array:
    """Correlate each axis with its taps, mirrored at the edges."""
    from scipy.ndimage import correlate1d

    for axis, kernel in enumerate(taps):
        volume = correlate1d(volume, kernel, axis=axis, mode="mirror")
    return volume


def seen_through_splines(volume: Array) -> Array:
    """Return a volume as quintic B-splines that take raw samples for coefficients show it at whole voxels."""
    return _filtered(volume, [SPLINE] * 3)


def steepest_descent(volume: Array, affine: Array, centre: Array) -> Array:
    """Change of a volume, seen through quintic B-splines, with trans_x..z (per mm) and rot_x..z (per rad): float64 (6, X, Y, Z)."""
    by_voxel = np.stack([_filtered(volume, [SLOPE if a == axis else SPLINE for a in range(3)]) for axis in range(3)])
    gradient = np.tensordot(np.linalg.inv(affine[:3, :3]).T, by_voxel, 1)
    points = np.tensordot(affine[:3, :3], np.indices(volume.shape), 1) + (affine[:3, 3] - centre).reshape(3, 1, 1, 1)
    return np.concatenate([gradient, np.cross(points, gradient, axis=0)])


def make_levels(
    reference: Array, weight: Array, affine: Array, centre: Array, chunks: int, strides: Sequence[int], precise: bool
) -> list[Level]:
    """Prepare a reference.

    Parameters
    ----------
    reference : ndarray, float64 (X, Y, Z)
        In any units: best those in which its mean is 1.
    weight : ndarray, float64 (X, Y, Z)
        0 .. 1: how much each voxel counts.
    affine : ndarray, float64 (4, 4)
        Voxel to RAS+ mm.
    centre : ndarray, float64 (3,)
        World point about which rotations turn, mm.
    chunks : int
        Shares of the work.
    strides : sequence of int
        One level each: 1 takes all rows along Z, n every n-th along X and Y.
    precise : bool
        Sharpened and free of gains as said above; otherwise plain least squares with one gain, which pulls from further away.
    """
    from scipy.ndimage import gaussian_filter

    seen = seen_through_splines(reference)
    change = steepest_descent(reference, affine, centre)
    if precise:
        soft = np.stack([gaussian_filter(c, SHARPEN_SIGMA, mode="mirror") for c in change])
        size = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        steepest = gains_removed(change + SHARPEN * (change - soft), seen, weight, size)
    else:
        share = (weight * seen * change).sum(axis=(1, 2, 3)) / (weight * seen**2).sum()
        steepest = weight * (change - share[:, None, None, None] * seen)
    return [_level(seen, thinned(weight, stride), steepest, change, chunks) for stride in strides]


def thinned(weight: Array, stride: int) -> Array:
    """Keep every n-th row along X and Y."""
    thin = np.zeros(weight.shape)
    thin[::stride, ::stride] = weight[::stride, ::stride]
    return thin


def _level(seen: Array, weight: Array, steepest: Array, change: Array, chunks: int) -> Level:
    """Pack the voxels of positive weight."""
    rows, length = pack_rows(weight)
    packed = np.zeros((8, length), np.float32)
    inside = weight > 0
    for x, y, z, n, start in rows:
        packed[0, start : start + n] = seen[x, y, z : z + n]
        packed[1, start : start + n] = weight[x, y, z : z + n]
        packed[2:, start : start + n] = np.where(inside[x, y, z : z + n], steepest[:, x, y, z : z + n], 0)
    done = np.cumsum(rows[:, 3])
    inner = np.searchsorted(done, np.linspace(0, done[-1], chunks + 1)[1:-1])
    shares = np.concatenate([[0], inner, [len(rows)]]).astype(np.int64)
    inverse = np.asarray(np.linalg.inv(steepest[:, inside] @ change[:, inside].T), np.float64)
    counting = np.flatnonzero(packed[1] > 0.5)
    sample = counting[:: max(len(counting) // SAMPLE, 1)]
    return Level(rows, shares, packed[0], packed[1], packed[2:], inverse, float(weight.sum()), sample)
