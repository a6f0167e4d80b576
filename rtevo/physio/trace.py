"""The samples of one sensor so far, and whether they can be those of a participant."""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEEP_S", "Trace", "Trouble"]

Array = NDArray[np.float64]
KEEP_S = 300.0
"""Seconds of samples that are kept, from which breathing is measured."""
LOST_S = 3.0
_LOOK_S = 3.0  # the newest, which are checked
_FLAT = 1e-4  # of the range so far
_RANGE = (1, 99)  # percentiles: a few damaged samples do not count
_KNOWN_S = 10.0  # of samples, after which their range is kept
_SATURATED = 0.5  # of the samples lie at an end of the range


class Trouble(IntEnum):
    """Why a sensor is not used."""

    NONE = 0
    SILENT = 1  # no samples
    FLAT = 2
    SATURATED = 3
    NO_BEATS = 4  # or none for 3 s
    RATE = 5  # not a heart's
    SHORT = 6  # it has only begun

    @property
    def words(self) -> str:
        """Return the trouble in words, to follow the sensor's name."""
        return _WORDS[self]


_WORDS = {
    Trouble.NONE: "is there",
    Trouble.SILENT: "sends nothing any more",
    Trouble.FLAT: "is flat",
    Trouble.SATURATED: "is at the end of its range",
    Trouble.NO_BEATS: "shows no beat for 3 s",
    Trouble.RATE: "shows a rate that no heart has (expected 30 to 180 a minute, evenly)",
    Trouble.SHORT: "has not been there for long enough",
}


class Trace:
    """Samples of one sensor, averaged down to about a rate that is enough, with their times.

    Parameters
    ----------
    rate_hz : float
        That is enough.

    Attributes
    ----------
    values : ndarray, float64 (samples,)
        Of the last 5 minutes.
    first : int
        Number of the first of them since the sensor's series began.
    segment : int
        Counts the series: after a gap another one begins.
    heard_s : float
        When the last sample was measured that came; NaN before the first.
    """

    def __init__(self, rate_hz: float) -> None:
        self._enough_hz = rate_hz
        self.segment = -1
        self._begin(-1, 1.0)

    def _begin(self, segment: int, step_s: float) -> None:
        self.segment, self.first, self.values = segment, 0, np.zeros(0)
        self._factor = max(1, int(1.0 / (step_s * self._enough_hz) + 1e-6))
        self._rest = np.zeros(0)
        self.heard_s = math.nan
        self._start_s, self._step_s = math.nan, step_s * self._factor
        self._reach = 0.0  # of the samples so far

    @property
    def rate_hz(self) -> float:
        """Of `values`."""
        return 1.0 / self._step_s

    def add(self, segment: int, number: int, values: Array, t_s: float, step_s: float) -> bool:
        """Add samples in their order.

        Parameters
        ----------
        segment : int
            Of the series; another one than before begins anew.
        number : int
            Of the first in its series.
        values : ndarray, float64 (samples,)
        t_s, step_s : float
            When the first was measured and the time between two, as it is known now: it holds for those before, too.

        Returns
        -------
        bool
            Whether a new series has begun.
        """
        new = segment != self.segment
        if new:
            self._begin(segment, step_s)
        factor = self._factor
        self._step_s = step_s * factor
        self._start_s = t_s - (number - (factor - 1) / 2) * step_s
        self.heard_s = t_s + (len(values) - 1) * step_s
        raw = np.concatenate([self._rest, values])
        whole = len(raw) // factor * factor
        self._rest = raw[whole:]
        if whole:
            self.values = np.concatenate([self.values, raw[:whole].reshape(-1, factor).mean(axis=1)])
        if (more := len(self.values) - math.ceil(KEEP_S / self._step_s)) > 0:
            self.values, self.first = self.values[more:], self.first + more
        return new

    def seconds(self, number: Array | float) -> Array:
        """Return when samples were measured, s."""
        return np.asarray(self._start_s + np.asarray(number, np.float64) * self._step_s, np.float64)

    def numbers(self, t_s: Array | float) -> Array:
        """Return the places of moments, in samples."""
        return np.asarray((np.asarray(t_s, np.float64) - self._start_s) / self._step_s, np.float64)

    def trouble(self, t_s: float) -> Trouble:
        """Return whether the samples can be used at a moment, s."""
        if not len(self.values) or not self.heard_s > t_s - LOST_S:
            return Trouble.SILENT
        newest = self.values[-max(2, round(_LOOK_S / self._step_s)) :]
        low, high = np.percentile(self.values, _RANGE)
        reach = max(self._reach, float(high - low))
        if len(self.values) * self._step_s > _KNOWN_S:
            self._reach = reach
        if np.ptp(newest) <= _FLAT * reach:
            return Trouble.FLAT
        at_end = (newest >= high - _FLAT * reach) | (newest <= low + _FLAT * reach)
        return Trouble.SATURATED if at_end.mean() > _SATURATED else Trouble.NONE
