"""Priority over other programs while a session runs, and no garbage collection in the middle of it."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

__all__ = ["raise_priority", "undisturbed"]

SWITCH_S = 0.001  # longest time that one thread keeps Python's lock from the threads that stamp pulses and answer the support computer
NICE = -10
FIFO = 10  # of 1 to 99; PsychoPy's own advice is to allow up to 20 (rtprio in /etc/security/limits.d)
HIGH_PRIORITY_CLASS, TIME_CRITICAL = 0x80, 15  # Windows: of a process, of a thread


def raise_priority(*, real_time: bool = False) -> str:
    """Raise this process's priority, as far as its user may; return how, empty if that is not permitted.

    Parameters
    ----------
    real_time : bool
        Above all other processes: only for a process that computes little.
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
    """Raise this process's priority, and leave garbage collection to code with time for it; return as `raise_priority`.

    The priority stays afterwards: not every system permits lowering and raising it again.
    """
    before, enabled = sys.getswitchinterval(), gc.isenabled()
    how = raise_priority()
    gc.collect()
    gc.freeze()  # existing objects are not looked at again
    gc.disable()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield how
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
        if enabled:
            gc.enable()
