"""Scores of an objective over several maps, and of each map by itself, from volumes that are aligned and smoothed once.

A weighted sum of maps is a map: its weights over the noise are the sum of theirs. So the linear part of an objective is one projection,
taken apart by one filter of its own, whose error holds however the maps' noise is correlated, because it is the noise of that projection.
The squared distance of a map from its mean (``keep``) and ranks are functions of maps' scores; their errors follow (of the square exactly,
for a normal error; of ranks to first order), with the correlation of the maps' noise as :mod:`rtevo.decode.shared` finds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from rtevo.decode.folder import Decoder
from rtevo.decode.grid import Response
from rtevo.decode.learnt import Learnt, of_part, prefixed
from rtevo.decode.nuisance import motion_in_mm
from rtevo.decode.score import Score
from rtevo.decode.scorer import Scorer
from rtevo.decode.separate import IMPROVED, MOVED, Used
from rtevo.decode.shared import SharedNoise, unit_map
from rtevo.errors import GeometryError
from rtevo.objective import Goal

__all__ = ["SeveralScorer", "combined", "objective_values", "scorer_of"]

Array = NDArray[np.float64]
Key = tuple[int, int]
FIRST_IMAGES = 20
"""Number of first images, not yet moved by evolution, whose mean ``keep`` keeps a map near."""
_MOVED_SD = 0.1  # where scores have no errors: a revision is published when it has moved by this part of their spread


def scorer_of(decoder: Decoder, tr_s: float, **settings: Any) -> Scorer | SeveralScorer:
    """Return the scorer of a decoder: of its one map, or of its objective over several; `settings` are those of :class:`Scorer`."""
    return SeveralScorer(decoder, tr_s, **settings) if decoder.goal is not None else Scorer(decoder, tr_s, **settings)


def combined(maps: Sequence[Decoder], weights: Sequence[float]) -> Decoder:
    """Return the map whose score is a weighted sum of maps' scores.

    Parameters
    ----------
    maps : sequence of Decoder
        On one grid and reference.
    weights : sequence of float

    Returns
    -------
    Decoder
        Its `unit` makes its projection the sum of theirs, each in its own unit. Voxels that only some of the maps count are counted by it.
    """
    shape = maps[0].mask.shape
    known = all(one.noise_sd is not None for one in maps)
    noise, density = np.zeros(shape), np.zeros(shape)
    for one, weight in zip(maps, weights, strict=True):
        if weight:
            own, sd = unit_map(one)
            spread = np.zeros(shape)
            spread[one.mask] = sd
            noise = np.where(noise > 0, noise, spread)
            density[one.mask] += np.divide(weight * own, sd * float(one.settings.get("unit", 1.0)), out=np.zeros_like(own), where=sd > 0)
    mask = np.any([one.mask for one, weight in zip(maps, weights, strict=True) if weight], axis=0)
    values = density * noise
    counts = mask & (noise > 0)
    length = math.sqrt(float(((values[counts] - values[counts].mean()) ** 2).sum()))
    settings = {**maps[0].settings, "unit": 1.0 / length if length > 0 else 1.0}
    found = (values / length if length > 0 else values).astype(np.float32)
    return Decoder(maps[0].grid, maps[0].reference, mask, found, "objective", settings, noise.astype(np.float32) if known else None)


class SeveralScorer:
    """Scores of an objective over several maps; used like :class:`Scorer`, which see for the parameters.

    Each score says those of the maps too (`Score.maps`). A revision is published when the objective's score has improved or moved, and at
    the end when a map's has.

    Parameters
    ----------
    decoder : Decoder
        With a `goal` and its `maps`.
    tr_s : float
    **settings
        Of :class:`Scorer`.

    Attributes
    ----------
    left_out : list of int
        As of :class:`Scorer`, of the objective's own projection (of the first map's, where it has none).
    """

    def __init__(self, decoder: Decoder, tr_s: float, **settings: Any) -> None:
        if decoder.goal is None:
            raise ValueError("decoder: expected one with an objective over its maps, got one without")
        self._goal: Goal = decoder.goal
        self.each = [Scorer(one, tr_s, **settings) for one in decoder.maps]
        used = [k for k, weight in enumerate(self._goal.linear) if weight]
        self._main: Scorer | None = self.each[used[0]] if len(used) == 1 else None
        self._factor = self._goal.linear[used[0]] if len(used) == 1 else 1.0
        scorers, masks = list(self.each), [one.mask for one in decoder.maps]
        self._sum: Scorer | None = None
        if len(used) > 1:
            sum_of = combined(decoder.maps, self._goal.linear)
            self._main = self._sum = Scorer(sum_of, tr_s, **settings)
            scorers.append(self._sum)
            masks.append(sum_of.mask)
        self._scorers, self._first_of = scorers, [next(k for k, other in enumerate(masks) if np.array_equal(other, own)) for own in masks]
        self._shape = decoder.grid.shape
        self.left_out = (self._main or self.each[0]).left_out
        duration_s = float(settings.get("duration_s", 3.0))
        self._shared = None if self._goal.is_linear else SharedNoise(decoder.maps, tr_s, duration_s)
        self._latest: list[dict[Key, Score]] = [{} for _ in self.each]  # of each map
        self._sums: dict[Key, Score] = {}  # of the linear part
        self._published: dict[Key, Score] = {}

    def add_volume(self, index: int, volume: NDArray[Any] | None, motion: ArrayLike, others: ArrayLike = ()) -> None:
        """Add one volume, see :meth:`Scorer.add_volume`."""
        if volume is not None and volume.shape != self._shape:
            raise GeometryError(f"volume {index}: expected the decoder's shape {self._shape}, found {volume.shape}")
        motion_mm = motion_in_mm(motion)
        usable = volume is not None and np.isfinite(motion_mm).all()
        values: list[NDArray[np.float32] | None] = []
        for scorer, first in zip(self._scorers, self._first_of, strict=True):
            if first < len(values):
                values.append(values[first])
            else:
                values.append(scorer.values(index, volume) if usable and volume is not None else None)
            scorer.add_values(index, values[-1], motion, volume is not None, others)
        own = [each for each in values[: len(self.each)] if each is not None]
        if self._shared is not None and len(own) == len(self.each) and index not in self.left_out:
            self._shared.add_volume(index, own, motion_mm)

    def add_onset(self, key: Key, onset_s: float) -> None:
        """Add an image that was shown, see :meth:`Scorer.add_onset`."""
        for scorer in self._scorers:
            scorer.add_onset(key, onset_s)
        if self._shared is not None:
            self._shared.add_onset(float(onset_s))

    def shown_for(self, key: Key, shown_s: float) -> None:
        """Record that an image was taken away before its time, see :meth:`Scorer.shown_for`."""
        for scorer in self._scorers:
            scorer.shown_for(key, shown_s)

    def there(self) -> list[float]:
        """Probability that each group of nuisance terms is there, see :meth:`Scorer.there`: as :meth:`response`."""
        return (self._main or self.each[0]).there()

    def response(self) -> Response | None:
        """What is known of the response: of the objective's own projection, or of the first map's."""
        return (self._main or self.each[0]).response()

    def used(self) -> list[Used]:
        """Return the volumes used since the last call, see :meth:`Scorer.used`: of a weighted sum of maps."""
        for scorer in self.each:
            if scorer is not self._main:
                scorer.used()
        return (
            []
            if self._main is None
            else [(index, math.copysign(value, value * self._factor), motion) for index, value, motion in self._main.used()]
        )

    @property
    def undershoot(self) -> float:
        """Of the response that is fitted, see :meth:`Scorer.undershoot`."""
        return (self._main or self.each[0]).undershoot

    def noise(self) -> tuple[float, float]:
        """What is expected of the noise, see :meth:`Scorer.noise`."""
        return (self._main or self.each[0]).noise()

    def ready(self, final: bool = False) -> list[Score]:
        """Return the scores that have become ready, see :meth:`Scorer.ready`."""
        news: set[Key] = set()
        for scorer, latest in zip(self.each, self._latest, strict=True):
            for score in scorer.ready(final):
                latest[score.key] = score
                if scorer is self._main:
                    self._sums[score.key] = score
                    news.add(score.key)
                elif not self._goal.is_linear or final:
                    news.add(score.key)
        for score in [] if self._sum is None else self._sum.ready(final):
            self._sums[score.key] = score
            news.add(score.key)
        found = self._linear(news) if self._goal.is_linear else self._other(final) if news else []
        for score in found:
            self._published[score.key] = score
        return sorted(found, key=lambda score: (score.onset_s, score.key, score.revision))

    def _linear(self, news: set[Key]) -> list[Score]:
        """Scores of a weighted sum, of the images of which there is news."""
        made = []
        for key in news & self._sums.keys():
            one = self._sums[key]
            value, error = self._factor * one.score, abs(self._factor) * one.score_se
            made.append(self._score(key, one, value, error, self._factor))
        return made

    def _other(self, final: bool) -> list[Score]:
        """Scores of an objective that is no weighted sum: those that are new, have improved or have moved."""
        needed = [*self._latest, *([self._sums] if self._main is not None else [])]
        keys = [key for key in needed[0] if all(key in each for each in needed)]
        keys.sort(key=lambda key: (needed[0][key].onset_s, key))
        if not keys or self._shared is None:
            return []
        scores, errors = (np.array([[getattr(each[key], name) for each in self._latest] for key in keys]) for name in ("score", "score_se"))
        sums = (
            np.array([[self._factor * self._sums[k].score, abs(self._factor) * self._sums[k].score_se] for k in keys])
            if self._sums
            else None
        )
        values, ses = objective_values(self._goal, scores, errors, sums, self._shared.covariance())
        spread = float(np.nanstd(values)) if np.isfinite(values).any() else math.nan
        made = []
        for key, value, error in zip(keys, values.tolist(), ses.tolist(), strict=True):
            one = max((each[key] for each in needed), key=lambda score: score.last_volume_index)
            score = self._score(key, one, value, error)
            if _worth(self._published.get(key), score, spread, final):
                made.append(score)
        return made

    def _score(self, key: Key, one: Score, value: float, error: float, factor: float | None = None) -> Score:
        """Make the next score of an image, with those of the maps; `factor`: it is `one` times that."""
        maps = tuple((each[key].score, each[key].score_se) if key in each else (math.nan, math.nan) for each in self._latest)
        before = self._published.get(key)
        number = 0 if before is None else before.revision + 1
        return replace(one, score=value, score_se=error, revision=number, maps=maps, **_as_measured(one, factor))

    def interrupt(self) -> None:
        """See :meth:`Scorer.interrupt`."""
        for scorer in self._scorers:
            scorer.interrupt()
        if self._shared is not None:
            self._shared.interrupt()

    def learnt(self) -> Learnt:
        """See :meth:`Scorer.learnt`."""
        found = {} if self._shared is None else prefixed("shared", self._shared.learnt())
        for number, scorer in enumerate(self._scorers):
            found |= prefixed(str(number), scorer.learnt())
        return found

    def take_over(self, learnt: Learnt) -> None:
        """See :meth:`Scorer.take_over`."""
        for number, scorer in enumerate(self._scorers):
            scorer.take_over(of_part(str(number), learnt))
        if self._shared is not None:
            self._shared.take_over(of_part("shared", learnt))

    def reliability(self) -> float:
        """Expected squared correlation of the scores so far with the responses, see :meth:`Scorer.reliability`."""
        if self._goal.is_linear and self._main is not None:
            return self._main.reliability()
        known = [score for score in self._published.values() if math.isfinite(score.score) and math.isfinite(score.score_se)]
        if len(known) < 3:
            return math.nan
        spread = float(np.var([score.score for score in known], ddof=1))
        return spread / (spread + float(np.mean([score.score_se**2 for score in known])))


def _as_measured(one: Score, factor: float | None) -> dict[str, Any]:
    """What the volumes alone say of a score (`measured`): of one times a factor, that; else it is not known."""
    if factor is None:
        return {"measured": math.nan, "measured_se": math.nan, "neighbours": ()}
    return {"measured": factor * one.measured, "measured_se": abs(factor) * one.measured_se}


def _worth(old: Score | None, new: Score, spread: float, final: bool) -> bool:
    """Whether a score says more than what was published."""
    if old is None:
        return True
    if math.isnan(new.score):
        return False
    if math.isnan(old.score) or (final and (new.score, new.score_se) != (old.score, old.score_se)):
        return True
    step = abs(new.score - old.score)
    if math.isnan(new.score_se) or math.isnan(old.score_se):
        return step > _MOVED_SD * spread
    return new.score_se <= IMPROVED * old.score_se or step >= MOVED * old.score_se


def objective_values(goal: Goal, scores: Array, errors: Array, sums: Array | None, covariance: Array) -> tuple[Array, Array]:
    """Return the values of an objective, and their standard errors.

    Parameters
    ----------
    goal : Goal
        Over K maps.
    scores, errors : ndarray, float64 (n, K)
        Of the maps, in the order of the images; NaN where they are not known.
    sums : ndarray, float64 (n, 2), or None
        Score and error of the goal's linear part, where it has one.
    covariance : ndarray, float64 (K, K)
        Of the maps' noise, see :class:`SharedNoise`.

    Returns
    -------
    values, errors : ndarray, float64 (n,)
        NaN where a score is; errors NaN where one of those that matter is.
    """
    n, count = scores.shape
    linear = np.array(goal.linear)
    mixing = np.vstack([linear if linear.any() else np.zeros(count), np.eye(count)])
    mixed = mixing @ covariance @ mixing.T
    sd = np.sqrt(np.maximum(np.diag(mixed), 1e-30))
    among = mixed / np.outer(sd, sd)  # correlation of noise: the linear part, then the maps
    values, variance = np.zeros(n), np.zeros(n)
    slopes, spreads = np.zeros((n, count + 1)), np.zeros((n, count + 1))
    if sums is not None:
        values, slopes[:, 0], spreads[:, 0] = values + sums[:, 0], 1.0, sums[:, 1]
    for k in range(count):
        spreads[:, k + 1] = errors[:, k] if goal.keep[k] or goal.rank[k] else 0.0
        if goal.keep[k]:
            distance, slope, rest = _distance(scores[:, k], errors[:, k])
            values = values + goal.keep[k] * distance
            slopes[:, k + 1] += goal.keep[k] * slope
            variance = variance + goal.keep[k] ** 2 * rest
        if goal.rank[k]:
            rank, slope, rest = _rank(scores[:, k], errors[:, k])
            values = values + goal.rank[k] * rank
            slopes[:, k + 1] += goal.rank[k] * slope
            variance = variance + goal.rank[k] ** 2 * rest
    scaled = slopes * spreads
    variance = variance + np.einsum("ni,ij,nj->n", scaled, among, scaled)
    return values, np.where(np.isfinite(values), np.sqrt(np.maximum(variance, 0.0)), math.nan)


def _distance(score: Array, error: Array) -> tuple[Array, Array, Array]:
    """Squared distance from the mean of the first images; its slope; the variance that a normal error has beyond the slope's."""
    known = score[np.isfinite(score)][:FIRST_IMAGES]
    away = score - (known.mean() if len(known) else 0.0)
    return away**2 - np.nan_to_num(error) ** 2, 2 * away, 2 * error**4


