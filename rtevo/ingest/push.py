"""A socket to which scripts push volumes, for scanners whose pictures reach the laboratory in a way of their own.

A script connects a ZeroMQ REQ or DEALER socket and sends one message of two frames for each volume:

1. JSON, UTF-8: ``{"index": 0, "shape": [80, 80, 35], "dtype": "<i2", "affine": [[...], [...], [...], [0, 0, 0, 1]], "tr_s": 2.0}``.
   ``index`` counts from 0; ``dtype`` is NumPy's (integers and real numbers); ``affine`` maps voxel indices to RAS+ millimetres.
   Optional: ``order`` (``"C"``, the default, or ``"F"``: which index runs slowest or fastest in memory), ``acquired_s`` (acquisition
   time, seconds from any moment), ``slice_times_s`` (one for each slice), ``series`` (name of the run).
2. The voxels, as many bytes as shape and dtype say.

The answer is JSON: ``{"ok": true}``, or ``{"ok": false, "error": "..."}``. ``{"end": true}`` without a second frame says that no more
will come. A volume may be sent again after an error or a lost connection: copies are dropped and counted. In Python::

    socket = zmq.Context().socket(zmq.REQ)
    socket.connect("tcp://support-computer:5570")
    header = {"index": k, "shape": volume.shape, "dtype": volume.dtype.str, "affine": affine.tolist(), "tr_s": 2.0}
    socket.send_multipart([json.dumps(header).encode(), numpy.ascontiguousarray(volume)])
    answer = socket.recv_json()
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.ingest.assembly import Assembler, Outcome, Volume
from rtevo.ingest.header import SeriesHeader
from rtevo.ingest.nifti import volume_file
from rtevo.records import Grid

__all__ = ["PushSource"]

MAX_BYTES = 1 << 30  # of a message
MAX_INDEX = 1_000_000
BATCH = 16  # messages taken in one poll
NAMES = {"index", "shape", "dtype", "affine", "tr_s", "order", "acquired_s", "slice_times_s", "series"}


class PushSource:
    """Volumes of one run from a ZeroMQ socket; a context manager.

    Parameters
    ----------
    bind : str
        Where to listen, e.g. ``"tcp://127.0.0.1:5570"``; port 0 takes a free one (see :attr:`endpoint`).
    patience_s : float
        How long a missing volume is waited for once a later one came.
    peers : sequence of str
        Who may send, as ``"@ADDRESS"``; empty: everyone.
    clock_ns : callable
        Steady clock in ns, by which `patience_s` is measured.

    Attributes
    ----------
    endpoint : str
        Where it listens.
    problems : list of str
        What went wrong, each once.
    duplicates, seen : int
        Copies of volumes that came before; messages taken, refused ones included.
    ended : bool
        Whether a script said that no more will come.

    Raises
    ------
    DataError
        If it cannot listen there.
    """

    def __init__(self, bind: str, *, patience_s: float, peers: Sequence[str] = (), clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.problems: list[str] = []
        self.duplicates = self.seen = 0
        self.ended = False
        self._patience_s = patience_s
        self._peers = {peer.removeprefix("@") for peer in peers}
        self._clock_ns = clock_ns
        self._assembler: Assembler | None = None
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 1000)
        self._socket.set(zmq.MAXMSGSIZE, MAX_BYTES)
        try:
            self._socket.bind(bind.removesuffix(":0") + ":*" if bind.endswith(":0") else bind)
        except zmq.ZMQError as error:
            self._socket.close()
            raise DataError(f"{bind}: cannot listen there ({error})") from error
        self.endpoint: str = self._socket.get_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> PushSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Volumes that are held back until an earlier one came."""
        return self._assembler.held if self._assembler else 0

    @property
    def told(self) -> str:
        """Which run the volumes are taken from; empty until it is known."""
        series = self._assembler.series if self._assembler else None
        return f"{series.description!r}, which a script pushes{f' (TR {series.tr_s:g} s)' if series.tr_s else ''}" if series else ""

    @property
    def tr_s(self) -> float | None:
        """Repetition time in seconds by the script; None until it is known."""
        return self._assembler.series.tr_s if self._assembler else None

    def sidecar(self, volume: Volume) -> dict[str, Any]:
        """What the script says of the run; as :meth:`rtevo.ingest.FolderSource.sidecar`."""
        return self._assembler.series.sidecar(0.0, volume.slice_times_s) if self._assembler else {}

    def poll(self) -> list[Volume]:
        """Take the messages that came, without waiting.

        Returns
        -------
        list of Volume
            Those that are ready now, in run order; see :meth:`rtevo.ingest.FolderSource.poll`.
        """
        for _ in range(BATCH):
            if not self._take():
                break
        return self._advance(final=False)

    def finish(self) -> list[Volume]:
        """Take what came for all that will come: the rest of the volumes, with a gap for each that is missing."""
        while self._take():
            pass
        return self._advance(final=True)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _advance(self, *, final: bool) -> list[Volume]:
        if self._assembler is None:
            return []
        volumes = self._assembler.advance(self._clock_ns() / 1e9, final=final)
        self.problems += self._assembler.problems
        self._assembler.problems.clear()
        return volumes

    def _take(self) -> bool:
        """Take one message and answer it; False where there is none."""
        try:
            messages = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        address = str(messages[-1].get("Peer-Address"))
        sender, *rest = (message.bytes for message in messages)
        envelope = [sender, b""] if rest[:1] == [b""] else [sender]
        answer: dict[str, Any] = {"ok": True}
        try:
            if self._peers and address not in self._peers:
                raise DataError(f"{address} is not among the allowed peers")
            self._read(rest[len(envelope) - 1 :])
        except DataError as error:
            answer = {"ok": False, "error": str(error)}
            self.problems.append(f"a pushed volume was refused: {error}")
        self.seen += 1
        self._socket.send_multipart([*envelope, json.dumps(answer).encode()])
        return True

    def _read(self, frames: list[bytes]) -> None:
        header = _header(frames)
        if header.get("end") is True:
            self.ended = True
            return
        if len(frames) != 2:
            raise DataError(f"expected two frames, JSON and voxels, found {len(frames)}")
        data, grid = _data(header, frames[1])
        series = _series(header)
        if self._assembler is None:
            self._assembler = Assembler(series, patience_s=self._patience_s, first=0)
        elif series != self._assembler.series:
            known = self._assembler.series
            raise DataError(
                f"expected the run's series and repetition time, {known.description!r} and {known.tr_s} s, found {series.description!r} "
                f"and {series.tr_s} s"
            )
        index = header["index"]
        times = header.get("slice_times_s")
        file = volume_file(
            f"pushed volume {index}",
            series,
            grid,
            {index: data},
            field="index",
            acquired_s=float(header.get("acquired_s", math.nan)),
            acquired_from="the script" if "acquired_s" in header else "",
            slice_times_s=None if times is None else np.array(times, np.float64),
        )
        self._add(replace(file, checksum=zlib.crc32(frames[1])))

    def _add(self, file: Any) -> None:
        assert self._assembler is not None
        outcome = self._assembler.add(file, file.parts[0], time.monotonic_ns(), self._clock_ns() / 1e9, file.name)
        if outcome == Outcome.DUPLICATE:
            self.duplicates += 1
        elif outcome == Outcome.REFUSED:
            problems, self._assembler.problems = self._assembler.problems, []
            raise DataError(problems[-1] if problems else f"{file.name}: left out")


