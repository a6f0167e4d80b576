"""Next latent vectors from the fitness of earlier ones.

No clock, no files, no I/O. Randomness comes from the `numpy.random.Generator` passed in, so a session with the same seed and the
same scores replays bit for bit, and a saved state continues exactly where it stopped. Fitness is NaN if a candidate could not be
measured; such a candidate is left out and never counts as zero.

::

    base        Evolver: ask and tell, candidates by number, state
    truncation  the weighted mean of the better half, and mutation
    surrogate   a Bayesian model of all scores so far
    direct      the same model of the series itself; series: the responses to all images together
    model       that model
    preference  its result at the end, and how certain that is
    shell       limits on the length of embeddings
    cma         CMA-ES, plain and separable
    runs        several runs: an offset, a unit, noise and a drift of each
    together    errors that go together; means of runs
    probes      probes' scores, and the shift between two runs from them
    controls    sham, yoked, random
    rehearse    simulated participants and whole simulated runs
    jobs        thousands of these, on this computer or a cluster
    plan        choice of strategy, population and mutation for a scan
    course      order and time of requested images; generations, probes, the end
    state       random generators as JSON
"""

import numpy as np

from rtevo.evolve.base import Evolver, History
from rtevo.evolve.cma import Cma, SepCma
from rtevo.evolve.controls import Feedback, RandomEvolver, Sham, Yoked
from rtevo.evolve.course import MOST_AHEAD, SCHEDULES, Course, CourseSettings, Request, Told
from rtevo.evolve.direct import Direct
from rtevo.evolve.preference import Preference, preference_of
from rtevo.evolve.probes import Anchor
from rtevo.evolve.runs import Effects
from rtevo.evolve.shell import Shell
from rtevo.evolve.state import rng_from_state, rng_to_state
from rtevo.evolve.surrogate import Surrogate
from rtevo.evolve.truncation import Truncation, TruncationEvolver, truncation_weights

__all__ = [
    "MOST_AHEAD",
    "OF_SCORES",
    "SCHEDULES",
    "STRATEGIES",
    "Anchor",
    "Cma",
    "Course",
    "CourseSettings",
    "Direct",
    "Effects",
    "Evolver",
    "Feedback",
    "History",
    "Preference",
    "RandomEvolver",
    "Request",
    "SepCma",
    "Sham",
    "Shell",
    "Surrogate",
    "Told",
    "Truncation",
    "TruncationEvolver",
    "Yoked",
    "create",
    "from_state",
    "preference_of",
    "rng_from_state",
    "rng_to_state",
    "truncation_weights",
]

STRATEGIES: dict[str, type[Evolver]] = {kind.strategy: kind for kind in (Surrogate, Direct, TruncationEvolver, Cma, SepCma, RandomEvolver)}

OF_SCORES = tuple(name for name in STRATEGIES if name != "direct")
"""Strategies that can be rehearsed without volumes."""


def create(
    strategy: str,
    latent_size: int,
    population: int,
    rng: np.random.Generator,
    *,
    budget: int | None = None,
    mutation_sd: float = 0.3**0.5,
    norm_limits: tuple[float, float] | None = None,
    shell: Shell | None = None,
) -> Evolver:
    """Return a strategy by name.

    Parameters
    ----------
    strategy : str
        One of ``STRATEGIES``.
    latent_size : int
        Dimensions of a latent vector.
    population : int
        Candidates in a generation; for surrogate and direct, the number of best images at the end of the budget.
    rng : numpy.random.Generator
        Source of every draw.
    budget : int, optional
        Candidates in the whole session (surrogate, direct).
    mutation_sd : float
        Standard deviation of the mutation (truncation).
    norm_limits : tuple of float, (2,), optional
        Least and greatest length of a candidate, as shares of ``sqrt(latent_size)`` (surrogate, direct; None: their own).
    shell : Shell, optional
        How long the embeddings of latents are (surrogate, direct).

    Raises
    ------
    ValueError
        There is no such strategy, or a parameter is out of range.
    """
    if strategy in ("surrogate", "direct"):
        kind = Direct if strategy == "direct" else Surrogate
        return kind(latent_size, budget, rng, final=population, norm_limits=norm_limits, shell=shell)
    if strategy == "truncation":
        return TruncationEvolver(latent_size, population, mutation_sd, rng)
    if strategy in ("cma", "sepcma"):
        return (SepCma if strategy == "sepcma" else Cma)(latent_size, population, rng)
    if strategy == "random":
        return RandomEvolver(latent_size, rng)
    raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")


def from_state(state: dict[str, object]) -> Evolver:
    """Return a strategy restored from its ``to_state``.

    Raises
    ------
    ValueError
        The state is of no strategy, or incomplete.
    """
    strategy = state.get("strategy")
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ValueError(f"state: expected a strategy out of {', '.join(STRATEGIES)}, got {strategy!r}")
    return STRATEGIES[strategy].from_state(state)
