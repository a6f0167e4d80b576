"""Cubic B-spline sampling of volumes along the rows of a rigidly moved grid.

The sampled volume is kept as float32 coefficients in a C-ordered array with `PAD` extra voxels at every side (mirrored about the
edge voxels' centres) and a tail, so that a row may be read past its end. Neighbouring output voxels of a row sample neighbouring
input voxels, so a row splits into runs that share one integer offset: within a run the 64 taps are contiguous loads and vectorise
over the row, without gathers.

Sources: M. Unser, A. Aldroubi, M. Eden (1993), B-spline signal processing, IEEE Trans. Signal Process. 41:821-848,
doi:10.1109/78.193220 (prefilter); P. Thevenaz, T. Blu, M. Unser (2000), Interpolation revisited, IEEE Trans. Med. Imaging
19:739-758, doi:10.1109/42.875199.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels._compile import helper, kernel

__all__ = ["BLOCK", "PAD", "as_line", "mirror_padding", "padded", "prefilter_x", "prefilter_yz", "reslice_rows", "sample_row"]

PAD = 3  # voxels that a quintic B-spline reaches beyond a sample within one voxel of the volume
BLOCK = 8  # voxels of a row computed together; rows and runs are rounded up to it
POLE = math.sqrt(3.0) - 2.0
TAPS = 12  # POLE ** 12 = 1.4e-7: below float32 resolution

U1, U2, U3, U4, U5 = (np.uint64(n) for n in range(1, 6))  # unsigned: no test for negative indices in the inner loops
ONE, HALF, SIXTH, TWO_THIRDS = np.float32(1), np.float32(0.5), np.float32(1 / 6), np.float32(2 / 3)


def padded(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return a zeroed array for the coefficients of a volume of this `shape`: (X + 2 PAD, Y + 2 PAD, Z + 2 PAD), with a tail."""
    full = tuple(n + 2 * PAD for n in shape)
    size = math.prod(full)
    flat = np.zeros(size + 4 * BLOCK, np.float32)
    return flat[:size].reshape(full)


