"""Registration steps between two levels, locally normalised inside both fields of view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels.place import TERMS, normal_equations, normalise, products, sample_linear
from rtevo.kernels.rigid import matrix_from_params
from rtevo.kernels.smooth import smooth
from rtevo.place.volumes import Level, Volume

__all__ = ["Fit", "Pair"]

Array = NDArray[np.float64]

FLOOR = 0.05  # deviation that counts as noise, of the head's mean
SLOPE = 0.03  # and of the local mean
LEAST_SPREAD = 0.02  # of locally normalised images
SIGMA_PER_MEDIAN = 1.4826
BLOCK_MM = 24.0
TRIANGLE = np.triu_indices(6)


@dataclass(frozen=True, eq=False)
class Fit:
    """One evaluation of a pair.

    Parameters
    ----------
    matrix : ndarray, float64 (4, 4)
        Reference's world to today's world.
    correlation : float
    overlap : float
        Share of the reference's detail that lies in today's field of view.
    moved_mm : float
        Size of the last step.
    hessian : ndarray, float64 (6, 6)
    blocks : ndarray, float64 (n, 6)
        Right-hand sides of the blocks.
    """

    matrix: Array
    correlation: float
    overlap: float
    moved_mm: float
    hessian: Array
    blocks: Array

    @property
    def score(self) -> float:
        """Correlation, reduced for a small overlap."""
        return float(self.correlation * max(self.overlap, 0.0) ** 0.5)


def _spread(u: Volume, v: Volume, weight: Volume) -> float:
    """Robust standard deviation of a placement's residuals."""
    left = np.abs((v - u)[weight > 0.5])
    return max(float(np.median(left)) * SIGMA_PER_MEDIAN, LEAST_SPREAD) if len(left) else LEAST_SPREAD


class Pair:
    """Two levels of equal spacing.

    Parameters
    ----------
    reference, today : Level
    centre : ndarray, float64 (3,)
        World point of the reference about which rotations turn.
    window_mm : float
        FWHM of a neighbourhood.
    """

    def __init__(self, reference: Level, today: Level, centre: Array, window_mm: float) -> None:
        self.reference, self.today, self.centre, self.window_mm = reference, today, centre, window_mm
        shape = reference.grid.shape
        self._size = (reference.spacing_mm,) * 3
        self._moved, self._known, self._u, self._v = (np.empty(shape, np.float32) for _ in range(4))
        self._block = max(round(BLOCK_MM / reference.spacing_mm), 1)
        self._sums = np.zeros((*(-(-n // self._block) for n in shape), TERMS))
        self._origin = reference.grid.affine[:3, 3] - centre
        self._whole = self._energy(self._normalised(reference.data, reference.known, np.empty(shape, np.float32)))
        self._radius = 55.0

    def _energy(self, u: Volume) -> float:
        return float((self.reference.known * self.reference.near * u * u).sum(dtype=np.float64))

    def _normalised(self, data: Volume, known: Volume, out: Volume, share: Volume | None = None) -> Volume:
        first, second = np.empty_like(data), np.empty_like(data)
        products(data, known, first, second)
        if share is None:
            share = smooth(known, self._size, self.window_mm)
        normalise(data, share, smooth(first, self._size, self.window_mm), smooth(second, self._size, self.window_mm), FLOOR, SLOPE, out)
        return out

    def look(self, matrix: Array) -> tuple[Volume, Volume, Volume]:
        """Sample today at a placement: both images locally normalised, and the weight of each voxel."""
        index = np.linalg.inv(self.today.grid.affine) @ matrix @ self.reference.grid.affine
        sample_linear(self.today.data, self.today.known, index, self._moved, self._known)
        self._known *= self.reference.known
        share = smooth(self._known, self._size, self.window_mm)
        self._normalised(self.reference.data, self._known, self._u, share)
        self._normalised(self._moved, self._known, self._v, share)
        return self._u, self._v, self._known * self.reference.near

    def evaluate(self, matrix: Array, limit: float = np.inf, moved_mm: float = np.inf) -> Fit:
        """Sum the normal equations at a placement."""
        return self._summed(matrix, self.look(matrix), limit, moved_mm)

    def _summed(self, matrix: Array, images: tuple[Volume, Volume, Volume], limit: float, moved_mm: float) -> Fit:
        normal_equations(*images, self._block, self.reference.spacing_mm, self._origin, limit, self._sums)
        by_block = self._sums.reshape(-1, TERMS)
        total = by_block.sum(axis=0)
        hessian = np.zeros((6, 6))
        hessian[TRIANGLE] = total[6:27]
        hessian = hessian + np.triu(hessian, 1).T
        norm = total[28] * total[29]
        correlation = float(total[30] / norm**0.5) if norm > 0 else 0.0
        overlap = float(total[28] / self._whole) if self._whole > 0 else 0.0
        return Fit(matrix, correlation, overlap, moved_mm, hessian, by_block[by_block[:, 31] > 0, :6])

    def descend(self, matrix: Array, steps: int, tolerance_mm: float, limit: float = np.inf) -> Fit:
        """Take steps until one is smaller than `tolerance_mm`, at most `steps`; return the evaluation at the last place."""
        fit = self.evaluate(matrix, limit)
        for _ in range(steps):
            step = self.step(fit)
            if step is None:
                break
            size = float(np.abs(step[:3]).max() + self._radius * np.abs(step[3:]).max())
            fit = self.evaluate(fit.matrix @ matrix_from_params(step, self.centre), limit, size)
            if size < tolerance_mm:
                break
        return fit

    def measure(self, matrix: Array, deviations: float) -> Fit:
        """Sum at a placement, without outliers beyond this many robust standard deviations."""
        images = self.look(matrix)
        return self._summed(matrix, images, deviations * _spread(*images), np.inf)

    def settle(self, fit: Fit, deviations: float, steps: int = 4, tolerance_mm: float = 0.02) -> Fit:
        """Take the last steps, without outliers."""
        return self.descend(fit.matrix, steps, tolerance_mm, deviations * _spread(*self.look(fit.matrix)))

    def step(self, fit: Fit) -> Array | None:
        """Return one damped step; None if the equations have no solution."""
        scale = np.sqrt(np.diag(fit.hessian))
        if not (scale > 0).all():
            return None
        damped = fit.hessian + 1e-3 * np.diag(scale**2)
        step = -np.linalg.solve(damped, fit.blocks.sum(axis=0))
        size = float(np.abs(step[:3]).max() + self._radius * np.abs(step[3:]).max())
        most = 2.0 * self.reference.spacing_mm
        return np.asarray(step * min(1.0, most / size)) if np.isfinite(size) and size > 0 else None
