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
    """Judges series by when their volumes came.

    Parameters
    ----------
    opened : callable
        Returns the trigger's ``time.monotonic_ns()``, None as long as there was none.

    Attributes
    ----------
    trigger_ns : int or None
        The trigger, once it has been asked for.
    """

    def __init__(self, opened: Callable[[], int | None]) -> None:
        self._opened = opened
        self.trigger_ns: int | None = None

    def is_open(self) -> bool:
        """Whether the trigger has been."""
        self.trigger_ns = self._opened() if self.trigger_ns is None else self.trigger_ns
        return self.trigger_ns is not None

    def early(self, closed_ns: Mapping[int, int], tr_s: float | None) -> list[int]:
        """Volumes that were whole before they can have been measured after the trigger.

        Parameters
        ----------
        closed_ns : mapping of int to int
            When each volume of a series was whole, by its index.
        tr_s : float or None
            Repetition time, s.
        """
        if self.trigger_ns is None:
            return []
        return sorted(k for k, ns in closed_ns.items() if ns < self.trigger_ns + (k + EARLY_TR) * 1e9 * (tr_s or 0.0))

    def goes_on(self, closed_ns: Mapping[int, int], tr_s: float | None) -> bool:
        """Whether an early series goes on as the run of a trigger that was missed does."""
        after = [ns for ns in closed_ns.values() if self.trigger_ns is not None and ns >= self.trigger_ns]
        if self.trigger_ns is None or not after or not tr_s:
            return len(after) >= MISSED
        passed_tr = (max(after) - self.trigger_ns) / 1e9 / tr_s
        if passed_tr < MISSED_TR or len(after) > passed_tr + AHEAD:
            return False
        return len(after) >= (MISSED if min(closed_ns) <= NEAR_START else FURTHER)
