"""Bayesian regression of scores on latents: which images are better, and how certain that is.

Two models of the fitness f(x), both with a Gaussian prior and Gaussian noise:

- linear: ``f = a + g . x + b |x|^2``, a direction and the effect of the length. With a spherical prior on g this is ridge regression. On
  latents of one length, a cosine similarity, a distance to a target and any monotone function of a direction are all (nearly) linear.
- curved: a Gaussian process with the covariance ``exp(x . x' / d)``, which is the linear one plus all higher powers. Between random
  latents in many dimensions the two hardly differ; where candidates have come together near an optimum the curved one knows that what
  holds there need not hold elsewhere (several optima, saturation, a valley). Rasmussen and Williams 2006, ISBN 0-262-18253-X, 4.2.2.

The size of the signal against the noise is found by the evidence of the data (D. J. C. MacKay 1992,
doi:10.1162/neco.1992.4.3.415) and a weak prior: the linear model averages over a grid of it, the curved one takes the best. Scores
weigh by their standard errors, up to a common factor that is estimated.

Scores that all others make incredible (a cough, an artefact that slipped through) count less, as under noise with heavy tails: one score in
twenty with ten times the noise cost 40% of the gain before.

Linear algebra is kept on one thread: two cores shared with other processes slowed it a hundredfold, and the last bits of a result
would depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from threadpoolctl import ThreadpoolController

from rtevo.evolve.together import Errors, Pool

__all__ = ["Curved", "Errors", "Linear", "evidence", "one_thread", "relative_precision", "without_outliers", "without_outliers_together"]

SIGNAL_TO_NOISE = np.geomspace(0.03, 100.0, 9)
"""Variance of the signal (of random latents) over that of the noise."""
LOG_PRIOR = -0.5 * (np.log(SIGNAL_TO_NOISE / 0.3) / math.log(5.0)) ** 2
"""Of that: the median is 0.3, one standard deviation a factor of 5."""
_RADIAL = math.sqrt(0.5)  # prior spread of the effect of the length, as a share of that of the direction
_SPREAD = 4.0  # standard errors count as at most this many times larger or smaller than the median
OWN = (0.0, 0.03, 0.1, 0.3, 1.0)  # variance of what is each image's own and no model explains, in those of the usual error
_CONSTANT = 100.0  # prior variance of the mean fitness, in signal variances
_INCREDIBLE = 4.0  # standard deviations from which on a score counts as less certain than it says
_ROUNDS = 3  # of telling which these are
_MOST = 400  # scores that the curved model uses: those closest to the best direction

Array = NDArray[np.float64]


@lru_cache(maxsize=1)
def _pools() -> ThreadpoolController:
    """Find the thread pools of the linear algebra libraries, once."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep NumPy's and SciPy's linear algebra on one thread."""
    with _pools().limit(limits=1, user_api="blas"):
        yield


def relative_precision(fitness_se: Array) -> Array:
    """Weights of scores, mean 1, from their standard errors; those without one count as the median."""
    known = np.isfinite(fitness_se)
    if not known.any():
        return np.ones(len(fitness_se))
    middle = float(np.median(fitness_se[known]))
    if middle == 0:
        return np.ones(len(fitness_se))
    errors = np.clip(np.where(known, fitness_se, middle), middle / _SPREAD, middle * _SPREAD)
    weights = errors**-2.0
    return np.asarray(weights / weights.mean(), np.float64)


@dataclass(frozen=True)
class Slope:
    """Local description of the fitness for several draws: ``f = g . x + b |x|^2``.

    Parameters
    ----------
    direction : ndarray, float64 (n, d)
        g of each draw.
    length : ndarray, float64 (n,)
        b of each draw.
    """

    direction: Array
    length: Array


