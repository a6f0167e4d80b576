"""The trigger opens the run: nothing that was acquired before it can be the run's first volume.

Volume k of a run is whole k + 1 repetition times after the trigger at the earliest. A series of which a volume came earlier than that began
before the trigger: it is the late end of another run, or the trigger was not the first volume's. The one stops, or is not the only one; the
other goes on, a volume a repetition time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["Gate"]

EARLY_TR = 0.5  # repetition times by which a volume may be whole too early
MISSED = 3  # volumes after the trigger that say that it was missed
MISSED_TR = 4.0  # repetition times after the trigger, in which a run that it began would have shown
NEAR_START = 2  # highest index of the first volume that came of a run whose trigger was missed
FURTHER = 10  # volumes after the trigger of a series whose start never came
AHEAD = 2  # volumes that may come together with those that are due
MOST_HELD = 64  # volumes of a series that may be held before the trigger; one that goes on longer is another run


class Gate:
    """Judges series by when their volumes came: when they were first seen whole, whatever a share's clock says.

    Parameters
    ----------
    opened : callable
        Returns the trigger's time in ns, on the clock by which volumes come; None as long as there was none.

    Attributes
    ----------
    trigger_s : float or None
        The trigger, once it has been asked for, s.
    """

    def __init__(self, opened: Callable[[], int | None]) -> None:
        self._opened = opened
        self.trigger_s: float | None = None

    def is_open(self) -> bool:
        """Whether the trigger has been."""
        if self.trigger_s is None and (trigger_ns := self._opened()) is not None:
            self.trigger_s = trigger_ns / 1e9
        return self.trigger_s is not None

    def early(self, came_s: Mapping[int, float], tr_s: float | None) -> list[int]:
        """Volumes that were whole before they can have been measured after the trigger.

        Parameters
        ----------
        came_s : mapping of int to float
            When each volume of a series was whole, by its index, s.
        tr_s : float or None
            Repetition time, s.
        """
        if self.trigger_s is None:
            return []
        return sorted(k for k, s in came_s.items() if s < self.trigger_s + (k + EARLY_TR) * (tr_s or 0.0))

    def goes_on(self, came_s: Mapping[int, float], tr_s: float | None) -> bool:
        """Whether an early series goes on as the run of a trigger that was missed does."""
        after = [s for s in came_s.values() if self.trigger_s is not None and s >= self.trigger_s]
        if self.trigger_s is None or not after or not tr_s:
            return len(after) >= MISSED
        passed_tr = (max(after) - self.trigger_s) / tr_s
        if passed_tr < MISSED_TR or len(after) > passed_tr + AHEAD:
            return False
        return len(after) >= (MISSED if min(came_s) <= NEAR_START else FURTHER)
