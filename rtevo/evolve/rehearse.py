"""Simulated participants with a known preference, and whole runs with them, to measure the gain of a strategy.

Only evolution is simulated: an image's true fitness is a function of its latent, its score comes some seconds after its onset with noise
added. Fitness is scaled so that random images have mean 0 and standard deviation 1; gains and noise are in these units. Runs are driven by
the same :class:`rtevo.evolve.course.Course` as sessions.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.evolve.base import Evolver
from rtevo.evolve.controls import Feedback
from rtevo.evolve.course import Course, CourseSettings, Request
from rtevo.evolve.shell import Shell

__all__ = ["OBJECTIVES", "Case", "Outcome", "mixed", "play", "rehearse", "standardised"]

Array = NDArray[np.float64]
Fitness = Callable[[Array], Array]

_SAMPLE = 4000  # random images that set the scale
_LATE_S = 30.0  # a late score comes so much later
_OUTLIER = 10.0  # times the noise
_UNLIKE = (0.0, 1.0, -1.0, 0.5, -0.5)  # how far each run of a chain differs from the first: shares of the offset, powers of the scale
_PROBES, _PROBE_SEED = 2, 7


def _unit(points: Array) -> Array:
    """Scale rows to length 1."""
    return np.asarray(points / np.linalg.norm(points, axis=-1, keepdims=True), np.float64)


def cosine(size: int, rng: np.random.Generator) -> Fitness:
    """Similarity of direction to one target."""
    target = _unit(rng.standard_normal(size))
    return lambda x: np.asarray(_unit(x) @ target, np.float64)


def bounded(size: int, rng: np.random.Generator) -> Fitness:
    """Squared distance to a target at 0.7 of the usual length."""
    target = 0.7 * math.sqrt(size) * _unit(rng.standard_normal(size))
    return lambda x: np.asarray(-((x - target) ** 2).sum(axis=-1), np.float64)


def multimodal(size: int, rng: np.random.Generator) -> Fitness:
    """The nearest of five targets that are worth 1 to 0.6."""
    targets, worth = _unit(rng.standard_normal((5, size))), np.linspace(1, 0.6, 5)
    return lambda x: np.asarray((_unit(x) @ targets.T * worth).max(axis=-1), np.float64)


def peaks(size: int, rng: np.random.Generator) -> Fitness:
    """Five narrow peaks: nearly flat where random images are."""
    targets, worth = _unit(rng.standard_normal((5, size))), np.linspace(1, 0.6, 5)
    return lambda x: np.asarray((np.exp((_unit(x) @ targets.T - 1) / 0.3) * worth).sum(axis=-1), np.float64)


def ridge(size: int, rng: np.random.Generator) -> Fitness:
    """A direction that involves only one in twenty latent dimensions; it pays to grow longer, as far as a strategy lets itself."""
    chosen = rng.permutation(size)[: max(1, size // 20)]
    weights = np.zeros(size)
    weights[chosen] = rng.standard_normal(len(chosen))
    weights = _unit(weights)
    return lambda x: np.asarray(10 * np.tanh(x @ weights / 10), np.float64)


def valley(size: int, rng: np.random.Generator) -> Fitness:
    """A quadratic optimum in one in twenty dimensions (rotated); the others do not matter."""
    few = max(1, size // 20)
    basis, centre = np.linalg.qr(rng.standard_normal((size, few)))[0], 1.5 * rng.standard_normal(few)
    return lambda x: np.asarray(-((x @ basis - centre) ** 2).sum(axis=-1), np.float64)


def saturating(size: int, rng: np.random.Generator) -> Fitness:
    """A direction whose effect levels off."""
    direction = _unit(rng.standard_normal(size))
    return lambda x: np.asarray(np.tanh(0.7 * (x @ direction)), np.float64)


OBJECTIVES: dict[str, Callable[[int, np.random.Generator], Fitness]] = {
    f.__name__: f for f in (cosine, bounded, multimodal, peaks, ridge, valley, saturating)
}


def standardised(raw: Fitness, size: int, rng: np.random.Generator, sample: int = _SAMPLE) -> Fitness:
    """Scale a fitness so that random images have mean 0 and standard deviation 1."""
    values = raw(rng.standard_normal((sample, size)))
    mean, sd = float(values.mean()), float(values.std())
    return lambda x: np.asarray((raw(x) - mean) / sd, np.float64)


@dataclass(frozen=True)
class Case:
    """One simulated run.

    Parameters
    ----------
    strategy, objective, schedule : str
    generations, population : int
    noise : float
        Standard deviation of the scores' noise, in those of random images: one over the contrast-to-noise ratio of one score.
    seed : int
        Of the participant's preference, the strategy and the noise, each with a stream of its own.
    missing, late : float
        Share of the scores that never come, and of those that come 30 s later.
    outliers : float
        Share of the scores that have ten times the noise.
    size : int
        Latent dimensions.
    mutation_sd : float
        Of truncation.
    cadence_s, lag_s : float
        From onset to onset, and from an onset to its score.
    ahead : int
        Steady: images requested ahead of the one on the screen.
    quality : float
        Correlation of what the scores measure with the true fitness, over random images, 0 to 1: a map answers to something else, too,
        which is a fitness of the same kind and independent of the true one. Gains are those of the true fitness.
    runs : int
        Runs of `generations`, each of which continues the one before, as on another day; 1 to 5. The gain is that of the last.
    offset, scale : float
        Of the second run's scores (their noise is scaled, too); the third has the opposite, the fourth half of it, the fifth its opposite.
    drift : float
        Of the scores, from a run's first image to its last.
    probe_every : int
        One image in this many is a probe; 0: none.
    informed : bool
        Whether scores come with their standard errors.
    """

    strategy: str
    objective: str
    generations: int
    population: int
    noise: float
    seed: int
    schedule: str = "generational"
    missing: float = 0.0
    late: float = 0.0
    outliers: float = 0.0
    size: int = 100
    mutation_sd: float = 0.3**0.5
    cadence_s: float = 4.0
    lag_s: float = 12.0
    ahead: int = 2
    quality: float = 1.0
    runs: int = 1
    offset: float = 0.0
    scale: float = 1.0
    drift: float = 0.0
    probe_every: int = 0
    informed: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Parameters
    ----------
    gain : float
        Mean true fitness of its last `population` candidates, in standard deviations of random images.
    mean : float
        That of all of its candidates.
    scan_s : float
        From the first onset to the end of the last image.
    """

    gain: float
    mean: float
    scan_s: float


