"""A stage's view of its session: the plan, the clock, its rings, and a pipe to the supervisor."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any, TypeVar, cast

import numpy as np

from rtevo.outside import shown_lines
from rtevo.session.clock import Clock
from rtevo.session.plan import Plan
from rtevo.session.rings import numbered, ring_name
from rtevo.shm import Ring, RingClosed, RingTimeout, WriterLost, wait_any

__all__ = ["LOST_S", "WAIT_S", "Context", "Kept", "Turns", "serve"]

T = TypeVar("T")
InputT = TypeVar("InputT", bound="Ring | Turns")

WAIT_S = 0.1  # interval at which a waiting stage checks the shared words
IN_A_ROW = 8  # most messages of one ring before the other rings are read
LOST_S = 0.02  # pause if a ring's writer is dead
PROGRESS_S = 0.5  # interval between a stage's reports of progress


class _PipeHandler(logging.Handler):
    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell("log", level=record.levelname, text=shown_lines(record.getMessage()))


class Kept:
    """A slow-to-make object that a process keeps for the next runs of a visit; a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key: Any = None
        self._thing: Any = None

    def get(self, key: Any, make: Callable[[], AbstractContextManager[T]]) -> T:
        """Return the kept object if its key is equal; else close it, and make a new one."""
        if self._thing is None or key != self._key:
            self.close()
            self._key, self._thing = key, self._stack.enter_context(make())
        return cast("T", self._thing)

    def close(self) -> None:
        """Close it."""
        self._key = self._thing = None
        self._stack.close()


class Context:
    """A stage's view of the session: the plan, the clock, its rings, and a pipe to the supervisor.

    Parameters
    ----------
    stage : str
    plan : Plan
    pipe : Connection
        Control messages (JSON): progress, ready, log, done, error out; go in, and, if the process stays, the next run's plan. If the pipe
        ends, the supervisor is gone.
    kept : Kept, optional
        Objects that the process has kept from the previous run.
    """

    def __init__(self, stage: str, plan: Plan, pipe: Connection, kept: Kept | None = None) -> None:
        self.stage, self.plan, self._pipe, self.kept = stage, plan, pipe, kept or Kept()
        self._following: Queue[Plan | None] = Queue()
        self.config = plan.config
        self._lock, self._go = threading.Lock(), threading.Event()
        self._told: dict[str, Any] = {}
        self._orders: deque[tuple[str, str]] = deque()
        self._progress_s = -math.inf
        self._stack = ExitStack()
        self.clock = self._stack.enter_context(Clock(plan.runtime / "clock"))
        self.log = logging.getLogger("rtevo")
        self.log.setLevel(logging.INFO)
        handler = _PipeHandler(self.tell)
        self.log.addHandler(handler)
        self._stack.callback(self.log.removeHandler, handler)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                came = self._pipe.recv_bytes()
                if not came.startswith(b"{"):  # not a message but the next run's plan
                    return self._following.put(pickle.loads(came))
                message = json.loads(came)
                if "order" in message:
                    self._orders.append((message["order"], message["text"]))
                else:
                    self._told = message
                    self._go.set()
        except (EOFError, OSError):
            os._exit(3)  # the supervisor is gone; the next start cleans up

    def tell(self, kind: str, **payload: Any) -> None:
        """Send the supervisor a control message."""
        with self._lock:
            self._pipe.send_bytes(json.dumps({"kind": kind, "stage": self.stage, **payload}).encode())

    def ready(self, **payload: Any) -> None:
        """Report that this stage is ready; the payload reaches every stage that waits for go."""
        self.tell("ready", payload=payload)

    def progress(self, text: str) -> None:
        """Report progress towards being ready, so that slow work is not mistaken for a hang."""
        if time.monotonic() > self._progress_s + PROGRESS_S:
            self._progress_s = time.monotonic()
            self.tell("progress", text=text)

    def wait_for_go(self) -> dict[str, Any]:
        """Wait until every stage is ready; return the payloads of all. Empty if the session ends before."""
        while not self._go.wait(WAIT_S):
            if self.clock.ending:
                break
        return self._told

    def wait_for_next(self) -> Plan | None:
        """Wait for the next run's plan, once this run is over; return None if the visit is over."""
        return self._following.get()

    def orders(self) -> Iterator[tuple[str, str]]:
        """Yield the operator's orders to this stage since the last call: action and text."""
        while self._orders:
            yield self._orders.popleft()

    def writer(self, ring: str) -> Ring:
        """Attach as the ring's writer."""
        return self._stack.enter_context(Ring.attach(ring_name(self.plan.name, ring), writer=True))

    def reader(self, ring: str) -> Ring:
        """Attach as the ring's reader of this stage's name."""
        return self._stack.enter_context(Ring.attach(ring_name(self.plan.name, ring), reader=self.stage))

    def images(self) -> Turns:
        """Attach as the reader of every device's images, in the order of the requests."""
        return Turns([self.reader(name) for name in numbered("images", self.plan.devices)], self.stage)

    def close(self) -> None:
        """Detach from everything."""
        self._stack.close()


class Turns:
    """Rings written in turn, read as one: the first message is in the first ring, the next in the second, ...

    The end is reached when the ring whose turn it is has ended. A restarted reader continues where it stopped.

    Parameters
    ----------
    rings : sequence of Ring
        Rings, attached as `reader`.
    reader : str
    """

    def __init__(self, rings: Sequence[Ring], reader: str) -> None:
        self._rings = rings
        self._taken = sum(ring.published - ring.lag(reader) for ring in rings)

    @property
    def now(self) -> Ring:
        """The ring whose turn it is."""
        return self._rings[self._taken % len(self._rings)]

    @contextmanager
    def read(self, timeout_s: float | None = None) -> Iterator[np.void]:
        """Read the next message; see :meth:`rtevo.shm.Ring.read`."""
        with self.now.read(timeout_s) as slot:
            yield slot
        self._taken += 1


def serve(inputs: dict[str, InputT], handlers: Mapping[str, Callable[[Any], None]], timeout_s: float) -> list[str]:
    """Wait until an input has messages, pass each waiting slot to its handler, in the order of `inputs`, and release it.

    At most `IN_A_ROW` slots of one input are handled before the others are read, so that a fast input does not block the others.

    Returns
    -------
    list of str
        The inputs that have ended; they are removed from `inputs`.
    """
    now = {name: ring.now if isinstance(ring, Turns) else ring for name, ring in inputs.items()}
    names = {ring.name: name for name, ring in now.items()}
    ended = []
    for ring in wait_any(list(now.values()), timeout_s):
        name = names[ring.name]
        try:
            for _ in range(IN_A_ROW):
                with inputs[name].read(timeout_s=0) as slot:
                    handlers[name](slot)
        except RingTimeout:
            continue
        except WriterLost:
            time.sleep(LOST_S)  # the supervisor restarts the writer, or ends the session
        except RingClosed:
            del inputs[name]
            ended.append(name)
    return ended
