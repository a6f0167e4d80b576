"""Covariance matrix adaptation, from the PyPI package ``cmaes`` (optional: ``pip install cmaes``).

N. Hansen, A. Ostermeier 2001, doi:10.1162/106365601750190398; the separable form: R. Ros, N. Hansen 2008, doi:10.1007/978-3-540-87700-4_30.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtevo.evolve.base import Evolver

__all__ = ["Cma", "SepCma"]


class _Optimizer(Protocol):
    def ask(self) -> NDArray[np.float64]: ...
    def tell(self, solutions: list[tuple[NDArray[np.float64], float]]) -> None: ...


class Cma(Evolver):
    """Strategy "cma": starts from N(0, I), in generations of `population` candidates.

    A generation is the first `population` candidates that have a score and have not been used; it is used when the next candidate is asked
    for. So scores may come late, and those that never come are left out; a score that is revised afterwards is not taken back. A generation
    is of one run, and only ranks in it count: a run's offset and unit do not matter; what is left over at a run's end is not used.

    Parameters
    ----------
    latent_size : int
        Dimensions of a latent vector, at least 2.
    population : int
        Candidates in a generation, at least 2.
    rng : numpy.random.Generator
        Gives the seed.
    seed : int, optional
        Instead of one drawn from `rng`.

    Raises
    ------
    ImportError
        The package is not installed.
    ValueError
        A parameter is out of range.
    """

    strategy = "cma"

    def __init__(self, latent_size: int, population: int, rng: np.random.Generator, seed: int | None = None) -> None:
        super().__init__(latent_size, rng)
        if latent_size < 2 or population < 2:
            raise ValueError(f"{self.strategy}: expected latent_size and population of at least 2, got {latent_size} and {population}")
        self._population = int(population)
        self._seed = int(rng.integers(2**31)) if seed is None else int(seed)
        self._optimizer = self._make()
        self._used: list[tuple[list[int], list[float], int]] = []  # generations used: candidates, scores, asked before

    def _make(self) -> _Optimizer:
        """Return the optimiser; it minimises."""
        import cmaes

        kind = cmaes.SepCMA if self.strategy == "sepcma" else cmaes.CMA
        optimizer: _Optimizer = kind(np.zeros(self.latent_size), 1.0, population_size=self._population, seed=self._seed)
        return optimizer

    def _propose(self, n: int) -> NDArray[np.float64]:
        fresh = np.isfinite(self._fitness)
        fresh[[row for rows, _, _ in self._used for row in rows]] = False
        for run in range(self.runs):
            rows = np.flatnonzero(fresh & (self.run_of(np.arange(self.asked)) == run))
            while len(rows) >= self._population:
                first, rows = rows[: self._population], rows[self._population :]
                self._used.append((first.tolist(), self._fitness[first].tolist(), self.asked))
                self._use(first.tolist(), self._fitness[first].tolist())
        return np.array([self._optimizer.ask() for _ in range(n)])

    def _use(self, rows: list[int], fitness: list[float]) -> None:
        """Pass a generation and its scores to the optimiser."""
        self._optimizer.tell([(self._latents[row], -value) for row, value in zip(rows, fitness, strict=True)])

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "population": self._population, "seed": self._seed}

    def _memory(self) -> dict[str, Any]:
        return {"used": [list(generation) for generation in self._used]}

    def _remember(self, memory: Mapping[str, Any]) -> None:
        """Replay the session: the optimiser has no other plain state."""
        drawn = 0
        for rows, fitness, asked in memory["used"]:
            for _ in range(asked - drawn):
                self._optimizer.ask()
            drawn = asked
            self._used.append((list(rows), list(fitness), asked))
            self._use(rows, fitness)
        for _ in range(self.asked - drawn):
            self._optimizer.ask()


class SepCma(Cma):
    """Strategy "sepcma": the same with a diagonal covariance."""

    strategy = "sepcma"
