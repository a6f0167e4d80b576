"""A socket to which scripts push volumes, for scanners whose pictures reach the laboratory in a way of their own.

A script connects a ZeroMQ REQ or DEALER socket and sends one message of two frames for each volume:

1. JSON, UTF-8: ``{"index": 0, "shape": [80, 80, 35], "dtype": "<i2", "affine": [[...], [...], [...], [0, 0, 0, 1]], "tr_s": 2.0}``.
   ``index`` counts from 0; ``dtype`` is NumPy's (integers and real numbers); ``affine`` maps voxel indices to RAS+ millimetres.
   Optional: ``order`` (``"C"``, the default, or ``"F"``: which index runs slowest or fastest in memory), ``acquired_s`` (acquisition
   time, seconds from any moment), ``slice_times_s`` (one for each slice, from 0 to the repetition time), ``series`` (name of the run),
   ``token`` (any text, the same in all messages of a run: those with another one are refused, whoever sends them). Where the session
   combines echoes, ``echo_times_s`` (seconds) lists them, and ``shape`` and voxels have a first axis more, one for each.
2. The voxels, as many bytes as shape and dtype say.

The answer is JSON, and is given after everything was checked: ``{"ok": true}``, or ``{"ok": false, "error": "..."}``. With ``held`` in it
the volume came before the trigger, and is judged once that is there; with ``warning`` it is of no use as it is. A run begins at index 0.
The grid is the first volume's; where two later ones agree about another one, it is theirs, and the first is left out. A volume that was
refused may be sent again, put right; so may one after a lost connection: copies are dropped and counted. ``{"end": true}`` without a second
frame says that no more will come. In Python::

    socket = zmq.Context().socket(zmq.REQ)
    socket.connect("tcp://support-computer:5570")
    header = {"index": k, "shape": volume.shape, "dtype": volume.dtype.str, "affine": affine.tolist(), "tr_s": 2.0}
    socket.send_multipart([json.dumps(header).encode(), numpy.ascontiguousarray(volume)])
    answer = socket.recv_json()

Where the socket is open to other computers, both sides have keys: ``python -m rtevo.bridge keys DIR --client NAME`` makes them, DIR is
named in ``[acquisition] keys``, and the script connects with those of ``NAME.json``::

    keys = json.load(open("NAME.json"))
    socket.curve_publickey, socket.curve_secretkey = keys["public"].encode(), keys["secret"].encode()
    socket.curve_serverkey = keys["server"].encode()
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zmq

from rtevo.errors import DataError
from rtevo.ingest.admission import DOMAIN, Admission
from rtevo.ingest.assembly import Assembler
from rtevo.ingest.dicom import DicomFile
from rtevo.ingest.gate import Gate
from rtevo.ingest.header import SeriesHeader
from rtevo.ingest.nifti import volume_file
from rtevo.ingest.pushed import MAX_HEADER, data_of, header_of, series_of
from rtevo.ingest.volume import Outcome, Volume
from rtevo.outside import shown
from rtevo.records import Grid
from rtevo.wire import KeyFile

__all__ = ["PushSource"]

MAX_BYTES = 1 << 30  # of a message
WIDEST = 16  # bytes of a voxel
QUEUED = 1  # volumes of a connection that wait unread; the network holds back what is beyond
LONGEST = 500  # characters of an answer
BATCH = 16  # messages taken in one poll
CLOSE = 5  # volumes that one from another connection may be ahead of the run's last


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
    confirm : bool
        See :class:`rtevo.ingest.assembly.Assembler`.
    opened : callable, optional
        Returns the trigger's time on `clock_ns`, None before it: see :class:`rtevo.ingest.gate.Gate`. Without it nothing is held.
    most_voxels : int, optional
        Of a volume; a larger one is refused, and none is read that is larger than these take in the widest type.
    echoes : int
        So many echoes of each volume make a message.
    keys : wire.KeyFile, optional
        The support computer's: only senders whose keys it lists come in, encrypted. Without it only addresses are looked at.

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

    def __init__(
        self,
        bind: str,
        *,
        patience_s: float,
        peers: Sequence[str] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
        confirm: bool = False,
        opened: Callable[[], int | None] | None = None,
        most_voxels: int | None = None,
        echoes: int = 1,
        keys: KeyFile | None = None,
    ) -> None:
        self.problems: list[str] = []
        self.alarms: set[str] = set()
        self.duplicates = self.seen = 0
        self.ended = False
        self._patience_s = patience_s
        self._peers = {peer.removeprefix("@") for peer in peers}
        self._clock_ns = clock_ns
        self._confirm, self._most_voxels, self._echoes = confirm, most_voxels, echoes
        self._gate = Gate(opened) if opened else None
        self._runs: list[_Run] = []  # those that came; one is taken
        self._run: _Run | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._admission = Admission(self._context, self._peers, None if keys is None else dict(keys.clients)) if peers or keys else None
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 1000)
        self._socket.set(zmq.RCVHWM, QUEUED)
        self._socket.set(zmq.MAXMSGSIZE, MAX_BYTES if most_voxels is None else min(MAX_BYTES, WIDEST * most_voxels * echoes + MAX_HEADER))
        if self._admission is not None:
            self._socket.zap_domain = DOMAIN
        if keys is not None:
            self._socket.curve_server = True
            self._socket.curve_publickey, self._socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
        try:
            self._socket.bind(bind.removesuffix(":0") + ":*" if bind.endswith(":0") else bind)
        except zmq.ZMQError as error:
            self.close()
            raise DataError(f"{bind}: cannot listen there ({error})") from error
        self.endpoint: str = self._socket.get_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> PushSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Volumes that are held back until an earlier one came."""
        return self._run.assembler.held if self._run else sum(run.assembler.held for run in self._runs)

    @property
    def told(self) -> str:
        """Which run the volumes are taken from; empty until it is known."""
        series = self._run.assembler.series if self._run else None
        return f"{series.description!r}, which a script pushes{f' (TR {series.tr_s:g} s)' if series.tr_s else ''}" if series else ""

    @property
    def tr_s(self) -> float | None:
        """Repetition time in seconds by the script; None until it is known."""
        return self._run.assembler.series.tr_s if self._run else None

    def sidecar(self, volume: Volume) -> dict[str, Any]:
        """What the script says of the run; as :meth:`rtevo.ingest.FolderSource.sidecar`."""
        if self._run is None:
            return {}
        times = {"EchoTimes": list(self._run.echo_times_s)} if self._echoes > 1 else {}
        return {**self._run.assembler.series.sidecar(0.0, volume.slice_times_s), **times}

    @property
    def before_trigger(self) -> int:
        """Volumes that are held until there is a trigger."""
        if self._gate is None or self._gate.is_open():
            return 0
        return max((run.assembler.volumes for run in self._runs), default=0)

    def poll(self) -> list[Volume]:
        """Read the messages that came, without waiting.

        Returns
        -------
        list of Volume
            Those that are ready now, in run order; see :meth:`rtevo.ingest.FolderSource.poll`.
        """
        for _ in range(BATCH):
            if not self._take():
                break
        while self._admission is not None and self._admission.refused:
            self._name(f"a connection was refused: {self._admission.refused.popleft()}")
        return self._advance(final=False)

    def finish(self) -> list[Volume]:
        """Treat the messages so far as complete: return the rest of the volumes, with a gap for each missing one."""
        while self._take():
            pass
        return self._advance(final=True)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        if self._admission is not None:
            self._admission.close()
            self._admission = None
        self._context.term()

    def _name(self, text: str) -> None:
        """Name what went wrong, once."""
        if text not in self.problems:
            self.problems.append(text)

    def _advance(self, *, final: bool) -> list[Volume]:
        if self._run is None:
            self._choose(final)
        if self._run is None:
            return []
        assembler = self._run.assembler
        volumes = assembler.advance(self._clock_ns() / 1e9, final=final)
        self.problems += assembler.problems
        assembler.problems.clear()
        return volumes

    def _choose(self, final: bool) -> None:
        """Choose the first run that the trigger began; one before the trigger only if it continues, or nothing else is to come."""
        gate = self._gate
        if not self._runs or (gate is not None and not gate.is_open() and not final):
            return
        early = {id(run): [] if gate is None else gate.early(run.assembler.begun(), run.assembler.series.tr_s) for run in self._runs}
        clean = [run for run in self._runs if not early[id(run)]]
        going = [r for r in self._runs if gate is not None and gate.goes_on(r.assembler.begun(), r.assembler.series.tr_s)]
        self._run = next(iter(clean or going or (self._runs if final else [])), None)
        if self._run is None:
            return
        for run in self._runs:
            run.missed_trigger = bool(early[id(run)])
            if early[id(run)]:
                what = f"{len(early[id(run)])} volumes that {run.label} pushed came too early for this trigger"
                taken = "more follow, so they are used as the run; the trigger was probably missed: onsets are wrong"
                self.problems.append(f"{what}: {taken if run is self._run else 'they are of another run, and are not used'}")
        self._runs = [self._run]

    def _take(self) -> bool:
        """Read one message and answer it; False if there is none."""
        try:
            messages = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        address = str(messages[-1].get("Peer-Address"))
        sender, *rest = (message.bytes for message in messages)
        envelope = [sender, b""] if rest[:1] == [b""] else [sender]
        try:
            if self._peers and address not in self._peers:
                raise DataError(f"{address} is not among the allowed peers")
            answer = {"ok": True, **self._read(rest[len(envelope) - 1 :], sender, address)}
        except Exception as error:  # whatever a message does, it is a message that is refused
            why = shown(error if isinstance(error, DataError) else f"cannot be used ({type(error).__name__}: {error})", LONGEST)
            answer = {"ok": False, "error": why}
            self.problems.append(f"a pushed volume was refused: {why}")
        self.seen += 1
        self._socket.send_multipart([*envelope, json.dumps(answer).encode()])
        return True

    def _read(self, frames: list[bytes], sender: bytes, address: str) -> dict[str, str]:
        """Process a message; return what the answer reports besides its receipt."""
        header = header_of(frames)
        if header.get("end") is True:
            if self._run is not None and not self._run.accepts(sender, header.get("token")):
                raise DataError("end: expected it from the sender of the run, found another sender's")
            self.ended = True
            return {}
        if len(frames) != 2:
            raise DataError(f"expected two frames, JSON and voxels, found {len(frames)}")
        data, grid = data_of(header, frames[1], self._echoes)
        if self._most_voxels is not None and math.prod(grid.shape) > self._most_voxels:
            raise DataError(f"shape: expected at most {self._most_voxels} voxels, found {grid.shape}: set [acquisition] largest")
        series, index, times = series_of(header), header["index"], header.get("slice_times_s")
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
        file = replace(file, checksum=zlib.crc32(frames[1]))
        run = self._run_of(series, index, sender, header.get("token", ""), address)
        run.check_echoes(tuple(header.get("echo_times_s", ())))
        self._check_time(run, index)
        run.check_grid(file, grid, self._clock_ns() / 1e9, self.problems)
        self._add(run, file, index)
        run.senders[sender] = self._clock_ns() / 1e9
        self._runs = [*self._runs, *([] if run in self._runs else [run])]
        said = {}
        if data.dtype.kind == "f" and not np.isfinite(data).any():
            said["warning"] = f"volume {index}: none of its voxels is a finite number"
            self.problems.append(f"pushed {said['warning']}")
        if self._run is None and self._gate is not None and not self._gate.is_open():
            said["held"] = "the trigger has not come yet: the volume is judged when it comes"
        return said

    def _run_of(self, series: SeriesHeader, index: int, sender: bytes, token: str, address: str) -> _Run:
        """The run that a message is of: the one that was taken, or one that has begun; else a new one, which begins at index 0."""
        known = [self._run] if self._run is not None else self._runs
        for run in known:
            if run.continues(series, index, sender, token):
                return run
        if self._run is not None:
            self._run.explain(series, index, token)
        if index != 0:
            raise DataError(f"index: expected 0 as the first of a run, found {index}: the rest of an earlier run?")
        assembler = Assembler(series, patience_s=self._patience_s, first=0, confirm=self._confirm)
        return _Run(token, sender, f"{series.description!r} from {address}", assembler)

    def _check_time(self, run: _Run, index: int) -> None:
        """Refuse a volume that cannot have been measured yet, in a run that the trigger began."""
        if run is not self._run or self._gate is None or self._gate.trigger_s is None or run.missed_trigger:
            return
        now_s, tr_s = self._clock_ns() / 1e9, run.assembler.series.tr_s
        if self._gate.early({index: now_s}, tr_s):
            since_s = now_s - self._gate.trigger_s
            raise DataError(f"index: volume {index} cannot have been measured yet, {since_s:.1f} s after the trigger (TR {tr_s:g} s)")

    def _add(self, run: _Run, file: DicomFile, index: int) -> None:
        part = file.parts[0]
        outcome = run.assembler.add(file, part, time.monotonic_ns(), self._clock_ns() / 1e9, file.name)
        if outcome == Outcome.DUPLICATE:
            self.duplicates += 1
        elif outcome == Outcome.REFUSED:
            told = run.assembler.problems.pop() if run.assembler.problems else f"{file.name}: left out"
            if run.assembler.replace(file, part, time.monotonic_ns(), file.name) is not None or index not in run.assembler.begun():
                raise DataError(told)


