"""Respiration that is still coming: its phase, and the breaths."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

__all__ = ["RATE_HZ", "breaths", "phase", "smoothed"]

Array = NDArray[np.float64]
RATE_HZ = 25.0
"""Samples of respiration are averaged down to about this."""
_SMOOTH_S = 0.4
_SLOPE_S = 0.5  # on either side of a moment, of what says whether it goes up
_SHORTEST_S = 1.2  # between two breaths
_PROMINENT = 0.25  # of the range, that a breath has at least


def smoothed(values: Array, rate_hz: float) -> Array:
    """Remove noise and heartbeat from the breathing, by a mean over 0.4 s."""
    return np.asarray(uniform_filter1d(values, max(1, round(_SMOOTH_S * rate_hz)), mode="nearest"), np.float64)


def phase(values: Array, rate_hz: float, at: Array) -> Array:
    """Return the respiratory phase (G. H. Glover et al. 2000, doi:10.1002/1522-2594(200007)44:1<162::AID-MRM23>3.0.CO;2-E).

    It is pi times the share of the samples that lie below, so that depth counts; positive while breathing in, negative while breathing out.

    Parameters
    ----------
    values : ndarray, float64 (samples,)
        Those so far, smoothed; their distribution is what depth is measured by.
    rate_hz : float
    at : ndarray, float64 (times,)
        In samples.

    Returns
    -------
    ndarray, float64 (times,)
        Radians, -pi to pi.
    """
    number, reach = np.arange(len(values), dtype=np.float64), _SLOPE_S * rate_hz
    before, here, after = (np.interp(at + step, number, values) for step in (-reach, 0.0, reach))
    ends = np.minimum(at + reach, len(values) - 1) - np.maximum(at - reach, 0)
    rising = np.where(ends > 0, after - before, 0.0) >= 0
    share = np.searchsorted(np.sort(values), here, side="right") / len(values)
    return np.asarray(math.pi * share * np.where(rising, 1.0, -1.0), np.float64)


def breaths(values: Array, rate_hz: float) -> tuple[Array, Array]:
    """Find breaths, and how much is breathed at each: depth over time (RVT: R. M. Birn et al. 2006, doi:10.1016/j.neuroimage.2006.02.048).

    Parameters
    ----------
    values : ndarray, float64 (samples,)
        Smoothed.
    rate_hz : float

    Returns
    -------
    peaks : ndarray, float64 (breaths,)
        Ends of breathing in, in samples, from the second one on.
    per_time : ndarray, float64 (breaths,)
        From the trough before it to the peak, over the time since the peak before; the values' unit per second.
    """
    if len(values) < 2 * _SHORTEST_S * rate_hz:
        return np.zeros(0), np.zeros(0)
    low, high = np.percentile(values, [5, 95])
    peaks, _ = find_peaks(values, prominence=_PROMINENT * (high - low), distance=max(1, round(_SHORTEST_S * rate_hz)))
    if len(peaks) < 2:
        return np.zeros(0), np.zeros(0)
    depth = np.array([values[b] - values[a:b].min() for a, b in pairwise(peaks)])
    return peaks[1:].astype(np.float64), depth * rate_hz / np.diff(peaks)
