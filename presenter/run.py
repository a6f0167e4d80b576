"""One session from the connection to the end."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from pathlib import Path

from presenter.display import Display
from presenter.headless import open_headless
from presenter.link import Link, LinkLost
from presenter.markers import open_markers
from presenter.session import Session
from presenter.triggers import open_port
from rtevo import wire

__all__ = ["present"]

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
) -> str:
    """Wait for a session, present it, and say why it ended. One that only checks this presenter is waited out.

    Parameters
    ----------
    connect : str
        Endpoint of the bridge.
    key : Path, optional
        This presenter's key file; needed for anything but loopback.
    headless : bool
        No screen.
    participant : str, optional
        Endpoint of a simulated participant (headless only).
    window : bool
        A window, whatever the session asks for.
    connect_s : float
        Give up where no session answers for so long, s.
    restarts : bool
        A session that begins again, with another run of the scanner, is waited for.

    Returns
    -------
    str
        The bridge's reason, or "escape".

    Raises
    ------
    presenter.link.LinkLost, presenter.display.DisplayError, rtevo.wire.WireError
        With a message for whoever sits at this computer.
    """
    keys = wire.KeyFile.read(key, "presenter") if key is not None else None
    while True:
        with Link(connect, keys, "headless" if headless else "psychopy", connect_s=connect_s) as link:
            _log.info("waiting for a session at %s", connect)
            checked = link.welcome().session == wire.CHECK
            try:
                reason = _show(link, keys, headless, participant, window)
            except LinkLost as lost:
                if not checked:
                    raise
                _log.warning("the check was broken off: %s", lost)
                continue
        if checked and reason == wire.CHECK:
            _log.info("the support computer has checked this presenter")
        elif restarts and reason == wire.RESTART:
            _log.info("the session begins again: waiting for the scanner's next run")
        else:
            return reason


def _show(link: Link, keys: wire.KeyFile | None, headless: bool, participant: str | None, window: bool) -> str:
    """Present the session at the other end of a link."""
    with ExitStack() as stack:
        welcome = link.welcome()
        settings = welcome.settings
        mark = open_markers(welcome.session) if settings.lsl else None
        port = open_port(settings.trigger)
        if port is not None:
            stack.enter_context(port)
        display: Display
        if headless:
            display = open_headless(link, settings, participant, welcome.now_ns, keys)
        else:
            from presenter.screen import Screen

            display = Screen(settings, window=window)
        stack.enter_context(closing(display))
        return Session(settings, link, display, welcome.started, port, mark).run()
