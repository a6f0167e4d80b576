"""Sessions from the connection to the end, one after the other."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from presenter.display import Display, DisplayError, Scene
from presenter.headless import open_headless
from presenter.link import Link, LinkLost, Replaced
from presenter.markers import open_markers
from presenter.priority import undisturbed
from presenter.session import ESCAPE, Session
from presenter.triggers import open_port
from rtevo import wire

if TYPE_CHECKING:
    from presenter.screen import Screen

__all__ = ["load_screen", "present"]

REPLACED_TEXT = "This screen no longer shows the session:\nanother presenter has taken its place.\n\n(Escape closes this window.)"

_log = logging.getLogger("presenter")


def present(
    connect: str,
    *,
    key: Path | None = None,
    headless: bool = False,
    participant: str | None = None,
    window: bool = False,
    connect_s: float = 3600.0,
    restarts: bool = True,
    stay: bool = False,
) -> str:
    """Wait for a session, present it, and return why it ended; sessions that only check this presenter do not count.

    Parameters
    ----------
    connect : str
        Endpoint of the bridge.
    key : Path, optional
        This presenter's key file; needed unless the endpoint is loopback.
    headless : bool
        No screen.
    participant : str, optional
        Endpoint of a simulated participant (headless only).
    window : bool
        A window, whatever the session's settings.
    connect_s : float
        Give up if no session answers within this time, s.
    restarts : bool
        Wait for a session that begins again with another run of the scanner, and for the next run of a visit.
    stay : bool
        Wait for the next session, with the end text on the screen, until Escape is pressed.

    Returns
    -------
    str
        The last bridge's reason, or "escape".

    Raises
    ------
    presenter.link.LinkLost, presenter.display.DisplayError, rtevo.wire.WireError
        With a message for the person at this computer.
    """
    keys = wire.KeyFile.read(key, "presenter") if key is not None else None
    ended = ESCAPE
    with _Room(keys, headless, participant, window, stay) as room:
        while True:
            with Link(connect, keys, "headless" if headless else "psychopy", connect_s=connect_s) as link:
                _log.info("waiting for a session at %s%s", connect, " (Escape in the window exits)" if room.screen is not None else "")
                welcome = room.wait(link)
                if welcome is None:
                    return ended
                checked = welcome.session == wire.CHECK
                try:
                    reason = room.show(link, welcome)
                except LinkLost as lost:
                    if isinstance(lost, Replaced) or not (checked or stay):
                        raise
                    _log.warning("%s: %s", "the check was interrupted" if checked else "the session is gone", lost)
                    room.rest()
                    continue
            if checked and reason == wire.CHECK:
                _log.info("the support computer has checked this presenter")
            elif restarts and reason == wire.RESTART:
                _log.info("the session begins again: waiting for the scanner's next run")
            elif restarts and reason == wire.NEXT:
                _log.info("the run is over: waiting for the visit's next run")
            elif stay and reason != ESCAPE:
                _log.info("ended (%s): waiting for the next run", reason)
                ended = reason
            else:
                return reason


def load_screen() -> type[Screen]:
    """Return the display with PsychoPy.

    Raises
    ------
    DisplayError
        PsychoPy cannot be used here; the message says why.
    """
    try:
        from presenter.screen import Screen
    except ModuleNotFoundError as error:
        raise DisplayError(
            f"PsychoPy is not installed in this Python ({error}): start the presenter with PsychoPy's own Python, or pip install "
            "psychopy-lib"
        ) from error
    except ImportError as error:  # of a library, for example OpenGL
        raise DisplayError(f"PsychoPy cannot be loaded here: {_first_line(error)}") from error
    except Exception as error:  # pyglet without a display raises errors of many kinds
        what = f"PsychoPy finds no screen here ({_first_line(error)}): start this program on a running desktop"
        raise DisplayError(what) from error
    return Screen


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


class _Room:
    """The screen for successive sessions: the window stays open between them."""

    def __init__(self, keys: wire.KeyFile | None, headless: bool, participant: str | None, window: bool, stay: bool) -> None:
        self._keys, self._headless, self._participant, self._window, self._stay = keys, headless, participant, window, stay
        self.screen: Screen | None = None
        self._trouble = ""
        if not headless:
            try:
                load_screen()
            except DisplayError as error:
                self._trouble = str(error)

    def __enter__(self) -> _Room:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.screen is not None:
            self.screen.close()

    def wait(self, link: Link) -> wire.Welcome | None:
        """Wait for a session, with the last text on the screen; None if Escape was pressed.

        Raises
        ------
        DisplayError
            Nothing can be shown here; the support computer has been informed, if it listens.
        """
        if self._trouble:
            link.leave(self._trouble)
            raise DisplayError(self._trouble)
        if self.screen is None:
            return link.welcome()
        while (welcome := link.welcomed()) is None:
            if self._escaped():
                return None
        return welcome

    def _escaped(self) -> bool:
        """Show the scene for another frame; return whether Escape was pressed."""
        assert self.screen is not None
        return any(press.key == ESCAPE and not press.elsewhere for press in self.screen.wait(wire.FOREVER_NS))

    def show(self, link: Link, welcome: wire.Welcome) -> str:
        """Present the session at the other end of a link."""
        settings = welcome.settings
        with ExitStack() as stack:
            try:
                mark = open_markers(welcome.session) if settings.lsl else None
                port = open_port(settings.trigger)
                if port is not None:
                    stack.enter_context(port)
                display = self._display(link, welcome, stack)
            except DisplayError as error:
                link.leave(str(error))
                raise
            if self.screen is not None:
                how = stack.enter_context(undisturbed())
                _log.info("priority over other programs: %s", how or "not permitted to this user: close other programs")
            lingers = not (self._stay and self.screen is not None)
            session = Session(settings, link, display, welcome.started, port, mark, lingers)
            try:
                return session.run()
            except Replaced:
                self._say_replaced()
                raise

    def _display(self, link: Link, welcome: wire.Welcome, stack: ExitStack) -> Display:
        settings = welcome.settings
        if self._headless:
            display = open_headless(link, settings, self._participant, welcome.now_ns, self._keys)
            stack.enter_context(closing(display))
            return display
        if self.screen is not None and not self.screen.renew(settings):
            self.screen.close()
            self.screen = None
        if self.screen is None:
            self.screen = load_screen()(settings, window=self._window)
        return self.screen

    def rest(self) -> None:
        """Show fixation, because the session is gone."""
        if self.screen is not None:
            self.screen.show(Scene("fixation"), self.screen.now_ns())

    def _say_replaced(self) -> None:
        """Show on the screen that another presenter shows the session, until Escape is pressed."""
        if self.screen is None:
            return
        _log.warning("another presenter has taken this one's place: it shows the session now (Escape in the window exits)")
        self.screen.say(REPLACED_TEXT)
        while not self._escaped():
            pass
