"""Sums for one Gauss-Newton step of an inverse-compositional alignment.

Everything that depends on the reference is prepared once and packed row by row over the voxels that guide the alignment; a step only
samples the volume there and sums. Sources: S. Baker, I. Matthews (2004), Lucas-Kanade 20 years on, Int. J. Comput. Vis. 56:221-255,
doi:10.1023/B:VISI.0000011205.11775.fd (inverse composition); G. D. Hager, P. N. Belhumeur (1998), IEEE Trans. Pattern Anal. Mach.
Intell. 20:1025-1039, doi:10.1109/34.722606 (projecting brightness changes out).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels._compile import helper, kernel
from rtevo.kernels.interpolate import BLOCK, sample_row
from rtevo.kernels.rigid import rotation

__all__ = ["FADE_FROM", "FADE_TO", "SUMS", "accumulate", "advance", "pack_rows"]

SUMS = 13  # 6 of the step, then, over weighted voxels: slope of the biweight, its weights w, w R, w V, w R R, w R V, w V V
LEARNING_MM = 0.5  # steps below this are small enough to learn the Hessian from
FADE_TO, FADE_FROM = 0.5, 1.5  # voxels from the faces of the field of view


def pack_rows(weight: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int64], int]:
    """List the runs along Z that cover all voxels of positive `weight`.

    Parameters
    ----------
    weight : ndarray (X, Y, Z)

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


@helper
def _inside(x, y, z, shape):  # type: ignore[no-untyped-def]
    """Voxels from the nearest face of the field of view (through the edge voxels' centres), negative outside."""
    return min(x, y, z, shape[0] - 1 - x, shape[1] - 1 - y, shape[2] - 1 - z)


@helper
def _fade(x, y, z, dx, dy, dz, n, shape, out):  # type: ignore[no-untyped-def]
    """Weight of each sample of a row: 1, but falling to 0 from `FADE_FROM` to `FADE_TO` voxels from the faces of the field of view."""
    last = n - 1
    if _inside(x, y, z, shape) >= FADE_FROM and _inside(x + last * dx, y + last * dy, z + last * dz, shape) >= FADE_FROM:
        for k in range(n):
            out[k] = np.float32(1)
        return
    for k in range(n):
        inside = _inside(x + k * dx, y + k * dy, z + k * dz, shape)
        out[k] = np.float32(min(max((inside - FADE_TO) / (FADE_FROM - FADE_TO), 0.0), 1.0))


@kernel
def accumulate(flat, shape, quintic, matrix, gain, limit, rows, shares, first, last, reference, steepest, weight, residual, scratch, sums):  # type: ignore[no-untyped-def]
    """Sum the step's right-hand side and the moments of reference and volume over the chunks of rows [first, last).

    Parameters
    ----------
    flat, shape, quintic
        The volume: see :func:`rtevo.kernels.interpolate.sample_row`.
    matrix : ndarray, float64 (4, 4)
        Voxel of the reference to voxel of the volume.
    gain : float
        What brings the volume's intensities to the reference's.
    limit : float
        Residuals of this size and above count for nothing, smaller ones by Tukey's biweight ``(1 - (residual / limit)^2)^2``
        (A. E. Beaton, J. W. Tukey, 1974, doi:10.1080/00401706.1974.10489171); infinity: all count alike.
    rows : ndarray, int64 (n, 5)
        Of :func:`pack_rows`.
    shares : ndarray, int64 (chunks + 1,)
        First row of each chunk. Sums are kept by chunk, so that they do not depend on who computes which.
    reference, weight : ndarray, float32 (size,)
        Packed; weight is 0 where a voxel does not count.
    steepest : ndarray, float32 (6, size)
        Packed: what each residual says about each motion parameter, weight included.
    residual : ndarray, float32 (size,)
        Packed result: volume minus reference, 0 outside the field of view and where a voxel does not count.
    scratch : ndarray, float32 (2, Z + 2 BLOCK)
    sums : ndarray, float64 (chunks, SUMS)
        The result.
    """
    gain, tight = np.float32(gain), np.float32(1.0 / limit)
    value, fade = scratch[0], scratch[1]
    s0, s1, s2, s3, s4, s5 = steepest[0], steepest[1], steepest[2], steepest[3], steepest[4], steepest[5]
    sums[first:last] = 0.0
    dx, dy, dz = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    chunk = first
    for r in range(shares[first], shares[last]):
        while r >= shares[chunk + 1]:
            chunk += 1
        i, j, k, n = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3]
        o = np.uint64(rows[r, 4])
        x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3]
        y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3]
        z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]
        sample_row(flat, shape, quintic, x, y, z, dx, dy, dz, n, value)
        _fade(x, y, z, dx, dy, dz, n, shape, fade)
        zero, one, five = np.float32(0), np.float32(1), np.float32(5)
        g0, g1, g2, g3, g4, g5 = zero, zero, zero, zero, zero, zero
        m0, m1, m2, m3, m4, m5, m6 = zero, zero, zero, zero, zero, zero, zero
        for k in range(n):
            u = o + np.uint64(k)
            v, ref = gain * value[k], reference[u]
            e = v - ref
            share = fade[k] * weight[u]
            residual[u] = e * share
            square = (e * tight) * (e * tight)
            h = max(one - square, zero)
            e *= fade[k] * h * h
            g0 += e * s0[u]
            g1 += e * s1[u]
            g2 += e * s2[u]
            g3 += e * s3[u]
            g4 += e * s4[u]
            g5 += e * s5[u]
            w = share * h * h
            wr, wv = w * ref, w * v
            m0 += share * h * (one - five * square)
            m1 += w
            m2 += wr
            m3 += wv
            m4 += wr * ref
            m5 += wr * v
            m6 += wv * v
        sums[chunk, 0] += g0
        sums[chunk, 1] += g1
        sums[chunk, 2] += g2
        sums[chunk, 3] += g3
        sums[chunk, 4] += g4
        sums[chunk, 5] += g5
        sums[chunk, 6] += m0
        sums[chunk, 7] += m1
        sums[chunk, 8] += m2
        sums[chunk, 9] += m3
        sums[chunk, 10] += m4
        sums[chunk, 11] += m5
        sums[chunk, 12] += m6


