"""Consistency of a run's volumes, with reports of deviations: grid, direction of phase encoding, slice times."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import GeometryError
from rtevo.ingest.dicom import DicomFile
from rtevo.ingest.layout import Layout
from rtevo.records import Grid

__all__ = ["MAX_MOVED_MM", "Alike"]

MOVED_MM = 0.1  # a volume whose slices lie further from the first volume's than this has moved
MAX_MOVED_MM = 20.0  # prospective motion correction moves the slices by less


class Alike:
    """The properties with which a run's volumes are compared.

    Parameters
    ----------
    problems : list of str
        Receives the deviations, each once.

    Attributes
    ----------
    grid : Grid or None
        Shape and RAS+ affine of the run's volumes; None before the first.
    positions : ndarray, float64 (n, 3), or None
        Its slices' positions, LPS+ mm.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self.grid: Grid | None = None
        self.positions: NDArray[np.float64] | None = None
        self._moved = False  # named
        self._beyond_s = 0.0  # latest slice time that no repetition holds
        self._beyond_named = False
        self._polarity = ""  # direction of phase encoding of the first volume that says it
        self._polarity_named = False

    def check_geometry(self, index: int, layout: Layout) -> Grid:
        """Compare a volume's grid with the first one's, and return the first.

        Raises
        ------
        GeometryError
            The grids differ by more than heads move.
        """
        grid, positions = layout.grid, layout.positions
        if self.grid is None or self.positions is None:
            self.grid, self.positions = grid, positions
            return grid
        if positions.shape == self.positions.shape and np.abs(positions - self.positions).max() < MOVED_MM / 10:
            return self.grid
        difference = self.grid.difference(grid, MAX_MOVED_MM)
        if difference:
            raise GeometryError(f"its geometry differs from the run's: {difference}")
        difference = self.grid.difference(grid, MOVED_MM)
        if difference and not self._moved:
            self._moved = True
            self.problems.append(f"volume {index}: {difference}; placed like the first volume (prospective motion correction?)")
        return self.grid

    def check_polarity(self, index: int, files: Iterable[DicomFile]) -> None:
        """Report volumes with another phase-encoding direction: they are distorted in another direction, too."""
        found = {str(file.series.encoding.get("PhaseEncodingDirection", "")) for file in files} - {""}
        self._polarity = self._polarity or min(found, default="")
        if found - {self._polarity} and not self._polarity_named:
            self._polarity_named = True
            self.problems.append(
                f"volume {index}: phase is encoded along {'/'.join(sorted(found))}, before it along {self._polarity}: the run has two "
                "polarities with opposite distortions; leave out the volumes of one of them"
            )

    def within(self, slice_times_s: NDArray[np.float64] | None, tr_s: float | None) -> NDArray[np.float64] | None:
        """Slice times where a repetition holds them; else none, which is named once it is clear what the repetition time is."""
        if slice_times_s is None or tr_s is None or slice_times_s.max() < tr_s:
            if slice_times_s is not None:
                self._beyond_s = 0.0
            return slice_times_s
        self._beyond_s = float(slice_times_s.max())
        return None

    def settle(self, tr_s: float | None) -> None:
        """Report the deviations held back until the repetition time was known."""
        if self._beyond_s and not self._beyond_named:
            self._beyond_named = True
            self.problems.append(
                f"by the headers, slices were acquired up to {self._beyond_s:g} s after the first of their volume, beyond the repetition "
                f"time of {tr_s:g} s: the slice times are not used"
            )
