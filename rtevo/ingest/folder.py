"""A watched folder: files as they arrive, whole or still being written, to the volumes of a run.

Which files there are, :mod:`rtevo.ingest.listing` finds; when one is whole, :mod:`rtevo.ingest.whole` says.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rtevo.errors import DicomError, NotDicomError
from rtevo.ingest.dicom import MAX_FILE, DicomFile, TruncatedError, read_dicom
from rtevo.ingest.gate import Gate
from rtevo.ingest.listing import Listing, Signature, signature
from rtevo.ingest.nifti import is_nifti, read_nifti
from rtevo.ingest.present import Present, by_folder
from rtevo.ingest.ranking import is_number
from rtevo.ingest.selection import Selection, Stream
from rtevo.ingest.turns import Turns
from rtevo.ingest.volume import Outcome, Volume
from rtevo.ingest.waiting import Taken, Waiting
from rtevo.ingest.whole import SUSPECT_S, Whole, closed_ns, one_by_one
from rtevo.outside import shown
from rtevo.progress import Progress

__all__ = ["FolderSource"]

BATCH_BYTES = 64 << 20  # read in one poll; the rest waits for the next, so that a large folder does not fill the memory
BATCH_FILES = 256  # likewise
OLD_FILES = 8  # of those that were there before, where they may be the run's
OPEN = 32  # NIfTI files that are asked in every poll whether volumes were added to them, the last ones; others are known files


class FolderSource:
    """Volumes of one run from a folder into which a scanner exports its DICOM files, or a script writes NIfTI files.

    A file counts when it is whole: as long as its header says, unchanged for `settle_s`, and for longer where it ends in more zeros than
    those before it. One that changes after it was taken is taken again, or named where its volume was passed on already. A name that
    stands for another file later (by size, modification time and SOP instance UID) is a new file. Copies of a file that came before (by
    SOP instance UID, or by times, numbers and pixels) are dropped and counted. Volumes are numbered by their headers. Names that begin
    with a dot or end like a temporary file's (``.tmp``, ``.part``, ...) are not looked at until they are renamed.

    Parameters
    ----------
    folder : path
        The folder, with all folders in it; it need not exist yet, and may go away for a while.
    series : str, optional
        Number, UID, or (part of) description or protocol name of the series; None takes the first that looks functional.
    patience_s : float
        How long a missing volume is waited for once a later one is whole.
    stall_s : float
        How long a file may stop growing before it is named as one that never completed.
    first : int or None
        Number that the headers give the run's first volume; None: the lowest that is found.
    clock_ns : callable
        Steady clock in ns, by which `patience_s` and `stall_s` are measured.
    pixels : bool
        Whether to decode pixels; False gives volumes without data.
    confirm : bool
        See :class:`rtevo.ingest.assembly.Assembler`.
    settle_s : float or None
        See :class:`rtevo.ingest.whole.Whole`.
    opened : callable, optional
        Returns the trigger's time on `clock_ns`, None before it: see :class:`rtevo.ingest.gate.Gate`. Without it nothing is held.
    replaceable : callable, optional
        Whether a doubtful series that was taken may still give way to a better one that begins, whose volumes then come from index 0.
    confined : bool
        Whether links that lead out of the folder are named, and not followed: it is written to by others.
    most_bytes : int
        Of a DICOM file: a larger one is named and not read.
    echoes : int
        So many echoes of each volume are waited for, and passed on together, (echoes, X, Y, Z); 1: the first one is the run.
    progress : Progress, optional
        Called before each file.

    Attributes
    ----------
    problems : list of str
        What went wrong, each once; `alarms` are those that somebody must act upon.
    duplicates : int
        Copies of files that came before.

    Notes
    -----
    ``Volume.closed_ns`` is ``time.monotonic_ns()`` at which the last of a volume's files was closed by its writer. It is taken from
    the file's modification time where that lies at most 10 s before the file was first seen whole, which holds where the writer's
    clock is this computer's; where it does not (a share whose server's clock differs, a copy that keeps old times), it is the moment
    at which the file was first seen whole.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        series: str | None = None,
        patience_s: float,
        stall_s: float = 30.0,
        first: int | None = 1,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        pixels: bool = True,
        confirm: bool = False,
        settle_s: float | None = 0.0,
        opened: Callable[[], int | None] | None = None,
        replaceable: Callable[[], bool] = lambda: False,
        confined: bool = False,
        most_bytes: int = MAX_FILE,
        echoes: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.problems: list[str] = []
        self.alarms: set[str] = set()
        self.duplicates = 0
        gate = Gate(opened) if opened else None
        self._selection = Selection(
            series, patience_s=patience_s, first=first, confirm=confirm, replaceable=replaceable, gate=gate, echoes=echoes
        )
        self._stall_s, self._clock_ns, self._pixels, self._most_bytes = stall_s, clock_ns, pixels, most_bytes
        self._listing, self._whole = Listing(self.folder, self.problems, confined), Whole(settle_s)
        self._taken: dict[str, Taken] = {}
        self._queue: deque[str] = deque()
        self._waiting: dict[str, Waiting] = {}  # not whole
        self._given_up: dict[str, Waiting] = {}  # named as of no use, and looked at in turn
        self._given_up_turns = Turns(lambda: self._given_up)
        self._old: deque[str] = deque()  # there before the session, and not looked at yet
        self._present = Present()
        self._volumes: dict[str, int] = {}  # taken from each NIfTI file so far
        self._open: dict[str, int] = {}  # size of the NIfTI files to which volumes may be added
        self._settled: set[str] = set()
        self._uids: dict[str, list[str]] = {}  # the files that hold an instance, copies included
        self._copies: list[tuple[str, DicomFile]] = []
        self._progress = progress or (lambda what, done, of: None)

    @property
    def seen(self) -> int:
        """Files that were looked at and settled: whole, or given up by name."""
        return len(self._settled)

    @property
    def pending(self) -> int:
        """Files not looked at or not whole yet, and volumes that are incomplete or held back until an earlier one came."""
        return len(self._queue) + len(self._waiting) + self._selection.echoes.held(self._selection.run or self.streams)

    @property
    def backlog(self) -> int:
        """Files that came and were not looked at yet, as there were too many for one poll."""
        return len(self._queue)

    @property
    def run(self) -> Stream | None:
        """The series that the volumes are taken from, None until it is known."""
        return self._selection.chosen

    @property
    def streams(self) -> list[Stream]:
        """Everything that was found, by series, component and echo."""
        return list(self._selection.streams.values())

    def poll(self) -> list[Volume]:
        """Look at the folder once, without waiting.

        Returns
        -------
        list of Volume
            Those that are ready now, in run order: a volume waits until all before it came or were declared missing; a gap is a
            Volume without data, flagged MISSING; one that comes after its gap is flagged LATE.
        """
        now_s = self._clock_ns() / 1e9
        self._queue.extend(path for path in (*self._listing.new(now_s), *self._listing.changed()) if path not in self._waiting)
        budget = BATCH_BYTES
        for queue, files in ((self._queue, BATCH_FILES), (self._old, OLD_FILES)):
            while queue and budget > 0 and files > 0:
                budget, files = budget - self._look(queue.popleft(), now_s), files - 1
        for path in list(self._waiting):
            self._look_again(path, now_s)
        self._look_for_more(now_s)
        for path in self._given_up_turns.go():
            if path in self._given_up:
                self._look_again(path, now_s)
        return self._advance(now_s)

    def finish(self) -> list[Volume]:
        """Treat the files so far as complete: return the rest of the volumes, with a gap for each missing one.

        Files that never completed are named in :attr:`problems`.
        """
        now_s, volumes = self._clock_ns() / 1e9, list[Volume]()
        self._listing.again()
        self._queue.extend(self._listing.new(now_s))
        self.problems += [f"{self.folder}: {len(self._old)} files from before the session were not read"] * bool(self._old)
        self._old.clear()
        self._look_for_more(now_s)
        while self._queue:
            self._look(self._queue.popleft(), now_s, final=True)
            volumes += self._advance(now_s)
        self._last_look(now_s)
        volumes += self._advance(now_s, final=True)
        if self.run is None and self._settled:
            self.problems.append(f"{self.folder}: {self.explain()}")
            self._selection.pass_over()  # nobody waits for their volumes
        return volumes

    def read_all(self, *, final: bool = True) -> None:
        """Read every file, without choosing a series or passing on volumes; if `final`, no more files will come."""
        now_s = self._clock_ns() / 1e9
        self._listing.again()
        self._queue.extend(self._listing.new(now_s))
        while self._queue:
            self._look(self._queue.popleft(), now_s, final=True)
        if final:
            self._last_look(now_s)

    def settle(self) -> Stream | None:
        """Choose the run's series for good from what was found; None where nothing fits (:meth:`explain` says why)."""
        self._selection.settle(self._clock_ns() / 1e9, final=True)
        self.problems += self._selection.problems
        self._selection.problems.clear()
        return self.run

    @property
    def told(self) -> str:
        """Which series the volumes are taken from, and why; empty until it is known."""
        return self._selection.told()

    @property
    def before_trigger(self) -> int:
        """Volumes that are held until there is a trigger."""
        return self._selection.before_trigger

    @property
    def doubtful(self) -> bool:
        """Whether the series that the volumes are taken from may still give way to a better one."""
        return self._selection.doubtful

    @property
    def tr_s(self) -> float | None:
        """Repetition time of that series in seconds by its headers, or by its volumes' times where those contradict them."""
        return self.run.assembler.tr_s if self.run else None

    def sidecar(self, volume: Volume) -> dict[str, Any]:
        """What the headers say of the run that a volume is of; see :meth:`rtevo.ingest.header.SeriesHeader.sidecar`."""
        return self._selection.echoes.sidecar(self._selection.run, volume)

    def pass_over_present(self, known: Iterable[str] = ()) -> str:
        """Leave out the series that are there already, and those `known` by UID, unless one is asked for by its number or UID.

        A scanner's export folder may hold the runs before, and get late files of them. Returns what there is, in words.
        """
        now_s = self._clock_ns() / 1e9
        self._listing.again()
        files = {path: as_it_is for path in self._listing.new(now_s) if (as_it_is := signature(path)) is not None}
        if is_number(self._selection.pattern or ""):
            (self._queue if len(files) <= BATCH_FILES else self._old).extend(by_folder(files))
            return ""
        pixels, self._pixels = self._pixels, False
        left = self._present.read(files, lambda path: self._look(path, now_s, final=True))
        self._pixels = pixels
        for path in left:
            self._listing.know(path, files[path])
        over = self._selection.pass_over(known)
        self.problems.clear()
        found = [f"unused series: {'; '.join(over)}"] * bool(over)
        found += [f"useless files: {len(self._given_up)}"] * bool(self._given_up)
        found += [f"older files, known by name, size and time only: {len(left)}"] * bool(left)
        return f"{self.folder} holds from before the session {', '.join(found)}" if found else ""

    def close(self) -> None:
        """Nothing is held open."""

    def explain(self) -> str:
        """Why no series was chosen: what was found instead."""
        return self._selection.explain()

    def extra_files(self) -> list[tuple[str, int | None]]:
        """Copies and damaged files of the run, by name below the folder, with the volume that they belong to where that is known."""
        damaged = [(path, waiting.file) for path, waiting in self._given_up.items() if waiting.dicom]
        return [
            (self._short(path), self._selection.index_of(file) if file else None)
            for path, file in sorted([*self._copies, *damaged])
            if file is None or self._selection.in_run(file)
        ]

    def _last_look(self, now_s: float) -> None:
        """Look once more at every file that is not whole, and name those that still are not."""
        for path, waiting in [*self._waiting.items(), *self._given_up.items()]:
            waiting.size = -1
            self._look_again(path, now_s, final=True)

    def _advance(self, now_s: float, *, final: bool = False) -> list[Volume]:
        self._selection.settle(now_s, final=final)
        run = self._selection.run
        volumes = self._selection.echoes.advance(run, now_s, final, self._selection.problems)
        for problems in (self._selection.problems, *(stream.assembler.problems for stream in run)):
            self.problems += problems
            problems.clear()
        return volumes

    def _look(self, path: str, now_s: float, *, final: bool = False) -> int:
        """Read a file and take it if it is whole; if `final`, it will not change any more. Returns its size in bytes.

        Whatever a file does to those who read it, it is a file that is named and passed over.
        """
        self._progress("reading files", self.seen, self.seen + len(self._queue) + 1)
        try:
            return self._read(path, now_s, final)
        except Exception as error:  # what nobody thought of
            self._waiting.pop(path, None)
            size, modified_ns = signature(path) or (-1, -1)
            why = f"{path}: cannot be used ({type(error).__name__}: {shown(error)})"
            self._give_up(path, Waiting("", 0, size, modified_ns, now_s), why)
            return max(size, 0)

    def _read(self, path: str, now_s: float, final: bool) -> int:
        size, modified_ns = -1, -1
        try:
            status = os.stat(path)
            size, modified_ns = status.st_size, status.st_mtime_ns
            if is_nifti(path):
                self._take_nifti(path, (size, modified_ns), now_s, final)
                return max(size, 0)
            file = read_dicom(path, pixels=self._pixels, most_bytes=self._most_bytes)
            after = os.stat(path)
        except FileNotFoundError:
            self._forget(path)
        except TruncatedError as error:
            needed = error.needed if error.exact else 0
            self._wait(path, Waiting(str(error), needed, size, modified_ns, now_s, size > 0, error.file))
        except DicomError as error:
            self._waiting.pop(path, None)
            self._give_up(path, Waiting("", 0, size, modified_ns, now_s, not isinstance(error, NotDicomError)), str(error))
        except OSError as error:  # locked by its writer, or the share is away; or no regular file any more
            before = self._waiting.get(path)
            since_s = before.grew_s if before and before.size < 0 else now_s
            self._wait(path, Waiting(f"{path}: cannot be read ({error.strerror})", 0, -1, -1, since_s))  # tried again at every look
        else:
            as_read = (size, modified_ns)
            unchanged = (after.st_size, after.st_mtime_ns) == as_read
            if final or not self._selection.wants(file) or self._stays(path, file, as_read, now_s, unchanged):
                self._settle_file(path, as_read)
                self._finished(path, file, modified_ns)
                self._take(path, file, closed_ns(modified_ns), now_s)
        return max(size, 0)

    def _stays(self, path: str, file: DicomFile, as_read: Signature, now_s: float, unchanged: bool = True) -> bool:
        """Whether a file that is as long as its header says has stayed as it is for long enough; else it is waited for."""
        before = self._waiting.get(path) or self._given_up.get(path)
        same = before is not None and before.file is not None and (before.size, before.modified_ns) == as_read
        same = same and before is not None and before.file is not None and before.file.checksum == file.checksum
        since_s = before.whole_s if same and before is not None and not math.isnan(before.whole_s) else now_s
        due_s = since_s + self._whole.wait_s(file, as_read[1])
        if unchanged and now_s >= due_s:
            return True
        why = f"ends in {file.tail} bytes of zeros" if self._whole.suspect(file) else "was still changing"
        header = replace(file, parts=tuple(replace(part, pixels=None) for part in file.parts))
        self._wait(path, Waiting(f"{path}: {why}", as_read[0], *as_read, now_s, True, header, since_s, due_s))
        return False

    def _finished(self, path: str, file: DicomFile, modified_ns: int) -> None:
        """Record how a file ends that is used now, and report if that suggests it is not whole."""
        doubt = self._whole.doubt(file, modified_ns) if self._selection.wants(file) else ""
        self.problems += [f"{self._short(path)}: {doubt}"] * bool(doubt)
        self._whole.finished(file, bool(doubt))

    def _settle_file(self, path: str, as_read: Signature) -> None:
        if self._given_up.pop(path, None):
            self.problems.append(f"{self._short(path)}: is complete now")
        self._waiting.pop(path, None)
        self._settled.add(path)
        self._listing.know(path, as_read)

    def _take_nifti(self, path: str, as_read: Signature, now_s: float, final: bool) -> None:
        """Add the volumes appended to a NIfTI file since the last look; all volumes of a rewritten one."""
        size, known = as_read[0], self._listing.known.get(path)
        if known is not None and known != as_read and size <= known[0]:
            self._volumes.pop(path, None)
        before = self._volumes.get(path, 0)
        found = read_nifti(path, pixels=self._pixels, skip=before, most_bytes=BATCH_BYTES)
        whole = next((k for k, f in enumerate(one_by_one(found.file)) if not (final or self._stays(path, f, as_read, now_s))), None)
        parts = found.file.parts[:whole]
        for file in one_by_one(replace(found.file, parts=parts)):
            self._finished(path, file, as_read[1])
        self._volumes[path] = found.there if whole is None else before + len(parts)
        if parts:
            checksum = zlib.crc32(b"".join(part.pixels.tobytes("F") for part in parts if part.pixels is not None))
            self._take(path, replace(found.file, parts=parts, checksum=checksum), closed_ns(as_read[1]), now_s)
        compressed = path.lower().endswith(".gz")
        if whole is not None:
            return
        if found.there < (found.held if compressed else found.announced) and (compressed or found.needed <= size):  # too much for one look
            self._waiting.pop(path, None)
            self._queue.append(path)
        elif found.there < found.announced:
            reason = f"{path}: ends at byte {size}, after {found.there} of {found.announced} volumes"
            raise TruncatedError(reason, size + 1 if compressed else found.needed, True)
        else:
            self._settle_file(path, as_read)
            if not compressed:
                self._open[path] = size
                self._open = dict(list(self._open.items())[-OPEN:])

    def _look_for_more(self, now_s: float) -> None:
        """Check whether volumes were added to NIfTI files that were whole."""
        for path, size in list(self._open.items()):
            if (now := signature(path)) is not None and now[0] > size:
                self._look(path, now_s)

    def _forget(self, path: str) -> None:
        """A file went away before it was taken."""
        self._waiting.pop(path, None)
        self._given_up.pop(path, None)
        self._listing.forget(path)

    def _take(self, path: str, file: DicomFile, closed_ns: int, now_s: float) -> None:
        """Pass a whole file's parts on, unless it is a copy of an earlier one."""
        before, self._taken[path] = self._taken.get(path), Taken(file.uid, file.checksum, now_s)
        if before is not None and before.uid == file.uid:
            if before.checksum != file.checksum:
                self._take_again(path, file, closed_ns, now_s)
            return
        if before is not None:  # the name stands for another file now
            self._uids[before.uid] = [other for other in self._uids[before.uid] if other != path]
        paths = self._uids.setdefault(file.uid, [])
        gone = next((before for before in paths if not os.path.exists(before)), None)
        copied = False
        if gone is not None:  # not a copy: renamed
            paths[paths.index(gone)] = path
        elif paths:
            copied = True
            paths.append(path)
        else:
            paths.append(path)
            name = self._short(path)
            for other in () if self._selection.knows(file) else self._present.neighbours(path, file.series.uid):
                self._selection.was_there(other, now_s)
            outcomes = [self._selection.add(file, part, closed_ns, now_s, name) for part in file.parts]
            copied = Outcome.DUPLICATE in outcomes
        if copied:
            self.duplicates += 1
            self._copies.append((path, replace(file, parts=tuple(replace(part, pixels=None) for part in file.parts))))

    def _take_again(self, path: str, file: DicomFile, closed_ns: int, now_s: float) -> None:
        """Read a file again that changed after it was used, or report which volumes were passed on without the change."""
        name = self._short(path)
        if self._selection.was_before(file):
            for part in file.parts:
                self._selection.add(file, part, closed_ns, now_s, name)
            return
        passed = self._selection.replace(file, closed_ns, name)
        if passed:
            which = f"volume {passed[0]}" if len(passed) == 1 else f"volumes {passed[0]} to {passed[-1]}"
            self.problems.append(
                f"{name}: changed after {which} had been read from it: the file was incomplete then, and results from it are doubtful "
                f"(files are watched for {self._whole.settle_s or 0.0:.2g} s from now on; let the export rename them into place)"
            )

    def _look_again(self, path: str, now_s: float, *, final: bool = False) -> None:
        """Look at a file that was not whole, if it changed since, or has stayed as it is for long enough."""
        waiting = self._waiting.get(path) or self._given_up[path]
        try:
            status = os.stat(path)
        except OSError:
            self._look(path, now_s)
        else:
            if (status.st_size, status.st_mtime_ns) != (waiting.size, waiting.modified_ns):
                if waiting.size >= 0:
                    if not math.isnan(waiting.whole_s):
                        self._whole.changed(now_s - waiting.whole_s)
                    waiting.size, waiting.modified_ns, waiting.grew_s = status.st_size, status.st_mtime_ns, now_s
                    waiting.due_s = math.inf
                if status.st_size >= waiting.needed:
                    self._look(path, now_s, final=final)
            elif now_s >= waiting.due_s or (final and waiting.due_s < math.inf):
                self._look(path, now_s, final=final)
        if path in self._waiting and (final or now_s - self._waiting[path].grew_s >= max(self._stall_s, SUSPECT_S)):
            waiting = self._waiting.pop(path)
            self._give_up(path, waiting, f"{waiting.reason}; it never completed")

    def _wait(self, path: str, found: Waiting) -> None:
        """Record a file that is not whole."""
        (self._given_up if path in self._given_up else self._waiting)[path] = found

    def _give_up(self, path: str, waiting: Waiting, reason: str) -> None:
        """Name a file that is of no use, and go on looking at it from time to time."""
        if path not in self._given_up:
            self.problems.append(shown(reason.replace(path, self._short(path), 1), None))
        self._given_up[path] = waiting
        self._listing.expect(path, (waiting.size, waiting.modified_ns))
        self._settled.add(path)
        if waiting.file is not None:
            self._selection.expect(waiting.file)

    def _short(self, path: str) -> str:
        return shown(os.path.relpath(path, self.folder), None)
