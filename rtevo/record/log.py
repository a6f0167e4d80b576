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
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rtevo.errors import DataError
from rtevo.records import Grid

__all__ = ["LOG", "LogFollower", "LogWriter", "earlier", "grid_of", "hold", "parts", "read_log"]

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
        self.sync()
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
            raise DataError(f"{path} line {number + 1}: damaged (its checksum does not fit)")
        if record.get("seq") != number:
            raise DataError(f"{path} line {number + 1}: expected record {number}, found record {record.get('seq')}: lines are missing")
        records.append(record)
        good += len(line)
    return records, good


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