def play(case: Case, fitness: Fitness | None = None, shell: Shell | None = None) -> Outcome:
    """Run one case.

    Parameters
    ----------
    case : Case
    fitness : callable, optional
        Scaled fitness of latents (n, size) instead of that of the case's objective.
    shell : Shell, optional
        Of the latent space; default: all directions are alike.
    """
    from rtevo.evolve import create, from_state

    if fitness is None:
        raw = OBJECTIVES[case.objective](case.size, np.random.default_rng([case.seed, 0]))
        fitness = standardised(raw, case.size, np.random.default_rng([case.seed, 1]))
    seen = fitness
    if case.quality < 1:
        other = OBJECTIVES[case.objective](case.size, np.random.default_rng([case.seed, 4]))
        seen = mixed(fitness, other, case.quality, np.random.default_rng([case.seed, 5]).standard_normal((_SAMPLE, case.size)))
    rng = np.random.default_rng([case.seed, 2])
    evolver = create(case.strategy, case.size, case.population, rng, mutation_sd=case.mutation_sd, shell=shell)
    outcome = _Run(case, evolver, fitness, seen).play()
    for run in range(1, case.runs):
        evolver = from_state(json.loads(json.dumps(evolver.to_state())))
        outcome = _Run(case, evolver, fitness, seen, run).play()
    return outcome


def mixed(fitness: Fitness, other: Fitness, quality: float, images: Array) -> Fitness:
    """Return what a map measures that correlates with the true fitness, of standard deviation 1 over random images.

    Parameters
    ----------
    fitness, other : callable
        The true one; what else the map answers to, as far as the true one does not say it already.
    quality : float
        Correlation, 0 to 1.
    images : ndarray, float64 (n, size)
        Random latents.
    """
    true, raw = fitness(images), other(images)
    shared = float(np.cov(raw, true)[0, 1] / true.var(ddof=1))
    left = raw - shared * true
    mean, rest = float(left.mean()), math.sqrt(1 - quality**2) / float(left.std())
    return lambda x: np.asarray((quality - rest * shared) * fitness(x) + rest * (other(x) - mean), np.float64)


