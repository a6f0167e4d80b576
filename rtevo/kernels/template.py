"""Everything an alignment needs of its reference, prepared once.

A volume V is aligned where the step ``(Q' J)^-1 Q' (V / scale - R)`` vanishes: R is the reference and J its change with the six motion
parameters, both as B-splines see them that take raw samples for coefficients (a slight smoothing, and with it, where they are quintic,
hardly any interpolation error); Q is what this module is about. Least squares has Q = J. Here Q is

* restricted to the brain: outside, noise is Rician and interpolation rings, and both pull at the outline;
* sharpened, which undoes the loss of medium frequencies to the smoothing as far as the reference's noise allows (N. Wiener, 1949): nearly
  the accuracy of white noise and sharp sampling;
* made orthogonal to every smooth change of gain, ``R(x) b(x)`` with b a cubic B-spline field with a knot every `GAIN_SPACING_MM`:
  task activation, signal dropout, changes of coil and receiver gain and drifts of the field then drop out of the estimate, at no
  cost per volume.

Sources: G. D. Hager, P. N. Belhumeur (1998), IEEE Trans. Pattern Anal. Mach. Intell. 20:1025-1039, doi:10.1109/34.722606, and S. Baker,
R. Gross, I. Matthews (2003), CMU-RI-TR-03-35 (inverse composition with linear appearance variation projected out); P. Thevenaz,
U. E. Ruttimann, M. Unser (1998), IEEE Trans. Image Process. 7:27-41, doi:10.1109/83.650848 (splines in subpixel registration).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels.align import pack_rows
from rtevo.kernels.gains import gains_removed

__all__ = ["Level", "make_level", "seen_through_splines", "thinned"]

Array = NDArray[np.float64]

SAMPLE = 4000  # residuals that are sorted for their median
NOISE = 0.03  # of Wiener's filter that sharpens: relative to a signal that the splines pass whole
QUINTIC = (np.array([1, 26, 66, 26, 1]) / 120.0, np.array([-1, -10, 0, 10, 1]) / 24.0)  # B-spline at whole voxels; its slope
CUBIC = (np.array([1, 4, 1]) / 6.0, np.array([-1, 0, 1]) / 2.0)


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
    quintic : bool
        Sampled by quintic B-splines rather than cubic ones.
    """

    rows: NDArray[np.int64]
    shares: NDArray[np.int64]
    reference: NDArray[np.float32]
    weight: NDArray[np.float32]
    steepest: NDArray[np.float32]
    inverse: Array
    total: float
    sample: NDArray[np.int64]
    quintic: bool


def _filtered(volume: Array, taps: list[Array]) -> Array:
    """Correlate each axis with its taps, mirrored at the edges."""
    from scipy.ndimage import correlate1d

    for axis, kernel in enumerate(taps):
        volume = correlate1d(volume, kernel, axis=axis, mode="mirror")
    return volume


def seen_through_splines(volume: Array, quintic: bool = True) -> Array:
    """Return a volume as B-splines that take raw samples for coefficients show it at whole voxels."""
    return _filtered(volume, [(QUINTIC if quintic else CUBIC)[0]] * 3)


def steepest_descent(volume: Array, affine: Array, centre: Array, quintic: bool = True) -> Array:
    """Change of a volume, seen through B-splines, with trans_x..z (per mm) and rot_x..z (per rad): float64 (6, X, Y, Z)."""
    value, slope = QUINTIC if quintic else CUBIC
    by_voxel = np.stack([_filtered(volume, [slope if a == axis else value for a in range(3)]) for axis in range(3)])
    gradient = np.tensordot(np.linalg.inv(affine[:3, :3]).T, by_voxel, 1)
    points = np.tensordot(affine[:3, :3], np.indices(volume.shape), 1) + (affine[:3, 3] - centre).reshape(3, 1, 1, 1)
    return np.concatenate([gradient, np.cross(points, gradient, axis=0)])


def make_level(
    reference: Array, weight: Array, affine: Array, centre: Array, chunks: int, stride: int, *, quintic: bool, precise: bool
) -> Level:
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
    stride : int
        1 takes all rows along Z, n every n-th along X and Y.
    quintic : bool
        Samples by quintic B-splines, which err ten times less than cubic ones and cost three times as much.
    precise : bool
        Sharpened and free of gains as said above; otherwise plain least squares with one gain, which pulls from further away.
    """
    seen = seen_through_splines(reference, quintic)
    change = steepest_descent(reference, affine, centre, quintic)
    if precise:
        size = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        steepest = gains_removed(np.stack([_sharpened(c, quintic) for c in change]), seen, weight, size)
    else:
        share = (weight * seen * change).sum(axis=(1, 2, 3)) / (weight * seen**2).sum()
        steepest = weight * (change - share[:, None, None, None] * seen)
    return _level(seen, thinned(weight, stride), steepest, change, chunks, quintic)


def _sharpened(image: Array, quintic: bool) -> Array:
    """Undo, axis by axis, what the splines took from the image and will take from the noise of the sampled volume."""
    from scipy.fft import dctn, idctn

    waves = dctn(image, type=1)  # mirrored as the splines mirror
    for axis, n in enumerate(image.shape):
        passed = np.sinc(np.arange(n) / (2 * (n - 1))) ** (12 if quintic else 8)  # the splines' power
        gain = (1 + NOISE) * passed / (passed**2 + NOISE)
        waves *= gain.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(idctn(waves, type=1))


def thinned(weight: Array, stride: int) -> Array:
    """Keep every n-th row along X and Y."""
    thin = np.zeros(weight.shape)
    thin[::stride, ::stride] = weight[::stride, ::stride]
    return thin


def _level(seen: Array, weight: Array, steepest: Array, change: Array, chunks: int, quintic: bool) -> Level:
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
    return Level(rows, shares, packed[0], packed[1], packed[2:], inverse, float(weight.sum()), sample, quintic)
