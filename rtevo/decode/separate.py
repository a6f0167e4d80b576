"""Scores from separated responses: overlap with neighbouring images resolved, with a standard error, refined as volumes arrive.

Everything from a volume to an amplitude is linear, so each volume is projected on the weight map first: the sum over the mask of
weight times value over the voxel's standard deviation. One time series per map is left, which :class:`rtevo.decode.deconvolve.Deconvolver`
takes apart. That is exact for given standard deviations, which is why they are fixed once, after a baseline (or come with the
decoder): changing them would change the scale of a series that is already half taken apart.

With `pattern` the voxels are taken apart too, and the score is the correlation of an image's pattern with the map: the projection over the
pattern's length, so how strong the response is over the whole mask does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.decode.deconvolve import Amplitude, Deconvolver
from rtevo.decode.grid import Grid, Response
from rtevo.decode.hrf import Shape
from rtevo.decode.learnt import Learnt, checked, of_part, prefixed
from rtevo.decode.likelihood import Free
from rtevo.decode.nuisance import DRIFT_SD, MOTION_SD, Nuisance, penalties
from rtevo.decode.running import RunningFit
from rtevo.decode.score import Score

__all__ = ["Projection", "Separate", "Used"]

Array = NDArray[np.float64]
BASELINE_S = 20.0
"""Length of the baseline, if the decoder has no standard deviations."""
FIRST_S = 8.0
"""Default time after the onset until which a response must have been seen before its score is published."""
REVISED = 64
"""Number of the latest images with a passed response that are still revised, as volumes inform on what all images share."""
IMPROVED, MOVED = 0.9, 0.25
"""A revision is published when its standard error is at most this part of the one published, or the score has moved by this part of it."""
WHOLE_S = 16.0
"""Time after its end when an image is published once more: its response by the volumes alone is then complete."""
Used = tuple[int, float, Array]
"""A volume's number, its projection, and the head's motion, (6,) mm."""
_PRIOR_VOLUMES = 10.0  # volumes' worth of evidence that a voxel's variance is the median voxel's


class Projection:
    """Weighted sum over the voxels, in units of one voxel's noise standard deviation.

    Parameters
    ----------
    weights : ndarray, float64 (voxels,)
        The map inside the mask. Its mean is taken out, as in a correlation, so that changes common to all voxels do not count.
    sd : ndarray, float64 (voxels,)
        Standard deviation of each voxel; 0: the voxel does not count.
    unit : float
        The sum is divided by this: the noise of the projection, where it is known.
    """

    def __init__(self, weights: Array, sd: Array, unit: float = 1.0) -> None:
        self._unit, self.sd = unit, sd
        counts = sd > 0
        centred = np.where(counts, weights - weights[counts].mean() if counts.any() else 0.0, 0.0)
        norm = math.sqrt(float((centred**2).sum()))
        self.usable = norm > 0
        self._map = centred / norm if self.usable else centred
        self._per_sd = np.divide(1.0, sd, out=np.zeros_like(sd), where=counts)
        self._factors = self._map * self._per_sd
        self._counts = counts
        self._origin: Array | None = None

    def __call__(self, values: NDArray[np.float32]) -> float:
        """Project a volume, relative to the first one projected."""
        return float((self._factors * self._change(values)).sum()) / self._unit

    def standardised(self, values: NDArray[np.float32]) -> Array:
        """Return a volume's voxels relative to the first one's, in standard deviations, float64 (voxels,)."""
        return np.asarray(self._change(values) * self._per_sd, np.float64)

    def compare(self, pattern: Array, amplitude: Amplitude) -> tuple[float, float]:
        """Correlate a pattern with the map; return that and its standard error, to first order."""
        centred = np.where(self._counts, pattern - pattern[self._counts].mean(), 0.0)
        length = math.sqrt(float((centred**2).sum()))
        if not length > 0:
            return math.nan, math.nan
        return float((self._map * centred).sum()) / length, amplitude.se_apart * self._unit / length

    @property
    def origin(self) -> Array:
        """The first volume that was projected, float64 (voxels,); empty before it."""
        return np.zeros(0) if self._origin is None else self._origin

    def begin_at(self, origin: Array) -> None:
        """Use an earlier run's first volume as the first."""
        self._origin = origin

    def _change(self, values: NDArray[np.float32]) -> Array:
        if self._origin is None:
            self._origin = values.astype(np.float64)
        return np.asarray(values - self._origin, np.float64)


