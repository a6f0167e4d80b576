"""Identity of a process: its id and its start time in one word.

A process id alone is reused; with the start time (clock ticks since boot, field 22 of ``/proc/PID/stat``) it names one process of
this boot, and shared memory does not outlive a boot. Ids have at most 22 bits on Linux, so both fit into one 64-bit word that can be
claimed by one atomic instruction: there is no moment at which half an identity is visible.
"""

from __future__ import annotations

import os
from functools import lru_cache

from rtevo.shm.errors import RingUnsupported

__all__ = ["START_MASK", "alive", "identity", "namespace", "own_identity", "pid_of"]

START_BITS = 42
START_MASK = (1 << START_BITS) - 1


def identity(pid: int, start: int) -> int:
    """Return the word that names a process: id in the upper 22 bits, start time (clock ticks since boot) in the lower 42."""
    return pid << START_BITS | (start & START_MASK)


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """Return state letter and start time (clock ticks since boot) of a process; None if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the command's name, in brackets, may hold anything
    state, threads = fields[0].decode(), int(fields[17])
    if state == "Z" and threads > 1:
        state = "R"  # the main thread has ended first: others may run for some more microseconds
    return state, int(fields[19])


@lru_cache(maxsize=1)
def _identity_of(pid: int) -> int:
    found = _state_and_start(pid)
    if found is None:
        raise RingUnsupported(f"rings need /proc to tell live processes from dead ones: /proc/{pid}/stat does not exist")
    return identity(pid, found[1])


def own_identity() -> int:
    """Return the word that names this process."""
    return _identity_of(os.getpid())


def pid_of(who: int) -> int:
    """Return the process id in an identity; 0: none."""
    return who >> START_BITS


def alive(who: int) -> bool:
    """Return whether the process of an identity still runs; a zombie does not."""
    pid = pid_of(who)
    if pid == 0:
        return False
    found = _state_and_start(pid)
    if found is None:
        return _hidden(pid)
    state, start = found
    return state not in "ZXx" and (start & START_MASK) == who & START_MASK


def _hidden(pid: int) -> bool:
    """Return whether a process without a /proc entry exists (another user's, if /proc is mounted with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return _state_and_start(pid) is not None


def namespace() -> int:
    """Return the number of this process's PID namespace; ids of another namespace (a container's) mean nothing here."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        raise RingUnsupported(
            "rings need Linux: /proc/self/ns/pid does not exist. For example, macOS has no sem_timedwait and no list of "
            "shared-memory segments, which are needed to notice dead peers and to remove their rings"
        ) from error
