"""The bridge's socket: which senders are admitted, how much they may send, and what is reported of the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from rtevo import wire
from rtevo.bridge.keys import SUPPORT_FILE
from rtevo.errors import LinkError
from rtevo.outside import shown
from rtevo.wire import WireError

__all__ = ["Door"]

DRAIN = 512  # messages read in one go
RATE_PER_S = 2000  # messages of one sender; a presenter sends a few each second
QUEUED = 256  # unread messages of one sender; the network holds back the rest
FRAMES = 2  # of a message
KNOWN = 64  # senders that are counted
REPEAT_S = 10.0  # shortest time between two equal reports
OF_A_KIND, WHILE_S = 5, 60.0  # most reports of one kind, with different senders' texts, in this time
LONGEST = 500  # characters

_HANDSHAKES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it left before the handshake was done",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "no encryption, another support computer's key, or not a presenter",
}


class _Admitted:
    """Answers the authenticator which keys are admitted; remembers those that are not."""

    def __init__(self, clients: dict[str, str]) -> None:
        self.keys = {key.encode(): name for name, key in clients.items()}
        self.refused: deque[str] = deque(maxlen=16)

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a client is admitted; `key` is Z85 text already."""
        if key in self.keys:
            return True
        self.refused.append(key.decode("ascii", "replace"))
        return False


class Door:
    """A ROUTER socket that listens; encrypted if there are keys.

    Parameters
    ----------
    bind : str
        Endpoint.
    keys : Path, optional
        Folder that ``python -m rtevo.bridge keys`` made (or its support.json).
    limited : bool
        Whether senders have a rate limit.
    tell : callable
        Called with each text for the operator.

    Raises
    ------
    LinkError
        `bind` cannot be listened at, other computers can reach it without keys, or the keys cannot be used.
    """

    def __init__(self, bind: str, keys: Path | None, limited: bool, tell: Callable[[str], None]) -> None:
        if keys is None and not wire.is_loopback(bind):
            raise LinkError(
                f"bridge bind: other computers can reach {bind}, which needs keys (make them with `python -m rtevo.bridge "
                "keys DIR` and name the folder in the session file); without keys only tcp://127.0.0.1:PORT is allowed"
            )
        self._limited, self._tell, self._encrypted = limited, tell, keys is not None
        self._told: dict[str, float] = {}
        self._kinds: dict[str, deque[float]] = {}  # times of the reports of each kind
        self._counts: dict[bytes, tuple[int, int]] = {}  # sender -> second, messages in it
        self._context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._admitted = _Admitted({})
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(sum(_HANDSHAKES))
        try:
            self._listen(bind, keys)
        except BaseException:
            self.close()
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _listen(self, bind: str, keys: Path | None) -> None:
        socket = self._socket
        socket.linger = 500  # ms, for the last acknowledgements
        socket.rcvhwm = QUEUED
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_HEADER_BYTES)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # for a presenter that reconnects before its old connection is known to be dead
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
        try:
            if keys is not None:
                self._lock(keys)
            socket.bind(bind)
        except WireError as error:
            raise LinkError(f"bridge keys: {error}") from error
        except zmq.ZMQError as error:
            raise LinkError(f"bridge bind: cannot listen at {bind}: {error.strerror}") from error

    def _lock(self, keys: Path) -> None:
        """Encrypt, and admit only the presenters in the key file."""
        own = wire.KeyFile.read(keys / SUPPORT_FILE if keys.is_dir() else keys, "support")
        self._admitted = _Admitted(dict(own.clients))
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", credentials_provider=self._admitted)
        self._socket.curve_server = True
        self._socket.curve_publickey, self._socket.curve_secretkey = own.public.encode(), own.secret.encode()

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return bool(self._socket.closed)

    def close(self) -> None:
        """Close the socket."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()

    def wait(self, timeout_ms: int) -> bool:
        """Wait for a message; return whether one has come."""
        return bool(self._socket.poll(timeout_ms))

    def send(self, frames: list[bytes], to: bytes) -> bool:
        """Send frames; return whether the receiver is connected and has room."""
        try:
            self._socket.send_multipart([to, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def messages(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yield the messages that have come, up to a limit: sender and frames."""
        for _ in range(DRAIN):
            try:
                sender = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frames: list[bytes] = []
            while self._socket.rcvmore:
                frame = self._socket.recv()
                if len(frames) <= FRAMES:  # keep one frame too many, so that it is noticed
                    frames.append(frame)
            if not self._too_many(sender):
                yield sender, frames

    def _too_many(self, sender: bytes) -> bool:
        """Whether this message exceeds its sender's rate; it is dropped unread (a presenter sends its own again)."""
        second = time.monotonic_ns() // 1_000_000_000
        since, count = self._counts.get(sender, (second, 0))
        count = count + 1 if since == second else 1
        if len(self._counts) >= KNOWN and sender not in self._counts:
            self._counts.clear()
        self._counts[sender] = second, count
        if not self._limited or count <= RATE_PER_S:
            return False
        self.tell(f"flood: more than {RATE_PER_S} messages in a second from one sender; the rest is dropped")
        return True

    def look(self) -> None:
        """Report the senders that were not admitted."""
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())
            why = _HANDSHAKES.get(event["event"], "handshake failed")
            if not self._encrypted:
                why = "the sender encrypts, but this session has no [bridge] keys; or the sender is not a presenter"
            self.tell(f"a connection was refused: {why}")
        while self._admitted.refused:
            key = self._admitted.refused.popleft()
            self.tell(f"refused a presenter whose key is not listed: {key}", "presenters whose keys are not listed")

    def tell(self, text: str, kind: str = "") -> None:
        """Report to the operator; equal texts not too often, and only a few texts of one kind in a while, whatever senders write."""
        now, text, repeat_s = time.monotonic(), shown(text, LONGEST), REPEAT_S
        if kind and now - self._told.get(text, -repeat_s) >= repeat_s:
            times = self._kinds.setdefault(kind, deque())
            while times and now - times[0] > WHILE_S:
                times.popleft()
            if len(times) < OF_A_KIND:
                times.append(now)
            else:
                text, repeat_s = f"many more {kind}; they are not listed one by one", WHILE_S
        if now - self._told.get(text, -repeat_s) >= repeat_s:
            if len(self._told) > KNOWN:
                self._told = {said: when for said, when in self._told.items() if now - when < WHILE_S}
            self._told[text] = now
            self._tell(text)
