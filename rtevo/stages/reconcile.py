"""Holds the scanner's pulses against the volumes, and tells the operator where they do not fit."""

from __future__ import annotations

import math
from typing import Any

from rtevo.pulses import Reconciler
from rtevo.records import EventKind, RunClock, VolumeFlag
from rtevo.stages.context import Context


class Reconcile:
    """Looks on while a stage reads ``events`` and ``volumes``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found = Reconciler(context.plan.tr_s, early_s=0.1 * max(1.0, context.config.session.speed))
        self._run = RunClock(context.plan.tr_s)  # of this run alone
        self._shown = False

    def event(self, slot: Any) -> None:
        """Take note of a pulse, of a start that was corrected, and of the first image, after which it no longer can be."""
        if slot["kind"] == EventKind.ONSET:
            self._shown = True
            self._ask(0)
        if slot["kind"] == EventKind.TRIGGER and self._run.trigger_ns is not None:
            self._found.correct(-round(self._run.seconds(slot["t_ns"]) / self._run.tr_s))
            self._run = self._run.triggered(slot["t_ns"])
            return
        if slot["kind"] == EventKind.TRIGGER:
            self._run = self._run.triggered(slot["t_ns"])
        if slot["kind"] in (EventKind.TRIGGER, EventKind.PULSE) and self._run.trigger_ns is not None:
            self._tell(self._found.pulse(self._run.seconds(slot["t_ns"])))

    def volume(self, slot: Any) -> None:
        """Take note of a volume."""
        if slot["flags"] & VolumeFlag.LATE:  # it says nothing about the pulses any more
            return
        clock, missing = self._context.clock, bool(slot["flags"] & VolumeFlag.MISSING)
        known = not (missing or clock.lock_step)  # in lock-step files are written in no time
        closed_s = self._run.seconds(clock.session_ns(int(slot["closed_ns"]))) if known else math.nan
        self._tell(self._found.volume(int(slot["index"]) - self._context.plan.first_volume, closed_s, missing))
        self._ask(0 if self._shown else max(0, self._found.shift))

    def _ask(self, shift: int) -> None:
        """Let the operator know by how many repetition times the start can be corrected."""
        if self._context.clock.get("start_shift") != shift:
            self._context.clock.set("start_shift", shift)

    def finish(self) -> None:
        """The last volume has come."""
        self._tell(self._found.finish())

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self._context.log.warning("%s", line)
