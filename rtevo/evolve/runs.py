"""Scores of several runs in one model: each run has an offset, a unit, noise and a drift of its own.

Another day, coil position or placement shifts all scores and stretches them. The model of score i in run r is

    score = offset_r + scale_r f(latent) + drift_r position + noise_r error

- Offsets are free (a flat prior): each run's mean is taken out of everything, as the one mean of a single run is (H. D. Patterson,
  R. Thompson 1971, doi:10.1093/biomet/58.3.545). So the shift between two runs informs on the preference only through images that
  were shown in both, and through the model's values of all others.
- Scales and noises are found together with the preference by the evidence of the data, for scales differ as ``noise_r gain_r``: how noisy a
  run is (a wide prior), and how much signal it has for its noise (a narrower one). Evolution moves a run's images together, so that its
  scores vary little though its unit is the same: standardising within runs would take that for a small unit. Here the preference says how
  much they should vary.
- A slow drift (habituation) is a covariance of the errors of a run, with a wide prior.

Scores are then brought to one unit, and fitted as those of one run with errors that go together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from rtevo.evolve.base import Evolver
from rtevo.evolve.model import LOG_PRIOR, OWN, SIGNAL_TO_NOISE, Linear, features, relative_precision, without_outliers_together
from rtevo.evolve.together import Errors, Pool

__all__ = ["Effects", "Pooled", "Scores", "fit_effects", "fit_pooled"]

_NOISE = 1.5  # prior spread of the log of a run's noise, in units of its standard errors, or of all that its scores vary
_GAIN = 0.25  # and of its signal over that
_DRIFT, _DRIFT_IMAGES = 3.0, 50.0  # prior spread of a drift: this many times the usual error in this many images
_STEP = 1e-3  # of the logs, for second derivatives
_LARGEST = 6.0  # logs, at most: numbers stay numbers

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of several runs, as they came.

    Parameters
    ----------
    latents : ndarray, float64 (n, d)
        In coordinates along which effects are expected to be alike.
    values : ndarray, float64 (n,)
    covariance : ndarray, float64 (n, n)
        Of their errors, in each run but for a factor; 0 between runs.
    pool : Pool
    linked : bool
        Whether the errors' correlations are known.
    """

    latents: Array
    values: Array
    covariance: Array
    pool: Pool
    linked: bool

    @classmethod
    def of(cls, evolver: Evolver, half_life: float = 0.0, weights: Array | None = None) -> Scores:
        """Collect all that an evolver knows: candidates', and probes' that anchor runs.

        Parameters
        ----------
        evolver : Evolver
        half_life : float
            Images after which a score counts half as much; 0: it does not age.
        weights : ndarray, float64 (d,), optional
            Expected size of the effect along each latent dimension; default: all alike.
        """
        known, probes = evolver.history(), evolver.probes()
        latents = np.concatenate([known.latents, probes.latents]) * (1.0 if weights is None else weights)
        fitness, errors = np.concatenate([known.fitness, probes.fitness]), np.concatenate([known.fitness_se, probes.fitness_se])
        run = np.concatenate([evolver.run_of(known.ids), evolver.run_of([key[0] for key in probes.keys])])
        at = np.concatenate([known.ids, probes.before - 0.5])
        run = np.unique(run, return_inverse=True)[1].astype(np.int64)
        together = evolver.together(known, probes)
        values, covariance = (fitness, np.diag(_variances(fitness, errors, run))) if together is None else together
        covariance = covariance + _drift(covariance, at, run)
        weight = 0.5 ** ((evolver.asked - 1 - at) / half_life) if half_life else np.ones(len(at))
        weight = np.clip(weight, 1e-3, 1.0)
        covariance = covariance / np.sqrt(np.outer(weight, weight))
        return cls(latents, values, covariance, Pool(run, weight), together is not None)


def _variances(fitness: Array, errors: Array, run: NDArray[np.int64]) -> Array:
    """Variances of independent errors (n,), from standard errors; in a run without any, all that scores vary (a prior makes them less)."""
    known = np.isfinite(errors) & (errors > 0)
    middles = np.zeros(int(run.max()) + 1)
    for number in range(len(middles)):
        own = run == number
        middles[number] = np.median(errors[own & known]) if (own & known).any() else fitness[own].std()
    middles[middles == 0] = np.median(middles[middles > 0]) if middles.any() else 1.0  # of a single score, say
    made = np.empty(len(errors))
    for number, middle in enumerate(middles):
        made[run == number] = middle**2 / relative_precision(errors[run == number])
    return made


