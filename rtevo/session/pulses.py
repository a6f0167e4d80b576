"""Comparison of the scanner's pulses at the stimulus PC with the volumes that arrive.

Time zero of a session is the trigger that the presenter took for the first volume's. If the scanner sends a pulse for each volume, missed
and extra pulses show in the intervals. Volumes show whether the trigger was the first volume's: a volume that is whole before it can have
been measured means that pulses were missed before the trigger; more pulses than volumes at the end mean that the trigger came too early
(dummy volumes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rtevo.records import EventKind, RunClock, VolumeFlag
from rtevo.session.context import Context

__all__ = ["Heard", "PulseWatch", "Pulses", "Work"]

TOLERANCE = 0.2  # of a repetition time: largest deviation of an interval between pulses from a multiple of it
TR_ERROR = 0.002  # relative error of the headers' repetition time
FIRST_GAP = 3  # most repetition times until the second pulse, if there is one for every volume
BEHIND = 5  # repetition times that volumes may lag beyond their usual lag


class Pulses:
    """Compares pulses and volumes; every method returns new messages, each once.

    Parameters
    ----------
    tr_s : float
        Repetition time, s.
    early_s : float
        Uncertainty of the times, s: a volume that is whole earlier than this before its end must be another one.

    Attributes
    ----------
    missed : int
        Pulses that were missed since the trigger.
    shift : int
        Repetition times by which the trigger was too late (positive) or too early, as far as known.
    """

    def __init__(self, tr_s: float, early_s: float = 0.05) -> None:
        self.tr_s, self.early_s = tr_s, early_s
        self.missed = self.shift = 0
        self._last_s: float | None = None  # of the last counting pulse
        self._number = 0  # of the volume that this pulse began
        self._every = False  # whether there is a pulse for every volume
        self._newest = -1  # last volume that arrived
        self._lag = 0  # usual lag of volumes behind pulses
        self._behind = False

    def pulse(self, t_s: float) -> list[str]:
        """Add a pulse, s from the trigger; the trigger is the pulse at 0."""
        if self._last_s is None:
            self._last_s = t_s
            return []
        interval = (t_s - self._last_s) / self.tr_s
        steps = round(interval)
        regular = steps >= 1 and abs(interval - steps) <= TOLERANCE + steps * TR_ERROR
        if not regular or (not self._every and steps > FIRST_GAP):
            return [
                f"a trigger came {t_s - self._last_s:.3f} s after the previous one, which is not a multiple of the repetition time of "
                f"{self.tr_s:g} s: it does not count"
            ]
        self._last_s, self._every = t_s, True
        self._number += steps
        self.missed += steps - 1
        told = [] if steps == 1 else [f"{steps - 1} triggers were missed before that of volume {self._number}"]
        if self._number - self._newest > self._lag + BEHIND and self._newest >= 0 and not self._behind:
            self._behind = True
            told.append(f"no volume has come in since {self._newest}, although the scanner still runs: trigger {self._number} was seen")
        return told

    def volume(self, index: int, closed_s: float = math.nan, missing: bool = False) -> list[str]:
        """Add a volume.

        Parameters
        ----------
        index : int
            Its place in the run, from the headers.
        closed_s : float
            Time at which it was whole, s from the trigger; NaN: unknown.
        missing : bool
            The volume never came.
        """
        self._newest, self._behind = max(self._newest, index), False
        self._lag = max(self._lag, self._number - index) if not missing else self._lag
        if missing:
            seen = "its trigger was seen" if self._every and index <= self._number else "its trigger was not seen"
            return [f"volume {index} has not come in; {seen}"]
        ended_s = (index + 1) * self.tr_s
        early_s = ended_s - closed_s - self.early_s - ended_s * TR_ERROR
        shift = math.ceil(early_s / self.tr_s) if early_s > 0 else 0  # NaN is not above 0
        if shift <= self.shift:
            return []
        self.shift = shift
        return [
            f"volume {index} was whole {closed_s:.3f} s after the trigger, at least {shift} repetition times before it can have been "
            f"measured: the trigger was not the first volume's, and all onsets are {shift} x {self.tr_s:g} s too early"
        ]

    def correct(self, shift: int) -> None:
        """Move time zero `shift` repetition times back, because that many pulses were missed before the trigger."""
        self._number += shift
        self.shift -= shift
        if self._last_s is not None:
            self._last_s += shift * self.tr_s

    def finish(self) -> list[str]:
        """Compare the numbers at the end of the scan."""
        if not self._every or self._newest < 0:
            return []
        more = self._number - self._newest
        if more == 0:
            return []
        self.shift = self.shift or -more
        if more > 0:
            return [
                f"{more} triggers more than volumes: either the last {more} were not exported, or the trigger was {more} too early "
                f"([presentation] dummy_triggers)"
            ]
        return [f"{-more} volumes more than triggers: the first or the last {-more} triggers were missed"]


@dataclass(frozen=True)
class Heard:
    """Times of the scanner's last signs, in s of the session; NaN: none yet.

    Parameters
    ----------
    trigger_s : float
        The trigger.
    volume_s : float
        The last volume of the run that arrived; volumes declared missing do not count.
    early_s : float
        The first volume that arrived without a trigger.
    delay_s : float
        The longest time so far from the end of a volume's acquisition to its arrival.
    unusable : int
        Number of volumes in a row, up to the last one, that could not be aligned.
    """

    trigger_s: float = math.nan
    volume_s: float = math.nan
    early_s: float = math.nan
    delay_s: float = 0.0
    unusable: int = 0

    def silence(self, now_s: float, tr_s: float, least_s: float) -> str:
        """Return what is missing: "volumes", "trigger", "usable" volumes; empty: nothing.

        An alarm is due after the longer of two repetition times and `least_s`, plus the largest delay of this scanner so far.

        Parameters
        ----------
        now_s : float
            Session time.
        tr_s : float
            Repetition time, s.
        least_s : float
            The shortest time, s.
        """
        limit_s = max(2 * tr_s, least_s)
        if math.isnan(self.trigger_s):
            return "trigger" if now_s - self.early_s > limit_s else ""
        last_s = self.trigger_s if math.isnan(self.volume_s) else max(self.trigger_s, self.volume_s)
        if now_s - last_s > limit_s + self.delay_s:
            return "volumes"
        return "usable" if self.unusable * tr_s > limit_s else ""


class Work(Protocol):
    """A stage that reads ``events`` and ``volumes``."""

    def event(self, slot: Any) -> None:
        """Handle an event."""

    def volume(self, slot: Any) -> None:
        """Handle a volume."""


class PulseWatch:
    """Compares pulses with volumes while a stage reads ``events`` and ``volumes``, and reports contradictions."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found = Pulses(context.plan.tr_s, early_s=0.1 * max(1.0, context.config.session.speed))
        self._run = RunClock(context.plan.tr_s)  # of this run only
        self._shown = False

    def beside(self, work: Work) -> dict[str, Callable[[Any], None]]:
        """Return the handlers of ``events`` and ``volumes``: the stage's work, and this comparison beside it."""

        def event(slot: Any) -> None:
            self.event(slot)
            work.event(slot)

        def volume(slot: Any) -> None:
            work.volume(slot)
            self.volume(slot)

        return {"events": event, "volumes": volume}

    def event(self, slot: Any) -> None:
        """Record a pulse, a corrected start, and the first image, after which the start cannot be corrected."""
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
        """Record a volume."""
        if slot["flags"] & VolumeFlag.LATE:  # too late to compare with the pulses
            return
        clock, missing = self._context.clock, bool(slot["flags"] & VolumeFlag.MISSING)
        known = not (missing or clock.lock_step)  # in lock-step files take no time to write
        closed_s = self._run.seconds(clock.session_ns(int(slot["closed_ns"]))) if known else math.nan
        self._tell(self._found.volume(int(slot["index"]) - self._context.plan.first_volume, closed_s, missing))
        self._ask(0 if self._shown else max(0, self._found.shift))

    def _ask(self, shift: int) -> None:
        """Offer the operator a correction of the start by a number of repetition times."""
        if self._context.clock.get("start_shift") != shift:
            self._context.clock.set("start_shift", shift)

    def finish(self) -> None:
        """Compare the totals after the last volume."""
        self._tell(self._found.finish())

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self._context.log.warning("%s", line)
