"""Cubic B-spline sampling of volumes where every voxel has a displacement of its own, besides a rigid motion: one interpolation.

The coefficients are those of :mod:`rtevo.kernels.interpolate`. Neighbours share no offset here, so each voxel reads its own 64 taps.
"""

from __future__ import annotations

import math

import numpy as np

from rtevo.kernels._compile import kernel
from rtevo.kernels.interpolate import PAD, _weights

__all__ = ["warped_rows"]


@kernel
def warped_rows(flat, shape, matrix, shift, gain, rows, first, last, out):  # type: ignore[no-untyped-def]
    """Sample rows [first, last) of a grid that is moved by `matrix` and then displaced; 0 further than one voxel outside the volume.

    Parameters
    ----------
    flat : ndarray, float32 (m,)
        Coefficients of :func:`rtevo.kernels.interpolate.padded` as one line, tail included.
    shape : tuple of int, (3,)
        Voxels of the volume, without padding.
    matrix : ndarray, float64 (4, 4)
        Voxel of the output to voxel of the sampled volume.
    shift : ndarray, float32 (X, Y, Z, 3)
        By how much each output voxel is sampled elsewhere, voxels of the sampled volume, finite.
    gain : ndarray, float32 (X, Y, Z)
        What each sample is multiplied by.
    rows : ndarray, int64 (n, 5)
        x, y, first z and length of each row: see :func:`rtevo.kernels.align.pack_rows`.
    out : ndarray, float32 (X, Y, Z), C-ordered
        The samples; voxels of no row stay as they are.
    """
    nx, ny, nz = shape
    sy = nz + 2 * PAD
    sx = sy * (ny + 2 * PAD)
    for r in range(first, last):
        i, j, start, n = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3]
        for k in range(start, start + n):
            x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3] + shift[i, j, k, 0]
            y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3] + shift[i, j, k, 1]
            z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3] + shift[i, j, k, 2]
            ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
            if ix < -1 or iy < -1 or iz < -1 or ix >= nx or iy >= ny or iz >= nz:
                out[i, j, k] = 0.0
                continue
            a = _weights(np.float32(x - ix))
            b = _weights(np.float32(y - iy))
            w0, w1, w2, w3 = _weights(np.float32(z - iz))
            corner = (ix + PAD - 1) * sx + (iy + PAD - 1) * sy + iz + PAD - 1
            total = np.float32(0.0)
            for m in range(4):
                plane = np.float32(0.0)
                for q in range(4):
                    p = corner + m * sx + q * sy
                    plane += b[q] * (flat[p] * w0 + flat[p + 1] * w1 + flat[p + 2] * w2 + flat[p + 3] * w3)
                total += a[m] * plane
            out[i, j, k] = gain[i, j, k] * total
