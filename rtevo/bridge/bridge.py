"""The bridge: one door, one presenter."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rtevo import wire
from rtevo.bridge.admission import REPLACED, TAKEN, refusal
from rtevo.bridge.door import Door
from rtevo.bridge.events import Predecessor, PresenterEvent
from rtevo.bridge.offset import ClockOffset
from rtevo.bridge.pixels import rgb8
from rtevo.bridge.trials import Trial
from rtevo.bridge.waiting import Waiting, name_of, word_of
from rtevo.errors import LinkError
from rtevo.records import EventKind
from rtevo.wire import PresentationSettings, WireError

__all__ = ["Bridge"]

SILENT_S = 2.0  # without an answer for this time the presenter counts as silent; a new one on its computer may take its place
PING_S = 0.5
PART_S = 1.0  # longest wait at the end for the presenter to receive the last messages
BURST = 8  # clock samples taken quickly when a presenter connects
BURST_S = 0.02
SLOW_S = 3.0  # an image that takes longer to arrive causes a warning
FROZEN_S = 10.0  # if no event comes for this much longer than a trial takes, the operator is warned

_log = logging.getLogger("rtevo")


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
        The presenter is lost, and `poll` raises, after this time without an answer, s.
    session : str, optional
        Name that a presenter must return with after a cut.
    predecessor : Predecessor, optional
        State of a dead bridge of the same session, which this bridge continues.
    mono_ns : callable
        This computer's monotonic clock (real, also in lock-step; tests bring their own).

    Raises
    ------
    LinkError
        `bind` cannot be listened at, other computers can reach it without keys, or the keys cannot be used.
    """

    def __init__(
        self,
        bind: str,
        settings: PresentationSettings,
        *,
        keys: Path | None = None,
        lost_s: float = 60.0,
        session: str | None = None,
        predecessor: Predecessor | None = None,
        mono_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.settings, self.session = settings, session or secrets.token_hex(8)
        self._mono_ns, self._lost_ns = mono_ns, round(lost_s * 1e9)
        self._peer: bytes | None = None
        self._name = ""  # of the presenter, for people
        self._place, self._process = (
            (0, 0) if predecessor is None else (predecessor.place, predecessor.process)
        )  # its computer, and number there
        self._waiting = Waiting()
        self._trouble = ""
        self._outbox, self._inbox = wire.Outbox(), wire.Inbox()
        self._acked = 0  # highest number acknowledged to the presenter
        self._unshown: list[tuple[wire.Image, Any]] = []
        self._away: list[tuple[int, int]] = []  # images to take away that the presenter has not confirmed yet
        self._gone: set[tuple[int, int]] = set()  # images that were on the screen before
        self._clock = ClockOffset()
        self._found: list[PresenterEvent] = []
        self._stirred = False  # a message came that the caller may want to act on
        self._idle: wire.Idle | None = None
        self._now_ns = 0
        self._pause = self._pause_told = False
        self._end: wire.End | None = None
        self._trial = Trial(bool(settings.rating_window_s))
        self._started = self._ended = self._ready = self._silent = False
        self._display: tuple[str, float] = ("", 0.0)
        self._warnings: tuple[str, ...] = ()
        self._unanswered_ns: int | None = None  # time of the first ping since the last sign of life
        self._next_ping_ns = self._burst = 0
        self._alive_ns = 0  # the presenter was certainly there at this time
        self._heard_ns = self._moved_ns = mono_ns()  # last sign of life; last progress of images or events
        self._predecessor = predecessor
        if predecessor is not None:  # a presenter is probably still connected
            self._started, self._silent, self._unanswered_ns = predecessor.started, True, self._heard_ns
        self._door = Door(bind, keys, not settings.lock_step, self._note)
        self.endpoint = self._door.endpoint

    def close(self) -> None:
        """Close the socket; a presenter that has not said goodbye (see `end`) is informed that the session is over."""
        if not self._door.closed:
            if self._peer is not None and not self._silent:
                self._part()
            self._door.close()

    def _part(self) -> None:
        """Send the last messages, and read until the presenter has them: a socket that closes with unread data resets its connection."""
        self._acknowledge()
        if not self._ended:
            self._send(wire.Refused("the session was broken off"))
        last_ns, deadline = self._mono_ns(), time.monotonic() + PART_S
        there = self._send(wire.Ping(last_ns, self._acked))
        while there and time.monotonic() < deadline:
            if not self._door.wait(20):
                there = self._send(wire.Ping(last_ns, self._acked))
            for identity, frames in self._door.messages():
                with contextlib.suppress(WireError):
                    message, _ = wire.decode(frames)
                    there &= not (identity == self._peer and isinstance(message, wire.Pong) and message.ping_ns == last_ns)

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- what the caller sends --------------------------------------------------------------------------------------------------

    def send_image(
        self,
        generation: int,
        candidate: int,
        pixels: Any,
        washout_s: float = math.nan,
        *,
        verdict: str,
        sha256: str = "",
        image_s: float = math.nan,
    ) -> None:
        """Send an image, to be shown after those sent before it.

        Parameters
        ----------
        generation, candidate : int
        pixels : ndarray, uint8 (height, width, 3)
            Row 0 at the top, RGB; copied. Other kinds of arrays are converted where that is exact, see `rtevo.bridge.pixels.rgb8`.
        washout_s : float
            Fixation after the image, s; NaN: as in the settings.
        verdict : {"passed", "given"}
            The gate's verdict, or "given" for the site's own image; the presenter shows nothing else.
        sha256 : str
            Digest of the pixels that were judged; empty: computed here, for the site's own image.
        image_s : float
            Duration of the image, s; NaN: as in the settings.

        Raises
        ------
        DataError
            The pixels cannot be shown as they are.
        """
        pixels = rgb8(pixels)
        height, width, _ = pixels.shape
        copied = bytes(memoryview(pixels).cast("B"))
        image = wire.Image(
            generation=int(generation),
            candidate=int(candidate),
            height=int(height),
            width=int(width),
            washout_s=float(washout_s),
            image_s=float(image_s),
            verdict=verdict,
            sha256=sha256 or (wire.digest(copied) if verdict == wire.GIVEN else ""),
        )
        if not self._unshown:
            self._moved_ns = self._mono_ns()
        self._outbox.add(image, copied)
        self._unshown.append((image, copied))
        self._send_due()

    def take_away(self, generation: int = -1, candidate: int = -1) -> bool:
        """Take an image away: from the screen at the next frame, or before it is shown. If the presenter has it, a TAKEN event follows.

        Parameters
        ----------
        generation, candidate : int
            -1: the image on the screen.

        Returns
        -------
        bool
            False if the image is no longer on the screen, or if the presenter cannot be asked which image is.
        """
        key = (generation, candidate) if generation >= 0 else self._trial.showing
        if key is None:
            if not self.connected:  # when it answers again, another image may be on the screen
                return False
            self._outbox.add(wire.Away())
        elif key in self._gone:
            return False
        elif key not in self._away:  # also an image that an earlier bridge may have sent
            self._unshown = [pair for pair in self._unshown if (pair[0].generation, pair[0].candidate) != key]
            self._away.append(key)
            self._outbox.add(wire.Away(*key))
        self._send_due()
        return True

    def never_show(self, generation: int, candidate: int) -> None:
        """Report that the operator took an image away that no presenter has."""
        self._tell(EventKind.TAKEN, generation, candidate, wire.TAKERS[0])

    def end(self, reason: str = "finished", at_once: bool = False) -> None:
        """Ask the presenter to finish (or break off) the current trial, show the end text and say goodbye: an END event follows.

        If no presenter has come yet, the bridge makes the END event itself.
        """
        if self._ended or (self._end is not None and self._end.at_once >= at_once):
            return
        self._end = wire.End(reason[: wire.MAX_TEXT_BYTES], at_once)
        if self._peer is None and self._predecessor is None:
            self._ended = True
            self._note("no presenter came", EventKind.END)
        else:
            self._outbox.add(self._end)
            self._send_due()

    def pause(self, on: bool) -> None:
        """Ask the presenter to finish the current trial and then hold fixation, or to go on; may be repeated."""
        if on != self._pause:
            self._pause, self._moved_ns = on, self._mono_ns()
        if on != self._pause_told and self._peer is not None and not self._ended:
            self._pause_told = on
            self._outbox.add(wire.Pause(on))
            self._send_due()

    def tick(self, now_ns: int) -> None:
        """Lock-step: send the presenter the session time; also before every image and end, which otherwise take effect at the last tick."""
        self._now_ns = int(now_ns)
        if self._peer is not None and not self._ended:
            self._outbox.add(wire.Tick(self._now_ns))
            self._send_due()

    def admit(self, number: int) -> bool:
        """Admit a waiting presenter in place of the session's own; return whether it still waited.

        Parameters
        ----------
        number : int
            Its number, see `waiting`.
        """
        found = self._waiting.of(number)
        if found is None or self._ended:
            return False
        self._note(f"the operator admits another presenter: {name_of(found[1])} has taken over", EventKind.REPLACED)
        self._replace(*found)
        return True

    # --- what the caller may ask -------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a presenter has come and answers."""
        return self._peer is not None and not (self._silent or self._ended)

    @property
    def ready(self) -> bool:
        """Whether the presenter's display is open and shows the waiting text."""
        return self._ready

    @property
    def display(self) -> tuple[str, float]:
        """The presenter's kind of display, and its refresh rate in Hz; an empty name until it is ready."""
        return self._display

    @property
    def warnings(self) -> tuple[str, ...]:
        """The presenter's warnings about its computer."""
        return self._warnings

    @property
    def trouble(self) -> str:
        """Why the last presenter could not present; empty if none had to leave."""
        return self._trouble

    @property
    def waiting(self) -> tuple[int, str] | None:
        """Number and name of another presenter that waits for admission."""
        return self._waiting.first

    @property
    def place(self) -> int:
        """The presenter's computer, as a number; 0 if there has been no presenter."""
        return self._place

    @property
    def process(self) -> int:
        """The presenter's number on its computer."""
        return self._process

    @property
    def paused(self) -> bool:
        """Whether the presenter has been asked to hold fixation."""
        return self._pause

    @property
    def in_flight(self) -> int:
        """Number of images sent that the presenter has not acknowledged as received."""
        return sum(isinstance(message, wire.Image) for message in self._outbox.waiting())

    @property
    def received(self) -> int:
        """Highest number of the presenter's messages that the caller has received."""
        return self._inbox.received

    @property
    def clock(self) -> ClockOffset:
        """The presenter's clock, mapped to this computer's."""
        return self._clock

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
        """Serve the link; return events as soon as there are any.

        Events of the previous call are acknowledged: the caller has handled them.

        Parameters
        ----------
        timeout_s : float
            Longest wait, s; a message that changes the presenter's state ends the wait earlier.

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
            if self._door.wait(max(0, math.ceil(pause_ns / 1e6))):
                for identity, frames in self._door.messages():
                    self._read(identity, frames, self._mono_ns())
            self._look_for_silence()
            for name in self._waiting.prune(time.monotonic_ns()):
                self._note(f"the other presenter no longer waits: {name}", EventKind.LEFT)
            self._door.look()
            if self._found or self._stirred or time.monotonic_ns() >= deadline_ns:
                found, self._found = self._found, []
                return found

    def _beat(self) -> None:
        """Ping, and send the messages that are due."""
        now = self._mono_ns()
        if self._peer is None or self._ended:
            self._next_ping_ns = now + round(PING_S * 1e9)
            return
        if now >= self._next_ping_ns:
            if self._unanswered_ns is None:
                self._unanswered_ns = now
            self._send(wire.Ping(self._mono_ns(), self._acked))
            self._burst = max(0, self._burst - 1)
            self._next_ping_ns = now + round((BURST_S if self._burst else PING_S) * 1e9)
        self._send_due()
        self._look_for_slowness(now)

    def _look_for_slowness(self, now_ns: int) -> None:
        """Warn of a presenter that answers, but does not show its images."""
        if self._silent or self._pause or self.settings.lock_step or not (self._started and self._unshown):
            return
        waited_s = (now_ns - self._moved_ns) / 1e9
        s = self.settings
        if self.in_flight and waited_s > SLOW_S:
            self._door.tell(f"the link is slow: an image has been under way for more than {SLOW_S:g} s")
        elif not self.in_flight and waited_s > FROZEN_S + s.real_ns(s.baseline_s + s.image_s + s.rating_window_s + 2 * s.washout_s) / 1e9:
            self._door.tell("the presenter answers, but shows none of its images: check whether its window is frozen")

    def _send_due(self) -> None:
        """Send numbered messages up to the limit under way; to a silent presenter none."""
        if self._peer is None or self._silent:
            return
        while (frames := self._outbox.due(self._mono_ns())) is not None and self._door.send(frames, self._peer):
            self._outbox.sent()

    def _acknowledge(self) -> None:
        """Acknowledge the events that the caller has received."""
        if self._peer is not None and self._acked != self._inbox.received:
            self._acked = self._inbox.received
            self._send(wire.Ack(self._acked))

    def _send(self, message: wire.Message, to: bytes | None = None) -> bool:
        """Send a message without a number; return whether a receiver took it."""
        identity = to or self._peer
        return identity is not None and self._door.send(wire.encode(message), identity)

    def _read(self, identity: bytes, frames: list[bytes], received_ns: int) -> None:
        """Read one message."""
        try:
            message, _pixels = wire.decode(frames)
        except wire.VersionError as error:
            self._send(wire.Refused(str(error)), identity)
            what = f"it speaks protocol {error.found}, expected protocol {wire.PROTOCOL}: install the same version of rtevo there"
            self._door.tell(f"presenter refused: {what}", "presenters of other protocols")
            return
        except WireError:
            self._door.tell(f"unreadable messages arrive{' from the presenter' if identity == self._peer else ''}; they are dropped")
            return
        if isinstance(message, wire.Hello):
            self._greet(identity, message)
        elif identity == self._peer:
            self._heard()
            self._take(message, received_ns)

    # --- messages ----------------------------------------------------------------------------------------------------------------

    def _greet(self, identity: bytes, hello: wire.Hello) -> None:
        """Handle a presenter's hello: a new one, ours after its connection broke, one that must wait, or one that cannot present."""
        if hello.trouble:
            self._let_go(identity, hello)
            return
        refused = refusal(hello, self.session, self._ended, self._peer not in (None, identity))
        if refused is not None:
            self._send(refused, identity)
            self._waiting.leave(identity)
            if refused.final:
                self._door.tell(f"presenter refused: {name_of(hello)}: {refused.reason}", "presenters that are refused")
        elif identity != self._peer and self._has_to_wait(hello):
            process = self._process if word_of(hello.place) == self._place else 0
            self._send(wire.Refused(TAKEN + (f" ({self._name})" if self._name else ""), final=False, process=process), identity)
            if self._waiting.hear(identity, hello, time.monotonic_ns()):
                text = f"another presenter waits: {name_of(hello)}; the session stays with {self._name or 'its own'}"
                self._note(text, EventKind.WAITS)
        else:
            self._welcome(identity, hello)

    def _welcome(self, identity: bytes, hello: wire.Hello) -> None:
        """Admit a presenter, or admit it again."""
        self._waiting.leave(identity)
        if identity != self._peer:
            self._adopt(identity, hello)
        self._heard()
        self._burst, self._next_ping_ns = BURST, 0
        self._send(wire.Welcome(self.session, self.settings, self._started, self._acked, self._now_ns))
        self._outbox.acknowledge(hello.received)
        self._outbox.rewind()
        self._send_due()

    def _has_to_wait(self, hello: wire.Hello) -> bool:
        """Whether the session has another presenter that may come back, because it is not known to have ended."""
        follows = word_of(hello.place) == self._place and hello.ended == self._process  # its computer reports that the other has ended
        if self._peer is not None:
            return not (self._silent and follows)
        return bool(self._place) and not follows and hello.session != self.session

    def _replace(self, identity: bytes, hello: wire.Hello) -> None:
        """Continue with another presenter, and inform the previous one."""
        before = self._peer
        if before is not None:
            self._door.send(wire.encode(wire.Refused(REPLACED, replaced=True)), before)
        self._welcome(identity, hello)

    def _let_go(self, identity: bytes, hello: wire.Hello) -> None:
        """Handle a presenter that reports why it cannot present, and leaves."""
        self._trouble = hello.trouble
        self._door.tell(f"the presenter on {name_of(hello)} cannot present: {hello.trouble}")
        self._send(wire.Refused("the support computer knows why this presenter leaves"), identity)
        self._waiting.leave(identity)
        if identity == self._peer:
            self._peer, self._place, self._process, self._name, self._ready = None, 0, 0, "", False
            if self._started:  # another presenter must replace it
                self._silent, self._unanswered_ns = True, self._unanswered_ns or self._mono_ns()
            else:
                self._silent, self._unanswered_ns = False, None

    def _adopt(self, identity: bytes, hello: wire.Hello) -> None:
        """Admit a presenter that this bridge does not know: the first, a restarted one, or one that outlived an earlier bridge."""
        resumed, outlived, again = self._predecessor, hello.session == self.session, self._peer is not None
        follows = word_of(hello.place) == self._place
        self._peer, self._clock, self._idle, self._ready = identity, ClockOffset(), None, outlived
        self._name, self._place, self._process, self._trouble = name_of(hello), word_of(hello.place), hello.process, ""
        self._acked = max(hello.acknowledged, resumed.received) if resumed is not None and outlived else hello.acknowledged
        self._inbox, self._outbox, self._predecessor = wire.Inbox(self._acked), wire.Outbox(hello.received), None
        if again:
            if follows:
                self._note("a presenter was restarted: the session continues with it", EventKind.BACK)
            self._found += self._trial.close(self._alive_ns, self._mono_ns(), -self._inbox.received)
        elif resumed is not None:
            if outlived:
                self._note("the presenter has connected to the new bridge")
            else:
                self._note("bridge and presenter were both restarted", EventKind.BACK)
        if not outlived:  # it does not have these images: no screen shows them
            away, self._away = self._away, []
            for key in away:
                self.never_show(*key)
        for key in self._away:
            self._outbox.add(wire.Away(*key))
        if outlived or self._pause:
            self._outbox.add(wire.Pause(self._pause))
        self._pause_told = self._pause
        if outlived and self._unshown and (self._unshown[0][0].generation, self._unshown[0][0].candidate) == hello.image:
            del self._unshown[0]  # the earlier bridge sent it, and died before its acknowledgement came
        for image, pixels in self._unshown:
            self._outbox.add(image, pixels)
        if self._end is not None:
            self._outbox.add(self._end)
        _log.info("bridge: presenter %s (%s) has come", hello.software, hello.display)

    def _take(self, message: wire.Message, received_ns: int) -> None:
        """Handle one message of the presenter."""
        if isinstance(message, wire.Pong):
            jumps = self._clock.jumps
            self._clock.add(message.ping_ns, message.arrived_ns, message.sent_ns, received_ns)
            self._alive_ns = max(self._alive_ns, message.ping_ns)
            if self._clock.jumps > jumps:
                self._door.tell("the stimulus PC's clock was set or is being corrected: its offset is estimated again")
            self._confirm(message.received)
        elif isinstance(message, wire.Ack):
            self._confirm(message.received)
            if message.missing:
                self._outbox.gap()
        elif isinstance(message, (wire.Event, wire.Idle, wire.Ready)):
            if not self._inbox.take(message):
                self._send(wire.Ack(self._acked, missing=self._inbox.missing))
                return
            self._stirred, self._idle, self._moved_ns = True, None, received_ns
            if isinstance(message, wire.Idle):
                self._idle = message
            elif isinstance(message, wire.Ready):
                self._ready, self._display, self._warnings = True, (message.display, message.refresh_hz), message.warnings
                for warning in message.warnings:
                    self._note(f"stimulus PC: {warning}")
                pace = f", {message.refresh_hz:.3f} Hz" if message.refresh_hz else ""
                self._note(f"presenter ready: {message.display}{pace}", EventKind.READY)
            else:
                self._take_event(message, received_ns)

    def _confirm(self, received: int) -> None:
        """Record that the presenter has everything up to number `received`."""
        gone = self._outbox.acknowledge(received)
        if any(isinstance(message, wire.Image) for message in gone):
            self._stirred, self._moved_ns = True, self._mono_ns()
        self._send_due()

    def _take_event(self, event: wire.Event, received_ns: int) -> None:
        """Map an event to this computer's clock."""
        if self.settings.lock_step:
            mono_ns, error_ns = event.t_ns, 0
        elif len(self._clock):
            mono_ns, error_ns = self._clock.map(event.t_ns)
        else:
            mono_ns, error_ns = received_ns, received_ns  # the presenter's clock is not known yet
        where, number = (event.generation, event.candidate), event.sequence
        error_ns += max(0, event.error_ns)
        found = PresenterEvent(event.kind, *where, mono_ns, error_ns, event.value, event.response_time_s, event.text, event.guess, number)
        if event.kind == EventKind.TRIGGER:
            self._started = True
        elif event.kind == EventKind.ONSET:
            shown = next((k for k, (image, _) in enumerate(self._unshown) if (image.generation, image.candidate) == where), None)
            if shown is not None:
                del self._unshown[shown]
        elif event.kind == EventKind.END:
            self._ended = True
        elif event.kind in (EventKind.TAKEN, EventKind.OFFSET):
            self._away = [key for key in self._away if key != where]
            self._gone.add(where)
        elif event.kind == EventKind.REFUSED:
            self._unshown = [pair for pair in self._unshown if (pair[0].generation, pair[0].candidate) != where]
        self._trial.take(found)
        self._found.append(found)

    # --- trouble -----------------------------------------------------------------------------------------------------------------

    def _note(self, text: str, kind: EventKind = EventKind.NOTE) -> None:
        """Report an event of the bridge itself."""
        self._tell(kind, -1, -1, text)

    def _tell(self, kind: EventKind, generation: int, candidate: int, text: str) -> None:
        now_ns = self._now_ns if self.settings.lock_step else self._mono_ns()
        text = text.encode()[: wire.MAX_TEXT_BYTES].decode(errors="ignore")
        self._found.append(PresenterEvent(kind, generation, candidate, now_ns, 0, text=text, sequence=-self._inbox.received))

    def _heard(self) -> None:
        """Record a sign of life of the presenter."""
        self._heard_ns = self._mono_ns()
        if self._silent and self._unanswered_ns is not None:
            self._note(f"presenter answers again after {(self._heard_ns - self._unanswered_ns) / 1e9:.1f} s", EventKind.BACK)
            self._outbox.rewind()
        self._silent, self._unanswered_ns = False, None

    def _look_for_silence(self) -> None:
        """Report a silent presenter; raise if the silence lasts too long."""
        if self._unanswered_ns is None or self._ended:
            return
        silent_ns = self._mono_ns() - self._unanswered_ns
        other = self._waiting.first
        if silent_ns > self._lost_ns and other is not None and (found := self._waiting.of(other[0])) is not None:
            self._note(f"the presenter is lost, silent for {silent_ns / 1e9:.0f} s: {other[1]} has taken over", EventKind.REPLACED)
            self._replace(*found)
        elif silent_ns > self._lost_ns:
            raise LinkError(
                f"presenter lost: it has not answered at {self.endpoint} for {silent_ns / 1e9:.0f} s (limit: {self._lost_ns / 1e9:g} s); "
                "check the network, and that the presenter runs on the stimulus PC"
            )
        elif silent_ns > SILENT_S * 1e9 and not self._silent:
            self._silent = True
            self._note(f"presenter silent for {silent_ns / 1e9:.1f} s: waiting for it", EventKind.SILENT)
