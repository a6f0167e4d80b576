"""What the bridge hands to its caller, and what one must know that follows another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Predecessor", "PresenterEvent"]


@dataclass(frozen=True)
class PresenterEvent:
    """What happened at the stimulus PC.

    Parameters
    ----------
    kind : int
        A `rtevo.records.EventKind`.
    generation, candidate : int
        The image that is meant; -1 where none is.
    mono_ns : int
        When, on this computer's monotonic clock (session time in lock-step).
    error_ns : int
        Bound of the error of `mono_ns`: what the mapping of clocks adds, and what the presenter itself does not know.
    value : float
        The rating; of an OFFSET the frames dropped since the one before; NaN where there is none.
    response_time_s : float
        From the opening of the rating window, session seconds; NaN where there is none.
    text : str
    guess : bool
        `mono_ns` is a guess: the truth lies within `error_ns` of it.
    sequence : int
        The presenter's number for it; where the bridge itself says it, minus the number before.
    """

    kind: int
    generation: int
    candidate: int
    mono_ns: int
    error_ns: int
    value: float = math.nan
    response_time_s: float = math.nan
    text: str = ""
    guess: bool = False
    sequence: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True)
class Predecessor:
    """What a bridge must know to go on for one that has died.

    Parameters
    ----------
    received : int
        Highest `PresenterEvent.sequence` that the other had dealt with.
    started : bool
        The trigger has been.
    place, process : int
        Those of the other `Bridge`: the computer of its presenter, and its number there; 0 where it had none.
    """

    received: int
    started: bool
    place: int = 0
    process: int = 0
