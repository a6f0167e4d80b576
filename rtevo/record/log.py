"""The log itself: an append-only file of checksummed lines.

Each line of ``record.jsonl`` is the CRC-32 of the rest (8 hex digits), a space, and a JSON object with ``seq``, ``type``,
``clock_ns`` (session time of recording) and the fields of its kind: :mod:`rtevo.record.kinds` is the schema.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rtevo.errors import BusyError, DataError
from rtevo.record.fitting import fits, record_of
from rtevo.record.kinds import SCHEMA, EventRecord, Record, Start
from rtevo.record.sealing import opened
from rtevo.records import EventKind

__all__ = ["LOG", "LogFollower", "LogWriter", "hold", "read_log", "read_up_to_damage", "skip_damaged"]

LOG = "record.jsonl"
_NOTES_OF_0_1 = (  # first words of the bridge's notes
    ("presenter ready", EventKind.READY),
    ("another presenter waits", EventKind.WAITS),
    ("the other presenter waits no longer", EventKind.LEFT),
    ("presenter silent", EventKind.SILENT),
    ("presenter answers again", EventKind.BACK),
)


class LogWriter:
    """Append to a session's log, as its only writer.

    Parameters
    ----------
    path : Path
        ``record.jsonl``; made if it does not exist, else continued. An incomplete last line, from a crash, is removed.

    Attributes
    ----------
    seq : int
        Number of the next record.
    dropped : int
        Bytes of an incomplete last record, from a crash.

    Raises
    ------
    DataError
        Another process writes to the log, or a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        try:
            _lock(self._file.fileno(), path)
            data = path.read_bytes()
            whole = _Whole(data, path)
            for _ in whole:
                pass
            if whole.damage:
                raise DataError(whole.damage)
            self.seq, self.dropped = whole.number, len(data) - whole.good
            if self.dropped:
                os.truncate(path, whole.good)
        except BaseException:
            self._file.close()
            raise

    def append(self, kind: str, fields: Mapping[str, Any], clock_ns: int = 0) -> None:
        """Write one record; it is on disk after the next :meth:`sync`.

        Parameters
        ----------
        kind : str
            Type of the record.
        fields : mapping of str to what JSON holds
        clock_ns : int
            Session time now, ns.
        """
        text = json.dumps({"seq": self.seq, "type": kind, "clock_ns": clock_ns, **fields}, allow_nan=True).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self.seq += 1

    def add(self, record: Record) -> None:
        """Write a record again, with all its fields, under the next number."""
        self.append(record.type, record.fields(), record.clock_ns)

    def sync(self) -> None:
        """Sync everything written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync everything to the disk, and close the file."""
        try:
            self.sync()
        finally:
            with suppress(OSError):  # a failed write is not tried again
                self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a log line's record, or None if it is damaged or incomplete."""
    try:
        crc, text = line.rstrip(b"\n").split(b" ", 1)
        if not line.endswith(b"\n") or int(crc, 16) != zlib.crc32(text):
            return None
        record = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and fits(record) else None


