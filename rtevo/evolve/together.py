"""Scores with correlated errors: each image's response by the volumes alone, and how its error depends on those of earlier images.

Neighbouring images' responses overlap, and all those of some minutes share drift, so errors of scores are correlated. Decoding says so
image by image, in the order of the onsets (:mod:`rtevo.decode.likelihood`): error = sum over the errors before it + something of its own.
With ``A`` the unit lower triangular matrix of these sums and ``D`` the variances of what is each one's own, the covariance is
``inv(A) D inv(A)'`` (M. Pourahmadi 1999, doi:10.1093/biomet/86.3.677). Probes are part of it though nothing is evolved from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dtrtri

__all__ = ["Errors", "Link", "ManyErrors", "Pool", "Together"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """One image's response by the volumes alone.

    Parameters
    ----------
    onset_s : float
        When it was shown: images of a run are in this order.
    value : float
        Its response, not drawn to anything.
    se : float
        Standard deviation of its error, those of the images before it being known.
    neighbours : tuple of float
        How its error follows from those of the images before it that are linked, the nearest first.
    """

    onset_s: float
    value: float
    se: float
    neighbours: tuple[float, ...]

    @classmethod
    def of(cls, onset_s: float, value: float, se: float, neighbours: Iterable[float]) -> Link | None:
        """Return the link of a published score; None if decoding does not know the errors' correlations."""
        if not (math.isfinite(value) and math.isfinite(se) and se > 0):
            return None
        own = [float(each) for each in neighbours]
        while own and own[-1] == 0.0:  # what a slot is filled up with
            own.pop()
        return cls(float(onset_s), float(value), float(se), tuple(own)) if np.isfinite(own).all() else None


