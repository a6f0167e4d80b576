"""The names in a watched folder and those within it: which are new, and which now stand for another file.

Looking at the folder again and again is the truth here; file events would only be hints, and do not come from network shares.
A folder is listed again when its modification time changed, and now and then also when it did not, as shares report it late.
An overwrite in place changes no folder's time: files that are known are asked for their size and modification time in turn.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rtevo.outside import shown

__all__ = ["Listing", "Signature", "signature"]

Signature = tuple[int, int]
"""Size in bytes and modification time in ns: a file of the same name with another is another file, or not the same any more."""

MAX_DEPTH = 8  # of folders within the watched one
IDLE_SHARE = 0.005  # of the time may be spent in listing folders that look unchanged, and as much in files that were given up
RACY_NS = 12_000_000  # file systems stamp with the kernel's tick (up to 10 ms): a listing may miss what came within one
LOST_LOOK_S = 0.25  # between looks for a folder in the watched one that went away
TURN_S, TURN_SHARE = 0.0002, 0.1  # longest that known files are looked at in one go, and share of the time
FEWEST = 4  # of them are looked at in one go, however long that takes
FRESH = 32  # files that were taken last, looked at first
TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload")  # renamed by their writer once they are whole


@dataclass(eq=False)
class _Folder:
    """A listed folder; of each name the inode, 0 or its negative for what is not looked at."""

    depth: int
    names: dict[str, int] = field(default_factory=dict)
    modified_ns: int = -1
    racy: bool = True
    next_s: float = 0.0
    retry_s: float = -math.inf
    place: tuple[int, int] = (-1, -1)  # device and inode


class Listing:
    """Finds the files in a folder and those within it.

    Parameters
    ----------
    folder : Path
        The folder; it need not exist yet, and may go away for a while.
    problems : list of str
        Takes what went wrong, each once.
    confined : bool
        Whether links that lead out of the folder are named, and not followed.

    Attributes
    ----------
    known : dict of str to Signature
        Files that were taken, as they were then; the caller keeps it.
    """

    def __init__(self, folder: Path, problems: list[str], confined: bool = False) -> None:
        self.known: dict[str, Signature] = {}
        self._problems = problems
        self._root, self._confined = str(folder), confined
        self._folders: dict[str, _Folder] = {str(folder): _Folder(0)}
        self._reachable: bool | None = None
        self._turn: Iterator[str] = iter(())
        self._fresh: deque[str] = deque(maxlen=FRESH)
        self._next_turn_s = 0.0

    def new(self, now_s: float) -> list[str]:
        """Paths of the files that are new, or whose name now stands for another file, in the order of their names."""
        found: list[str] = []
        todo = list(self._folders)
        for path in todo:  # grows by the folders that are found in these
            folder = self._folders[path]
            if now_s < folder.retry_s:
                continue
            try:
                todo += self._list(path, folder, now_s, found)
            except OSError as error:
                self._lost(path, folder, error, now_s)
                continue
            if folder.depth == 0 and self._reachable is not True:
                if self._reachable is False:
                    self._problems.append(f"{path}: can be reached again")
                self._reachable = True
        return sorted(found)

    def changed(self) -> list[str]:
        """Some of the known files that are no longer as they were: the last ones that were taken, and others in turn."""
        begin = time.perf_counter()
        if begin < self._next_turn_s or not self.known:
            return []
        found, looked, after = [], 0, False
        turn = [*self._fresh]
        while looked < FEWEST or time.perf_counter() - begin < TURN_S:
            path = turn.pop() if turn else next(self._turn, None)
            if path is None:
                if after:
                    break
                after, self._turn = True, iter(list(self.known))
                continue
            looked += 1
            if path in self.known and (now := signature(path)) is not None and now != self.known[path]:
                found.append(path)
        self._next_turn_s = time.perf_counter() + (time.perf_counter() - begin) / TURN_SHARE
        return list(dict.fromkeys(found))

    def know(self, path: str, as_it_is: Signature) -> None:
        """Note a file that was taken, or is of no further use."""
        if path not in self.known:
            self._fresh.append(path)
        self.known[path] = as_it_is

    def forget(self, path: str) -> None:
        """A file went away before it was taken: under another name it is another file."""
        folder, name = os.path.split(path)
        self.known.pop(path, None)
        if folder in self._folders:
            self._folders[folder].names.pop(name, None)

    def again(self) -> None:
        """List everything at the next look, whether it looks changed or not."""
        for folder in self._folders.values():
            folder.modified_ns = -1

    def _lost(self, path: str, folder: _Folder, error: OSError, now_s: float) -> None:
        """A folder that cannot be listed: one that is not there yet, was removed, or lies on a share that went away."""
        folder.modified_ns = -1
        if folder.depth > 0:
            folder.retry_s = now_s + LOST_LOOK_S
        elif self._reachable:
            self._reachable = False
            self._problems.append(f"{path}: cannot be reached ({error.strerror}); waiting for it")

    def _list(self, path: str, folder: _Folder, now_s: float, found: list[str]) -> list[str]:
        """Add a folder's files that were not there at the last look to `found`; returns the folders in it that were not."""
        status = os.stat(path)
        folder.place = (status.st_dev, status.st_ino)
        modified_ns = status.st_mtime_ns
        if modified_ns == folder.modified_ns and not folder.racy and now_s < folder.next_s:
            return []
        folder.racy = abs(time.time_ns() - modified_ns) < RACY_NS
        folder.modified_ns = modified_ns
        begin = time.perf_counter()
        known, there = folder.names, set()
        new: list[os.DirEntry[str]] = []
        with os.scandir(path) as entries:
            for entry in entries:
                there.add(entry.name)
                if known.get(entry.name) not in (entry.inode(), -entry.inode(), 0):
                    new.append(entry)
        folder.next_s = now_s + (time.perf_counter() - begin) / IDLE_SHARE
        for name in [name for name in known if name not in there]:  # a name that comes back is another file's
            del known[name]
        inner = []
        for entry in new:
            if entry.name.startswith(".") or entry.name.lower().endswith(TEMPORARY):
                known[entry.name] = 0
            elif why := self._refused(entry):
                known[entry.name] = -entry.inode()
                self._problems.append(f"{shown(os.path.relpath(entry.path, self._root), None)}: {why}")
            elif entry.is_dir():
                if folder.depth < MAX_DEPTH and entry.path not in self._folders and not self._goes_round(entry):
                    self._folders[entry.path] = _Folder(folder.depth + 1)
                    inner.append(entry.path)
                known[entry.name] = 0
            else:
                known[entry.name] = entry.inode()
                if self.known.get(entry.path) is None or self.known[entry.path] != signature(entry.path):
                    found.append(entry.path)
        return inner

    def _refused(self, entry: os.DirEntry[str]) -> str:
        """Say why a name is not looked at: it stands for no file, or is a link out of the watched folder; empty where it is."""
        if not entry.is_symlink():
            return "" if entry.is_file() or entry.is_dir() else "neither a file nor a folder; not looked at"
        if not os.path.exists(entry.path):  # it may lead somewhere later
            return ""
        target, root = os.path.realpath(entry.path), os.path.realpath(self._root)
        if self._confined and target != root and not target.startswith(root.rstrip("/") + "/"):
            return f"a link out of the watched folder ({shown(target)}); not followed"
        return "" if os.path.isfile(target) or os.path.isdir(target) else "a link to neither a file nor a folder; not looked at"

    def _goes_round(self, entry: os.DirEntry[str]) -> bool:
        """Whether a link leads to a folder that is looked into already."""
        if not entry.is_symlink():
            return False
        status = entry.stat()
        return any(folder.place == (status.st_dev, status.st_ino) for folder in self._folders.values())


def signature(path: str) -> Signature | None:
    """Size and modification time of a file, None where it cannot be asked."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