@kernel
def advance(sums, total, centre, radius, inverse, last, matrix):  # type: ignore[no-untyped-def]
    """Make one quasi-Newton step: solve for the remaining motion and put its inverse before `matrix`.

    Where the gain is far off, it alone is put right. The average slope of the biweight stands for the Hessian's loss where residuals
    are cut; what else is wrong with the Hessian (noise of the reference in it, cut residuals where it matters) is learned from step to
    step: C. G. Broyden (1965), Math. Comput. 19:577-593, doi:10.1090/S0025-5718-1965-0198670-6.

    Parameters
    ----------
    sums : ndarray, float64 (chunks, SUMS)
        Of :func:`accumulate`.
    total : float
        Sum of all weights.
    centre : ndarray, float64 (3,)
        World point about which rotations turn, mm.
    radius : float
        Distance at which a rotation's size is measured, mm.
    inverse : ndarray, float64 (6, 6)
        Of the Hessian with all weights, at first; changed in place.
    last : ndarray, float64 (2, 6)
        The last small step and the right-hand side that it answered; zeros at first; changed in place.
    matrix : ndarray, float64 (4, 4)
        Reference world to volume world; changed in place.

    Returns
    -------
    moved : float
        Size of the step, mm; infinite where there is none.
    change : float
        Factor on the gain.
    """
    s = np.zeros(SUMS)
    for chunk in range(sums.shape[0]):
        for k in range(SUMS):
            s[k] += sums[chunk, k]
    slope, rr, rv = s[6], s[10], s[11]
    if not (slope > 1e-3 * total and rr > 0.0 and rv > 0.0):
        return np.inf, 1.0
    change = rr / rv
    if not 0.5 < change < 2.0:
        return 1e9, change
    right = s[:6] * (change * total / slope)
    _learn(right, inverse, last)
    last[:] = 0.0
    delta = np.zeros(6)
    for k in range(6):
        for m in range(6):
            delta[k] += inverse[k, m] * right[m]
    moved = abs(delta[0]) + abs(delta[1]) + abs(delta[2]) + radius * (abs(delta[3]) + abs(delta[4]) + abs(delta[5]))
    if not moved < 1e9:
        return np.inf, 1.0
    if moved < LEARNING_MM:
        last[0], last[1] = delta, right
    turn = rotation(delta[3], delta[4], delta[5])
    old = matrix.copy()
    for i in range(3):
        for j in range(3):
            matrix[i, j] = old[i, 0] * turn[j, 0] + old[i, 1] * turn[j, 1] + old[i, 2] * turn[j, 2]
    for i in range(3):
        for j in range(3):
            matrix[i, 3] += old[i, j] * centre[j] - matrix[i, j] * (centre[j] + delta[j])
    return moved, change


@helper
def _learn(right, inverse, last):  # type: ignore[no-untyped-def]
    """Broyden's rank-one correction: after the last step the right-hand side should have fallen as it did."""
    step, fallen = last[0], last[1] - right
    answer, back = np.zeros(6), np.zeros(6)  # inverse @ fallen, step @ inverse
    for k in range(6):
        for m in range(6):
            answer[k] += inverse[k, m] * fallen[m]
            back[k] += step[m] * inverse[m, k]
    size, along = 0.0, 0.0
    for k in range(6):
        size += step[k] * step[k]
        along += step[k] * answer[k]
    if along > 0.1 * size > 0.0:
        for k in range(6):
            for m in range(6):
                inverse[k, m] += (step[k] - answer[k]) * back[m] / along
