"""Looks at many things in turn: some at each go, in a bounded share of the time, all of them within half a minute where that suffices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Turns"]

T = TypeVar("T")
TURN_S, MOST_S = 0.0002, 0.004  # longest go; and where all are not looked at within a round otherwise
TURN_SHARE = 0.1  # of the time
ROUND_S = 30.0  # in which all are looked at
FEWEST = 4  # of them are looked at in one go, however long that takes


class Turns(Generic[T]):
    """Many things of which a few are looked at in each go.

    Parameters
    ----------
    things : callable
        Returns all of them as they are now, at the beginning of every round.

    Attributes
    ----------
    round_s : float
        How long the last round took, s; 0 before the first has ended.
    """

    def __init__(self, things: Callable[[], Iterable[T]]) -> None:
        self._things = things
        self._turn: Iterator[T] = iter(())
        self._count = 0
        self._next_s, self._last_s, self._began_s = 0.0, time.perf_counter(), time.perf_counter()
        self.round_s = 0.0

    def go(self) -> Iterator[T]:
        """Yield the things whose turn it is."""
        begin_s = now_s = time.perf_counter()
        if begin_s < self._next_s:
            return
        due = self._count * (begin_s - self._last_s) / ROUND_S
        looked, begun, self._last_s = 0, False, begin_s
        while looked < FEWEST or now_s - begin_s < TURN_S or (looked < due and now_s - begin_s < MOST_S):
            try:
                thing = next(self._turn)
            except StopIteration:
                if begun:
                    break
                begun = True
                self._begin(now_s)
                continue
            looked += 1
            yield thing
            now_s = time.perf_counter()
        self._next_s = now_s + (now_s - begin_s) / TURN_SHARE

    def _begin(self, now_s: float) -> None:
        """Begin a round."""
        if self._count:
            self.round_s = now_s - self._began_s
        things = list(self._things())
        self._turn, self._count, self._began_s = iter(things), len(things), now_s
