"""How a session is presented."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from rtevo.wire.checks import WireError, type_mistakes
from rtevo.wire.keynames import key_mistake

__all__ = ["DIRECTIONS", "FIXATIONS", "TRIGGER", "TRIGGER_RULE", "PresentationSettings"]

FIXATIONS = ("cross", "dot", "bullseye", "none")
DIRECTIONS = ("auto", "left-to-right", "right-to-left")
_BYTE = r"(?:0[xX][0-9a-fA-F]{1,2}|[!-~])"
TRIGGER = re.compile(
    rf"(keyboard)|(serial):([^@=]+)(?:@(\d+))?(?:=({_BYTE}(?:,{_BYTE})*))?|(parallel):(0[xX][0-9a-fA-F]+|/[^@]+)(?:@(\d+))?"
)
TRIGGER_RULE = (
    "keyboard, serial:PORT@BAUD (serial:COM3@115200; serial:COM3@115200=5 where only that byte is a pulse) or parallel:ADDRESS@PIN "
    "(parallel:0x378@10)"
)


@dataclass(frozen=True)
class PresentationSettings:
    """How a session is presented; the bridge sends these settings to the presenter, which knows nothing else of the session.

    Parameters
    ----------
    image_s, washout_s : float
        Duration of an image and of the fixation after it, s.
    rating_window_s : float
        Longest time for an answer after each image, s; 0 = no rating. The window ends with the answer.
    rating_keys : tuple of str
        Keys of the ratings 0, 1, 2, ..., as they lie from left to right.
    rating_labels : tuple of str
        Labels of the scale for the ratings 0, 1, 2, ...; empty = 1, 2, 3, ...
    ratings_reversed : bool
        The leftmost key is the highest rating.
    presses : bool
        Every press of a rating key is reported from the trigger on, also if no rating is requested.
    trigger : str
        Input of the scanner's pulses: "keyboard", "serial:PORT@BAUD" (every byte is a pulse), "serial:PORT@BAUD=5,0x74" (only these bytes
        are pulses; all others are keys, so that a box may send answers on the same line) or "parallel:ADDRESS@PIN" (rising edges).
    trigger_key : str
        Key that a pulse types on the keyboard.
    pulses_per_volume : int
        Number of pulses for each volume, for example if the scanner sends one pulse for each slice.
    dummy_triggers : int
        Pulses of dummy volumes, before the first volume that is kept.
    baseline_s : float
        Shortest fixation between the trigger and the first image, s.
    end_s : float
        Duration of the end text if the presenter leaves after the run, s; if it waits for another run, the text stays until that or Escape.
    mirrored : bool
        Left and right are exchanged, for a screen that is seen through a mirror.
    background : tuple of float, (3,)
        Red, green and blue, 0 to 1.
    image_height : float
        Fraction of the screen's height; 0 = one screen pixel per image pixel.
    image_deg : float
        Height in degrees of visual angle; if not 0, replaces `image_height`, and needs the screen's size and distance.
    monitor : str
        Name in PsychoPy's monitor centre (gamma, size and distance), empty = none.
    screen_width_cm, viewing_distance_cm : float
        Width of the screen, and its distance from the participant's eyes; 0 = from the monitor centre.
    fixation : str
        "cross", "dot", "bullseye" (a dot in a cross in a disc, steadiest to fixate: Thaler et al. 2013, doi:10.1016/j.visres.2012.10.012)
        or "none".
    fixation_height : float
        Fraction of the screen's height.
    full_screen : bool
        Otherwise a window.
    screen : int
        Number of the screen, 0 = the first.
    wait_text, rating_text, end_text : str
        Texts for the participant.
    font : str
        Family (as "Noto Sans") or file of the font; empty = the first installed one that has every character.
    text_height : float
        Fraction of the screen's height (the font's em).
    text_direction : str
        "auto" (from the characters), "left-to-right" or "right-to-left".
    away_key : str
        Key at the stimulus PC that takes the image on the screen away; empty = none.
    participant_key : str
        Key of the response box that does the same; empty = none.
    stop_key : str
        Key of the response box with which the participant asks to stop; empty = none.
    lsl : bool
        Events are also sent as markers of the Lab Streaming Layer.
    speed : float
        1 = real time; X = all durations are divided by X; 0 = lock-step: the time is that of the last Tick.

    Raises
    ------
    WireError
        With all mistakes.
    """

    image_s: float = 3.0
    washout_s: float = 1.0
    rating_window_s: float = 0.0
    rating_keys: tuple[str, ...] = ("1", "2", "3", "4", "6")
    rating_labels: tuple[str, ...] = ()
    ratings_reversed: bool = False
    presses: bool = False
    trigger: str = "keyboard"
    trigger_key: str = "5"
    pulses_per_volume: int = 1
    dummy_triggers: int = 0
    baseline_s: float = 0.0
    end_s: float = 2.0
    mirrored: bool = False
    background: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_height: float = 0.6
    image_deg: float = 0.0
    monitor: str = ""
    screen_width_cm: float = 0.0
    viewing_distance_cm: float = 0.0
    fixation: str = "cross"
    fixation_height: float = 0.05
    full_screen: bool = True
    screen: int = 0
    wait_text: str = "The session is about to begin.\n\nPlease look at the middle of the screen and keep still."
    rating_text: str = "How much did you like it?"
    end_text: str = "The session is over. Thank you!"
    font: str = ""
    text_height: float = 0.04
    text_direction: str = "auto"
    away_key: str = ""
    participant_key: str = ""
    stop_key: str = ""
    lsl: bool = False
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rating_keys", "rating_labels", "background"):
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
    def answers_over_port(self) -> bool:
        """Whether bytes that are not pulses are keys."""
        match = TRIGGER.fullmatch(self.trigger)
        return match is not None and match[5] is not None

    @property
    def lock_step(self) -> bool:
        """Whether Tick messages set the time."""
        return self.speed == 0

    def real_ns(self, duration_s: float) -> int:
        """Return the nanoseconds of the presenter's clock in `duration_s` seconds of the session."""
        return round(duration_s * 1e9 / (self.speed or 1.0))


