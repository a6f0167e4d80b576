"""When a file is whole: not only as long as its header says, but with all that its writer puts into it.

A copy program may set a file's length first and fill it later, in any number of writes. What is not written yet reads as zeros, and
polling sees no close. So a file must have stayed as it is (size and modification time) for a settling time, which grows on a share
where files are seen to change after they looked whole; and one that ends in more zeros than the finished files of its series is looked at
for longer. No file is refused for that: many a picture ends in zeros, above all mosaics, whose last tiles are empty.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.ingest.dicom import DicomFile

__all__ = ["Whole", "closed_ns", "one_by_one", "zeros_at_end"]

SUSPECT_S = 1.0  # a file with a suspect end must have stayed as it is for so long; at most so long is any file looked at
LEARNT = 2.0  # times the longest pause that was seen within a file: the settling time from then on
OLD_NS = 60_000_000_000  # a file that was last written so long ago is finished, also where the share's clock is not this computer's
SLACK = 512  # bytes of zeros that a picture may have more at its end than those before
RECENT_NS = 10_000_000_000  # a modification time up to this long ago is taken for the moment at which the file was closed
BLOCK = 4096  # bytes: fewer are written at once
USUAL = 3  # files that end in so many zeros, and were taken in doubt, make that usual


class Whole:
    """Says how long a file must have stayed as it is to be whole.

    Parameters
    ----------
    settle_s : float or None
        Shortest settling time of every file, s; 0: only files whose end is suspect have one. None: files appear whole (renamed into
        place, or handed over), none is waited for.

    Attributes
    ----------
    settle_s : float or None
        As far as it is known by now.
    """

    def __init__(self, settle_s: float | None) -> None:
        self.settle_s = settle_s
        self._tails: dict[tuple[object, ...], int] = {}  # longest end of zeros of finished files
        self._doubted: dict[tuple[object, ...], list[int]] = {}  # those of files that were taken in doubt

    def wait_s(self, file: DicomFile, modified_ns: int) -> float:
        """How long the file must have stayed as it is, s."""
        if self.settle_s is None or time.time_ns() - modified_ns > OLD_NS:
            return 0.0
        return max(self.settle_s, SUSPECT_S) if self.suspect(file) else self.settle_s

    def suspect(self, file: DicomFile) -> bool:
        """Whether a file ends in more zeros than the finished ones of its kind."""
        return file.stored >= BLOCK and file.tail > self._tails.get(_kind(file), 0) + SLACK

    def doubt(self, file: DicomFile, modified_ns: int) -> str:
        """Return why a file that is used now may not be whole; empty if nothing suggests that, as for the first of its kind."""
        if _kind(file) not in self._tails or not self.suspect(file) or self.wait_s(file, modified_ns) == 0:
            return ""
        usual = self._tails[_kind(file)]
        return f"ends in {file.tail} bytes of zeros, others like it in at most {usual}: the file may be incomplete; used as it is"

    def finished(self, file: DicomFile, doubted: bool = False) -> None:
        """Record how a used file ends, in doubt or not: an ending that was never completed does not become usual."""
        kind, tail = _kind(file), file.tail
        if doubted:
            before = self._doubted.setdefault(kind, [])
            before.append(tail)
            if len(before) < USUAL:
                return
            tail = min(before)
            before.remove(tail)
        self._tails[kind] = max(tail, self._tails.get(kind, 0))

    def changed(self, after_s: float) -> None:
        """Record that a file changed so long after it had looked whole, s."""
        if self.settle_s is not None:
            self.settle_s = min(SUSPECT_S, max(self.settle_s, LEARNT * after_s))


def _kind(file: DicomFile) -> tuple[object, ...]:
    """What files have in common that end in about as many zeros: the series, and the place of a single slice."""
    part = file.parts[0] if file.parts else None
    place = tuple(np.round(part.positions[0], 1).tolist()) if part is not None and len(part.frames) == 1 and part.grid is None else ()
    return file.series.uid, file.picture, place


def zeros_at_end(stored: NDArray[Any] | bytes | memoryview) -> int:
    """Number of bytes that are zero at the end of stored pixels; of an array, in the order in which a NIfTI file has them."""
    found = stored.tobytes("F") if isinstance(stored, np.ndarray) else bytes(stored)
    return len(found) - len(found.rstrip(b"\0"))


def one_by_one(file: DicomFile) -> list[DicomFile]:
    """Return a file for each volume of a NIfTI file, with what its pixels end in."""
    found = []
    for part in file.parts:
        stored = 0 if part.pixels is None else part.pixels.nbytes
        tail = 0 if part.pixels is None else zeros_at_end(part.pixels)
        found.append(replace(file, parts=(part,), tail=tail, stored=stored, checksum=tail))
    return found


def closed_ns(modified_ns: int) -> int:
    """When a file that is whole was closed by its writer, on the monotonic clock, given when it was modified, on the wall clock."""
    now_ns = time.monotonic_ns()
    age_ns = time.time_ns() - modified_ns
    return now_ns - age_ns if 0 <= age_ns <= RECENT_NS else now_ns
