"""A localizer's log: the pictures shown, their times, and the results of the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtevo.localizer import Task, judge
from rtevo.record.parts import Part
from rtevo.records import EventKind

__all__ = ["EVENTS", "Shown", "event_rows", "is_localizer", "shown_trials", "summary_of", "task_of"]

Row = dict[str, Any]
RESPONSE_S = 1.5  # default for logs without this value
EVENTS = {
    "onset": ("float64", "flip at which the picture appeared, s from the first volume"),
    "duration": ("float64", "time until the flip that took it away, s"),
    "trial_type": ("object", "its category"),
    "stim_file": ("object", "category/file, in the folder of pictures"),
    "block": ("int64", "number of the block, 0 = first"),
    "position": ("int64", "number of the picture in its block"),
    "target": ("int64", "1: a target, to be answered"),
    "response": ("object", "of a target: hit or miss"),
    "response_time": ("float64", "from the target's onset to the press, s"),
    "false_alarms": ("int64", "presses from its onset to the next picture's that answer no target"),
    "onset_error": ("float64", "bound of the onset's error, s"),
    "dropped_frames": ("Int64", "frames that the screen missed between the end of the previous picture and that of this one"),
}
"""Columns of a localizer's ``events.tsv``: type and meaning."""


@dataclass(frozen=True)
class Shown:
    """A picture shown.

    Parameters
    ----------
    trial : mapping
        See `rtevo.localizer.Trial`.
    onset_s, onset_error_s : float
    duration_s : float
        NaN if the log ends before the picture does.
    dropped : float
        NaN if unknown.
    """

    trial: Mapping[str, Any]
    onset_s: float
    onset_error_s: float
    duration_s: float
    dropped: float


def is_localizer(divided: Sequence[Part]) -> bool:
    """Return whether a log is a localizer's."""
    return bool(divided and divided[0].start.trials)


def shown_trials(divided: Sequence[Part]) -> list[Shown]:
    """Return the pictures shown, in order, without those taken away before they appeared."""
    found: list[Shown] = []
    for part in divided:
        trials = {(trial["block"], trial["place"]): trial for trial in part.start.trials or ()}
        clock = part.clock
        if clock.trigger_ns is None:
            continue
        ends = {(e.generation, e.candidate): e for e in part.events(EventKind.OFFSET)}
        for event in part.events(EventKind.ONSET):
            key = event.generation, event.candidate
            if key not in trials:
                continue
            end = ends.get(key)
            duration_s, dropped = (math.nan, math.nan) if end is None else ((end.t_ns - event.t_ns) / 1e9, end.value)
            found.append(Shown(trials[key], clock.seconds(event.t_ns), event.error_ns / 1e9, duration_s, dropped))
    return sorted(found, key=lambda shown: shown.onset_s)


def _presses_s(divided: Sequence[Part]) -> list[float]:
    """Return the times of the participant's presses, s from the first volume."""
    return [
        part.clock.seconds(event.t_ns) for part in divided if part.clock.trigger_ns is not None for event in part.events(EventKind.PRESS)
    ]


def task_of(divided: Sequence[Part], shown: Sequence[Shown]) -> Task:
    """Classify the presses of a localizer."""
    settings = (divided[0].start.settings or {}).get("localizer", {}) if divided else {}
    targets = [bool(each.trial["target"]) for each in shown]
    return judge([each.onset_s for each in shown], targets, _presses_s(divided), float(settings.get("response_s", RESPONSE_S)))


def event_rows(divided: Sequence[Part]) -> list[Row]:
    """Return the rows of ``events.tsv``, see :data:`EVENTS`."""
    shown = shown_trials(divided)
    task = task_of(divided, shown)
    times, rows = iter(task.targets), list[Row]()
    for number, each in enumerate(shown):
        trial = each.trial
        taken_s = next(times) if trial["target"] else math.nan
        rows.append(
            {
                "onset": each.onset_s,
                "duration": None if math.isnan(each.duration_s) else each.duration_s,
                "trial_type": trial["category"],
                "stim_file": f"{trial['category']}/{trial['file']}",
                "block": trial["block"],
                "position": trial["place"],
                "target": int(trial["target"]),
                "response": None if not trial["target"] else "miss" if math.isnan(taken_s) else "hit",
                "response_time": None if math.isnan(taken_s) else taken_s,
                "false_alarms": task.false_alarms.count(number),
                "onset_error": each.onset_error_s,
                "dropped_frames": None if math.isnan(each.dropped) else int(each.dropped),
            }
        )
    return rows


def summary_of(divided: Sequence[Part]) -> Row:
    """Return the summary of a localizer."""
    shown = shown_trials(divided)
    planned = divided[0].start.trials or ()
    task = task_of(divided, shown)
    late_ms = [1e3 * abs(each.duration_s - each.trial["image_s"]) for each in shown if not math.isnan(each.duration_s)]
    names = sorted({trial["category"] for trial in planned})
    return {
        "categories": {name: sum(each.trial["category"] == name for each in shown) for name in names},
        "pictures_planned": len(planned),
        "pictures_shown": len(shown),
        "targets": len(task.targets),
        "hits": task.hits,
        "misses": task.misses,
        "false_alarms": len(task.false_alarms),
        "response_time_s": None if task.response_s is None else round(task.response_s, 4),
        "largest_duration_error_ms": round(max(late_ms), 3) if late_ms else None,
        "dropped_frames": int(sum(each.dropped for each in shown if not math.isnan(each.dropped))),
    }
