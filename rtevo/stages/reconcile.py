"""Holds the scanner's pulses against the volumes, and tells the operator where they do not fit."""

from __future__ import annotations

import math
from typing import Any

from rtevo.pulses import Reconciler
from rtevo.records import EventKind, VolumeFlag
from rtevo.stages.context import Context


class Reconcile:
    """Looks on while a stage reads ``events`` and ``volumes``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found = Reconciler(context.plan.tr_s, early_s=0.1 * max(1.0, context.config.session.speed))
        self._trigger_ns: int | None = None

    def event(self, slot: Any) -> None:
        """Take note of a pulse."""
        if slot["kind"] == EventKind.TRIGGER and self._trigger_ns is None:
            self._trigger_ns = int(slot["t_ns"])
        if slot["kind"] in (EventKind.TRIGGER, EventKind.PULSE) and self._trigger_ns is not None:
            self._tell(self._found.pulse((int(slot["t_ns"]) - self._trigger_ns) / 1e9))

    def volume(self, slot: Any) -> None:
        """Take note of a volume."""
        if slot["flags"] & VolumeFlag.LATE:  # it says nothing about the pulses any more
            return
        clock, missing = self._context.clock, bool(slot["flags"] & VolumeFlag.MISSING)
        closed_s = math.nan
        if not (missing or clock.lock_step or self._trigger_ns is None):  # in lock-step files are written in no time
            closed_s = (clock.session_ns(int(slot["closed_ns"])) - self._trigger_ns) / 1e9
        self._tell(self._found.volume(int(slot["index"]) - self._context.plan.first_volume, closed_s, missing))

    def finish(self) -> None:
        """The last volume has come."""
        self._tell(self._found.finish())

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self._context.log.warning("%s", line)
