"""The session script: the same for every display.

Times follow one schedule. An image's onset is due a fixed time after the due time of the previous onset, so that delays of single frames
do not add up. The schedule restarts from an onset or offset only if that had to wait (the image came late, or the screen stalled for more
than a frame). An image stays for its duration from its own onset. All flips are those nearest to their due time.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from presenter.display import Display, Picture, Press, Scene
from rtevo.wire import (
    FOREVER_NS,
    GIVEN,
    MAX_TEXT_BYTES,
    NEXT,
    PASSED,
    RESTART,
    TAKERS,
    Away,
    End,
    Event,
    Image,
    Kind,
    NumberedT,
    Pause,
    PresentationSettings,
    Ready,
    Tick,
)
from rtevo.wire import Numbered as Message

__all__ = ["Session"]

ESCAPE = "escape"
GOODBYE_S = 5.0  # longest wait for the bridge to take the last events
MARK_S = 0.3  # longest time that the chosen answer is marked, at the beginning of the following fixation
GUESS_NS = 50_000_000  # a time with a larger error is reported as a guess
REPEAT_NS = 10_000_000_000  # shortest time between two equal reports
FIXATION = Scene("fixation")

_log = logging.getLogger("presenter")


class Channel(Protocol):
    """The part of a :class:`presenter.link.Link` that the session uses."""

    def send(self, message: NumberedT) -> int:
        """Send a numbered message."""
        ...

    def take(self) -> list[tuple[Message, memoryview | None]]:
        """Return the messages that have come."""
        ...

    def shown(self, size: int) -> None:
        """Record that a picture of this many bytes is no longer kept."""
        ...

    @property
    def silent(self) -> bool:
        """Whether no message has come from the support computer for some time."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until the bridge has handled everything sent; return whether it has."""
        ...


class Pulses(Protocol):
    """Input of the scanner's pulses, if not the keyboard: :mod:`presenter.triggers`."""

    def take(self) -> list[int]:
        """Return the times of the pulses since the last call, ns of the display's clock."""
        ...

    def presses(self) -> list[Press]:
        """Return the keys that came on the same line since the last call."""
        ...

    def told(self) -> list[str]:
        """Return new problems, and problems that ended, since the last call."""
        ...


class BrokenOff(Exception):  # noqa: N818  (what happened, not a mistake)
    """The trial ends now, by Escape or the operator; the text says which."""


