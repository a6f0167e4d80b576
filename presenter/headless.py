"""Displays without a screen, for simulation and tests; a simulated participant can see the images and press keys.

`Headless` keeps frames of 60 Hz (times the session's speed) on the real clock. `LockStep` has no clock: its time is the last one that the
bridge sent, a flip happens at once, and the display informs the bridge whenever it has nothing to do.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque

import zmq
from zmq.utils.monitor import parse_monitor_message

from presenter.display import DisplayError, Picture, Press, Scene
from presenter.link import Link
from rtevo import wire

__all__ = ["Headless", "LockStep", "open_headless"]

_log = logging.getLogger("presenter")

REFRESH_HZ = 60.0
PATIENCE_S = 60.0  # longest wait for a simulated participant to see a flip, and for the bridge to take events
REFUSED = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
LOOK_MS = 500  # interval at which a blocked wait checks the link


def open_headless(
    link: Link | None, settings: wire.PresentationSettings, participant: str | None, now_ns: int, keys: wire.KeyFile | None = None
) -> Headless:
    """Return the display for the session's speed; without a link, for its timing alone."""
    if settings.lock_step and link is not None:
        return LockStep(link, participant, now_ns, keys)
    return Headless(link, participant, settings.speed, keys)


class _Participant:
    """Eyes and fingers of a simulated participant at `endpoint`; None: no participant."""

    def __init__(self, endpoint: str | None, keys: wire.KeyFile | None) -> None:
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._refused = f"the simulated participant at {endpoint} refuses: " + (
            "it does not encrypt, or the key file is another support computer's" if keys else "it encrypts, which needs --key FILE"
        )
        if endpoint is not None:
            self.socket = self._context.socket(zmq.DEALER)
            self.socket.setsockopt(zmq.ROUTING_ID, b"S" + os.urandom(8))
            self.socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_HEADER_BYTES)
            self.socket.linger = 500
            self._monitor = self.socket.get_monitor_socket(sum(REFUSED))
            if keys is not None:
                self.socket.curve_serverkey = keys.server.encode()
                self.socket.curve_publickey, self.socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
            try:
                self.socket.connect(endpoint)
            except zmq.ZMQError as error:
                self.close()
                raise DisplayError(f"--participant {endpoint}: {error.strerror}") from error

    def tell(self, message: wire.Message, pixels: memoryview | None = None) -> None:
        """Send a message."""
        if self.socket is not None:
            self.socket.send_multipart(wire.encode(message, pixels))

    def hear(self) -> list[wire.Message]:
        """Return the messages that have come."""
        heard: list[wire.Message] = []
        while self._monitor is not None and self._monitor.poll(0):
            parse_monitor_message(self._monitor.recv_multipart())
            if self._refused:
                _log.warning("%s", self._refused)
            self._refused = ""
        while self.socket is not None and self.socket.poll(0):
            message, _ = wire.decode(self.socket.recv_multipart())
            heard.append(message)
        return heard

    def close(self) -> None:
        """Close the socket."""
        if self.socket is not None:
            self.socket.disable_monitor()
            if self._monitor is not None:
                self._monitor.close(linger=0)
            self.socket.close()
        self._context.term()


