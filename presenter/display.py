"""What the session script asks of a display.

A display shows one scene at a time and knows when its frames come. Times are ns of its own clock (`Display.now_ns`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Display", "DisplayError", "Picture", "Press", "Scene"]


class DisplayError(Exception):
    """The screen cannot be used as the session asks; the message says why."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One image.

    Parameters
    ----------
    generation, candidate : int
        Which one.
    height, width : int
    pixels : memoryview, uint8 (height * width * 3,)
        Row 0 at the top, RGB.
    washout_s : float
        Fixation after it, s.
    """

    generation: int
    candidate: int
    height: int
    width: int
    pixels: memoryview
    washout_s: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What is on the screen.

    Parameters
    ----------
    kind : str
        "text", "fixation", "rating" or "image".
    text : str
        Of text and rating.
    picture : Picture, optional
        Of an image.
    """

    kind: str
    text: str = ""
    picture: Picture | None = None


@dataclass(frozen=True)
class Press:
    """A key went down at `t_ns`."""

    key: str
    t_ns: int


class Display(Protocol):
    """A screen with a keyboard.

    Attributes
    ----------
    name : str
        Told to the bridge.
    frame_ns : int
        Time between two frames; 0 where a flip can be at any time.
    prepare_ns : int
        Longest time that `prepare` is likely to take.
    dropped : int
        Frames missed so far.
    """

    name: str
    frame_ns: int
    prepare_ns: int
    dropped: int

    def now_ns(self) -> int:
        """Time now."""
        ...

    def advance(self, now_ns: int) -> None:
        """Take the time that the bridge tells, in lock-step; of no meaning elsewhere."""
        ...

    def prepare(self, picture: Picture) -> None:
        """Make ready the picture that is shown next, so that showing it takes no time."""
        ...

    def wait(self, until_ns: int) -> list[Press]:
        """Keep the scene until the frame before the one nearest to `until_ns`; earlier where a key goes down or the link has something."""
        ...

    def due(self, until_ns: int) -> bool:
        """Whether the next frame is the one nearest to `until_ns`, or later."""
        ...

    def show(self, scene: Scene, at_ns: int) -> int:
        """Change the scene at the frame nearest to `at_ns`, or the next one where that is past; gives the time of the flip."""
        ...

    def close(self) -> None:
        """Close the screen."""
        ...
