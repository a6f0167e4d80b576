"""Motion and quality of the volumes of a run without a decoder, measured as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode import Quality, whole
from rtevo.realign import PLAIN, Making, Motion, Realigner, first_echo, framewise_displacement
from rtevo.records import Grid, VolumeFlag
from rtevo.session.decoding import Aligned

__all__ = ["Aligning"]

LOST = 3  # after this many volumes in a row that cannot be aligned to the first, the next one becomes the first


@dataclass(frozen=True, eq=False)
class _First:
    """The reference volume, and its brain."""

    reference: NDArray[np.float32]
    mask: NDArray[np.bool_]


class Aligning:
    """Aligns each volume to the first usable one of the run.

    Parameters
    ----------
    threads : int
        Threads of the kernels.
    spike_mm : float
        A volume displaced by more since the last is a spike.
    make : callable
        Called with the grid of the run and what its headers say (or None), returns what happens to its volumes besides their motion.
    """

    def __init__(
        self, threads: int, spike_mm: float, make: Callable[[Grid, Mapping[str, Any] | None], Making] = lambda grid, acquisition: PLAIN
    ) -> None:
        self._threads, self._spike_mm, self._make = threads, spike_mm, make
        self._making: Making | None = None
        self._realigner: Realigner | None = None
        self._quality: Quality | None = None
        self._previous: NDArray[np.float64] | None = None
        self._lost = 0
        self.grid: Grid | None = None

    def align(
        self, index: int, volume: NDArray[Any] | None, flags: int, grid: Grid, acquisition: Mapping[str, Any] | None = None
    ) -> Aligned:
        """Align a volume.

        Parameters
        ----------
        index : int
        volume : ndarray, float32 (X, Y, Z), or (echoes, X, Y, Z), or None
            None where it is missing.
        flags : int
        grid : Grid
            That the volume lies on.
        acquisition : dict, optional
            What the headers say, with the run's first volume.
        """
        motion, data, displacement = np.full(6, np.nan), None, np.nan
        if volume is not None:
            self._making = self._making or self._make(grid, acquisition)
            if self._begun(volume, grid, self._making):
                assert self._realigner is not None
                estimate = self._realigner.estimate(first_echo(volume))
                self._lost = 0 if estimate.converged else self._lost + 1
                if estimate.converged:
                    motion = np.asarray(estimate.params, np.float64)
                    data = self._making.aligned(self._realigner, volume, estimate) if whole(volume, self._realigner.mask) else None
            if np.isnan(motion[0]):
                flags |= VolumeFlag.UNALIGNED
            if flags & VolumeFlag.LATE:  # later volumes came before it: a displacement from them has no meaning
                return Aligned(index, int(flags), motion, np.nan, np.nan, np.nan, data)
        if data is not None:
            if self._previous is not None:
                displacement = float(framewise_displacement(np.stack([self._previous, motion]))[1])
            self._previous = motion
        if displacement > self._spike_mm:
            flags |= VolumeFlag.SPIKE
        dvars, tsnr = (np.nan, np.nan) if self._quality is None else self._quality.add(data)
        return Aligned(index, int(flags), motion, displacement, dvars, tsnr, data)

    def _begun(self, volume: NDArray[Any], grid: Grid, making: Making) -> bool:
        """Whether there is a volume to align to: the first one is that, and the next where several are lost to it."""
        if self._realigner is None or self._lost >= LOST:
            self.close()
            reference = np.nan_to_num(np.asarray(first_echo(volume), np.float32))
            making.begin_again()
            try:
                self._realigner = Realigner(reference, grid.affine, threads=self._threads)
            except ValueError:  # it cannot be a reference: the next one is tried
                return False
            self.grid, self._lost, self._previous = grid, 0, None
            if not making.plain:  # what volumes look like once they are aligned
                still = Motion(np.eye(4), np.zeros(6), True, 0, 0.0)
                reference = making.aligned(self._realigner, np.nan_to_num(np.asarray(volume, np.float32)), still)
                making.begin_again()
            self._quality = Quality(_First(reference, self._realigner.mask))
        return True

    def close(self) -> None:
        """End the realigner's threads."""
        if self._realigner is not None:
            self._realigner.close()
            self._realigner = None
