"""Events of a training run, and the responses that a decoder is to separate.

Events come as BIDS ``events.tsv`` files: tab-separated, with columns ``onset`` and ``duration`` in seconds from the first volume and,
usually, ``trial_type`` (https://bids-specification.readthedocs.io, "Task events").
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.decode.hrf import response
from rtevo.errors import DataError

__all__ = ["Event", "Target", "blocks", "parse_target", "predicted", "read_events"]

BLOCK_GAP_S = 5.0
"""Events of one kind that follow each other by less than this are one block: their responses cannot be separated."""
MOST_TOLD = 5
"""Largest number of left-out rows that are listed, for each reason."""
_MISSING = ("", "n/a", "nan")  # in any case


@dataclass(frozen=True)
class Event:
    """One event.

    Parameters
    ----------
    onset_s, duration_s : float
        From the run's first volume, seconds.
    trial_type : str
        Its kind; empty where the file has none, or ``n/a``.
    values : dict of str to str
        All columns as they are.
    """

    onset_s: float
    duration_s: float
    trial_type: str
    values: dict[str, str]


@dataclass(frozen=True)
class Target:
    """The target that a decoder is to predict.

    Parameters
    ----------
    text : str
        The target's text.
    coefficients : ndarray, float64 (events,)
        Of each event: 1 or -1 for the two sides of a contrast, the centred value of a numeric column, NaN for events that do not count.
    categorical : bool
        Whether it is a contrast.
    """

    text: str
    coefficients: NDArray[np.float64]
    categorical: bool


def read_events(path: Path, run_s: float = math.inf, problems: list[str] | None = None) -> list[Event]:
    """Read an ``events.tsv`` file.

    Rows without an onset (BIDS allows them), and those at or after the run's end, are left out.

    Parameters
    ----------
    path : Path
        The file.
    run_s : float
        Length of the run, seconds.
    problems : list of str, optional
        Receives the left-out rows, and the reasons.

    Returns
    -------
    list of Event
        In order of their onsets.

    Raises
    ------
    DataError
        The file is not there or not such a table, a number is impossible, no event is left, or most have their onset after the run's end.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: expected a BIDS events table, found: {problem}") from None
    if not rows or not {"onset", "duration"} <= set(rows[0]):
        found = ", ".join(str(name) for name in rows[0]) if rows else "no rows"
        raise DataError(f"{path}: expected tab-separated columns onset and duration, found {found}")
    events, without, after = [], [], []
    for line, row in enumerate(rows, start=2):
        values = {str(name): (value or "").strip() for name, value in row.items() if name is not None and not isinstance(value, list)}
        if not any(values.values()):
            continue  # nothing but tabs
        if _missing(values["onset"]):
            without.append(line)
            continue
        onset_s, duration_s = (_seconds(path, line, name, values[name]) for name in ("onset", "duration"))
        if onset_s >= run_s:
            after.append(line)
            continue
        kind = values.get("trial_type", "")
        events.append(Event(onset_s, duration_s, "" if _missing(kind) else kind, values))
    left_out = [(without, "has no onset"), (after, f"has its onset after the run's end at {run_s:g} s")]
    told = [f"{path}, line {line}: {why}; left out" for lines, why in left_out for line in lines[:MOST_TOLD]]
    told += [f"{path}: {len(lines) - MOST_TOLD} more lines, each {why}; left out" for lines, why in left_out if len(lines) > MOST_TOLD]
    if not events:
        raise DataError("\n  ".join([f"{path}: expected at least one event within the run, found none", *told]))
    if len(after) > len(events):
        raise DataError(
            f"{path}: expected the events of a run of {run_s:g} s, found {len(after)} of {len(after) + len(events)} onsets after its end: "
            "check that the file is this run's and that the repetition time is right"
        )
    if problems is not None:
        problems += told
    return sorted(events, key=lambda event: event.onset_s)


def _missing(text: str) -> bool:
    """Whether a cell says that there is no value."""
    return text.lower() in _MISSING


def _seconds(path: Path, line: int, name: str, text: str) -> float:
    """Read a number of seconds; a missing or zero duration counts as a tenth of a second."""
    if name == "duration" and _missing(text):
        return 0.1
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (name == "duration" and value < 0):
        raise DataError(f"{path}, line {line}: expected {name} to be a number of seconds, found '{text}'")
    return max(value, 0.1) if name == "duration" else value


