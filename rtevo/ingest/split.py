"""Runs that a scanner exports as one series for every volume, with a file for every slice (Siemens XA, "interoperability").

Series number and identifiers change with every volume then, instance numbers begin anew in each, and the number of temporal positions is
the run's: only where and when the slices were acquired says what belongs together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from rtevo.ingest.header import SeriesHeader
from rtevo.ingest.parts import Part

__all__ = ["SplitRuns"]

SAME_PLACE_MM = 0.1
OFF_BEAT = 0.1  # of the repetition time: how far slices at the same place may be from a multiple of it apart
Place = tuple[int, ...]


@dataclass(eq=False)
class _Run:
    """The first series of what may be a run, and when its slices were acquired."""

    series: SeriesHeader
    te_ms: float
    component: str
    any_s: float
    times_s: dict[Place, float] = field(default_factory=dict)
    single: bool = True  # no two of its slices lie at the same place


class SplitRuns:
    """Finds the run of which a one-file-per-slice series holds a single volume."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._members: dict[str, tuple[str, int]] = {}  # series -> the run's first one, and which volume after that one's it holds

    def place(self, series: SeriesHeader, part: Part, apart: set[str]) -> tuple[str, Part]:
        """Find the run that a slice belongs to.

        Parameters
        ----------
        series : SeriesHeader
            The slice's series.
        part : Part
            The slice.
        apart : set of str
            Identifiers of series to which nothing is joined.

        Returns
        -------
        uid : str
            Of the run's first series.
        part : Part
            The slice with a number ``moment``, by its time of acquisition; the only one where its series is not the run's first.
        """
        if series.vendor != "Siemens" or series.kind != "slices" or not series.tr_s or not math.isfinite(part.acquired_s):
            return series.uid, part
        place = tuple(round(float(x) / SAME_PLACE_MM) for x in part.positions[0])
        if series.uid not in self._members and series.uid not in self._runs:
            self._begin(series, part, place, apart)
        if series.uid in self._members:
            uid, volume = self._members[series.uid]
            return uid, replace(part, numbers={"moment": volume + 1})
        run = self._runs[series.uid]
        steps = (part.acquired_s - run.times_s.setdefault(place, part.acquired_s)) / series.tr_s
        run.single = run.single and round(steps) == 0
        return series.uid, replace(part, numbers={**part.numbers, "moment": round(steps) + 1})

    def _begin(self, series: SeriesHeader, part: Part, place: Place, apart: set[str]) -> None:
        """Assign the first slice of a series to a further volume of a run, or to the first of another."""
        for uid, run in self._runs.items():
            volume = self._continues(series, part, place, run) if run.single and uid not in apart else 0
            if volume and not any(member == (uid, volume) for member in self._members.values()):
                self._members[series.uid] = (uid, volume)
                return
        self._runs[series.uid] = _Run(series, part.te_ms, part.component, part.acquired_s)

    def _continues(self, series: SeriesHeader, part: Part, place: Place, run: _Run) -> int:
        """How many volumes after a run's first series another one was acquired; 0 where it is not of that run.

        Both have the same name and protocol, and at least as many series as repetition times lie between them.
        """
        begun = run.series
        if (part.te_ms, part.component) != (run.te_ms, run.component) or series.number is None or begun.number is None or not series.tr_s:
            return 0
        if replace(series, uid=begun.uid, study_uid=begun.study_uid, number=begun.number) != begun:  # the study may be another for each
            return 0
        number = series.number - begun.number
        if place in run.times_s:
            steps = (part.acquired_s - run.times_s[place]) / series.tr_s
            volume = round(steps) if abs(steps - round(steps)) < OFF_BEAT else 0
        else:
            steps = (part.acquired_s - run.any_s) / series.tr_s
            volume = number if abs(steps - number) < 1 else 0  # which one is not clear before a slice at the same place
        return volume if 1 <= abs(volume) <= abs(number) and (volume > 0) == (number > 0) else 0
