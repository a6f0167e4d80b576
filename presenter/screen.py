"""The real display: a PsychoPy window and keyboard. The only module that needs PsychoPy.

PsychoPy's times (seconds of ``psychopy.logging.defaultClock``, which stamps flips and, with Psychtoolbox, key presses) are turned into
nanoseconds of ``time.perf_counter``, the clock that the link answers the bridge with.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import numpy as np
import psychopy.logging
from PIL import Image
from psychopy import event, monitors, visual
from psychopy.hardware import keyboard

from presenter.display import DisplayError, Picture, Press, Scene
from rtevo.wire import PresentationSettings

__all__ = ["Screen"]

WINDOW_SIZE = (1024, 768)  # where the session or --window asks for a window
MEASURED_FRAMES, WARM_UP_FRAMES = 120, 30
FASTEST_HZ = 500.0  # flips that come faster wait for no screen
PACE_HZ = 60.0  # where the flips do not wait for the screen
TEXT_HEIGHT = 0.04  # of the screen's height
LONGEST_UPLOAD_NS = 100_000_000  # one that took longer was an accident, not to be reckoned with
TRIAL_UPLOADS, TRIAL_SIDE = 5, 768  # pictures uploaded beforehand, to know how long it takes; pixels

psychopy.logging.console.setLevel(psychopy.logging.ERROR)
_log = logging.getLogger("presenter")


def _now_ns() -> int:
    return time.perf_counter_ns()


class _Keyboard:
    """Presses with their times: Psychtoolbox's own stamps where it is there, else the time of the next look."""

    def __init__(self) -> None:
        self._exact = bool(keyboard.havePTB)
        self._keyboard = keyboard.Keyboard(backend="ptb") if self._exact else None
        self._known: dict[int, Any] = {}  # presses that have been reported and will come again with their release

    def presses(self) -> list[Press]:
        """Give what has been pressed since the last call, oldest first."""
        found = []
        if self._keyboard is None:
            stamped: list[tuple[str, float]] = event.getKeys(timeStamped=psychopy.logging.defaultClock) or []
            found = [Press(_plain(name), _to_ns(t_s)) for name, t_s in stamped]
        else:
            down = self._keyboard.getKeys(waitRelease=False)
            for press in [*down, *self._keyboard.getKeys(waitRelease=True)]:
                if self._known.pop(id(press), None) is None:
                    found.append(Press(_plain(press.name), _to_ns(press.tDown)))
                if press.duration is None:
                    self._known[id(press)] = press
        return sorted(found, key=lambda press: press.t_ns)


def _plain(name: str) -> str:
    """Name of a key, the number pad's digits being digits."""
    return name[4:] if name.startswith("num_") and len(name) == 5 else name


def _to_ns(psychopy_s: float) -> int:
    """Turn a time of PsychoPy's default clock into ns of the performance counter."""
    before = _now_ns()
    reading_s = float(psychopy.logging.defaultClock.getTime())
    after = _now_ns()
    return (before + after) // 2 - round((reading_s - psychopy_s) * 1e9)


