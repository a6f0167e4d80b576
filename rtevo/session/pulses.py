"""The scanner's pulses at the stimulus PC and the volumes that come in, held against each other.

Time zero of a session is the trigger that the presenter took for the first volume's. Where the scanner sends a pulse for each volume, a
missed or an extra one shows in the intervals. Whether the trigger itself was the first volume's shows in the volumes: one that is whole
before it can have been measured says that pulses were missed before the trigger; more pulses than volumes at the end, that the trigger
came too early (dummy volumes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rtevo.records import EventKind, RunClock, VolumeFlag
from rtevo.session.context import Context

__all__ = ["Heard", "PulseWatch", "Pulses", "Work"]

TOLERANCE = 0.2  # of a repetition time, by which an interval between pulses may differ from a multiple of it
TR_ERROR = 0.002  # relative; of the headers' repetition time
FIRST_GAP = 3  # repetition times until the second pulse, where there is one for every volume
BEHIND = 5  # repetition times that volumes may stay behind what they usually do


class Pulses:
    """Compares pulses and volumes; every method gives what is to be told, each thing once.

    Parameters
    ----------
    tr_s : float
        Repetition time, s.
    early_s : float
        A volume that is whole by more than this before its end is another one, s: what is not known of the times.

    Attributes
    ----------
    missed : int
        Pulses that were missed since the trigger.
    shift : int
        Repetition times by which the trigger was too late (positive) or too early, as far as is known.
    """

    def __init__(self, tr_s: float, early_s: float = 0.05) -> None:
        self.tr_s, self.early_s = tr_s, early_s
        self.missed = self.shift = 0
        self._last_s: float | None = None  # of the last pulse that counts
        self._number = 0  # of the volume that it began
        self._every = False  # there is a pulse for every volume
        self._newest = -1  # volume that came in last
        self._lag = 0  # of volumes behind pulses, usually
        self._behind = False

    def pulse(self, t_s: float) -> list[str]:
        """Take a pulse, s from the trigger; the trigger is the one at 0."""
        if self._last_s is None:
            self._last_s = t_s
            return []
        interval = (t_s - self._last_s) / self.tr_s
        steps = round(interval)
        regular = steps >= 1 and abs(interval - steps) <= TOLERANCE + steps * TR_ERROR
        if not regular or (not self._every and steps > FIRST_GAP):
            return [
                f"a trigger came {t_s - self._last_s:.3f} s after the one before it, which is no multiple of the repetition time of "
                f"{self.tr_s:g} s: it does not count"
            ]
        self._last_s, self._every = t_s, True
        self._number += steps
        self.missed += steps - 1
        told = [] if steps == 1 else [f"{steps - 1} triggers were missed before that of volume {self._number}"]
        if self._number - self._newest > self._lag + BEHIND and self._newest >= 0 and not self._behind:
            self._behind = True
            told.append(f"the scanner goes on, but no volume has come in since {self._newest}: trigger {self._number} has been")
        return told

    def volume(self, index: int, closed_s: float = math.nan, missing: bool = False) -> list[str]:
        """Take a volume.

        Parameters
        ----------
        index : int
            Its place in the run, from the headers.
        closed_s : float
            When it was whole, s from the trigger; NaN where that is not known.
        missing : bool
            It never came.
        """
        self._newest, self._behind = max(self._newest, index), False
        self._lag = max(self._lag, self._number - index) if not missing else self._lag
        if missing:
            seen = "its trigger was seen" if self._every and index <= self._number else "there is no trigger of its own"
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
        """Take time zero to be `shift` repetition times earlier: so many pulses were missed before the trigger."""
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
    """When the scanner was heard, in s of the session; NaN: not yet.

    Parameters
    ----------
    trigger_s : float
        The trigger.
    volume_s : float
        The last volume of the run that came in; those that were declared missing do not count.
    early_s : float
        The first volume that came in while there was no trigger.
    delay_s : float
        The longest time so far from the end of a volume's acquisition until it came in.
    unusable : int
        Volumes without a break, up to the last one, that could not be aligned.
    """

    trigger_s: float = math.nan
    volume_s: float = math.nan
    early_s: float = math.nan
    delay_s: float = 0.0
    unusable: int = 0

    def silence(self, now_s: float, tr_s: float, least_s: float) -> str:
        """Name what is not heard that should be: "volumes", "trigger", "usable" volumes; empty where all is as it should be.

        An alarm is due after the longer of two repetition times and `least_s`, beyond the delay that this scanner has shown.

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
    """What a stage does that reads ``events`` and ``volumes``."""

    def event(self, slot: Any) -> None:
        """Take an event."""

    def volume(self, slot: Any) -> None:
        """Take a volume."""


class PulseWatch:
    """Holds pulses against volumes while a stage reads ``events`` and ``volumes``, and reports where they do not fit."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found = Pulses(context.plan.tr_s, early_s=0.1 * max(1.0, context.config.session.speed))
        self._run = RunClock(context.plan.tr_s)  # of this run alone
        self._shown = False

    def beside(self, work: Work) -> dict[str, Callable[[Any], None]]:
        """Return what handles each message of ``events`` and ``volumes``: the stage's work, and this watch beside it."""

        def event(slot: Any) -> None:
            self.event(slot)
            work.event(slot)

        def volume(slot: Any) -> None:
            work.volume(slot)
            self.volume(slot)

        return {"events": event, "volumes": volume}

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
