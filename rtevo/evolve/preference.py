"""The preference by all scores together: the model that evolution uses, and the certainty of its results.

All results are draws from the posterior, so that every quantity made from them (an image's response, which of two is better, a cosine)
has an interval. Posteriors do not depend on how the images were chosen, only on the scores; a p value of a run that chose its images by
its scores would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.evolve.base import Evolver, History
from rtevo.evolve.model import Curved, Errors, Linear, features, one_thread, relative_precision, without_outliers
from rtevo.evolve.runs import Pooled, Scores, fit_pooled

__all__ = ["FEWEST", "Preference", "fit_linear", "pooled", "preference_of"]

Array = NDArray[np.float64]
FEWEST = 4  # scores before a model is fitted
_CURVED_EVIDENCE = 3.0  # the curved model is used where its log evidence is better by this


@dataclass(frozen=True)
class Measured:
    """Scores of images, and their errors as far as known.

    Parameters
    ----------
    latents : ndarray, float64 (n, d)
    values : ndarray, float64 (n,)
    run : ndarray, int64 (n,)
        Each of these has a mean of its own.
    covariance : ndarray, float64 (n, n)
        Of the errors of measurement.
    own : float
        Variance of what is each image's own: neither the model's nor an error of measurement.
    """

    latents: Array
    values: Array
    run: NDArray[np.int64]
    covariance: Array
    own: float


@dataclass(frozen=True)
class Preference:
    """The model of all scores.

    Parameters
    ----------
    linear : Linear
    curved : Curved or None
        None where the scores do not call for more than a direction.
    measured : Measured
        The images that it was fitted to.
    weights : ndarray, float64 (d,)
        Expected size of the effect along each latent dimension: the models' coordinates are latents times these.
    """

    linear: Linear
    curved: Curved | None
    measured: Measured
    weights: Array

    @property
    def advantage(self) -> float:
        """Log evidence of a preference over none, by the linear model.

        Without a preference it exceeds log(20) in one run of 20 at most, whenever one looks and however images were chosen (J. Ville 1939;
        P. Gruenwald et al. 2024, doi:10.1093/jrsssb/qkae011), but for the reweighting of incredible scores.
        """
        return self.linear.advantage

    @property
    def direction(self) -> Array:
        """Best guess of the direction (d,) in which responses rise, not of length 1."""
        return np.asarray(self.weights * self.linear.mean().direction[0], np.float64)

    def directions(self, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, d) of that."""
        with one_thread():
            return np.asarray(self.weights * self.linear.posterior(n, rng)[:, :-1], np.float64)

    def responses(self, latents: Array, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, m) of the responses to latents (m, d), above that to a random image, in the unit of the scores."""
        with one_thread():
            if self.curved is not None:
                return self.curved.posterior(latents * self.weights, n, rng)
            return np.asarray(self.linear.posterior(n, rng) @ features(latents * self.weights).T, np.float64)

    def images(self, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, m) of the responses to the scored images themselves, above that to a random one.

        An image's response is the model's value of its latent plus a part of its own, on which its score informs as much as it is
        more certain than images differ from the model (a random effect: C. R. Henderson 1975, doi:10.2307/2529430).
        """
        known, draws = self.measured, self.responses(self.measured.latents, n, rng)
        if known.own <= 0:
            return draws
        with one_thread():
            size = len(known.values)
            inverse = np.linalg.inv(known.covariance + known.own * np.eye(size))
            left = known.values - draws
            for run in np.unique(known.run):
                ones = (known.run == run) @ inverse
                weight = float(ones @ (known.run == run))
                level = left @ ones / weight + rng.standard_normal(n) / np.sqrt(weight)
                left -= np.outer(level, known.run == run)
            values, basis = np.linalg.eigh(known.own * np.eye(size) - known.own**2 * inverse)
            spread = np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal((n, size))
            return np.asarray(draws + known.own * left @ inverse + spread @ basis.T, np.float64)


def fit_linear(known: History) -> tuple[Linear, Array]:
    """Fit the linear model; also return the trust in each score: its standard error, and whether the others make it credible."""
    return without_outliers(known.latents, known.fitness, relative_precision(known.fitness_se))


def pooled(evolver: Evolver) -> Pooled | None:
    """Fit the model of several runs; None where there is only one, all of whose scores count the same."""
    if not evolver.half_life and len(np.unique(evolver.run_of(evolver.history().ids))) < 2:
        return None
    return fit_pooled(Scores.of(evolver, evolver.half_life, evolver.weights()))


def preference_of(evolver: Evolver) -> Preference | None:
    """Fit all scores of an evolver, whatever its strategy; None where there are too few, or all are alike.

    Linear algebra should be kept on one thread, see :func:`rtevo.evolve.model.one_thread`.
    """
    known = evolver.history()
    if len(known.ids) < FEWEST or np.ptp(known.fitness) == 0:
        return None
    errors: Errors | None = None
    weighted = evolver.weighted(known)
    latents, fitness, precision, run = weighted.latents, known.fitness, np.ones(len(known.ids)), np.zeros(len(known.ids), np.int64)
    errors_known = np.isfinite(known.fitness_se)
    usual = float(np.median(known.fitness_se[errors_known])) if errors_known.any() else np.inf
    covariance = np.diag(np.where(errors_known, known.fitness_se, usual) ** 2)
    if (several := pooled(evolver)) is not None:
        latents, fitness, errors, linear = several.latents, several.values, several.errors, several.linear
        precision, run, covariance = np.ones(len(fitness)), several.run, several.covariance
    elif (found := evolver.fitted(weighted)) is not None:
        fitness, covariance, linear, errors = found
    else:
        linear, precision = fit_linear(weighted)
    curved: Curved | None = Curved(latents, fitness, precision, linear, linear.mean().direction[0], errors)
    if curved is not None and curved.advantage <= _CURVED_EVIDENCE:
        curved = None
    noise = curved.noise_variance if curved is not None else float(linear.noise_variance[int(np.argmax(linear.weights))])
    varies = noise * float(np.median(1.0 / precision if errors is None else np.diag(errors.covariance)))
    own, m = max(varies - float(np.median(np.diag(covariance))), 0.0), len(known.ids)  # probes come after the candidates
    return Preference(linear, curved, Measured(known.latents, fitness[:m], run[:m], covariance[:m, :m], own), evolver.weights())
