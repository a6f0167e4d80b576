"""Room on the disk that is kept for a session's end: where the disk is full, the log's last record and the tables go there."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ["release", "reserve"]

NAME = ".reserve"
BYTES = 8 << 20  # more than the tables of the longest session
SHARE = 10  # of what is free, one part in so many at most


def reserve(out: Path) -> None:
    """Take room for a session's end; where there is none, the session goes without.

    Parameters
    ----------
    out : Path
        The session's folder.
    """
    with suppress(OSError), (out / NAME).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, min(BYTES, shutil.disk_usage(out).free // SHARE)))


def release(out: Path) -> None:
    """Let go of it; harmless when repeated."""
    with suppress(OSError):
        (out / NAME).unlink(missing_ok=True)