def parse_target(text: str, events: Sequence[Event]) -> Target:
    """Return how each event counts.

    Parameters
    ----------
    text : str
        A contrast of kinds of event, ``face - object`` or ``face + body - house - scene``; one kind against all others, ``face``; or
        the name of a numeric column.
    events : sequence of Event
        Of all runs.

    Raises
    ------
    DataError
        There is no such kind or column, a side is empty, or a column has fewer than two different numbers.
    """
    kinds = sorted({event.trial_type for event in events if event.trial_type})
    columns = {name for event in events for name in event.values} - {"onset", "duration", "trial_type"}
    if text in columns and text not in kinds:
        return _numeric(text, events)
    plus, minus = _sides(text, set(kinds))
    unknown = [kind for kind in plus + minus if kind not in kinds]
    if unknown:
        offered = f"kinds {', '.join(kinds) or 'none'}; columns {', '.join(sorted(columns)) or 'none'}"
        raise DataError(f"target '{text}': expected kinds of event or a column, found no '{unknown[0]}' ({offered})")
    if not minus:
        minus = [kind for kind in kinds if kind not in plus]
    if not minus:
        raise DataError(f"target '{text}': expected events of another kind to contrast with, but all events are '{', '.join(plus)}'")
    both = set(plus) & set(minus)
    if both:
        raise DataError(f"target '{text}': expected each kind on one side, found '{sorted(both)[0]}' on both")
    sign = {**dict.fromkeys(plus, 1.0), **dict.fromkeys(minus, -1.0)}
    return Target(text, np.array([sign.get(event.trial_type, math.nan) for event in events]), True)


def _sides(text: str, kinds: set[str]) -> tuple[list[str], list[str]]:
    """Split a contrast; a kind's own name may hold a hyphen."""
    if text.strip() in kinds:
        return [text.strip()], []
    sides: tuple[list[str], list[str]] = ([], [])
    side, words = 0, text.replace("+", " + ").split()
    name: list[str] = []
    for word in [*words, "+"]:
        if word in ("+", "-"):
            if name:
                sides[side].append(" ".join(name))
                name = []
            side = 1 if word == "-" else 0
        else:
            name.append(word)
    return sides


def _numeric(text: str, events: Sequence[Event]) -> Target:
    """Read a numeric column, centred."""
    numbers = []
    for event in events:
        value = event.values.get(text, "")
        try:
            numbers.append(math.nan if _missing(value) else float(value))
        except ValueError:
            raise DataError(f"target '{text}': expected a numeric column, found '{value}' at {event.onset_s:g} s") from None
    values = np.array(numbers)
    known = values[np.isfinite(values)]
    if len(np.unique(known)) < 2:
        raise DataError(f"target '{text}': expected at least two different numbers in the column, found {len(np.unique(known))}")
    return Target(text, np.where(np.isfinite(values), values - known.mean(), math.nan), False)


def predicted(times_s: ArrayLike, events: Sequence[Event], weights: ArrayLike) -> NDArray[np.float64]:
    """Sum of the haemodynamic responses to events at some times, weighted; events with a weight of NaN do not count.

    Parameters
    ----------
    times_s : array-like of float, (n,)
        Middles of the volumes, seconds.
    events : sequence of Event
    weights : array-like of float, (events,)

    Returns
    -------
    ndarray, float64 (n,)
    """
    times = np.asarray(times_s, np.float64)
    total = np.zeros(len(times))
    for event, weight in zip(events, np.asarray(weights, np.float64), strict=True):
        if not math.isnan(weight):
            total += weight * response(times - event.onset_s, event.duration_s)
    return total


def blocks(events: Sequence[Event], coefficients: ArrayLike) -> list[list[int]]:
    """Group the events that count into blocks: neighbours of one coefficient (of any, for a numeric target, never).

    Returns
    -------
    list of list of int
        Positions in `events`, in order.
    """
    groups: list[list[int]] = []
    values = np.asarray(coefficients, np.float64)
    for k, event in enumerate(events):
        if math.isnan(values[k]):
            continue
        if groups:
            last = events[groups[-1][-1]]
            near = event.onset_s - (last.onset_s + last.duration_s) < BLOCK_GAP_S
            if near and event.trial_type == last.trial_type and values[groups[-1][-1]] == values[k]:
                groups[-1].append(k)
                continue
        groups.append([k])
    return groups
