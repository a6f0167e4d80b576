"""The signals that end a session: Ctrl-C, and what `timeout`, systemd and a computer that shuts down send.

All of them mean the same, from the command's first moment to its last table: end in good order. They reach every process of a session
at once where they are sent to the group, so that its processes are started with them held back (:func:`start`) and then ignore them
(:func:`ignore`): they are the command's own. `timeout` sends its signal twice, to the command and to the group, and systemd may send two
kinds: what follows within half a second is the same wish, and a later one is a second, more urgent one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any

__all__ = ["STOP_SIGNALS", "Stops", "ignore", "start"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_S = 0.5  # signals that follow one another so quickly are one wish: nobody presses Ctrl-C twice in that time


class Stops:
    """While it is entered, each of the signals interrupts like Ctrl-C; or only counts and calls :attr:`listener`, where one is set.

    Parameters
    ----------
    leaving : bool
        The process ends once it is left: the signals are ignored from then on, so that they cannot change the exit status.

    Attributes
    ----------
    count : int
        How often somebody has wished so.
    listener : callable or None
        Called instead of raising KeyboardInterrupt.
    """

    def __init__(self, leaving: bool = False) -> None:
        self.leaving = leaving
        self.count = 0
        self.listener: Callable[[], None] | None = None
        self._last_s = -math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        self._before = {number: signal.signal(number, self.take) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.leaving else handler)

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal.

        Raises
        ------
        KeyboardInterrupt
            There is no listener.
        """
        now = time.monotonic()
        same, self._last_s = now - self._last_s < SAME_S, now
        if same:
            return
        self.count += 1
        if self.listener is None:
            raise KeyboardInterrupt
        self.listener()

    @contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` instead of interrupting."""
        before, self.listener = self.listener, listener
        try:
            yield
        finally:
            self.listener = before


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold the signals back: a process that begins in here begins with them held back, and nothing that is sent meanwhile is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(process: BaseProcess) -> None:
    """Start a process with the signals held back, and so the server that it is forked from: without that all would be taken for dead."""
    with _held_back():
        resource_tracker.ensure_running()  # lets the signals through when it begins, so it comes before
    with _held_back():
        process.start()


def ignore() -> None:
    """Ignore the signals, in a process that began with them held back."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