class _Whole:
    """The lines of a log up to the first damaged or missing one; an incomplete last line is no damage.

    Attributes
    ----------
    number, good : int
        Number of lines so far, and their bytes.
    damage : str
        What is wrong with the next line; empty: nothing.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        self._lines, self._path = data.splitlines(keepends=True), path
        self.number, self.good, self.damage = 0, 0, ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._lines):
            record = _parse(line)
            if record is None and number == len(self._lines) - 1:
                return
            if record is None or record.get("seq") != number:
                found = f"expected record {number}, found record {record.get('seq')}: lines are missing" if record else ""
                what = found or "damaged (its checksum does not fit)"
                self.damage = f"{self._path} line {number + 1}: {what}; {_advice(self._path)}"
                return
            self.number, self.good = number + 1, self.good + len(line)
            yield record


def _advice(path: Path) -> str:
    return f"`python -m rtevo.record {path.parent} --skip-damaged` continues without them and prints what is lost"


_WHAT = re.compile(rb'"type": "(\w+)"')
_WHICH = re.compile(rb'"(index|generation|candidate)": (-?\d+)')


def skip_damaged(path: Path) -> list[str]:
    """Replace every damaged or missing line of a log with a record of type ``lost``; the original log is kept.

    Parameters
    ----------
    path : Path
        ``record.jsonl``; the original is kept as ``record.jsonl.damaged`` (``.damaged-1``, ... if that exists).

    Returns
    -------
    list of str
        The losses, one sentence a line; empty: none, and the log is unchanged.

    Raises
    ------
    DataError
        There is no log, or another process writes to it.
    """
    if not path.exists():
        raise DataError(f"{path}: expected the log of a session, found no such file")
    with path.open("rb") as file:
        _lock(file.fileno(), path)
        lines = file.read().splitlines(keepends=True)
        kept, lost = _without_damage(lines)
        if lost:
            copies = (path.with_name(f"{path.name}.damaged{end}") for end in ("", *(f"-{k}" for k in range(1, 10**6))))
            path.with_suffix(".part").write_bytes(b"".join(kept))
            os.link(path, next(copy for copy in copies if not copy.exists()))
            path.with_suffix(".part").replace(path)
    return lost


def _without_damage(lines: list[bytes]) -> tuple[list[bytes], list[str]]:
    """Return the lines of a log, with records of losses in place of damaged or missing ones, and sentences about the losses."""
    kept: list[bytes] = []
    lost: list[str] = []

    def lose(line: int, what: str) -> None:
        lost.append(f"line {line} of the log {what}")
        text = json.dumps({"seq": len(kept), "type": "lost", "clock_ns": 0, "line": line, "text": lost[-1]}).encode()
        kept.append(b"%08x %s\n" % (zlib.crc32(text), text))

    for number, line in enumerate(lines):
        record = _parse(line)
        if record is None:
            if number < len(lines) - 1:  # an incomplete last line is no loss
                what = b"".join(_WHAT.findall(line)[:1]).decode() or "unknown"
                which = ", ".join(f"{name.decode()} {value.decode()}" for name, value in _WHICH.findall(line)[:3])
                lose(number + 1, f"is damaged: a record of type {what}" + f" ({which})" * bool(which) + " is lost")
            continue
        while record.get("seq", -1) > len(kept):
            lose(number + 1, f"is preceded by a gap: record {len(kept)} is lost")
        if record.get("seq", -1) == len(kept):
            kept.append(line)
        else:
            lost.append(f"line {number + 1} of the log is a repetition, or in the wrong place: it is left out")
    return kept, lost


def read_log(path: Path) -> list[Record]:
    """Read a session's log; an incomplete last line is left out.

    Raises
    ------
    DataError
        There is no log, a line other than the last is damaged, a line is missing, or the schema is a later one.
    """
    records, damage = read_up_to_damage(path)
    if damage:
        raise DataError(damage)
    return records


def read_up_to_damage(path: Path) -> tuple[list[Record], str]:
    """Return a session's log up to the first damage, and a description of the damage; empty: none.

    Raises
    ------
    DataError
        There is no log, or its schema is a later one.
    """
    if not path.exists():
        raise DataError(f"{path}: expected the log of a session, found no such file")
    whole = _Whole(path.read_bytes(), path)
    records = list(typed(whole, schema=0))
    for start in records:
        if isinstance(start, Start) and start.schema > SCHEMA:
            raise DataError(
                f"{path}: expected a log of schema {SCHEMA} or less, found {start.schema}: rtevo {start.rtevo} recorded it; use that"
            )
    return opened(records), whole.damage


class LogFollower:
    """Read a log while another process writes to it.

    Parameters
    ----------
    path : Path
        ``record.jsonl``; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._read, self._schema = path, 0, 0

    def new(self) -> list[Record]:
        """Return the records since the last call; damaged ones are left out."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        found = (record for line in whole.splitlines(keepends=True) if (record := _parse(line)) is not None)
        records = list(typed(found, self._schema))
        self._schema = next((r.schema for r in reversed(records) if isinstance(r, Start)), self._schema)
        return records


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock ends with the process
    except BlockingIOError:
        raise BusyError(f"{path}: the session is still running, another process writes to it") from None


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Lock a session's folder for this process.

    Raises
    ------
    BusyError
        Another process holds the lock: the session is still running.
    """
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, out)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also if a process forked meanwhile still has the descriptor
        os.close(descriptor)


def typed(found: Iterable[Mapping[str, Any]], schema: int = SCHEMA) -> Iterator[Record]:
    """Yield the records of a log's JSON objects, in order.

    Parameters
    ----------
    found : iterable of mapping
    schema : int
        Version of the log, until a ``start`` names it.
    """
    for each in found:
        record = record_of(each)
        if isinstance(record, Start):
            schema = record.schema
        elif schema < 1 and isinstance(record, EventRecord) and record.kind == EventKind.NOTE:
            record = _as_of_schema_1(record)
        yield record


def _as_of_schema_1(note: EventRecord) -> EventRecord:
    """Return a note of 0.1 with its present kind: in 0.1 only the words identified it."""
    kind = next((kind for words, kind in _NOTES_OF_0_1 if note.text.startswith(words)), EventKind.NOTE)
    if "has taken over" in note.text:
        kind = EventKind.REPLACED
    elif "started anew" in note.text:
        kind = EventKind.BACK
    return note if kind == EventKind.NOTE else replace(note, kind=int(kind))
