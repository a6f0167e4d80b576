"""Smooth changes of gain: what they do to a reference, and which of them a residual shows.

A field of gain is a tensor product of cubic B-splines with a knot every `GAIN_SPACING_MM`: ``R(x) (1 + b(x))`` is what a volume
shows where task activation, signal dropout, the receive coil or drifts changed it smoothly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels._compile import helper, kernel

__all__ = ["Gains", "expand", "gains_removed", "make_gains", "refine"]

Array = NDArray[np.float64]
Packed = NDArray[np.float32]

GAIN_SPACING_MM = 28.0
GAIN_RIDGE = 1e-3  # of the mean diagonal: keeps gains defined where a knot sees few voxels


@dataclass(frozen=True, eq=False)
class Gains:
    """The splines, and what turns moments of a residual into coefficients.

    Parameters
    ----------
    knots : tuple of ndarray, float32 (X, kx), (Y, ky), (Z, kz)
        Value of each spline at each voxel; axes without extent count once.
    held : ndarray, int64 (k,)
        Coefficients, as positions in the flattened (kx, ky, kz), that the voxels determine.
    inverse : ndarray, float32 (k, k)
        Of the Gram matrix of the splines times the reference, with a ridge.
    """

    knots: tuple[Packed, Packed, Packed]
    held: NDArray[np.int64]
    inverse: Packed

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of splines along each axis."""
        x, y, z = (k.shape[1] for k in self.knots)
        return x, y, z


def _knots(n: int, spacing: float) -> Array:
    """Cubic B-splines with a knot every `spacing` voxels over n voxels: float64 (n, knots)."""
    count = max(math.ceil((n - 1) / spacing), 1) + 3
    offset = (np.arange(n) - (n - 1) / 2)[:, None] / spacing - (np.arange(count) - (count - 1) / 2)
    u = np.abs(offset)
    return np.where(u < 1, 2 / 3 - u**2 + u**3 / 2, np.where(u < 2, (2 - np.minimum(u, 2)) ** 3 / 6, 0))


def _contract(field: Array, bases: Sequence[Array]) -> Array:
    """Contract each axis of a volume with a matrix (axis, new axis)."""
    for basis in bases:
        field = np.asarray(np.tensordot(field, basis, axes=(0, 0)), np.float64)  # the new axis goes last: three turns restore the order
    return field


def _gram(reference: Array, weight: Array, bases: Sequence[Array]) -> tuple[NDArray[np.int64], Array]:
    """Gram matrix of the splines times the reference, with a ridge, over the coefficients that are held."""
    k = [b.shape[1] for b in bases]
    pairs = [(b[:, :, None] * b[:, None, :]).reshape(len(b), -1) for b in bases]
    gram = _contract(weight * reference**2, pairs).reshape(k[0], k[0], k[1], k[1], k[2], k[2])
    gram = gram.transpose(0, 2, 4, 1, 3, 5).reshape(math.prod(k), -1)
    held = np.flatnonzero(np.diag(gram) > 1e-6 * gram.max())  # knots far from the brain hold nothing
    gram = gram[np.ix_(held, held)]
    gram[np.diag_indices(len(gram))] += GAIN_RIDGE * np.trace(gram) / len(gram)
    return held, gram


def _bases(shape: tuple[int, ...], voxel_size_mm: Array) -> list[Array]:
    return [_knots(n, GAIN_SPACING_MM / s) for n, s in zip(shape, voxel_size_mm, strict=True)]


def gains_removed(steepest: Array, reference: Array, weight: Array, voxel_size_mm: Array) -> Array:
    """Make weighted steepest-descent images orthogonal to smooth changes of the reference's gain.

    Parameters
    ----------
    steepest : ndarray, float64 (n, X, Y, Z)
    reference, weight : ndarray, float64 (X, Y, Z)
    voxel_size_mm : ndarray, float64 (3,)

    Returns
    -------
    ndarray, float64 (n, X, Y, Z)
        Weight included.
    """
    import scipy.linalg

    bases = _bases(reference.shape, voxel_size_mm)
    held, gram = _gram(reference, weight, bases)
    moments = np.stack([_contract(weight * reference * s, bases).ravel()[held] for s in steepest])
    k = [b.shape[1] for b in bases]
    gains = np.zeros((len(steepest), math.prod(k)))
    gains[:, held] = scipy.linalg.cho_solve(scipy.linalg.cho_factor(gram), moments.T).T
    fields = np.stack([_contract(g.reshape(k), [b.T for b in bases]) for g in gains])
    return np.asarray(weight * (steepest - reference * fields))


