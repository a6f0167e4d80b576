"""Where samples come from: streams of the Lab Streaming Layer, a serial line, a file that is being written, a simulated participant."""

from __future__ import annotations

import codecs
import ctypes
import math
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError, LinkError
from rtevo.outside import shown
from rtevo.physio.text import PMU, Parser, Pmu, Rows

__all__ = ["KINDS", "Address", "Chunk", "Source", "open_source"]

Array = NDArray[np.float64]
KINDS = ("lsl", "serial", "file")
SIMULATED = "simulated"
_OLD_S = 60.0  # of what a file held before the session
_AT_ONCE = 1 << 20  # bytes that are read at once
_PATIENCE_S = 2.0  # to find a stream, and to hear of its clock
_CLOCK_S = 5.0  # between two readings of it
_AHEAD_S, _BEHIND_S = 1.0, 120.0  # of now, between which a stream's stamps lie
_MOST_HZ = 20_000.0
_LARGEST = 1e30  # of a sample; what is larger is no number


@dataclass(frozen=True)
class Address:
    """Where one sensor's samples come from: ``KIND:PLACE#CHANNEL``.

    Parameters
    ----------
    kind : str
        ``lsl``, ``serial``, ``file`` or ``simulated``.
    place : str
        Name of the stream; PORT@BAUD; path.
    channel : str
        Its label or number (1 = first) in the stream, or number of the column.
    """

    kind: str
    place: str
    channel: str

    @classmethod
    def of(cls, text: str) -> Address:
        """Read it.

        Raises
        ------
        ValueError
            It is none.
        """
        if text == SIMULATED:
            return cls(SIMULATED, "", "")
        kind, _, rest = text.partition(":")
        place, _, channel = rest.partition("#")
        if kind not in KINDS or not place:
            raise ValueError(f"expected lsl:STREAM#CHANNEL, serial:PORT@BAUD#COLUMN or file:PATH#COLUMN, got {text!r}")
        if kind != "lsl" and channel and not (channel.isdecimal() and int(channel) > 0):
            raise ValueError(f"expected the number of a column after #, 1 = first, got {text!r}")
        if kind == "serial" and not place.rpartition("@")[2].isdecimal():
            raise ValueError(f"expected serial:PORT@BAUD, got {text!r}")
        return cls(kind, place, channel or "1")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Samples that have come at once.

    Parameters
    ----------
    values : ndarray, float64 (samples, channels)
    stamp_s : float
        The last one was measured then at the latest, s of the monotonic clock (of a simulated participant: session time, and exactly then).
    error_s : float
        Bound of the stamp itself.
    """

    values: Array
    stamp_s: float
    error_s: float


class Source(Protocol):
    """A source of samples of some channels."""

    rate_hz: float
    exact: bool

    def poll(self) -> list[Chunk]:
        """Return what has come since the last call.

        Raises
        ------
        OSError, LinkError
            It is gone.
        """

    def close(self) -> None:
        """Close the source."""


class _Bytes:
    """Samples in a text that comes piece by piece."""

    exact = False

    def __init__(self, parser: Parser, rate_hz: float) -> None:
        self.rate_hz, self.parser = rate_hz, parser
        self._decoder = codecs.getincrementaldecoder("ascii")("replace")
        self._hold = _Hold()

    def _values(self, data: bytes) -> Array:
        return self._hold(self.parser.feed(self._decoder.decode(data)))


class Serial(_Bytes):
    """Rows of numbers on a serial line: what came is stamped when it is read.

    Raises
    ------
    LinkError
        pyserial is not installed, or the port cannot be opened.
    """

    def __init__(self, place: str, columns: tuple[int, ...], rate_hz: float) -> None:
        super().__init__(Rows(columns), rate_hz)
        try:
            import serial
        except ImportError as error:
            raise LinkError(f"[physio]: pyserial is needed for a serial line (pip install 'rtevo[physio]'): {error}") from error
        port, _, baud = place.rpartition("@")
        try:
            self._port = serial.Serial(port, int(baud), timeout=0)
        except (OSError, ValueError) as error:
            raise LinkError(f"[physio] serial:{place}: cannot be opened: {error}") from error

    def poll(self) -> list[Chunk]:
        """See :class:`Source`."""
        data = self._port.read(_AT_ONCE)
        stamp_s = time.monotonic()
        values = self._values(data)
        return [Chunk(values, stamp_s, 0.0)] if len(values) else []

    def close(self) -> None:
        """See :class:`Source`."""
        self._port.close()


class GrowingFile(_Bytes):
    """A file that is still being written: new samples are stamped when read. A file that does not exist yet is waited for, and a file
    that takes its place is read in its stead.

    Parameters
    ----------
    path : Path
    make : callable
        Called for the file, and again where it begins anew, returns its parser.
    rate_hz : float
    """

    def __init__(self, path: Path, make: Callable[[], Parser], rate_hz: float) -> None:
        super().__init__(make(), rate_hz)
        self._path, self._make = path, make
        self._file: IO[bytes] | None = None
        self._old = False

    def _open(self) -> IO[bytes] | None:
        """Open it, where it is there; what is no file is not waited for."""
        try:
            number = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise DataError(f"[physio] file:{shown(self._path)}: expected a file that is written into, found something else")
        self._old = os.fstat(number).st_size > 0
        return os.fdopen(number, "rb", buffering=0)

    def poll(self) -> list[Chunk]:
        """See :class:`Source`."""
        if self._file is None and (opened := self._open()) is not None:
            self._file, self.parser = opened, self._make()
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._file.tell():  # it was written anew
            self.close()
            return []
        most, pieces, came = max(1, round(_OLD_S * self.rate_hz)), [], False
        while data := self._file.read(_AT_ONCE):
            came = True
            pieces.append(self._values(data))
            if self._old and len(pieces) > 1:
                pieces = [np.concatenate(pieces)[-most:]]
        stamp_s = time.monotonic()
        if not came and self._replaced():
            self.close()
        if not any(map(len, pieces)):
            return []
        values = np.concatenate(pieces)[-most if self._old else 0 :]
        self._old = False
        return [Chunk(values, stamp_s, 0.0)]

    def _replaced(self) -> bool:
        """Whether another file has the name now."""
        assert self._file is not None
        try:
            now, own = os.stat(self._path), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (now.st_dev, now.st_ino) != (own.st_dev, own.st_ino)

    def close(self) -> None:
        """See :class:`Source`."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Simulated:
    """The samples of a simulated participant's sensors: rows with the session time of each sample, pulse and belt.

    Parameters
    ----------
    path : Path
    columns : tuple of int
        1: the pulse, 2: the belt.
    """

    exact, rate_hz = True, 50.0

    def __init__(self, path: Path, columns: tuple[int, ...]) -> None:
        self._file = GrowingFile(path, lambda: Rows((1, *(column + 1 for column in columns))), self.rate_hz)

    def poll(self) -> list[Chunk]:
        """See :class:`Source`."""
        return [Chunk(chunk.values[:, 1:].copy(), float(chunk.values[-1, 0]), 0.0) for chunk in self._file.poll()]

    def close(self) -> None:
        """See :class:`Source`."""
        self._file.close()


