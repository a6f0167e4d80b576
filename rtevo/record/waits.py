"""Times to paint pictures, and times at which fixation was held for lack of one: shared by summary, report and console."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from rtevo.record.kinds import EventRecord, ImageRecord, LatentRecord
from rtevo.record.parts import Part
from rtevo.records import EventKind

__all__ = ["Holding", "Painting", "held"]


class Painting:
    """Time from the request for a picture until it was painted.

    Pictures that depend on no score do not count: those of the first generation are requested before the model is loaded. Of several
    requested together each has one more cadence (:class:`rtevo.stages.generate.Deadline`).

    Parameters
    ----------
    cadence_ms : float
        Time from image to image, real milliseconds; infinite if time is virtual.
    """

    def __init__(self, cadence_ms: float) -> None:
        self._cadence_ns = 1e6 * cadence_ms if math.isfinite(cadence_ms) else 0.0
        self.begin()

    def begin(self) -> None:
        """Begin a part of the session: open requests will be made again."""
        self._together: Counter[tuple[int, int]] = Counter()
        self._asked_ns: dict[tuple[int, int], float] = {}

    def asked(self, record: LatentRecord) -> None:
        """Record a request for an image."""
        if record.scored_ns > 0:
            same = (record.generation, record.scored_ns)
            self._asked_ns[record.generation, record.candidate] = record.evolved_ns + self._together[same] * self._cadence_ns
            self._together[same] += 1

    def painted(self, record: ImageRecord) -> float | None:
        """Record that an image was painted; return its time, ns, if it counts."""
        asked_ns = self._asked_ns.get((record.generation, record.candidate))
        return None if asked_ns is None else max(0.0, record.painted_ns - asked_ns)


class Holding:
    """Times at which fixation was held for an image that then came; not the wait after the last image, nor one before the trigger.

    Attributes
    ----------
    times_ns : list of int
        Session times.
    """

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self.begin()

    def begin(self) -> None:
        """Begin a part of the session."""
        self._triggered, self._waiting = False, list[int]()

    def take(self, event: EventRecord) -> int:
        """Record an event; return the number of new times."""
        self._triggered |= event.kind == EventKind.TRIGGER
        if event.kind == EventKind.FIXATION and self._triggered:
            self._waiting.append(event.t_ns)
        elif event.kind == EventKind.ONSET:
            more, self._waiting = self._waiting, []
            self.times_ns += more
            return len(more)
        return 0


def held(divided: Iterable[Part]) -> list[float]:
    """Return the times at which fixation was held, s from the first volume, counted through the parts of a resumed session."""
    found: list[float] = []
    for part in divided:
        holding, clock = Holding(), part.clock
        for event in part.records(EventRecord):
            holding.take(event)
        found += [clock.seconds(t_ns) for t_ns in holding.times_ns]
    return found
