"""The screens of this computer: ``python -m presenter --screens`` lists them, and shows each screen's number on it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from presenter.display import DisplayError, Scene
from presenter.run import load_screen
from rtevo.wire import FOREVER_NS, PresentationSettings

__all__ = ["Found", "find_screens", "show_screens"]

SHOWN_S = 2.0
TEXT_HEIGHT = 0.3


@dataclass(frozen=True)
class Found:
    """One screen.

    Parameters
    ----------
    index : int
        Number for [presentation] screen.
    width, height : int
        Pixels, as counted by programs.
    x, y : int
        Position on the desktop.
    scaling : float
        Physical pixels for each of these pixels, if the system reports it, else 1.
    rate_hz : float
        From the system; 0 if it does not report it.
    """

    index: int
    width: int
    height: int
    x: int
    y: int
    scaling: float
    rate_hz: float

    def words(self, measured_hz: float = 0.0) -> str:
        """Describe it."""
        rate = f"{measured_hz:.2f} Hz measured" if measured_hz else f"{self.rate_hz:g} Hz" if self.rate_hz else "rate unknown"
        return f"screen {self.index}: {self.width} x {self.height} at ({self.x}, {self.y}), scaling {self.scaling:.0%}, {rate}"


def find_screens() -> list[Found]:
    """Return all screens.

    Raises
    ------
    DisplayError
        No screen was found.
    """
    load_screen()  # pixels instead of points must be requested first on some systems
    import pyglet

    try:
        screens = pyglet.canvas.get_display().get_screens()
    except Exception as error:
        raise DisplayError(f"no screen here: {error}") from error
    return [_found(k, screen) for k, screen in enumerate(screens)]


def _found(index: int, screen: Any) -> Found:
    try:
        mode = screen.get_mode()
    except Exception:  # not every system says
        mode = None
    rate = float(getattr(mode, "rate", 0) or 0)
    scaling = _scaling(screen) or ((mode.width / screen.width) if mode is not None and mode.width else 1.0)
    return Found(index, screen.width, screen.height, screen.x, screen.y, scaling, rate)


def _scaling(screen: Any) -> float:
    """Return a screen's scaling from Windows or macOS; 0 if unknown."""
    try:
        if sys.platform == "win32":
            import ctypes

            factor = ctypes.c_int()
            getattr(ctypes, "windll").shcore.GetScaleFactorForMonitor(screen._handle, ctypes.byref(factor))  # noqa: B009
            return factor.value / 100
        if sys.platform == "darwin":
            for native in screen.get_ns_screens() if hasattr(screen, "get_ns_screens") else ():
                return float(native.backingScaleFactor())
    except Exception:
        return 0.0
    return 0.0


def show_screens(say: Callable[[str], None] = print, shown_s: float = SHOWN_S) -> list[Found]:
    """List the screens, and show each screen's number on it for a moment.

    Parameters
    ----------
    say : callable
        Called with each line.
    shown_s : float
        Duration, s.

    Raises
    ------
    DisplayError
        There is no screen, or PsychoPy is not installed.
    """
    screens = find_screens()
    for found in screens:
        text = str(found.index)
        settings = PresentationSettings(screen=found.index, wait_text=text, end_text=text, text_height=TEXT_HEIGHT)
        screen = load_screen()(settings)
        try:
            until = screen.show(Scene("text", text), screen.now_ns()) + round(shown_s * 1e9)
            while not screen.due(until):
                screen.wait(min(until, FOREVER_NS))
            paced = any("vertical synchronisation" in warning for warning in screen.warnings)
            say(found.words(0.0 if paced else 1e9 / screen.frame_ns))
        finally:
            screen.close()
    say("[presentation] screen: the number that is shown on the participant's screen")
    return screens
