"""Scores from separated responses: overlap with neighbouring images resolved, with a standard error, refined as volumes arrive.

Everything from a volume to an amplitude is linear, so each volume is projected on the weight map first: the sum over the mask of
weight times value over the voxel's standard deviation. One time series per map is left, which :class:`rtevo.decode.deconvolve.Deconvolver`
takes apart. That is exact for given standard deviations, which is why they are fixed once, after a baseline (or come with the
decoder): changing them would change the scale of a series that is already half taken apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.deconvolve import Amplitude, Deconvolver, Grid
from rtevo.decode.running import RunningFit
from rtevo.decode.score import Score

__all__ = ["Projection", "Separate"]

BASELINE_S = 20.0
"""Length of the baseline, where the decoder brings no standard deviations."""
FIRST_S, LAST_S = 8.0, 16.0
"""A score is published when this long after the onset has been seen, and revised until this long after it."""
IMPROVED = 0.9
"""A revision is published when the standard error has fallen to this part of what was published, or the score has moved by half of it."""
SPIKE_MM = 1.0
"""A volume displaced by more than this against the last one (framewise displacement, mm) is left out of the fit, as a spike term would."""
_PRIOR_VOLUMES = 10.0  # volumes' worth of evidence that a voxel's variance is the median voxel's


class Projection:
    """Weighted sum over the voxels, in units of one voxel's noise standard deviation.

    Parameters
    ----------
    weights : ndarray, float64 (voxels,)
        The map inside the mask. Its mean is taken out, as in a correlation, so that changes common to all voxels do not count.
    sd : ndarray, float64 (voxels,)
        Standard deviation of each voxel; 0: the voxel does not count.
    """

    def __init__(self, weights: NDArray[np.float64], sd: NDArray[np.float64]) -> None:
        counts = sd > 0
        centred = np.where(counts, weights - weights[counts].mean() if counts.any() else 0.0, 0.0)
        norm = math.sqrt(float((centred**2).sum()))
        self.usable = norm > 0
        self._factors = np.divide(centred, sd * norm, out=np.zeros_like(sd), where=counts) if self.usable else np.zeros_like(sd)
        self._origin: NDArray[np.float64] | None = None

    def __call__(self, values: NDArray[np.float32]) -> float:
        """Project a volume, relative to the first one projected."""
        if self._origin is None:
            self._origin = values.astype(np.float64)
        return float((self._factors * (values - self._origin)).sum())


@dataclass
class _Published:
    """What has been said of an image so far."""

    onset_s: float
    score: Score | None = None


class Separate:
    """The method behind ``Scorer(method="deconvolve")``.

    Parameters
    ----------
    weights : ndarray, float64 (voxels,)
        The map inside the mask.
    tr_s : float
        Repetition time, seconds.
    duration_s : float
        How long an image is shown, seconds.
    penalty : ndarray, float64 (p,)
        Of drift and motion terms, for the baseline.
    known : tuple of two ndarray, float64 (voxels,), optional
        Noise standard deviation of each voxel and the reference volume, known beforehand; the noise is taken to scale with the signal.
    grid : Grid, optional
        Parameters that the deconvolution considers.
    """

    def __init__(
        self,
        weights: NDArray[np.float64],
        tr_s: float,
        duration_s: float,
        penalty: NDArray[np.float64],
        known: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
        grid: Grid | None = None,
    ) -> None:
        self._weights, self._tr_s, self._duration_s = weights, tr_s, duration_s
        self._projection: Projection | None = None
        self._known = known
        self._baseline = RunningFit(len(weights), penalty)
        self._waiting: list[tuple[int, NDArray[np.float64], NDArray[np.float32]]] = []
        self._filter = Deconvolver(tr_s, 6, grid)
        self._images: dict[tuple[int, int], _Published] = {}
        self._coming: dict[tuple[int, int], float] = {}
        self._last_motion: NDArray[np.float64] | None = None
        self._last, self._last_used = -1, -1

    def add_onset(self, key: tuple[int, int], onset_s: float) -> list[Score]:
        """Take an image; its scores come with the volumes."""
        self._images[key] = _Published(onset_s)
        self._coming[key] = onset_s
        return []

    def add_volume(self, index: int, motion_mm: NDArray[np.float64], values: NDArray[np.float32] | None) -> list[Score]:
        """Take a volume, None where there is none to use; give the scores that are ready or have improved."""
        late = index <= self._last
        self._last = max(self._last, index)
        if values is not None and not late and not self._spike(motion_mm):
            self._waiting.append((index, motion_mm, values))
            if self._projection is None and self._known is not None:
                self._take_scale(values, *self._known)
            if self._projection is None:
                self._baseline.add(np.concatenate([[index * self._tr_s / 60.0], motion_mm]), values)
        if self._projection is None and (self._last + 1) * self._tr_s >= BASELINE_S:
            self._fix_scale()
        if self._projection is None:
            return []
        self._drain()
        return self._publish((self._last + 0.5) * self._tr_s)

    def settle(self, final: bool = False) -> list[Score]:
        """With `final`: every image that has no score yet, and the last word on all others where it differs."""
        if not final:
            return []
        if self._projection is None:
            self._fix_scale()
            self._drain()
        return self._publish(math.inf, everything=True)

    def _take_scale(self, values: NDArray[np.float32], sd: NDArray[np.float64], reference: NDArray[np.float64]) -> None:
        """Use the noise known beforehand, scaled to the first volume's signal."""
        signal = reference > 0
        gain = float(np.median(values[signal] / reference[signal])) if signal.any() else 0.0
        if gain > 0:
            self._projection = Projection(self._weights, sd * gain)

    def _fix_scale(self) -> None:
        """Fix each voxel's standard deviation from the baseline, drawn towards the median voxel's as it is short."""
        variance = self._baseline.sd() ** 2
        varies = variance > 0
        if varies.any():
            n = self._baseline.volumes
            variance[varies] = (n * variance[varies] + _PRIOR_VOLUMES * np.median(variance[varies])) / (n + _PRIOR_VOLUMES)
            self._projection = Projection(self._weights, np.sqrt(variance))

    def _drain(self) -> None:
        """Give the volumes that wait to the filter."""
        if self._projection is None or not self._projection.usable:
            return
        for index, motion_mm, values in self._waiting:
            t_s = (index + 0.5) * self._tr_s
            for key, onset_s in sorted(self._coming.items(), key=lambda item: (item[1], item[0])):
                if onset_s <= t_s:
                    self._filter.add_image(key, onset_s, self._duration_s)
                    del self._coming[key]
            self._filter.add_volume(t_s, self._projection(values), motion_mm)
            self._last_used = index
        self._waiting.clear()

    def _spike(self, motion_mm: NDArray[np.float64]) -> bool:
        """Say whether the head jumped since the last volume."""
        last, self._last_motion = self._last_motion, motion_mm
        return last is not None and float(np.abs(motion_mm - last).sum()) > SPIKE_MM

    def _publish(self, seen_s: float, everything: bool = False) -> list[Score]:
        """Scores of images that are ready and not published, or better than what was published."""
        due = {
            key: image
            for key, image in self._images.items()
            if everything or (seen_s >= image.onset_s + FIRST_S and (image.score is None or seen_s <= image.onset_s + LAST_S + self._tr_s))
        }
        if not due:
            return []
        amplitudes = self._filter.amplitudes(past=everything)
        scores = []
        for key, image in due.items():
            score = self._score(key, image, amplitudes.get(key))
            if score is not None:
                image.score = score
                scores.append(score)
        return scores

    def _score(self, key: tuple[int, int], image: _Published, found: Amplitude | None) -> Score | None:
        """Make a score of an amplitude; None where it says no more than what was published."""
        old = image.score
        revision = 0 if old is None else old.revision + 1
        if found is None or found.volumes == 0:
            return Score(key, image.onset_s, math.nan, math.nan, 0, -1, revision) if old is None else None
        if old is not None and found.se > IMPROVED * old.score_se and abs(found.value - old.score) < 0.5 * old.score_se:
            return None
        return Score(key, image.onset_s, found.value, found.se, found.volumes, self._last_used, revision)