class Screen:
    """A PsychoPy window.

    Every frame is drawn and flipped, also while nothing changes, so that each flip's time is known and dropped frames are counted.

    Parameters
    ----------
    settings : PresentationSettings
    window : bool
        A window, whatever the settings say.
    """

    def __init__(self, settings: PresentationSettings, *, window: bool = False) -> None:
        if settings.lock_step:
            raise DisplayError("the session runs in lock-step (speed max), which no screen can follow: use --headless")
        self._settings = settings
        self._window = self._open(settings, settings.full_screen and not window)
        self._keyboard = _Keyboard()
        self._stimuli = _Stimuli(self._window, settings)
        self._scene = Scene("blank")
        self._paced = False
        self.dropped = 0
        self.frame_ns = round(1e9 / PACE_HZ)
        self._flip_ns = _now_ns()
        self.frame_ns, self._paced = self._measure()
        self.prepare_ns = 0
        self.uploads_ns = [self._try_upload() for _ in range(TRIAL_UPLOADS)]
        self.dropped = 0
        width, height = self._window.size
        self.name = f"psychopy {visual.Window.__module__ and psychopy.__version__} {width} x {height}"
        if self._paced:
            self.name += f", flips do not wait for the screen: paced at {PACE_HZ:g} Hz"
            _log.warning(
                "flips do not wait for the screen (no vertical synchronisation): onsets are exact to one frame of the screen at best"
            )

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
        except Exception as error:  # PsychoPy and its backends raise what they like
            raise DisplayError(f"screen {settings.screen}: cannot open a window: {error}") from error
        screens = len(made.winHandle.display.get_screens())
        if settings.screen >= screens:  # PsychoPy takes the first one then
            made.close()
            raise DisplayError(f"[presentation] screen: expected 0 to {screens - 1} on this computer, got {settings.screen}")
        made.mouseVisible = False
        return made

    def _measure(self) -> tuple[int, bool]:
        """Measure the time between flips; where they do not wait for the screen, say so."""
        flips = []
        for _ in range(WARM_UP_FRAMES + MEASURED_FRAMES):
            self._flip()
            flips.append(self._flip_ns)
        gaps = [b - a for a, b in zip(flips[WARM_UP_FRAMES:-1], flips[WARM_UP_FRAMES + 1 :], strict=True)]
        typical = statistics.median(gaps)
        tenths = statistics.quantiles(gaps, n=10)
        regular = tenths[-1] - tenths[0] < 0.3 * typical
        if regular and typical > 1e9 / FASTEST_HZ:
            return round(statistics.fmean(g for g in gaps if g < 1.5 * typical)), False
        return round(1e9 / PACE_HZ), True

    # --- the display's interface -----------------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """Time now."""
        return _now_ns()

    def advance(self, now_ns: int) -> None:
        """Nothing: the clock is real."""

    def prepare(self, picture: Picture) -> None:
        """Upload a picture to the texture that is not shown."""
        began = _now_ns()
        self._stimuli.upload(picture)
        self.prepare_ns = min(max(self.prepare_ns, _now_ns() - began), LONGEST_UPLOAD_NS)

    def _try_upload(self) -> int:
        """Give the time that a picture's upload takes, ns."""
        pixels = memoryview(bytes(TRIAL_SIDE * TRIAL_SIDE * 3))
        began = _now_ns()
        self.prepare(Picture(-1, -1, TRIAL_SIDE, TRIAL_SIDE, pixels))
        taken = _now_ns() - began
        self._flip()
        return taken

    def due(self, until_ns: int) -> bool:
        """Whether the next frame is the one nearest to `until_ns`, or later."""
        return max(self._flip_ns + self.frame_ns, _now_ns()) >= until_ns - self.frame_ns // 2

    def wait(self, until_ns: int) -> list[Press]:
        """Show the scene for one more frame; gives the keys pressed meanwhile."""
        if not self.due(until_ns):
            self._flip()
        return self._keyboard.presses()

    def show(self, scene: Scene, at_ns: int) -> int:
        """Change the scene at the frame nearest to `at_ns`, or the next one; gives the time of the flip."""
        while not self.due(at_ns):
            self._flip()
        self._scene = scene
        self._flip()
        return self._flip_ns

    def close(self) -> None:
        """Close the window."""
        self._window.close()

    def _flip(self) -> None:
        self._stimuli.draw(self._scene)
        if self._paced:
            late = max(0, (_now_ns() - self._flip_ns) // self.frame_ns)
            time.sleep(max(0, self._flip_ns + (late + 1) * self.frame_ns - _now_ns()) / 1e9)
        before = self._flip_ns
        self._flip_ns = _to_ns(self._window.flip())
        self.dropped += max(0, round((self._flip_ns - before) / self.frame_ns) - 1)


def _monitor(settings: PresentationSettings) -> Any:
    """Give the monitor of the settings: from PsychoPy's monitor centre, or made of its size and distance."""
    if settings.monitor and settings.monitor not in monitors.getAllMonitors():
        known = ", ".join(monitors.getAllMonitors()) or "none"
        raise DisplayError(f"[presentation] monitor: expected one of PsychoPy's monitor centre here ({known}), got {settings.monitor!r}")
    monitor = monitors.Monitor(settings.monitor or "rtevo", autoLog=False)
    if settings.screen_width_cm:
        monitor.setWidth(settings.screen_width_cm)
    if settings.viewing_distance_cm:
        monitor.setDistance(settings.viewing_distance_cm)
    if settings.image_deg and not (monitor.getWidth() and monitor.getDistance()):
        raise DisplayError(f"[presentation] monitor {settings.monitor!r}: its size and distance are not known, which image_deg needs")
    return monitor


def _fixation(window: Any, settings: PresentationSettings, ink: str) -> list[Any]:
    """Make the parts of the fixation shape, in the order that they are drawn."""
    size, paper = settings.fixation_height, settings.background

    def cross(colour: Any, colour_space: str) -> Any:
        return visual.ShapeStim(window, vertices="cross", size=size, fillColor=colour, colorSpace=colour_space, lineWidth=0, autoLog=False)

    def disc(share: float) -> Any:
        return visual.Circle(window, radius=size * share / 2, edges=128, fillColor=ink, lineWidth=0, autoLog=False)

    if settings.fixation == "bullseye":
        return [disc(1), cross(paper, "rgb1"), disc(1 / 3)]
    return {"cross": [cross(ink, "named")], "dot": [disc(1)], "none": []}[settings.fixation]


class _Stimuli:
    """Everything that can be on the screen, made beforehand."""

    def __init__(self, window: Any, settings: PresentationSettings) -> None:
        self._window, self._settings = window, settings
        ink = "black" if sum(settings.background) / 3 > 0.6 else "white"
        self._fixation = _fixation(window, settings, ink)
        # each stimulus is mirrored by itself: the window's viewScale mirrors images but no text
        mirrored = settings.mirrored
        side = -1 if mirrored else 1
        common = {"height": TEXT_HEIGHT, "color": ink, "wrapWidth": 1.2, "flipHoriz": mirrored, "autoLog": False}
        self._texts = {
            text: visual.TextStim(window, text=text, **common) for text in (settings.wait_text, settings.end_text, settings.rating_text)
        }
        self._texts[settings.rating_text].pos = (0, 2.5 * TEXT_HEIGHT)
        count = len(settings.rating_keys)
        labels = list(settings.rating_labels or (str(k + 1) for k in range(count)))
        step = TEXT_HEIGHT * max(3.0, 1.5 + 0.6 * max(map(len, labels)))
        places = [side * (k - (count - 1) / 2) * step for k in range(count)]
        order = reversed(labels) if settings.ratings_reversed else labels
        self._scale = [visual.TextStim(window, text=text, pos=(x, 0), **common) for text, x in zip(order, places, strict=True)]
        exact = settings.image_height == 0
        # two textures: one is shown while the other is filled
        self._pictures = [visual.ImageStim(window, interpolate=not exact, flipHoriz=mirrored, autoLog=False) for _ in range(2)]
        self._held: list[Picture | None] = [None, None]
        self._shown = 0
        for _ in range(2):  # the first upload compiles shaders
            self.upload(Picture(-1, -1, 2, 2, memoryview(bytes(12))))
            self._shown = 1 - self._shown

    def upload(self, picture: Picture) -> None:
        """Fill the texture that is not shown, and draw it once where nobody sees it, so that the graphics card has it."""
        other = 1 - self._shown
        stimulus = self._pictures[other]
        # through PIL: PsychoPy clamps negative values of RGB arrays and takes their row 0 as the bottom
        stimulus.image = Image.fromarray(np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3))
        stimulus.units, stimulus.size, stimulus.pos = self._place(picture)
        self._held[other] = picture
        stimulus.draw()
        self._window.clearBuffer()

    def _place(self, picture: Picture) -> tuple[str, tuple[float, float], tuple[float, float]]:
        """Give units, size and position of a picture."""
        height, degrees = self._settings.image_height, self._settings.image_deg
        if degrees:
            side = self._pixels(degrees)
            return "pix", (side * picture.width / picture.height, side), (0, 0)
        if height:
            return "height", (height * picture.width / picture.height, height), (0, 0)
        # a screen pixel for each of its own: where the one number is odd and the other even, half a pixel makes them meet
        odd = (np.asarray(self._window.size) - (picture.width, picture.height)) % 2
        return "pix", (picture.width, picture.height), tuple(odd / 2)

    def _pixels(self, degrees: float) -> float:
        """Give the length on a flat screen that is seen under an angle, its middle straight ahead."""
        monitor, screen = self._window.monitor, self._window.winHandle.screen
        return float(2 * monitor.getDistance() * np.tan(np.radians(degrees) / 2) * screen.width / monitor.getWidth())

    def draw(self, scene: Scene) -> None:
        """Draw a scene into the back buffer."""
        if scene.picture is not None:
            if self._held[self._shown] is not scene.picture:
                self._shown = 1 - self._shown
            if self._held[self._shown] is not scene.picture:
                raise DisplayError("a picture was to be shown that had not been made ready")
            self._pictures[self._shown].draw()
        elif scene.kind == "fixation":
            for part in self._fixation:
                part.draw()
        elif scene.kind in ("text", "rating"):
            self._texts[scene.text].draw()
            for label in self._scale if scene.kind == "rating" else ():
                label.draw()