class Session:
    """One run, from the waiting text to the end text.

    Parameters
    ----------
    settings : PresentationSettings
    link : Channel
    display : Display
    started : bool
        The trigger has come already: the presenter was restarted within a session.
    pulses : Pulses, optional
        Input of the scanner's pulses; None: the display's keyboard.
    mark : callable, optional
        Called with (text, ns of the display's clock) for each event that another recording may need.
    lingers : bool
        The session itself shows the end text for its duration; otherwise the caller does.
    """

    def __init__(
        self,
        settings: PresentationSettings,
        link: Channel,
        display: Display,
        started: bool = False,
        pulses: Pulses | None = None,
        mark: Callable[[str, int], None] | None = None,
        lingers: bool = True,
    ) -> None:
        self._settings, self._link, self._display, self._started = settings, link, display, started
        self._pulses, self._mark, self._lingers = pulses, mark, lingers
        self._counted = 0  # pulses of the scanner
        self._phase_known = not started or settings.pulses_per_volume == 1  # whether it is known which pulses are volumes'
        self._told_ns: dict[str, int] = {}
        self._dummies = settings.dummy_triggers  # still to come
        self._waiting_since: int | None = None  # since when the session has waited for the trigger
        self._rating_open = self._over = self._paused = False
        self._queue: deque[Picture] = deque()
        self._prepared: Picture | None = None
        self._shown: Picture | None = None
        self._taker = ""  # who took it away
        self._unwanted: set[tuple[int, int]] = set()  # pictures that were taken out before they arrived
        self._ending: str | None = None  # the bridge's reason to end
        self._due_ns = 0  # of the next onset
        self._dropped = 0

    def run(self) -> str:
        """Present; return why it ended: the bridge's reason or "escape".

        Raises
        ------
        LinkLost
            The session on the support computer is gone.
        """
        try:
            self._begin()
            while self._next_is_there():
                picture = self._queue.popleft()
                self._link.shown(len(picture.pixels))
                self._trial(picture)
            reason = self._ending or ""
            self._goodbye(reason)
        except (BrokenOff, KeyboardInterrupt) as error:
            reason = str(error) if isinstance(error, BrokenOff) else ESCAPE
            self._break_off(reason)
        if not self._link.flush(GOODBYE_S):
            _log.warning("the support computer has not confirmed the last events")
        return reason

    # --- the parts of a run ---------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Show the waiting text, wait for the trigger, and hold the baseline."""
        settings, display = self._settings, self._display
        hertz = 1e9 / display.frame_ns if display.frame_ns else 0.0
        if self._started:
            self._link.send(Ready(display.name, hertz, display.warnings))
            self._due_ns = display.show(FIXATION, display.now_ns())
            return
        self._waiting_since = display.show(Scene("text", settings.wait_text), display.now_ns())  # an earlier key is no trigger
        self._link.send(Ready(display.name, hertz, display.warnings))
        self._wait(FOREVER_NS, (), lambda: self._started or self._has_to_end())
        if not self._started:
            return
        self._due_ns += settings.real_ns(settings.baseline_s)
        display.show(FIXATION, display.now_ns())
        self._wait(self._due_ns, (), self._has_to_end)
        if self._has_to_end():
            self._due_ns = display.now_ns()

    def _next_is_there(self) -> bool:
        """Wait for the next onset's time, and hold fixation if no image may be shown; return False at the end."""
        self._wait(self._due_ns)
        while (self._paused or self._cut_off or not self._queue) and not self._has_to_end():
            self._hold()
            self._due_ns = self._display.now_ns()
        return bool(self._queue) and not self._has_to_end()

    @property
    def _cut_off(self) -> bool:
        """Whether nobody could take an image away, because the link is silent. In lock-step time stands still then."""
        return self._link.silent and not self._settings.lock_step

    def _hold(self) -> None:
        """Hold fixation: through the operator's pause, or until there is an image that may be shown."""
        if self._paused:
            self._report(Kind.PAUSE, self._display.now_ns())
            self._wait(FOREVER_NS, (), lambda: not self._paused or self._has_to_end())
            self._report(Kind.GO_ON, self._display.now_ns())
        else:
            why = "the support computer does not answer" if self._cut_off else "the next image has not arrived yet"
            self._report(Kind.FIXATION, self._display.now_ns(), value=1.0 if self._cut_off else math.nan, text=f"held: {why}")
            self._wait(FOREVER_NS, (), lambda: (bool(self._queue) and not self._cut_off) or self._paused or self._has_to_end())

    def _trial(self, picture: Picture) -> None:
        """Show one image and its rating window, if any, and set the due time of the next onset."""
        settings, display = self._settings, self._display
        if self._prepared is not picture:
            display.prepare(picture)
        self._prepared = None
        onset = display.show(Scene("image", picture=picture), self._due_ns)
        self._shown, self._taker, self._rating_open = picture, "", settings.rating_window_s > 0
        self._report(Kind.ONSET, onset, picture, error_ns=display.flip_error_ns)
        schedule = self._due_ns if abs(onset - self._due_ns) <= display.frame_ns else onset
        until = onset + settings.real_ns(picture.image_s)
        self._wait(until, (), lambda: bool(self._taker))
        if self._taker:
            self._taken(picture)
            self._due_ns = schedule + settings.real_ns(picture.image_s + picture.washout_s)
            return
        offset = display.show(Scene("rating", settings.rating_text) if self._rating_open else FIXATION, until)
        self._offset(picture, offset)
        washout_ns = settings.real_ns(picture.washout_s)
        if self._rating_open:
            self._due_ns = self._rating(picture, offset) + washout_ns
        else:
            late = offset - until > display.frame_ns  # the rest of the trial moves with it
            self._due_ns = (offset if late else schedule + settings.real_ns(picture.image_s)) + washout_ns

    def _taken(self, picture: Picture) -> None:
        """Take the image on the screen away at the next frame; it gets no rating window."""
        self._rating_open = False
        flip = self._display.show(FIXATION, self._display.now_ns())
        self._report(Kind.TAKEN, flip, picture, text=self._taker, error_ns=self._display.flip_error_ns)
        self._offset(picture, flip)

    def _offset(self, picture: Picture, flip: int) -> None:
        """Report that an image is gone, with the frames dropped since the previous one."""
        missed = self._display.dropped - self._dropped
        self._dropped += missed
        self._report(Kind.OFFSET, flip, picture, float(missed), error_ns=self._display.flip_error_ns)
        self._shown = None

    def _rating(self, picture: Picture, opened: int) -> int:
        """Wait for an answer; return the flip that closed the window."""
        settings, display = self._settings, self._display
        until = opened + settings.real_ns(settings.rating_window_s)
        try:
            press = self._wait(until, settings.rating_keys, since_ns=opened)
        except (BrokenOff, KeyboardInterrupt):
            self._report(Kind.RATING, display.now_ns(), picture)
            raise
        finally:
            self._rating_open = False
        if press is not None:
            took_s = (press.t_ns - opened) / 1e9 * (settings.speed or 1.0)
            place = settings.rating_keys.index(press.key)
            rating = len(settings.rating_keys) - 1 - place if settings.ratings_reversed else place
            self._report(Kind.RATING, press.t_ns, picture, float(rating), took_s, error_ns=press.error_ns)
            return self._mark_answer(picture, place)
        closed = display.show(FIXATION, until)
        self._report(Kind.RATING, closed, picture, error_ns=display.flip_error_ns)
        return closed

    def _mark_answer(self, picture: Picture, place: int) -> int:
        """Mark the chosen label for a moment of the washout; return the flip that closed the window."""
        settings, display = self._settings, self._display
        if settings.lock_step:
            return display.show(FIXATION, display.now_ns())
        closed = display.show(Scene("answer", settings.rating_text, chosen=place), display.now_ns())
        until = closed + settings.real_ns(min(MARK_S, picture.washout_s / 2))
        self._wait(until)
        display.show(FIXATION, until)
        return closed

    def _goodbye(self, reason: str) -> None:
        """Show the end text for a moment, or the waiting text if the session begins again; report the end at once."""
        text = self._settings.wait_text if reason == RESTART else self._settings.end_text
        flip = self._display.show(Scene("text", text), self._display.now_ns())
        self._report_end(flip, reason)
        if self._lingers and not (self._settings.lock_step or reason in (RESTART, NEXT)):
            with contextlib.suppress(BrokenOff, KeyboardInterrupt):
                self._wait(flip + self._settings.real_ns(self._settings.end_s))

    def _break_off(self, reason: str) -> None:
        """Clear the screen and say goodbye: Escape exits at once, the operator's stop shows the end text."""
        flip = self._display.show(FIXATION, self._display.now_ns())
        picture = self._shown
        if picture is not None:
            self._offset(picture, flip)
            if self._rating_open:
                self._report(Kind.RATING, flip, picture)
        if reason == ESCAPE:
            self._report_end(flip, ESCAPE)
        else:
            self._goodbye(reason)

    def _report_end(self, flip: int, reason: str) -> None:
        """Report the end."""
        self._report(Kind.END, flip, text=reason)
        self._over = True

    # --- waiting ------------------------------------------------------------------------------------------------------------------

    def _wait(self, until_ns: int, keys: tuple[str, ...] = (), enough: Callable[[], bool] | None = None, since_ns: int = 0) -> Press | None:
        """Wait for a time, for one of `keys` pressed at or after `since_ns` (returned), or until `enough` returns True.

        Raises
        ------
        BrokenOff
            Escape was pressed, or the operator has stopped the session.
        """
        while True:
            self._take_messages()
            if (enough is not None and enough()) or self._display.due(until_ns):
                return None
            self._prepare_next(until_ns)
            presses = self._typed(self._display.wait(until_ns))
            self._take_messages()
            self._take_pulses(presses)
            self._take_wishes(presses)
            self._take_presses(presses)
            if any(press.key == ESCAPE for press in presses):
                raise BrokenOff(ESCAPE)
            for press in presses:
                if press.key in keys and press.t_ns >= since_ns:
                    return press

    def _typed(self, presses: list[Press]) -> list[Press]:
        """Drop keys typed into other windows, add those from the port, and report problems."""
        port = self._pulses
        for text in [*self._display.told(), *(port.told() if port is not None else ())]:
            self._tell(text)
        meant = {ESCAPE, *self._wishes, *(self._settings.rating_keys if self._rating_open or self._settings.presses else ())}
        meant |= {self._settings.trigger_key} if port is None else set()
        for key in {press.key for press in presses if press.elsewhere} & meant:
            self._tell(f"key {key!r} was typed into another window: it does not count (click the presenter's window)")
        own = [press for press in presses if not press.elsewhere]
        return sorted([*own, *port.presses()], key=lambda press: press.t_ns) if port is not None else own

    def _tell(self, text: str) -> None:
        """Report a text on both computers, but the same text not too often."""
        now = self._display.now_ns()
        if now - self._told_ns.get(text, -REPEAT_NS) >= REPEAT_NS and not self._over:
            self._told_ns[text] = now
            _log.warning("%s", text)
            self._report(Kind.NOTE, now, text=f"stimulus PC: {text}")

    @property
    def _wishes(self) -> dict[str, str]:
        """The keys that take an image away or ask to stop, each with the person who presses it."""
        settings = self._settings
        keys = zip((settings.away_key, settings.participant_key, settings.stop_key), (TAKERS[2], TAKERS[1], ""), strict=True)
        return {key: who for key, who in keys if key}

    def _take_wishes(self, presses: list[Press]) -> None:
        """Carry out a key: take the image away, or report that the participant wants to stop."""
        wishes = self._wishes
        for press in presses:
            if press.key not in wishes or self._over:
                continue
            if who := wishes[press.key]:
                self._taker = self._taker or (who if self._shown is not None else "")
            else:
                self._report(Kind.STOP_ASKED, press.t_ns, self._shown, text="the participant asks to stop", error_ns=press.error_ns)

    def _take_presses(self, presses: list[Press]) -> None:
        """Report the participant's presses, if the session records every press."""
        if self._settings.presses and self._started and not self._over:
            for press in presses:
                if press.key in self._settings.rating_keys:
                    self._report(Kind.PRESS, press.t_ns, self._shown, text=press.key, error_ns=press.error_ns)

    def _take_pulses(self, presses: list[Press]) -> None:
        """Report the scanner's pulses: the first after the dummies is the trigger."""
        key = self._settings.trigger_key
        if self._pulses is None:
            pulses = [(press.t_ns, press.error_ns) for press in presses if press.key == key]
        else:
            pulses = [(t_ns, 0) for t_ns in self._pulses.take()]
        for t_ns, error_ns in pulses if not self._over else ():
            if not self._started and (self._waiting_since is None or t_ns < self._waiting_since):
                continue
            self._counted += 1
            if not self._phase_known or (self._counted - 1) % self._settings.pulses_per_volume:
                continue
            if self._started:
                self._report(Kind.PULSE, t_ns, error_ns=error_ns)
            elif self._dummies:
                self._dummies -= 1
            else:
                self._started, self._due_ns = True, t_ns
                self._report(Kind.TRIGGER, t_ns, error_ns=error_ns)
                if error_ns > GUESS_NS:
                    self._tell(f"the trigger's time is known to {error_ns / 1e9:.2f} s only: the computer had stalled")

    def _has_to_end(self) -> bool:
        return self._ending is not None

    def _take_messages(self) -> None:
        """Handle the bridge's messages."""
        for message, pixels in self._link.take():
            if isinstance(message, Tick):
                self._display.advance(message.now_ns)
            elif isinstance(message, Pause):
                self._paused = message.on
            elif isinstance(message, End):
                self._ending = message.reason
                if message.at_once:
                    raise BrokenOff(message.reason)
            elif isinstance(message, Away):
                self._take_away(message)
            elif isinstance(message, Image) and pixels is not None:
                self._take_image(message, pixels)

    def _take_image(self, image: Image, pixels: memoryview) -> None:
        """Queue an image; an image without a verdict is not shown, whoever sent it."""
        settings = self._settings
        washout_s = settings.washout_s if math.isnan(image.washout_s) else image.washout_s
        image_s = settings.image_s if math.isnan(image.image_s) else image.image_s
        picture = Picture(image.generation, image.candidate, image.height, image.width, pixels, washout_s, image_s)
        if (image.generation, image.candidate) in self._unwanted:
            self._leave_out(picture)
        elif image.verdict in (PASSED, GIVEN):
            self._queue.append(picture)
        else:
            self._link.shown(len(pixels))
            self._report(Kind.REFUSED, self._display.now_ns(), picture, text=image.verdict or "it came without a verdict")

    def _take_away(self, message: Away) -> None:
        """Take an image away: from the screen, or from the queue."""
        shown, wanted = self._shown, (message.generation, message.candidate)
        if shown is not None and (message.generation < 0 or wanted == (shown.generation, shown.candidate)):
            self._taker = self._taker or TAKERS[0]
            return
        self._unwanted.add(wanted)
        for picture in [p for p in self._queue if (p.generation, p.candidate) == wanted]:
            self._queue.remove(picture)
            self._leave_out(picture)

    def _leave_out(self, picture: Picture) -> None:
        """Drop a picture that was taken out before it was shown."""
        self._link.shown(len(picture.pixels))
        self._report(Kind.TAKEN, self._display.now_ns(), picture, text=TAKERS[0])

    def _prepare_next(self, until_ns: int) -> None:
        """Let the display prepare the next picture, unless that would delay the flip that is due at `until_ns`."""
        display = self._display
        if self._queue and self._prepared is not self._queue[0] and until_ns - display.now_ns() > display.prepare_ns + 2 * display.frame_ns:
            self._prepared = self._queue[0]
            display.prepare(self._prepared)

    # --- reporting ----------------------------------------------------------------------------------------------------------------

    def _report(
        self,
        kind: Kind,
        t_ns: int,
        picture: Picture | None = None,
        value: float = math.nan,
        response_time_s: float = math.nan,
        text: str = "",
        error_ns: int = 0,
    ) -> None:
        generation, candidate = (picture.generation, picture.candidate) if picture else (-1, -1)
        text = text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
        guess = error_ns > GUESS_NS
        self._link.send(Event(int(kind), t_ns, generation, candidate, value, response_time_s, text, error_ns, guess))
        if self._mark is not None and kind != Kind.NOTE:
            self._mark(" ".join([kind.name.lower(), *([f"{generation} {candidate}"] if picture else []), *([text] if text else [])]), t_ns)