class Headless:
    """Frames on the real clock.

    Parameters
    ----------
    link : Link, optional
        A message on it ends waits.
    participant : str, optional
        Endpoint of a simulated participant.
    speed : float
        Factor on real time: frames come faster by this factor.
    keys : KeyFile, optional
        For a participant on another computer.
    """

    name = "headless"

    def __init__(self, link: Link | None, participant: str | None = None, speed: float = 1.0, keys: wire.KeyFile | None = None) -> None:
        self.frame_ns = round(1e9 / REFRESH_HZ / speed) if speed else 0
        self.prepare_ns = self.dropped = self.flip_error_ns = 0
        self.warnings: tuple[str, ...] = ()
        self._link = link
        self._participant = _Participant(participant, keys)
        self._presses: deque[Press] = deque()
        self._unanswered: deque[tuple[str, int | None]] = deque()  # keys, each with the number of the last message that it caused
        self._poller = zmq.Poller()
        if link is not None:
            self._poller.register(link.wake, zmq.POLLIN)
        if self._participant.socket is not None:
            self._poller.register(self._participant.socket, zmq.POLLIN)

    def now_ns(self) -> int:
        """Time now."""
        return time.perf_counter_ns()

    def advance(self, now_ns: int) -> None:
        """Do nothing: the clock is real."""

    def prepare(self, picture: Picture) -> None:
        """Do nothing: there is no texture."""

    def due(self, until_ns: int) -> bool:
        """Return whether the next frame is the one nearest to `until_ns`, or later."""
        return self.now_ns() >= until_ns - self.frame_ns // 2

    def wait(self, until_ns: int) -> list[Press]:
        """Sleep until a time; a key or a message ends the sleep earlier."""
        self._answer()
        left_ms = (until_ns - self.frame_ns // 2 - self.now_ns()) / 1e6
        if left_ms >= 1:
            self._poller.poll(min(int(left_ms), LOOK_MS))
        elif left_ms > 0:
            time.sleep(left_ms / 1e3)
        self._listen()
        self._answer()
        return self._pressed()

    def show(self, scene: Scene, at_ns: int) -> int:
        """Change the scene at the frame nearest to `at_ns`, or the next one."""
        earliest_ns = max(self.now_ns(), at_ns - self.frame_ns // 2)
        flip_ns = -(-earliest_ns // self.frame_ns) * self.frame_ns
        time.sleep(max(0, flip_ns - self.now_ns()) / 1e9)
        late = (self.now_ns() - flip_ns) // self.frame_ns
        self.dropped += late
        flip_ns += late * self.frame_ns
        self._tell(scene, flip_ns)
        return flip_ns

    def told(self) -> list[str]:
        """Do nothing: there is no window."""
        return []

    def close(self) -> None:
        """Answer the presses whose events are acknowledged, and close the participant's socket."""
        Headless._answer(self)
        self._participant.close()

    def _tell(self, scene: Scene, flip_ns: int) -> None:
        """Show the participant a flip."""
        picture = scene.picture
        if scene.kind == "answer":  # the answer is given already
            return
        if picture is None:
            self._participant.tell(wire.Shown(scene.kind, flip_ns))
        else:
            self._participant.tell(wire.Shown(scene.kind, flip_ns, picture.height, picture.width), picture.pixels)

    def _listen(self) -> list[wire.Message]:
        """Read the participant's keys; return all of the participant's messages."""
        heard = self._participant.hear()
        for message in heard:
            if isinstance(message, wire.Key):
                self._presses.append(Press(message.name, self._press_ns(message)))
        return heard

    def _press_ns(self, key: wire.Key) -> int:
        return self.now_ns()

    def _pressed(self) -> list[Press]:
        """Return the presses; each is acknowledged at the session's next call."""
        presses = list(self._presses)
        self._presses.clear()
        self._unanswered.extend((press.key, None) for press in presses)
        return presses

    def _answer(self) -> None:
        """Acknowledge the keys whose events the bridge has taken."""
        if self._link is None:
            return
        last = self._link.last
        self._unanswered = deque((key, last if number is None else number) for key, number in self._unanswered)
        while self._unanswered and self._link.acknowledged(self._unanswered[0][1] or 0):
            self._participant.tell(wire.Pressed(self._unanswered.popleft()[0]))


class LockStep(Headless):
    """A display whose time is the last one that the bridge sent.

    Parameters
    ----------
    link : Link
    participant : str, optional
        Endpoint of a simulated participant.
    now_ns : int
        Time at the start.
    keys : KeyFile, optional
        For a participant on another computer.
    """

    def __init__(self, link: Link, participant: str | None, now_ns: int, keys: wire.KeyFile | None = None) -> None:
        super().__init__(link, participant, 0, keys)
        self._link: Link = link
        self._now_ns = now_ns
        self._told: tuple[int, int, int] | None = None  # until, seen, and number of the last Idle

    def now_ns(self) -> int:
        """Time now."""
        return self._now_ns

    def advance(self, now_ns: int) -> None:
        """Set the time to the bridge's."""
        self._now_ns = max(self._now_ns, now_ns)

    def wait(self, until_ns: int) -> list[Press]:
        """Report that there is nothing to do before `until_ns`, and wait for a message or a key, without a time limit."""
        self._answer()
        if not self._presses and self._link.wake.poll(0) == 0:
            idle = (until_ns, self._link.seen, self._link.last)
            if idle != self._told:
                self._told = (until_ns, self._link.seen, self._link.send(wire.Idle(until_ns, self._link.seen)))
            self._poller.poll()
        self._listen()
        return self._pressed()

    def show(self, scene: Scene, at_ns: int) -> int:
        """Change the scene now, and wait until the participant has seen it."""
        self._tell(scene, self._now_ns)
        deadline = time.monotonic() + PATIENCE_S
        socket = self._participant.socket
        while socket is not None:
            socket.poll(LOOK_MS)
            if any(isinstance(message, wire.Seen) for message in self._listen()):
                break
            if time.monotonic() > deadline:
                raise DisplayError(f"the simulated participant has not answered for {PATIENCE_S:g} s")
        return self._now_ns

    def _press_ns(self, key: wire.Key) -> int:
        self.advance(key.t_ns)
        return self._now_ns

    def _answer(self) -> None:
        if self._unanswered and not self._link.flush(PATIENCE_S):
            raise DisplayError(f"the bridge has not taken an event for {PATIENCE_S:g} s")
        super()._answer()
