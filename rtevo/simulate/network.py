"""A network that fails: a TCP connection through it is delayed, held up as by lost packets, and cut, all from a seed."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from types import TracebackType

import numpy as np

__all__ = ["FaultyNetwork"]

CHUNK_BYTES = 65536


class FaultyNetwork:
    """Stands between a server and those who connect to `endpoint` in its place.

    TCP hides lost packets: they come again after a timeout, and all that follows waits for them. So a loss is a hold-up here. A cut loses
    what is under way, and nobody gets through until the cable is plugged in again.

    Parameters
    ----------
    to : str
        The server's endpoint, ``tcp://127.0.0.1:PORT``.
    delay_s : float
        Shortest way through the network in one direction, s.
    jitter_s : float
        Mean of an exponential delay on top of it, s.
    loss : float
        Share of packets that are lost, to be held up by `timeout_s`.
    timeout_s : float
        TCP's retransmission timeout, s (RFC 6298: 0.2 s at the least in practice).
    seed : int
        Of delays and losses.
    """

    def __init__(
        self, to: str, *, delay_s: float = 0.0, jitter_s: float = 0.0, loss: float = 0.0, timeout_s: float = 0.2, seed: int = 0
    ) -> None:
        self._target = ("127.0.0.1", int(to.rsplit(":", 1)[1]))
        self._delay_s, self._jitter_s, self._loss, self._timeout_s = delay_s, jitter_s, loss, timeout_s
        self._seeds = np.random.SeedSequence(seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock, self._up = threading.Lock(), True
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                if not self._up:
                    here.close()
                    continue
                try:
                    there = socket.create_connection(self._target)
                except OSError:
                    here.close()
                    continue
                self._pairs.append((here, there))
            for end in (here, there):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for a, b in ((here, there), (there, here)):
                under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                self._start(self._take, a, under_way)
                self._start(self._bring, a, b, under_way)

    def _take(self, a: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        """Read what is sent and say when it is there."""
        rng, due_s = np.random.default_rng(self._seeds.spawn(1)[0]), 0.0
        with contextlib.suppress(OSError):
            while data := a.recv(CHUNK_BYTES):
                way_s = self._delay_s + self._jitter_s * rng.exponential() + self._timeout_s * (rng.random() < self._loss)
                due_s = max(due_s, time.monotonic() + way_s)  # in order
                under_way.put((due_s, data))
        under_way.put((0.0, b""))

    def _bring(self, a: socket.socket, b: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        """Deliver what has been under way for long enough."""
        with contextlib.suppress(OSError):
            while True:
                due_s, data = under_way.get()
                if not data:
                    break
                time.sleep(max(0.0, due_s - time.monotonic()))
                b.sendall(data)
        for end in (a, b):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def pull(self) -> None:
        """Cut every connection; whatever is under way is lost."""
        with self._lock:
            self._up = False
            for pair in self._pairs:
                for end in pair:
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def plug(self) -> None:
        """Accept connections again."""
        self._up = True

    def close(self) -> None:
        """Cut everything and leave."""
        self.pull()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(5)
        for pair in self._pairs:
            for end in pair:
                end.close()

    def __enter__(self) -> FaultyNetwork:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