def as_line(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a :func:`padded` volume as the one-dimensional array that the sampling kernels read, tail included; no copy."""
    line = volume.base
    assert line is not None
    assert line.ndim == 1
    return line


def _reflected(k: int, n: int) -> int:
    return int(_mirror.py_func(k, n))


def mirror_padding(volume: NDArray[np.float32]) -> None:
    """Fill the padding of a :func:`padded` volume with what lies mirrored inside."""
    for axis in range(3):
        lines = np.moveaxis(volume, axis, 0)
        n = len(lines) - 2 * PAD
        for m in range(1, PAD + 1):
            lines[PAD - m] = lines[PAD + _reflected(m, n)]
            lines[PAD + n - 1 + m] = lines[PAD + _reflected(n - 1 + m, n)]


@helper
def _weights(t):  # type: ignore[no-untyped-def]
    """Cubic B-spline weights of the 4 voxels around fraction t."""
    u = ONE - t
    w0 = u * u * u * SIXTH
    w3 = t * t * t * SIXTH
    w1 = TWO_THIRDS - t * t * (ONE - HALF * t)
    return w0, w1, ONE - w0 - w1 - w3, w3


@helper
def _line(c, p, w0, w1, w2, w3):  # type: ignore[no-untyped-def]
    return c[p] * w0 + c[p + U1] * w1 + c[p + U2] * w2 + c[p + U3] * w3


@helper
def _plane(c, p, sy, b0, b1, b2, b3, w0, w1, w2, w3):  # type: ignore[no-untyped-def]
    s = _line(c, p, w0, w1, w2, w3) * b0
    s += _line(c, p + sy, w0, w1, w2, w3) * b1
    s += _line(c, p + U2 * sy, w0, w1, w2, w3) * b2
    return s + _line(c, p + U3 * sy, w0, w1, w2, w3) * b3


@helper
def _cubic_run(c, p, sx, sy, x, y, z, dx, dy, dz, out, o, n):  # type: ignore[no-untyped-def]
    """Sample n voxels that share their integer offset; n is a multiple of BLOCK, p the first of the 4 x 4 x 4 coefficients.

    Two passes of 8 lines each: LLVM does not vectorise where more than 8 pointers might overlap the output.
    """
    for k in range(n):
        t = np.float32(k)
        a0, a1, _, _ = _weights(x + t * dx)
        b0, b1, b2, b3 = _weights(y + t * dy)
        w0, w1, w2, w3 = _weights(z + t * dz)
        q = p + np.uint64(k)
        s = _plane(c, q, sy, b0, b1, b2, b3, w0, w1, w2, w3) * a0
        out[o + np.uint64(k)] = s + _plane(c, q + sx, sy, b0, b1, b2, b3, w0, w1, w2, w3) * a1
    for k in range(n):
        t = np.float32(k)
        _, _, a2, a3 = _weights(x + t * dx)
        b0, b1, b2, b3 = _weights(y + t * dy)
        w0, w1, w2, w3 = _weights(z + t * dz)
        q = p + U2 * sx + np.uint64(k)
        s = _plane(c, q, sy, b0, b1, b2, b3, w0, w1, w2, w3) * a2
        out[o + np.uint64(k)] += s + _plane(c, q + sx, sy, b0, b1, b2, b3, w0, w1, w2, w3) * a3


@helper
def _weights5(t):  # type: ignore[no-untyped-def]
    """Quintic B-spline weights of the 6 voxels around fraction t."""
    u = ONE - t
    tt, uu = t * t, u * u
    w0 = uu * uu * u * np.float32(1 / 120)
    w5 = tt * tt * t * np.float32(1 / 120)
    w2 = np.float32(11 / 20) + tt * (np.float32(-1 / 2) + tt * (np.float32(1 / 4) - t * np.float32(1 / 12)))
    w3 = np.float32(11 / 20) + uu * (np.float32(-1 / 2) + uu * (np.float32(1 / 4) - u * np.float32(1 / 12)))
    v = t + ONE
    vv = v * v
    w1 = np.float32(17 / 40) + v * (np.float32(5 / 8) + v * (np.float32(-7 / 4) + v * np.float32(5 / 4)))
    w1 += vv * vv * (np.float32(-3 / 8) + v * np.float32(1 / 24))
    return w0, w1, w2, w3, ONE - w0 - w1 - w2 - w3 - w5, w5


@helper
def _line5(c, p, w0, w1, w2, w3, w4, w5):  # type: ignore[no-untyped-def]
    return c[p] * w0 + c[p + U1] * w1 + c[p + U2] * w2 + c[p + U3] * w3 + c[p + U4] * w4 + c[p + U5] * w5


@helper
def _quintic_run(c, p, sx, sy, x, y, z, dx, dy, dz, out, o, n):  # type: ignore[no-untyped-def]
    """As :func:`_cubic_run` with 6 x 6 x 6 coefficients from p, one plane of 6 lines a pass."""
    for k in range(n):
        out[o + np.uint64(k)] = 0.0
    for plane in range(6):
        for k in range(n):
            t = np.float32(k)
            a0, a1, a2, a3, a4, a5 = _weights5(x + t * dx)
            a = a0 if plane == 0 else a1 if plane == 1 else a2 if plane == 2 else a3 if plane == 3 else a4 if plane == 4 else a5
            b0, b1, b2, b3, b4, b5 = _weights5(y + t * dy)
            w0, w1, w2, w3, w4, w5 = _weights5(z + t * dz)
            q = p + np.uint64(plane) * sx + np.uint64(k)
            s = _line5(c, q, w0, w1, w2, w3, w4, w5) * b0
            s += _line5(c, q + sy, w0, w1, w2, w3, w4, w5) * b1
            s += _line5(c, q + U2 * sy, w0, w1, w2, w3, w4, w5) * b2
            s += _line5(c, q + U3 * sy, w0, w1, w2, w3, w4, w5) * b3
            s += _line5(c, q + U4 * sy, w0, w1, w2, w3, w4, w5) * b4
            s += _line5(c, q + U5 * sy, w0, w1, w2, w3, w4, w5) * b5
            out[o + np.uint64(k)] += s * a


@helper
def _steps(fraction, step, n):  # type: ignore[no-untyped-def]
    """Voxels from here that keep the integer part of a coordinate, at most n, at least 1."""
    if step > 1e-9:
        k = int((1.0 - fraction) / step) + 1
    elif step < -1e-9:
        k = int(-fraction / step) + 1
    else:
        return n
    return min(k, n)


@helper
def sample_row(flat, shape, quintic, x, y, z, dx, dy, dz, n, out):  # type: ignore[no-untyped-def]
    """Sample n points (x, y, z) + k (dx, dy, dz), in voxels; 0 further than one voxel outside the volume.

    Parameters
    ----------
    flat : ndarray, float32 (m,)
        Coefficients of :func:`padded` as one line, tail included.
    shape : tuple of int, (3,)
        Voxels of the volume, without padding.
    quintic : bool
        Quintic B-splines instead of cubic ones.
    out : ndarray, float32 (n + BLOCK or more,)
        The samples; what lies behind the first n is scratch.
    """
    nx, ny, nz = shape
    sy = nz + 2 * PAD
    sx = sy * (ny + 2 * PAD)
    drift = dz - 1.0
    k = 0
    while k < n:
        px, py, pz = x + k * dx, y + k * dy, z + k * dz
        ix, iy, iz = math.floor(px), math.floor(py), math.floor(pz)
        fx, fy, fz = px - ix, py - iy, pz - iz
        run = _steps(fx, dx, _steps(fy, dy, _steps(fz, drift, n - k)))
        skip = 0
        if ix < -1 or iy < -1 or ix >= nx or iy >= ny or iz >= nz:
            skip = run
        elif iz < -1:
            skip = min(run, -1 - iz)
        if skip > 0:
            for m in range(k, k + skip):
                out[m] = 0.0
            k += skip
            continue
        run = min(run, nz - iz)
        fx, fy, fz = np.float32(fx), np.float32(fy), np.float32(fz)
        sdx, sdy, sdz = np.float32(dx), np.float32(dy), np.float32(drift)
        room, ux, uy = (run + BLOCK - 1) // BLOCK * BLOCK, np.uint64(sx), np.uint64(sy)
        first = (ix + PAD - 1) * sx + (iy + PAD - 1) * sy + iz + PAD - 1
        if quintic:
            _quintic_run(flat, np.uint64(first - sx - sy - 1), ux, uy, fx, fy, fz, sdx, sdy, sdz, out, np.uint64(k), room)
        else:
            _cubic_run(flat, np.uint64(first), ux, uy, fx, fy, fz, sdx, sdy, sdz, out, np.uint64(k), room)
        k += run


@kernel
def reslice_rows(flat, shape, quintic, matrix, rows, first, last, line, out):  # type: ignore[no-untyped-def]
    """Sample rows [first, last) of a grid moved by `matrix`.

    Parameters
    ----------
    flat, shape, quintic
        As for :func:`sample_row`.
    matrix : ndarray, float64 (4, 4)
        Voxel of the output to voxel of the sampled volume.
    rows : ndarray, int64 (n, 5)
        x, y, first z and length of each row: see :func:`rtevo.kernels.align.pack_rows`.
    line : ndarray, float32 (Z + 2 BLOCK,)
        Scratch.
    out : ndarray, float32 (X, Y, Z), C-ordered
        The samples; voxels of no row stay as they are.
    """
    dx, dy, dz = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    for r in range(first, last):
        i, j, k, n = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3]
        x = matrix[0, 0] * i + matrix[0, 1] * j + dx * k + matrix[0, 3]
        y = matrix[1, 0] * i + matrix[1, 1] * j + dy * k + matrix[1, 3]
        z = matrix[2, 0] * i + matrix[2, 1] * j + dz * k + matrix[2, 3]
        sample_row(flat, shape, quintic, x, y, z, dx, dy, dz, n, line)
        into = out[i, j, k : k + n]
        for m in range(n):
            into[m] = line[m]


@helper
def _mirror(k, n):  # type: ignore[no-untyped-def]
    """Index of voxel k of a line of n, mirrored about the centres of its edge voxels."""
    if n == 1:
        return 0
    period = 2 * n - 2
    k = k % period
    return period - k if k >= n else k


@kernel
def prefilter_yz(volume, first, last, line):  # type: ignore[no-untyped-def]
    """Turn samples into B-spline coefficients along Z and Y, in planes [first, last) of X; also mirrors the padding of Z and Y.

    Parameters
    ----------
    volume : ndarray, float32 (X + 2 PAD, Y + 2 PAD, Z + 2 PAD)
        Changed in place; :func:`padded`.
    first, last : int
        Planes, counted without padding.
    line : ndarray, float32 (Z + 2 TAPS,)
        Scratch.
    """
    ny, nz = volume.shape[1] - 2 * PAD, volume.shape[2] - 2 * PAD
    for i in range(first + PAD, last + PAD):
        plane = volume[i]
        for j in range(PAD, ny + PAD):
            row = plane[j]
            if nz > 1:
                _filter_row(row, nz, line)
            for m in range(1, PAD + 1):
                row[PAD - m] = row[PAD + _mirror(-m, nz)]
                row[PAD + nz - 1 + m] = row[PAD + _mirror(nz - 1 + m, nz)]
        if ny > 1:
            _filter_lines(plane, ny)
        _mirror_lines(plane, ny)


@helper
def _filter_row(row, n, line):  # type: ignore[no-untyped-def]
    """Direct B-spline filter of one contiguous row as a truncated symmetric convolution, which vectorises where a recursion cannot."""
    for m in range(n):
        line[TAPS + m] = row[PAD + m]
    for m in range(1, TAPS + 1):
        line[TAPS - m] = line[TAPS + _mirror(-m, n)]
        line[TAPS + n - 1 + m] = line[TAPS + _mirror(n - 1 + m, n)]
    gain = np.float32(-6.0 * POLE / (1.0 - POLE * POLE))
    pole = np.float32(POLE)
    for k in range(n):
        u = np.uint64(k + TAPS)
        total = line[u]
        power = ONE
        for m in range(1, TAPS):
            power *= pole
            total += power * (line[u - np.uint64(m)] + line[u + np.uint64(m)])
        row[np.uint64(k + PAD)] = gain * total


@helper
def _filter_lines(plane, n):  # type: ignore[no-untyped-def]
    """Direct B-spline filter along the first axis of a padded array whose second axis is contiguous: recursive, vectorised across."""
    pole = np.float32(POLE)
    width = plane.shape[1]
    start = plane[PAD]
    own, period = np.float32(6.0), 2 * n - 2
    for k in range(period, TAPS, period):
        own += np.float32(6.0 * POLE**k)
    for m in range(width):
        start[m] *= own
    for k in range(1, TAPS):  # the causal filter's state at the mirrored edge
        if k % period:
            power, other = np.float32(6.0 * POLE**k), plane[PAD + _mirror(k, n)]
            for m in range(width):
                start[m] += power * other[m]
    for k in range(PAD + 1, PAD + n):
        here, before = plane[k], plane[k - 1]
        for m in range(width):
            here[m] = np.float32(6.0) * here[m] + pole * before[m]
    here, before = plane[PAD + n - 1], plane[PAD + n - 2]
    edge = np.float32(POLE / (POLE * POLE - 1.0))
    for m in range(width):
        here[m] = edge * (here[m] + pole * before[m])
    for k in range(PAD + n - 2, PAD - 1, -1):
        here, after = plane[k], plane[k + 1]
        for m in range(width):
            here[m] = pole * (after[m] - here[m])


@helper
def _mirror_lines(plane, n):  # type: ignore[no-untyped-def]
    for m in range(1, PAD + 1):
        for k in range(plane.shape[1]):
            plane[PAD - m, k] = plane[PAD + _mirror(-m, n), k]
            plane[PAD + n - 1 + m, k] = plane[PAD + _mirror(n - 1 + m, n), k]


@kernel
def prefilter_x(volume, first, last):  # type: ignore[no-untyped-def]
    """Turn samples into B-spline coefficients along X, in lines [first, last) of Y with padding; also mirrors the padding of X."""
    n = volume.shape[0] - 2 * PAD
    for j in range(first, last):
        plane = volume[:, j, :]
        if n > 1:
            _filter_lines(plane, n)
        _mirror_lines(plane, n)
