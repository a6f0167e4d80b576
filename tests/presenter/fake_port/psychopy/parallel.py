"""A parallel port whose pin is a byte of the file that the address names."""

from __future__ import annotations

import mmap
from pathlib import Path


class ParallelPort:
    def __init__(self, address: str) -> None:
        with Path(address).open("r+b") as file:
            self._levels = mmap.mmap(file.fileno(), 0)

    def readPin(self, pin: int) -> int:  # noqa: N802 (PsychoPy's name)
        return self._levels[pin]
