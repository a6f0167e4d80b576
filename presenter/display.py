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
    image_s : float
        How long it stays, s.
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
    """What is on the screen.

    Parameters
    ----------
    kind : str
        "text", "fixation", "rating", "answer" (the rating's scale with the chosen label marked) or "image".
    text : str
        Of text, rating and answer.
    chosen : int
        Of an answer: place of the label, from left to right.
    picture : Picture, optional
        Of an image.
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
        When.
    error_ns : int
        It may have been so much earlier or later.
    elsewhere : bool
        It was typed into another window.
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
        Told to the bridge.
    frame_ns : int
        Time between two frames; 0 where a flip can be at any time.
    prepare_ns : int
        Longest time that `prepare` is likely to take.
    dropped : int
        Frames missed so far.
    flip_error_ns : int
        The last flip may have been so much earlier than `show` says: the frames before it stalled.
    warnings : tuple of str
        What should be seen to before a participant looks at it.
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

    def told(self) -> list[str]:
        """Give what has gone wrong, or right again, since the last call."""
        ...

    def close(self) -> None:
        """Close the screen."""
        ...
