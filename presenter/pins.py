"""A process that watches one pin of a parallel port and does nothing else: ``python -m presenter.pins ADDRESS PIN``.

A thread in the drawing process would have to wait for Python's lock for longer than a pulse of 1 ms. Records on the standard output, 16
bytes each: `PULSE` and its time; every half second `GAP` and the longest time between two looks, ns; `TIME` and this process's clock,
whenever a byte comes in.
"""

from __future__ import annotations

import contextlib
import gc
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from presenter.priority import raise_priority

__all__ = ["GAP", "PULSE", "RECORD", "TIME", "watch"]

RECORD = struct.Struct("<qq")  # kind, value
GAP, PULSE, TIME = 0, 1, 2
PAUSE_S = 0.0001  # between two looks, if the system can sleep so briefly
TOLD_NS = 500_000_000


def watch(look: Callable[[], bool], out: BinaryIO, asked: threading.Event, pause_s: float = PAUSE_S) -> None:
    """Watch a pin until the reader has gone.

    Parameters
    ----------
    look : callable
        Returns whether the pin is high.
    out : binary file
        Receives the records.
    asked : Event
        Set when the reader asks for the time.
    pause_s : float
        Between two looks, s; 0: none.
    """

    def tell(kind: int, value: int) -> None:
        out.write(RECORD.pack(kind, value))
        out.flush()

    high, last, longest = look(), time.perf_counter_ns(), 0
    told = last - TOLD_NS
    while True:
        before, high = high, look()
        now = time.perf_counter_ns()
        longest, last = max(longest, now - last), now
        if high and not before:
            tell(PULSE, now)
        if now - told > TOLD_NS:
            tell(GAP, longest)
            longest, told = 0, now
        if asked.is_set():
            asked.clear()
            tell(TIME, time.perf_counter_ns())
        if pause_s:
            time.sleep(pause_s)


def _listen(asked: threading.Event) -> None:
    while sys.stdin.buffer.read(1):
        asked.set()
    os._exit(0)  # the parent has gone


def _first() -> None:
    """Raise this process above all others, as far as this user may."""
    gc.disable()
    raise_priority(real_time=True)


def main(address: str, pin: int) -> None:
    """Open the port and watch."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not reach the records
    from psychopy import parallel

    port = parallel.ParallelPort(int(address, 16) if address.lower().startswith("0x") else address)
    bool(port.readPin(pin))  # raises if it cannot be read
    asked = threading.Event()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    _first()
    short_sleeps = os.name != "nt" or sys.version_info >= (3, 11)  # elsewhere a sleep lasts 1 to 15.6 ms: look without sleeping
    with contextlib.suppress(BrokenPipeError):
        watch(lambda: bool(port.readPin(pin)), out, asked, PAUSE_S if short_sleeps else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
