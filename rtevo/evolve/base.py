"""Base of all strategies: candidates with numbers, scores that may be late, missing, revised or of unequal certainty, and a state.

A strategy proposes latents and receives scores. Every proposed latent vector has a number, its id, counted from 0; a score
belongs to an id, may come at any time and in any order, and a later score for the same id replaces the earlier one. What a strategy
proposes depends on the scores it has, not on the order in which they came.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.evolve.model import Linear, without_outliers_together
from rtevo.evolve.probes import Anchor, Probes, ProbeScores, anchor
from rtevo.evolve.shell import Shell
from rtevo.evolve.state import rng_from_state, rng_to_state
from rtevo.evolve.together import Errors, Link, Together
from rtevo.records import Projected

__all__ = ["Evolver", "History"]


@dataclass(frozen=True)
class History:
    """The candidates that have a score, in the order of their ids.

    Parameters
    ----------
    ids : ndarray, int64 (n,)
        Numbers of the candidates.
    latents : ndarray, float64 (n, d)
        As they were evaluated.
    fitness : ndarray, float64 (n,)
        Finite; larger is better.
    fitness_se : ndarray, float64 (n,)
        Standard errors, NaN where not known.
    """

    ids: NDArray[np.int64]
    latents: NDArray[np.float64]
    fitness: NDArray[np.float64]
    fitness_se: NDArray[np.float64]


class Evolver(ABC):
    """A strategy.

    Parameters
    ----------
    latent_size : int
        Dimensions of a latent vector, at least 1.
    rng : numpy.random.Generator
        Source of every draw; owned by this object from now on.

    Attributes
    ----------
    asked : int
        Number of latents proposed so far: the id of the next one.
    """

    strategy: ClassVar[str]
    half_life: float = 0.0  # images after which a score counts half as much; 0: it stays
    shell: Shell | None = None  # how long the embeddings of latents are; None: latents' lengths alone count

    def __init__(self, latent_size: int, rng: np.random.Generator) -> None:
        if latent_size < 1:
            raise ValueError(f"latent_size: expected at least 1, got {latent_size}")
        self.latent_size = int(latent_size)
        self._rng = rng
        self._latents = np.zeros((0, self.latent_size))
        self._fitness = np.zeros(0)
        self._fitness_se = np.zeros(0)
        self._told = np.zeros(0, bool)
        self._together = Together()
        self._starts = [0]  # of each run: the number of its first candidate
        self._probes = Probes()

    @property
    def asked(self) -> int:
        """Number of latents proposed so far."""
        return len(self._latents)

    def ask(self, n: int) -> NDArray[np.float32]:
        """Propose candidates, from the scores so far.

        Parameters
        ----------
        n : int
            Number of candidates, at least 1: a generation, or one in the steady schedule.

        Returns
        -------
        ndarray, float32 (n, latent_size)
            Their ids are ``asked - n`` to ``asked - 1`` afterwards.
        """
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        latents = self._propose(int(n)).astype(np.float32)
        self._latents = np.concatenate([self._latents, latents.astype(np.float64)])
        self._fitness = np.concatenate([self._fitness, np.full(n, np.nan)])
        self._fitness_se = np.concatenate([self._fitness_se, np.full(n, np.nan)])
        self._told = np.concatenate([self._told, np.zeros(n, bool)])
        return latents

    @property
    def runs(self) -> int:
        """Number of runs so far; of the first one, where none has begun yet, 1."""
        return len(self._starts)

    def begin(self) -> int:
        """Begin a run: its scores may have another offset and unit than earlier ones.

        Returns
        -------
        int
            What the run is called: the number of its first candidate.
        """
        if self.asked > self._starts[-1]:
            self._starts.append(self.asked)
        return self.asked

    def run_of(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return the run, from 0, of each of some candidates (m,)."""
        return np.searchsorted(self._starts, np.asarray(ids, np.int64), side="right").astype(np.int64) - 1

    def extend(self, n: int) -> None:  # noqa: B027 - most strategies do not look ahead
        """Set how many more candidates this session will request.

        Parameters
        ----------
        n : int
            At least 1.
        """

    def expected_gain(self, n: int) -> float:
        """Gain that the next `n` scores are expected to bring, in standard deviations of the fitness of random images.

        NaN if nothing is known yet, or if the strategy has no model.
        """
        return float("nan")

    def place(self, ids: ArrayLike, latents: ArrayLike) -> None:
        """Correct the latents of candidates that differ from the requested ones: those of their re-encoded pictures.

        Parameters
        ----------
        ids : array-like of int, (m,)
            Numbers of proposed candidates.
        latents : array-like of float, (m, latent_size)
            Where they are.

        Raises
        ------
        ValueError
            An id was never proposed, the shapes do not fit, or a number is not finite.
        """
        rows = self._rows(ids)
        points = np.asarray(latents, np.float64)
        if points.shape != (len(rows), self.latent_size):
            raise ValueError(f"latents: expected shape ({len(rows)}, {self.latent_size}), got {points.shape}")
        if not np.isfinite(points).all():
            raise ValueError(f"latents: expected finite numbers, got others for ids {rows[~np.isfinite(points).all(axis=1)][:5].tolist()}")
        self._latents[rows] = points

    def tell(self, ids: ArrayLike, fitness: ArrayLike, fitness_se: ArrayLike | None = None) -> None:
        """Add scores, new or revised.

        Parameters
        ----------
        ids : array-like of int, (m,)
            Numbers of proposed candidates.
        fitness : array-like of float, (m,)
            Larger is better. NaN: not measured, and no score will follow; an earlier score no longer counts.
        fitness_se : array-like of float, (m,), optional
            Standard errors, NaN where not known.

        Raises
        ------
        ValueError
            An id was never proposed, or the shapes do not fit.
        """
        rows = self._rows(ids)
        values = np.asarray(fitness, np.float64)
        errors = np.full(len(rows), np.nan) if fitness_se is None else np.asarray(fitness_se, np.float64)
        for name, array in (("fitness", values), ("fitness_se", errors)):
            if array.shape != rows.shape:
                raise ValueError(f"{name}: expected shape {rows.shape} as there are {len(rows)} ids, got {array.shape}")
        measured = np.isfinite(values)
        self._told[rows] = True
        self._fitness[rows] = np.where(measured, values, np.nan)
        self._fitness_se[rows] = np.where(measured & np.isfinite(errors) & (errors >= 0), errors, np.nan)

    def link(self, run: int, key: tuple[int, int], number: int, link: Link) -> None:
        """Add an image's response as the volumes alone show it, and how its error depends on others'; strategies need not use it.

        Parameters
        ----------
        run : int
            Number of the first candidate of its run.
        key : tuple of int
            Names the image in its run.
        number : int
            Of the candidate; -1 for a probe.
        link : Link
        """
        self._together.add(run, key, number, link)

    def probe(self, run: int, key: tuple[int, int], latent: ArrayLike, before: int, fitness: float, fitness_se: float) -> None:
        """Add the score of a probe, new, revised or withdrawn (NaN); it anchors the runs in which the probe is shown.

        Parameters
        ----------
        run : int
            What :meth:`begin` called it.
        key : tuple of int
            Names the image in its run.
        latent : array-like of float, (latent_size,)
        before : int
            Candidates proposed before it, of all runs.
        fitness, fitness_se : float
        """
        self._probes.add(run, key, np.asarray(latent, np.float64), before, fitness, fitness_se)

    def volume(self, run: int, part: int, volume: Projected) -> None:  # noqa: B027 - most strategies use scores
        """Add a volume as used by decoding; strategies need not use it.

        Parameters
        ----------
        run : int
            Number of the first candidate of its run.
        part : int
            Of the run, where it was interrupted: each has a level of its own.
        volume : Projected
        """

    def shown(self, run: int, key: tuple[int, int], number: int, onset_s: float, image_s: float) -> None:  # noqa: B027
        """Record that an image has appeared.

        Parameters
        ----------
        run, key, number
            As for :meth:`link`.
        onset_s, image_s : float
            When, s from the session's first volume, and for how long.
        """

    def cut_short(self, run: int, key: tuple[int, int], at_s: float) -> None:  # noqa: B027
        """Record that an image was taken away before its time, s from the session's first volume."""

    def belongs(self, run: int, key: tuple[int, int], number: int) -> None:  # noqa: B027
        """Set the candidate for which the response to an image counts from now on; -1: none."""

    def history(self) -> History:
        """Return the candidates that have a score."""
        rows = np.flatnonzero(np.isfinite(self._fitness))
        return History(rows, self._latents[rows], self._fitness[rows], self._fitness_se[rows])

    def probes(self) -> ProbeScores:
        """Return the scores of probes, of all runs."""
        return self._probes.scores(self.latent_size)

    def anchor(self, first: int, second: int) -> Anchor:
        """Return the shift between two runs (from 0) by the images scored in both, probes above all."""
        known, probes = self.history(), self.probes()
        return anchor(
            np.concatenate([known.latents, probes.latents]),
            np.concatenate([known.fitness, probes.fitness]),
            np.concatenate([known.fitness_se, probes.fitness_se]),
            np.concatenate([self.run_of(known.ids), self.run_of([key[0] for key in probes.keys])]),
            first,
            second,
        )

    @property
    def first(self) -> int:
        """Number of the first candidate of the last run."""
        return self._starts[-1]

    def fitted(self, known: History) -> tuple[NDArray[np.float64], NDArray[np.float64], Linear, Errors] | None:
        """Fit the linear model if the errors' covariance is known: values, their covariance, model, errors; None if it is not."""
        if (together := self._together.of(known.ids, known.fitness, known.fitness_se)) is None:
            return None
        return *together, *without_outliers_together(known.latents, *together)

    def weights(self) -> NDArray[np.float64]:
        """Expected size of the effect along each latent dimension (latent_size,)."""
        return np.ones(self.latent_size) if self.shell is None else self.shell.weights()

    def weighted(self, known: History) -> History:
        """Return candidates in the models' coordinates, along which equal effects are expected."""
        return replace(known, latents=known.latents * self.weights())

    def together(self, known: History, probes: ProbeScores) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the responses to candidates and probes by the volumes alone, and their errors' covariance, see :meth:`Together.of`."""
        fitness, errors = np.concatenate([known.fitness, probes.fitness]), np.concatenate([known.fitness_se, probes.fitness_se])
        return self._together.of(known.ids, fitness, errors, probes.keys)

    @abstractmethod
    def _propose(self, n: int) -> NDArray[np.float64]:
        """Return (n, latent_size) new points."""

    def _settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor other than the generator, as plain JSON types."""
        return {"latent_size": self.latent_size}

    def _memory(self) -> dict[str, Any]:
        """Return what else the next draws depend on, as plain JSON types."""
        return {}

    def _remember(self, memory: Mapping[str, Any]) -> None:  # noqa: B027 - most strategies keep nothing else
        """Restore what :meth:`_memory` returned."""

    def to_state(self) -> dict[str, Any]:
        """Return everything that the next draws depend on, as plain JSON types."""
        return {
            "strategy": self.strategy,
            "settings": self._settings(),
            "latents": self._latents.tolist(),
            "fitness": [None if np.isnan(value) else value for value in self._fitness.tolist()],
            "fitness_se": [None if np.isnan(value) else value for value in self._fitness_se.tolist()],
            "told": self._told.tolist(),
            "links": self._together.to_state(),
            "runs": list(self._starts),
            "probes": self._probes.to_state(),
            "memory": self._memory(),
            "rng": rng_to_state(self._rng),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Evolver:
        """Continue exactly where :meth:`to_state` left off.

        Raises
        ------
        ValueError
            The state is of another strategy, or incomplete.
        """
        if state.get("strategy") != cls.strategy:
            raise ValueError(f"state: expected strategy '{cls.strategy}', got {state.get('strategy')!r}")
        try:
            evolver = cls(**state["settings"], rng=rng_from_state(state["rng"]))
            latents, fitness, errors = state["latents"], state["fitness"], state["fitness_se"]
            told, memory = state["told"], state["memory"]
        except KeyError as missing:
            raise ValueError(f"state: expected an entry {missing}, found only {sorted(state)}") from None
        evolver._latents = np.array(latents, np.float64).reshape(-1, evolver.latent_size)
        evolver._fitness = np.array(fitness, np.float64)  # None becomes NaN
        evolver._fitness_se = np.array(errors, np.float64)
        evolver._told = np.array(told, bool)
        evolver._together = Together.from_state(state.get("links", []))
        evolver._starts = [int(first) for first in state.get("runs") or sorted({0, *(int(link[0]) for link in state.get("links", []))})]
        evolver._probes = Probes.from_state(state.get("probes", {}))
        lengths = (len(latents), len(fitness), len(errors), len(told))
        if len(set(lengths)) != 1:
            raise ValueError(f"state: expected as many latents as scores, found {', '.join(map(str, lengths))}")
        evolver._remember(memory)
        return evolver

    def _rows(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Check ids."""
        given = np.asarray(ids)
        rows = given.astype(np.int64) if given.size else np.zeros(0, np.int64)
        if rows.ndim != 1 or (given.size and not np.array_equal(rows, given)):
            raise ValueError(f"ids: expected whole numbers (m,), got {ids!r}")
        if len(rows) and (rows.min() < 0 or rows.max() >= self.asked):
            wrong = rows[(rows < 0) | (rows >= self.asked)][:5].tolist()
            raise ValueError(f"ids: expected numbers from 0 to {self.asked - 1}, got {wrong}")
        if len(np.unique(rows)) != len(rows):
            raise ValueError("ids: expected each one once")
        return rows
