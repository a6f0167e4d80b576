"""The session script: the same for every display.

Times follow one schedule. An image's onset is due a fixed time after the due time of the onset before it, so that delays of single
frames do not add up; only where an onset had to wait (its image came late, or the screen stalled for more than a frame) does the schedule
start anew from it. An image stays for its duration from its own onset. All flips are those nearest to their due time.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from presenter.display import Display, Picture, Press, Scene
from rtevo.wire import FOREVER_NS, MAX_TEXT_BYTES, End, Event, Image, Kind, NumberedT, PresentationSettings, Ready, Tick
from rtevo.wire import Numbered as Message

__all__ = ["Session"]

ESCAPE = "escape"
GOODBYE_S = 5.0  # longest wait for the bridge to take the last events
FIXATION = Scene("fixation")

_log = logging.getLogger("presenter")


class Channel(Protocol):
    """What the session needs of a :class:`presenter.link.Link`."""

    def send(self, message: NumberedT) -> int:
        """Send a numbered message."""
        ...

    def take(self) -> list[tuple[Message, memoryview | None]]:
        """Give the messages that have come."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything sent has been dealt with."""
        ...


class Escaped(Exception):  # noqa: N818  (what happened, not a mistake)
    """Somebody pressed Escape."""


class Session:
    """One run, from the waiting text to the end text.

    Parameters
    ----------
    settings : PresentationSettings
    link : Channel
    display : Display
    started : bool
        The trigger has been already: the presenter was started anew within a session.
    """

    def __init__(self, settings: PresentationSettings, link: Channel, display: Display, started: bool = False) -> None:
        self._settings, self._link, self._display, self._started = settings, link, display, started
        self._queue: deque[Picture] = deque()
        self._prepared: Picture | None = None
        self._shown: Picture | None = None
        self._ending: str | None = None  # the bridge's reason to end
        self._due_ns = 0  # of the next onset
        self._dropped = 0

    def run(self) -> str:
        """Present; gives why it ended: the bridge's reason or "escape".

        Raises
        ------
        LinkLost
            The session on the support computer is gone.
        """
        try:
            self._begin()
            while self._next_is_there():
                self._trial(self._queue.popleft())
            reason = self._ending or ""
            self._goodbye(reason)
        except (Escaped, KeyboardInterrupt):
            reason = ESCAPE
            self._break_off()
        if not self._link.flush(GOODBYE_S):
            _log.warning("the support computer has not confirmed the last events")
        return reason

    # --- the parts of a run ---------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Waiting text, trigger, baseline."""
        settings, display = self._settings, self._display
        hertz = 1e9 / display.frame_ns if display.frame_ns else 0.0
        if self._started:
            self._link.send(Ready(display.name, hertz))
            self._due_ns = display.show(FIXATION, display.now_ns())
            return
        display.show(Scene("text", settings.wait_text), display.now_ns())
        self._link.send(Ready(display.name, hertz))
        trigger = self._wait(FOREVER_NS, (settings.trigger_key,), self._has_to_end)
        if trigger is None:
            return
        self._report(Kind.TRIGGER, trigger.t_ns)
        self._due_ns = trigger.t_ns + settings.real_ns(settings.baseline_s)
        display.show(FIXATION, display.now_ns())
        self._wait(self._due_ns, (), self._has_to_end)
        if self._has_to_end():
            self._due_ns = display.now_ns()

    def _next_is_there(self) -> bool:
        """Wait for the next onset's time, and hold fixation where its image is not there; False at the end."""
        self._wait(self._due_ns)
        if not self._queue and not self._has_to_end():
            self._report(Kind.FIXATION, self._display.now_ns(), text="held: the next image is not there yet")
            self._wait(FOREVER_NS, (), lambda: bool(self._queue) or self._has_to_end())
            self._due_ns = self._display.now_ns()
        return bool(self._queue) and not self._has_to_end()

    def _trial(self, picture: Picture) -> None:
        """One image, its rating window where there is one, and the due time of the next onset."""
        settings, display = self._settings, self._display
        if self._prepared is not picture:
            display.prepare(picture)
        self._prepared = None
        onset = display.show(Scene("image", picture=picture), self._due_ns)
        self._shown = picture
        self._report(Kind.ONSET, onset, picture)
        schedule = self._due_ns if abs(onset - self._due_ns) <= display.frame_ns else onset
        self._prepare_next()
        until = onset + settings.real_ns(settings.image_s)
        self._wait(until)
        rated = settings.rating_window_s > 0
        offset = display.show(Scene("rating", settings.rating_text) if rated else FIXATION, until)
        self._shown = None
        self._report(Kind.OFFSET, offset, picture)
        if rated:
            self._due_ns = self._rating(picture, offset) + settings.real_ns(settings.washout_s)
        else:
            self._due_ns = schedule + settings.real_ns(settings.image_s) + settings.real_ns(settings.washout_s)
        self._note_dropped(picture)

    def _rating(self, picture: Picture, opened: int) -> int:
        """Wait for an answer; gives the flip that closed the window."""
        settings, display = self._settings, self._display
        until = opened + settings.real_ns(settings.rating_window_s)
        try:
            press = self._wait(until, settings.rating_keys, since_ns=opened)
        except (Escaped, KeyboardInterrupt):
            self._report(Kind.RATING, display.now_ns(), picture)
            raise
        if press is not None:
            took_s = (press.t_ns - opened) / 1e9 * (settings.speed or 1.0)
            self._report(Kind.RATING, press.t_ns, picture, float(settings.rating_keys.index(press.key)), took_s)
            return display.show(FIXATION, display.now_ns())
        closed = display.show(FIXATION, until)
        self._report(Kind.RATING, closed, picture)
        return closed

    def _goodbye(self, reason: str) -> None:
        """End text, for a moment; the bridge learns of it at once."""
        flip = self._display.show(Scene("text", self._settings.end_text), self._display.now_ns())
        self._report(Kind.END, flip, text=reason)
        if not self._settings.lock_step:
            with contextlib.suppress(Escaped, KeyboardInterrupt):
                self._wait(flip + self._settings.real_ns(self._settings.end_s))

    def _break_off(self) -> None:
        """Escape: clear the screen and say goodbye."""
        flip = self._display.show(FIXATION, self._display.now_ns())
        if self._shown is not None:
            self._report(Kind.OFFSET, flip, self._shown)
        self._report(Kind.END, flip, text=ESCAPE)

    # --- waiting ------------------------------------------------------------------------------------------------------------------

    def _wait(self, until_ns: int, keys: tuple[str, ...] = (), enough: Callable[[], bool] | None = None, since_ns: int = 0) -> Press | None:
        """Wait for a time, for one of `keys` pressed at or after `since_ns` (given back), or until `enough` says so.

        Raises
        ------
        Escaped
            Escape was pressed.
        """
        while True:
            self._take_messages()
            if (enough is not None and enough()) or self._display.due(until_ns):
                return None
            presses = self._display.wait(until_ns)
            self._take_messages()
            if any(press.key == ESCAPE for press in presses):
                raise Escaped
            for press in presses:
                if press.key in keys and press.t_ns >= since_ns:
                    return press

    def _has_to_end(self) -> bool:
        return self._ending is not None

    def _take_messages(self) -> None:
        """Take what the bridge has sent."""
        for message, pixels in self._link.take():
            if isinstance(message, Tick):
                self._display.advance(message.now_ns)
            elif isinstance(message, End):
                self._ending = message.reason
            elif isinstance(message, Image) and pixels is not None:
                self._queue.append(Picture(message.generation, message.candidate, message.height, message.width, pixels))
        self._prepare_next()

    def _prepare_next(self) -> None:
        """Have the display make the next picture ready while it has nothing else to do."""
        if self._queue and self._prepared is not self._queue[0]:
            self._prepared = self._queue[0]
            self._display.prepare(self._prepared)

    # --- reporting ----------------------------------------------------------------------------------------------------------------

    def _report(
        self,
        kind: Kind,
        t_ns: int,
        picture: Picture | None = None,
        value: float = math.nan,
        response_time_s: float = math.nan,
        text: str = "",
    ) -> None:
        generation, candidate = (picture.generation, picture.candidate) if picture else (-1, -1)
        text = text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
        self._link.send(Event(int(kind), t_ns, generation, candidate, value, response_time_s, text))

    def _note_dropped(self, picture: Picture) -> None:
        """Tell of frames missed during a trial."""
        missed = self._display.dropped - self._dropped
        self._dropped = self._display.dropped
        if missed:
            self._report(Kind.NOTE, self._display.now_ns(), picture, text=f"dropped frames: {missed}")