def _setting_mistakes(settings: PresentationSettings) -> list[str]:
    """Return every broken rule of the settings, one line each."""
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
    check("trigger", TRIGGER.fullmatch(settings.trigger) is not None, TRIGGER_RULE)
    check("pulses_per_volume", 1 <= settings.pulses_per_volume <= 10000, "1 to 10000")
    check("dummy_triggers", 0 <= settings.dummy_triggers <= 1000, "0 to 1000")
    check("rating_labels", len(settings.rating_labels) in (0, len(keys)), "none, or one for each of rating_keys")
    check("rating_keys", "escape" not in keys, "keys other than escape")
    others: tuple[str, ...] = ("escape", settings.trigger_key, *keys)
    for name in ("away_key", "participant_key", "stop_key"):
        own = getattr(settings, name)
        check(name, not own or own not in others, "a key without another meaning (trigger_key, rating_keys, escape, another of these)")
        others = (*others, own)
    check("background", len(settings.background) == 3 and all(0 <= x <= 1 for x in settings.background), "three numbers from 0 to 1")
    check("image_height", 0 <= settings.image_height <= 1, "0 to 1")
    check("image_deg", 0 <= settings.image_deg < 90, "0 to 90 degrees")
    for name in ("screen_width_cm", "viewing_distance_cm"):
        check(name, 0 <= getattr(settings, name) < 1e4, "0 to 10000 cm")
        known = settings.image_deg == 0 or bool(settings.monitor) or getattr(settings, name) > 0
        check(name, known, "> 0 cm (or a monitor) if image_deg is set")
    check("fixation", settings.fixation in FIXATIONS, "one of " + ", ".join(FIXATIONS))
    check("fixation_height", 0 < settings.fixation_height <= 1, "> 0 and <= 1")
    check("screen", 0 <= settings.screen <= 15, "0 to 15")
    check("speed", math.isfinite(settings.speed) and settings.speed >= 0, ">= 0")
    check("text_height", 0.01 <= settings.text_height <= 0.5, "0.01 to 0.5 of the screen's height")
    check("text_direction", settings.text_direction in DIRECTIONS, "one of " + ", ".join(DIRECTIONS))
    check("font", len(settings.font.encode()) <= 400, "at most 400 bytes")
    for name in ("wait_text", "rating_text", "end_text"):
        check(name, len(getattr(settings, name).encode()) <= 4000, "at most 4000 bytes")
    check("rating_labels", sum(len(label.encode()) for label in settings.rating_labels) <= 4000, "at most 4000 bytes")
    return found + _key_mistakes(settings)


def _key_mistakes(settings: PresentationSettings) -> list[str]:
    """Return the keys that no keyboard delivers by that name; a port delivers every character."""
    found = [("trigger_key", settings.trigger_key)] if settings.trigger == "keyboard" and settings.trigger_key else []
    found += [("away_key", settings.away_key)] if settings.away_key else []
    of_the_box = [("rating_keys", key) for key in settings.rating_keys]
    of_the_box += [(name, getattr(settings, name)) for name in ("participant_key", "stop_key")]
    found += [(where, key) for where, key in of_the_box if key and not (settings.answers_over_port and len(key) == 1)]
    return [f"presentation {where}: {mistake}" for where, key in found if (mistake := key_mistake(key))]
