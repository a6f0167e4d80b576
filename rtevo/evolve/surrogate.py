"""Evolution by a model of all scores so far: our default.

A session affords tens to hundreds of noisy scores in about a hundred dimensions. No single generation says much then, but all of
them together say a direction. This strategy fits a Bayesian model to every score (:mod:`rtevo.evolve.model`) and asks for images where
draws from what the model holds possible are highest.

- The first images are random ones at right angles to each other: as many directions are tried as there are scores.
- While there is budget, candidates are Thompson samples: each is the best image under one draw from the posterior (W. R. Thompson 1933,
  doi:10.1093/biomet/25.3-4.285). Where little is known the draws differ and explore; as scores come in they agree. Draws are taken
  closer to the mean than the posterior's own spread (`exploration`): full spread finds a little more where the fitness is a plain
  direction, but loses where it has several optima or bends, and shows the participant worse images on the way. They lean to the
  directions that are known least, and those of one generation are at right angles around the mean: with fewer scores than dimensions
  no score repeats another's information.
- Showing promising images again, in between, was tried and gained nothing (docs/evolution.md): a neighbour says as much.
- At the end of the budget candidates are drawn closely around the best image under the mean of the posterior.
- Candidates keep the length of random latents, from which the image model has learnt to paint, within `norm_limits`; inside these
  a length that scores better is used. Where it is known how long embeddings are, these keep to the greatest length, too, and the model
  expects a little more of directions in which pictures differ much (:mod:`rtevo.evolve.shell`).

Why it wins over selecting parents: it uses every score ever measured, each with its own certainty, and never follows the noise of the
last generation alone, nor a single score that the others make incredible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.evolve.base import Evolver
from rtevo.evolve.model import Array, Slope, one_thread, right_angles, unit
from rtevo.evolve.preference import FEWEST, Preference, fit_linear, pooled, preference_of
from rtevo.evolve.runs import Effects, Scores, fit_effects, fit_pooled
from rtevo.evolve.shell import Shell

__all__ = ["Surrogate"]

_FINAL_SHARE = 0.05  # of the budget, for the best images
_FINAL_SPREAD = 0.1  # of their directions around the best one, as a share of it


class Surrogate(Evolver):
    """Strategy "surrogate".

    Parameters
    ----------
    latent_size : int
        Dimensions of a latent vector.
    budget : int or None
        Number of candidates that the session will ask for; None: not known, explore to the end.
    final : int, optional
        How many of them, at the end, are for the best images; at least the last ask. Default: a twentieth.
    exploration : float
        Spread of the draws, as a share of the posterior's; 0 to 1.
    norm_limits : tuple of float, (2,)
        Least and greatest length of a candidate, as shares of ``sqrt(latent_size)``. Defaults: half of it; one more than it, which is 1.4
        standard deviations of the length of random latents.
    half_life : float
        Images after which a score counts half as much, as the preference may drift; 0: it stays.
    shell : Shell, optional
        How long the embeddings of latents are; their greatest length is that of `norm_limits`, too. None: latents' lengths alone count.
    rng : numpy.random.Generator
        Source of every draw.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    strategy = "surrogate"

    def __init__(
        self,
        latent_size: int,
        budget: int | None,
        rng: np.random.Generator,
        final: int | None = None,
        exploration: float = 0.6,
        norm_limits: tuple[float, float] | None = None,
        half_life: float = 0.0,
        shell: Shell | None = None,
    ) -> None:
        super().__init__(latent_size, rng)
        if budget is not None and budget < 1:
            raise ValueError(f"budget: expected at least 1 or none, got {budget}")
        if final is not None and final < 0:
            raise ValueError(f"final: expected at least 0, got {final}")
        if not 0 <= exploration <= 1:
            raise ValueError(f"exploration: expected 0 to 1, got {exploration}")
        low, high = norm_limits or (0.5, 1 + 1 / math.sqrt(latent_size))
        if not 0 < low <= high < math.inf:
            raise ValueError(f"norm_limits: expected 0 < least <= greatest, got {norm_limits}")
        self._budget, self._exploration, self._norm_limits = budget, float(exploration), (float(low), float(high))
        if not 0 <= half_life < math.inf:
            raise ValueError(f"half_life: expected at least 0, got {half_life}")
        self.half_life = float(half_life)
        self.shell = shell
        self._final = math.ceil(_FINAL_SHARE * (budget or 0)) if final is None else int(final)

    def extend(self, n: int) -> None:
        """Set how many more candidates this session will request."""
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        self._budget = self.asked + int(n)

    def expected_gain(self, n: int) -> float:
        """Gain expected of the next `n` scores, in standard deviations of the fitness of random images; NaN before the first."""
        known = self.history()
        if len(known.ids) < FEWEST or np.ptp(known.fitness) == 0:
            return math.nan
        with one_thread():
            several = pooled(self)
            linear = fit_linear(self.weighted(known))[0] if several is None else several.linear
            return linear.expected_gain(n, np.random.default_rng(self.asked))

    def run_effects(self) -> tuple[Effects, Array, Array]:
        """How the runs that have scores differ: what is taken out of these.

        Returns
        -------
        effects : Effects
            Noises, gains and units, with the errors of these.
        offset, offset_sd : ndarray, float64 (runs,)
            How much higher a random image would score than in the first run, and the standard deviation of that: only as sure as the
            preference that is found, where no image was shown in both.
        """
        with one_thread():
            scores = Scores.of(self, self.half_life, self.weights())
            effects = fit_effects(scores, errors=True)
            return effects, *fit_pooled(scores).offsets(effects)

    def _propose(self, n: int) -> NDArray[np.float64]:
        with one_thread():
            preference = preference_of(self)
            if preference is None:
                return right_angles(self._rng.standard_normal((n, self.latent_size)), self._latents)
            final = self._budget is not None and self.asked + max(n, self._final) >= self._budget
            return self._best(n, preference, 0.0 if final else self._exploration)

    def _best(self, n: int, preference: Preference, spread: float) -> Array:
        """Return the best candidates under draws with a share of the posterior's spread."""
        slope, weights = preference.linear.draw(n, spread, self._rng), preference.weights
        if preference.curved is not None:
            radius = self._radius(slope)[:, np.newaxis]
            slope = preference.curved.ascend(
                slope.direction, lambda slopes: weights * self._within(radius * unit(weights * slopes)), spread, self._rng
            )
        directions = unit(weights * slope.direction)
        if spread == 0:
            directions = unit(directions + _FINAL_SPREAD * unit(self._rng.standard_normal(directions.shape)))
        return self._within(directions * self._radius(slope)[:, np.newaxis])

    def _within(self, points: Array) -> Array:
        """Shorten points (n, d) whose embeddings are too long."""
        return points if self.shell is None else self.shell.within(points, self._norm_limits[1])

    def _radius(self, slope: Slope) -> Array:
        """Length of the best image for each slope, within the limits."""
        low, high = (limit * math.sqrt(self.latent_size) for limit in self._norm_limits)
        strength = np.linalg.norm(slope.direction, axis=1)
        best = np.divide(strength, -2 * slope.length, out=np.full(len(strength), high), where=slope.length < 0)
        return np.asarray(np.clip(best, low, high), np.float64)

    def _settings(self) -> dict[str, Any]:
        own = {"budget": self._budget, "final": self._final, "exploration": self._exploration, "norm_limits": list(self._norm_limits)}
        return {**super()._settings(), **own, "half_life": self.half_life}

    def _memory(self) -> dict[str, Any]:
        return {} if self.shell is None else {"shell": self.shell.to_state()}

    def _remember(self, memory: Mapping[str, Any]) -> None:
        self.shell = Shell.from_state(memory["shell"]) if "shell" in memory else None
