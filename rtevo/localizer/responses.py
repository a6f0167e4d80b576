"""What the participant's presses were: hits, misses and false alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["EARLIEST_S", "Task", "judge"]

EARLIEST_S = 0.15
"""Nobody answers what appeared so shortly before, s."""


@dataclass(frozen=True)
class Task:
    """How a task was done.

    Parameters
    ----------
    targets : tuple of float
        For each target that was shown the time from its onset to the press, s; NaN where there was none.
    false_alarms : tuple of int
        Numbers of the images, as they were given, during or after which a press came that answers no target; -1: before the first.
    """

    targets: tuple[float, ...]
    false_alarms: tuple[int, ...]

    @property
    def hits(self) -> int:
        """Targets that were answered."""
        return sum(not math.isnan(taken_s) for taken_s in self.targets)

    @property
    def misses(self) -> int:
        """Targets that were not."""
        return len(self.targets) - self.hits

    @property
    def response_s(self) -> float | None:
        """Median time of the answers, s; None where there are none."""
        known = [taken_s for taken_s in self.targets if not math.isnan(taken_s)]
        return median(known) if known else None

    def words(self) -> str:
        """Say it in a line."""
        time = "" if self.response_s is None else f", {self.response_s:.2f} s"
        return f"{self.hits} of {len(self.targets)} targets answered{time}; {len(self.false_alarms)} false alarms"


def judge(onsets_s: Sequence[float], targets: Sequence[bool], presses_s: Sequence[float], response_s: float) -> Task:
    """Judge the presses of a run.

    Parameters
    ----------
    onsets_s : sequence of float
        Of the images that were shown, rising.
    targets : sequence of bool
        Which of these are targets.
    presses_s : sequence of float
        On the same clock.
    response_s : float
        A press counts for a target that appeared at most so long before, and at least `EARLIEST_S`.

    Returns
    -------
    Task
        The first press that a target can have is its answer; a press answers one target, the first that waits for it.
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
