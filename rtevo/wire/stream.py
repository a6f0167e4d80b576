"""Numbered messages: kept until acknowledged, taken once and in order."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

from rtevo.wire.messages import Numbered, NumberedT, encode

__all__ = ["Inbox", "Outbox"]


class Outbox:
    """Numbered messages of one sender, kept until they are acknowledged.

    Parameters
    ----------
    start : int
        Highest number given out and acknowledged before.
    resend_after_ns : int
        Without any acknowledgement for so long (then twice, four times, ... as long), everything unacknowledged is sent again.
    """

    def __init__(self, start: int = 0, resend_after_ns: int = 1_000_000_000) -> None:
        self._kept: deque[tuple[int, Numbered, list[bytes]]] = deque()
        self._first_wait_ns = self._wait_ns = resend_after_ns
        self._progress_ns: int | None = None
        self._replayed_from = -1
        self.last = start  # highest number given out
        self.acknowledged = start  # highest number acknowledged

    def add(self, message: NumberedT, pixels: Any = None) -> list[bytes]:
        """Number a message and keep it; gives the frames to send."""
        numbered = dataclasses.replace(message, sequence=self.last + 1)
        frames = encode(numbered, pixels)
        self.last += 1
        self._kept.append((self.last, numbered, frames))
        return frames

    def acknowledge(self, received: int) -> list[Numbered]:
        """Drop everything up to number `received`; gives what was dropped, oldest first."""
        gone: list[Numbered] = []
        while self._kept and self._kept[0][0] <= received:
            gone.append(self._kept.popleft()[1])
        if gone:
            self.acknowledged = min(received, self.last)
            self._wait_ns, self._progress_ns = self._first_wait_ns, None
        return gone

    def waiting(self) -> list[Numbered]:
        """Messages that are not acknowledged yet, oldest first."""
        return [message for _, message, _ in self._kept]

    def replay(self) -> list[list[bytes]]:
        """Frames of everything unacknowledged, oldest first."""
        self._progress_ns = None
        return [frames for _, _, frames in self._kept]

    def replay_missing(self) -> list[list[bytes]]:
        """As `replay`, but once only for one gap: the receiver reports it with every message that follows it."""
        if self._replayed_from == self.acknowledged:
            return []
        self._replayed_from = self.acknowledged
        return self.replay()

    def overdue(self, now_ns: int) -> list[list[bytes]]:
        """Frames to send again because nothing has been acknowledged for too long."""
        if not self._kept:
            return []
        if self._progress_ns is None:
            self._progress_ns = now_ns
        if now_ns - self._progress_ns < self._wait_ns:
            return []
        self._wait_ns = min(2 * self._wait_ns, 30 * self._first_wait_ns)
        frames = self.replay()
        self._progress_ns = now_ns
        return frames


class Inbox:
    """Takes numbered messages of one sender once and in order; `start`: highest number taken before."""

    def __init__(self, start: int = 0) -> None:
        self.received = start  # highest number taken
        self.missing = False  # the last one looked at was not the next

    def take(self, message: Numbered) -> bool:
        """Whether this message is the next one (True), or a repetition or out of order (False: leave it)."""
        fresh = message.sequence == self.received + 1
        self.missing = message.sequence > self.received + 1
        if fresh:
            self.received += 1
        return fresh
