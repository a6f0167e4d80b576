"""Scores whose errors go together: what the volumes alone say of each image, and how its error follows from those of the images before it.

Neighbouring images' responses overlap, and all those of some minutes share drift, so errors of scores are correlated. Decoding says so
image by image, in the order of the onsets (:mod:`rtevo.decode.likelihood`): error = sum over the errors before it + something of its own.
With ``A`` the unit lower triangular matrix of these sums and ``D`` the variances of what is each one's own, the covariance is
``inv(A) D inv(A)'`` (M. Pourahmadi 1999, doi:10.1093/biomet/86.3.677). Probes are part of it though nothing is evolved from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

__all__ = ["Link", "Together"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """What the volumes alone say of one image.

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
        """Make one of what decoding has published; None where it knows nothing of errors that go together."""
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
        """Take an image's link, or a better one; `number` is its candidate's, -1 for a probe."""
        self._links[(run, *key)] = number, link

    def of(self, numbers: NDArray[np.int64], fitness: Array, fitness_se: Array) -> tuple[Array, Array] | None:
        """Values of some candidates and their errors' covariance, float64 (n,) and (n, n).

        Parameters
        ----------
        numbers : ndarray, int64 (n,)
        fitness, fitness_se : ndarray, float64 (n,)
            What is known of those that are not linked; theirs are independent errors.

        Returns
        -------
        tuple or None
            None where none of them is linked.
        """
        order = sorted(self._links.items(), key=lambda item: (item[0][0], item[1][1].onset_s, item[0][1:]))
        rows = {number: row for row, (_, (number, _)) in enumerate(order) if number >= 0}
        linked = np.array([int(number) in rows for number in numbers], bool)
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
        at = np.array([rows[int(number)] for number in numbers[linked]], np.int64)
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
