"""Keys with PsychoPy: from Psychtoolbox with its own times, or from the window's events; and whether the window is in front.

Keys are read from all windows, and marked if the presenter's window was not in front: a trigger typed into another window is reported, and
does not begin a run.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import time
from collections.abc import Callable
from typing import Any

import psychopy.logging
from psychopy.hardware import keyboard

from presenter.display import DisplayError, Press
from rtevo.wire import KEY_NAMES, key_mistake, plain_key

__all__ = ["Focus", "Keys", "check_input_monitoring"]

LOOK_NS = 100_000_000  # interval of checks of the window's place while no key comes
FRONT_NS = 1_000_000_000  # interval at which a full screen that is not in front asks for its place
FRONT_TRIES = 3  # then somebody has moved it on purpose
STALL_NS = 100_000_000  # a longer time between looks means that the computer stalled: times stamped at its end are guesses
WAKE_NS = 30_000_000  # at the end of a stall
BOUNCE_NS = 40_000_000  # a key that is down again within this time was held: some systems repeat it
MONITORING = (
    "macOS does not permit this program to read the keyboard: permit it (PsychoPy, or the terminal) in System Settings > Privacy & "
    "Security > Input Monitoring, and restart the program"
)


def to_ns(psychopy_s: float) -> int:
    """Convert a time of PsychoPy's default clock to ns of the performance counter."""
    before = time.perf_counter_ns()
    reading_s = float(psychopy.logging.defaultClock.getTime())
    after = time.perf_counter_ns()
    return (before + after) // 2 - round((reading_s - psychopy_s) * 1e9)


def check_input_monitoring() -> None:
    """Raise DisplayError if macOS keeps keys from this program."""
    if sys.platform != "darwin":
        return
    library = ctypes.util.find_library("IOKit")
    check = getattr(ctypes.CDLL(library), "IOHIDCheckAccess", None) if library else None  # since macOS 10.15
    if check is not None and check(1) == 1:  # listening to events: denied
        raise DisplayError(MONITORING)


class Focus:
    """Tells whether keys go to a window.

    Parameters
    ----------
    handle : pyglet window
    owns : bool
        The window is a full screen, and asks for its place in front if it has lost it.
    """

    def __init__(self, handle: Any, owns: bool) -> None:
        self._handle, self._owns = handle, owns
        self._ask = self._asker()
        self._texts: list[str] = []
        self.begin()

    def begin(self) -> None:
        """Begin a session: forget earlier reports; report a problem that still exists again."""
        self._looked_ns = self._asked_ns = self._tries = 0
        self.here = True
        self._texts.clear()
        if self._owns:
            self._handle.activate()

    def _asker(self) -> Callable[[], bool]:
        """Choose the check for this system."""
        handle = self._handle
        if sys.platform == "win32":
            user = getattr(ctypes, "windll").user32  # noqa: B009  (not there where types are checked)
            return lambda: bool(user.GetForegroundWindow() == handle._hwnd)
        if sys.platform == "darwin":
            return lambda: bool(handle._nswindow.isKeyWindow())
        from pyglet.libs.x11 import xlib

        window, revert = ctypes.c_ulong(), ctypes.c_int()
        own = {getattr(handle, "_window", None), getattr(handle, "_view", None), 1}  # 1: the window under the pointer

        def ask() -> bool:
            xlib.XGetInputFocus(handle._x_display, ctypes.byref(window), ctypes.byref(revert))
            return window.value in own

        return ask

    def look(self, *, now: bool = False) -> bool:
        """Return whether the window has the keys; `now`: do not rely on the last look."""
        t_ns = time.perf_counter_ns()
        if now or t_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = t_ns
            here = self._ask()
            if here != self.here:
                self.here, self._tries = here, 0
                lost = "the presenter's window is not in front: click it (keys typed elsewhere do not count)"
                self._texts.append("the presenter's window is in front again" if here else lost)
            if not here and self._owns and self._tries < FRONT_TRIES and t_ns - self._asked_ns >= FRONT_NS:
                self._asked_ns, self._tries = t_ns, self._tries + 1
                self._handle.activate()
        return self.here

    def told(self) -> list[str]:
        """Return the changes since the last call."""
        texts, self._texts = self._texts, []
        return texts


