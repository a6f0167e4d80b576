"""Where network connections wait until they ask for a DICOM association: a bare one holds no place of the receiver's.

Port checks and monitors open a connection and say nothing, for as long as they like. Here one thread looks after all of them, and only
a connection on which a whole association request (A-ASSOCIATE-RQ, DICOM PS3.8, 9.3.2) has arrived is passed on.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Lobby"]

WAIT_S = 5.0  # for the request; senders send it with the connection
MOST_WAITING = 256  # connections; beyond them the oldest of whoever has most is closed
LONGEST_REQUEST = 1 << 18  # bytes
ASSOCIATE_REQUEST, HEADER = 0x01, 6  # kind of unit, and length of what says how long it is
LOOK_S = 0.01  # between looks at a request of which a part has come
IDLE_S = 0.5


@dataclass(eq=False)
class _Waiting:
    connection: socket.socket
    address: Any
    until_s: float
    partial: bool = False


def _host(each: _Waiting) -> Any:
    return each.address[0] if isinstance(each.address, tuple) else each.address


class Lobby:
    """Connections that have not asked for anything yet.

    Parameters
    ----------
    admit : callable
        Takes a connection and its address once a whole request lies in its buffer, unread.
    """

    def __init__(self, admit: Callable[[socket.socket, Any], None]) -> None:
        self._admit = admit
        self._entered: list[_Waiting] = []
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._waiting: list[_Waiting] = []
        self._open = True
        self._thread = threading.Thread(target=self._run, name="DicomLobby", daemon=True)
        self._thread.start()

    def enter(self, connection: socket.socket, address: Any) -> None:
        """Keep a connection waiting; it is closed if nothing comes of it."""
        with self._lock:
            self._entered.append(_Waiting(connection, address, time.monotonic() + WAIT_S))
        self._ringer.send(b"!")

    def close(self) -> None:
        """Close what waits, and end."""
        if self._open:
            self._open = False
            self._ringer.send(b"!")
            self._thread.join()

    def _run(self) -> None:
        while self._open:
            partial = any(each.partial for each in self._waiting)
            ready = {key.fileobj for key, _ in self._selector.select(LOOK_S if partial else IDLE_S)}
            if self._bell in ready:
                self._bell.recv(4096)
                self._take_in()
            for each in list(self._waiting):
                if each.partial or each.connection in ready:
                    self._look(each)
                if time.monotonic() > each.until_s:
                    self._leave(each, close=True)
        self._take_in()
        for each in list(self._waiting):
            self._leave(each, close=True)
        self._selector.close()
        self._bell.close()
        self._ringer.close()

    def _take_in(self) -> None:
        with self._lock:
            entered, self._entered = self._entered, []
        for each in entered:
            self._waiting.append(each)
            self._selector.register(each.connection, selectors.EVENT_READ)
        while len(self._waiting) > MOST_WAITING:  # the oldest of whoever has most: another's flood pushes nobody out
            (most, _), *_ = Counter(_host(each) for each in self._waiting).most_common(1)
            self._leave(next(each for each in self._waiting if _host(each) == most), close=True)

    def _look(self, each: _Waiting) -> None:
        """Pass a connection on, let it wait on, or close it."""
        try:
            head = each.connection.recv(HEADER, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            length = HEADER + int.from_bytes(head[2:HEADER], "big") if len(head) == HEADER else HEADER
            if not head or head[0] != ASSOCIATE_REQUEST or length > LONGEST_REQUEST:
                self._leave(each, close=True)
                return
            whole = len(head) == HEADER and len(each.connection.recv(length, socket.MSG_PEEK | socket.MSG_DONTWAIT)) == length
        except BlockingIOError:
            return
        except OSError:
            self._leave(each, close=True)
            return
        if whole:
            self._leave(each, close=False)
            self._admit(each.connection, each.address)
        elif not each.partial:
            each.partial = True
            self._selector.unregister(each.connection)  # it would be ready all the time

    def _leave(self, each: _Waiting, *, close: bool) -> None:
        if each not in self._waiting:
            return
        self._waiting.remove(each)
        if not each.partial:
            self._selector.unregister(each.connection)
        if close:
            with contextlib.suppress(OSError):
                each.connection.close()
