"""The log itself: an append-only file of checksummed lines.

Each line of ``record.jsonl`` is the CRC-32 of what follows (8 hex digits), a space, and a JSON object with ``seq``, ``type`` (the ring's
name; of what comes in the ring ``messages``: ``warning``, ``alarm``, ``error`` or ``operator``; or ``start``, ``grid``, ``truth``,
``end``), ``clock_ns`` (session time when it was recorded) and the fields of the ring's slot; float32 arrays are base64 of their
little-endian bytes, so that nothing is rounded.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rtevo.errors import DataError
from rtevo.records import Grid

__all__ = ["LOG", "LogFollower", "LogWriter", "earlier", "grid_of", "hold", "parts", "read_log", "skip_damaged"]

LOG = "record.jsonl"


class LogWriter:
    """Append to a session's log, as its only writer.

    Parameters
    ----------
    path : Path
        ``record.jsonl``; made if it is not there, continued if it is. A last line cut short by a crash is removed.

    Attributes
    ----------
    seq : int
        Number of the next record.
    dropped : int
        Bytes of a last record that a crash had cut short.

    Raises
    ------
    DataError
        Another process is writing to it, or a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        try:
            _lock(self._file.fileno(), path)
            data = path.read_bytes()
            records, good = _whole(data, path)
            self.seq, self.dropped = len(records), len(data) - good
            if self.dropped:
                os.truncate(path, good)
        except BaseException:
            self._file.close()
            raise

    def append(self, kind: str, fields: Mapping[str, Any], clock_ns: int = 0) -> None:
        """Write one record; it is on disk after the next :meth:`sync`.

        Parameters
        ----------
        kind : str
            Its type.
        fields : mapping of str to what JSON holds
        clock_ns : int
            Session time now, ns.
        """
        text = json.dumps({"seq": self.seq, "type": kind, "clock_ns": clock_ns, **fields}, allow_nan=True).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self.seq += 1

    def sync(self) -> None:
        """Bring everything written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        try:
            self.sync()
        finally:
            with suppress(OSError):  # what could not be written is not tried again
                self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Give a log line's record, or None where it is damaged or cut short."""
    try:
        crc, text = line.rstrip(b"\n").split(b" ", 1)
        if not line.endswith(b"\n") or int(crc, 16) != zlib.crc32(text):
            return None
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _whole(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """Give the records of a log and how many bytes they are, without a last one that was cut short."""
    records: list[dict[str, Any]] = []
    good = 0
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines):
        record = _parse(line)
        if record is None and number == len(lines) - 1:
            break
        if record is None:
            raise DataError(f"{path} line {number + 1}: damaged (its checksum does not fit); {_advice(path)}")
        if record.get("seq") != number:
            missing = f"expected record {number}, found record {record.get('seq')}: lines are missing"
            raise DataError(f"{path} line {number + 1}: {missing}; {_advice(path)}")
        records.append(record)
        good += len(line)
    return records, good


def _advice(path: Path) -> str:
    return f"`python -m rtevo.record {path.parent} --skip-damaged` goes on without them and says what is lost"


_WHAT = re.compile(rb'"type": "(\w+)"')
_WHICH = re.compile(rb'"(index|generation|candidate)": (-?\d+)')


def skip_damaged(path: Path) -> list[str]:
    """Put a record of type ``lost`` in the place of every line of a log that is damaged or missing; the log as it was is kept.

    Parameters
    ----------
    path : Path
        ``record.jsonl``; as it was it is kept as ``record.jsonl.damaged`` (``.damaged-1``, ... where there is one).

    Returns
    -------
    list of str
        What is lost, a sentence a line; empty where nothing is, and then nothing is changed.

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
    """Give the lines of a log with records of what is lost in the place of those that are damaged or missing, and sentences about these."""
    kept: list[bytes] = []
    lost: list[str] = []

    def lose(line: int, what: str) -> None:
        lost.append(f"line {line} of the log {what}")
        text = json.dumps({"seq": len(kept), "type": "lost", "clock_ns": 0, "line": line, "text": lost[-1]}).encode()
        kept.append(b"%08x %s\n" % (zlib.crc32(text), text))

    for number, line in enumerate(lines):
        record = _parse(line)
        if record is None:
            if number < len(lines) - 1:  # a last one may have been cut short: nobody has missed it
                what = b"".join(_WHAT.findall(line)[:1]).decode() or "unknown"
                which = ", ".join(f"{name.decode()} {value.decode()}" for name, value in _WHICH.findall(line)[:3])
                lose(number + 1, f"is damaged: a record of type {what}" + f" ({which})" * bool(which) + " is lost")
            continue
        while record.get("seq", -1) > len(kept):
            lose(number + 1, f"is preceded by a gap: record {len(kept)} is lost")
        if record.get("seq", -1) == len(kept):
            kept.append(line)
        else:
            lost.append(f"line {number + 1} of the log stands there a second time, or in the wrong place: it is left out")
    return kept, lost


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a session's log; a last line that was cut short is left out.

    Raises
    ------
    DataError
        Where there is no log, or a line other than the last is damaged, or one is missing.
    """
    if not path.exists():
        raise DataError(f"{path}: expected the log of a session, found no such file")
    return _whole(path.read_bytes(), path)[0]


class LogFollower:
    """Read a log that another process is writing to.

    Parameters
    ----------
    path : Path
        ``record.jsonl``; may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0

    def new(self) -> list[dict[str, Any]]:
        """Give the records that have come since the last call; damaged ones are left out."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [record for line in whole.splitlines(keepends=True) if (record := _parse(line)) is not None]


def parts(log: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Divide a log into the session's parts: each begins with a ``start``."""
    found: list[list[dict[str, Any]]] = []
    for record in log:
        if record["type"] == "start" or not found:
            found.append([])
        found[-1].append(record)
    return found


def grid_of(part: list[dict[str, Any]]) -> Grid | None:
    """Return the grid that the volumes of a part lie on; None where none had come (in logs of 0.1: the decoder's)."""
    found = next((r for r in part if r["type"] == "grid" or "affine" in r), None)
    return None if found is None else Grid(tuple(found["shape"]), np.array(found["affine"]))


def earlier(out: Path, part: int) -> list[dict[str, Any]]:
    """Read what was recorded before a part of a session began.

    Parameters
    ----------
    out : Path
        The session's folder.
    part : int
        0 = the first.
    """
    if part == 0:
        return []
    return [record for each in parts(read_log(out / LOG))[:part] for record in each]


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
    except BlockingIOError:
        raise DataError(f"{path}: the session is still running, another process writes to it") from None


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keep a session's folder for this process alone.

    Raises
    ------
    DataError
        Another process holds it: the session is still running.
    """
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, out)
        yield
    finally:
        os.close(descriptor)