class Lsl:
    """A stream of the Lab Streaming Layer. Its stamps come from the sender's clock, whose offset LSL measures by round-trips.

    Raises
    ------
    LinkError
        pylsl is not installed, the stream or channel does not exist, or its samples are no numbers.
    """

    exact = False

    def __init__(self, name: str, channels: tuple[str, ...], rate_hz: float) -> None:
        try:
            import pylsl
        except (ImportError, RuntimeError) as error:
            raise LinkError(f"[physio]: pylsl is needed for lsl:{name} (pip install 'rtevo[physio]'): {error}") from error
        self._lsl, self._hold = pylsl, _Hold()
        self._correction_s, self._error_s, self._looked_s = 0.0, 0.0, -math.inf
        streams = pylsl.resolve_byprop("name", name, 1, _PATIENCE_S)
        if not streams:
            raise LinkError(f"[physio] lsl:{name}: no stream of that name was found within {_PATIENCE_S:g} s")
        try:
            self._inlet = pylsl.StreamInlet(streams[0], max_buflen=60)
            info = self._inlet.info(_PATIENCE_S)
            if info.channel_format() == pylsl.cf_string:
                raise LinkError(f"[physio] lsl:{name}: expected a stream of numbers, found one of texts: name another stream")
            self.rate_hz = rate_hz or float(info.nominal_srate())
            labels = [str(label) for label in info.get_channel_labels() or []] or [""] * info.channel_count()
            self._columns = [_column(name, channel, labels) for channel in channels]
            self._inlet.open_stream(_PATIENCE_S)
        except RuntimeError as error:  # pylsl's are: its sender has gone, or does not answer
            raise LinkError(f"[physio] lsl:{name}: the stream was found, and does not answer: {error}") from error

    def poll(self) -> list[Chunk]:
        """See :class:`Source`."""
        if time.monotonic() > self._looked_s + _CLOCK_S:
            self._look()
        try:
            rows, stamps = self._inlet.pull_chunk(timeout=0.0, max_samples=16384)
        except RuntimeError as error:
            raise LinkError(f"the stream is gone: {error}") from error
        if not stamps:
            return []
        stamp_s = stamps[-1] + self._correction_s
        if not -_BEHIND_S < (off_s := stamp_s - time.monotonic()) < _AHEAD_S + self._error_s:
            raise LinkError(f"expected stamps of LSL's clock, found one {off_s:.1f} s from now: let the sender stamp with local_clock()")
        return [Chunk(self._hold(np.array(rows, np.float64)[:, self._columns]), stamp_s, self._error_s)]

    def _look(self) -> None:
        """Ask for the offset of the sender's clock, and of LSL's clock here."""
        lib, error = self._lsl.lib.lib, ctypes.c_int()
        remote, uncertainty = ctypes.c_double(), ctypes.c_double()
        ask = lib.lsl_time_correction_ex
        ask.restype = ctypes.c_double
        found = ask(self._inlet.obj, ctypes.byref(remote), ctypes.byref(uncertainty), ctypes.c_double(_PATIENCE_S), ctypes.byref(error))
        before_s = time.monotonic()
        here_s = self._lsl.local_clock()
        after_s = time.monotonic()
        self._looked_s = after_s
        if error.value == 0:
            self._correction_s = float(found) + (before_s + after_s) / 2 - here_s
            self._error_s = float(uncertainty.value) + (after_s - before_s) / 2

    def close(self) -> None:
        """See :class:`Source`."""
        self._inlet.close_stream()


