"""How a session is presented."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from rtevo.wire.checks import WireError, type_mistakes

__all__ = ["PresentationSettings"]


@dataclass(frozen=True)
class PresentationSettings:
    """How a session is presented; the bridge sends it to the presenter, which knows nothing else of the session.

    Parameters
    ----------
    image_s, washout_s : float
        Duration of an image and of the fixation after it, s.
    rating_window_s : float
        Longest time for an answer after each image, s; 0 = no rating. The window ends with the answer.
    rating_keys : tuple of str
        Keys of the ratings 0, 1, 2, ...
    trigger_key : str
        Key that the scanner's pulse types.
    baseline_s : float
        Shortest fixation between the trigger and the first image, s.
    end_s : float
        How long the end text stays, s.
    mirrored : bool
        Left and right exchanged, for a screen that is seen through a mirror.
    background : tuple of float, (3,)
        Red, green and blue, 0 to 1.
    image_height : float
        Fraction of the screen's height; 0 = one screen pixel per image pixel.
    full_screen : bool
        Otherwise a window.
    screen : int
        Number of the screen, 0 = the first.
    wait_text, rating_text, end_text : str
        What the participant reads.
    speed : float
        1 = real time; X = all durations are divided by X; 0 = lock-step: time is what the last Tick said.

    Raises
    ------
    WireError
        With every mistake found.
    """

    image_s: float = 3.0
    washout_s: float = 1.0
    rating_window_s: float = 0.0
    rating_keys: tuple[str, ...] = ("1", "2", "3", "4", "6")
    trigger_key: str = "5"
    baseline_s: float = 0.0
    end_s: float = 2.0
    mirrored: bool = False
    background: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_height: float = 0.6
    full_screen: bool = True
    screen: int = 0
    wait_text: str = "The session is about to begin.\n\nPlease look at the middle of the screen and keep still."
    rating_text: str = "How much did you like it?"
    end_text: str = "The session is over. Thank you!"
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rating_keys", "background"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        mistakes = type_mistakes(self) or list(_setting_mistakes(self))
        if mistakes:
            raise WireError(mistakes)
        for field in dataclasses.fields(self):
            if field.type == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        object.__setattr__(self, "background", tuple(float(level) for level in self.background))

    @property
    def lock_step(self) -> bool:
        """Whether time is told by Tick messages."""
        return self.speed == 0

    def real_ns(self, duration_s: float) -> int:
        """Nanoseconds of the presenter's clock that `duration_s` seconds of the session take."""
        return round(duration_s * 1e9 / (self.speed or 1.0))


def _setting_mistakes(settings: PresentationSettings) -> list[str]:
    """Every rule of the settings that is broken, one line each."""
    found: list[str] = []

    def check(name: str, fine: bool, rule: str) -> None:
        if not fine:
            found.append(f"presentation {name}: expected {rule}, got {getattr(settings, name)!r}")

    for name, lowest in (("image_s", 0.0), ("washout_s", -1.0), ("rating_window_s", -1.0), ("baseline_s", -1.0), ("end_s", -1.0)):
        value = getattr(settings, name)
        check(name, math.isfinite(value) and value >= 0 and value > lowest, "> 0 seconds" if lowest == 0 else ">= 0 seconds")
    keys = settings.rating_keys
    check("rating_keys", 2 <= len(keys) <= 20 and len(set(keys)) == len(keys) and all(keys), "2 to 20 different keys")
    check("trigger_key", bool(settings.trigger_key) and settings.trigger_key not in keys, "a key that is not a rating key")
    check("trigger_key", settings.trigger_key != "escape", "a key other than escape")
    check("rating_keys", "escape" not in keys, "keys other than escape")
    check("background", len(settings.background) == 3 and all(0 <= x <= 1 for x in settings.background), "three numbers from 0 to 1")
    check("image_height", 0 <= settings.image_height <= 1, "0 to 1")
    check("screen", 0 <= settings.screen <= 15, "0 to 15")
    check("speed", math.isfinite(settings.speed) and settings.speed >= 0, ">= 0")
    for name in ("wait_text", "rating_text", "end_text"):
        check(name, len(getattr(settings, name).encode()) <= 4000, "at most 4000 bytes")
    return found
