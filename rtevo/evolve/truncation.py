"""Truncation selection: the mean of the better half of the last generation, weighted by fitness, and mutation around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.evolve.base import Evolver
from rtevo.evolve.state import rng_from_state, rng_to_state

__all__ = ["Truncation", "TruncationEvolver", "truncation_weights"]


def truncation_weights(fitness: ArrayLike) -> NDArray[np.float64]:
    """Recombination weights of truncation selection.

    A candidate in the top half weighs its fitness above the median, and the weights are normalised. The median is that of the
    candidates that have a fitness; half of an odd number is rounded down. No choice hides in that or in how ties are sorted:
    a candidate at the median or below weighs nothing, so the top half by any sorting gives these same weights.

    Parameters
    ----------
    fitness : array-like of float, (n,)
        Larger is better. NaN or infinite: not measured, weight 0.

    Returns
    -------
    ndarray, float64 (n,)
        Non-negative, summing to 1. Where no candidate is above the median (all tied, or a single one), those that share the highest
        fitness weigh the same. All zero where no candidate has a fitness.

    Raises
    ------
    ValueError
        `fitness` is not one-dimensional.
    """
    values = np.asarray(fitness, np.float64)
    if values.ndim != 1:
        raise ValueError(f"fitness: expected one dimension (n,), got shape {values.shape}")
    weights = np.zeros(len(values))
    measured = np.isfinite(values)
    if not measured.any():
        return weights
    finite = values[measured]
    above = np.clip(finite - np.median(finite), 0.0, None)
    if not above.any():
        above = (finite == finite.max()).astype(np.float64)
    weights[measured] = above / above.sum()
    return weights


class Truncation:
    """Truncation selection with weighted recombination and isotropic mutation.

    Generation 0 is drawn from N(0, I). Every later one is drawn from N(m, mutation_sd^2 I), m being the mean of the last generation's
    candidates weighted by :func:`truncation_weights`. The rule is often written N(m, mutation * I), where `mutation` is the
    variance, as ``numpy.random.multivariate_normal`` takes it: ``mutation_sd = sqrt(mutation)``.

    Where not one candidate has a fitness, the mean stays what it was; after such a generation 0 the next is again drawn from N(0, I).

    Parameters
    ----------
    population : int
        Candidates in a generation, at least 1.
    latent_size : int
        Dimensions of a latent vector.
    mutation_sd : float
        Standard deviation of the mutation, in units of the latent space (generation 0 has 1), >= 0.
    rng : numpy.random.Generator
        Source of every draw; owned by this object from now on.

    Attributes
    ----------
    generation : int
        Number of scored generations so far.
    mean : ndarray, float64 (latent_size,), or None
        Centre of the next generation; None: N(0, I).

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    def __init__(self, population: int, latent_size: int, mutation_sd: float, rng: np.random.Generator) -> None:
        if population < 1:
            raise ValueError(f"population: expected at least 1, got {population}")
        if latent_size < 1:
            raise ValueError(f"latent_size: expected at least 1, got {latent_size}")
        if not (np.isfinite(mutation_sd) and mutation_sd >= 0):
            raise ValueError(f"mutation_sd: expected a finite number >= 0, got {mutation_sd}")
        self.population = int(population)
        self.latent_size = int(latent_size)
        self.mutation_sd = float(mutation_sd)
        self.generation = 0
        self.mean: NDArray[np.float64] | None = None
        self._rng = rng

    def ask(self) -> NDArray[np.float32]:
        """Draw a generation.

        Returns
        -------
        ndarray, float32 (population, latent_size)
            A further call without scores draws another sample of the same distribution.
        """
        noise = self._rng.standard_normal((self.population, self.latent_size))
        latents = noise if self.mean is None else self.mean + self.mutation_sd * noise
        return latents.astype(np.float32)

    def tell(self, latents: ArrayLike, fitness: ArrayLike, fitness_se: ArrayLike | None = None) -> None:
        """Process the fitness of a generation.

        Parameters
        ----------
        latents : array-like of float, (n, latent_size)
            The candidates as they were evaluated: the requested ones, or their re-encoded embeddings mapped back. `n` may differ from
            `population`.
        fitness : array-like of float, (n,)
            Larger is better; NaN: not measured.
        fitness_se : array-like of float, (n,), optional
            Standard errors. This rule does not use them.

        Raises
        ------
        ValueError
            Shapes do not fit, or a measured candidate's latents are not finite.
        """
        points = np.asarray(latents, np.float64)
        values = np.asarray(fitness, np.float64)
        if points.ndim != 2 or points.shape[1] != self.latent_size:
            raise ValueError(f"latents: expected shape (n, {self.latent_size}), got {points.shape}")
        if values.shape != (len(points),):
            raise ValueError(f"fitness: expected shape ({len(points)},) as there are {len(points)} latents, got {values.shape}")
        weights = truncation_weights(values)
        parents = weights > 0
        if not np.isfinite(points[parents]).all():
            raise ValueError(f"latents: expected finite numbers, got NaN or inf in rows {_rows_not_finite(points, parents)}")
        if parents.any():
            self.mean = weights[parents] @ points[parents]
        self.generation += 1

    def to_state(self) -> dict[str, Any]:
        """Return everything that the next draws depend on, as plain JSON types."""
        return {
            "strategy": "truncation",
            "population": self.population,
            "latent_size": self.latent_size,
            "mutation_sd": self.mutation_sd,
            "generation": self.generation,
            "mean": None if self.mean is None else self.mean.tolist(),
            "rng": rng_to_state(self._rng),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Truncation:
        """Continue exactly where :meth:`to_state` left off.

        Raises
        ------
        ValueError
            The state is of another strategy, or incomplete.
        """
        if state.get("strategy") != "truncation":
            raise ValueError(f"state: expected strategy 'truncation', got {state.get('strategy')!r}")
        try:
            evolver = cls(state["population"], state["latent_size"], state["mutation_sd"], rng_from_state(state["rng"]))
            evolver.generation = int(state["generation"])
            mean = state["mean"]
        except KeyError as missing:
            raise ValueError(f"state: expected an entry {missing}, found only {sorted(state)}") from None
        if mean is not None:
            evolver.mean = np.array(mean, np.float64)
            if evolver.mean.shape != (evolver.latent_size,):
                raise ValueError(f"state: expected a mean of {evolver.latent_size} numbers, got shape {evolver.mean.shape}")
        return evolver


def _rows_not_finite(points: NDArray[np.float64], among: NDArray[np.bool_]) -> list[int]:
    """List up to five rows that hold a number that is not finite."""
    rows = np.flatnonzero(among & ~np.isfinite(points).all(axis=1))
    return [int(row) for row in rows[:5]]


class TruncationEvolver(Evolver):
    """The rule of :class:`Truncation` as a strategy with single candidates and scores.

    Parents are the last `population` candidates with a result; those whose score is missing (NaN) are left out, and
    if none has one the mean stays the same. With whole generations, each scored completely before the next, the strategy draws the same
    candidates as :class:`Truncation`; with single candidates and late scores, every score moves the mean. Before `population`
    results, candidates are drawn from N(0, I). Parents are of one run, the last with as many: weights ignore its offset and unit.

    Parameters
    ----------
    latent_size, population, mutation_sd, rng
        As in :class:`Truncation`.
    """

    strategy = "truncation"

    def __init__(self, latent_size: int, population: int, mutation_sd: float, rng: np.random.Generator) -> None:
        super().__init__(latent_size, rng)
        self._rule = Truncation(population, latent_size, mutation_sd, rng)

    def _propose(self, n: int) -> NDArray[np.float64]:
        rule = self._rule
        told = np.flatnonzero(self._told)
        runs = [told[self.run_of(told) == run] for run in range(self.runs)]
        last = next((own[-rule.population :] for own in reversed(runs) if len(own) >= rule.population), told[:0])
        weights = truncation_weights(self._fitness[last])
        if weights.any():
            rule.mean = weights @ self._latents[last]
        noise = self._rng.standard_normal((n, self.latent_size))
        return noise if rule.mean is None else rule.mean + rule.mutation_sd * noise

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "population": self._rule.population, "mutation_sd": self._rule.mutation_sd}

    def _memory(self) -> dict[str, Any]:
        return {"mean": None if self._rule.mean is None else self._rule.mean.tolist()}

    def _remember(self, memory: Mapping[str, Any]) -> None:
        self._rule.mean = None if memory["mean"] is None else np.array(memory["mean"], np.float64)