class Together:
    """The links of all images so far, of one or several runs."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int, int], tuple[int, Link]] = {}

    def add(self, run: int, key: tuple[int, int], number: int, link: Link) -> None:
        """Add an image's link, or a better one; `number` is its candidate's, -1 for a probe."""
        self._links[(run, *key)] = number, link

    def of(
        self, numbers: NDArray[np.int64], fitness: Array, fitness_se: Array, probes: Sequence[tuple[int, int, int]] = ()
    ) -> tuple[Array, Array] | None:
        """Values of some candidates and probes, and their errors' covariance, float64 (n,) and (n, n).

        Parameters
        ----------
        numbers : ndarray, int64 (n - p,)
            Of the candidates.
        fitness, fitness_se : ndarray, float64 (n,)
            What is known of those that are not linked; theirs are independent errors.
        probes : sequence of (int, int, int), (p,)
            Run, generation and candidate of the probes, which come last.

        Returns
        -------
        tuple or None
            None where none of them is linked.
        """
        order = sorted(self._links.items(), key=lambda item: (item[0][0], item[1][1].onset_s, item[0][1:]))
        rows: dict[Any, int] = {number: row for row, (_, (number, _)) in enumerate(order) if number >= 0}
        rows |= {key: row for row, (key, _) in enumerate(order)}
        wanted = [*(int(number) for number in numbers), *probes]
        linked = np.array([each in rows for each in wanted], bool)
        if not linked.any():
            return None
        size = len(order)
        chain, own = np.eye(size), np.empty(size)
        for row, ((run, _, _), (_, link)) in enumerate(order):
            own[row] = link.se
            for back, weight in enumerate(link.neighbours, start=1):
                if back > row or order[row - back][0][0] != run:
                    break
                chain[row, row - back] = -weight
        inverse = solve_triangular(chain, np.diag(own), lower=True, unit_diagonal=True, check_finite=False)
        at = np.array([rows[each] for each in wanted if each in rows], np.int64)
        values = np.where(linked, np.nan, fitness)
        values[linked] = [order[row][1][1].value for row in at]
        known = np.isfinite(fitness_se) & (fitness_se > 0)
        usual = float(np.median(fitness_se[known])) if known.any() else 1.0
        covariance = np.diag(np.where(known, fitness_se, usual) ** 2)
        part = inverse[at]
        covariance[np.ix_(linked, linked)] = part @ part.T
        return values, covariance

    def to_state(self) -> list[list[Any]]:
        """Return everything as plain JSON types."""
        return [[*key, number, link.onset_s, link.value, link.se, list(link.neighbours)] for key, (number, link) in self._links.items()]

    @classmethod
    def from_state(cls, state: Iterable[Iterable[Any]]) -> Together:
        """Continue where :meth:`to_state` left off."""
        made = cls()
        for run, generation, candidate, number, onset_s, value, se, neighbours in state:
            made.add(int(run), (int(generation), int(candidate)), int(number), Link(onset_s, value, se, tuple(neighbours)))
        return made


@dataclass(frozen=True)
class Pool:
    """The run of each of some scores, and its weight.

    Parameters
    ----------
    run : ndarray, int64 (n,)
        0 to the number of runs less one; each has a score.
    weight : ndarray, float64 (n,)
        0 to 1: a score of weight 1/2 counts as half a score (a power prior: J. G. Ibrahim, M.-H. Chen 2000, doi:10.1214/ss/1009212519).
    """

    run: NDArray[np.int64]
    weight: Array

    @property
    def runs(self) -> int:
        """How many there are."""
        return int(self.run.max()) + 1

    def of(self, keep: NDArray[np.int64]) -> Pool:
        """That of some of the scores."""
        return Pool(np.unique(self.run[keep], return_inverse=True)[1].astype(np.int64), self.weight[keep])


class Errors:
    """Correlated errors, within runs with a mean of their own.

    Parameters
    ----------
    covariance : ndarray, float64 (n, n)
        But for a common factor; 0 between runs.
    trust : ndarray, float64 (n,), optional
        Factor, 0 to 1, of what each score adds to those before it: how far it is believed.
    pool : Pool, optional
        Of several runs, or of scores that count less than others.
    """

    def __init__(self, covariance: Array, trust: Array | None = None, pool: Pool | None = None) -> None:
        n = len(covariance)
        least = 1e-9 * float(np.trace(covariance)) / n  # whatever was rounded on the way
        factor = cholesky(covariance + least * np.eye(n), lower=True, check_finite=False)
        rows = self._inverse(factor)
        scale = math.sqrt(float((rows**2).sum()) / n)  # so that a score's weight is 1 on average
        self.trust = np.ones(n) if trust is None else trust
        self.pool = pool
        self._rows = self.trust[:, np.newaxis] * rows / scale
        self.factor = factor * scale / self.trust

    @cached_property
    def covariance(self) -> Array:
        """Of the errors as they are believed, float64 (n, n)."""
        return np.asarray(self.factor @ self.factor.T, np.float64)

    @staticmethod
    def _inverse(factor: Array) -> Array:
        """Invert a lower triangular matrix."""
        return np.asarray(solve_triangular(factor, np.eye(len(factor)), lower=True, check_finite=False), np.float64)

    @property
    def freedom(self) -> float:
        """Scores, as they count, above the means that are found from them."""
        if self.pool is None:
            return len(self.trust) - 1.0
        return max(float(self.pool.weight.sum()) - self.pool.runs, 1.0)

    def means(self) -> list[Array]:
        """What each run's mean adds to each score, whitened (n,); those of different runs are at right angles."""
        if self.pool is None:
            return [np.asarray(self._rows.sum(axis=1), np.float64)]
        return [np.asarray(self._rows[:, self.pool.run == run].sum(axis=1), np.float64) for run in range(self.pool.runs)]

    def whitened(self, features: Array) -> Array:
        """Features (n, k) as they are where errors are independent and of variance 1; the means of runs are taken out."""
        made: Array = self._rows @ features
        for ones in self.means():
            made = made - np.outer(ones, ones @ made / (ones @ ones))
        return made

    def averages(self, values: Array) -> Array:
        """Mean in each run (runs, ...) of values (n, ...), weighted as they are known."""
        return np.array([ones @ (self._rows @ values) / (ones @ ones) for ones in self.means()], np.float64)

    def without_mean(self, values: Array) -> Array:
        """Values (n,) less the mean of their run."""
        averages = self.averages(values)
        return values - (averages[0] if self.pool is None else averages[self.pool.run])

    def together(self) -> Array | float:
        """1 where two scores have the same mean (n, n)."""
        return 1.0 if self.pool is None else (self.pool.run[:, np.newaxis] == self.pool.run).astype(np.float64)

    def of(self, keep: NDArray[np.int64]) -> Errors:
        """Those of some of the scores."""
        return type(self)(self.covariance[np.ix_(keep, keep)], pool=None if self.pool is None else self.pool.of(keep))


class ManyErrors(Errors):
    """The same where there are hundreds: a third of the work, and other last bits."""

    @staticmethod
    def _inverse(factor: Array) -> Array:
        return np.asarray(dtrtri(factor, lower=1)[0], np.float64)
