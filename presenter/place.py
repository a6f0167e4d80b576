"""Which computer this is, and whether another presenter of the same session runs on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
import uuid
from pathlib import Path
from typing import IO

__all__ = ["Place"]


def _computer() -> str:
    """Name this computer: its host name, and its network address where it has a real one."""
    node = uuid.getnode()
    random = node >> 40 & 1  # uuid's way to say that it found none
    return f"{platform.node() or 'computer'}/{'' if random else format(node, '012x')}"


class Place:
    """This computer, and a locked file that one presenter for each endpoint can hold: whoever holds it knows that the one before has ended.

    Parameters
    ----------
    endpoint : str
        Where the bridge listens.
    name : str, optional
        Another name for this computer (tests).
    """

    def __init__(self, endpoint: str, name: str | None = None) -> None:
        self.name = _computer() if name is None else name
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
        key = hashlib.sha256(f"{self.name} {endpoint} {user}".encode()).hexdigest()[:16]
        self._path = Path(tempfile.gettempdir()) / f"rtevo-presenter-{key}.lock"
        self._file: IO[bytes] | None = None

    @property
    def alone(self) -> bool:
        """Whether no other presenter for the endpoint runs here; asks again until that is so."""
        if self._file is None:
            with contextlib.suppress(OSError):
                self._file = self._lock()
        return self._file is not None

    def _lock(self) -> IO[bytes] | None:
        file = self._path.open("ab")
        try:
            _lock_file(file)
            if os.fstat(file.fileno()).st_ino == self._path.stat().st_ino:
                return file
        except OSError:  # somebody else has it, or has just removed it
            pass
        file.close()
        return None

    def close(self) -> None:
        """Let another one be alone."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # an open file cannot be removed everywhere
                self._path.unlink()
            self._file.close()
            self._file = None


def _lock_file(file: IO[bytes]) -> None:
    """Lock a file until it is closed or this process ends; OSError where another has."""
    if os.name == "nt":
        import msvcrt

        getattr(msvcrt, "locking")(file.fileno(), getattr(msvcrt, "LK_NBLCK"), 1)  # noqa: B009  (not there where types are checked)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
