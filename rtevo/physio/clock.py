"""When a sample was measured, from when it came.

Sensors measure evenly; what they send comes late, now more, now less, and never early. So the line under all stamps, number of the sample
against the time at which it was there at the latest, is the clock of the samples: what comes in bunches, or after a pause of the network,
lies above it and changes nothing. A delay that every sample has cannot be seen so; the scanner's pulses on a channel of the same device
show it (:meth:`SampleClock.anchor`).
"""

from __future__ import annotations

from collections import deque

import numpy as np

__all__ = ["SampleClock"]

GAP_S = 1.0
"""A stamp that lies so far above the line says that samples were lost, one so far below that the sender's clock was set."""
_BIN_S, _BINS = 1.0, 120  # of which the earliest stamps are kept
_FEWEST = 20  # of them, before the rate is taken from them
_RATE_ERROR = 0.02  # of the nominal rate


class SampleClock:
    """Times of evenly measured samples.

    Parameters
    ----------
    rate_hz : float
        As the device says it.

    Attributes
    ----------
    segment : int
        Counts series: after lost samples a new one begins, in which they are numbered anew.
    number : int
        Of the next sample.
    """

    def __init__(self, rate_hz: float) -> None:
        self._nominal_s = 1.0 / rate_hz
        self._anchored: tuple[float, float] | None = None  # what is taken off the times, and how well that is known
        self._begin(0)

    def _begin(self, segment: int) -> None:
        self.segment, self.number = segment, 0
        self._earliest: deque[tuple[int, float, int]] = deque(maxlen=_BINS)  # bin, stamp less number times step, number
        self._step_s, self._origin_s, self._spread_s = self._nominal_s, 0.0, 0.0
        self._stamp_error_s = 0.0

    def add(self, count: int, stamp_s: float, exact: bool = False, error_s: float = 0.0) -> int:
        """Add samples that have come.

        Parameters
        ----------
        count : int
            How many.
        stamp_s : float
            The last of them was measured then at the latest, s.
        exact : bool
            The last of them was measured just then.
        error_s : float
            Bound of the stamp itself, s.

        Returns
        -------
        int
            Number of the first of them in its series.
        """
        last = self.number + count - 1
        self._stamp_error_s = error_s
        if exact:
            first, self.number, self._origin_s = self.number, last + 1, stamp_s - last * self._step_s
            return first
        if self._earliest:
            late_s = stamp_s - (self._origin_s + last * self._step_s)
            if not -GAP_S < late_s < GAP_S + self._spread_s:
                self._begin(self.segment + 1)
                last = count - 1
        first = self.number
        self.number = last + 1
        place, above = int(stamp_s // _BIN_S), stamp_s - last * self._nominal_s
        if not self._earliest or place > self._earliest[-1][0]:
            self._earliest.append((place, above, last))
        elif above < self._earliest[-1][1]:
            self._earliest[-1] = (place, above, last)
        self._fit()
        return first

    def _fit(self) -> None:
        """Lay the line under the earliest stamps of each second."""
        above, number = np.array([each[1:] for each in self._earliest]).T
        slope = 0.0
        if len(above) >= _FEWEST:
            centred = number - number.mean()
            slope = float(np.clip(centred @ above / (centred @ centred), -_RATE_ERROR * self._nominal_s, _RATE_ERROR * self._nominal_s))
        self._step_s = self._nominal_s + slope
        rest = above - slope * number
        self._origin_s, self._spread_s = float(rest.min()), float(np.percentile(rest, 90) - rest.min())

    def anchor(self, delay_s: float, error_s: float) -> None:
        """Subtract a delay from all times from now on: that of a pulse of the scanner, whose time is known otherwise.

        Parameters
        ----------
        delay_s, error_s : float
            Beyond what was taken off before, and the bound of the time of that pulse, s.
        """
        before_s = 0.0 if self._anchored is None else self._anchored[0]
        self._anchored = before_s + delay_s, error_s + self._step_s / 2

    @property
    def anchored(self) -> bool:
        """Whether the delay is known."""
        return self._anchored is not None

    @property
    def rate_hz(self) -> float:
        """Samples a second, as they come."""
        return 1.0 / self._step_s

    @property
    def step_s(self) -> float:
        """Time between two samples, s."""
        return self._step_s

    def time_s(self, number: float) -> float:
        """When a sample was measured, s."""
        return self._origin_s + number * self._step_s - (0.0 if self._anchored is None else self._anchored[0])

    @property
    def error_s(self) -> float:
        """Bound of that, s: without an anchor, for a device that sends what it has measured at once."""
        return self._spread_s + self._stamp_error_s + (self._step_s / 2 if self._anchored is None else self._anchored[1])
