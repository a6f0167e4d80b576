"""The link itself: one ROUTER socket, one presenter."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from rtevo import wire
from rtevo.bridge.keys import SUPPORT_FILE
from rtevo.bridge.offset import ClockOffset
from rtevo.errors import LinkError
from rtevo.records import EventKind
from rtevo.wire import PresentationSettings, WireError

__all__ = ["Bridge", "PresenterEvent"]

SILENT_S = 2.0  # without an answer for so long the presenter is called silent, and a new one may take its place
PING_S = 0.5
PART_S = 1.0  # longest wait at the end for the presenter to have the last words
BURST = 8  # clock samples taken quickly when a presenter connects
BURST_S = 0.02
DRAIN = 512  # messages read in one go
COMPLAIN_S = 5.0  # at most one note per so long about unreadable messages

_log = logging.getLogger("rtevo")


@dataclass(frozen=True)
class PresenterEvent:
    """What happened at the stimulus PC.

    Parameters
    ----------
    kind : int
        A `rtevo.records.EventKind`.
    generation, candidate : int
        The image that is meant; -1 where none is.
    mono_ns : int
        When, on this computer's monotonic clock (session time in lock-step).
    error_ns : int
        Bound of the error of `mono_ns` that the mapping of clocks adds.
    value : float
        The rating (number of its key); NaN where there is none.
    response_time_s : float
        From the opening of the rating window, session seconds; NaN where there is none.
    text : str
    """

    kind: int
    generation: int
    candidate: int
    mono_ns: int
    error_ns: int
    value: float = math.nan
    response_time_s: float = math.nan
    text: str = ""


class _Admitted:
    """Tells the authenticator which keys may come in; remembers those that may not."""

    def __init__(self, clients: dict[str, str]) -> None:
        self.keys = {key.encode(): name for name, key in clients.items()}
        self.refused: deque[str] = deque(maxlen=16)

    def callback(self, domain: str, key: bytes) -> bool:
        """Answer for one client; `key` is Z85 text already."""
        if key in self.keys:
            return True
        self.refused.append(key.decode("ascii", "replace"))
        return False


class Bridge:
    """Link to one presenter.

    Parameters
    ----------
    bind : str
        ZeroMQ endpoint to listen at, as ``tcp://127.0.0.1:5555`` (port 0: any free one; see `endpoint`).
    settings : PresentationSettings
        Sent to the presenter.
    keys : Path, optional
        Folder that ``python -m rtevo.bridge keys`` made (or its support.json). Without keys only loopback is allowed.
    lost_s : float
        The presenter is lost, and `poll` raises, when it has not answered for so long, s.
    session : str, optional
        Name that a presenter must return with after a cut; a bridge that replaces a dead one of the same session takes its name.
    mono_ns : callable
        This computer's monotonic clock (real, also in lock-step; tests bring their own).

    Raises
    ------
    LinkError
        Where `bind` cannot be listened at, is open to others without keys, or the keys cannot be used.
    """

    def __init__(
        self,
        bind: str,
        settings: PresentationSettings,
        *,
        keys: Path | None = None,
        lost_s: float = 60.0,
        session: str | None = None,
        mono_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if keys is None and not wire.is_loopback(bind):
            raise LinkError(
                f"bridge bind: {bind} can be reached from other computers, which needs keys (make them with `python -m rtevo.bridge "
                "keys DIR` and name the folder in the session file); without keys only tcp://127.0.0.1:PORT is allowed"
            )
        self.settings, self.session = settings, session or secrets.token_hex(8)
        self._mono_ns, self._lost_ns = mono_ns, round(lost_s * 1e9)
        self._peer: bytes | None = None
        self._outbox, self._inbox = wire.Outbox(), wire.Inbox()
        self._acked = 0  # highest number acknowledged to the presenter
        self._unshown: dict[tuple[int, int], tuple[wire.Image, bytes]] = {}
        self._clock = ClockOffset()
        self._found: list[PresenterEvent] = []
        self._stirred = False  # something came that the caller may want to act on
        self._idle: wire.Idle | None = None
        self._now_ns = 0
        self._end: wire.End | None = None
        self._started = self._ended = self._ready = self._silent = False
        self._unanswered_ns: int | None = None  # when the first ping without any sign of life since was sent
        self._next_ping_ns = self._burst = 0
        self._unreadable, self._complained_ns = 0, -(2**62)
        self._context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._admitted = _Admitted({})
        try:
            self._socket = self._listen(bind, keys)
        except BaseException:
            self.close()
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _listen(self, bind: str, keys: Path | None) -> zmq.Socket[bytes]:
        """Open the socket."""
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 500  # ms, for the last acknowledgements
        socket.sndhwm = 0  # numbered messages are kept anyway; `in_flight` is the caller's measure
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_HEADER_BYTES)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a presenter that reconnects before its old connection is known to be dead
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
        try:
            if keys is not None:
                self._lock(socket, keys)
            socket.bind(bind)
        except WireError as error:
            socket.close()
            raise LinkError(f"bridge keys: {error}") from error
        except zmq.ZMQError as error:
            socket.close()
            raise LinkError(f"bridge bind: cannot listen at {bind}: {error.strerror}") from error
        return socket

    def _lock(self, socket: zmq.Socket[bytes], keys: Path) -> None:
        """Encrypt, and admit only the presenters in the key file."""
        own = wire.KeyFile.read(keys / SUPPORT_FILE if keys.is_dir() else keys, "support")
        self._admitted = _Admitted(dict(own.clients))
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", credentials_provider=self._admitted)
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = own.public.encode(), own.secret.encode()

    def close(self) -> None:
        """Close the socket; a presenter that has not said goodbye (see `end`) is told that nothing more will come."""
        if getattr(self, "_socket", None) is not None and not self._socket.closed:
            if self._peer is not None and not self._silent:
                self._part()
            self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()

    def _part(self) -> None:
        """Send the last words, and read on until the presenter has them: a socket that closes with unread data resets its connection."""
        self._acknowledge()
        if not self._ended:
            self._send(wire.encode(wire.Refused("the session has been broken off")))
        last_ns, deadline = self._mono_ns(), time.monotonic() + PART_S
        there = self._send(wire.encode(wire.Ping(last_ns, self._acked)))
        while there and time.monotonic() < deadline:
            if not self._socket.poll(20):
                there = self._send(wire.encode(wire.Ping(last_ns, self._acked)))
                continue
            identity, *frames = self._socket.recv_multipart()
            with contextlib.suppress(WireError):
                message, _ = wire.decode(frames)
                there = not (identity == self._peer and isinstance(message, wire.Pong) and message.ping_ns == last_ns)

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- what the caller sends --------------------------------------------------------------------------------------------------

    def send_image(self, generation: int, candidate: int, pixels: Any) -> None:
        """Send an image, to be shown after those sent before it.

        Parameters
        ----------
        generation, candidate : int
        pixels : ndarray, uint8 (height, width, 3)
            C-contiguous, row 0 at the top, RGB; copied.
        """
        height, width, _ = pixels.shape
        image = wire.Image(int(generation), int(candidate), int(height), int(width))
        frames = self._outbox.add(image, pixels)
        self._unshown[image.generation, image.candidate] = (image, frames[1])
        self._send(frames)

    def end(self, reason: str = "finished") -> None:
        """Ask the presenter to finish the current trial, show the end text and say goodbye: an END event follows.

        Where no presenter has come yet, the END event is the bridge's own.
        """
        if self._end is not None or self._ended:
            return
        self._end = wire.End(reason[: wire.MAX_TEXT_BYTES])
        if self._peer is None:
            self._ended = True
            self._note("no presenter came", EventKind.END)
        else:
            self._send(self._outbox.add(self._end))

    def tick(self, now_ns: int) -> None:
        """Lock-step: tell the presenter the session time. Before every image and end too, or they take effect at the last tick."""
        self._now_ns = int(now_ns)
        if self._peer is not None and not self._ended:
            self._send(self._outbox.add(wire.Tick(self._now_ns)))

    # --- what the caller may ask -------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a presenter has come and answers."""
        return self._peer is not None and not (self._silent or self._ended)

    @property
    def ready(self) -> bool:
        """Whether the presenter's display stands and shows the waiting text."""
        return self._ready

    @property
    def in_flight(self) -> int:
        """Number of images sent that the presenter has not acknowledged as received."""
        return sum(isinstance(message, wire.Image) for message in self._outbox.waiting())

    @property
    def idle_until_ns(self) -> int | None:
        """Lock-step: the session time until which the presenter has nothing to do; None while it runs or has messages to read."""
        if self._ended:
            return wire.FOREVER_NS
        if self._idle is None or self._idle.seen != self._outbox.last:
            return None
        return self._idle.until_ns

    # --- the loop ----------------------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float = 0.0) -> list[PresenterEvent]:
        """Serve the link; give what has happened, as soon as anything has.

        Events of the call before are acknowledged: they have been dealt with.

        Parameters
        ----------
        timeout_s : float
            Longest wait, s; returns earlier when something comes that changes what this bridge says of the presenter.

        Raises
        ------
        LinkError
            The presenter has not answered for `lost_s`.
        """
        self._acknowledge()
        deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        self._stirred = False
        while True:
            self._beat()
            left_ns = deadline_ns - time.monotonic_ns()
            pause_ns = min(left_ns, self._next_ping_ns - self._mono_ns()) if self._peer else min(left_ns, 500_000_000)
            if self._socket.poll(max(0, math.ceil(pause_ns / 1e6))):
                self._drain()
            self._look_for_silence()
            self._look_for_strangers()
            if self._found or self._stirred or time.monotonic_ns() >= deadline_ns:
                found, self._found = self._found, []
                return found

    def _beat(self) -> None:
        """Ping, and send again what has not been acknowledged for too long."""
        now = self._mono_ns()
        if self._peer is None or self._ended:
            self._next_ping_ns = now + round(PING_S * 1e9)
            return
        if now >= self._next_ping_ns:
            if self._unanswered_ns is None:
                self._unanswered_ns = now
            self._send(wire.encode(wire.Ping(self._mono_ns(), self._acked)))
            self._burst = max(0, self._burst - 1)
            self._next_ping_ns = now + round((BURST_S if self._burst else PING_S) * 1e9)
        if not self._silent:
            for frames in self._outbox.overdue(now):
                self._send(frames)

    def _acknowledge(self) -> None:
        """Acknowledge what the caller has been given."""
        if self._peer is not None and self._acked != self._inbox.received:
            self._acked = self._inbox.received
            self._send(wire.encode(wire.Ack(self._acked)))

    def _send(self, frames: list[bytes], to: bytes | None = None) -> bool:
        """Send to the presenter, and say whether it is there: what is numbered goes out again when it is back."""
        identity = to or self._peer
        if identity is None:
            return False
        try:
            self._socket.send_multipart([identity, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def _drain(self) -> None:
        """Read what has come, up to a limit."""
        for _ in range(DRAIN):
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            received_ns = self._mono_ns()
            try:
                message, _pixels = wire.decode(frames)
            except wire.VersionError as error:
                self._send(wire.encode(wire.Refused(str(error))), identity)
                self._note(f"presenter refused: it speaks protocol {error.found}, not {wire.PROTOCOL}: update rtevo there")
                continue
            except WireError as error:
                self._complain(str(error))
                continue
            if isinstance(message, wire.Hello):
                self._greet(identity, message)
            elif identity == self._peer:
                self._heard()
                self._take(message, received_ns)

    # --- messages ----------------------------------------------------------------------------------------------------------------

    def _greet(self, identity: bytes, hello: wire.Hello) -> None:
        """A presenter says hello: a new one, or ours after a silence."""
        refusal = self._refusal(identity, hello)
        if refusal is not None:
            self._send(wire.encode(refusal), identity)
            return
        if identity != self._peer:
            self._adopt(identity, hello)
        self._heard()
        self._burst, self._next_ping_ns = BURST, 0
        welcome = wire.Welcome(self.session, self.settings, self._started, self._acked, self._now_ns)
        self._send(wire.encode(welcome))
        self._outbox.acknowledge(hello.received)
        for frames in self._outbox.replay():
            self._send(frames)

    def _refusal(self, identity: bytes, hello: wire.Hello) -> wire.Refused | None:
        """Say why this presenter cannot be taken; None where it can."""
        if hello.session not in ("", self.session):
            return wire.Refused("this presenter belongs to another session: start it anew")
        if self._ended:
            return wire.Refused("the session is over")
        if self._peer is not None and identity != self._peer and not self._silent:
            return wire.Refused("another presenter is connected", final=False)
        return None

    def _adopt(self, identity: bytes, hello: wire.Hello) -> None:
        """Take a presenter that this bridge does not know: the first, one started anew, or one that outlived an earlier bridge."""
        if self._peer is not None:
            self._note("a presenter has been started anew: the session goes on with it")
        self._peer, self._clock, self._idle, self._ready = identity, ClockOffset(), None, False
        self._inbox, self._acked = wire.Inbox(hello.acknowledged), hello.acknowledged
        self._outbox = wire.Outbox(hello.received)
        for image, pixels in self._unshown.values():
            self._outbox.add(image, pixels)
        if self._end is not None:
            self._outbox.add(self._end)
        _log.info("bridge: presenter %s (%s) has come", hello.software, hello.display)

    def _take(self, message: wire.Message, received_ns: int) -> None:
        """Deal with one message of the presenter."""
        if isinstance(message, wire.Pong):
            self._clock.add(message.ping_ns, message.arrived_ns, message.sent_ns, received_ns)
            self._confirm(message.received)
        elif isinstance(message, wire.Ack):
            self._confirm(message.received)
            if message.missing:
                for frames in self._outbox.replay_missing():
                    self._send(frames)
        elif isinstance(message, (wire.Event, wire.Idle, wire.Ready)):
            if not self._inbox.take(message):
                self._send(wire.encode(wire.Ack(self._acked, missing=self._inbox.missing)))
                return
            self._stirred, self._idle = True, None
            if isinstance(message, wire.Idle):
                self._idle = message
            elif isinstance(message, wire.Ready):
                self._ready = True
                self._note(f"presenter ready: {message.display}" + (f", {message.refresh_hz:.3f} Hz" if message.refresh_hz else ""))
            else:
                self._take_event(message, received_ns)

    def _confirm(self, received: int) -> None:
        """The presenter has everything up to number `received`."""
        gone = self._outbox.acknowledge(received)
        self._stirred = self._stirred or any(isinstance(message, wire.Image) for message in gone)

    def _take_event(self, event: wire.Event, received_ns: int) -> None:
        """Map an event to this computer's clock."""
        if self.settings.lock_step:
            mono_ns, error_ns = event.t_ns, 0
        elif len(self._clock):
            mono_ns, error_ns = self._clock.map(event.t_ns)
        else:
            mono_ns, error_ns = received_ns, received_ns  # nothing is known yet of the presenter's clock
        if event.kind == EventKind.TRIGGER:
            self._started = True
        elif event.kind == EventKind.ONSET:
            self._unshown.pop((event.generation, event.candidate), None)
        elif event.kind == EventKind.END:
            self._ended = True
        self._found.append(
            PresenterEvent(event.kind, event.generation, event.candidate, mono_ns, error_ns, event.value, event.response_time_s, event.text)
        )

    # --- trouble -----------------------------------------------------------------------------------------------------------------

    def _note(self, text: str, kind: EventKind = EventKind.NOTE) -> None:
        """Report something of the bridge's own."""
        now_ns = self._now_ns if self.settings.lock_step else self._mono_ns()
        self._found.append(PresenterEvent(kind, -1, -1, now_ns, 0, text=text.encode()[: wire.MAX_TEXT_BYTES].decode(errors="ignore")))

    def _heard(self) -> None:
        """The presenter has given a sign of life."""
        if self._silent and self._unanswered_ns is not None:
            self._note(f"presenter answers again after {(self._mono_ns() - self._unanswered_ns) / 1e9:.1f} s")
        self._silent, self._unanswered_ns = False, None

    def _look_for_silence(self) -> None:
        """Note that the presenter is silent; raise where it has been for too long."""
        if self._unanswered_ns is None or self._ended:
            return
        silent_ns = self._mono_ns() - self._unanswered_ns
        if silent_ns > self._lost_ns:
            raise LinkError(
                f"presenter lost: it has not answered at {self.endpoint} for {silent_ns / 1e9:.0f} s (limit: {self._lost_ns / 1e9:g} s); "
                "check the network and whether the presenter still runs on the stimulus PC"
            )
        if silent_ns > SILENT_S * 1e9 and not self._silent:
            self._silent = True
            self._note(f"presenter silent for {silent_ns / 1e9:.1f} s: waiting for it")

    def _look_for_strangers(self) -> None:
        """Note keys that were refused."""
        while self._admitted.refused:
            self._note(f"refused a presenter whose key is not listed: {self._admitted.refused.popleft()}")

    def _complain(self, what: str) -> None:
        """Note unreadable messages, not too often."""
        self._unreadable += 1
        now = self._mono_ns()
        if now - self._complained_ns >= COMPLAIN_S * 1e9:
            self._note(f"{self._unreadable} unreadable messages so far; {what}")
            self._complained_ns = now
