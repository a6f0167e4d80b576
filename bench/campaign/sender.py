"""What stands in for the scanner: it does the steps of a scenario in their time, and keeps a journal of what it did."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from rtevo.errors import LinkError
from rtevo.simulate import ParticipantLink, RealTime, Room
from rtevo.simulate.send import StoreSender
from rtevo.wire import Shown

__all__ = ["Journal", "Sender", "Step", "Watched"]

ANSWER_MS = 50  # between looks whether the session is still there
TAKEN_S = 20.0  # longest wait for the presenter to take the trigger


@dataclass(frozen=True)
class Step:
    """One thing that is done to the folder, or sent.

    Parameters
    ----------
    at_tr : float
        When, in repetition times after the trigger; less than 0: so long before it.
    do : str
        write (a whole file, or the first bytes of one), append, fill (overwrite from `offset` on), rename (to `to`), remove, send, knock
        (a connection that asks for nothing).
    name : str
        Of the file.
    data : bytes or callable
    volume : int
        Of `run`, that it is a part of; -1: none.
    run : str
        "run", or another that is not the session's.
    pieces : int
        So many files make the volume.
    whole : bool
        The volume's file is all there after this step.
    sha256 : str
        Of the volume's pixels.
    offset : int
    to : str
    """

    at_tr: float
    do: str
    name: str
    data: bytes | Callable[[], bytes] = b""
    volume: int = -1
    run: str = "run"
    pieces: int = 1
    whole: bool = False
    sha256: str = ""
    offset: int = 0
    to: str = ""


class Journal:
    """A line of JSON for each thing that was done, written at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def note(self, did: str, **what: Any) -> None:
        """Write a line, with time.monotonic_ns()."""
        self._file.write(json.dumps({"t_ns": time.monotonic_ns(), "did": did, **what}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Watched(Room):
    """A scanner room in which a participant looks, and what is seen is written down."""

    def __init__(self, link: ParticipantLink, session_time: RealTime, journal: Journal) -> None:
        super().__init__(link, session_time)
        self._journal = journal

    def trigger(self) -> bool:
        """Press the trigger and wait until the presenter has taken it, which takes its time on a busy computer; False where it does not."""
        self._press("5", 0.0)
        deadline = time.monotonic() + TAKEN_S
        while not self._pressed and time.monotonic() < deadline:
            if not self.wait_until(self.time.now_s() + 0.01):
                return False
        self.start_s = self.time.now_s()
        self._journal.note("trigger")
        return self._pressed

    def _look(self, message: Shown, pixels: Any) -> None:
        if pixels is not None:
            self._journal.note("seen", sha256=hashlib.sha256(pixels.tobytes()).hexdigest(), kind=message.kind)


class _Push:
    """A connection to the socket that takes volumes; it gives up when the session has ended."""

    def __init__(self, port: int, alive: Callable[[], bool]) -> None:
        self._port, self._alive = port, alive
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._open()

    def _open(self) -> None:
        self._socket = self._context.socket(zmq.REQ)
        self._socket.set(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{self._port}")

    def send(self, contents: bytes) -> dict[str, Any] | None:
        """Send a message and return its answer; None where none came."""
        self._socket.send_multipart(contents.split(b"\n", 1))
        while not self._socket.poll(ANSWER_MS):
            if not self._alive():
                self._socket.close()
                self._open()
                return None
        return dict(json.loads(self._socket.recv()))

    def close(self) -> None:
        self._context.destroy(linger=0)


class Sender:
    """Does steps, and writes down what it did and what it was answered.

    Parameters
    ----------
    folder : Path
        Where files go.
    transport : str
        See :data:`bench.campaign.series.TRANSPORTS`.
    port : int
        Where the session listens.
    journal : Journal
    alive : callable
        Whether the session still runs.
    """

    def __init__(self, folder: Path, transport: str, port: int, journal: Journal, alive: Callable[[], bool]) -> None:
        self._folder, self._transport, self._port, self._journal, self._alive = folder, transport, port, journal, alive
        self._store: StoreSender | None = None
        self._push = _Push(port, alive) if transport == "push" else None

    def close(self) -> None:
        """Hang up."""
        if self._push is not None:
            self._push.close()
        if self._store is not None:
            with suppress(Exception):
                self._store.__exit__()

    def do(self, step: Step) -> None:
        """Do one step; what cannot be done is written down, too."""
        began_ns, data = time.monotonic_ns(), step.data if isinstance(step.data, bytes) else step.data()
        noted: dict[str, Any] = {"name": step.name, "volume": step.volume, "run": step.run, "pieces": step.pieces, "whole": step.whole}
        try:
            answer = getattr(self, f"_{step.do}")(step, data)
        except (OSError, LinkError, RuntimeError) as error:
            answer = {"ok": None, "error": f"{type(error).__name__}: {error}"}
        self._journal.note(step.do, began_ns=began_ns, **noted, sha256=step.sha256, answer=answer)

    def _write(self, step: Step, data: bytes) -> None:
        (self._folder / step.name).write_bytes(data)

    def _append(self, step: Step, data: bytes) -> None:
        with (self._folder / step.name).open("ab", buffering=0) as file:
            file.write(data)

    def _fill(self, step: Step, data: bytes) -> None:
        with (self._folder / step.name).open("r+b", buffering=0) as file:
            file.seek(step.offset)
            file.write(data)

    def _rename(self, step: Step, _: bytes) -> None:
        os.replace(self._folder / step.name, self._folder / step.to)

    def _remove(self, step: Step, _: bytes) -> None:
        (self._folder / step.name).unlink(missing_ok=True)

    def _knock(self, step: Step, data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
            connection.sendall(data)

    def _send(self, step: Step, data: bytes) -> dict[str, Any] | None:
        if self._push is not None:
            return self._push.send(data)
        if self._store is None:
            socket.create_connection(("127.0.0.1", self._port), timeout=5.0).close()  # an association that is refused leaves a socket open
            self._store = StoreSender("127.0.0.1", self._port, "RTEVO", "CAMPAIGN")
        try:
            self._store.send(step.name, data)
        except (LinkError, RuntimeError, OSError) as error:
            refused = "answered 0x" in str(error)
            with suppress(Exception):
                self._store.__exit__()
            self._store = None
            return {"ok": False if refused else None, "error": str(error)}
        return {"ok": True}
