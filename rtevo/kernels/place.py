"""Sums and samples that a placement needs: local normalisation, normal equations, linear samples of a moved grid.

Two volumes of one head that differ in contrast, coil and gain agree, up to sign and strength, in what each voxel is relative to its
surroundings: with the mean and the deviation of a Gaussian neighbourhood removed, their squared difference is the local
cross-correlation of B. B. Avants et al. (2008), Med. Image Anal. 12:26-41, doi:10.1016/j.media.2007.06.004. Neighbourhoods count
only what lies in both fields of view (normalised convolution: H. Knutsson, C.-F. Westin, 1993, doi:10.1109/CVPR.1993.341081).
"""

from __future__ import annotations

import math

import numpy as np

from rtevo.kernels._compile import helper, kernel

__all__ = ["TERMS", "normal_equations", "normalise", "products", "sample_linear"]

TERMS = 34  # 6 of the right-hand side, 21 of the matrix, then w, w u u, w v v, w u v, voxels, and w e e cut
LEAST_SHARE = 0.1  # of a neighbourhood: less says nothing of mean and deviation


@kernel
def sample_linear(volume, known, matrix, out, out_known):  # type: ignore[no-untyped-def]
    """Sample a volume at a moved grid by linear interpolation of its known voxels.

    Parameters
    ----------
    volume, known : ndarray, float32 (x, y, z)
        `known` is 0 .. 1; the volume is 0 where it is 0.
    matrix : ndarray, float64 (4, 4)
        Voxel of the output to voxel of the volume.
    out, out_known : ndarray, float32 (X, Y, Z)
        Results: samples, and how much of what they rest on is known.
    """
    nx, ny, nz = volume.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            x0 = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
            y0 = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
            z0 = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
            for k in range(out.shape[2]):
                x, y, z = x0 + matrix[0, 2] * k, y0 + matrix[1, 2] * k, z0 + matrix[2, 2] * k
                value, share = np.float32(0), np.float32(0)
                if x > -1 and y > -1 and z > -1 and x < nx and y < ny and z < nz:
                    ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
                    fx, fy, fz = np.float32(x - ix), np.float32(y - iy), np.float32(z - iz)
                    for a in range(2):
                        ax = ix + a
                        if ax < 0 or ax >= nx:
                            continue
                        wx = fx if a else np.float32(1) - fx
                        for b in range(2):
                            by = iy + b
                            if by < 0 or by >= ny:
                                continue
                            wy = wx * (fy if b else np.float32(1) - fy)
                            for c in range(2):
                                cz = iz + c
                                if cz < 0 or cz >= nz:
                                    continue
                                w = wy * (fz if c else np.float32(1) - fz)
                                value += w * volume[ax, by, cz]
                                share += w * known[ax, by, cz]
                out[i, j, k] = value / share if share > np.float32(1e-3) else np.float32(0)
                out_known[i, j, k] = share


@kernel
def products(volume, known, first, second):  # type: ignore[no-untyped-def]
    """Multiply a volume by what is known, once and twice: first = w I, second = w I I."""
    a, w, p, q = volume.reshape(-1), known.reshape(-1), first.reshape(-1), second.reshape(-1)
    for k in range(len(a)):
        p[k] = w[k] * a[k]
        q[k] = w[k] * a[k] * a[k]


@kernel
def normalise(volume, share, first, second, floor, slope, out):  # type: ignore[no-untyped-def]
    """Remove the mean of each voxel's neighbourhood and divide by its deviation.

    Parameters
    ----------
    volume, share, first, second : ndarray, float32 (X, Y, Z)
        The volume; what is known, and both of :func:`products`, smoothed.
    floor, slope : float
        Deviation that counts as noise: `floor` alone, and as a share of the local mean.
    out : ndarray, float32 (X, Y, Z)
    """
    a, w, p, q, o = volume.reshape(-1), share.reshape(-1), first.reshape(-1), second.reshape(-1), out.reshape(-1)
    least, bend = np.float32(floor * floor), np.float32(slope * slope)
    for k in range(len(a)):
        o[k] = 0.0
        if w[k] > np.float32(LEAST_SHARE):
            mean = p[k] / w[k]
            spread = max(q[k] / w[k] - mean * mean, np.float32(0))
            o[k] = (a[k] - mean) / math.sqrt(spread + least + bend * mean * mean)


@helper
def _add(sums, e, w, g0, g1, g2, g3, g4, g5):  # type: ignore[no-untyped-def]
    """Add one voxel to the right-hand side and the upper triangle of the matrix."""
    g = (g0, g1, g2, g3, g4, g5)
    n = 6
    for a in range(6):
        wg = w * g[a]
        sums[a] += wg * e
        for b in range(a, 6):
            sums[n] += wg * g[b]
            n += 1


@kernel
def normal_equations(u, v, weight, block, spacing, origin, limit, sums):  # type: ignore[no-untyped-def]
    """Sum one Gauss-Newton step of v towards u, by blocks; gradients are the mean of both images'
    (S. Benhimane, E. Malis, 2004, doi:10.1109/IROS.2004.1389474).

    Parameters
    ----------
    u, v, weight : ndarray, float32 (X, Y, Z)
    block : int
        Edge of a block, in voxels.
    spacing : float
        Edge of a voxel, mm; axes are the world's.
    origin : ndarray, float64 (3,)
        Voxel (0, 0, 0) from the point about which rotations turn, mm.
    limit : float
        Residuals of this size and above count for nothing, smaller ones by Tukey's biweight.
    sums : ndarray, float64 (bx, by, bz, TERMS)
        The result.
    """
    nx, ny, nz = u.shape
    tight, half = np.float32(1 / limit), np.float32(0.25 / spacing)
    sums[...] = 0.0
    one, zero = np.float32(1), np.float32(0)
    for i in range(1, nx - 1):
        x = np.float32(origin[0] + spacing * i)
        for j in range(1, ny - 1):
            y = np.float32(origin[1] + spacing * j)
            for k in range(1, nz - 1):
                w = weight[i, j, k]
                if (
                    w <= zero
                    or min(
                        min(weight[i + 1, j, k], weight[i - 1, j, k]),
                        min(min(weight[i, j + 1, k], weight[i, j - 1, k]), min(weight[i, j, k + 1], weight[i, j, k - 1])),
                    )
                    <= zero
                ):
                    continue
                z = np.float32(origin[2] + spacing * k)
                p, q = u[i, j, k], v[i, j, k]
                into = sums[i // block, j // block, k // block]
                e = q - p
                h = max(one - (e * tight) * (e * tight), zero)
                h = w * h * h
                gx = half * (u[i + 1, j, k] - u[i - 1, j, k] + v[i + 1, j, k] - v[i - 1, j, k])
                gy = half * (u[i, j + 1, k] - u[i, j - 1, k] + v[i, j + 1, k] - v[i, j - 1, k])
                gz = half * (u[i, j, k + 1] - u[i, j, k - 1] + v[i, j, k + 1] - v[i, j, k - 1])
                _add(into, e, h, gx, gy, gz, y * gz - z * gy, z * gx - x * gz, x * gy - y * gx)
                into[27] += w
                into[28] += w * p * p
                into[29] += w * q * q
                into[30] += w * p * q
                into[31] += 1.0
                into[32] += h * e * e
                into[33] += h
