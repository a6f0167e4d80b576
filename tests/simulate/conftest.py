"""A coarse simulation that is quick to run, and a presenter on a script, in virtual or real time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import zmq

from rtevo.simulate import ParticipantLink, Simulation
from rtevo.wire import Key, Pressed, Seen, Shown, decode, encode

COARSE = Simulation(shape=(40, 40, 18), voxel_size_mm=(6.0, 6.0, 6.6), tr_s=1.0)


class ScriptedPresenter:
    """Shows scenes on command, waits for Seen before it continues, closes a rating screen on a key, answers keys with Pressed."""

    def __init__(self, endpoint: str) -> None:
        self.keys: list[tuple[str, int]] = []
        self.idle = threading.Event()
        self._endpoint = endpoint
        self._orders: queue.SimpleQueue[tuple[Shown, Any] | None] = queue.SimpleQueue()
        self._rating = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def show(self, kind: str, t_ns: int, picture: np.ndarray | None = None) -> None:
        self.idle.clear()
        self._orders.put((Shown(kind, t_ns, *(picture.shape[:2] if picture is not None else (0, 0))), picture))

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoint)
            while True:
                if socket.poll(1):
                    self._take(socket)
                if not self._orders.empty():
                    order = self._orders.get()
                    if order is None:
                        return
                    self._show(socket, *order)
                    self.idle.set()

    def _show(self, socket: Any, shown: Shown, picture: np.ndarray | None = None) -> None:
        self._rating = shown.kind == "rating"
        socket.send_multipart(encode(shown, picture))
        while not isinstance(self._take(socket), Seen):
            pass

    def _take(self, socket: Any) -> Any:
        message, _ = decode(socket.recv_multipart())
        if isinstance(message, Key):
            self.keys.append((message.name, message.t_ns))
            if self._rating:
                self._show(socket, Shown("fixation", message.t_ns))
            socket.send_multipart(encode(Pressed(message.name)))
        return message


class VirtualTime:
    """Lock-step: time goes to the next thing that the presenter's script or the scanner waits for, once both are at rest."""

    lock_step = True

    def __init__(self, presenter: ScriptedPresenter, script: list[tuple[float, str, np.ndarray | None]], stop_s: float = np.inf) -> None:
        self._presenter, self._script, self._stop_s = presenter, list(script), stop_s
        self._now_s, self._asked = 0.0, False
        presenter.show("text", 0)

    def now_s(self) -> float:
        return self._now_s

    def session_ns(self, monotonic_ns: int) -> int:
        return monotonic_ns

    def wait_until(self, t_s: float, serve: Callable[[float], bool]) -> bool:
        while True:
            while not self._presenter.idle.is_set():
                if serve(0.002):
                    return True
            due_s = min(t_s, self._script[0][0] if self._script else np.inf)
            if due_s > self._stop_s:
                return False
            self._now_s = max(self._now_s, due_s)
            if not self._script or self._script[0][0] > t_s:
                return True
            at_s, kind, picture = self._script.pop(0)
            self._presenter.show(kind, round(at_s * 1e9), picture)


@pytest.fixture
def coarse() -> Simulation:
    """Six-millimetre voxels, TR 1 s."""
    return COARSE


@pytest.fixture
def stage() -> Iterator[Callable[[], tuple[ParticipantLink, ScriptedPresenter]]]:
    """Make a link and a presenter that looks at it."""
    with ExitStack() as stack:

        def make() -> tuple[ParticipantLink, ScriptedPresenter]:
            link = stack.enter_context(ParticipantLink("tcp://127.0.0.1:0"))
            presenter = ScriptedPresenter(link.endpoint)
            stack.callback(presenter.close)
            return link, presenter

        yield make


@pytest.fixture
def virtual_time() -> type[VirtualTime]:
    """Virtual session time that plays a presenter's script."""
    return VirtualTime
