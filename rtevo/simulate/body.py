"""A heart that beats and a chest that breathes: what sensors see of them, and what they do to a voxel's signal.

Beats are not even: they follow breathing, a slow rhythm of about 0.1 Hz and chance. Breaths differ in length and depth; now and then one is
a sigh, now and then none comes for a while. Tissue pulses for some time after each beat, whatever the next one does; the chest moves the
field at once, and depth and rate change the blood's oxygen some seconds later. None of it is a sum of sines of a phase.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LONGEST_S", "RATE_HZ", "Body", "SensorFile"]

Array = NDArray[np.float64]
RATE_HZ = 50.0
"""Samples of a simulated participant's sensors a second."""
LONGEST_S = 3.0 * 3600
"""So long a simulated participant's heart beats."""
_RISE = 0.4  # share of a breath that goes in
_SIGH, _PAUSE = 0.02, 0.015  # of the breaths
_STEP_S, _REACH_S = 0.25, 40.0  # of what comes later


class Body:
    """One participant's heart and breathing.

    Parameters
    ----------
    rng : Generator
    length_s : float
        So long, from 30 s before time 0.
    """

    def __init__(self, rng: np.random.Generator, length_s: float) -> None:
        self.begins_s = -30.0
        self._breathe(rng, length_s)
        self._beat(rng, length_s)
        t = np.arange(0.0, min(length_s, 600.0), 0.25, dtype=np.float64)
        found = self._raw(t)
        self._mean, self._sd = found.mean(axis=1), found.std(axis=1)

    def _breathe(self, rng: np.random.Generator, length_s: float) -> None:
        usual_s = rng.uniform(3.2, 5.0)
        starts, periods, depths = [self.begins_s - _REACH_S], [usual_s], [1.0]
        while starts[-1] < length_s + 10:
            starts.append(starts[-1] + periods[-1])
            kind = rng.random()
            depth, period = math.exp(0.2 * rng.standard_normal()), usual_s * math.exp(0.13 * rng.standard_normal())
            if kind < _SIGH:
                depth, period = 2.5 * depth, 1.4 * period
            elif kind < _SIGH + _PAUSE:
                depth, period = 0.15 * depth, 1.5 * period
            depths.append(depth)
            periods.append(period)
        self.breaths_s, self._periods, self._depths = np.array(starts), np.array(periods), np.array(depths)

    def _beat(self, rng: np.random.Generator, length_s: float) -> None:
        mean_hz, slow, chance = rng.uniform(52, 84) / 60, 0.0, 0.0
        beats = [self.begins_s - _REACH_S]
        while beats[-1] < length_s + 10:
            t = beats[-1]
            chance = 0.7 * chance + 0.02 * rng.standard_normal()
            slow = 0.995 * slow + 0.006 * rng.standard_normal()
            rhythm = 0.03 * math.sin(2 * math.pi * 0.1 * t) + 0.05 * (float(self.chest(t)) - 0.5) + slow + chance
            beats.append(t + 1.0 / (mean_hz * max(0.5, 1.0 + rhythm)))
        self.beats_s = np.array(beats)

    def chest(self, t_s: ArrayLike) -> Array:
        """Return how far the chest is out, about 0 to 1."""
        t = np.asarray(t_s, np.float64)
        k = np.clip(np.searchsorted(self.breaths_s, t, side="right") - 1, 0, len(self.breaths_s) - 1)
        part = (t - self.breaths_s[k]) / self._periods[k]
        angle = np.where(part < _RISE, part / _RISE, 1 + (part - _RISE) / (1 - _RISE)) * math.pi / 2
        return np.asarray(self._depths[k] * np.sin(angle) ** 2, np.float64)

    def _after_beats(self, t_s: ArrayLike) -> tuple[Array, Array]:
        """Times since the last three beats, (3, ...), s, and the interval that the last ended."""
        t = np.asarray(t_s, np.float64)
        k = np.clip(np.searchsorted(self.beats_s, t, side="right") - 1, 3, len(self.beats_s) - 1)
        return np.stack([t - self.beats_s[k - back] for back in range(3)]), self.beats_s[k] - self.beats_s[k - 1]

    def tissue(self, t_s: ArrayLike, delay_s: ArrayLike = 0.0) -> Array:
        """Return how far tissue has pulsed, which it does some time after a beat."""
        since, _ = self._after_beats(np.asarray(t_s, np.float64) - np.asarray(delay_s, np.float64))
        return np.asarray(((since / 0.13) ** 1.5 * np.exp(1.5 * (1 - since / 0.13))).sum(axis=0), np.float64)

    def pulse(self, t_s: ArrayLike) -> Array:
        """Return the wave at a finger, 0.25 s after the heart's, which is smaller while breathing in."""
        t = np.asarray(t_s, np.float64)
        since, interval = self._after_beats(t - 0.1)
        wave = np.exp(-0.5 * ((since - 0.15) / 0.06) ** 2) + 0.4 * np.exp(-0.5 * ((since - 0.42 * np.sqrt(interval)) / 0.09) ** 2)
        return np.asarray((1 - 0.15 * self.chest(t)) * wave.sum(axis=0) + 0.2 * np.sin(2 * math.pi * t / 11.0), np.float64)

    def belt(self, t_s: ArrayLike) -> Array:
        """Return what a belt around the chest sees: it slips slowly, and the heart shows in it."""
        t = np.asarray(t_s, np.float64)
        return np.asarray(self.chest(t) + 0.03 * self.tissue(t) + 0.1 * np.sin(2 * math.pi * t / 170.0), np.float64)

    def effects(self, t_s: ArrayLike) -> Array:
        """Return what the body does to the signal, each about a mean of 0 with a spread of 1.

        Parameters
        ----------
        t_s : array-like of float, (times,)

        Returns
        -------
        ndarray, float64 (4, times)
            Of the pulse and the chest; and of the depth and rate of breathing and the heart's rate, some seconds later.
        """
        found: Array = (self._raw(np.asarray(t_s, np.float64)) - self._mean[:, np.newaxis]) / self._sd[:, np.newaxis]
        return found

    def _raw(self, t: Array) -> Array:
        """The same in any units."""
        past = np.arange(0.0, _REACH_S, _STEP_S)
        air = (past / 4) ** 2 * np.exp(-past / 2.2) - 0.05 * (past / 5) ** 3 * np.exp(-past / 4.5)
        heart = -((past / 6) ** 3) * np.exp(-past / 3)
        moments = np.subtract.outer(t, past)
        breath = np.clip(np.searchsorted(self.breaths_s, moments, side="right") - 1, 0, len(self.breaths_s) - 1)
        beat = np.clip(np.searchsorted(self.beats_s, moments, side="right"), 1, len(self.beats_s) - 1)
        rate = (self._depths[breath] / self._periods[breath]) @ air
        return np.stack([self.tissue(t), self.chest(t - 0.15), rate, (1.0 / (self.beats_s[beat] - self.beats_s[beat - 1])) @ heart])


class SensorFile:
    """A body's sensors, in a file that grows: rows with the session time of a sample, s, the pulse and the belt.

    Parameters
    ----------
    path : Path
    body : Body
    rng : Generator
        Of their noise.
    """

    def __init__(self, path: Path, body: Body, rng: np.random.Generator) -> None:
        self._path, self._body, self._rng = path, body, rng
        self._next = round(body.begins_s * RATE_HZ)

    def until(self, t_s: float, start_s: float) -> None:
        """Write what was measured until `t_s`, s from the first volume, which starts at session time `start_s`."""
        end = round(t_s * RATE_HZ)
        t = np.arange(self._next, end) / RATE_HZ
        self._next = max(end, self._next)
        noise = self._rng.standard_normal((2, len(t)))
        pulse, belt = 2048 + 400 * (self._body.pulse(t) + 0.03 * noise[0]), 1000 + 900 * (self._body.belt(t) + 0.01 * noise[1])
        rows = (f"{start_s + t[k]:.6f} {pulse[k]:.0f} {belt[k]:.0f}\n" for k in range(len(t)))
        with self._path.open("ab", buffering=0) as file:
            file.write("".join(rows).encode())