class Keys:
    """Key presses with their times: Psychtoolbox's time stamps if it is installed, else the time of the next look.

    Parameters
    ----------
    handle : pyglet window
    focus : Focus

    Attributes
    ----------
    exact : bool
        Psychtoolbox stamps the keys.
    backend : str
        Name of the keyboard's library.
    """

    def __init__(self, handle: Any, focus: Focus) -> None:
        self._focus = focus
        self._looked_ns = time.perf_counter_ns()
        self._known: dict[int, Any] = {}  # presses that have been reported, and will come again with their release
        self._down: set[str] = set()
        self._up_ns: dict[str, int] = {}
        self._events: list[str] = []
        self._keyboard = _psychtoolbox()
        self.exact = self._keyboard is not None
        self.backend = "Psychtoolbox" if self.exact else "window events"
        if not self.exact:
            handle.push_handlers(on_key_press=self._pressed, on_key_release=self._released)

    @property
    def names(self) -> frozenset[str]:
        """Every key that the keyboard can deliver."""
        if self.exact:
            return frozenset(plain_key(name) for name in keyboard.keyNames.values())
        return KEY_NAMES

    def check(self, where: str, key: str) -> None:
        """Raise DisplayError if this keyboard cannot deliver a key of the session file."""
        if mistake := key_mistake(key, self.names):
            raise DisplayError(f"[presentation] {where}: {mistake} (keyboard: {self.backend} on {sys.platform})")

    def presses(self) -> list[Press]:
        """Return the presses since the last call, oldest first."""
        before, self._looked_ns = self._looked_ns, time.perf_counter_ns()
        found = self._stamped(before) if self.exact else self._noticed(before)
        elsewhere = not self._focus.look(now=bool(found))
        if elsewhere:
            found = [Press(press.key, press.t_ns, press.error_ns, elsewhere=True) for press in found]
        return sorted(found, key=lambda press: press.t_ns)

    def _stamped(self, before_ns: int) -> list[Press]:
        """Return Psychtoolbox's presses; presses stamped as the computer woke up may be older."""
        assert self._keyboard is not None
        found, gap_ns = [], self._looked_ns - before_ns
        for press in [*self._keyboard.getKeys(waitRelease=False), *self._keyboard.getKeys(waitRelease=True)]:
            if self._known.pop(id(press), None) is None:
                t_ns = to_ns(press.tDown)
                woken = gap_ns > STALL_NS and t_ns > self._looked_ns - WAKE_NS
                found.append(Press(plain_key(press.name), t_ns, gap_ns if woken else 0))
            if press.duration is None:
                self._known[id(press)] = press
        return found

    def _noticed(self, before_ns: int) -> list[Press]:
        """Return the presses from the window's events: some time since the last look."""
        names, self._events = self._events, []
        return [Press(name, self._looked_ns, self._looked_ns - before_ns) for name in names]

    def _pressed(self, symbol: int, modifiers: int) -> None:
        name = _name_of(symbol)
        held = name in self._down or time.perf_counter_ns() - self._up_ns.get(name, -BOUNCE_NS) < BOUNCE_NS
        self._down.add(name)
        if not held:
            self._events.append(name)

    def _released(self, symbol: int, modifiers: int) -> None:
        name = _name_of(symbol)
        self._down.discard(name)
        self._up_ns[name] = time.perf_counter_ns()


def _name_of(symbol: int) -> str:
    from pyglet.window import key

    return plain_key(key.symbol_string(symbol).lower().lstrip("_"))


def _psychtoolbox() -> Any | None:
    """Open Psychtoolbox's keyboard; None if it is not installed or does not work."""
    check_input_monitoring()
    if not keyboard.havePTB:
        return None
    try:
        opened = keyboard.Keyboard(backend="ptb")
    except OSError as error:
        if sys.platform == "darwin":
            raise DisplayError(MONITORING) from error
        return None
    except Exception:  # no keyboard that it knows, for example on a remote desktop
        return None
    opened.device.muteOutsidePsychopy = False  # muted keys would be lost without notice
    return opened