@dataclass(eq=False)
class _Run:
    """A run that a script pushes."""

    token: str
    first: bytes  # the connection that began it
    label: str
    assembler: Assembler
    senders: dict[bytes, float] = field(default_factory=dict)  # connections that go on with it, and when each was last heard, s
    refused: set[bytes] = field(default_factory=set)  # of which it turned out that they speak beside the first
    aside: DicomFile | None = None  # a volume that was refused because it lies elsewhere than the first
    missed_trigger: bool = False  # it was taken although it began before the trigger
    echo_times_s: tuple[float, ...] = ()  # of the echoes of each volume, where they are combined

    def check_echoes(self, times_s: tuple[float, ...]) -> None:
        """Hold a message's echo times against the run's.

        Raises
        ------
        DataError
            They are others.
        """
        self.echo_times_s = self.echo_times_s or times_s
        if times_s != self.echo_times_s:
            raise DataError(f"echo_times_s: expected the run's, {list(self.echo_times_s)}, got {list(times_s)}")

    def accepts(self, sender: bytes, token: Any) -> bool:
        """Whether a sender is this run's."""
        return token == self.token if self.token else sender in self.senders

    def continues(self, series: SeriesHeader, index: int, sender: bytes, token: str) -> bool:
        """Whether a message goes on with this run: by its token, its connection, or another connection and the next index."""
        if series != self.assembler.series or token != self.token:
            return False
        if token or (sender in self.senders and sender not in self.refused):
            if not token and sender == self.first:  # others that went on while it was silent speak beside it
                self.refused |= {other for other in self.senders if other != sender}
            return True
        last = self.assembler.last
        return (sender not in self.refused and 0 < index <= last + CLOSE) or (index == 0 and last <= 0)

    def explain(self, series: SeriesHeader, index: int, token: str) -> None:
        """Raise an error that states why a message is not of this run.

        Raises
        ------
        DataError
            Always.
        """
        known = self.assembler.series
        if series != known:
            raise DataError(
                f"expected the run's series and repetition time, {known.description!r} and {known.tr_s} s, found "
                f"{shown(repr(series.description))} and {series.tr_s} s"
            )
        if token != self.token:
            raise DataError(f"token: expected that of the run, {self.label}, found another one: another sender's, or an earlier run's")
        raise DataError(
            f"index: volume {index} comes from another connection than the run, {self.label}, with last volume {self.assembler.last}: "
            "the rest of an earlier run? (a token in each message allows several connections to send one run)"
        )

    def check_grid(self, file: DicomFile, grid: Grid, now_s: float, problems: list[str]) -> None:
        """Hold a volume's grid against the run's, before it is answered.

        Raises
        ------
        DataError
            It lies elsewhere, and not where another one did that was refused against the run's first alone.
        """
        assembler, aside = self.assembler, self.aside
        difference = assembler.conflict(grid)
        if not difference:
            return
        if assembler.agreed:
            raise DataError(f"its geometry differs from the run's: {difference}")
        other = aside.parts[0].grid if aside is not None else None
        if aside is None or other is None or aside.name == file.name or other.difference(grid):
            self.aside = file
            raise DataError(f"its geometry differs from the first volume's: {difference} (if the first was wrong, the next volume decides)")
        self.aside = None
        assembler.add(aside, aside.parts[0], time.monotonic_ns(), now_s, aside.name)
        problems.append(f"{aside.name}, refused before, is used after all: it agrees with the volume after it, unlike the first")
