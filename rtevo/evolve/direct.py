"""Evolution from the series itself, with no score in between: strategy "direct".

The model of the preference is that of the surrogate; its data are all images' responses by the volumes so far, together and
exactly (:mod:`rtevo.evolve.series`): also of responses of which only a part has been seen, and of images so close to each other that none
of them has a score of its own. Scores of images are still published for people, but evolution does not use them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rtevo.evolve.base import History
from rtevo.evolve.model import Array, Errors, Linear, evidence, one_thread, without_outliers_together
from rtevo.evolve.preference import pooled
from rtevo.evolve.probes import Probes, ProbeScores
from rtevo.evolve.series import Estimate, Series
from rtevo.evolve.surrogate import Surrogate
from rtevo.evolve.together import ManyErrors
from rtevo.records import Projected

__all__ = ["Direct"]

_OWN = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)  # of an amplitude and not the model's, in variances that it would have if all others were known


class Direct(Surrogate):
    """Strategy "direct": parameters of :class:`rtevo.evolve.surrogate.Surrogate`."""

    strategy = "direct"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._series: dict[int, Series] = {}  # by the number of its run's first candidate
        self._known: dict[int, tuple[int, Estimate | None]] = {}  # what was found, and from how many changes
        self._changes: dict[int, int] = {}

    def _of(self, run: int) -> Series:
        """A run's series, which is about to change."""
        self._changes[run] = self._changes.get(run, 0) + 1
        return self._series.setdefault(run, Series())

    def volume(self, run: int, part: int, volume: Projected) -> None:
        """Add a volume; see :meth:`rtevo.evolve.base.Evolver.volume`."""
        self._of(run).add_volume(part, volume)

    def shown(self, run: int, key: tuple[int, int], number: int, onset_s: float, image_s: float) -> None:
        """Add an image that has appeared; see :meth:`rtevo.evolve.base.Evolver.shown`."""
        self._of(run).add_image(key, number, onset_s, image_s)

    def cut_short(self, run: int, key: tuple[int, int], at_s: float) -> None:
        """Record that an image was taken away; see :meth:`rtevo.evolve.base.Evolver.cut_short`."""
        self._of(run).taken(key, at_s)

    def belongs(self, run: int, key: tuple[int, int], number: int) -> None:
        """Set for whom an image's response counts; see :meth:`rtevo.evolve.base.Evolver.belongs`."""
        self._of(run).belongs(key, number)

    def _estimates(self) -> list[Estimate]:
        """The estimates of each run's series."""
        with one_thread():
            for run, series in self._series.items():
                if self._known.get(run, (-1, None))[0] != self._changes.get(run, 0):
                    self._known[run] = self._changes.get(run, 0), series.estimate()
        return [found for _, found in (self._known[run] for run in sorted(self._known)) if found is not None]

    def history(self) -> History:
        """Return the candidates with at least a part of their responses seen."""
        found = self._estimates()
        if not found:
            nothing = np.zeros(0)
            return History(np.zeros(0, np.int64), np.zeros((0, self.latent_size)), nothing, nothing)
        ids = np.concatenate([each.numbers for each in found])
        order = np.argsort(ids, kind="stable")
        errors = np.sqrt(np.concatenate([np.diag(each.covariance) for each in found]))
        return History(ids[order], self._latents[ids[order]], np.concatenate([each.values for each in found])[order], errors[order])

    def together(self, known: History, probes: ProbeScores) -> tuple[Array, Array]:
        """Return the candidates' responses by the volumes, and their errors' covariance; without probes, which are only separated."""
        found = self._estimates()
        ids = np.concatenate([each.numbers for each in found])
        covariance, at = np.zeros((len(ids), len(ids))), 0
        for each in found:
            own = slice(at, at := at + len(each.numbers))
            covariance[own, own] = each.covariance
        order = np.argsort(ids, kind="stable")
        return known.fitness, covariance[np.ix_(order, order)]

    def probes(self) -> ProbeScores:
        """Return no scores: a probe's response is separated from others', and anchors nothing."""
        return Probes().scores(self.latent_size)

    def expected_gain(self, n: int) -> float:
        """Gain expected of the next `n` images, in standard deviations of the response to random images; NaN before the first."""
        known = self.history()
        if len(known.ids) < 2:
            return math.nan
        with one_thread():
            several = pooled(self)
            linear = self.fitted(self.weighted(known))[2] if several is None else several.linear
            return linear.expected_gain(n, np.random.default_rng(self.asked))

    def fitted(self, known: History) -> tuple[Array, Array, Linear, Errors]:
        """Fit the linear model to the responses by the volumes: values, their covariance, model, errors."""
        values, covariance = self.together(known, self.probes())
        believed = _with_own(known.latents, values, covariance, float(np.median([each.alone for each in self._estimates()])))
        return values, covariance, *without_outliers_together(known.latents, values, believed, own=(), kind=ManyErrors)

    def _memory(self) -> dict[str, Any]:
        return {**super()._memory(), "series": {str(run): series.to_state() for run, series in self._series.items()}}

    def _remember(self, memory: Mapping[str, Any]) -> None:
        super()._remember(memory)
        self._series = {int(run): Series.from_state(state) for run, state in memory["series"].items()}


def _with_own(latents: Array, values: Array, covariance: Array, usual: float) -> Array:
    """Add to the covariance what is each image's own and not the model's, as much as is most probable: climb from the middle."""
    tried: dict[int, float] = {}

    def made(number: int) -> Array:
        return np.asarray(covariance + _OWN[number] * usual * np.eye(len(values)), np.float64)

    def worth(number: int) -> float:
        if number not in tried:
            tried[number] = evidence(latents, values, ManyErrors(made(number))) if 0 <= number < len(_OWN) else -math.inf
        return tried[number]

    best = len(_OWN) // 2 - 1
    while (better := max((best, best - 1, best + 1), key=worth)) != best:
        best = better
    return made(best)