def _rank(score: Array, error: Array) -> tuple[Array, Array, Array]:
    """Expected rank among all images as a normal quantile; its slope; the variance that so few images leave."""
    known = np.isfinite(score)
    x, s = score[known], np.nan_to_num(error[known])
    n = len(x)
    rank, slope, rest = (np.full(len(score), math.nan) for _ in range(3))
    if not n:
        return rank, slope, rest
    apart = np.sqrt(s[:, np.newaxis] ** 2 + s**2)
    step = x[:, np.newaxis] - x
    ratio = np.divide(step, apart, out=np.sign(step) * 1e9, where=apart > 0)
    share = np.clip(ndtr(ratio).sum(axis=1) / n, 0.5 / n, 1 - 0.5 / n)  # each counts half against itself
    density = np.divide(np.exp(-0.5 * ratio**2), apart * math.sqrt(2 * math.pi), out=np.zeros_like(apart), where=apart > 0)
    np.fill_diagonal(density, 0.0)
    quantile = ndtri(share)
    per_share = math.sqrt(2 * math.pi) * np.exp(0.5 * quantile**2)
    rank[known], slope[known] = quantile, density.sum(axis=1) / n * per_share
    rest[known] = share * (1 - share) / (n + 1) * per_share**2
    return rank, slope, rest
