"""Which strategy, population and mutation for so many minutes at such a contrast-to-noise ratio? Answered by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rtevo.evolve.rehearse import Case, Outcome

__all__ = ["Choice", "Scan", "cases", "choices", "rank"]

POPULATIONS = (5, 10, 20)
MUTATION_SDS = (0.3, 0.55, 1.0)


@dataclass(frozen=True)
class Scan:
    """What is given.

    Parameters
    ----------
    minutes : float
        Of scanning.
    cnr : float
        Contrast-to-noise ratio of one score: standard deviation of the true response to random images over that of the score's error.
    size : int
        Latent dimensions.
    cadence_s, lag_s : float
        From onset to onset, and from an onset to its score.
    quality : float
        Correlation of the response that the map measures with the one that is sought, see :class:`rtevo.evolve.rehearse.Case`; 1: they are
        one. The contrast-to-noise ratio is that of the response that the map measures.
    """

    minutes: float
    cnr: float
    size: int = 100
    cadence_s: float = 4.0
    lag_s: float = 12.0
    quality: float = 1.0

    def __post_init__(self) -> None:
        for name in ("minutes", "cnr", "cadence_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected > 0, got {getattr(self, name)}")
        if not 0 < self.quality <= 1:
            raise ValueError(f"quality: expected > 0 and at most 1, got {self.quality:g}")
        if self.size < 2 or self.lag_s < 0:
            raise ValueError(f"size and lag_s: expected at least 2 and 0, got {self.size} and {self.lag_s}")


@dataclass(frozen=True)
class Choice:
    """One way to run the session, and what it brings.

    Parameters
    ----------
    strategy, schedule : str
    population, generations : int
    mutation_sd : float
        NaN where the strategy has none.
    gain, se : float
        Of the last generation, in standard deviations of random images: mean over objectives and seeds, and standard error over seeds.
    """

    strategy: str
    schedule: str
    population: int
    generations: int
    mutation_sd: float
    gain: float = math.nan
    se: float = math.nan


def choices(scan: Scan, strategies: Sequence[str], schedules: Sequence[str]) -> list[Choice]:
    """List what could be done with a scan. Where a strategy knows no population, it is only the number of its last, best images."""
    found = []
    for strategy, schedule, population in itertools.product(strategies, schedules, POPULATIONS):
        wait_s = max(scan.lag_s - scan.cadence_s, 0.0) if schedule == "generational" else 0.0
        generations = int((60 * scan.minutes + wait_s) / (population * scan.cadence_s + wait_s))
        for mutation_sd in MUTATION_SDS if strategy == "truncation" else (math.nan,):
            if generations >= 2:
                found.append(Choice(strategy, schedule, population, generations, mutation_sd))
    if not found:
        raise ValueError(f"minutes: expected enough for two generations of {min(POPULATIONS)} images, got {scan.minutes:g}")
    return found


def cases(scan: Scan, choice: Choice, objectives: Sequence[str], seeds: int) -> list[Case]:
    """Return the simulated runs of a choice: every objective with every seed."""
    base = Case(
        choice.strategy, "", choice.generations, choice.population, 1 / scan.cnr, 0, choice.schedule,
        size=scan.size, cadence_s=scan.cadence_s, lag_s=scan.lag_s, quality=scan.quality,
    )  # fmt: skip
    if not math.isnan(choice.mutation_sd):
        base = replace(base, mutation_sd=choice.mutation_sd)
    return [replace(base, objective=objective, seed=seed) for seed in range(seeds) for objective in objectives]


def rank(found: Sequence[Choice], outcomes: Sequence[Sequence[Outcome]], objectives: int) -> list[Choice]:
    """Order choices by their gain, the best first.

    Parameters
    ----------
    found : sequence of Choice
    outcomes : sequence of sequences of Outcome
        Of the cases of each choice.
    objectives : int
        How many objectives the cases have.
    """
    ranked = []
    for choice, own in zip(found, outcomes, strict=True):
        gains = np.array([outcome.gain for outcome in own]).reshape(-1, objectives).mean(axis=1)
        se = float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan
        ranked.append(replace(choice, gain=float(gains.mean()), se=se))
    return sorted(ranked, key=lambda choice: -choice.gain)