def rehearse(
    case: Case, evolver: Evolver, fitness: Fitness, seen: Fitness, noise: np.random.Generator, feedback: Feedback
) -> tuple[Array, Array]:
    """Run one case with an evolver that may have had other runs, and return the outcome.

    Parameters
    ----------
    case : Case
        Its strategy, objective and seed are not used.
    evolver : Evolver
    fitness, seen : callable
        Scaled fitness of latents (n, size): the true one, and what the scores measure.
    noise : numpy.random.Generator
        Draws the scores' noise, and which are lost or late.
    feedback : Feedback
        The fitness that evolution receives.

    Returns
    -------
    truth, scores : ndarray, float64 (images,)
        Of each image in the order of presentation; NaN where its score was lost.
    """
    run = _Run(case, evolver, fitness, seen, noise=noise, feedback=feedback)
    run.play()
    return np.array(run.truth), np.array(run.measured)


class _Run:
    """The clock of one run."""

    def __init__(
        self,
        case: Case,
        evolver: Evolver,
        fitness: Fitness,
        seen: Fitness,
        run: int = 0,
        noise: np.random.Generator | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        self._case, self._fitness, self._seen = case, fitness, seen
        self._noise = noise or np.random.default_rng([case.seed, 3, run] if run else [case.seed, 3])
        probes = np.random.default_rng(_PROBE_SEED).standard_normal((_PROBES, case.size)) if case.probe_every else None
        settings = CourseSettings(case.generations, case.population, case.schedule, case.ahead, case.probe_every)
        self._course = Course(evolver, settings, feedback, probes=probes)
        self._offset, self._scale = case.offset * _UNLIKE[run], case.scale ** _UNLIKE[run]
        self._per_image = case.drift / settings.images
        self.truth: list[float] = []
        self.measured: list[float] = []
        self._scores: list[tuple[float, int, int, float]] = []  # when, generation, candidate, score
        self._t_s = 0.0

    def play(self) -> Outcome:
        """Show one image after the other."""
        waiting = deque(self._course.due())
        while waiting:
            self._take(self._t_s)
            self._course.show()
            request = waiting.popleft()
            value = self._show(request)
            if request.probe < 0:
                self.truth.append(value)
            waiting += self._course.due(self._t_s)
            self._t_s += self._case.cadence_s
            if not waiting and not self._course.finished:  # generational: the participant sees fixation
                self._t_s = max(self._t_s, max(score[0] for score in self._scores))
                self._take(self._t_s)
                self._course.give_up()
                waiting += self._course.due(self._t_s)
        self._take(math.inf)  # the state from which the next run continues
        return Outcome(float(np.mean(self.truth[-self._case.population :])), float(np.mean(self.truth)), self._t_s)

    def _show(self, request: Request) -> float:
        """Return an image's true fitness; its score is on the way."""
        case = self._case
        latent = request.latent[np.newaxis].astype(np.float64)
        value = float(self._fitness(latent)[0])
        measured = value if self._seen is self._fitness else float(self._seen(latent)[0])
        noise, lost, late = case.noise * self._noise.standard_normal(), self._noise.random(), self._noise.random()
        if case.outliers and self._noise.random() < case.outliers:
            noise *= _OUTLIER
        drift = self._per_image * self._t_s / case.cadence_s
        score = math.nan if lost < case.missing else self._offset + self._scale * (measured + noise + drift)
        if request.probe < 0:
            self.measured.append(score)
        at_s = self._t_s + case.lag_s + (_LATE_S if late < case.late else 0.0)
        heapq.heappush(self._scores, (at_s, request.generation, request.candidate, score))
        return value

    def _take(self, until_s: float) -> None:
        """Pass the scores that have come to the strategy."""
        while self._scores and self._scores[0][0] <= until_s:
            _, generation, candidate, score = heapq.heappop(self._scores)
            error = self._scale * self._case.noise if self._case.informed else math.nan
            self._course.score(generation, candidate, score, error)