def make_gains(reference: Array, weight: Array, voxel_size_mm: Array) -> Gains:
    """Prepare to find gains from residuals over the voxels of positive weight.

    Parameters
    ----------
    reference, weight : ndarray, float64 (X, Y, Z)
    voxel_size_mm : ndarray, float64 (3,)
    """
    bases = _bases(reference.shape, voxel_size_mm)
    held, gram = _gram(reference, weight, bases)
    x, y, z = (np.ascontiguousarray(b, np.float32) for b in bases)
    return Gains((x, y, z), held, np.ascontiguousarray(np.linalg.inv(gram), np.float32))


@helper
def _first(knots):  # type: ignore[no-untyped-def]
    """Return the first of the at most 4 splines that reach a voxel."""
    a = 0
    while a + 1 < len(knots) and knots[a] == 0.0:
        a += 1
    return a


@kernel
def expand(rows, knots_x, knots_y, knots_z, field, reference, expected):  # type: ignore[no-untyped-def]
    """Apply gains to a packed reference: expected = reference (1 + b).

    Parameters
    ----------
    rows : ndarray, int64 (n, 5)
        Of :func:`rtevo.kernels.align.pack_rows`.
    knots_x, knots_y, knots_z : ndarray, float32
        Of :class:`Gains`; those of Z transposed, (kz, Z).
    field : ndarray, float32 (kx, ky, kz)
        Coefficients of b.
    reference, expected : ndarray, float32 (size,)
    """
    along = np.empty(field.shape[2], np.float32)
    for r in range(rows.shape[0]):
        i, j, first, n = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3]
        o = np.uint64(rows[r, 4])
        along[:] = 0.0
        first_a, first_b = _first(knots_x[i]), _first(knots_y[j])
        for a in range(first_a, min(first_a + 4, field.shape[0])):
            for b in range(first_b, min(first_b + 4, field.shape[1])):
                share = knots_x[i, a] * knots_y[j, b]
                for c in range(len(along)):
                    along[c] += share * field[a, b, c]
        for k in range(n):
            expected[o + np.uint64(k)] = np.float32(1)
        for c in range(len(along)):
            knot = knots_z[c, first : first + n]
            for k in range(n):
                expected[o + np.uint64(k)] += along[c] * knot[k]
        for k in range(n):
            expected[o + np.uint64(k)] *= reference[o + np.uint64(k)]


@helper
def _project(rows, knots_x, knots_y, knots_z, residual, limit, reference, moments):  # type: ignore[no-untyped-def]
    """Moments of a cut residual with the splines times the reference: float64 (kx, ky, kz), added."""
    tight = np.float32(1.0 / limit)
    cut, along = np.empty(knots_z.shape[1], np.float32), np.empty(knots_z.shape[0], np.float32)
    for r in range(rows.shape[0]):
        i, j, first, n = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3]
        o = np.uint64(rows[r, 4])
        for k in range(n):
            e = residual[o + np.uint64(k)]
            h = max(np.float32(1) - (e * tight) * (e * tight), np.float32(0))
            cut[k] = e * h * h * reference[o + np.uint64(k)]
        for c in range(knots_z.shape[0]):
            knot = knots_z[c, first : first + n]
            total = np.float32(0)
            for k in range(n):
                total += cut[k] * knot[k]
            along[c] = total
        first_a, first_b = _first(knots_x[i]), _first(knots_y[j])
        for a in range(first_a, min(first_a + 4, moments.shape[0])):
            for b in range(first_b, min(first_b + 4, moments.shape[1])):
                share = knots_x[i, a] * knots_y[j, b]
                for c in range(len(along)):
                    moments[a, b, c] += share * along[c]


@kernel
def refine(rows, knots_x, knots_y, knots_z, held, inverse, residual, limit, reference, field):  # type: ignore[no-untyped-def]
    """Make one step of the gains towards a residual, outliers cut by the biweight of :func:`rtevo.kernels.align.accumulate`.

    Parameters
    ----------
    rows, knots_x, knots_y, knots_z, reference
        As for :func:`expand`.
    held, inverse
        Of :class:`Gains`.
    residual : ndarray, float32 (size,)
        What is left of the volume after the gains so far.
    limit : float
    field : ndarray, float32 (kx, ky, kz)
        Coefficients; changed in place.
    """
    moments = np.zeros(field.shape)
    _project(rows, knots_x, knots_y, knots_z, residual, limit, reference, moments)
    flat, into = moments.reshape(-1), field.reshape(-1)
    right = np.empty(len(held), np.float32)
    for m in range(len(held)):
        right[m] = flat[held[m]]
    for k in range(len(held)):
        line = inverse[k]
        total = np.float32(0)
        for m in range(len(held)):
            total += line[m] * right[m]
        into[held[k]] += total
