"""Numbered messages: kept until acknowledged, received once and in order."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

from rtevo.wire.messages import Numbered, NumberedT, encode

__all__ = ["Inbox", "Outbox"]

WINDOW_BYTES = 8 * 1024 * 1024  # under way at once: more would only delay everything else
SLOWEST_BYTES_S = 125_000  # a link of 1 Mbit/s gets enough time before messages are sent again
PATIENCE_NS, LONGEST_NS = 1_000_000_000, 30_000_000_000


class Outbox:
    """Numbered messages of one sender, kept until they are acknowledged (go-back-N).

    Usage::

        while (frames := outbox.due(now_ns)) is not None and put(frames):
            outbox.sent()

    After a broken connection, :meth:`rewind` has the messages under way sent again. This also happens if no acknowledgement comes for
    about as long as a slow link would take (then twice, four times, ... as long).

    Parameters
    ----------
    start : int
        Highest number assigned and acknowledged before.
    window_bytes : int
        Limit of the bytes under way (but always one message).
    """

    def __init__(self, start: int = 0, window_bytes: int = WINDOW_BYTES) -> None:
        self._kept: deque[tuple[Numbered, list[bytes]]] = deque()
        self._window = window_bytes
        self._under_way = self._bytes = 0  # messages at the head of `_kept` that have been sent, and their size
        self._progress_ns: int | None = None  # time at which messages were first seen under way since the last acknowledgement
        self._tries = 0
        self._gap = -1  # number acknowledged when the last gap was reported
        self.last = start  # highest number assigned
        self.acknowledged = start  # highest number acknowledged

    def add(self, message: NumberedT, pixels: Any = None) -> NumberedT:
        """Number a message and keep it for sending; return it with its number."""
        numbered = dataclasses.replace(message, sequence=self.last + 1)
        self._kept.append((numbered, encode(numbered, pixels)))
        self.last += 1
        return numbered

    def due(self, now_ns: int) -> list[bytes] | None:
        """Return the frames of the next message to send now; None if no more may be under way."""
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
        """Record that the frames from `due` have been sent."""
        self._bytes += _size(self._kept[self._under_way][1])
        self._under_way += 1

    def acknowledge(self, received: int) -> list[Numbered]:
        """Drop everything up to number `received`; return the dropped messages, oldest first."""
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
        """Return the messages that are not acknowledged yet, oldest first."""
        return [message for message, _ in self._kept]

    def rewind(self) -> None:
        """Send every unacknowledged message again."""
        self._under_way, self._bytes, self._progress_ns = 0, 0, None

    def gap(self) -> None:
        """As `rewind`, but only once for each gap: the receiver reports a gap with every message that follows it."""
        if self._gap != self.acknowledged:
            self._gap = self.acknowledged
            self.rewind()

    def _patience_ns(self) -> int:
        patience = PATIENCE_NS + round(self._bytes / SLOWEST_BYTES_S * 1e9)
        return max(patience, min(patience << min(self._tries, 16), LONGEST_NS))


def _size(frames: list[bytes]) -> int:
    return sum(map(len, frames))


class Inbox:
    """Receives numbered messages of one sender once and in order; `start`: highest number received before."""

    def __init__(self, start: int = 0) -> None:
        self.received = start  # highest number received
        self.missing = False  # the last message was not the next

    def take(self, message: Numbered) -> bool:
        """Return whether this message is the next one; if not, it is a repetition or out of order, and must be ignored."""
        fresh = message.sequence == self.received + 1
        self.missing = message.sequence > self.received + 1
        if fresh:
            self.received += 1
        return fresh