class _Hold:
    """Replace a sample that is no number by the one before it (at first 0), channel by channel, so that the count stays complete."""

    def __init__(self) -> None:
        self._last: Array | None = None

    def __call__(self, values: Array) -> Array:
        known = np.abs(values) < _LARGEST
        if not known.all():
            before = np.zeros((1, values.shape[1])) if self._last is None else self._last
            place = np.maximum.accumulate(np.where(known, np.arange(1, len(values) + 1)[:, np.newaxis], 0), axis=0)
            values = np.take_along_axis(np.concatenate([before, values]), place, axis=0)
        if len(values):
            self._last = values[-1:].copy()
        return values


def _column(name: str, channel: str, labels: Sequence[str]) -> int:
    """Find a channel by its label or number."""
    if channel in labels:
        return labels.index(channel)
    if channel.isdecimal() and 1 <= int(channel) <= len(labels):
        return int(channel) - 1
    known = ", ".join(shown(label) for label in labels if label) or "without names"
    raise LinkError(f"[physio] lsl:{name}: expected channel {channel!r} among its {len(labels)} ({known})")


def open_source(kind: str, place: str, channels: tuple[str, ...], rate_hz: float, simulated: Path) -> Source:
    """Open what some sensors have in common.

    Parameters
    ----------
    kind, place : str
        Of their :class:`Address`.
    channels : tuple of str
        Of each.
    rate_hz : float
        Samples a second; 0: as the stream says.
    simulated : Path
        What a simulated participant's sensors write.

    Raises
    ------
    LinkError
        It cannot be opened.
    """
    if kind == "lsl":
        found: Source = Lsl(place, channels, rate_hz)
        if not 0 < found.rate_hz <= _MOST_HZ:
            found.close()
            what = f"lsl:{place} does not say how many samples it sends a second: expected that here, at most {_MOST_HZ:g}"
            raise LinkError(f"[physio] rate_hz: {what}")
        return found
    if kind == SIMULATED:
        return Simulated(simulated, tuple(map(int, channels)))
    columns = tuple(map(int, channels))
    if kind == "serial":
        return Serial(place, columns, rate_hz)
    path = Path(place)
    return GrowingFile(path, lambda: Pmu(path.suffix == ".ext") if path.suffix in PMU else Rows(columns), rate_hz)