def _drift(covariance: Array, at: Array, run: NDArray[np.int64]) -> Array:
    """Covariance (n, n) of a drift within each run."""
    made = np.zeros_like(covariance)
    for number in range(int(run.max()) + 1):
        own = np.flatnonzero(run == number)
        usual = _DRIFT**2 * float(np.median(np.diag(covariance)[own]))
        along = (at[own] - at[own].mean()) / _DRIFT_IMAGES
        made[np.ix_(own, own)] = usual * np.outer(along, along)
    return made


def _usual(covariance: Array, own: NDArray[np.bool_]) -> float:
    """Usual standard error of some of the scores."""
    return math.sqrt(float(np.median(np.diag(covariance)[own])))


@dataclass(frozen=True)
class Effects:
    """How the runs differ.

    Parameters
    ----------
    noise : ndarray, float64 (runs,)
        Spread of the errors, but for a factor that all share: in the unit of the scores.
    gain : ndarray, float64 (runs,)
        Signal over noise, likewise.
    scale : ndarray, float64 (runs,)
        Unit of the scores: that of the first run is 1.
    log_scale_sd : ndarray, float64 (runs,)
        Standard deviation of its logarithm; the first run's is 0.
    """

    noise: Array
    gain: Array
    scale: Array
    log_scale_sd: Array


class _Evidence:
    """Evidence of the linear model as a function of the runs' noises and gains, from sums over each run."""

    def __init__(self, scores: Scores) -> None:
        d, runs = scores.latents.shape[1], scores.pool.runs
        self.runs = runs
        self.gram, self.cross = np.zeros((runs, d + 1, d + 1)), np.zeros((runs, d + 1))
        self.total, self.freedom, self.unit = np.zeros(runs), np.zeros(runs), np.ones(runs)
        known = np.column_stack([features(scores.latents), scores.values])
        for run in range(runs):
            own = np.flatnonzero(scores.pool.run == run)
            block = scores.covariance[np.ix_(own, own)]
            self.unit[run] = _usual(scores.covariance, scores.pool.run == run)
            factor = cholesky(block / self.unit[run] ** 2 + 1e-9 * np.eye(len(own)), lower=True, check_finite=False)
            made = solve_triangular(factor, np.column_stack([known[own], np.ones(len(own))]), lower=True, check_finite=False)
            ones = made[:, -1]
            made = made[:, :-1] - np.outer(ones, ones @ made[:, :-1] / (ones @ ones))
            x, y = made[:, :-1], made[:, -1] / self.unit[run]
            self.gram[run], self.cross[run], self.total[run] = x.T @ x, x.T @ y, y @ y
            self.freedom[run] = max(float(scores.pool.weight[own].sum()) - 1.0, 0.0)
        level = float(self.total.sum() / max(self.freedom.sum(), 1.0))  # so that numbers are about 1, whatever the scores' unit
        self.unit *= math.sqrt(level) if level > 0 else 1.0
        self.cross /= math.sqrt(level) if level > 0 else 1.0
        self.total /= level if level > 0 else 1.0

    def start(self) -> Array:
        """Where to begin: noises as scores vary, equal gains."""
        varies = np.where(self.freedom >= 1, self.total / np.maximum(self.freedom, 1.0), 1.0)
        return np.concatenate([np.clip(0.5 * np.log(np.maximum(varies, 1e-12)), -3, 3), np.zeros(self.runs)])

    def __call__(self, logs: Array) -> tuple[float, Array]:
        """Minus the log of the posterior density of logs of noises and gains (2 runs,), and its gradient."""
        noise, gain = np.exp(logs[: self.runs]), np.exp(logs[self.runs :])
        values, basis = np.linalg.eigh(np.einsum("r,rij->ij", gain**2, self.gram))
        values = np.maximum(values, 0.0)
        own = self.cross * (gain / noise)[:, np.newaxis] @ basis  # (runs, d + 1), in the eigenbasis
        of_run = np.stack([(basis * (gram @ basis)).sum(axis=0) for gram in self.gram]) * gain[:, np.newaxis] ** 2
        cross, freedom = own.sum(axis=0), max(float(self.freedom.sum()), 1.0)
        shrunk = 1.0 + np.outer(SIGNAL_TO_NOISE, values)
        mean = SIGNAL_TO_NOISE[:, np.newaxis] * cross / shrunk
        spread = self.total / noise**2
        squares = np.maximum(spread.sum() - mean @ cross, 1e-12 * spread.sum() + 1e-300)
        log = LOG_PRIOR - 0.5 * np.log(shrunk).sum(axis=1) - 0.5 * freedom * np.log(squares)
        best = float(log.max())
        weights = np.exp(log - best)
        value = best + math.log(float(weights.sum())) - float(self.freedom @ logs[: self.runs])
        weights /= weights.sum()
        explained = mean @ own.T  # (ratios, runs)
        curved = np.stack([(mean @ basis.T @ gram * (mean @ basis.T)).sum(axis=1) for gram in self.gram], axis=1) * gain**2
        by_squares = -0.5 * freedom / squares[:, np.newaxis]
        to_noise = weights @ (by_squares * (-2 * spread + 2 * explained)) - self.freedom
        taken = (SIGNAL_TO_NOISE[:, np.newaxis] / shrunk) @ of_run.T
        to_gain = weights @ (-taken + by_squares * (-2 * explained + 2 * curved))
        spreads = np.repeat([_NOISE, _GAIN], self.runs)
        gradient = np.concatenate([to_noise, to_gain]) - logs / spreads**2
        return -(value - 0.5 * float((logs**2 / spreads**2).sum())), -gradient


