"""How long pictures took and when fixation was held for want of one: the same for summary, report and console."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rtevo.records import EventKind

__all__ = ["Holding", "Painting", "held"]


class Painting:
    """Time from asking for a picture until it was painted.

    Pictures that no score had a part in do not count: those of the first generation are asked for before the model is loaded. Of several
    that are asked for together each has one cadence more (:class:`rtevo.stages.generate.Deadline`).

    Parameters
    ----------
    cadence_ms : float
        From image to image, real milliseconds; infinite where time is virtual.
    """

    def __init__(self, cadence_ms: float) -> None:
        self._cadence_ns = 1e6 * cadence_ms if math.isfinite(cadence_ms) else 0.0
        self.begin()

    def begin(self) -> None:
        """A part of the session begins: what was asked for before is asked for anew."""
        self._together: Counter[tuple[int, int]] = Counter()
        self._asked_ns: dict[tuple[int, int], float] = {}

    def asked(self, record: Mapping[str, Any]) -> None:
        """Take a record of ``latents``."""
        if record["scored_ns"] > 0:
            same = (record["generation"], record["scored_ns"])
            self._asked_ns[record["generation"], record["candidate"]] = record["evolved_ns"] + self._together[same] * self._cadence_ns
            self._together[same] += 1

    def painted(self, record: Mapping[str, Any]) -> float | None:
        """Take a record of ``images``; give how long it took, ns, where that counts."""
        asked_ns = self._asked_ns.get((record["generation"], record["candidate"]))
        return None if asked_ns is None else max(0.0, record["painted_ns"] - asked_ns)


class Holding:
    """When fixation was held for an image that came then: the wait after the last one is no such thing, nor is one before the trigger.

    Attributes
    ----------
    times_ns : list of int
        Session times.
    """

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self.begin()

    def begin(self) -> None:
        """A part of the session begins."""
        self._triggered, self._waiting = False, list[int]()

    def take(self, event: Mapping[str, Any]) -> int:
        """Take a record of ``events``; give how many more times that makes."""
        kind = event["kind"]
        self._triggered |= kind == EventKind.TRIGGER
        if kind == EventKind.FIXATION and self._triggered:
            self._waiting.append(event["t_ns"])
        elif kind == EventKind.ONSET:
            more, self._waiting = self._waiting, []
            self.times_ns += more
            return len(more)
        return 0


def held(log: Iterable[Mapping[str, Any]]) -> list[float]:
    """Give the times at which fixation was held, s from the first volume; a session that was resumed counts on."""
    found: list[float] = []
    holding, trigger_ns, offset_s = Holding(), None, 0.0
    for record in log:
        if record["type"] == "start":
            holding.begin()
            trigger_ns, offset_s = None, record.get("first_volume", 0) * record["tr_s"]
        elif record["type"] == "events":
            if record["kind"] == EventKind.TRIGGER and trigger_ns is None:
                trigger_ns = record["t_ns"]
            if (more := holding.take(record)) and trigger_ns is not None:
                found += [(t_ns - trigger_ns) / 1e9 + offset_s for t_ns in holding.times_ns[-more:]]
    return found
