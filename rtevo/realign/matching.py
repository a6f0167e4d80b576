"""The descent: Gauss-Newton steps of one volume towards a prepared reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels import align, interpolate
from rtevo.kernels.template import Level
from rtevo.realign.measures import HEAD_RADIUS_MM
from rtevo.realign.team import Team
from rtevo.records import Grid

__all__ = ["CHUNKS", "Match", "Matcher"]

Array = NDArray[np.float64]

CHUNKS = 16  # fixed shares of the rows: sums do not depend on the number of threads
SIGMA_PER_MEDIAN = 1.4826  # of the absolute values of a Gaussian
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
    """

    matrix: Array
    gain: float
    spread: float
    correlation: float
    overlap: float
    iterations: int
    converged: bool


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
        self._sums = np.zeros((CHUNKS, align.SUMS))

    def match(self, volume: NDArray[np.float32], level: Level, start: Match, *, robust: bool, tolerance_mm: float, most: int) -> Match:
        """Take steps until one is smaller than `tolerance_mm`, at most `most`.

        Parameters
        ----------
        volume : ndarray, float32, one-dimensional
            Samples as :func:`rtevo.kernels.interpolate.padded` lays them out, with mirrored padding.
        start : Match
            Its matrix, gain and, for `robust`, spread are taken.
        robust : bool
            Cut residuals beyond `TUKEY` times the spread.
        """
        matrix, gain = start.matrix.copy(), start.gain
        limit = TUKEY * start.spread if robust else np.inf
        inverse, last = level.inverse.copy(), np.zeros((2, 6))
        count, moved = 0, np.inf
        while moved > tolerance_mm and count < most:
            count += 1
            self._accumulate(volume, level, matrix, gain, limit)
            moved, change = align.advance(self._sums, level.total, self.centre, HEAD_RADIUS_MM, inverse, last, matrix)
            if moved == np.inf:
                break
            gain *= change
        return self._ended(level, matrix, gain, count, moved <= tolerance_mm)

    def _accumulate(self, volume: NDArray[np.float32], level: Level, matrix: Array, gain: float, limit: float) -> None:
        voxels = self._world @ matrix @ self.grid.affine
        residual = self._residual[: len(level.weight)]

        def work(worker: int, first: int, last: int) -> None:
            align.accumulate(
                volume, self.grid.shape, voxels, gain, limit, level.rows, level.shares, first, last,
                level.reference, level.steepest, level.weight, residual, self._lines[worker], self._sums,
            )  # fmt: skip

        self.team.run(work, CHUNKS)

    def _spread(self, level: Level) -> float:
        """Standard deviation of the residuals, from the median size of some of them."""
        sizes = np.abs(self._residual[level.sample])
        middle = len(sizes) // 2
        return max(float(np.partition(sizes, middle)[middle]) * SIGMA_PER_MEDIAN, 1e-6)

    def _ended(self, level: Level, matrix: Array, gain: float, count: int, converged: bool) -> Match:
        w, r, v, rr, rv, vv = (float(n) for n in self._sums.sum(axis=0)[7:])
        spread = (rr - r * r / w) * (vv - v * v / w) if w > 0 else 0.0
        correlation = (rv - r * v / w) / spread**0.5 if spread > 0 else 0.0
        return Match(matrix, gain, self._spread(level), correlation, w / level.total, count, converged)
