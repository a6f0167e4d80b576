"""Names what is odd about the signal and the times of a run's volumes; changes nothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Watch"]

HALF_A_DAY_S = 43200.0
SETTLED_VOLUMES = 8  # from the run's start, of which the second half shows the steady state
BRIGHTER = 0.08  # of the mean signal: what a volume before the steady state has more
HALF_TR = 0.05  # of the repetition time: how far two volumes may be from half of it to be two volumes of one repetition
CLOCK_JUMP_TR = 0.5  # of the repetition time: acquisition times off by more are named


class Watch:
    """What one run's volumes look like as they are passed on.

    Parameters
    ----------
    tr_s : float or None
        Repetition time in seconds, from the header.
    problems : list of str
        Takes what is odd, each once.

    Attributes
    ----------
    last_s : float
        When the volume before was acquired, in seconds as in :class:`rtevo.ingest.parts.Part`; NaN where unknown.
    """

    def __init__(self, tr_s: float | None, problems: list[str]) -> None:
        self.problems = problems
        self.last_s = math.nan
        self._tr_s = tr_s
        self._last = -1
        self._origin_s = math.nan
        self._named: set[str] = set()
        self._means: dict[int, float] = {}
        self._halves = 0  # intervals of half a repetition time in a row

    def signal(self, index: int, data: NDArray[np.float32] | None) -> None:
        """Name the run's first volumes where they are brighter than those after: magnetisation is not yet in its steady state."""
        if data is None or index >= SETTLED_VOLUMES or "steady" in self._named:
            return
        self._means[index] = float(data.mean())
        if len(self._means) < SETTLED_VOLUMES:
            return
        self._named.add("steady")
        means = np.array([self._means[k] for k in range(SETTLED_VOLUMES)])
        later = means[SETTLED_VOLUMES // 2 :]
        plateau = float(np.median(later))
        if plateau <= 0:
            return
        excess = means / plateau - 1
        bright = int(np.argmin(np.append(excess > BRIGHTER, False)))
        if 0 < bright <= SETTLED_VOLUMES // 2 and np.ptp(later) / plateau < BRIGHTER / 2 and (np.diff(means[: bright + 1]) < 0).all():
            which = "volume 0" if bright == 1 else f"volumes 0 to {bright - 1}"
            self.problems.append(
                f"{which}: up to {excess[0]:.0%} brighter than the volumes after: magnetisation was not yet in its steady state "
                "(dummy volumes)"
            )

    def acquired_s(self, index: int, moment_s: float) -> float:
        """Acquisition time from the first volume in seconds; NaN where the header says none, or the same for every volume."""
        tr_s, previous_index, previous_s = self._tr_s, self._last, self.last_s
        self._last, self.last_s = index, moment_s
        if not math.isfinite(moment_s) or (moment_s == previous_s and index != previous_index):
            return math.nan
        if not math.isfinite(self._origin_s):
            self._origin_s = moment_s - (index * tr_s if tr_s else 0.0)
        acquired_s = moment_s - self._origin_s
        if acquired_s < -HALF_A_DAY_S:  # midnight, in headers without a date
            acquired_s += 2 * HALF_A_DAY_S
        if tr_s and math.isfinite(previous_s):
            self._clock(index, acquired_s, index - previous_index, moment_s - previous_s, tr_s)
        return acquired_s

    def _clock(self, index: int, acquired_s: float, volumes: int, interval_s: float, tr_s: float) -> None:
        """Name a header clock that jumps, and volumes that come twice as often as the header says."""
        half = abs(interval_s / volumes / tr_s - 0.5) < HALF_TR
        self._halves = self._halves + 1 if half else 0
        if self._halves == 3 and "halves" not in self._named:
            self._named.add("halves")
            self.problems.append(
                f"volumes were acquired every {interval_s / volumes:g} s by their headers, half the repetition time of {tr_s:g} s: "
                "two volumes a repetition"
            )
        off_s = (interval_s + HALF_A_DAY_S) % (2 * HALF_A_DAY_S) - HALF_A_DAY_S - volumes * tr_s  # midnight, in headers without a date
        if not half and abs(off_s) > CLOCK_JUMP_TR * tr_s and "clock" not in self._named:
            self._named.add("clock")
            self.problems.append(
                f"volume {index}: acquired {acquired_s:.3f} s after the first by its header, expected {index * tr_s:.3f} s at the "
                f"repetition time of {tr_s:g} s (a clock that was set, or a pause)"
            )