@dataclass
class _Published:
    """What has been said of an image so far."""

    onset_s: float
    score: Score | None = None
    whole: bool = False


class Separate:
    """The method behind ``Scorer(method="deconvolve")`` and ``"pattern"``.

    Parameters
    ----------
    weights : ndarray, float64 (voxels,)
        The map inside the mask.
    tr_s : float
        Repetition time, seconds.
    duration_s : float
        How long an image is shown, seconds.
    nuisance : Nuisance
        Motion and drift terms, and which volumes are left out.
    first_s : float
        When an image is first scored, seconds after its onset.
    pattern : bool
        Score by correlation with the map.
    shape : str
        Of the response, see :func:`rtevo.decode.hrf.basis`.
    known : tuple of two ndarray, float64 (voxels,), optional
        Noise standard deviation of each voxel and the reference volume, known beforehand; the noise is taken to scale with the signal.
    grid : Grid, optional
        Parameters that the deconvolution considers.
    left_out : list of int, optional
        Takes the indices of volumes that are left out because those before make them incredible.
    unit : float
        Of the projection, see :class:`Projection`.
    """

    def __init__(
        self,
        weights: Array,
        tr_s: float,
        duration_s: float,
        nuisance: Nuisance,
        *,
        first_s: float = FIRST_S,
        pattern: bool = False,
        shape: Shape = "canonical",
        known: tuple[Array, Array] | None = None,
        grid: Grid | None = None,
        left_out: list[int] | None = None,
        unit: float = 1.0,
    ) -> None:
        self._unit = unit
        self._left_out = [] if left_out is None else left_out
        self._weights, self._tr_s, self._duration_s = weights, tr_s, duration_s
        self._first_s = first_s
        self._pattern, self._nuisance = pattern, nuisance
        self._projection: Projection | None = None
        self._known = known
        self._baseline = RunningFit(len(weights), penalties(DRIFT_SD, MOTION_SD))
        self._waiting: list[tuple[int, Array, NDArray[np.float32]]] = []
        motion, drift, groups = nuisance.motion, nuisance.drift, nuisance.groups
        self._filter = Deconvolver(tr_s, motion, grid, time_terms=drift, shape=shape, nuisance_terms=groups)
        free = None if pattern else Free(tr_s, motion, self._filter.grid, time_terms=drift, shape=shape, nuisance_terms=groups)
        self._free = free
        self._images: dict[tuple[int, int], _Published] = {}
        self._open: dict[tuple[int, int], _Published] = {}  # those of which more may be said
        self._coming: dict[tuple[int, int], float] = {}
        self._taken: dict[tuple[int, int], float] = {}  # how long an image was shown that was taken away
        self._last, self._last_used, self._began = -1, -1, 0
        self._used: list[Used] = []

    def add_onset(self, key: tuple[int, int], onset_s: float) -> list[Score]:
        """Add an image; its scores come with the volumes."""
        self._images[key] = self._open[key] = _Published(onset_s)
        self._coming[key] = onset_s
        return []

    def shown_for(self, key: tuple[int, int], shown_s: float) -> None:
        """Record that an image was taken away before its time."""
        self._taken[key] = shown_s
        for each in (self._filter, self._free):
            if each is not None:
                each.shown_for(key, shown_s)

    def add_volume(self, index: int, motion_mm: Array, values: NDArray[np.float32] | None, others: ArrayLike = ()) -> list[Score]:
        """Add a volume, None if there is none to use, and its nuisance terms; return the scores that are ready or have improved."""
        late = index <= self._last
        self._last = max(self._last, index)
        if values is not None and not late and not self._nuisance.spike(motion_mm):
            self._waiting.append((index, self._nuisance.terms(index, others), values))
            if self._projection is None and self._known is not None:
                self._take_scale(values, *self._known)
            if self._projection is None:
                self._baseline.add(np.concatenate([[index * self._tr_s / 60.0], motion_mm]), values)
        if self._projection is None and (self._last + 1 - self._began) * self._tr_s >= BASELINE_S:
            self._fix_scale()
        if self._projection is None:
            return []
        self._drain()
        return self._publish((self._last + 0.5) * self._tr_s)

    def settle(self, final: bool = False) -> list[Score]:
        """With `final`: every image that has no score yet, and the last word on all others where it differs."""
        if not final:
            return []
        if not self._images:
            return []
        if self._projection is None:
            self._fix_scale()
            self._drain()
        return self._publish(math.inf, everything=True)

    def interrupt(self) -> None:
        """See :meth:`rtevo.decode.scorer.Scorer.interrupt`."""
        self._coming.clear()
        self._waiting.clear()
        self._began = self._last + 1
        self._baseline = RunningFit(len(self._weights), penalties(DRIFT_SD, MOTION_SD))
        self._nuisance.interrupt()
        self._filter.interrupt()
        if self._free is not None:
            self._free.interrupt()

    def learnt(self) -> Learnt:
        """See :meth:`rtevo.decode.scorer.Scorer.learnt`; nothing where the voxels' scale was not known yet."""
        if self._projection is None or not len(self._projection.origin):
            return {}
        free = {} if self._free is None else prefixed("free", self._free.learnt())
        return {"sd": self._projection.sd, "origin": self._projection.origin, **prefixed("filter", self._filter.learnt()), **free}

    def take_over(self, learnt: Learnt) -> None:
        """See :meth:`rtevo.decode.scorer.Scorer.take_over`."""
        if not learnt:
            return
        found = checked(learnt, {"sd": self._weights.shape, "origin": self._weights.shape})
        self._filter.take_over(of_part("filter", learnt))
        if self._free is not None:
            self._free.take_over(of_part("free", learnt))
        self._projection = Projection(self._weights, found["sd"], self._unit)
        self._projection.begin_at(found["origin"])

    def there(self) -> list[float]:
        """See :meth:`rtevo.decode.scorer.Scorer.there`."""
        return self._filter.there()

    def used(self) -> list[Used]:
        """See :meth:`rtevo.decode.scorer.Scorer.used`."""
        used, self._used = self._used, []
        return used

    def noise(self) -> tuple[float, float]:
        """See :meth:`rtevo.decode.scorer.Scorer.noise`."""
        return self._filter.noise()

    def response(self) -> Response:
        """See :meth:`rtevo.decode.scorer.Scorer.response`."""
        return self._filter.response()

    def reliability(self) -> float:
        """Expected squared correlation of the scores so far with the responses; NaN before the third."""
        scores = [image.score for image in self._images.values() if image.score is not None and math.isfinite(image.score.score)]
        if len(scores) < 3:
            return math.nan
        spread = float(np.var([score.score for score in scores], ddof=1))  # posterior means: the responses spread by the errors more
        return spread / (spread + float(np.mean([score.score_se**2 for score in scores])))

    def _take_scale(self, values: NDArray[np.float32], sd: Array, reference: Array) -> None:
        """Use the noise known beforehand, scaled to the first volume's signal."""
        signal = reference > 0
        gain = float(np.median(values[signal] / reference[signal])) if signal.any() else 0.0
        if gain > 0:
            self._projection = Projection(self._weights, sd * gain, self._unit)

    def _fix_scale(self) -> None:
        """Fix each voxel's standard deviation from the baseline, drawn towards the median voxel's as it is short."""
        variance = self._baseline.sd() ** 2
        varies = variance > 0
        if varies.any():
            n = self._baseline.volumes
            variance[varies] = (n * variance[varies] + _PRIOR_VOLUMES * np.median(variance[varies])) / (n + _PRIOR_VOLUMES)
            self._projection = Projection(self._weights, np.sqrt(variance), self._unit)

    def _drain(self) -> None:
        """Pass the waiting volumes to the filter."""
        if self._projection is None or not self._projection.usable:
            return
        for index, terms, values in self._waiting:
            t_s = (index + 0.5) * self._tr_s
            for key, onset_s in sorted(self._coming.items(), key=lambda item: (item[1], item[0])):
                if onset_s <= t_s:
                    self._filter.add_image(key, onset_s, self._duration_s)
                    if self._free is not None:
                        self._free.add_image(key, onset_s, self._duration_s)
                    if key in self._taken:
                        self.shown_for(key, self._taken[key])
                    del self._coming[key]
            value = self._projection(values)
            if self._filter.add_volume(t_s, value, terms, self._projection.standardised(values) if self._pattern else None):
                self._last_used = index
                self._used.append((index, value, terms[:6]))
                if self._free is not None:
                    self._free.follow(self._filter)
                    self._free.add_volume(t_s, value, terms)
            else:
                self._left_out.append(index)
        self._waiting.clear()

    def _publish(self, seen_s: float, everything: bool = False) -> list[Score]:
        """Scores of images that are ready and not published, or better than what was published."""
        amplitudes = self._filter.amplitudes(None if everything else REVISED)
        found: list[tuple[_Published, Score]] = []
        for key, image in list((self._images if everything else self._open).items()):
            if not everything and seen_s < image.onset_s + self._first_s:
                continue
            if not everything and image.score is not None and key not in amplitudes:
                del self._open[key]
                continue
            whole = not image.whole and seen_s >= image.onset_s + self._duration_s + WHOLE_S
            score = self._score(key, image, amplitudes.get(key), whole)
            image.whole |= whole
            if score is not None:
                found.append((image, score))
        if found:
            self._complete(found)
        return [image.score for image, _ in found if image.score is not None]

    def _complete(self, found: Sequence[tuple[_Published, Score]]) -> None:
        """Add to scores what is known of the response, and what the volumes alone say."""
        known = self._filter.response()
        response = {name: getattr(known, name) for name in ("lag_s", "lag_sd_s", "width", "width_sd")} | {"nuisance": tuple(self.there())}
        now = {score.key for _, score in found if math.isfinite(score.score)}
        here = {} if self._free is None else self._free.measured(lambda key: key in now or self._said(key))
        for image, score in found:
            own, old = here.get(score.key), image.score
            if own is not None:
                image.score = replace(score, **response, measured=own.value, measured_se=own.se, neighbours=own.neighbours)
            elif old is not None:  # its response has passed: the estimate by the volumes stays
                kept = {name: getattr(old, name) for name in ("measured", "measured_se", "neighbours")}
                image.score = replace(score, **response, **kept)
            else:
                image.score = replace(score, **response)

    def _said(self, key: tuple[int, int]) -> bool:
        """Whether an image has a score."""
        score = self._images[key].score
        return score is not None and math.isfinite(score.score)

    def _score(self, key: tuple[int, int], image: _Published, found: Amplitude | None, whole: bool = False) -> Score | None:
        """Make a score of an amplitude; None where it says no more than what was published; `whole`: the response has just been seen."""
        old = image.score
        revision = 0 if old is None else old.revision + 1
        value, error = math.nan, math.nan
        if found is not None and found.volumes > 0:
            value, error = found.value, found.se_apart
            if self._pattern:
                pattern = self._filter.pattern(key)
                if pattern is None or self._projection is None:
                    return None
                value, error = self._projection.compare(pattern, found)
        if math.isnan(value):
            return Score(key, image.onset_s, math.nan, math.nan, 0, -1, revision) if old is None else None
        if old is not None and not whole and error > IMPROVED * old.score_se and abs(value - old.score) < MOVED * old.score_se:
            return None
        assert found is not None
        return Score(key, image.onset_s, value, error, found.volumes, self._last_used, revision)