def _header(frames: list[bytes]) -> dict[str, Any]:
    try:
        header = json.loads(frames[0])
    except (IndexError, ValueError) as error:
        raise DataError(f"expected JSON in the first frame ({error})") from None
    if not isinstance(header, dict):
        raise DataError("expected a JSON object in the first frame")
    return header


def _data(header: dict[str, Any], voxels: bytes) -> tuple[NDArray[Any], Grid]:
    """The volume and its grid, everything checked."""
    if unknown := set(header) - NAMES:
        raise DataError(f"expected the names {', '.join(sorted(NAMES))}; found {', '.join(sorted(unknown))}")
    if missing := {"index", "shape", "dtype", "affine"} - set(header):
        raise DataError(f"expected {', '.join(sorted(missing))}, found nothing")
    index = header["index"]
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= MAX_INDEX:
        raise DataError(f"index: expected a whole number from 0, got {index!r}")
    try:
        grid = Grid(tuple(header["shape"]), np.array(header["affine"], np.float64))
        dtype = np.dtype(header["dtype"])
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from None
    if dtype.kind not in "iuf":
        raise DataError(f"dtype: expected integers or real numbers, got {header['dtype']!r}")
    needed = math.prod(grid.shape) * dtype.itemsize
    if len(voxels) != needed:
        raise DataError(f"expected {needed} bytes of voxels for shape {grid.shape} and dtype {dtype.str}, found {len(voxels)}")
    _check_times(header, grid)
    if header.get("order", "C") not in ("C", "F"):
        raise DataError(f"order: expected C or F, got {header['order']!r}")
    return np.frombuffer(voxels, dtype).reshape(grid.shape, order=header.get("order", "C")), grid


def _check_times(header: dict[str, Any], grid: Grid) -> None:
    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    tr_s, acquired_s, times = header.get("tr_s"), header.get("acquired_s"), header.get("slice_times_s")
    if tr_s is not None and not (is_number(tr_s) and tr_s > 0):
        raise DataError(f"tr_s: expected > 0 seconds, got {tr_s!r}")
    if acquired_s is not None and not is_number(acquired_s):
        raise DataError(f"acquired_s: expected seconds, got {acquired_s!r}")
    if times is not None and not (isinstance(times, list) and len(times) == grid.shape[2] and all(map(is_number, times))):
        raise DataError(f"slice_times_s: expected {grid.shape[2]} numbers, got {times!r}")


def _series(header: dict[str, Any]) -> SeriesHeader:
    tr_s, name = header.get("tr_s"), header.get("series", "")
    if not isinstance(name, str):
        raise DataError(f"series: expected text, got {name!r}")
    return SeriesHeader(
        uid=name,
        study_uid="",
        number=None,
        description=name,
        protocol="",
        vendor="script",
        model="",
        kind="pushed",
        image_type=(),
        sequence="",
        echo_planar=True,
        spin_echo=False,
        modality="MR",
        tr_s=None if tr_s is None else float(tr_s),
        volumes=None,
        slices=None,
        b_value=0.0,
    )
