"""A whole volume's slices: their data in order, and when each was acquired."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rtevo.ingest.geometry import stack
from rtevo.ingest.header import SeriesHeader
from rtevo.ingest.parts import Part
from rtevo.records import Grid

__all__ = ["Layout"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Slices of a whole volume.

    Its parts, its grid, the order of the parts' slices, positions in that order (LPS+ mm), and instance numbers of the parts' files.
    """

    parts: list[Part]
    grid: Grid
    order: NDArray[np.intp]
    positions: NDArray[np.float64]
    instances: list[int | None] = field(default_factory=list)

    def data(self) -> NDArray[np.float32] | None:
        """The volume, None where only headers were read."""
        pictures = [part.pixels for part in self.parts if part.pixels is not None]
        if not pictures:
            return None
        if self.parts[0].grid is not None:
            slope = np.float32(self.parts[0].slopes[0])
            data: NDArray[np.float32] = np.multiply(pictures[0], slope, dtype=np.float32, order="C", casting="unsafe")
            if self.parts[0].intercepts[0]:
                data += np.float32(self.parts[0].intercepts[0])
            return data
        stored = pictures[0] if len(pictures) == 1 else np.concatenate(pictures)
        slopes = np.concatenate([part.slopes for part in self.parts])
        intercepts = np.concatenate([part.intercepts for part in self.parts])
        if (np.diff(self.order) != 1).any():
            stored, slopes, intercepts = stored[self.order], slopes[self.order], intercepts[self.order]
        return stack(stored, slopes, intercepts)

    def slice_times_s(self, series: SeriesHeader) -> NDArray[np.float64] | None:
        """When each slice was acquired, from the first; None where the headers do not say."""
        if series.kind != "slices":
            times = self.parts[0].slice_times_s
            if times is not None and self.parts[0].grid is None and len(times) != len(self.order):  # a damaged file among a series'
                return None
            return times if times is None or self.parts[0].grid is not None else times[self.order]
        if series.vendor not in ("Siemens", "GE"):  # others write the volume's time, or the series', into all its slices
            return None
        if series.vendor == "GE" and not any(math.isfinite(part.acquired_s) for part in self.parts):
            return self._ge_times_s(series)
        moments = np.array([part.acquired_s for part in self.parts])
        if len(moments) != len(self.order):  # a damaged file that holds several slices
            return None
        times = (moments - moments.min())[self.order]
        return times.round(6) if np.isfinite(times).all() and times.max() > 0 else None

    def _ge_times_s(self, series: SeriesHeader) -> NDArray[np.float64] | None:
        """When each slice was acquired by the protocol's order: evenly over the repetition time, in the order of instance numbers."""
        slices = len(self.instances)
        if series.interleaved is None or series.tr_s is None or series.encoding.get("MultibandAccelerationFactor", 1) > 1 or slices < 2:
            return None
        if None in self.instances or len(set(self.instances)) != slices:
            return None
        ranks = np.argsort(np.argsort(np.array(self.instances)))
        if series.interleaved:  # 1, 3, 5, ..., 2, 4, 6, ...
            ranks = np.where(ranks % 2, (slices + 1) // 2 + ranks // 2, ranks // 2)
        times = np.asarray(ranks * ((series.tr_s - series.delay_s) / slices), np.float64)[self.order]
        return times.round(6)