def fit_effects(scores: Scores, *, errors: bool = False) -> Effects:
    """Find how the runs differ: the mode of noises and gains.

    Parameters
    ----------
    scores : Scores
    errors : bool
        Find how sure that is, too, from the curvature there; else those are NaN.
    """
    evidence = _Evidence(scores)
    limits = [(-_LARGEST, _LARGEST)] * (2 * evidence.runs)
    found = minimize(evidence, evidence.start(), jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 60})
    logs = np.asarray(found.x, np.float64)
    noise, gain = np.exp(logs[: evidence.runs]) * evidence.unit, np.exp(logs[evidence.runs :])
    sd = np.full(evidence.runs, np.nan)
    if errors:
        moved = [(evidence(logs + step)[1] - evidence(logs - step)[1]) / (2 * _STEP) for step in _STEP * np.eye(len(logs))]
        covariance = np.linalg.pinv((np.array(moved) + np.array(moved).T) / 2, hermitian=True)
        differs = np.hstack([np.eye(evidence.runs) - np.eye(evidence.runs)[0]] * 2)  # of each run's log scale to the first's
        sd = np.sqrt(np.maximum(np.einsum("ri,ij,rj->r", differs, covariance, differs), 0.0))
    return Effects(noise, gain, noise * gain / (noise[0] * gain[0]), sd)


@dataclass(frozen=True)
class Pooled:
    """Scores in one unit, and the linear model of them.

    Parameters
    ----------
    latents : ndarray, float64 (n, d)
    values : ndarray, float64 (n,)
        In the unit of the preference.
    errors : Errors
    linear : Linear
    run : ndarray, int64 (n,)
    covariance : ndarray, float64 (n, n)
        Of the errors as scores came with them, in the unit of the preference.
    """

    latents: Array
    values: Array
    errors: Errors
    linear: Linear
    run: NDArray[np.int64]
    covariance: Array

    def offsets(self, effects: Effects) -> tuple[Array, Array]:
        """How much higher a random image would score in each run than in the first (runs,), and the standard deviation of that."""
        scale, at = effects.scale, self.errors.averages(features(self.latents))
        shown, _ = self.linear.sums(at)
        moved, variance = self.linear.sums(at * scale[:, np.newaxis] - at[0])
        level = self.errors.averages(self.values) * scale
        noise = float(self.linear.noise_variance[int(np.argmax(self.linear.weights))])
        own = scale**2 * np.array([noise / float(ones @ ones) for ones in self.errors.means()])
        sd = np.sqrt(variance + own + own[0] + (scale * shown * effects.log_scale_sd) ** 2)
        sd[0] = 0.0
        return level - level[0] - moved, sd


def fit_pooled(scores: Scores) -> Pooled:
    """Bring the scores of several runs to one unit, and fit the linear model; scores that the others make incredible count less."""
    pooled = _fitted(scores, fit_effects(scores))
    if pooled.errors.trust.min() < 1.0:  # these have counted as much as the others in what the runs' noises are
        factor = cholesky(scores.covariance, lower=True, check_finite=False) / pooled.errors.trust
        pooled = _fitted(scores, fit_effects(replace(scores, covariance=factor @ factor.T)))
    return pooled


def _fitted(scores: Scores, effects: Effects) -> Pooled:
    """Fit the linear model where it is known how the runs differ."""
    run = scores.pool.run
    error = np.array([_usual(scores.covariance, run == number) for number in range(scores.pool.runs)]) * effects.gain
    values, covariance = scores.values / effects.scale[run], scores.covariance / np.outer(error[run], error[run])
    shares = OWN if scores.linked else OWN[:1]
    linear, errors = without_outliers_together(scores.latents, values, covariance, scores.pool, shares)
    measured = scores.covariance / np.outer(effects.scale[run], effects.scale[run])
    return Pooled(scores.latents, values, errors, linear, run, measured)
