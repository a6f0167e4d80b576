"""Numbered messages: kept until acknowledged, taken once and in order."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

from rtevo.wire.messages import Numbered, NumberedT, encode

__all__ = ["Inbox", "Outbox"]

WINDOW_BYTES = 8 * 1024 * 1024  # under way at once: more would only queue up in front of everything else
SLOWEST_BYTES_S = 125_000  # a link of 1 Mbit/s is waited for before anything is sent a second time
PATIENCE_NS, LONGEST_NS = 1_000_000_000, 30_000_000_000


class Outbox:
    """Numbered messages of one sender, kept until they are acknowledged (go-back-N).

    Send what is due, again and again::

        while (frames := outbox.due(now_ns)) is not None and put(frames):
            outbox.sent()

    What was under way when a connection broke is sent again after :meth:`rewind`. Without any acknowledgement for about as long as a
    slow link would take (then twice, four times, ... as long) that happens by itself.

    Parameters
    ----------
    start : int
        Highest number given out and acknowledged before.
    window_bytes : int
        At most so much is under way (but always one message).
    """

    def __init__(self, start: int = 0, window_bytes: int = WINDOW_BYTES) -> None:
        self._kept: deque[tuple[Numbered, list[bytes]]] = deque()
        self._window = window_bytes
        self._under_way = self._bytes = 0  # messages at the head of `_kept` that have been sent, and their size
        self._progress_ns: int | None = None  # when something was first seen under way since the last acknowledgement
        self._tries = 0
        self._gap = -1  # number acknowledged when the last gap was reported
        self.last = start  # highest number given out
        self.acknowledged = start  # highest number acknowledged

    def add(self, message: NumberedT, pixels: Any = None) -> NumberedT:
        """Number a message and keep it for sending; gives it with its number."""
        numbered = dataclasses.replace(message, sequence=self.last + 1)
        self._kept.append((numbered, encode(numbered, pixels)))
        self.last += 1
        return numbered

    def due(self, now_ns: int) -> list[bytes] | None:
        """Frames of the next message to send now; None where all that may be is under way."""
        if self._under_way and self._progress_ns is None:
            self._progress_ns = now_ns
        elif self._under_way and self._progress_ns is not None and now_ns - self._progress_ns > self._patience_ns():
            self._tries += 1
            self.rewind()
        if self._under_way == len(self._kept):
            return None
        frames = self._kept[self._under_way][1]
        return frames if not self._under_way or self._bytes + _size(frames) <= self._window else None

    def sent(self) -> None:
        """Note that the frames that `due` gave have been sent."""
        self._bytes += _size(self._kept[self._under_way][1])
        self._under_way += 1

    def acknowledge(self, received: int) -> list[Numbered]:
        """Drop everything up to number `received`; gives what was dropped, oldest first."""
        gone: list[Numbered] = []
        while self._kept and self._kept[0][0].sequence <= received:
            message, frames = self._kept.popleft()
            gone.append(message)
            if self._under_way:
                self._under_way -= 1
                self._bytes -= _size(frames)
        if gone:
            self.acknowledged += len(gone)
            self._tries, self._progress_ns = 0, None
        return gone

    def waiting(self) -> list[Numbered]:
        """Messages that are not acknowledged yet, oldest first."""
        return [message for message, _ in self._kept]

    def rewind(self) -> None:
        """Everything that is not acknowledged is to be sent again."""
        self._under_way, self._bytes, self._progress_ns = 0, 0, None

    def gap(self) -> None:
        """As `rewind`, but once only for one gap: the receiver reports it with every message that follows it."""
        if self._gap != self.acknowledged:
            self._gap = self.acknowledged
            self.rewind()

    def _patience_ns(self) -> int:
        patience = PATIENCE_NS + round(self._bytes / SLOWEST_BYTES_S * 1e9)
        return max(patience, min(patience << min(self._tries, 16), LONGEST_NS))


def _size(frames: list[bytes]) -> int:
    return sum(map(len, frames))


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