class Linear:
    """The linear model, fitted.

    Parameters
    ----------
    latents : ndarray, float64 (n, d)
        n >= 2.
    fitness, precision : ndarray, float64 (n,)
        Scores and their weights.
    errors : Errors, optional
        Scores' errors where they go together: generalised least squares (A. C. Aitken 1936, doi:10.1017/S0370164600014346), and `precision`
        does not count.
    """

    def __init__(self, latents: Array, fitness: Array, precision: Array, errors: Errors | None = None) -> None:
        n, d = latents.shape
        self._d = d
        known = np.column_stack([features(latents), fitness])
        if errors is None:
            root = np.sqrt(precision)[:, np.newaxis]
            self._centred = known - (precision @ known) / precision.sum()
            self._precision = precision
            x, y = root * self._centred[:, :-1], root[:, 0] * self._centred[:, -1]
        else:
            x, y = np.split(errors.whitened(known), [-1], axis=1)
            y = y[:, 0]
            self._whitened = x, y
        values, self._basis = np.linalg.eigh(x.T @ x)
        self._values = np.maximum(values, 0.0)
        self._cross = self._basis.T @ (x.T @ y)
        total = float(y @ y)
        shrunk = 1.0 + np.outer(SIGNAL_TO_NOISE, self._values)
        squares = np.maximum(total - (SIGNAL_TO_NOISE[:, np.newaxis] * self._cross**2 / shrunk).sum(axis=1), 1e-12 * total + 1e-300)
        freedom = n - 1 if errors is None else errors.freedom
        self.log_evidence = -0.5 * np.log(shrunk).sum(axis=1) - 0.5 * freedom * np.log(squares)
        log = self.log_evidence + LOG_PRIOR
        weights = np.exp(log - log.max())
        self.weights = weights / weights.sum()
        self.noise_variance = squares / max(freedom, 1)
        self._shrunk, self._freedom = shrunk, max(freedom, 1)
        self._of_none = -0.5 * freedom * math.log(max(total, 1e-300))
        self._mean = ((self.weights * SIGNAL_TO_NOISE)[:, np.newaxis] * self._cross / shrunk).sum(axis=0)

    def surprise(self, precision: Array) -> Array:
        """Distance of each score from what the others predict of it, in standard deviations of that, but for a common factor.

        Parameters
        ----------
        precision : ndarray, float64 (n,)
            Of the scores as they are expected to be; what the model was fitted with may be less.
        """
        best = int(np.argmax(self.weights))
        turned = self._centred[:, :-1] @ self._basis
        gain = SIGNAL_TO_NOISE[best] / self._shrunk[best]
        known = (turned**2) @ gain + 1.0 / self._precision.sum()
        left = np.maximum(1.0 - self._precision * known, 1e-9)  # leverage: a score's own share in its prediction
        miss = (self._centred[:, -1] - turned @ (gain * self._cross)) / left
        return np.asarray(miss / np.sqrt(1.0 / precision + known / left), np.float64)

    def surprise_together(self, errors: Errors) -> Array:
        """The same where errors go together: of what each score adds to those before it, as it is expected to be."""
        best, (x, y) = int(np.argmax(self.weights)), self._whitened
        turned = x @ self._basis
        gain = SIGNAL_TO_NOISE[best] / self._shrunk[best]
        known = (turned**2) @ gain + sum(ones**2 / (ones @ ones) for ones in errors.means())
        left = np.maximum(1.0 - known, 1e-9)
        miss = (y - turned @ (gain * self._cross)) / left
        return np.asarray(miss / errors.trust / np.sqrt(1.0 + known / left / errors.trust**2), np.float64)

    def sums(self, of: Array) -> tuple[Array, Array]:
        """Mean and variance of the fitness of sums of :func:`features` (k, d + 1)."""
        best, turned = int(np.argmax(self.weights)), of @ self._basis
        return turned @ self._mean, (turned**2) @ (self.noise_variance[best] * SIGNAL_TO_NOISE[best] / self._shrunk[best])

    @property
    def advantage(self) -> float:
        """Log evidence above that of no preference at all: scores that vary about their mean, whatever the latents."""
        prior = LOG_PRIOR - np.logaddexp.reduce(LOG_PRIOR)
        return float(np.logaddexp.reduce(self.log_evidence + prior)) - self._of_none

    def posterior(self, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, d + 1) from the whole posterior: what a unit of each of :func:`features` is worth, the noise being unknown, too."""
        which = rng.choice(len(SIGNAL_TO_NOISE), size=n, p=self.weights)
        noise = self.noise_variance[which] * self._freedom / rng.chisquare(self._freedom, n)
        gain = SIGNAL_TO_NOISE[which, np.newaxis] / self._shrunk[which]
        turned = gain * self._cross + np.sqrt(noise[:, np.newaxis] * gain) * rng.standard_normal((n, len(self._cross)))
        return np.asarray(turned @ self._basis.T, np.float64)

    def mean(self) -> Slope:
        """Posterior mean, one draw."""
        return self._slope(self._mean[np.newaxis])

    def draw(self, n: int, spread: float, rng: np.random.Generator) -> Slope:
        """Draws around the posterior mean, with a share of the posterior's spread; 0: the mean itself.

        Deviations have the posterior's total variance but lean to what is known least (its standard deviations squared), and those
        of one call are at right angles to each other as far as dimensions allow: scores of such candidates tell most.
        """
        if spread == 0:
            return self._slope(np.repeat(self._mean[np.newaxis], n, axis=0))
        which = rng.choice(len(SIGNAL_TO_NOISE), size=n, p=self.weights)
        ratio, shrunk = SIGNAL_TO_NOISE[which, np.newaxis], self._shrunk[which]
        sd = np.sqrt(self.noise_variance[which, np.newaxis] * ratio / shrunk)
        most = sd.max(axis=1, keepdims=True)
        part = sd / most  # whose squares are no smaller than numbers can be, however small fitness is
        leaning = most * part**2 * (np.linalg.norm(part, axis=1) / np.linalg.norm(part**2, axis=1))[:, np.newaxis]
        deviations = right_angles(leaning * rng.standard_normal((n, len(self._cross))))
        return self._slope(self._mean + spread * (ratio * self._cross / shrunk + deviations - self._mean))

    def expected_gain(self, n: int, rng: np.random.Generator, draws: int = 200) -> float:
        """Expected rise of the best image's fitness by `n` more scores (P. I. Frazier et al. 2009, doi:10.1287/ijoc.1080.0314).

        What is expected to be known after the scores of `n` candidates drawn as :meth:`draw` has them is a distribution of posterior
        means, whatever the scores will be; the best image on a sphere is as much better as they are longer on average.

        Returns
        -------
        float
            In standard deviations of the fitness of random latents.
        """
        best = int(np.argmax(self.weights))
        ratio, noise = float(SIGNAL_TO_NOISE[best]), float(self.noise_variance[best])
        variance = noise * ratio / self._shrunk[best]
        candidates = unit(self.draw(n, 1.0, rng).direction)
        rows = np.column_stack([candidates, np.zeros(n)]) @ self._basis  # features of latents of the usual length
        values, vectors = np.linalg.eigh((rows * variance) @ rows.T + noise * np.eye(n))
        step = (variance[:, np.newaxis] * rows.T) @ (vectors / np.sqrt(values))
        after = self._mean + rng.standard_normal((draws, n)) @ step.T
        known, later = np.linalg.norm(self._mean @ self._basis.T[:, :-1]), np.linalg.norm(after @ self._basis.T[:, :-1], axis=1).mean()
        signal = math.sqrt(known**2 + float((variance @ (self._basis[:-1] ** 2).T).sum()))
        return math.sqrt(self._d) * max(float(later - known), 0.0) / signal

    def _slope(self, coefficients: Array) -> Slope:
        """Turn coefficients in the eigenbasis (n, d + 1) into slopes."""
        plain = coefficients @ self._basis.T
        return Slope(plain[:, :-1] / math.sqrt(self._d), plain[:, -1] * _RADIAL / math.sqrt(2 * self._d))


def without_outliers(latents: Array, fitness: Array, precision: Array) -> tuple[Linear, Array]:
    """Fit the linear model to scores, of which those that the others make incredible have less precision.

    A score within `_INCREDIBLE` standard deviations (as most scores have them) of what the model of all others predicts keeps its
    precision, one twice as far a quarter of it. Found by reweighting (P. W. Holland and R. E. Welsch 1977,
    doi:10.1080/03610927708827533).

    Parameters
    ----------
    latents, fitness, precision : ndarray
        As for :class:`Linear`.

    Returns
    -------
    model : Linear
    precision : ndarray, float64 (n,)
        What it was fitted with.
    """
    weights = precision
    for _ in range(_ROUNDS):
        model = Linear(latents, fitness, weights)
        far = np.abs(model.surprise(precision))
        limit = _INCREDIBLE * 1.4826 * float(np.median(far))
        lowered = precision * (limit / np.maximum(far, limit)) ** 2 if limit > 0 else precision
        if np.array_equal(lowered, weights):
            return model, weights
        weights = lowered
    return Linear(latents, fitness, weights), weights


def without_outliers_together(
    latents: Array,
    fitness: Array,
    covariance: Array,
    pool: Pool | None = None,
    own: Sequence[float] = OWN,
    kind: type[Errors] = Errors,
) -> tuple[Linear, Errors]:
    """The same as :func:`without_outliers` for scores whose errors go together.

    Parameters
    ----------
    latents, fitness : ndarray
        As for :class:`Linear`.
    covariance : ndarray, float64 (n, n)
        Of the errors, but for a common factor.
    pool : Pool, optional
        The runs that the scores are of.
    own : sequence of float
        What may be an image's own, and neither the model's nor an error, in variances of the usual error: the most probable is added.
        None of them: it is part of the covariance.
    kind : type
        Of the errors.
    """
    nobody = np.ones(len(fitness))
    usual = float(np.median(np.diag(covariance)))
    if own:
        tried = [covariance + share * usual * np.eye(len(fitness)) for share in own]
        covariance = max(tried, key=lambda each: evidence(latents, fitness, kind(each, pool=pool)))
    errors = kind(covariance, pool=pool)
    for _ in range(_ROUNDS):
        model = Linear(latents, fitness, nobody, errors)
        far = np.abs(model.surprise_together(errors))
        limit = _INCREDIBLE * 1.4826 * float(np.median(far))
        trust = limit / np.maximum(far, limit) if limit > 0 else errors.trust
        if np.array_equal(trust, errors.trust):
            return model, errors
        errors = kind(covariance, trust, pool)
    return Linear(latents, fitness, nobody, errors), errors


def evidence(latents: Array, fitness: Array, errors: Errors) -> float:
    """Log evidence of the linear model under some errors, but for a constant."""
    model = Linear(latents, fitness, np.ones(len(fitness)), errors)
    return float(np.logaddexp.reduce(model.log_evidence + LOG_PRIOR)) - float(np.log(np.diag(errors.factor)).sum())


class Curved:
    """The curved model, fitted; its draws are of the linear part only, corrected by the data as a whole.

    Parameters
    ----------
    latents, fitness, precision : ndarray
        As for :class:`Linear`.
    linear : Linear
        The linear model of the same scores: gives the size of the signal to try.
    towards : ndarray, float64 (d,)
        The best direction so far.
    errors : Errors, optional
        As for :class:`Linear`.

    Attributes
    ----------
    advantage : float
        Log evidence above that of the linear model of the same scores.
    """

    def __init__(
        self, latents: Array, fitness: Array, precision: Array, linear: Linear, towards: Array, errors: Errors | None = None
    ) -> None:
        if len(latents) > _MOST:
            keep = np.sort(np.argsort(latents @ towards, kind="stable")[-_MOST:])
            latents, fitness, precision = latents[keep], fitness[keep], precision[keep]
            errors = None if errors is None else errors.of(keep)
            linear = Linear(latents, fitness, precision, errors)
        n, d = latents.shape
        self._latents, self._d, self._n = latents, d, n
        self._radial = radial(latents)
        covariance = np.exp(latents @ latents.T / d) - 1.0 + np.outer(self._radial, self._radial)
        self._errors = errors
        if errors is None:
            self._fitness = fitness - float((precision * fitness).sum() / precision.sum())
        else:
            self._fitness = errors.without_mean(fitness)
        self._precision = precision
        best = int(np.argmax(linear.log_evidence))
        tries = [self._solve(covariance, float(SIGNAL_TO_NOISE[k])) for k in range(max(best - 1, 0), min(best + 2, len(SIGNAL_TO_NOISE)))]
        log_evidence, self._ratio, self._factor, self.noise_variance = max(tries, key=lambda found: found[0])
        self._freedom = max(n - 1.0 if errors is None else errors.freedom, 1.0)
        self.advantage = log_evidence - float(linear.log_evidence.max())

    def _solve(self, covariance: Array, ratio: float) -> tuple[float, float, Array, float]:
        """Return log evidence (as the linear model counts it), the ratio itself, the Cholesky factor and the noise variance."""
        if self._errors is None:
            whole = ratio * (covariance + _CONSTANT)
            whole[np.diag_indices(self._n)] += 1.0 / self._precision
            known, log_det, freedom = [float(self._n)], -float(np.log(self._precision).sum()), self._n - 1.0
        else:
            whole = ratio * (covariance + _CONSTANT * self._errors.together()) + self._errors.covariance
            known = [float((ones**2).sum()) for ones in self._errors.means()]
            log_det, freedom = 2.0 * float(np.log(np.diag(self._errors.factor)).sum()), self._errors.freedom
        factor = cholesky(whole, lower=True, overwrite_a=True, check_finite=False)
        squares = max(float(self._fitness @ cho_solve((factor, True), self._fitness, check_finite=False)), 1e-300)
        evidence = -float(np.log(np.diag(factor)).sum()) - 0.5 * freedom * math.log(squares)
        evidence += sum(0.5 * math.log(ratio * _CONSTANT * each) for each in known) + 0.5 * log_det  # means that are given
        return evidence, ratio, factor, squares / (freedom + len(known))

    def posterior(self, points: Array, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, m) from the posterior at points (m, d), above a random image; the noise is unknown, too."""
        own = np.vstack([self._latents, points])
        lengths = radial(own)
        prior = self._ratio * (np.exp(points @ own.T / self._d) - 1.0 + np.outer(lengths[self._n :], lengths))
        cross, within = prior[:, : self._n], prior[:, self._n :]
        mean = cross @ cho_solve((self._factor, True), self._fitness, check_finite=False)
        values, basis = np.linalg.eigh(within - cross @ cho_solve((self._factor, True), cross.T, check_finite=False))
        noise = self.noise_variance * self._freedom / rng.chisquare(self._freedom, n)
        spread = np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal((n, len(points)))
        return np.asarray(mean + np.sqrt(noise)[:, np.newaxis] * (spread @ basis.T), np.float64)

    def ascend(self, start: Array, reach: Callable[[Array], Array], spread: float, rng: np.random.Generator, steps: int = 16) -> Slope:
        """Slopes at the maxima on a surface, as a sphere, that are reached from `start`, one for each draw from the posterior.

        Each step goes to where the gradient points, or, where that is not better, less far from where it is (the shifted power method of
        T. G. Kolda and J. R. Mayo 2011, doi:10.1137/100801482): a gradient that points inwards would lead to the other side of the sphere.

        Parameters
        ----------
        start : ndarray, float64 (draws, d)
            Directions to start from.
        reach : callable
            From directions (draws, d) in which the fitness rises to the points of the surface that are farthest in them.
        spread : float
            Spread of the draws around the posterior mean, as a share of the posterior's own; 0: the mean itself.
        rng : numpy.random.Generator
            Source of the draws.
        steps : int
            At most.

        Returns
        -------
        Slope
            In the direction of each maximum, as steep as the fitness is there along it.
        """
        draws, d = start.shape
        prior: Array = np.zeros((draws, d))
        prior_length: Array = np.zeros(draws)
        targets = np.repeat(self._fitness[:, np.newaxis], draws, axis=1)
        if spread > 0:  # a draw of the posterior is a draw of the prior plus the fit to what it does not explain (Matheron)
            sd = spread * math.sqrt(self.noise_variance)
            prior[:] = sd * math.sqrt(self._ratio / d) * rng.standard_normal((draws, d))
            prior_length[:] = sd * math.sqrt(self._ratio) * rng.standard_normal(draws)
            targets -= self._latents @ prior.T + np.outer(self._radial, prior_length)
            if self._errors is None:
                targets -= sd / np.sqrt(self._precision)[:, np.newaxis] * rng.standard_normal((self._n, draws))
            else:
                targets -= sd * self._errors.factor @ rng.standard_normal((self._n, draws))
        alpha = self._ratio * cho_solve((self._factor, True), targets, check_finite=False).T
        length = (alpha @ self._radial + prior_length) * _RADIAL / math.sqrt(2 * d)

        def look(at: Array) -> tuple[Array, Array]:
            """Value and gradient of each draw at its point (draws, d)."""
            pull = alpha * np.exp(at @ self._latents.T / d)
            return pull.sum(axis=1) + (prior * at).sum(axis=1), pull @ self._latents / d + prior

        point, stay = reach(start), np.zeros((draws, 1))
        value, gradient = look(point)
        for _ in range(steps):
            onwards = unit(gradient) + stay * unit(point)  # nothing, where these are opposite and as long: in one dimension
            moved = reach(onwards)
            reached, there = look(moved)
            better = (reached >= value)[:, np.newaxis] & onwards.any(axis=1, keepdims=True)
            stay = np.where(better, stay / 2, 2 * stay + 0.5)
            value = np.where(better[:, 0], reached, value)
            point, gradient = np.where(better, moved, point), np.where(better, there, gradient)
        outwards = unit(point)
        steep = np.maximum((gradient * outwards).sum(axis=1), 1e-9 * np.linalg.norm(gradient, axis=1))  # inwards: as short as may be
        return Slope(outwards * steep[:, np.newaxis], np.asarray(length, np.float64))


