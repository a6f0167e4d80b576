"""How far each strategy of evolution gets in a session: simulated participants with a known preference.

Run as a script, ``python bench/bench_evolve.py [--json FILE] [--seeds N] [--strategies ...] [--objectives ...] [--noise ...] [--jobs N]``,
it prints a table per objective: the true fitness of the last generation's candidates, in standard deviations of random images, mean
and standard error over the seeds. Under pytest-benchmark the cost of one ask is timed, for 100 to 1,000 scores in 100 dimensions.

Fitness is scaled so that random images have mean 0 and standard deviation 1; noise is in those units. Budgets are generations x
population. Schedules are compared at equal scan time: an image every 4 s, a score 12 s after it; generational sessions wait for the last
score of a generation, steady ones ask for every image with the scores that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.evolve import STRATEGIES, Evolver, Surrogate, create

Array = NDArray[np.float64]
BUDGETS = ((4, 20), (6, 10), (10, 20), (20, 20))
CADENCE_S, SCORE_AFTER_S = 4.0, 12.0


def unit(points: Array) -> Array:
    """Scale rows to length 1."""
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


def cosine(size: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Similarity of direction to one target."""
    target = unit(rng.standard_normal(size))
    return lambda x: unit(x) @ target


def bounded(size: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Squared distance to a target at 0.7 of the usual length."""
    target = 0.7 * math.sqrt(size) * unit(rng.standard_normal(size))
    return lambda x: -((x - target) ** 2).sum(axis=-1)


def multimodal(size: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """The nearest of five targets that are worth 1 to 0.6."""
    targets, worth = unit(rng.standard_normal((5, size))), np.linspace(1, 0.6, 5)
    return lambda x: (unit(x) @ targets.T * worth).max(axis=-1)


def peaks(size: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Five narrow peaks: nearly flat where random images are."""
    targets, worth = unit(rng.standard_normal((5, size))), np.linspace(1, 0.6, 5)
    return lambda x: (np.exp((unit(x) @ targets.T - 1) / 0.3) * worth).sum(axis=-1)


def ridge(size: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """A direction that involves only one in twenty latent dimensions; it pays to grow longer, as far as a strategy lets itself."""
    chosen = rng.permutation(size)[: max(1, size // 20)]
    weights = np.zeros(size)
    weights[chosen] = rng.standard_normal(len(chosen))
    weights = unit(weights)
    return lambda x: 10 * np.tanh(x @ weights / 10)


def valley(size: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """A quadratic optimum in one in twenty dimensions (rotated); the others do not matter."""
    few = max(1, size // 20)
    basis, centre = np.linalg.qr(rng.standard_normal((size, few)))[0], 1.5 * rng.standard_normal(few)
    return lambda x: -((x @ basis - centre) ** 2).sum(axis=-1)


def saturating(size: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """A direction whose effect levels off."""
    direction = unit(rng.standard_normal(size))
    return lambda x: np.tanh(0.7 * (x @ direction))


OBJECTIVES = {f.__name__: f for f in (cosine, bounded, multimodal, peaks, ridge, valley, saturating)}


@dataclass(frozen=True)
class Case:
    """One simulated session."""

    strategy: str
    objective: str
    generations: int
    population: int
    noise: float
    seed: int
    schedule: str = "generational"
    missing: float = 0.0
    size: int = 100


def make(case: Case) -> tuple[Evolver, Callable[[Array], Array], np.random.Generator]:
    """Make the strategy, the scaled fitness, and the generator of noise and gaps."""
    raw = OBJECTIVES[case.objective](case.size, np.random.default_rng([case.seed, 0]))
    sample = raw(np.random.default_rng([case.seed, 1]).standard_normal((4000, case.size)))
    mean, sd = sample.mean(), sample.std()
    evolver = create(
        case.strategy, case.size, case.population, np.random.default_rng([case.seed, 2]), budget=case.generations * case.population
    )
    return evolver, lambda x: (raw(x) - mean) / sd, np.random.default_rng([case.seed, 3])


def session(case: Case) -> float:
    """Run one session; return the mean true fitness of its last `population` candidates."""
    evolver, fitness, rng = make(case)
    truth: list[float] = []

    def show(n: int) -> None:
        truth.extend(fitness(evolver.ask(n).astype(np.float64)).tolist())

    def measure(ids: range) -> None:
        scores = np.array([truth[i] for i in ids]) + case.noise * rng.standard_normal(len(ids))
        scores[rng.random(len(ids)) < case.missing] = np.nan
        evolver.tell(ids, scores)

    if case.schedule == "steady":
        late = round(SCORE_AFTER_S / CADENCE_S)
        for k in range(case.generations * case.population):
            show(1)
            if k >= late:
                measure(range(k - late, k - late + 1))
    else:
        for g in range(case.generations):
            show(case.population)
            measure(range(g * case.population, (g + 1) * case.population))
    return float(np.mean(truth[-case.population :]))


def session_seconds(case: Case) -> float:
    """Scan time of a session."""
    images = case.generations * case.population * CADENCE_S
    return images + (SCORE_AFTER_S * (case.generations - 1) if case.schedule == "generational" else 0.0)


def run_all(cases: list[Case], jobs: int) -> list[float]:
    """Run sessions, in the order given, in `jobs` processes."""
    if jobs == 1:
        return [session(case) for case in cases]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(session, cases, chunksize=8))


def cell(values: list[float]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):6.2f} ±{np.std(values, ddof=1) / math.sqrt(len(values)):.2f}" if len(values) > 1 else f"{values[0]:6.2f}"


def gain_tables(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every strategy at every budget and noise, a table per objective."""
    rows: list[dict[str, Any]] = []
    for objective in options.objectives:
        print(f"\n{objective}: {(OBJECTIVES[objective].__doc__ or '').strip()}")
        print(f"{'noise':>5}  {'strategy':<11}" + "".join(f"{f'{g} x {p}':>14}" for g, p in BUDGETS))
        for noise, strategy in itertools.product(options.noise, options.strategies):
            cases = [Case(strategy, objective, g, p, noise, seed) for g, p in BUDGETS for seed in range(options.seeds)]
            gains = run_all(cases, options.jobs)
            parts = [gains[i * options.seeds : (i + 1) * options.seeds] for i in range(len(BUDGETS))]
            print(f"{noise:>5g}  {strategy:<11}" + "".join(f"{cell(part):>14}" for part in parts), flush=True)
            rows += [{**asdict(case), "gain": gain} for case, gain in zip(cases, gains, strict=True)]
    return rows


def schedule_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Generational and steady at equal scan time, and with a fifth of the scores missing."""
    rows: list[dict[str, Any]] = []
    print("\nequal scan time, noise 1, cosine: generational waits 12 s after each generation, steady never; and with 20% of scores missing")
    print(f"{'strategy':<11}{'schedule':<14}{'missing':>8}" + "".join(f"{f'{m:g} min':>14}" for m in (5, 10, 20)))
    for strategy, schedule, missing in itertools.product(("surrogate", "truncation"), ("generational", "steady"), (0.0, 0.2)):
        cells = []
        for minutes in (5, 10, 20):
            per_generation = 10 * CADENCE_S + (SCORE_AFTER_S if schedule == "generational" else 0.0)
            generations = max(1, int(minutes * 60 / per_generation))
            cases = [Case(strategy, "cosine", generations, 10, 1.0, seed, schedule, missing) for seed in range(options.seeds)]
            gains = run_all(cases, options.jobs)
            cells.append(cell(gains))
            rows += [{**asdict(case), "gain": gain, "scan_s": session_seconds(case)} for case, gain in zip(cases, gains, strict=True)]
        print(f"{strategy:<11}{schedule:<14}{missing:>8.0%}" + "".join(f"{text:>14}" for text in cells), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write every session's result here")
    parser.add_argument("--seeds", type=int, default=20, help="sessions for each number (default 20)")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--noise", nargs="+", type=float, default=[0.5, 1.0, 3.0], help="standard deviations of random images")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    machine = platform.processor() or platform.machine()
    print(f"{options.seeds} seeds from 0; {machine}, Python {platform.python_version()}, NumPy {np.__version__}")
    rows = gain_tables(options) + schedule_table(options)
    print(f"\n{len(rows)} sessions in {time.perf_counter() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows) + "\n")
    return 0


@pytest.mark.parametrize("scores", [100, 400, 1000])
def test_cost_of_an_ask(benchmark: Any, scores: int) -> None:
    """The next image after this many scores, in 100 dimensions."""
    rng = np.random.default_rng(0)
    evolver = Surrogate(100, None, rng)
    latents = evolver.ask(scores)
    evolver.tell(np.arange(scores), latents[:, 0] + rng.standard_normal(scores))
    latents = benchmark(evolver.ask, 1)
    assert np.isfinite(latents).all()


if __name__ == "__main__":
    sys.exit(main())
