"""The signals that end a session: Ctrl-C, and those of `timeout`, systemd and a shutdown.

All of them mean the same, from the command's first moment to its last table: end in good order. Signals sent to the process group reach
every process of a session at once; only the command may act on them. So its processes are started with the signals held back
(:func:`start`) and then ignore them (:func:`ignore`). `timeout` sends its signal twice, to the command and to the group, and systemd may
send two kinds: signals within half a second are one request, and a later signal is a second, more urgent request.
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
SAME_S = 0.5  # signals within this time are one request: nobody presses Ctrl-C twice so quickly


class Stops:
    """While entered, each signal interrupts like Ctrl-C; if :attr:`listener` is set, a signal is only counted and the listener called.

    Parameters
    ----------
    leaving : bool
        The process exits afterwards: from then on the signals are ignored, so that they cannot change the exit status.

    Attributes
    ----------
    count : int
        Number of requests to end.
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
        """Handle a signal.

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
    """Hold the signals back, also in processes started inside this context; no signal is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(process: BaseProcess) -> None:
    """Start a process, and the server that it is forked from, with the signals held back: a signal that killed the server would end all."""
    with _held_back():
        resource_tracker.ensure_running()  # it unblocks the signals when it starts, so it must start first
    with _held_back():
        process.start()


def ignore() -> None:
    """Ignore the signals, in a process that began with them held back."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
