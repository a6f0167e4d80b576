"""Separable Gaussian smoothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels._compile import helper, kernel

__all__ = ["gaussian_taps", "smooth"]

TRUNCATE = 4.0  # standard deviations that the kernel reaches, as scipy's default
FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))


def gaussian_taps(sigma: float) -> NDArray[np.float32]:
    """Half of a sampled Gaussian that sums to 1: the centre first, out to `TRUNCATE` sigma (in voxels) as scipy rounds it."""
    radius = int(TRUNCATE * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(radius + 1) / max(sigma, 1e-9)) ** 2)
    return np.asarray(taps / (taps[0] + 2.0 * taps[1:].sum()), np.float32)


@helper
def _convolve(source, start, step, taps, n, out):  # type: ignore[no-untyped-def]
    """Convolve n values of a line from `start` along `step`: out[k] = sum over m of taps[|m|] source[start + k + m step]."""
    for k in range(n):
        out[k] = taps[0] * source[start + np.uint64(k)]
    for m in range(1, len(taps)):
        tap, before, after = taps[m], start - np.uint64(m * step), start + np.uint64(m * step)
        for k in range(n):
            out[k] += tap * (source[before + np.uint64(k)] + source[after + np.uint64(k)])


@kernel
def _smooth_planes(volume, tx, ty, tz, first, last, wide, tall, out):  # type: ignore[no-untyped-def]
    """Smooth planes [first, last) of X, each as one long line with zeros between its rows.

    Parameters
    ----------
    volume, out : ndarray, float32 (X, Y, Z), C-ordered
    tx, ty, tz : ndarray, float32 (radius + 1,)
    wide : ndarray, float32 (2, Y + 2 radius_y, Z + 2 radius_z)
        Scratch, zeros at first.
    tall : ndarray, float32 (Y (Z + 2 radius_z),)
        Scratch.
    """
    nx, ny, nz = volume.shape
    ry, rz = len(ty) - 1, len(tz) - 1
    width = nz + 2 * rz
    plane, lines = wide[0].reshape(-1), wide[1].reshape(-1)
    body = ny * width
    flat = volume.reshape(-1)
    row = tall[: ny * nz]
    for i in range(first, last):
        for k in range(ny * nz):
            row[k] = 0.0
        for m in range(max(-i, 1 - len(tx)), min(nx - 1 - i, len(tx) - 1) + 1):
            tap, start = tx[abs(m)], np.uint64((i + m) * ny * nz)
            for k in range(ny * nz):
                row[k] += tap * flat[start + np.uint64(k)]
        for j in range(ny):
            o, q = np.uint64((j + ry) * width + rz), np.uint64(j * nz)
            for k in range(nz):
                plane[o + np.uint64(k)] = row[q + np.uint64(k)]
        _convolve(plane, np.uint64(ry * width), width, ty, body, lines[rz : rz + body])
        _convolve(lines, np.uint64(rz), 1, tz, body, tall)
        for j in range(ny):
            q = np.uint64(j * width + rz)
            into = out[i, j]
            for k in range(nz):
                into[k] = tall[q + np.uint64(k)]


def smooth(
    volume: ArrayLike,
    voxel_size_mm: ArrayLike,
    fwhm_mm: float,
    out: NDArray[np.float32] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Smooth a volume with a Gaussian.

    Beyond the volume's edges lies zero, as in nilearn's ``smooth_img`` and ``scipy.ndimage.gaussian_filter1d(mode="constant")``. With
    a `mask`, only its voxels count and each is divided by the share of the kernel that fell into the mask (normalised convolution:
    H. Knutsson, C.-F. Westin, 1993, doi:10.1109/CVPR.1993.341081); outside the mask the result is zero.

    Parameters
    ----------
    volume : array_like, (X, Y, Z)
        Any real dtype and strides. NaN spreads as far as the kernel reaches.
    voxel_size_mm : array_like, (3,)
        Voxel edges, mm.
    fwhm_mm : float
        Full width at half maximum, mm; 0 leaves the volume as it is.
    out : ndarray, float32 (X, Y, Z), optional
        C-ordered; written and returned. It must not overlap `volume`.
    mask : ndarray, bool (X, Y, Z), optional

    Returns
    -------
    ndarray, float32 (X, Y, Z)

    Raises
    ------
    ValueError
        If the volume is not three-dimensional or `fwhm_mm` is negative or not finite.
    """
    source = np.ascontiguousarray(volume, np.float32)
    size = np.asarray(voxel_size_mm, np.float64)
    if source.ndim != 3 or size.shape != (3,) or not (size > 0).all():
        raise ValueError(f"smooth: expected a volume (X, Y, Z) and 3 positive voxel sizes, got shape {source.shape} and {voxel_size_mm!r}")
    if not 0 <= fwhm_mm < math.inf:
        raise ValueError(f"smooth fwhm_mm: expected a number >= 0, got {fwhm_mm!r}")
    result = np.empty(source.shape, np.float32) if out is None else out
    if mask is None:
        _smooth_into(source, size, fwhm_mm, result)
        return result
    share = smooth(mask, size, fwhm_mm)
    _smooth_into(np.where(mask, source, np.float32(0)), size, fwhm_mm, result)
    np.divide(result, share, out=result, where=mask)
    result[~mask] = 0
    return result


def _smooth_into(source: NDArray[np.float32], size: NDArray[np.float64], fwhm_mm: float, out: NDArray[np.float32]) -> None:
    if not source.flags.writeable:  # of a read-only array the kernel would be compiled anew
        source = source.copy()
    taps = [gaussian_taps(fwhm_mm / FWHM_PER_SIGMA / s) for s in size]
    if len(taps[1]) < 2:  # the scratch's lines along Z reach into the row before and after
        taps[1] = np.array([taps[1][0], 0.0], np.float32)
    _, ny, nz = source.shape
    height, width = ny + 2 * (len(taps[1]) - 1), nz + 2 * (len(taps[2]) - 1)
    wide, tall = np.zeros((2, height, width), np.float32), np.empty(ny * width, np.float32)
    _smooth_planes(source, *taps, 0, source.shape[0], wide, tall, out)
