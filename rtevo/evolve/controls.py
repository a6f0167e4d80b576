"""What a study needs to tell selection from chance: permuted scores, no selection, another participant's scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.evolve.base import Evolver

__all__ = ["RandomEvolver", "Yoked", "sham"]


def sham(fitness: ArrayLike, rng: np.random.Generator) -> NDArray[np.float64]:
    """Permute the measured fitness values among the candidates that have one: a control without selection.

    Missing values stay where they are, so a sham generation loses the same candidates as a real one.

    Parameters
    ----------
    fitness : array-like of float, (n,)
        NaN or infinite: not measured.
    rng : numpy.random.Generator
        Source of the permutation.

    Returns
    -------
    ndarray, float64 (n,)
        A new array.
    """
    values = np.array(fitness, np.float64)
    measured = np.isfinite(values)
    values[measured] = rng.permutation(values[measured])
    return values


class RandomEvolver(Evolver):
    """No selection: every candidate is drawn from N(0, I), whatever the scores."""

    strategy = "random"

    def _propose(self, n: int) -> NDArray[np.float64]:
        return self._rng.standard_normal((n, self.latent_size))


class Yoked:
    """Another participant's recorded scores in place of this one's: the same course of feedback, unrelated to this brain.

    Parameters
    ----------
    recorded : array-like of float, (n,)
        Scores in the order in which their candidates were asked for; NaN where there was none.

    Raises
    ------
    ValueError
        There are none.
    """

    def __init__(self, recorded: ArrayLike) -> None:
        self._recorded = np.asarray(recorded, np.float64)
        if self._recorded.ndim != 1 or not np.isfinite(self._recorded).any():
            raise ValueError(f"recorded: expected scores (n,), got shape {self._recorded.shape} with none measured")

    def fitness(self, ids: ArrayLike) -> NDArray[np.float64]:
        """Return the recorded scores of candidates by number; NaN past the end of the recording."""
        rows = np.asarray(ids, np.int64)
        inside = rows < len(self._recorded)
        return np.where(inside, self._recorded[np.where(inside, rows, 0)], np.nan)
