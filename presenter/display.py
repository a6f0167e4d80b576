"""The interface between the session script and a display.

A display shows one scene at a time, and knows the times of its frames. Times are ns of its own clock (`Display.now_ns`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Display", "DisplayError", "Picture", "Press", "Scene"]


class DisplayError(Exception):
    """The screen cannot be used as the session requires; the message says why."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One image.

    Parameters
    ----------
    generation, candidate : int
        The image's numbers.
    height, width : int
    pixels : memoryview, uint8 (height * width * 3,)
        Row 0 at the top, RGB.
    washout_s : float
        Fixation after the image, s.
    image_s : float
        Duration of the image, s.
    """

    generation: int
    candidate: int
    height: int
    width: int
    pixels: memoryview
    washout_s: float = 0.0
    image_s: float = 0.0


@dataclass(frozen=True)
class Scene:
    """The contents of the screen.

    Parameters
    ----------
    kind : str
        "text", "fixation", "rating", "answer" (the rating's scale with the chosen label marked) or "image".
    text : str
        For text, rating and answer.
    chosen : int
        For an answer: place of the chosen label, from left to right.
    picture : Picture, optional
        For an image.
    """

    kind: str
    text: str = ""
    picture: Picture | None = None
    chosen: int = -1


@dataclass(frozen=True)
class Press:
    """A key went down.

    Parameters
    ----------
    key : str
    t_ns : int
        Time of the press.
    error_ns : int
        Bound of the error of `t_ns`, ns.
    elsewhere : bool
        The key was typed into another window.
    """

    key: str
    t_ns: int
    error_ns: int = 0
    elsewhere: bool = False


class Display(Protocol):
    """A screen with a keyboard.

    Attributes
    ----------
    name : str
        Reported to the bridge.
    frame_ns : int
        Time between two frames; 0 if a flip can happen at any time.
    prepare_ns : int
        Longest likely duration of `prepare`.
    dropped : int
        Frames missed so far.
    flip_error_ns : int
        How much earlier the last flip may have been than the time from `show`, because the frames before it stalled.
    warnings : tuple of str
        Problems to correct before a participant looks at the screen.
    """

    name: str
    frame_ns: int
    prepare_ns: int
    dropped: int
    flip_error_ns: int
    warnings: tuple[str, ...]

    def now_ns(self) -> int:
        """Time now."""
        ...

    def advance(self, now_ns: int) -> None:
        """Set the time to the bridge's, in lock-step; otherwise without effect."""
        ...

    def prepare(self, picture: Picture) -> None:
        """Prepare the next picture, so that showing it takes no time."""
        ...

    def wait(self, until_ns: int) -> list[Press]:
        """Keep the scene until the frame before the one nearest to `until_ns`; a key or a message ends the wait earlier."""
        ...

    def due(self, until_ns: int) -> bool:
        """Return whether the next frame is the one nearest to `until_ns`, or later."""
        ...

    def show(self, scene: Scene, at_ns: int) -> int:
        """Change the scene at the frame nearest to `at_ns`, or at the next one if that is past; return the time of the flip."""
        ...

    def told(self) -> list[str]:
        """Return new problems, and problems that ended, since the last call."""
        ...

    def close(self) -> None:
        """Close the screen."""
        ...
