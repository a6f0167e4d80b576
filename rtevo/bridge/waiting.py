"""Presenters that wait while the session has another one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rtevo.wire import Hello

__all__ = ["Waiting", "name_of", "word_of"]

PATIENCE_NS = 3_000_000_000  # after this time without a hello a presenter no longer waits


def name_of(hello: Hello) -> str:
    """Return a presenter's name for people: its computer and display."""
    return f"{hello.place.partition('/')[0] or 'an unnamed computer'} ({hello.display})"


def word_of(place: str) -> int:
    """Return a number other than 0 for a computer's name, which a shared word can hold; 0 for no name."""
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "big") | 1 if place else 0


@dataclass
class _Other:
    """A waiting presenter: its number, its last hello and the hello's time."""

    number: int
    hello: Hello
    heard_ns: int


class Waiting:
    """The waiting presenters, in order of arrival."""

    def __init__(self) -> None:
        self._others: dict[bytes, _Other] = {}
        self._last = 0

    def hear(self, identity: bytes, hello: Hello, now_ns: int) -> bool:
        """Record a hello; return whether it is that presenter's first."""
        known = self._others.get(identity)
        if known is not None:
            known.hello, known.heard_ns = hello, now_ns
            return False
        self._last += 1
        self._others[identity] = _Other(self._last, hello, now_ns)
        return True

    def leave(self, identity: bytes) -> None:
        """Forget one."""
        self._others.pop(identity, None)

    def prune(self, now_ns: int) -> list[str]:
        """Forget presenters that have gone; return their names."""
        gone = [identity for identity, other in self._others.items() if now_ns - other.heard_ns > PATIENCE_NS]
        return [name_of(self._others.pop(identity).hello) for identity in gone]

    @property
    def first(self) -> tuple[int, str] | None:
        """Number and name of the presenter that has waited longest."""
        other = next(iter(self._others.values()), None)
        return None if other is None else (other.number, name_of(other.hello))

    def of(self, number: int) -> tuple[bytes, Hello] | None:
        """Return identity and last hello of the presenter with that number, if it still waits."""
        return next(((identity, other.hello) for identity, other in self._others.items() if other.number == number), None)