def radial(latents: Array) -> Array:
    """Effect of the length: 0 on average over N(0, I), spread a share of that of a direction."""
    d = latents.shape[1]
    return np.asarray(_RADIAL * ((latents**2).sum(axis=1) - d) / math.sqrt(2 * d), np.float64)


def features(latents: Array) -> Array:
    """What the linear model is linear in (n, d + 1)."""
    return np.column_stack([latents / math.sqrt(latents.shape[1]), radial(latents)])


def right_angles(rows: Array, earlier: Array | None = None) -> Array:
    """Turn the rows (n, d), each of its own length, to right angles with `earlier` ones (m, d) and each other: the first ``d - m``."""
    m = 0 if earlier is None else len(earlier)
    n = max(0, min(len(rows), rows.shape[1] - m))
    if m + n < 2 or n == 0:
        return rows
    frame, triangle = np.linalg.qr((rows[:n] if earlier is None else np.vstack([earlier, rows[:n]])).T)
    signs = np.where(np.diag(triangle)[m:] < 0, -1.0, 1.0)
    turned = rows.copy()
    turned[:n] = (frame[:, m:] * signs).T * np.linalg.norm(rows[:n], axis=1, keepdims=True)
    return turned


def unit(directions: Array) -> Array:
    """Scale rows to length 1; rows of zeros stay."""
    norm = np.linalg.norm(directions, axis=1, keepdims=True)
    scaled: Array = np.divide(directions, norm, out=np.zeros_like(directions), where=norm > 0)
    return scaled
