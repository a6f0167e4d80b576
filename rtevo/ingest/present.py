"""Files that were in a watched folder before the session: those that are read first, and those that are known by their listing alone.

A scanner's export folder may hold hundreds of thousands of them. What must be known of them is which series are not today's run. The
newest files show that, and the newest one of each folder. Of the others size and modification time are noted, so that a name which
later stands for another file is seen; and where a file comes of a series that is not known, its neighbours by name are read before
it is judged.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import time
from collections.abc import Callable, Iterator

from rtevo.ingest.dicom import DicomFile, read_dicom
from rtevo.ingest.listing import Signature
from rtevo.ingest.nifti import is_nifti, read_nifti

__all__ = ["Present", "by_folder"]

FEWEST = 200  # newest files that are read however long that takes
READ_S = 1.5  # in which more are read
NEIGHBOURS = 16  # read of a file's folder, by name, where its series is not known


def by_folder(files: dict[str, Signature]) -> list[str]:
    """Files, given with size and modification time, by folder, the one that was written to last first, and by name."""
    newest: dict[str, int] = {}
    for path, (_, modified_ns) in files.items():
        folder = os.path.dirname(path)
        newest[folder] = max(newest.get(folder, modified_ns), modified_ns)
    return sorted(files, key=lambda path: (-newest[os.path.dirname(path)], path))


def _newest_first(files: dict[str, Signature]) -> list[str]:
    """Files, given with size and modification time, in the order in which they are read: the newest, one of each folder, the others."""
    order = sorted(files, key=lambda path: (-files[path][1], path))
    one_each: dict[str, str] = {}
    for path in order[FEWEST:]:
        one_each.setdefault(os.path.dirname(path), path)
    return list(dict.fromkeys([*order[:FEWEST], *one_each.values(), *order]))


class Present:
    """What was there before the session, and was not read."""

    def __init__(self) -> None:
        self._unread: dict[str, list[str]] = {}  # by folder, in the order of their names
        self._asked: set[tuple[str, str]] = set()

    def read(self, files: dict[str, Signature], look: Callable[[str], object]) -> list[str]:
        """Read those that come first for as long as there is time; returns the others."""
        until_s = time.perf_counter() + READ_S
        order = _newest_first(files)
        for count, path in enumerate(order):
            if count >= FEWEST and time.perf_counter() > until_s:
                self._keep(order[count:])
                return order[count:]
            look(path)
        return []

    def neighbours(self, path: str, series: str) -> Iterator[DicomFile]:
        """Read unread files beside one of a series that is not known, the nearest by name; once for each series and folder."""
        folder = os.path.dirname(path)
        unread = self._unread.get(folder)
        if not unread or (folder, series) in self._asked:
            return
        self._asked.add((folder, series))
        at = bisect.bisect(unread, path)
        for other in unread[max(0, at - NEIGHBOURS // 2) : at + NEIGHBOURS // 2]:
            found = None
            with contextlib.suppress(Exception):  # whatever it does to its reader, it is of no use
                found = read_nifti(other, pixels=False).file if is_nifti(other) else read_dicom(other, pixels=False)
            if found is not None and other != path:
                yield found

    def _keep(self, paths: list[str]) -> None:
        for path in sorted(paths):
            self._unread.setdefault(os.path.dirname(path), []).append(path)
