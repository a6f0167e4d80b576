"""What comes out of a run: volumes and gaps; and what becomes of a part that goes in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.records import Grid, VolumeFlag

__all__ = ["Gap", "Outcome", "Volume"]


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume of the run.

    Parameters
    ----------
    index : int
        Position in the run, from the headers, 0 = first.
    data : ndarray, float32 (X, Y, Z) or None
        Rescaled values on `grid`; None where the volume is missing, or where only headers are read.
    grid : Grid
        Shape and RAS+ affine; of the run's first volume.
    tr_s : float or None
        Repetition time in seconds, from the header.
    acquired_s : float
        Acquisition time from the first volume in seconds; NaN where the header has none.
    closed_ns : int
        ``time.monotonic_ns()`` at which the last of the volume's files was closed by its writer (see FolderSource); of a missing
        volume, 0.
    flags : VolumeFlag
        MISSING: a gap. LATE: came after its gap had been declared.
    files : tuple of str
        The files that hold it, in slice order; of a gap, those that did come.
    slice_times_s : ndarray, float64 (Z,) or None
        When each slice was acquired, from the volume's start, seconds; None where the header does not say.
    """

    index: int
    data: NDArray[np.float32] | None
    grid: Grid
    tr_s: float | None
    acquired_s: float
    closed_ns: int
    flags: VolumeFlag
    files: tuple[str, ...]
    slice_times_s: NDArray[np.float64] | None = None


class Outcome:
    """What became of a part."""

    NEW = "new"
    DUPLICATE = "duplicate"
    REFUSED = "refused"  # a problem says why


@dataclass(frozen=True)
class Gap:
    """A volume that is missing, and the files of it that did come."""

    index: int
    files: tuple[str, ...]
