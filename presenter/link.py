"""The presenter's end of the link to the support computer.

A thread of its own reads and answers, so that images arrive, clock samples are stamped and the link recovers while the session waits for
a flip. The session's thread calls :meth:`Link.send`, :meth:`Link.take` and :meth:`Link.flush`, and may wait on the socket
:attr:`Link.wake`, which becomes readable when messages wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from presenter.place import Place
from rtevo import wire

__all__ = ["Link", "LinkLost", "Replaced"]

MOST_HELD = 1 << 29  # bytes of pictures that wait to be shown; a session needs far fewer
HELLO_S = 0.5  # interval between unanswered hellos
SILENT_S = 2.0  # after this time without a message the link counts as down
WAITING_S = 10.0  # interval between messages about a wait for the session
BEAT_S = 0.1
LEAVE_S = 3.0  # longest wait for the support computer to learn why this presenter leaves

REFUSALS = {  # by the other side's security, before the first message
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "this presenter's key is not listed there: make a listed key with `python -m rtevo.bridge keys`",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "the key file is another support computer's, or no encrypted bridge listens there",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it hangs up: check that the key file is this support computer's, and that it needs one",
}

_log = logging.getLogger("presenter")


class LinkLost(Exception):  # noqa: N818  (what happened, not a mistake)
    """The session is gone; the message says why."""


class Replaced(LinkLost):
    """Another presenter shows the session now."""


class Link:
    """Connection to a session's bridge.

    Parameters
    ----------
    endpoint : str
        Address of the bridge, as ``tcp://192.168.0.10:5555``.
    keys : wire.KeyFile, optional
        Needed unless the endpoint is loopback.
    display : str
        Kind of display; reported to the bridge.
    lost_s : float
        Give up after this time without an answer of the bridge, s.
    connect_s : float
        Give up if no session answers within this time after the start, s.
    clock_ns : callable
        This computer's monotonic clock; events must be stamped with the same.
    place : Place, optional
        This computer; None: determined here. The link closes it.

    Raises
    ------
    LinkLost
        Unencrypted messages would leave this computer, or the endpoint is invalid.
    """

    def __init__(
        self,
        endpoint: str,
        keys: wire.KeyFile | None = None,
        display: str = "headless",
        *,
        lost_s: float = 300.0,
        connect_s: float = 3600.0,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        place: Place | None = None,
    ) -> None:
        if keys is None and not wire.is_loopback(endpoint):
            raise LinkLost(f"--connect {endpoint}: a link to another computer needs --key FILE (made by python -m rtevo.bridge keys)")
        self._endpoint, self._display, self._clock_ns = endpoint, display, clock_ns
        self._encrypted = keys is not None
        self._lost_ns, self._connect_ns = round(lost_s * 1e9), round(connect_s * 1e9)
        self._lock = threading.Condition()
        self._outbox, self._inbox = wire.Outbox(), wire.Inbox()
        self._image: tuple[int, ...] = ()
        self._refusal = ""
        self._place = place or Place()
        self._rival = 0  # this computer's presenter that has, or had, the session
        self._trouble = ""
        self._refused, self._refused_ns = "", 0  # by the bridge, for now
        self._taken: deque[tuple[wire.Numbered, memoryview | None]] = deque()
        self._held = 0  # bytes of pictures that were taken and are not shown yet
        self._signalled = self._stop = False
        self._silent = False  # the bridge counts as down
        self._over = False  # the bridge has taken our goodbye: silence is no longer a problem
        self._failure: LinkLost | None = None
        self._welcome: wire.Welcome | None = None
        self._heard_ns = self._began_ns = self._mentioned_ns = clock_ns()
        self._hello_ns = 0
        self.seen = 0  # number of the last message from the bridge that the session has taken
        self._context = zmq.Context()
        self.wake: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self.wake.bind("inproc://wake")
        self._inner: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._inner.connect("inproc://wake")
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | sum(REFUSALS))
        self._open(keys)
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def _open(self, keys: wire.KeyFile | None) -> None:
        socket = self._socket
        socket.setsockopt(zmq.ROUTING_ID, b"P" + os.urandom(8))
        socket.setsockopt(zmq.IMMEDIATE, 1)  # without a connection nothing piles up: numbered messages are kept anyway
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_PIXEL_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
        socket.linger = 500
        if keys is not None:
            socket.curve_serverkey = keys.server.encode()
            socket.curve_publickey, socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self._close_sockets()
            self.wake.close()
            self._place.close()
            self._context.term()
            raise LinkLost(f"--connect {self._endpoint}: {error.strerror} (expected tcp://HOST:PORT)") from error

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        for socket in (self._monitor, self._socket, self._inner):
            socket.close()

    # --- the session's thread -----------------------------------------------------------------------------------------------------

    def welcome(self) -> wire.Welcome:
        """Wait for the session.

        Raises
        ------
        LinkLost
            The bridge refused, speaks another version, or did not answer in time.
        """
        with self._lock:
            while self._welcome is None and self._failure is None:
                self._lock.wait(0.5)  # a keyboard interrupt is only seen between waits
        welcome = self.welcomed()
        assert welcome is not None
        return welcome

    def welcomed(self) -> wire.Welcome | None:
        """Return the session if it has answered, else None.

        Raises
        ------
        LinkLost
            As for `welcome`.
        """
        with self._lock:
            if self._welcome is None and self._failure is not None:
                raise self._failure
            return self._welcome

    def leave(self, trouble: str, timeout_s: float = LEAVE_S) -> bool:
        """Report to the support computer why nothing can be presented here; return whether it has received the report.

        Parameters
        ----------
        trouble : str
            One sentence.
        timeout_s : float
            Longest wait for the answer, s.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._trouble, self._hello_ns = trouble.encode()[: wire.MAX_TEXT_BYTES].decode(errors="ignore"), 0
        self._poke()
        with self._lock:
            while self._failure is None and (left_s := deadline - time.monotonic()) > 0:
                self._lock.wait(min(left_s, 0.5))
            return self._failure is not None

    def send(self, message: wire.NumberedT) -> int:
        """Send a numbered message, however long that takes; return its number."""
        with self._lock:
            number = self._outbox.add(message).sequence
        self._poke()
        return number

    def shown(self, size: int) -> None:
        """Record that a picture of this many bytes is no longer kept."""
        self._hold(-size)

    def _hold(self, size: int) -> None:
        with self._lock:
            self._held += size

    def _has_room(self, size: int) -> bool:
        """Whether there is room for another picture; otherwise the bridge keeps it."""
        with self._lock:
            return not self._held or self._held + size <= MOST_HELD

    def take(self) -> list[tuple[wire.Numbered, memoryview | None]]:
        """Return the messages that have come, with their pixels, oldest first.

        Raises
        ------
        LinkLost
            The session is gone.
        """
        while self.wake.poll(0):
            self.wake.recv()
        with self._lock:
            self._signalled = False
            taken = list(self._taken)
            self._taken.clear()
            if self._failure is not None and (not taken or isinstance(self._failure, Replaced)):
                raise self._failure
        if taken:
            self.seen = taken[-1][0].sequence
        return taken

    @property
    def silent(self) -> bool:
        """Whether no message has come from the support computer for `SILENT_S`."""
        return self._clock_ns() - self._heard_ns > SILENT_S * 1e9

    @property
    def last(self) -> int:
        """Number of the last message sent."""
        with self._lock:
            return self._outbox.last

    def acknowledged(self, number: int) -> bool:
        """Return whether the bridge has handled everything sent up to that number."""
        with self._lock:
            return self._outbox.acknowledged >= number

    def flush(self, timeout_s: float) -> bool:
        """Wait until the bridge has handled everything sent; return whether it has."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while self._outbox.acknowledged < self._outbox.last and self._failure is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._lock.wait(min(left_s, 0.5))
            return self._outbox.acknowledged == self._outbox.last

    def close(self) -> None:
        """Stop the thread and close; unacknowledged messages are lost (see `flush`)."""
        self._stop = True
        self._poke()
        self._thread.join()
        self._place.close()
        self.wake.close()
        self._context.term()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _poke(self) -> None:
        with contextlib.suppress(zmq.Again):  # a thousand wake-ups wait already
            self.wake.send(b"", zmq.NOBLOCK)

    # --- the link's thread --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._inner, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        try:
            while not self._stop:
                ready = dict(poller.poll(round(BEAT_S * 1000)))
                if self._socket in ready:
                    self._drain()
                if self._inner in ready:
                    while self._inner.poll(0):
                        self._inner.recv()
                if self._monitor in ready:
                    self._look_at_connection()
                self._beat()
                self._send_due()
            self._send_due()
        except Exception as error:  # the session must learn of any error
            _log.exception("link")
            self._fail(LinkLost(f"the link failed: {error!r}"))
        finally:
            self._close_sockets()

    def _look_at_connection(self) -> None:
        """Handle a connection: send a hello; or a refusal: remember the reason."""
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._refusal = ""
                self._say_hello()
            else:
                plain = "it hangs up: the bridge encrypts, which needs --key FILE here"
                self._refuse(REFUSALS[zmq.Event(event)] if self._encrypted else plain)

    def _refuse(self, why: str) -> None:
        """Remember why there is no connection; a new reason is logged at once."""
        if why != self._refusal:
            self._mentioned_ns = self._clock_ns() - round(WAITING_S * 1e9) - 1
        self._refusal = why

    def _say_hello(self) -> None:
        software = f"Python {platform.python_version()} on {platform.system()}"
        session = self._welcome.session if self._welcome else ""
        hello = wire.Hello(
            software, self._display, session, self._inbox.received, self._outbox.acknowledged, self._image,
            self._place.name, self._place.process, self._rival if self._place.has_ended(self._rival) else 0, self._trouble,
        )  # fmt: skip
        if not self._over and self._put(wire.encode(hello)):
            self._hello_ns = self._clock_ns()

    def _drain(self) -> None:
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            arrived_ns = self._clock_ns()
            try:
                message, pixels = wire.decode(frames)
            except wire.VersionError as error:
                self._fail(LinkLost(str(error)))
                return
            except wire.WireError as error:
                _log.warning("unreadable message from %s: %s", self._endpoint, error)
                continue
            self._heard_ns = arrived_ns
            self._answer(message, pixels, arrived_ns)

    def _answer(self, message: wire.Message, pixels: memoryview | None, arrived_ns: int) -> None:
        if isinstance(message, wire.Ping):
            self._put(wire.encode(wire.Pong(message.sent_ns, arrived_ns, self._clock_ns(), self._inbox.received)))
            self._confirm(message.received)
        elif isinstance(message, wire.Ack):
            self._confirm(message.received)
            if message.missing:
                with self._lock:
                    self._outbox.gap()
        elif isinstance(message, wire.Welcome):
            self._start(message)
        elif isinstance(message, wire.Refused):
            if message.final:
                lost = Replaced if message.replaced else LinkLost
                self._fail(lost(f"the support computer refused: {message.reason}"))
            elif message.reason != self._refused:  # logged at once, and again with each message about the wait
                self._mentioned_ns = self._clock_ns()
                _log.warning("the support computer refuses for now: %s", message.reason)
            self._refused, self._refused_ns, self._rival = message.reason, arrived_ns, message.process
        elif isinstance(message, (wire.Image, wire.Away, wire.Tick, wire.Pause, wire.End)):
            if isinstance(message, wire.Image) and pixels is not None and not self._has_room(len(pixels)):
                return  # it comes again
            if self._inbox.take(message):
                if isinstance(message, wire.Image):
                    self._hold(0 if pixels is None else len(pixels))
                    self._image = (message.generation, message.candidate)
                    message = _judged(message, pixels)
                self._signal(message, pixels)
            self._put(wire.encode(wire.Ack(self._inbox.received, self._inbox.missing)))

    def _start(self, welcome: wire.Welcome) -> None:
        """Handle the bridge's welcome."""
        if self._welcome is not None and welcome.session != self._welcome.session:
            self._fail(LinkLost("another session was started on the support computer"))
            return
        with self._lock:
            self._welcome = self._welcome or welcome
            self._outbox.acknowledge(welcome.received)
            self._outbox.rewind()
            self._lock.notify_all()
        if self._silent:
            _log.warning("the support computer answers again")
        self._silent = False

    def _beat(self) -> None:
        """Repeat the hello until it is answered, send unanswered messages again, and give up after the time limit."""
        now = self._clock_ns()
        silent_ns = now - self._heard_ns
        if self._failure is not None or self._over:
            return
        if self._welcome is None or self._trouble or silent_ns > SILENT_S * 1e9:
            self._silent = self._welcome is not None
            if now - self._hello_ns > HELLO_S * 1e9:
                self._say_hello()
            self._mention(now, silent_ns)
        elif self._silent:  # the bridge never missed us
            self._silent = False
            with self._lock:
                self._outbox.rewind()

    def _mention(self, now: int, silent_ns: int) -> None:
        """Log at this computer that nobody answers; give up after the time limit."""
        refused = self._refused if self._refused and now - self._refused_ns < SILENT_S * 1e9 else ""
        if self._welcome is not None and silent_ns > self._lost_ns:
            self._fail(LinkLost(f"the support computer has been silent for {silent_ns / 1e9:.0f} s: check the session there"))
        elif self._welcome is None and now - self._began_ns > self._connect_ns:
            why = refused or self._refusal or "nobody there"
            self._fail(LinkLost(f"no session answered at {self._endpoint} within {self._connect_ns / 1e9:g} s: {why}"))
        elif refused and now - self._mentioned_ns > WAITING_S * 1e9:
            self._mentioned_ns = now
            _log.warning("the support computer refuses for now: %s", refused)
        elif now - self._mentioned_ns > WAITING_S * 1e9:
            self._mentioned_ns = now
            why = (self._refusal if self._welcome is None else "") or "check the session there, and that the network passes the port"
            _log.warning("no answer from %s: %s", self._endpoint, why)

    def _send_due(self) -> None:
        """Send numbered messages, once the bridge knows us and while it answers."""
        with self._lock:
            if self._welcome is None or self._silent:
                return
            while (frames := self._outbox.due(self._clock_ns())) is not None and self._put(frames):
                self._outbox.sent()

    def _put(self, frames: list[bytes]) -> bool:
        """Send; return whether there is a connection: numbered messages are sent again later."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _confirm(self, received: int) -> None:
        with self._lock:
            gone = self._outbox.acknowledge(received)
            self._over = self._over or any(isinstance(message, wire.Event) and message.kind == wire.Kind.END for message in gone)
            if gone:
                self._lock.notify_all()
                self._wake()

    def _signal(self, message: wire.Numbered, pixels: Any) -> None:
        with self._lock:
            self._taken.append((message, pixels))
            self._wake()

    def _fail(self, reason: LinkLost) -> None:
        with self._lock:
            self._failure = self._failure or reason
            self._lock.notify_all()
            self._wake()

    def _wake(self) -> None:
        """Make `wake` readable; called with the lock held."""
        if not self._signalled:
            self._signalled = True
            self._inner.send(b"", zmq.NOBLOCK)


def _judged(image: wire.Image, pixels: memoryview | None) -> wire.Image:
    """Remove the verdict from an image whose pixels are not those that were judged."""
    if image.verdict in (wire.PASSED, wire.GIVEN) and (pixels is None or wire.digest(pixels) != image.sha256):
        return dataclasses.replace(image, verdict="the pixels received are not those that were judged")
    return image
