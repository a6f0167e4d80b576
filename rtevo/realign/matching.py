"""The descent: Gauss-Newton steps of one volume towards a prepared reference."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels import align, interpolate
from rtevo.kernels.align import advance
from rtevo.kernels.gains import Gains, expand, refine
from rtevo.kernels.template import Level
from rtevo.realign.team import Team
from rtevo.records import HEAD_RADIUS_MM, Grid

__all__ = ["CHUNKS", "Match", "Matcher"]

Array = NDArray[np.float64]
Packed = NDArray[np.float32]

CHUNKS = 16  # fixed shares of the rows: sums do not depend on the number of threads
WORTH_SHARING = 20_000  # voxels; below, waking another thread takes longer than it saves
SIGMA_PER_MEDIAN = 1.4826  # of the absolute values of a Gaussian
LEARNING_STEPS = 4
ANNEAL = 4.0  # gains are learned first from residuals up to this many times what counts in the end, then half of it, ...
LEAST_SPREAD = 0.005  # of the mean signal: what is smaller is not noise but what the approach left, and nothing is cut for it
TUKEY = 5.0  # standard deviations: 96 % efficient where noise is Gaussian


@dataclass(frozen=True, eq=False)
class Match:
    """Where a descent ended.

    Parameters
    ----------
    matrix : ndarray, float64 (4, 4)
        Reference world to volume world.
    gain : float
        What brings the volume's intensities to the reference's.
    spread : float
        Robust standard deviation of what is left, in units of the reference.
    correlation : float
        Of reference and volume over the voxels that counted.
    overlap : float
        Share of the reference that lay in the volume's field of view and was not cut as an outlier.
    iterations : int
    converged : bool
        The last step was small enough.
    field : ndarray, float32 (kx, ky, kz)
        Coefficients of the changes of gain, where they were learned.
    """

    matrix: Array
    gain: float
    spread: float
    correlation: float
    overlap: float
    iterations: int
    converged: bool
    field: Packed = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))


def _limit(spread: float) -> float:
    """Residual from which on a voxel counts as an outlier."""
    return TUKEY * max(spread, LEAST_SPREAD)


class Matcher:
    """Brings volumes on one grid to levels of one reference.

    Parameters
    ----------
    grid : Grid
    centre : ndarray, float64 (3,)
        World point about which rotations turn, mm.
    team : Team
    size : int
        Length of the longest level's packed arrays.
    """

    def __init__(self, grid: Grid, centre: Array, team: Team, size: int) -> None:
        self.grid, self.centre, self.team = grid, centre, team
        self._world = np.linalg.inv(grid.affine)
        self._lines = np.zeros((team.threads, 2, grid.shape[2] + 2 * interpolate.BLOCK), np.float32)
        self._residual = np.zeros(size, np.float32)
        self._expected = np.zeros(size, np.float32)
        self._sums = np.zeros((CHUNKS, align.SUMS))

    def match(self, volume: Packed, level: Level, start: Match, *, tolerance_mm: float, most: int) -> Match:
        """Iterate until a step is smaller than `tolerance_mm`, at most `most` times; all residuals count alike.

        Parameters
        ----------
        volume : ndarray, float32, one-dimensional
            Samples as :func:`rtevo.kernels.interpolate.padded` lays them out, with mirrored padding.
        start : Match
            Its matrix and gain are taken.
        """
        descent = _Descent(self, volume, level, start)
        while descent.moved > tolerance_mm and descent.count < most and descent.step(level.reference, np.inf):
            pass
        return self._ended(descent, tolerance_mm)

    def learn(self, volume: Packed, level: Level, gains: Gains, start: Match, *, tolerance_mm: float) -> Match:
        """Find the smooth changes of gain together with the motion, outliers left aside; at least `LEARNING_STEPS` steps."""
        knots = (gains.knots[0], gains.knots[1], np.ascontiguousarray(gains.knots[2].T))
        field = np.zeros(gains.shape, np.float32)
        expected, residual = self._expected[: len(level.weight)], self._residual[: len(level.weight)]
        expected[:] = level.reference
        descent, limit = _Descent(self, volume, level, start), ANNEAL * _limit(start.spread)
        while descent.count < LEARNING_STEPS or (descent.moved > tolerance_mm and descent.count < 2 * LEARNING_STEPS):
            if not descent.step(expected, limit):
                break
            descent.forget()  # the next step answers other gains and another limit
            refine(level.rows, *knots, gains.held, gains.inverse, residual, limit, level.reference, field)
            expand(level.rows, *knots, field, level.reference, expected)
            limit = _limit(self._spread(level)) * max(ANNEAL * 0.5**descent.count, 1.0)
        return replace(self._ended(descent, tolerance_mm), field=field)

    def finish(self, volume: Packed, level: Level, gains: Gains, start: Match, *, tolerance_mm: float, most: int) -> Match:
        """Iterate with the learned gains and spread until a step is smaller than `tolerance_mm`, at most `most` times."""
        knots = (gains.knots[0], gains.knots[1], np.ascontiguousarray(gains.knots[2].T))
        expected = self._expected[: len(level.weight)]
        expand(level.rows, *knots, start.field, level.reference, expected)
        descent, limit = _Descent(self, volume, level, start), _limit(start.spread)
        while descent.moved > tolerance_mm and descent.count < most and descent.step(expected, limit):
            pass
        return self._ended(descent, tolerance_mm)

    def accumulate(self, volume: Packed, level: Level, expected: Packed, matrix: Array, gain: float, limit: float) -> Array:
        """Sum residuals against an expected reference over all rows: see :func:`rtevo.kernels.align.accumulate`."""
        voxels = self._world @ matrix @ self.grid.affine
        residual = self._residual[: len(level.weight)]

        def work(worker: int, first: int, last: int) -> None:
            align.accumulate(
                volume, self.grid.shape, level.quintic, voxels, gain, limit, level.rows, level.shares, first, last,
                expected, level.steepest, level.weight, residual, self._lines[worker], self._sums,
            )  # fmt: skip

        if len(level.weight) < WORTH_SHARING:
            work(0, 0, CHUNKS)
        else:
            self.team.run(work, CHUNKS)
        return self._sums

    def _spread(self, level: Level) -> float:
        """Standard deviation of the residuals, from the median size of some of them."""
        sizes = np.abs(self._residual[level.sample])
        middle = len(sizes) // 2
        return max(float(np.partition(sizes, middle)[middle]) * SIGMA_PER_MEDIAN, 1e-6)

    def _ended(self, descent: _Descent, tolerance_mm: float) -> Match:
        w, r, v, rr, rv, vv = (float(n) for n in self._sums.sum(axis=0)[7:])
        spread = (rr - r * r / w) * (vv - v * v / w) if w > 0 else 0.0
        correlation = (rv - r * v / w) / spread**0.5 if spread > 0 else 0.0
        level, converged = descent.level, descent.moved <= tolerance_mm
        return Match(descent.matrix, descent.gain, self._spread(level), correlation, w / level.total, descent.count, converged)


class _Descent:
    """Steps on one level: where they are, how many were taken, how large the last one was (mm)."""

    def __init__(self, matcher: Matcher, volume: Packed, level: Level, start: Match) -> None:
        self.matcher, self.volume, self.level = matcher, volume, level
        self.matrix, self.gain = start.matrix.copy(), start.gain
        self.count, self.moved = 0, np.inf
        self._inverse, self._last = level.inverse.copy(), np.zeros((2, 6))

    def forget(self) -> None:
        """Learn nothing about the Hessian from the last step."""
        self._last[:] = 0.0

    def step(self, expected: Packed, limit: float) -> bool:
        """Make one step; False if none is possible."""
        self.count += 1
        sums = self.matcher.accumulate(self.volume, self.level, expected, self.matrix, self.gain, limit)
        arguments = (self.level.total, self.matcher.centre, HEAD_RADIUS_MM, self._inverse, self._last, self.matrix)
        self.moved, change = advance(sums, *arguments)
        self.gain *= change
        return bool(self.moved < np.inf)
