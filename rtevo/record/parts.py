"""A session's parts: each is a run of the scanner, with its own clock and grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rtevo.record.kinds import End, EventRecord, GridRecord, Record, SeriesRecord, Start, Unsealed, VolumeRecord
from rtevo.record.log import LOG, read_log
from rtevo.records import EventKind, Grid, Projected, RunClock, VolumeFlag

__all__ = ["Part", "earlier", "is_measured", "of_kind", "parts", "projected_of"]

RecordT = TypeVar("RecordT", bound=Record)


def of_kind(log: Iterable[Record], kind: type[RecordT]) -> list[RecordT]:
    """Return the records of one kind, in order."""
    return [record for record in log if isinstance(record, kind)]


def is_measured(verdict: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether a filter refused because of what it measured, and not because it could not say."""
    return any(finding.get("refused") and finding.get("value") is not None for finding in verdict or ())


def projected_of(record: SeriesRecord) -> Projected:
    """Give a volume as a strategy looks at it."""
    own = {each.name: getattr(record, each.name) for each in fields(Projected)}
    return Projected(**{**own, "motion_mm": tuple(record.motion_mm)})


class Part(list[Record]):
    """The records of a part, in order."""

    def records(self, kind: type[RecordT]) -> list[RecordT]:
        """Return the records of one kind."""
        return of_kind(self, kind)

    def events(self, *kinds: EventKind) -> list[EventRecord]:
        """Return the events of these kinds."""
        return [event for event in self.records(EventRecord) if event.kind in kinds]

    @property
    def start(self) -> Start:
        """How it began; all defaults if the log does not begin with a ``start``."""
        return self[0] if self and isinstance(self[0], Start) else Start()

    @property
    def end(self) -> End | None:
        """How it ended; None: interrupted."""
        return next((record for record in reversed(self) if isinstance(record, End)), None)

    @property
    def ended_well(self) -> bool:
        """Whether it ended in good order, so that its last images were scored from the available volumes."""
        last = next(record for record in reversed(self) if not isinstance(record, Unsealed))
        return last is self.end and self.end.status in ("completed", "stopped", "unscored")

    @property
    def grid(self) -> Grid | None:
        """The grid of its volumes; None: no volumes (in early logs of 0.1: the decoder's grid)."""
        found = next((r for r in self if isinstance(r, (GridRecord, Start)) and r.affine is not None and r.shape is not None), None)
        return None if found is None else Grid(tuple(found.shape), np.array(found.affine))  # type: ignore[arg-type]

    @property
    def clock(self) -> RunClock:
        """Session time to seconds, from its trigger: of several the last, which corrects the others."""
        clock = RunClock(self.start.tr_s, self.start.first_volume)
        triggers = self.events(EventKind.TRIGGER)
        return clock.triggered(triggers[-1].t_ns) if triggers else clock

    @property
    def unsaved(self) -> list[int]:
        """Numbers of the volumes that came and cannot be decoded again: not saved, or their record is lost."""
        records = self.records(VolumeRecord)
        begun = {r.index for r in records if not r.flags & VolumeFlag.LATE}
        lost = set(range(self.start.first_volume, max(begun, default=-1) + 1)) - {r.index for r in records}
        return sorted(lost | {r.index for r in records if r.saved is False})


def parts(log: Iterable[Record]) -> list[Part]:
    """Divide a log into the session's parts: each begins with a ``start``."""
    found: list[Part] = []
    for record in log:
        if isinstance(record, Start) or not found:
            found.append(Part())
        found[-1].append(record)
    return found


def earlier(out: Path, part: int) -> list[Record]:
    """Return the records before a part of a session.

    Parameters
    ----------
    out : Path
        The session's folder.
    part : int
        0 = the first.
    """
    if part == 0:
        return []
    return [record for each in parts(read_log(out / LOG))[:part] for record in each]
