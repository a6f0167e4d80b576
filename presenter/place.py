"""Name of this computer and process, and whether another process still runs here."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import threading
import uuid
from pathlib import Path

__all__ = ["Place"]

_COUNT = 1000  # of presenters in one process (tests and rehearsals have several)
_STILL_ACTIVE, _QUERY = 259, 0x1000  # Windows
_lock = threading.Lock()
_numbers = itertools.count()
_open: set[int] = set()


def _computer() -> str:
    """Return this computer's name: its host name, and its network address if it has a real one."""
    node = uuid.getnode()
    random = node >> 40 & 1  # set by uuid if it found none
    return f"{platform.node() or 'computer'}/{'' if random else format(node, '012x')}"


class Place:
    """This computer, and one presenter on it.

    Parameters
    ----------
    name : str, optional
        Another name for this computer (tests).

    Attributes
    ----------
    name : str
        Name of the computer; the part before the "/" is for people.
    process : int
        Number of this presenter, unique on the computer.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = _computer() if name is None else name
        with _lock:
            self.process = os.getpid() * _COUNT + next(_numbers) % _COUNT
            _open.add(self.process)

    @staticmethod
    def has_ended(process: int) -> bool:
        """Return whether a presenter of this computer has certainly ended."""
        pid = process // _COUNT
        if pid == os.getpid():
            with _lock:
                return process not in _open
        return pid > 0 and not _runs(pid)

    def close(self) -> None:
        """Record that this presenter has ended."""
        with _lock:
            _open.discard(self.process)


def _runs(pid: int) -> bool:
    """Return whether a process runs; True if that cannot be determined."""
    if os.name == "nt":
        import ctypes

        kernel = getattr(ctypes, "windll").kernel32  # noqa: B009  (not there where types are checked)
        handle = kernel.OpenProcess(_QUERY, False, pid)
        if not handle:
            return bool(kernel.GetLastError() == 5)  # it exists, but belongs to another user
        code = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return not known or code.value == _STILL_ACTIVE
    with contextlib.suppress(OSError, IndexError):  # Linux: a killed process stays until its parent has waited for it
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists, but belongs to another user
        return True
    return True
