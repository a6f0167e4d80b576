"""The names in a watched folder and those within it: which are new, and which now stand for another file.

Looking at the folder again and again is the truth here; file events would only be hints, and do not come from network shares.
A folder is listed again when its modification time changed, and now and then also when it did not, as shares report it late.
Folders in which something came last are hot: they are looked at in every poll, the others in turn, as a change in a folder shows in
none above it. An overwrite in place changes no folder's time: files that are known are asked for their size and modification time in
turn, those that came last in every poll.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from rtevo.ingest.turns import Turns
from rtevo.outside import shown

__all__ = ["Listing", "Signature", "signature"]

Signature = tuple[int, int]
"""Size in bytes and modification time in ns: a file of the same name with another is another file, or not the same any more."""

MAX_DEPTH = 8  # of folders within the watched one
IDLE_SHARE = 0.005  # of the time may be spent in listing folders that look unchanged
RELIST_S = 30.0  # longest between two listings of a folder
HOT = 64  # folders that are looked at in every poll
RACY_NS = 12_000_000  # file systems stamp with the kernel's tick (up to 10 ms): a listing may miss what came within one
LOST_LOOK_S = 0.25  # between looks for a folder in the watched one that went away
FRESH = 32  # files that were taken last, looked at in every poll
FRESH_S = 0.0005  # longest for them
A_ROUND_S = 60.0  # a longer one is named
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
        self._hot: dict[str, None] = {}  # the hottest last
        self._all = False
        self._quiet = Turns(lambda: self._folders)
        self._files = Turns(lambda: self.known)
        self._overwritten = ""  # folder in which a known file changed last: others in it may follow
        self._there = Turns(self._in_overwritten)
        self._fresh: deque[str] = deque(maxlen=FRESH)
        self._slow_named = False

    def new(self, now_s: float) -> list[str]:
        """Paths of the files that are new, or whose name now stands for another file, in the order of their names."""
        found: list[str] = []
        stirred: list[str] = []
        hot = [self._root, *(path for path in reversed(self._hot) if path != self._root)]
        for path in hot if not self._all else list(self._folders):
            self._look(path, now_s, found, stirred)
        for path in self._quiet.go() if not self._all else ():
            if path not in self._hot and path != self._root:
                self._look(path, now_s, found, stirred)
        self._warm(stirred)
        self._all = False
        return sorted(found)

    def changed(self) -> list[str]:
        """Some of the known files that are no longer as they were: of the last ones that were taken, and of the others in turn."""
        begin_s = time.perf_counter()
        found: list[str] = []
        for path in reversed(self._fresh):
            self._compare(path, found)
            if time.perf_counter() - begin_s > FRESH_S:
                break
        for turns in (self._there, self._files):
            for path in turns.go():
                self._compare(path, found)
        if found:
            self._overwritten = os.path.dirname(found[-1])
        if max(self._files.round_s, self._quiet.round_s) > A_ROUND_S and not self._slow_named:
            self._slow_named = True
            self._problems.append(
                f"{self._root}: {len(self.known)} files in {len(self._folders)} folders are too many to read within "
                f"{A_ROUND_S:g} s: files in folders that were quiet for long are seen late (watch a folder with fewer files)"
            )
        return list(dict.fromkeys(found))

    def _compare(self, path: str, found: list[str]) -> None:
        if path in self.known and (now := signature(path)) is not None and now != self.known[path]:
            found.append(path)

    def _in_overwritten(self) -> list[str]:
        folder = self._folders.get(self._overwritten)
        return [os.path.join(self._overwritten, name) for name in folder.names] if folder else []

    def know(self, path: str, as_it_is: Signature) -> None:
        """Record a file that was used, or is of no further use."""
        if path not in self.known:
            self._fresh.append(path)
        self.known[path] = as_it_is

    def expect(self, path: str, as_it_is: Signature) -> None:
        """Record the state of a known file that is of no use now: it is not reported as changed again until it is."""
        if path in self.known:
            self.known[path] = as_it_is

    def forget(self, path: str) -> None:
        """A file went away before it was taken: under another name it is another file."""
        folder, name = os.path.split(path)
        self.known.pop(path, None)
        if folder in self._folders:
            self._folders[folder].names.pop(name, None)

    def again(self) -> None:
        """List everything at the next look, whether it looks changed or not."""
        self._all = True
        for folder in self._folders.values():
            folder.modified_ns = -1

    def _look(self, path: str, now_s: float, found: list[str], stirred: list[str]) -> None:
        """Look at a folder and at those that are found in it; adds their new files to `found`, and which of them changed to `stirred`."""
        todo = [path]
        for each in todo:  # grows by the folders that are found in these
            folder = self._folders.get(each)
            if folder is None or now_s < folder.retry_s:
                continue
            try:
                todo += self._list(each, folder, now_s, found, stirred)
            except OSError as error:
                self._lost(each, folder, error, now_s)
                continue
            if folder.depth == 0 and self._reachable is not True:
                if self._reachable is False:
                    self._problems.append(f"{each}: is accessible again")
                self._reachable = True

    def _warm(self, stirred: list[str]) -> None:
        """Make folders hot in which something came, and those that they lie in; of many the ones that were written to last."""
        for path in sorted(stirred, key=lambda path: self._folders[path].modified_ns)[-HOT:]:
            within = [path]
            while within[-1] != self._root and (above := os.path.dirname(within[-1])) in self._folders:
                within.append(above)
            for each in reversed(within):
                self._hot.pop(each, None)
                self._hot[each] = None
        for path in list(self._hot)[: max(0, len(self._hot) - HOT)]:
            del self._hot[path]

    def _lost(self, path: str, folder: _Folder, error: OSError, now_s: float) -> None:
        """A folder that cannot be listed: one that is not there yet, was removed, or lies on a share that went away."""
        folder.modified_ns = -1
        if folder.depth > 0:
            folder.retry_s = now_s + LOST_LOOK_S
        elif self._reachable:
            self._reachable = False
            self._problems.append(f"{path}: is not accessible ({error.strerror}); waiting for it")

    def _list(self, path: str, folder: _Folder, now_s: float, found: list[str], stirred: list[str]) -> list[str]:
        """Add a folder's files that were not there at the last look to `found`; returns the folders in it that were not.

        One whose modification time has changed is added to `stirred`.
        """
        status = os.stat(path)
        folder.place = (status.st_dev, status.st_ino)
        modified_ns = status.st_mtime_ns
        if modified_ns == folder.modified_ns and not folder.racy and now_s < folder.next_s:
            return []
        folder.racy = abs(time.time_ns() - modified_ns) < RACY_NS
        if modified_ns != folder.modified_ns:
            stirred.append(path)
        folder.modified_ns = modified_ns
        begin = time.perf_counter()
        known, there = folder.names, set()
        new: list[os.DirEntry[str]] = []
        with os.scandir(path) as entries:
            for entry in entries:
                there.add(entry.name)
                if known.get(entry.name) not in (entry.inode(), -entry.inode(), 0):
                    new.append(entry)
        folder.next_s = now_s + min(RELIST_S, (time.perf_counter() - begin) * len(self._folders) / IDLE_SHARE)
        for name in [name for name in known if name not in there]:  # a name that comes back is another file's
            inner_path = os.path.join(path, name)
            if known.pop(name) == 0 and inner_path in self._folders:
                del self._folders[inner_path]
                if inner_path in self._hot:
                    del self._hot[inner_path]
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
        """Return why a name is skipped: it is no file, or a link out of the watched folder; empty if it is read."""
        if not entry.is_symlink():
            return "" if entry.is_file() or entry.is_dir() else "neither a file nor a folder; skipped"
        if not os.path.exists(entry.path):  # it may lead somewhere later
            return ""
        target, root = os.path.realpath(entry.path), os.path.realpath(self._root)
        if self._confined and target != root and not target.startswith(root.rstrip("/") + "/"):
            return f"a link out of the watched folder ({shown(target)}); not followed"
        return "" if os.path.isfile(target) or os.path.isdir(target) else "a link to neither a file nor a folder; skipped"

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
