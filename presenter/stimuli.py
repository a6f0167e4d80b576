"""All stimuli of a PsychoPy window, made beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psychopy
from PIL import Image
from psychopy import visual

from presenter.display import DisplayError, Picture, Scene
from presenter.lettering import LARGEST, Lettering, Pixels
from rtevo.wire import PresentationSettings

__all__ = ["Stimuli"]

WRAP = 1.2  # longest line, of the screen's height
FONTS = Path(psychopy.__file__).parent / "assets/fonts"
QUESTION_LINES = 2.5  # of the font's size, above the scale


class Stimuli:
    """Texts, fixation, scale and pictures of a session.

    Parameters
    ----------
    window : psychopy.visual.Window
    settings : PresentationSettings

    Raises
    ------
    DisplayError
        A text does not fit on the screen, or no font has its characters.
    """

    def __init__(self, window: Any, settings: PresentationSettings) -> None:
        self._window, self._settings = window, settings
        self._ink = "black" if sum(settings.background) / 3 > 0.6 else "white"
        self._fixation = _fixation(window, settings, self._ink)
        width, height = (int(x) for x in window.size)
        self._size = max(4, round(settings.text_height * height))
        self._room = (min(WRAP * height, LARGEST * width), LARGEST * height)
        self._lettering = Lettering(self._words(), settings.font, settings.text_direction, (FONTS,))
        self._texts = {
            getattr(settings, name): self._text(name, getattr(settings, name), self._room)
            for name in ("wait_text", "end_text", *(["rating_text"] if settings.rating_window_s else []))
        }
        self._scale, self._marked = self._make_scale() if settings.rating_window_s else ([], [])
        exact = settings.image_height == 0
        # two textures: one is shown while the other is filled
        mirrored = settings.mirrored
        self._pictures = [visual.ImageStim(window, interpolate=not exact, flipHoriz=mirrored, autoLog=False) for _ in range(2)]
        self._held: list[Picture | None] = [None, None]
        self._shown = 0
        for _ in range(2):  # the first upload compiles shaders
            self.upload(Picture(-1, -1, 2, 2, memoryview(bytes(12))))
            self._shown = 1 - self._shown

    # --- texts --------------------------------------------------------------------------------------------------------------------

    def _labels(self) -> list[str]:
        """Return the scale's labels from left to right."""
        settings = self._settings
        labels = list(settings.rating_labels or (str(k + 1) for k in range(len(settings.rating_keys))))
        return labels[::-1] if settings.ratings_reversed else labels

    def _words(self) -> dict[str, str]:
        """Return all texts by their names in the session file."""
        settings = self._settings
        words = {"wait_text": settings.wait_text, "end_text": settings.end_text}
        if settings.rating_window_s:
            words |= {"rating_text": settings.rating_text, "rating_labels": " ".join(self._labels())}
        return words

    def _text(self, where: str, text: str, room: tuple[float, float], at: tuple[float, float] = (0.0, 0.0)) -> Any:
        return self._drawn(self._lettering.fitted(where, text, self._size, room), at)

    def _drawn(self, ink: Pixels, at: tuple[float, float]) -> Any:
        """Return a stimulus of ink, centred at a place in pixels; each is mirrored separately."""
        x, y = (round(place) + odd for place, odd in zip(at, self._odd(ink.shape[1], ink.shape[0]), strict=True))
        if self._settings.mirrored:
            ink, x = ink[:, ::-1], -x
        shade = 0 if self._ink == "black" else 255
        picture = np.empty((*ink.shape, 4), np.uint8)
        picture[:, :, :3], picture[:, :, 3] = shade, ink
        size = (ink.shape[1], ink.shape[0])
        return visual.ImageStim(
            self._window, Image.fromarray(picture, "RGBA"), units="pix", size=size, pos=(x, y), interpolate=False, autoLog=False
        )

    def _make_scale(self) -> tuple[list[Any], list[Any]]:
        """Make the scale's labels, plain and marked, with the question above them."""
        settings, size, letters = self._settings, self._size, self._lettering
        labels, (width, height) = self._labels(), (float(x) for x in self._window.size)
        widths = [letters.width(label, size) for label in labels]
        step = max(3.0 * size, max(widths) + 0.8 * size)
        if (len(labels) - 1) * step + max(widths) > LARGEST * width:
            step = LARGEST * width / len(labels)
        room = (max(step - 0.2 * size, size), (LARGEST * height) / 3)
        places = [(k - (len(labels) - 1) / 2) * step for k in range(len(labels))]
        drawn = [letters.fitted("rating_labels", label, size, room) for label in labels]
        tallest = max(ink.shape[0] for ink in drawn)
        marked = [letters.fitted("rating_labels", label, size, room, marked=True) for label in labels]
        question = self._texts[settings.rating_text]
        lift = max(QUESTION_LINES * size, tallest / 2 + question.size[1] / 2)
        if lift + question.size[1] / 2 > LARGEST * height / 2:
            raise DisplayError("[presentation] rating_text: question and scale do not fit on the screen: shorten them or lower text_height")
        question.pos = (question.pos[0], question.pos[1] + round(lift))
        return [self._drawn(ink, (x, 0)) for ink, x in zip(drawn, places, strict=True)], [
            self._drawn(ink, (x, 0)) for ink, x in zip(marked, places, strict=True)
        ]

    # --- pictures -----------------------------------------------------------------------------------------------------------------

    def upload(self, picture: Picture) -> None:
        """Fill the hidden texture, and draw it once off the screen, so that the graphics card has it."""
        other = 1 - self._shown
        stimulus = self._pictures[other]
        # through PIL: PsychoPy clamps negative values of RGB arrays, and takes their row 0 as the bottom
        stimulus.image = Image.fromarray(np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3))
        stimulus.units, stimulus.size, stimulus.pos = self._place(picture)
        self._held[other] = picture
        stimulus.draw()
        self._window.clearBuffer()

    def _place(self, picture: Picture) -> tuple[str, tuple[float, float], tuple[float, float]]:
        """Return units, size and position of a picture."""
        height, degrees = self._settings.image_height, self._settings.image_deg
        if degrees:
            side = self._pixels(degrees)
            return "pix", (side * picture.width / picture.height, side), (0, 0)
        if height:
            return "height", (height * picture.width / picture.height, height), (0, 0)
        return "pix", (picture.width, picture.height), self._odd(picture.width, picture.height)

    def _odd(self, width: int, height: int) -> tuple[float, float]:
        """Return the shift that aligns pixels with the screen's: half a pixel, if one size is odd and the other even."""
        x, y = (np.asarray(self._window.size) - (width, height)) % 2 / 2
        return float(x), float(y)

    def _pixels(self, degrees: float) -> float:
        """Return the length on a flat screen that subtends an angle, its middle straight ahead; pixels of the window."""
        monitor, screen = self._window.monitor, self._window.winHandle.screen
        across = screen.width * self._window.getContentScaleFactor()  # a Retina screen counts points
        return float(2 * monitor.getDistance() * np.tan(np.radians(degrees) / 2) * across / monitor.getWidth())

    # --- drawing ------------------------------------------------------------------------------------------------------------------

    def add_text(self, text: str) -> None:
        """Prepare a text that is not part of the session."""
        if text not in self._texts:
            letters = Lettering({"text": text}, "", "auto", (FONTS,))
            self._texts[text] = self._drawn(letters.fitted("text", text, self._size, self._room), (0, 0))

    def draw(self, scene: Scene) -> None:
        """Draw a scene into the back buffer."""
        if scene.picture is not None:
            if self._held[self._shown] is not scene.picture:
                self._shown = 1 - self._shown
            if self._held[self._shown] is not scene.picture:
                raise DisplayError("the picture to show was not prepared")
            self._pictures[self._shown].draw()
        elif scene.kind == "fixation":
            for part in self._fixation:
                part.draw()
        elif scene.kind in ("text", "rating", "answer"):
            self._texts[scene.text].draw()
            for k, label in enumerate(self._scale if scene.kind != "text" else ()):
                (self._marked[k] if k == scene.chosen else label).draw()


def _fixation(window: Any, settings: PresentationSettings, ink: str) -> list[Any]:
    """Return the parts of the fixation shape, in drawing order."""
    size, paper = settings.fixation_height, settings.background

    def cross(colour: Any, colour_space: str) -> Any:
        return visual.ShapeStim(window, vertices="cross", size=size, fillColor=colour, colorSpace=colour_space, lineWidth=0, autoLog=False)

    def disc(share: float) -> Any:
        return visual.Circle(window, radius=size * share / 2, edges=128, fillColor=ink, lineWidth=0, autoLog=False)

    if settings.fixation == "bullseye":
        return [disc(1), cross(paper, "rgb1"), disc(1 / 3)]
    return {"cross": [cross(ink, "named")], "dot": [disc(1)], "none": []}[settings.fixation]
