"""Session time, and the few words that all processes of a session share.

Session time is int64 nanoseconds from the session's start. At speed X it is the monotonic clock times X. At speed 0 ("max") it is
virtual: the *conductor* in the supervisor moves it to the next thing that anyone waits for, and only once all else is at rest, so that a
session runs as fast as the computer allows, without a sleep, and the same way every time (a discrete-event simulation).

The words lie in a small memory-mapped file in the session's runtime folder. Each is an independent aligned 64-bit flag or counter with
one writer at a time; nothing is inferred from the order in which two of them change, except in lock-step, where the conductor asks
twice (see :mod:`rtevo.supervisor`).
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

__all__ = ["NEVER", "RUNNING", "Clock"]

RUNNING = -1  # what a participant of the lock-step waits for while it does not wait
NEVER = 2**63 - 1  # what it waits for once it has left
_POLL_S = 0.0005
_WORDS = (
    "started_ns",  # monotonic ns of session time 0; 0 before
    "speed_ppm",  # millionths; 0 = lock-step
    "now_ns",  # lock-step only: session time
    "end",  # asked to end the session properly (last generation scored, Ctrl-C, operator)
    "stop_scanner",  # a simulated or replayed scanner ends after its current volume
    "drain",  # nothing more will come from the scanner: ingest hands on what it has and closes
    "abort",  # a stage has died: everyone saves and leaves
    "delivered",  # files that a simulated or replayed scanner has finished writing
    "settled",  # value of `delivered` when ingest last found nothing new
    "scanner_wake_ns",
    "scanner_grants",
    "presenter_wake_ns",
    "presenter_grants",
    "bridge_port",  # that the bridge listens at; 0 before
    "bridge_event",  # the last event that the bridge has published or was about to: see rtevo.stages.bridge
    "presenter_place",  # the computer of the bridge's presenter: see rtevo.bridge.waiting
    "presenter_process",  # and its number there
    "presenter_waits",  # number of another presenter that would like to come in; 0: none does
    "presenter_admitted",  # the operator's: number of the one that is to be let in
    "triggered",  # the trigger has been
    "trigger_ns",  # session time of the trigger; 0 before
    "shown",  # an image has been
    "volume_ns",  # session time at which the run's last volume came in; 0 before
    "volume_count",  # how many have come in, in this part of the session
    "delay_ns",  # the longest time so far from the end of a volume's acquisition until it came in, session time
    "early_ns",  # session time at which a volume came in before there was a trigger; 0: none
    "unusable",  # volumes without a break, up to the last one, that could not be aligned
    "scored",  # images that have a score
    "held",  # images cannot be scored: fixation after the current trial, until the operator wants to go on
    "held_told",  # the bridge has acted on that
    "alarm",  # number of alarms so far
    "seen",  # how many of them somebody has seen
    "start_shift",  # repetition times by which the trigger was too late, as the volumes say, while that can be corrected; 0: none
    "start_accepted",  # the operator's: correct the start by so many
    "pause",  # the operator wants fixation after the current trial
    "placed",  # number of times that the decoder has been placed on today's head: from the first on, images are shown
    "placed_told",  # and how many of them the bridge has acted on
    "placement_asked",  # 1 + number of the attempt to place it that waits for the operator; 0: none does
    "placement_answer",  # the operator's: 4 times what was asked, + 1: accept, + 2: try the next volumes
    "images_told",  # the bridge has acted on the end of the images
    "restart",  # the session ends in order to begin again with another run of the scanner
    "waiting",  # everything is ready; the operator has not yet let the session begin
    "over",  # 1: the session has been completed, 2: stopped, 3: completed, but its images could not be scored
)


class Clock:
    """Session clock and shared words.

    Attributes named in the module's table (``end``, ``drain``, ...) read and write the shared words as int.

    Parameters
    ----------
    path : Path
        The mapped file; made by :meth:`create`.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(_WORDS))
        self._words = np.frombuffer(self._map, np.int64)
        self._at = {name: i for i, name in enumerate(_WORDS)}

    @classmethod
    def create(cls, path: Path, speed: float) -> Clock:
        """Make the file; `speed` is 1 for real time, X for X times faster, 0 for lock-step."""
        path.write_bytes(bytes(8 * len(_WORDS)))
        clock = cls(path)
        clock.set("speed_ppm", round(speed * 1e6))
        for who in ("scanner", "presenter"):
            clock.set(f"{who}_wake_ns", RUNNING)
        return clock

    def close(self) -> None:
        """Unmap; the file stays."""
        del self._words
        self._map.close()

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get(self, word: str) -> int:
        """Read a shared word."""
        return int(self._words[self._at[word]])

    def set(self, word: str, value: int) -> None:
        """Write a shared word."""
        self._words[self._at[word]] = value

    @property
    def speed(self) -> float:
        """Times real time; 0 in lock-step."""
        return self.get("speed_ppm") / 1e6

    @property
    def lock_step(self) -> bool:
        """Whether session time is virtual."""
        return self.get("speed_ppm") == 0

    @property
    def ending(self) -> bool:
        """Whether the session has been asked to end, for good or bad."""
        return bool(self.get("end") or self.get("abort"))

    def start(self) -> None:
        """Let session time begin at 0 now."""
        self.set("started_ns", time.monotonic_ns())

    def session_ns(self, monotonic_ns: int) -> int:
        """Give the session time of a moment of this computer's monotonic clock (in lock-step both are session time)."""
        if self.lock_step:
            return monotonic_ns
        return round((monotonic_ns - self.get("started_ns")) * self.speed)

    def now_ns(self) -> int:
        """Session time now, ns; 0 before the start."""
        if self.lock_step:
            return self.get("now_ns")
        return self.session_ns(time.monotonic_ns()) if self.get("started_ns") else 0

    def now_s(self) -> float:
        """Session time now, s."""
        return self.now_ns() / 1e9

    def wait_until(self, t_s: float, serve: Callable[[float], bool] | None = None) -> bool:
        """Wait, as the scanner, for a session time.

        Parameters
        ----------
        t_s : float
            Session time, s; may have passed; infinite to wait until told to stop.
        serve : callable, optional
            Called again and again with the longest (real) time, s, that it may take. Where it returns True the wait ends at once.

        Returns
        -------
        bool
            False where the scanner has been told to stop, else True: the time has come, or `serve` returned True.
        """
        grants = self.get("scanner_grants")
        if self.lock_step:
            self.set("scanner_wake_ns", NEVER if t_s == math.inf else round(t_s * 1e9))
        going_on = self._wait(t_s, grants, serve)
        if self.lock_step:
            self.set("scanner_wake_ns", RUNNING)
        return going_on

    def _wait(self, t_s: float, grants: int, serve: Callable[[float], bool] | None) -> bool:
        while not (self.get("stop_scanner") or self.get("abort")):
            if self.lock_step:
                if self.get("scanner_grants") != grants:
                    return True
                pause_s = _POLL_S
            else:
                left_s = (t_s - self.now_s()) / self.speed
                if left_s <= 0:
                    return True
                pause_s = min(left_s, 0.05)
            if serve is None:
                time.sleep(pause_s)
            elif serve(pause_s):
                return True
        return False

    def grant(self, who: str) -> None:
        """Lock-step, conductor: move session time to what `who` ("scanner" or "presenter") waits for and wake it."""
        self.set("now_ns", max(self.get("now_ns"), self.get(f"{who}_wake_ns")))
        self.set(f"{who}_wake_ns", RUNNING)
        self.set(f"{who}_grants", self.get(f"{who}_grants") + 1)
