"""Heart beats in a pulse that is still coming, and the phase between them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, sosfiltfilt

__all__ = ["LONGEST_S", "SHORTEST_S", "SLOWEST_HZ", "Beats", "find_beats", "phase"]

Array = NDArray[np.float64]
SHORTEST_S, LONGEST_S = 0.33, 2.0
"""Intervals between beats that a heart can have, s: 180 and 30 a minute."""
_PEAK_S, _BEAT_S, _OFFSET = 0.111, 0.667, 0.02  # Elgendi et al. 2013
_BAND_HZ = (0.5, 8.0)
SLOWEST_HZ = 20.0
"""Samples a second, at least, in which beats can be found: their band has to lie below half of it."""
_FEWEST = 60  # samples
_BEFORE_S = 8.0  # of samples before those that are searched
_EDGE_S = 0.35  # at their end: a beat there is known with the next samples
_RECENT = 5  # intervals by which the next one is foretold
_MOST = 4096  # beats that are kept


def find_beats(values: Array, rate_hz: float) -> Array:
    """Find the systolic peaks of a pulse wave (M. Elgendi et al. 2013, doi:10.1371/journal.pone.0076585).

    Parameters
    ----------
    values : ndarray, float64 (samples,)
    rate_hz : float

    Returns
    -------
    ndarray, float64 (beats,)
        Places of the peaks, in samples, between them by a parabola.
    """
    if rate_hz < SLOWEST_HZ or len(values) < max(3 * rate_hz, _FEWEST):
        return np.zeros(0)
    wave = sosfiltfilt(_band(round(rate_hz, 1)), values)
    power = np.maximum(wave, 0.0) ** 2
    short, long = (uniform_filter1d(power, max(3, round(s * rate_hz)), mode="nearest") for s in (_PEAK_S, _BEAT_S))
    inside = np.concatenate([[False], short > long + _OFFSET * power.mean(), [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2)
    found: list[float] = []
    for begin, end in edges[(edges[:, 1] - edges[:, 0]) >= _PEAK_S * rate_hz]:
        peak = int(begin + wave[begin:end].argmax())
        if not found or peak - found[-1] > SHORTEST_S * rate_hz:
            found.append(peak + _vertex(wave, peak))
    return np.array(found)


@lru_cache(8)
def _band(rate_hz: float) -> Array:
    """Second-order sections of the band in which pulses are looked for."""
    return np.asarray(butter(3, _BAND_HZ, "bandpass", fs=rate_hz, output="sos"), np.float64)


def _vertex(wave: Array, k: int) -> float:
    """Where the parabola through a peak and its neighbours has its vertex, in samples from the peak."""
    if not 0 < k < len(wave) - 1:
        return 0.0
    before, here, after = wave[k - 1 : k + 2]
    bend = before - 2 * here + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0


class Beats:
    """The beats of a pulse so far.

    Parameters
    ----------
    rate_hz : float
        Of the samples.
    """

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._numbers: list[float] = []  # samples at which there was a beat
        self._searched = 0

    def search(self, values: Array, first: int) -> None:
        """Search for beats in what has come since the last search.

        Parameters
        ----------
        values : ndarray, float64 (samples,)
            All that are at hand.
        first : int
            Number of the first.
        """
        rate = self._rate_hz
        skipped = max(0, self._searched - round(_BEFORE_S * rate) - first)
        self._searched = first + len(values)
        values, first = values[skipped:], first + skipped
        last = self._numbers[-1] if self._numbers else -math.inf
        found = first + find_beats(values, rate)
        new = found[(found > last + SHORTEST_S * rate) & (found < first + len(values) - _EDGE_S * rate)]
        self._numbers = [*self._numbers, *new.tolist()][-_MOST:]

    @property
    def numbers(self) -> Array:
        """Beats so far, in samples: of two that are too near each other the first, and those that were overlooked put in between."""
        beats = np.array(self._numbers)
        if len(beats) < _RECENT:
            return beats
        kept = [beats[0]]
        typical = float(np.median(np.diff(beats)))
        for beat in beats[1:]:
            interval = beat - kept[-1]
            if interval < 0.55 * typical:
                continue
            missed = round(interval / typical) - 1 if 1.6 * typical < interval < 3.5 * typical else 0
            kept += [kept[-1] + interval * (k + 1) / (missed + 1) for k in range(missed)]
            kept.append(beat)
        return np.array(kept)


def phase(beats: Array, t: Array) -> Array:
    """Return the cardiac phase (G. H. Glover et al. 2000, doi:10.1002/1522-2594(200007)44:1<162::AID-MRM23>3.0.CO;2-E).

    It grows by 2 pi from beat to beat. After the last one the next is expected after the mean of the last intervals, since it has not been.

    Parameters
    ----------
    beats : ndarray, float64 (beats,)
        At least three, in their order.
    t : ndarray, float64 (times,)
        In the beats' unit.

    Returns
    -------
    ndarray, float64 (times,)
        Radians; a whole number of turns may be left out.
    """
    first, last = float(np.diff(beats[:_RECENT]).mean()), float(np.diff(beats[-_RECENT - 1 :]).mean())
    grown = np.interp(t, beats, np.arange(len(beats), dtype=np.float64))
    grown += np.maximum(t - beats[-1], 0.0) / last - np.maximum(beats[0] - t, 0.0) / first
    return 2 * math.pi * np.asarray(grown, np.float64)
