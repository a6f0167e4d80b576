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
MEASURED = 3  # intervals in agreement with each other from which the repetition time is believed against the header
MOST_MEASURED = 24  # intervals from the run's start by which it is decided
AGREE = 0.02  # of an interval: how far others may be from it
IN_AGREEMENT = 0.75  # of the intervals: how many
RESOLUTION_S = 0.01  # of header times with a fraction; others count seconds


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
    tr_s : float or None
        Repetition time in seconds: the header's, until the times of acquisition say otherwise.
    """

    def __init__(self, tr_s: float | None, problems: list[str]) -> None:
        self.problems = problems
        self.last_s = math.nan
        self.tr_s = tr_s
        self._last = -1
        self._origin_s = math.nan
        self._named: set[str] = set()
        self._means: dict[int, float] = {}
        self._steps: list[float] = []  # seconds a volume, between volumes that were passed on one after the other
        self._whole_s = True  # no header time had a fraction of a second
        self._coarse = False  # two volumes had the same time
        self._held = ""  # a jump of the clock, until it is known whether all volumes jump

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
                f"{which}: up to {excess[0]:.0%} brighter than later volumes: magnetisation was not yet in its steady state (dummy volumes)"
            )

    def acquired_s(self, index: int, moment_s: float) -> float:
        """Acquisition time from the first volume in seconds; NaN where the header says none, or the same for every volume."""
        tr_s, previous_index, previous_s = self.tr_s, self._last, self.last_s
        self._last, self.last_s = index, moment_s
        if not math.isfinite(moment_s) or (moment_s == previous_s and index != previous_index):
            self._coarse = self._coarse or math.isfinite(moment_s)
            return math.nan
        self._whole_s = self._whole_s and moment_s == math.floor(moment_s)
        if not math.isfinite(self._origin_s):
            self._origin_s = moment_s - (index * tr_s if tr_s else 0.0)
        acquired_s = moment_s - self._origin_s
        if acquired_s < -HALF_A_DAY_S:  # midnight, in headers without a date
            acquired_s += 2 * HALF_A_DAY_S
        if tr_s and math.isfinite(previous_s) and index > previous_index:
            interval_s = (moment_s - previous_s + HALF_A_DAY_S) % (2 * HALF_A_DAY_S) - HALF_A_DAY_S  # over midnight too
            self._clock(index, acquired_s, index - previous_index, interval_s, tr_s)
        return acquired_s

    def settle(self) -> None:
        """Name a jump of the clock that was held back."""
        if self._held:
            self.problems.append(self._held)
            self._held = ""

    def end(self) -> None:
        """Name what nothing more will come to decide."""
        few = 0 < len(self._steps) < MEASURED and not (self._coarse or self._whole_s or self._held)
        if few and self.tr_s and all(abs(step - self.tr_s) > AGREE * self.tr_s for step in self._steps):
            self._held = (
                f"by the headers, volumes were acquired {self._steps[0]:.6g} s apart, unlike the repetition time of {self.tr_s:g} "
                "s; too few came to determine it"
            )
        self.settle()
        self._steps.clear()

    def _clock(self, index: int, acquired_s: float, volumes: int, interval_s: float, tr_s: float) -> None:
        """Name a header clock that jumps, and a repetition time that is not the header's."""
        if len(self._steps) < MOST_MEASURED:
            self._steps.append(interval_s / volumes)
            if self._measure(tr_s):
                return
        if abs(interval_s - volumes * tr_s) <= CLOCK_JUMP_TR * tr_s:
            self.settle()
        elif "clock" not in self._named and abs(interval_s / volumes / tr_s - 0.5) >= HALF_TR:
            self._named.add("clock")
            self._held = (
                f"volume {index}: acquired {acquired_s:.3f} s after the first by its header, expected {index * tr_s:.3f} s at the "
                f"repetition time of {tr_s:g} s (was the clock set, or a pause?)"
            )
            if len(self._steps) > MEASURED:
                self.settle()

    def _measure(self, tr_s: float) -> bool:
        """Believe the times of acquisition where they agree with each other, and not with the header; returns whether that is so."""
        steps = np.array(self._steps)
        measured_s = round(float(np.median(steps)), 6)
        off_s = abs(measured_s - tr_s)
        resolution_s = 1.0 if self._whole_s else RESOLUTION_S
        if len(steps) < MEASURED or "tr" in self._named or self._coarse or measured_s <= 0:
            return False
        if off_s <= AGREE * tr_s or len(steps) * off_s <= 2 * resolution_s:
            return False
        if (np.abs(steps - measured_s) <= AGREE * measured_s).mean() < IN_AGREEMENT:
            return False
        self._named.add("tr")
        self._held = ""
        half = abs(measured_s / tr_s - 0.5) < HALF_TR
        said = f"half the repetition time of {tr_s:g} s: two volumes a repetition" if half else f"not the repetition time of {tr_s:g} s"
        self.problems.append(f"by the headers, volumes were acquired every {measured_s:g} s, {said}; {measured_s:g} s is used")
        self.tr_s = measured_s
        return True
