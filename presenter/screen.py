"""The real display: a PsychoPy window and keyboard.

PsychoPy's times (seconds of ``psychopy.logging.defaultClock``, which stamps flips and, with Psychtoolbox, key presses) are converted to
nanoseconds of ``time.perf_counter``, the clock with which the link answers the bridge.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import time
from itertools import pairwise
from typing import Any

if sys.platform == "win32":  # before PsychoPy decides: use the screen's own pixels, whatever its scaling
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.windll.shcore.SetProcessDpiAwareness(2)

import psychopy
import psychopy.logging
from psychopy import monitors, visual

from presenter.display import DisplayError, Picture, Press, Scene
from presenter.frames import measure_frame
from presenter.keys import Focus, Keys, to_ns
from presenter.stimuli import Stimuli
from rtevo.wire import PresentationSettings

__all__ = ["Screen"]

WINDOW_SIZE = (1024, 768)  # if the session or --window asks for a window
MEASURED_FRAMES, WARM_UP_FRAMES = 120, 30
PACE_HZ = 60.0  # if the flips do not wait for the screen
LONGEST_UPLOAD_NS = 100_000_000  # a longer upload is an outlier
TRIAL_UPLOADS, TRIAL_SIDE = 5, 768  # pictures uploaded beforehand to measure the time; pixels
OF_THE_WINDOW = ("full_screen", "screen", "background", "monitor", "screen_width_cm", "viewing_distance_cm")  # settings

psychopy.logging.console.setLevel(psychopy.logging.ERROR)
_log = logging.getLogger("presenter")


def _now_ns() -> int:
    return time.perf_counter_ns()


class Screen:
    """A PsychoPy window.

    Every frame is drawn and flipped, also while the scene stays, so that each flip's time is known and dropped frames are counted.

    Parameters
    ----------
    settings : PresentationSettings
    window : bool
        A window, whatever the settings.

    Raises
    ------
    DisplayError
        The settings cannot be met here.
    """

    def __init__(self, settings: PresentationSettings, *, window: bool = False) -> None:
        _check(settings)
        self._settings, self._windowed = settings, window or not settings.full_screen
        self._window = self._open(settings, not self._windowed)
        try:
            self._begin(settings)
        except BaseException:
            self._window.close()
            raise

    def _begin(self, settings: PresentationSettings) -> None:
        self._focus = Focus(self._window.winHandle, owns=not self._windowed)
        self._keys = Keys(self._window.winHandle, self._focus)
        self._paced, self.dropped, self.flip_error_ns = False, 0, 0
        self.frame_ns = round(1e9 / PACE_HZ)
        self._flip_ns = _now_ns()
        self._take_on(settings)
        frame_ns = measure_frame(self._gaps)
        self._paced = frame_ns is None
        self.frame_ns = frame_ns or round(1e9 / PACE_HZ)
        self.prepare_ns = 0
        for _ in range(TRIAL_UPLOADS):
            self._try_upload()
        self.dropped = 0
        width, height = self._window.size
        self.name = f"psychopy {psychopy.__version__} {width} x {height}"
        if self._paced:
            self.name += f", flips do not wait for the screen: paced at {PACE_HZ:g} Hz"
        self.warnings = tuple(self._find_warnings())
        for warning in self.warnings:
            _log.warning("%s", warning)

    def _take_on(self, settings: PresentationSettings) -> None:
        """Check a session's keys here, and make its stimuli."""
        wanted = [("trigger_key", settings.trigger_key)] if settings.trigger == "keyboard" else []
        if settings.rating_window_s and not settings.answers_over_port:
            wanted += [("rating_keys", key) for key in settings.rating_keys]
        wanted += [("away_key", settings.away_key)]
        if not settings.answers_over_port:
            wanted += [("participant_key", settings.participant_key), ("stop_key", settings.stop_key)]
        for where, key in wanted:
            if key:
                self._keys.check(where, key)
        self._settings = settings
        self._focus.begin()
        self._stimuli = Stimuli(self._window, settings)
        self._scene = Scene("blank")

    def _find_warnings(self) -> list[str]:
        found = []
        if self._paced:
            found.append("flips do not wait for the screen (no vertical synchronisation): onsets are exact to one frame at best")
        if not self._keys.exact:
            found.append("Psychtoolbox is missing: key times are known to one frame only (pip install psychtoolbox)")
        return found

    @staticmethod
    def _open(settings: PresentationSettings, full_screen: bool) -> Any:
        try:
            made = visual.Window(
                size=WINDOW_SIZE,
                monitor=_monitor(settings),
                fullscr=full_screen,
                screen=settings.screen,
                color=settings.background,
                colorSpace="rgb1",
                units="height",
                allowGUI=False,
                waitBlanking=True,
                checkTiming=False,
                autoLog=False,
                title="rtevo",
            )
        except DisplayError:
            raise
        except Exception as error:  # PsychoPy and its backends raise errors of many kinds
            raise DisplayError(f"screen {settings.screen}: cannot open a window: {error}") from error
        screens = len(made.winHandle.display.get_screens())
        if settings.screen >= screens:  # PsychoPy would use the first screen
            made.close()
            raise DisplayError(f"[presentation] screen: expected 0 to {screens - 1} on this computer, got {settings.screen}")
        made.mouseVisible = False
        if mistake := _scaling_mistake(made, settings, full_screen):
            made.close()
            raise DisplayError(mistake)
        return made

    def _gaps(self) -> list[int]:
        """Return the times between some flips, ns."""
        flips = []
        for _ in range(WARM_UP_FRAMES + MEASURED_FRAMES):
            self._flip()
            flips.append(self._flip_ns)
        return [b - a for a, b in pairwise(flips[WARM_UP_FRAMES:])]

    # --- from session to session -----------------------------------------------------------------------------------------------------

    def renew(self, settings: PresentationSettings) -> bool:
        """Apply another session's settings in the same window; return False if they need another window.

        Raises
        ------
        DisplayError
            The settings cannot be met here.
        """
        _check(settings)
        if any(getattr(settings, name) != getattr(self._settings, name) for name in OF_THE_WINDOW):
            return False
        if _scaling_mistake(self._window, settings, not self._windowed):
            return False
        self._take_on(settings)
        self.dropped = 0
        return True

    def say(self, text: str) -> None:
        """Show a text that is not part of the session."""
        self._stimuli.add_text(text)
        self.show(Scene("text", text), self.now_ns())

    @property
    def keys(self) -> Keys:
        """The keyboard."""
        return self._keys

    # --- the display's interface -----------------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """Time now."""
        return _now_ns()

    def advance(self, now_ns: int) -> None:
        """Do nothing: the clock is real."""

    def prepare(self, picture: Picture) -> None:
        """Upload a picture to the hidden texture, and collect garbage: there is time for both."""
        began = _now_ns()
        self._stimuli.upload(picture)
        if not gc.isenabled():
            gc.collect()
        self.prepare_ns = min(max(self.prepare_ns, _now_ns() - began), LONGEST_UPLOAD_NS)

    def _try_upload(self) -> None:
        """Upload a hidden picture, to measure `prepare_ns`."""
        self.prepare(Picture(-1, -1, TRIAL_SIDE, TRIAL_SIDE, memoryview(bytes(TRIAL_SIDE * TRIAL_SIDE * 3))))
        self._flip()

    def due(self, until_ns: int) -> bool:
        """Return whether the next frame is the one nearest to `until_ns`, or later."""
        return max(self._flip_ns + self.frame_ns, _now_ns()) >= until_ns - self.frame_ns // 2

    def wait(self, until_ns: int) -> list[Press]:
        """Show the scene for one more frame; return the keys pressed meanwhile."""
        if not self.due(until_ns):
            self._flip()
        return self._keys.presses()

    def show(self, scene: Scene, at_ns: int) -> int:
        """Change the scene at the frame nearest to `at_ns`, or at the next one; return the time of the flip."""
        while not self.due(at_ns):
            self._flip()
        self._scene = scene
        self._flip()
        return self._flip_ns

    def told(self) -> list[str]:
        """Return the changes of the window's place in front since the last call."""
        return self._focus.told()

    def close(self) -> None:
        """Close the window."""
        self._window.close()

    def _flip(self) -> None:
        self._stimuli.draw(self._scene)
        if self._paced:
            late = max(0, (_now_ns() - self._flip_ns) // self.frame_ns)
            time.sleep(max(0, self._flip_ns + (late + 1) * self.frame_ns - _now_ns()) / 1e9)
        before = self._flip_ns
        self._flip_ns = to_ns(self._window.flip())
        missed = max(0, round((self._flip_ns - before) / self.frame_ns) - 1)
        self.dropped += missed
        # a late flip may have been seen at any of the missed frames, if the computer stalled after it
        self.flip_error_ns = self._flip_ns - before - self.frame_ns if missed else 0


def _check(settings: PresentationSettings) -> None:
    if settings.lock_step:
        raise DisplayError("the session runs in lock-step (speed max), which no screen can follow: use --headless")


def _scaling_mistake(window: Any, settings: PresentationSettings, full_screen: bool) -> str:
    """Return a sentence if the system scales the drawing although the settings give pixels or degrees; else an empty text."""
    if not full_screen or not (settings.image_deg or not settings.image_height):
        return ""
    mode = None
    with contextlib.suppress(Exception):  # not every system reports it
        mode = window.winHandle.screen.get_mode()
    width, height = (int(x) for x in window.size)
    if mode is None or (mode.width, mode.height) == (width, height):
        return ""
    factor = window.getContentScaleFactor()
    if (round(mode.width * factor), round(mode.height * factor)) == (width, height):
        return ""  # the system counts points, and the window's pixels are the screen's
    what = "image_deg" if settings.image_deg else "image_height"
    return (
        f"[presentation] {what}: expected a screen without scaling, got {mode.width} x {mode.height} pixels that show {width} x {height}: "
        "set its scaling to 100 % in the system's display settings"
    )


def _monitor(settings: PresentationSettings) -> Any:
    """Return the monitor of the settings: from PsychoPy's monitor centre, or from size and distance."""
    if settings.monitor and settings.monitor not in monitors.getAllMonitors():
        known = ", ".join(monitors.getAllMonitors()) or "none"
        raise DisplayError(f"[presentation] monitor: expected one of PsychoPy's monitor centre here ({known}), got {settings.monitor!r}")
    monitor = monitors.Monitor(settings.monitor or "rtevo", autoLog=False)
    if settings.screen_width_cm:
        monitor.setWidth(settings.screen_width_cm)
    if settings.viewing_distance_cm:
        monitor.setDistance(settings.viewing_distance_cm)
    if settings.image_deg and not (monitor.getWidth() and monitor.getDistance()):
        raise DisplayError(f"[presentation] monitor {settings.monitor!r}: image_deg needs its size and distance, which are not known")
    return monitor
