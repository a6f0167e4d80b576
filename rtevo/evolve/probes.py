"""Probes' scores, run by run, and the shift between the scores of two runs that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Anchor", "ProbeScores", "Probes", "anchor"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeScores:
    """Scores of probes, in their order.

    Parameters
    ----------
    keys : list of (int, int, int)
        Run, generation and candidate of each.
    before : ndarray, int64 (n,)
        Candidates requested before it.
    latents : ndarray, float64 (n, d)
    fitness, fitness_se : ndarray, float64 (n,)
        Finite; standard errors are NaN where not known.
    """

    keys: list[tuple[int, int, int]]
    before: NDArray[np.int64]
    latents: Array
    fitness: Array
    fitness_se: Array


class Probes:
    """The probes of all runs so far that have a score."""

    def __init__(self) -> None:
        self._latents: list[Array] = []
        self._scores: dict[tuple[int, int, int], tuple[int, int, float, float]] = {}

    def add(self, run: int, key: tuple[int, int], latent: Array, before: int, fitness: float, fitness_se: float) -> None:
        """Add a probe's score, or a better one; NaN withdraws it."""
        if not math.isfinite(fitness):
            self._scores.pop((run, *key), None)
            return
        which = next((k for k, known in enumerate(self._latents) if np.array_equal(known, latent)), len(self._latents))
        if which == len(self._latents):
            self._latents.append(np.asarray(latent, np.float64))
        error = float(fitness_se) if math.isfinite(fitness_se) and fitness_se >= 0 else math.nan
        self._scores[(run, *key)] = which, int(before), float(fitness), error

    def scores(self, latent_size: int) -> ProbeScores:
        """Return them; candidates of a latent space of that size."""
        every = sorted(self._scores.items())
        which = [row[0] for _, row in every]
        return ProbeScores(
            [key for key, _ in every],
            np.array([row[1] for _, row in every], np.int64),
            np.array([self._latents[k] for k in which], np.float64).reshape(-1, latent_size),
            np.array([row[2] for _, row in every], np.float64),
            np.array([row[3] for _, row in every], np.float64),
        )

    def to_state(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        rows = [[*key, *row[:3], None if math.isnan(row[3]) else row[3]] for key, row in self._scores.items()]
        return {"latents": [latent.tolist() for latent in self._latents], "scores": rows}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Probes:
        """Continue where :meth:`to_state` left off."""
        made = cls()
        made._latents = [np.array(latent, np.float64) for latent in state.get("latents", [])]
        for run, generation, candidate, which, before, fitness, error in state.get("scores", []):
            own = int(which), int(before), float(fitness), math.nan if error is None else float(error)
            made._scores[int(run), int(generation), int(candidate)] = own
        return made


@dataclass(frozen=True)
class Anchor:
    """The shift between two runs by the images scored in both.

    Parameters
    ----------
    images : int
        Images scored in both; 0: the gain of one run over the other cannot be estimated without a model of the preference.
    difference : float
        How much higher they scored in the second run, on average over the images, in the scores' unit; NaN without any.
    difference_se : float
        Its standard error, from the scores' own where they are known, else from the spread of each image's scores in a run; NaN where
        neither is there.
    """

    images: int
    difference: float
    difference_se: float

    @property
    def anchored(self) -> bool:
        """Whether an absolute gain from run to run can be given, with an error."""
        return self.images > 0 and math.isfinite(self.difference_se)


def anchor(images: Array, fitness: Array, fitness_se: Array, run: NDArray[np.int64], first: int, second: int) -> Anchor:
    """Compare the scores of the images that were shown in two runs.

    Parameters
    ----------
    images : ndarray, float64 (n, d)
        Latents; the same image has the same.
    fitness, fitness_se : ndarray, float64 (n,)
        Standard errors are NaN where not known.
    run : ndarray, int64 (n,)
    first, second : int
        The runs to compare.
    """
    parts: dict[bytes, tuple[list[int], list[int]]] = {}
    for row, number in enumerate(run):
        if number in (first, second):
            parts.setdefault(images[row].tobytes(), ([], []))[int(number == second)].append(row)
    both = [part for part in parts.values() if all(part)]
    if not both:
        return Anchor(0, math.nan, math.nan)
    differences = [float(fitness[b].mean() - fitness[a].mean()) for a, b in both]
    variance = 0.0
    for side in (0, 1):
        own = [part[side] for part in both]
        rows = [row for part in own for row in part]
        squares = sum(float(((fitness[part] - fitness[part].mean()) ** 2).sum()) for part in own)
        spread = squares / (len(rows) - len(own)) if len(rows) > len(own) else math.nan
        errors = np.where(np.isfinite(fitness_se), fitness_se**2, spread)
        variance += sum(float(errors[part].sum()) / len(part) ** 2 for part in own)
    return Anchor(len(both), float(np.mean(differences)), math.sqrt(variance) / len(both))
