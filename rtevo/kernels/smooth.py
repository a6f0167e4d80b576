"""Separable Gaussian smoothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels._compile import kernel

__all__ = ["gaussian_taps", "smooth"]

TRUNCATE = 4.0  # standard deviations that the kernel reaches, as scipy's default
FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))


def gaussian_taps(sigma: float) -> NDArray[np.float32]:
    """Half of a sampled Gaussian that sums to 1: the centre first, out to `TRUNCATE` sigma (in voxels) as scipy rounds it."""
    radius = int(TRUNCATE * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(radius + 1) / max(sigma, 1e-9)) ** 2)
    return np.asarray(taps / (taps[0] + 2.0 * taps[1:].sum()), np.float32)


@kernel
def _smooth_planes(volume, tx, ty, tz, first, last, plane, line, out):  # type: ignore[no-untyped-def]
    """Smooth planes [first, last) of X; all arrays C-ordered float32, plane (Y, Z), line (Z + 2 radius,)."""
    nx, ny, nz = volume.shape
    reach = len(tz) - 1
    for i in range(first, last):
        for j in range(ny):
            here, into = volume[i, j], plane[j]
            for k in range(nz):
                into[k] = tx[0] * here[k]
            for m in range(1, len(tx)):
                if i >= m:
                    here = volume[i - m, j]
                    for k in range(nz):
                        into[k] += tx[m] * here[k]
                if i + m < nx:
                    here = volume[i + m, j]
                    for k in range(nz):
                        into[k] += tx[m] * here[k]
        for j in range(ny):
            line[:] = 0.0
            body = line[reach : reach + nz]
            for m in range(-len(ty) + 1, len(ty)):
                if 0 <= j + m < ny:
                    tap, here = ty[abs(m)], plane[j + m]
                    for k in range(nz):
                        body[k] += tap * here[k]
            into = out[i, j]
            for k in range(nz):
                into[k] = tz[0] * body[k]
            for m in range(1, reach + 1):
                left, right = line[reach - m : reach - m + nz], line[reach + m : reach + m + nz]
                for k in range(nz):
                    into[k] += tz[m] * (left[k] + right[k])


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
    taps = [gaussian_taps(fwhm_mm / FWHM_PER_SIGMA / s) for s in size]
    _, ny, nz = source.shape
    plane, line = np.empty((ny, nz), np.float32), np.empty(nz + 2 * (len(taps[2]) - 1), np.float32)
    _smooth_planes(source, *taps, 0, source.shape[0], plane, line, out)
