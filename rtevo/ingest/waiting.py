"""What is noted of a watched folder's files: of those that are not whole or of no use, and of those that were taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from rtevo.ingest.dicom import DicomFile

__all__ = ["Taken", "Waiting"]


@dataclass(eq=False)
class Waiting:
    """A file that is not whole, or is of no use."""

    reason: str
    needed: int  # bytes; 0 where the header does not tell yet
    size: int  # -1: could not be read
    modified_ns: int
    grew_s: float
    dicom: bool = True  # as far as one can tell
    file: DicomFile | None = None
    whole_s: float = math.nan  # it has been as long as its header says, and as it is, since then
    due_s: float = math.inf  # it is whole if it stays as it is until then


class Taken(NamedTuple):
    """A file that was taken."""

    uid: str
    checksum: int
    at_s: float
