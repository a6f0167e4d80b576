"""What reports say of preferences that are known: how often one is named, how well its direction and its images' intervals hold.

Run as a script, ``python bench/bench_preferred.py [--seeds N]``: simulated participants with a known preference, or none, evolved by the
surrogate, and what `rtevo.report.gallery` makes of the evolver at the end. *Named*: runs of which a preference is said to be known, in
percent; without one it should be 5 at most. *Direction*: expected cosine with the true one, the cosine itself, and in how many percent of
the runs the 90% interval holds it. *Images* and their intervals: of the galleries of named runs, how many there are, and how many percent
of the 90% intervals hold the true response.
"""

from __future__ import annotations

import argparse
import math
import platform
import time

import numpy as np

from rtevo.evolve import create, preference_of
from rtevo.evolve.controls import Feedback
from rtevo.evolve.model import one_thread
from rtevo.evolve.rehearse import OBJECTIVES, Case, Fitness, rehearse, standardised
from rtevo.latent import LatentSpace
from rtevo.report.gallery import preferred_of

OBJECTIVE = ("none", "cosine", "saturating", "multimodal")
SIZES = ((12, 7, 5), (30, 20, 5))  # dimensions, generations, images in one


def preference(name: str, size: int, seed: int) -> tuple[Fitness, np.ndarray | None]:
    """Fitness, and its direction where it has one."""
    if name == "none":
        return lambda x: np.zeros(len(x)), None
    fitness = standardised(OBJECTIVES[name](size, np.random.default_rng([seed, 0])), size, np.random.default_rng([seed, 1]))
    return fitness, None if name == "multimodal" else np.random.default_rng([seed, 0]).standard_normal(size)


def play(name: str, size: int, generations: int, population: int, seed: int) -> dict[str, float | list[float]]:
    """Run one session with noise 1 (CNR 1); return what is said of it, and what is true."""
    fitness, true = preference(name, size, seed)
    evolver = create("surrogate", size, population, np.random.default_rng([seed, 2]), budget=generations * population)
    case = Case("surrogate", name, generations, population, 1.0, seed, "steady", size=size, informed=True)
    rehearse(case, evolver, fitness, fitness, np.random.default_rng([seed, 3]), Feedback())
    found = preferred_of(evolver, LatentSpace.random(size, size, 0), population)
    with one_thread():
        model = preference_of(evolver)
    assert model is not None
    cosine = math.nan if true is None else float(true @ model.direction / np.linalg.norm(true) / np.linalg.norm(model.direction))
    latents = evolver.history().latents
    holds = []
    for each in found.gallery if found.known else ():
        value = float(fitness(latents[[each.key[0] * population + each.key[1]]])[0])
        holds.append(float(each.low <= value <= each.high))
    return {
        "known": found.known, "expected": found.cosine[0], "cosine": cosine,
        "inside": math.nan if true is None else found.cosine[1] <= cosine <= found.cosine[2], "holds": holds,
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=40, help="runs for each line (default 40)")
    options = parser.parse_args()
    began = time.process_time()
    print(f"{options.seeds} seeds from 0, noise 1; {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{'':<12}{'dims':>5}{'images':>7}{'named %':>9}{'expected':>10}{'cosine':>8}{'inside %':>9}{'gallery':>9}{'hold %':>8}")
    for size, generations, population in SIZES:
        for name in OBJECTIVE:
            runs = [play(name, size, generations, population, seed) for seed in range(options.seeds)]
            means = {key: np.mean([run[key] for run in runs]) for key in ("known", "expected", "cosine", "inside")}
            named = [run["holds"] for run in runs if run["known"]]
            holds = [value for run in named for value in run]  # type: ignore[union-attr]
            images = np.mean([len(run) for run in named]) if named else math.nan  # type: ignore[arg-type]
            columns = f"{100 * means['known']:>9.0f}{means['expected']:>10.2f}{means['cosine']:>8.2f}{100 * means['inside']:>9.0f}"
            columns += f"{images:>9.1f}{100 * np.mean(holds) if holds else math.nan:>8.0f}"
            print(f"{name:<12}{size:>5}{generations * population:>7}{columns}", flush=True)
    print(f"{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
