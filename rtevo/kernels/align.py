"""Sums for one Gauss-Newton step of an inverse-compositional alignment.

Everything that depends on the reference is prepared once and packed row by row over the voxels that guide the alignment; a step only
samples the volume there and sums. Sources: S. Baker, I. Matthews (2004), Lucas-Kanade 20 years on, Int. J. Comput. Vis. 56:221-255,
doi:10.1023/B:VISI.0000011205.11775.fd (inverse composition); G. D. Hager, P. N. Belhumeur (1998), IEEE Trans. Pattern Anal. Mach.
Intell. 20:1025-1039, doi:10.1109/34.722606 (projecting brightness changes out).
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from rtevo.kernels._compile import kernel
from rtevo.kernels.interpolate import BLOCK, sample_row

__all__ = ["SUMS", "accumulate", "pack_rows"]

SUMS = 12  # 6 of the step, then: weight, w R, w V, w R R, w R V, w V V


def pack_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int64], int]:
    """List the runs along Z that cover all voxels of positive `weight`.

    Parameters
    ----------
    weight : ndarray, float32 (X, Y, Z)

    Returns
    -------
    rows : ndarray, int64 (n, 5)
        x, y, first z, length, and where the run starts in packed arrays, a multiple of `BLOCK`.
    size : int
        Length of packed arrays.
    """
    some = weight > 0
    x, y = np.nonzero(some.any(axis=2))
    inside = some[x, y]
    first = inside.argmax(axis=1)
    length = inside.shape[1] - inside[:, ::-1].argmax(axis=1) - first
    room = -(-length // BLOCK) * BLOCK
    start = np.cumsum(room) - room
    return np.stack([x, y, first, length, start], axis=1).astype(np.int64), int(room.sum())


@numba.njit(inline="always")
def _inside(x, y, z, shape):  # type: ignore[no-untyped-def]
    """Voxels from the nearest face of the field of view (through the edge voxels' centres), negative outside."""
    return min(x, y, z, shape[0] - 1 - x, shape[1] - 1 - y, shape[2] - 1 - z)


@numba.njit(nogil=True)
def _fade(x, y, z, dx, dy, dz, n, shape, weight, o, out):  # type: ignore[no-untyped-def]
    """Weight of each sample of a row, falling linearly to 0 over the outermost voxel of the field of view."""
    last = n - 1
    if _inside(x, y, z, shape) >= 1 and _inside(x + last * dx, y + last * dy, z + last * dz, shape) >= 1:
        for k in range(n):
            out[k] = weight[o + np.uint64(k)]
        return
    for k in range(n):
        fade = min(max(_inside(x + k * dx, y + k * dy, z + k * dz, shape), 0.0), 1.0)
        out[k] = weight[o + np.uint64(k)] * np.float32(fade)


@kernel
def accumulate(flat, shape, matrix, scale, rows, first, last, reference, steepest, weight, scratch, sums):  # type: ignore[no-untyped-def]
    """Sum the step's right-hand side and the moments of reference and volume over rows [first, last).

    Parameters
    ----------
    flat, shape
        The volume: see :func:`rtevo.kernels.interpolate.sample_row`.
    matrix : ndarray, float64 (4, 4)
        Voxel of the reference to voxel of the volume.
    scale : float
        Intensity of the volume over that of the reference.
    rows : ndarray, int64 (n, 5)
        Of :func:`pack_rows`.
    reference, weight : ndarray, float32 (size,)
        Packed; weight is 0 where a voxel does not count.
    steepest : ndarray, float32 (6, size)
        Packed: what each residual says about each motion parameter.
    scratch : ndarray, float32 (2, Z + 2 BLOCK)
    sums : ndarray, float64 (SUMS,)
        The result.
    """
    scale = np.float32(scale)
    value, factor = scratch[0], scratch[1]
    s0, s1, s2, s3, s4, s5 = steepest[0], steepest[1], steepest[2], steepest[3], steepest[4], steepest[5]
    sums[:] = 0.0
    for r in range(first, last):
        i, j, k, n = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3]
        o = np.uint64(rows[r, 4])
        x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3]
        y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3]
        z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]
        dx, dy, dz = matrix[0, 2], matrix[1, 2], matrix[2, 2]
        sample_row(flat, shape, x, y, z, dx, dy, dz, n, value)
        _fade(x, y, z, dx, dy, dz, n, shape, weight, o, factor)
        zero = np.float32(0)
        g0, g1, g2, g3, g4, g5 = zero, zero, zero, zero, zero, zero
        m0, m1, m2, m3, m4, m5 = zero, zero, zero, zero, zero, zero
        for k in range(n):
            u = o + np.uint64(k)
            v, w, ref = value[k], factor[k], reference[u]
            wd = w * (v - scale * ref)
            g0 += wd * s0[u]
            g1 += wd * s1[u]
            g2 += wd * s2[u]
            g3 += wd * s3[u]
            g4 += wd * s4[u]
            g5 += wd * s5[u]
            wr, wv = w * ref, w * v
            m0 += w
            m1 += wr
            m2 += wv
            m3 += wr * ref
            m4 += wr * v
            m5 += wv * v
        sums[0] += g0
        sums[1] += g1
        sums[2] += g2
        sums[3] += g3
        sums[4] += g4
        sums[5] += g5
        sums[6] += m0
        sums[7] += m1
        sums[8] += m2
        sums[9] += m3
        sums[10] += m4
        sums[11] += m5
