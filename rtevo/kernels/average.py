"""Means over voxels of another grid, linear in between: for shares and levels, which must not overshoot."""

from __future__ import annotations

import math

from rtevo.kernels._compile import kernel

__all__ = ["average_linear"]


@kernel
def average_linear(fields, matrix, parts, out):  # type: ignore[no-untyped-def]
    """Average fields over the voxels of a grid: the mean of points in each, interpolated linearly; beyond the fields lies zero.

    Parameters
    ----------
    fields : ndarray, float32 (X, Y, Z, n), C-ordered
    matrix : ndarray, float64 (4, 4)
        Voxel of the result to voxel of the fields.
    parts : tuple of int, (3,)
        Number of points along each axis of a voxel, symmetrically about its centre.
    out : ndarray, float32 (x, y, z, n), C-ordered
        The means.
    """
    nx, ny, nz, n = fields.shape
    a, b, c = parts
    share = 1.0 / (a * b * c)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                into = out[i, j, k]
                for m in range(n):
                    into[m] = 0.0
                for part in range(a * b * c):
                    u = i + (part // (b * c) + 0.5) / a - 0.5
                    v = j + (part // c % b + 0.5) / b - 0.5
                    w = k + (part % c + 0.5) / c - 0.5
                    x = matrix[0, 0] * u + matrix[0, 1] * v + matrix[0, 2] * w + matrix[0, 3]
                    y = matrix[1, 0] * u + matrix[1, 1] * v + matrix[1, 2] * w + matrix[1, 3]
                    z = matrix[2, 0] * u + matrix[2, 1] * v + matrix[2, 2] * w + matrix[2, 3]
                    ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
                    if ix < -1 or iy < -1 or iz < -1 or ix >= nx or iy >= ny or iz >= nz:
                        continue
                    fx, fy, fz = x - ix, y - iy, z - iz
                    for corner in range(8):
                        p, q, r = corner >> 2, corner >> 1 & 1, corner & 1
                        if ix + p < 0 or iy + q < 0 or iz + r < 0 or ix + p >= nx or iy + q >= ny or iz + r >= nz:
                            continue
                        weight = share * (fx if p else 1.0 - fx) * (fy if q else 1.0 - fy) * (fz if r else 1.0 - fz)
                        values = fields[ix + p, iy + q, iz + r]
                        for m in range(n):
                            into[m] += weight * values[m]
