"""Events that the bridge returns to its caller, and the state that a new bridge takes over from a dead one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Predecessor", "PresenterEvent"]


@dataclass(frozen=True)
class PresenterEvent:
    """An event at the stimulus PC.

    Parameters
    ----------
    kind : int
        A `rtevo.records.EventKind`.
    generation, candidate : int
        The image concerned; -1: none.
    mono_ns : int
        Time of the event on this computer's monotonic clock (session time in lock-step).
    error_ns : int
        Bound of the error of `mono_ns`: of the mapping of clocks, plus the presenter's own.
    value : float
        The rating; of an OFFSET, the frames dropped since the previous one; NaN: none.
    response_time_s : float
        Time from the opening of the rating window, session seconds; NaN: none.
    text : str
    guess : bool
        `mono_ns` is a guess: the truth lies within `error_ns` of it.
    sequence : int
        The presenter's number of the event; for an event of the bridge itself, minus the previous number.
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
    """The state with which a bridge continues the work of a dead one.

    Parameters
    ----------
    received : int
        Highest `PresenterEvent.sequence` that the other bridge had handled.
    started : bool
        The trigger has come.
    place, process : int
        Of the other `Bridge`: the computer of its presenter, and the presenter's number there; 0 if it had none.
    """

    received: int
    started: bool
    place: int = 0
    process: int = 0
