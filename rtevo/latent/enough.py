"""Sufficient numbers of pictures and components for a latent space: from the spectrum, and from unseen pictures.

Components that carry more variance than those of the same numbers shuffled within each dimension are more than chance (parallel analysis:
J. L. Horn 1965, doi:10.1007/BF02289447). How much of a picture that was not seen the components reconstruct is found by cross-validation;
how much more that is than with half of the pictures says whether more pictures would help.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Enough", "enough"]

Array = NDArray[np.float64]
FEWEST = 20  # pictures, for anything to be said
MOST = 3000  # largest number of pictures used, drawn at random
FOLDS, SHUFFLES = 5, 5
GAINED = 0.02  # of the variance: what half of the pictures lack more than that, others may still add
MOST_OF_IT = 0.9


@dataclass(frozen=True, eq=False)
class Enough:
    """Findings on a space's size.

    Parameters
    ----------
    seen, unseen : ndarray, float64 (k,)
        Share of the variance that the first 1, 2, ... components reconstruct, of pictures that they were fitted to, and of others.
    half : float
        The last of `unseen` where the fit had half of the pictures.
    above_chance : int
        Components that carry more variance than chance, of at most as many as were used.
    pictures : int
        Number of pictures used.
    """

    seen: Array
    unseen: Array
    half: float
    above_chance: int
    pictures: int

    @property
    def most_of_it(self) -> int:
        """Number of components that reconstruct nine tenths of what all of them do of unseen pictures."""
        return int(np.argmax(self.unseen >= MOST_OF_IT * self.unseen[-1])) + 1

    def __str__(self) -> str:
        k, gained = len(self.unseen), float(self.unseen[-1] - self.half)
        chance = f"{self.above_chance} or more" if self.above_chance >= k else f"{self.above_chance}"
        lines = [
            f"components: {k} reconstruct {self.unseen[-1]:.1%} of pictures that were not seen ({self.seen[-1]:.1%} of those that were), "
            f"{self.most_of_it} nine tenths of that; {chance} of them carry more than chance",
            f"pictures: with half of the {self.pictures} it was {self.half:.1%}: "
            + (f"more would help (twice as many, about {gained:.1%} more)" if gained > GAINED else "they are enough"),
        ]
        return "\n".join(lines)


def enough(embeddings: ArrayLike, components: int, rng: np.random.Generator) -> Enough | None:
    """Return how many pictures and components are enough.

    Parameters
    ----------
    embeddings : array-like of float, (n, e)
    components : int
        That the space has.
    rng : numpy.random.Generator
        Source of folds and shuffles.

    Returns
    -------
    Enough or None
        None where there are too few pictures to hold any out.
    """
    rows = np.asarray(embeddings, np.float64)
    rows = rows[rng.permutation(len(rows))[:MOST]]
    count = min(components, rows.shape[1], (len(rows) - len(rows) // FOLDS) // 2 - 1)
    if len(rows) < FEWEST or count < 1:
        return None
    fold = np.arange(len(rows)) % FOLDS
    seen, unseen, half = [], [], []
    for number in range(FOLDS):
        train, test = rows[fold != number], rows[fold == number]
        basis = _basis(train, count)
        seen.append(_shares(train, train.mean(axis=0), basis))
        unseen.append(_shares(test, train.mean(axis=0), basis))
        part = train[: len(train) // 2]
        half.append(_shares(test, part.mean(axis=0), _basis(part, count))[-1])
    return Enough(np.mean(seen, axis=0), np.mean(unseen, axis=0), float(np.mean(half)), _above_chance(rows, count, rng), len(rows))


def _basis(rows: Array, count: int) -> Array:
    """First principal directions, (count, e); by the products of whatever is fewer, rows or columns."""
    away = rows - rows.mean(axis=0)
    if len(away) >= away.shape[1]:
        return np.asarray(np.linalg.eigh(away.T @ away)[1][:, ::-1][:, :count].T, np.float64)
    found = np.linalg.eigh(away @ away.T)[1][:, ::-1][:, :count].T @ away
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-300), np.float64)


def _variances(away: Array) -> Array:
    """Principal variances, the largest first, times the number of rows."""
    products = away.T @ away if len(away) >= away.shape[1] else away @ away.T
    return np.asarray(np.linalg.eigvalsh(products)[::-1], np.float64)


def _shares(rows: Array, mean: Array, basis: Array) -> Array:
    """Share of the rows' variance about a mean that the first 1, 2, ... directions hold."""
    away = rows - mean
    return np.asarray(np.cumsum(((away @ basis.T) ** 2).sum(axis=0)) / max(float((away**2).sum()), 1e-300), np.float64)


def _above_chance(rows: Array, count: int, rng: np.random.Generator) -> int:
    """Number of leading components with more variance than the largest of any shuffle has."""
    own = _variances(rows - rows.mean(axis=0))[:count]
    chance = np.max([_variances(_shuffled(rows, rng))[:count] for _ in range(SHUFFLES)], axis=0)
    above = own > chance
    return count if above.all() else int(np.argmin(above))


def _shuffled(rows: Array, rng: np.random.Generator) -> Array:
    """Each column in an order of its own, about its mean."""
    return np.asarray(rng.permuted(rows - rows.mean(axis=0), axis=0), np.float64)
