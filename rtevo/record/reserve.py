"""Space on the disk reserved for a session's end: on a full disk, it takes the log's last record and the tables."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ["release", "reserve"]

NAME = ".reserve"
BYTES = 8 << 20  # more than the tables of the longest session
SHARE = 10  # at most this fraction (1 / SHARE) of the free space


def reserve(out: Path) -> None:
    """Reserve space for a session's end; without enough space there is no reserve.

    Parameters
    ----------
    out : Path
        The session's folder.
    """
    with suppress(OSError), (out / NAME).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, min(BYTES, shutil.disk_usage(out).free // SHARE)))


def release(out: Path) -> None:
    """Release the space; may be repeated."""
    with suppress(OSError):
        (out / NAME).unlink(missing_ok=True)
