"""Other programs come second while a session runs, and Python does not tidy up in the middle of it."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

__all__ = ["raise_priority", "undisturbed"]

SWITCH_S = 0.001  # how long one thread keeps Python's lock from others that stamp pulses and answer the support computer
NICE = -10
FIFO = 10  # of 1 to 99; PsychoPy's own advice is to allow up to 20 (rtprio in /etc/security/limits.d)
HIGH_PRIORITY_CLASS, TIME_CRITICAL = 0x80, 15  # Windows: of a process, of a thread


def raise_priority(*, real_time: bool = False) -> str:
    """Have this process come before others, as far as its user may; gives how, empty where that is not allowed.

    Parameters
    ----------
    real_time : bool
        Before everything: only for one that hardly computes.
    """
    if os.name == "nt":
        import ctypes

        kernel = getattr(ctypes, "windll").kernel32  # noqa: B009  (not there where types are checked)
        high = kernel.SetPriorityClass(kernel.GetCurrentProcess(), HIGH_PRIORITY_CLASS)
        if real_time:
            kernel.SetThreadPriority(kernel.GetCurrentThread(), TIME_CRITICAL)
        return "high priority" if high else ""
    if real_time and hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO))
            return "real-time priority"
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        return f"nice {NICE}"
    return ""


@contextlib.contextmanager
def undisturbed() -> Iterator[str]:
    """Raise this process's priority, and leave tidying up to whoever has time for it (`gc.collect`); gives what `raise_priority` does.

    The priority stays afterwards: not every system lets it be lowered and raised again.
    """
    before, enabled = sys.getswitchinterval(), gc.isenabled()
    how = raise_priority()
    gc.collect()
    gc.freeze()  # what is there now is not looked at again
    gc.disable()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield how
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
        if enabled:
            gc.enable()
