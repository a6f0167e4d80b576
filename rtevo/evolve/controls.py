"""Controls that separate selection from chance: permuted scores, no selection, another participant's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.evolve.base import Evolver
from rtevo.records import Projected

__all__ = ["Feedback", "RandomEvolver", "Sham", "Yoked"]


class RandomEvolver(Evolver):
    """No selection: every candidate is drawn from N(0, I), whatever the scores."""

    strategy = "random"

    def _propose(self, n: int) -> NDArray[np.float64]:
        return self._rng.standard_normal((n, self.latent_size))


class Feedback:
    """The fitness that evolution receives when a candidate is scored: here, its score."""

    plain: ClassVar[bool] = True
    """Whether the fitness is the candidate's own score as measured."""

    def take(self, candidate: int, score: float, score_se: float) -> list[tuple[int, float, float]]:
        """Process one score, new or revised.

        Parameters
        ----------
        candidate : int
            Number in the run, from 0.
        score, score_se : float
            NaN where it is missing, or its standard error is not known.

        Returns
        -------
        list of (int, float, float)
            Candidate, fitness and standard error, of every candidate for which something has changed.
        """
        return [(candidate, score, score_se)]

    def attribute(self, candidate: int) -> list[tuple[int, int]]:
        """Process a candidate whose image has appeared, if evolution uses volumes; return for whom its response counts: here, for itself.

        Returns
        -------
        list of (int, int)
            Candidate that was shown, and the one to whom the response counts from now on, of all for which that has changed.
        """
        return [(candidate, candidate)]

    def volume(self, volume: Projected) -> Projected | None:
        """Return the volume that evolution uses in place of this one: here, the same; None: none."""
        return volume


class Sham(Feedback):
    """Scores permuted among all candidates that have one: a control without selection.

    The permutation grows with every score (R. A. Fisher, F. Yates 1938, in the form that needs no end: D. E. Knuth, The Art of Computer
    Programming 2, 3.4.2), and is a uniformly random one of the scores so far at any time. It is over the whole run, not within
    generations, whose means would still show a strategy that remembers them which way is up.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the permutation.
    shown : numpy.random.Generator, optional
        Source of another permutation, of the shown images, if evolution uses volumes.
    """

    plain = False

    def __init__(self, rng: np.random.Generator, shown: np.random.Generator | None = None) -> None:
        self._rng, self._shown = rng, shown
        self._order: list[int] = []
        self._holds: dict[int, int] = {}  # candidate -> whose score it is given
        self._responses: list[list[int]] = []  # candidate that was shown, and to whom its response counts
        self._scores: dict[int, tuple[float, float]] = {}

    def take(self, candidate: int, score: float, score_se: float) -> list[tuple[int, float, float]]:
        """Process one score; two candidates change, or the one that holds a revised score."""
        if candidate not in self._scores:
            if not math.isfinite(score):
                return [(candidate, math.nan, math.nan)]
            self._order.append(candidate)
            other = self._order[int(self._rng.integers(len(self._order)))]
            self._holds[candidate] = self._holds.get(other, candidate)
            self._holds[other] = candidate
            changed = {candidate, other}
        else:
            changed = {holder for holder, whose in self._holds.items() if whose == candidate}
        self._scores[candidate] = (score, score_se)
        return [(holder, *self._scores[self._holds[holder]]) for holder in sorted(changed)]

    def attribute(self, candidate: int) -> list[tuple[int, int]]:
        """Permute responses among all images so far, in the same way; two change."""
        if self._shown is None:
            return super().attribute(candidate)
        own = [candidate, candidate]
        self._responses.append(own)
        other = self._responses[int(self._shown.integers(len(self._responses)))]
        own[1], other[1] = other[1], own[1]
        return [(shown, to) for shown, to in ((other, own) if other is not own else (own,))]


class Yoked(Feedback):
    """Another participant's recorded scores in place of this one's: the same course of feedback, unrelated to this brain.

    Parameters
    ----------
    recorded : array-like of float, (n,)
        Scores in the order in which their candidates were requested; NaN if there was none.
    volumes : mapping of int to Projected, optional
        The volumes of these scores, by their number in the session, if evolution uses volumes.

    Raises
    ------
    ValueError
        There are none.
    """

    plain = False

    def __init__(self, recorded: ArrayLike, volumes: Mapping[int, Projected] | None = None) -> None:
        self._volumes = dict(volumes or {})
        self._recorded = np.asarray(recorded, np.float64)
        if self._recorded.ndim != 1 or not np.isfinite(self._recorded).any():
            raise ValueError(f"recorded: expected scores (n,), got shape {self._recorded.shape} with none measured")

    def take(self, candidate: int, score: float, score_se: float) -> list[tuple[int, float, float]]:
        """Return the recorded score of that candidate; NaN past the end of the recording."""
        recorded = self._recorded[candidate] if candidate < len(self._recorded) else math.nan
        return [(candidate, float(recorded), math.nan)]

    def volume(self, volume: Projected) -> Projected | None:
        """Return the recorded volume of that number; None if it was left out, and past the end of the recording."""
        recorded = self._volumes.get(volume.index)
        return None if recorded is None else replace(recorded, t_s=volume.t_s)
