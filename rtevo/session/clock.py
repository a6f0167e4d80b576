"""Session time.

Session time is int64 nanoseconds from the session's start. At speed X it is the monotonic clock times X. At speed 0 ("max") it is
virtual: the conductor (:mod:`rtevo.session.conductor`) moves it to the next time for which a process waits, once all else is at rest, so
that a session runs as fast as the computer allows, without a sleep, and the same way every time (a discrete-event simulation).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from rtevo.session.words import Words

__all__ = ["NEVER", "RUNNING", "Clock"]

RUNNING = -1  # wake-up time of a participant of the lock-step that does not wait
NEVER = 2**63 - 1  # wake-up time of a participant that has left
_POLL_S = 0.0005


class Clock(Words):
    """Session clock; its state lies in the session's shared words.

    Parameters
    ----------
    path : Path
        The words' file; made by :meth:`create`.
    """

    @classmethod
    def create(cls, path: Path, speed: float) -> Clock:
        """Return a clock in a new file; `speed` is 1 for real time, X for X times faster, 0 for lock-step."""
        cls.make(path)
        clock = cls(path)
        clock.set("speed_ppm", round(speed * 1e6))
        for who in ("scanner", "presenter"):
            clock.set(f"{who}_wake_ns", RUNNING)
        return clock

    @property
    def speed(self) -> float:
        """Speed relative to real time; 0 in lock-step."""
        return self.get("speed_ppm") / 1e6

    @property
    def lock_step(self) -> bool:
        """Whether session time is virtual."""
        return self.get("speed_ppm") == 0

    @property
    def ending(self) -> bool:
        """Whether the session was asked to end, normally or after a failure."""
        return bool(self.get("end") or self.get("abort"))

    def start(self) -> None:
        """Start session time at 0 now."""
        self.set("started_ns", time.monotonic_ns())

    def session_ns(self, monotonic_ns: int) -> int:
        """Return the session time of a moment of this computer's monotonic clock (in lock-step both are session time)."""
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
            Session time, s; may have passed; infinite: wait for the order to stop.
        serve : callable, optional
            Called repeatedly with the longest (real) time, s, that it may take. If it returns True the wait ends at once.

        Returns
        -------
        bool
            False if the scanner must stop, else True: the time has come, or `serve` returned True.
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
        """Lock-step, conductor: move session time to the wake-up time of `who` ("scanner" or "presenter"), and wake it."""
        self.set("now_ns", max(self.get("now_ns"), self.get(f"{who}_wake_ns")))
        self.set(f"{who}_wake_ns", RUNNING)
        self.set(f"{who}_grants", self.get(f"{who}_grants") + 1)
