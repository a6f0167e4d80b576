"""From pulse and respiration to regressors of a volume, from what has come by then.

RETROICOR (G. H. Glover et al. 2000, doi:10.1002/1522-2594(200007)44:1<162::AID-MRM23>3.0.CO;2-E): sine and cosine of the cardiac and of
the respiratory phase and of twice these. Respiration volume per time (RVT: R. M. Birn et al. 2006, doi:10.1016/j.neuroimage.2006.02.048)
and heart rate (HRV: C. Chang et al. 2009, doi:10.1016/j.neuroimage.2008.09.029), each through its response function.

Offline, each voxel is corrected with the phases at the time of its slice. Here a decoder's map is a sum over voxels, so its series has the
phases of all slices in it, each with a coefficient of its own. As a heart's rate changes little within a repetition time, the phase at any
slice is that at the middle plus an angle that is nearly the same in every volume, which sine and cosine can take up. What the rate does
change is taken up by phases at two moments, one standard deviation on either side of the mean of the map's slice times, where the
repetition time is long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.physio import breath
from rtevo.physio.beats import LONGEST_S, SHORTEST_S, Beats, phase
from rtevo.physio.terms import LONG_TR_S, ORDER, Sensor, sizes
from rtevo.physio.trace import LOST_S, Trace, Trouble

__all__ = ["Physiology", "State", "moments"]

Array = NDArray[np.float64]
_PULSE_HZ = 100.0  # samples of the pulse are averaged down to about this
_BEATS, _BREATH_S = 6, 10.0  # at least, before they are used
_RECENT, _UNEVEN = 16, 0.22  # intervals, and their spread as a share of their mean: a calm heart has 0.03 to 0.15, noise 0.23 and more
_STEP_S, _REACH_S = 0.5, 40.0  # of the response functions
_RATE_S = 6.0  # heart rate is a mean over this (Chang et al. 2009)
_BREATHS_S = 30.0  # from which the respiration rate is found
_SIZE = 2.0  # of sines and cosines: what they explain is expected to be twice the noise's variance (bench_physio: 1 is too little)
_SPREAD = {"rvt": 0.3, "hrv": 0.06}  # usual relative spread of what goes into the response functions: columns are about 1


@dataclass(frozen=True)
class State:
    """The terms at a volume.

    Parameters
    ----------
    terms : ndarray, float64 (columns,)
        0 where a sensor is not used.
    heart_rate, respiration_rate : float
        A minute; NaN where it is not known.
    trouble : tuple of Trouble
        Of pulse and respiration.
    """

    terms: Array
    heart_rate: float
    respiration_rate: float
    trouble: tuple[Trouble, Trouble]


def moments(tr_s: float, slice_s: ArrayLike, energy: ArrayLike) -> Array:
    """Choose at which times of a volume phases are taken.

    Parameters
    ----------
    tr_s : float
    slice_s : array-like of float, (slices,)
        When each slice is measured, s from the volume's start.
    energy : array-like of float, (slices,)
        Sum of the squared weights of the map in each slice.

    Returns
    -------
    ndarray, float64 (1,) or (2,)
        s from the volume's start.
    """
    times, share = np.asarray(slice_s, np.float64), np.asarray(energy, np.float64)
    share = share / share.sum() if share.sum() > 0 else np.full(len(times), 1.0 / len(times))
    mean = float(share @ times)
    if tr_s < LONG_TR_S:
        return np.array([mean])
    sd = math.sqrt(float(share @ (times - mean) ** 2))
    return np.array([mean - sd, mean + sd])


def respiration_response(t_s: Array) -> Array:
    """Response of the signal to a deep breath (R. M. Birn et al. 2008, doi:10.1016/j.neuroimage.2007.11.059), any unit."""
    return np.asarray(0.6 * t_s**2.1 * np.exp(-t_s / 1.6) - 0.0023 * t_s**3.54 * np.exp(-t_s / 4.25), np.float64)


def cardiac_response(t_s: Array) -> Array:
    """Response of the signal to a faster heart (C. Chang et al. 2009, equation 5), any unit."""
    slow = 16.0 / math.sqrt(2 * math.pi * 9.0) * np.exp(-0.5 * (t_s - 12.0) ** 2 / 9.0)
    return np.asarray(0.6 * t_s**2.7 * np.exp(-t_s / 1.6) - slow, np.float64)


def _kernel(response: Array) -> Array:
    """A response function that returns about the spread of what goes into it."""
    return response / math.sqrt(float(response @ response) * 8.0 / _STEP_S)


_T = np.arange(0.0, _REACH_S, _STEP_S, dtype=np.float64)
_KERNELS = {"rvt": _kernel(respiration_response(_T)), "hrv": _kernel(cardiac_response(_T))}


class Physiology:
    """Regressors from the samples so far.

    Parameters
    ----------
    terms : sequence of str
        Of :data:`rtevo.physio.TERMS`.
    sensors : sequence of Sensor
        That there are.
    tr_s : float
        Repetition time, s.
    """

    def __init__(self, terms: Sequence[str], sensors: Sequence[Sensor], tr_s: float) -> None:
        self._terms, self._sensors = tuple(terms), tuple(sensors)
        self.sizes = sizes(terms, sensors, tr_s)
        self.pulse, self.respiration = Trace(_PULSE_HZ), Trace(breath.RATE_HZ)
        self._beats = Beats(_PULSE_HZ)

    def add(self, sensor: Sensor, segment: int, number: int, values: ArrayLike, t_s: float, step_s: float) -> None:
        """Add samples of a sensor in their order: see :meth:`rtevo.physio.trace.Trace.add`."""
        if sensor == Sensor.TRIGGER:
            return
        trace = self.pulse if sensor == Sensor.CARDIAC else self.respiration
        if trace.add(segment, number, np.asarray(values, np.float64), t_s, step_s) and trace is self.pulse:
            self._beats = Beats(trace.rate_hz)

    def at(self, t_s: ArrayLike, end_s: float) -> State:
        """Return the regressors of a volume.

        Parameters
        ----------
        t_s : array-like of float
            Its :func:`moments`, s.
        end_s : float
            Its end, s: of what came later nothing is used that says how things are now.
        """
        times = np.asarray(t_s, np.float64)
        self._beats.search(self.pulse.values, self.pulse.first)
        beats = self.pulse.seconds(self._beats.numbers)
        heart = self._heart(beats, end_s)
        breathing = self._breathing(end_s)
        air = breath.smoothed(self.respiration.values, self.respiration.rate_hz)
        number, depth = breath.breaths(air, self.respiration.rate_hz)
        breaths = self.respiration.seconds(self.respiration.first + number)
        columns: list[Array] = []
        if "retroicor" in self._terms:
            if Sensor.CARDIAC in self._sensors:
                columns.append(_harmonics(phase(beats, times)) if not heart else self._nothing(times))
            if Sensor.RESPIRATORY in self._sensors:
                columns.append(self._air_phase(air, times) if not breathing else self._nothing(times))
        if "rvt" in self._terms and Sensor.RESPIRATORY in self._sensors:
            columns.append(_slow("rvt", breaths, depth, float(times.mean())) if not breathing else np.zeros(1))
        if "hrv" in self._terms and Sensor.CARDIAC in self._sensors:
            columns.append(_slow("hrv", *_rates(beats), float(times.mean())) if not heart else np.zeros(1))
        recent = breaths[breaths > end_s - _BREATHS_S]
        a_minute = 60.0 / float(np.diff(recent).mean()) if len(recent) > 1 and not breathing else math.nan
        bpm = 60.0 / float(np.diff(beats[-_BEATS:]).mean()) if not heart else math.nan
        return State(np.concatenate(columns) if columns else np.zeros(0), bpm, a_minute, (heart, breathing))

    def _nothing(self, times: Array) -> Array:
        return np.zeros(2 * ORDER * len(times))

    def _air_phase(self, air: Array, times: Array) -> Array:
        at = self.respiration.numbers(times) - self.respiration.first
        return _harmonics(breath.phase(air, self.respiration.rate_hz, at))

    def _heart(self, beats: Array, t_s: float) -> Trouble:
        """Return whether the pulse can be used."""
        if Sensor.CARDIAC not in self._sensors or (found := self.pulse.trouble(t_s)) == Trouble.SILENT:
            return Trouble.SILENT
        if found:
            return found
        if len(beats) < _BEATS:
            return Trouble.SHORT if len(self.pulse.values) < _BREATH_S * self.pulse.rate_hz else Trouble.NO_BEATS
        if t_s - beats[-1] > LOST_S:
            return Trouble.NO_BEATS
        recent = np.diff(beats[-_RECENT - 1 :])
        recent = recent[1 + int(np.flatnonzero(recent > LOST_S).max(initial=-1)) :]  # since it was there again
        if len(recent) < _BEATS - 1:
            return Trouble.SHORT
        usual, even = SHORTEST_S < float(np.median(recent)) < LONGEST_S, float(recent.std()) < _UNEVEN * float(recent.mean())
        return Trouble.NONE if usual and even else Trouble.RATE

    def _breathing(self, t_s: float) -> Trouble:
        """Return whether the respiration can be used."""
        if Sensor.RESPIRATORY not in self._sensors:
            return Trouble.SILENT
        if found := self.respiration.trouble(t_s):
            return found
        return Trouble.SHORT if len(self.respiration.values) < _BREATH_S * self.respiration.rate_hz else Trouble.NONE


def _harmonics(angle: Array) -> Array:
    """Sine and cosine of each phase and of its multiples, of the size :data:`_SIZE`, float64 (2 ORDER times,)."""
    multiples = np.multiply.outer(np.arange(1, ORDER + 1), angle).ravel()
    return np.asarray(_SIZE * np.concatenate([np.cos(multiples), np.sin(multiples)]), np.float64)


def _rates(beats: Array) -> tuple[Array, Array]:
    """Heart rate in the middle of each interval, as a mean over 6 s."""
    heard = np.diff(beats) < LOST_S
    middle, rate = ((beats[1:] + beats[:-1]) / 2)[heard], 1.0 / np.diff(beats)[heard]
    total = np.concatenate([[0.0], np.cumsum(rate)])
    begin, end = (np.searchsorted(middle, middle + step) for step in (-_RATE_S / 2, _RATE_S / 2))
    return middle, (total[end] - total[begin]) / np.maximum(end - begin, 1)


def _slow(name: str, at_s: Array, values: Array, t_s: float) -> Array:
    """Relative deviations from the mean so far, through the response function; what is not known yet is as it was last, float64 (1,)."""
    if len(values) < 2 or not values.mean() > 0:
        return np.zeros(1)
    past = np.interp(t_s - _T, at_s, values / values.mean() - 1.0)
    return np.array([float(past @ _KERNELS[name]) / _SPREAD[name]])
