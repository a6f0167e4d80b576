"""Probes' scores, run by run: what says how far the scores of two runs are apart, whatever the model makes of candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ProbeScores", "Probes"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeScores:
    """Scores of probes, in their order.

    Parameters
    ----------
    keys : list of (int, int, int)
        Run, generation and candidate of each.
    before : ndarray, int64 (n,)
        Candidates that had been asked for before it.
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
        """Take a probe's score, or a better one; NaN withdraws it."""
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
