"""The participant's presses: hits, misses and false alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["EARLIEST_S", "Task", "judge"]

EARLIEST_S = 0.15
"""Shortest possible response time, s."""


@dataclass(frozen=True)
class Task:
    """Results of a task.

    Parameters
    ----------
    targets : tuple of float
        For each target shown, the time from its onset to the press, s; NaN: no press.
    false_alarms : tuple of int
        For each press that answers no target, the index of the image during or after which it came; -1: before the first.
    """

    targets: tuple[float, ...]
    false_alarms: tuple[int, ...]

    @property
    def hits(self) -> int:
        """Number of answered targets."""
        return sum(not math.isnan(taken_s) for taken_s in self.targets)

    @property
    def misses(self) -> int:
        """Number of unanswered targets."""
        return len(self.targets) - self.hits

    @property
    def response_s(self) -> float | None:
        """Median response time, s; None: no answers."""
        known = [taken_s for taken_s in self.targets if not math.isnan(taken_s)]
        return median(known) if known else None

    def words(self) -> str:
        """Return the results in one line."""
        time = "" if self.response_s is None else f", {self.response_s:.2f} s"
        return f"{self.hits} of {len(self.targets)} targets answered{time}; {len(self.false_alarms)} false alarms"


def judge(onsets_s: Sequence[float], targets: Sequence[bool], presses_s: Sequence[float], response_s: float) -> Task:
    """Classify the presses of a run.

    Parameters
    ----------
    onsets_s : sequence of float
        Onsets of the images shown, ascending.
    targets : sequence of bool
        Whether each image is a target.
    presses_s : sequence of float
        Presses, on the same clock.
    response_s : float
        Longest time from a target to a press that answers it; the shortest is `EARLIEST_S`.

    Returns
    -------
    Task
        The first press within the window of a target is its answer; a press answers only one target, the first that waits.
    """
    times = {k: math.nan for k, target in enumerate(targets) if target}
    false: list[int] = []
    for press_s in sorted(presses_s):
        waiting = (k for k, taken_s in times.items() if math.isnan(taken_s) and EARLIEST_S <= press_s - onsets_s[k] <= response_s)
        if (k := next(waiting, None)) is not None:
            times[k] = press_s - onsets_s[k]
        else:
            false.append(sum(onset_s <= press_s for onset_s in onsets_s) - 1)
    return Task(tuple(times.values()), tuple(false))
