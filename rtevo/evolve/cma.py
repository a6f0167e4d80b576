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

    A candidate without a score when the next generation is asked for counts as the median of its generation.

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
        self._told: list[list[float]] = []

    def _make(self) -> _Optimizer:
        """Make the optimiser; it minimises."""
        import cmaes

        kind = cmaes.SepCMA if self.strategy == "sepcma" else cmaes.CMA
        optimizer: _Optimizer = kind(np.zeros(self.latent_size), 1.0, population_size=self._population, seed=self._seed)
        return optimizer

    def _propose(self, n: int) -> NDArray[np.float64]:
        points = []
        for number in range(self.asked, self.asked + n):
            if number and number % self._population == 0 and number // self._population > len(self._told):
                if number > self.asked:
                    raise ValueError(f"{self.strategy}: expected asks that end with a generation of {self._population}, got {n}")
                self._close_generation()
            points.append(self._optimizer.ask())
        return np.array(points)

    def _close_generation(self) -> None:
        """Tell the optimiser the generation that has been asked for."""
        fitness = self._fitness[-self._population :]
        known = np.isfinite(fitness)
        middle = float(np.median(fitness[known])) if known.any() else 0.0
        self._told.append(np.where(known, fitness, middle).tolist())
        self._tell(len(self._told) - 1)

    def _tell(self, generation: int) -> None:
        rows = range(generation * self._population, (generation + 1) * self._population)
        self._optimizer.tell([(self._latents[row], -value) for row, value in zip(rows, self._told[generation], strict=True)])

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "population": self._population, "seed": self._seed}

    def _memory(self) -> dict[str, Any]:
        return {"told": [list(values) for values in self._told]}

    def _remember(self, memory: Mapping[str, Any]) -> None:
        """Go through the session again: the optimiser has no other plain state."""
        self._told = [list(values) for values in memory["told"]]
        for generation in range(len(self._told)):
            for _ in range(self._population):
                self._optimizer.ask()
            self._tell(generation)
        for _ in range(self.asked - len(self._told) * self._population):
            self._optimizer.ask()


class SepCma(Cma):
    """Strategy "sepcma": the same with a diagonal covariance."""

    strategy = "sepcma"
