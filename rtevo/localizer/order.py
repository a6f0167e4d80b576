"""Order of the categories: balanced in position and in succession."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

__all__ = ["adjacent", "balanced"]

TRIES = 200  # orders of the rounds that are tried; the one with the fewest equal neighbours is used

Order = list[list[int]]


def _square(categories: int) -> Order:
    """Return rows in which each category is at each place, and after each other category, equally often.

    Williams (1949), Australian Journal of Chemistry 2:149-168, doi:10.1071/CH9490149: `categories` rows for an even number of them; for an
    odd one, twice as many.
    """
    first = [0]
    for step in range(1, categories):
        first.append((first[-1] + (step if step % 2 else -step)) % categories)
    rows = [[(place + shift) % categories for place in first] for shift in range(categories)]
    return rows if categories % 2 == 0 else rows + [row[::-1] for row in rows]


def adjacent(rounds: Sequence[Sequence[int]]) -> int:
    """Return how often a category follows itself."""
    flat = [category for row in rounds for category in row]
    return sum(a == b for a, b in pairwise(flat))


def balanced(categories: int, rounds: int, rng: np.random.Generator) -> Order:
    """Draw an order.

    Parameters
    ----------
    categories, rounds : int
        At least 2, and 1.
    rng : numpy.random.Generator

    Returns
    -------
    list of list of int
        For each round the categories, each once. If `rounds` is a multiple of `categories`, each category is at every position equally
        often; else the counts differ by one at most. Within rounds, each category follows each other equally often if `rounds` is a
        multiple of the rows of a Williams square (`categories`, or twice as many if their number is odd).
    """
    square = _square(categories)
    half = len(square) // categories  # 2 if the rows are two halves, each of which is balanced in position
    best: Order = []
    for _ in range(TRIES):
        names = rng.permutation(categories)
        rows: Order = []
        while len(rows) < rounds:
            for part in rng.permutation(half):
                own = square[part * categories : (part + 1) * categories]
                rows += [own[k] for k in rng.permutation(categories)]
        drawn = [[int(names[k]) for k in row] for row in rows[:rounds]]
        if not best or adjacent(drawn) < adjacent(best):
            best = drawn
    return best
