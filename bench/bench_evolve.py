"""How far each strategy of evolution gets in a session: simulated participants with a known preference.

Run as a script, ``python bench/bench_evolve.py [--table ...] [--seeds N] [--objectives ...] [--noise ...] [--keep FILE]``,
it prints the true fitness of the last generation's candidates, in standard deviations of random images, mean and standard error over
the seeds: every strategy at every budget and noise (``gain``), against the prototype's rule at equal evaluations and at a quarter of
them (``prototype``), generational and steady at equal scan time (``schedule``), with late, missing and wild scores (``gaps``), and for the
built-in image model's own objective, the similarity of the re-encoded picture to a hidden one (``picture``), and what comes back of
embeddings of several lengths (``returned``); with maps that measure something else, too (``quality``), what objectives over two maps do
to both (``maps``), and evolution that goes on in runs whose scores have another offset and unit (``runs``). Simulations run on the
local cores or a Dask cluster, see --help. Under pytest-benchmark the cost of one ask is timed, for 100 to 1,000 scores.

Budgets are generations x population. An image every 4 s, a score 12 s after its onset.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo import generate
from rtevo.decode.several import objective_values
from rtevo.errors import RtevoError
from rtevo.evolve import OF_SCORES, Shell, Surrogate, create
from rtevo.evolve.jobs import add_options, client, run_cases
from rtevo.evolve.rehearse import OBJECTIVES, Case, Fitness, Outcome, play, standardised
from rtevo.latent import LatentSpace
from rtevo.objective import parse_objective
from rtevo.progress import shown

BUDGETS = ((4, 20), (6, 10), (10, 20), (20, 20))
QUARTERS = ((4, 5), (3, 5), (5, 10), (5, 20))  # a quarter of the evaluations of each
TABLES = ("gain", "prototype", "schedule", "gaps", "picture", "returned", "quality", "maps", "runs")
PICTURE_SIZE = 16
LENGTHS = (0.5, 0.8, 1.0, 1.1, 1.3, 1.6, 2.2)  # of embeddings, as shares of the usual one
COLOURS = {"surrogate": "#0b6e75", "truncation": "#c1561a", "cma": "#6a4ba0", "sepcma": "#b0a3d4", "random": "#9aa3ad"}


@lru_cache(maxsize=1)
def _painter() -> Any:
    """Load the built-in image model and its latent space, once in each worker."""
    generator = generate.load(generate.GeneratorSettings(model_path=None, steps=4, guidance_scale=1.0))
    return generator, LatentSpace.load(generate.TINY_LATENT_SPACE).first(PICTURE_SIZE)


def picture(x: np.ndarray, target: np.ndarray | None = None) -> np.ndarray:
    """Similarity of the re-encoded pictures of latents (n, d) to a hidden target's; without a target, their embeddings."""
    generator, space = _painter()
    embeddings = space.to_embedding(x)
    seeds = np.zeros(len(x), np.uint64)
    painted = np.array([np.array(p.embedding, np.float64) for p in generator.paint(embeddings, seeds)])
    painted -= space.mean
    if target is None:
        return painted
    return painted @ target / np.linalg.norm(painted, axis=1) / np.linalg.norm(target)


@lru_cache(maxsize=64)
def _similarity(seed: int, size: int) -> Fitness:
    """Return how like a participant's hidden picture what is really painted is, in standard deviations of random images."""
    target = picture(np.random.default_rng([seed, 0]).standard_normal((1, size)))[0]
    return standardised(lambda x: picture(x, target), size, np.random.default_rng([seed, 1]), sample=48)


def shell() -> Shell:
    """Return the shell of the built-in latent space."""
    space = _painter()[1]
    return Shell.of(space.mean, space.components, space.scale)


def play_picture(case: Case) -> Outcome:
    """Run a case whose participant compares what is really painted with a hidden picture."""
    return play(case, _similarity(case.seed, case.size), shell())


class Bench:
    """Runs cases and keeps every session's result."""

    def __init__(self, options: argparse.Namespace, where: Any) -> None:
        self.options, self.where = options, where
        self.rows: list[dict[str, Any]] = []

    def run(self, cases: Sequence[Case], **how: Any) -> list[list[float]]:
        """Run each case with every seed; give their gains."""
        seeds = self.options.seeds
        every = [replace(case, seed=seed) for case in cases for seed in range(seeds)]
        with shown() as progress:
            outcomes = run_cases(every, self.where, self.options.keep, on_progress=partial(progress, "sessions"), **how)
        self.rows += [{**asdict(case), **asdict(outcome)} for case, outcome in zip(every, outcomes, strict=True)]
        gains = [outcome.gain for outcome in outcomes]
        return [gains[k : k + seeds] for k in range(0, len(gains), seeds)]


def cell(values: Sequence[float]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):6.2f} ±{np.std(values, ddof=1) / math.sqrt(len(values)):.2f}" if len(values) > 1 else f"{values[0]:6.2f}"


def gain_tables(bench: Bench) -> None:
    """Every strategy at every budget and noise, a table per objective."""
    o = bench.options
    rows = list(itertools.product(o.objectives, o.noise, o.strategies))
    parts = bench.run([Case(s, objective, g, p, noise, 0, o.schedule) for objective, noise, s in rows for g, p in BUDGETS])
    for k, (objective, noise, strategy) in enumerate(rows):
        if k % (len(o.noise) * len(o.strategies)) == 0:
            print(f"\n{objective}: {(OBJECTIVES[objective].__doc__ or '').strip()} ({o.schedule})")
            print(f"{'noise':>5}  {'strategy':<11}" + "".join(f"{f'{g} x {p}':>14}" for g, p in BUDGETS))
        print(f"{noise:>5g}  {strategy:<11}" + "".join(f"{cell(part):>14}" for part in parts[4 * k : 4 * k + 4]))
    if o.figure:
        draw({(*row, g * p): parts[4 * k + m] for k, row in enumerate(rows) for m, (g, p) in enumerate(BUDGETS)}, o)


def draw(gains: dict[tuple[str, float, str, int], list[float]], options: argparse.Namespace) -> None:
    """Draw the gain table: a panel for each objective and noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 5.7), layout="constrained")
    panels = figure.subplots(len(options.noise), len(options.objectives), squeeze=False)
    evaluations = sorted(g * p for g, p in BUDGETS)
    for (row, noise), (column, objective) in itertools.product(enumerate(options.noise), enumerate(options.objectives)):
        panel = panels[row, column]
        for strategy in reversed(options.strategies):
            of = [gains[objective, noise, strategy, n] for n in evaluations]
            errors = [np.std(one, ddof=1) / math.sqrt(len(one)) if len(one) > 1 else 0.0 for one in of]
            width = 2.5 if strategy == "surrogate" else 1.3
            panel.errorbar(evaluations, np.mean(of, axis=1), errors, fmt="o-", ms=3.5, lw=width, color=COLOURS[strategy], label=strategy)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xscale("log")
        panel.set_xticks([], minor=True)
        panel.set_xticks(evaluations, evaluations if noise == options.noise[-1] else [""] * len(evaluations), fontsize=8)
        panel.set_title(objective if row == 0 else "")
        panel.set_ylabel(f"noise {noise:g} SD\ngain, SD" if column == 0 else "")
    figure.supxlabel("evaluations", fontsize="medium")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(options.figure, dpi=100)


def ceiling(objective: str, seed: int, size: int = 100, starts: int = 10, steps: int = 60) -> float:
    """Highest fitness within the surrogate's limits of length: steepest ascent, without noise, from random images."""
    raw = OBJECTIVES[objective](size, np.random.default_rng([seed, 0]))
    fitness = standardised(raw, size, np.random.default_rng([seed, 1]))
    low, high = 0.5 * math.sqrt(size), math.sqrt(size) + 1
    best = -math.inf
    for point in np.random.default_rng([seed, 4]).standard_normal((starts, size)):
        step = high / 4
        for _ in range(steps):
            best_here = float(fitness(point[np.newaxis])[0])
            gradient = fitness(point + 1e-4 * np.eye(size)) - best_here
            new = point + step * gradient / max(float(np.linalg.norm(gradient)), 1e-300)
            length = float(np.linalg.norm(new))
            new *= min(max(length, low), high) / length
            rises = fitness(new[np.newaxis])[0] > best_here
            point, step = (new, step) if rises else (point, step / 2)
        best = max(best, best_here)
    return best


def prototype_table(bench: Bench) -> None:
    """The surrogate against the prototype's rule: gain over gain at equal evaluations, and at a quarter of them."""
    o = bench.options
    rows = list(itertools.product(o.objectives, o.noise))
    kinds = [("truncation", BUDGETS), ("surrogate", BUDGETS), ("surrogate", QUARTERS)]
    parts = bench.run([Case(s, objective, g, p, noise, 0) for objective, noise in rows for s, budgets in kinds for g, p in budgets])
    tops = {objective: float(np.mean([ceiling(objective, seed) for seed in range(o.seeds)])) for objective in o.objectives}
    print("\nsurrogate over prototype: gain at equal evaluations / at a quarter of them; * where neither is twice nor once as much,")
    print("- where besides twice the prototype's gain is above the ceiling, the highest fitness on the shell of images")
    print(f"{'objective':<12}{'ceiling':>7}{'noise':>6}" + "".join(f"{f'{g} x {p}':>15}" for g, p in BUDGETS))
    for k, (objective, noise) in enumerate(rows):
        means = np.array([np.mean(part) for part in parts[12 * k : 12 * k + 12]]).reshape(3, 4)
        equal, quarter = means[1] / means[0], means[2] / means[0]
        marks = np.where((equal >= 2) | (quarter >= 1), " ", np.where(2 * means[0] > tops[objective], "-", "*"))
        cells = [f"{e:.2f} / {q:.2f}{mark}" for e, q, mark in zip(equal, quarter, marks, strict=True)]
        print(f"{objective:<12}{tops[objective]:>7.2f}{noise:>6g}" + "".join(f"{text:>15}" for text in cells))


def schedule_table(bench: Bench) -> None:
    """Generational and steady at equal scan time."""
    minutes = (5, 10, 20)
    rows = list(itertools.product(bench.options.objectives, ("surrogate", "truncation"), ("generational", "steady")))
    cases = []
    for objective, strategy, schedule in rows:
        for m in minutes:
            per_generation = 10 * 4 + (8 if schedule == "generational" else 0)  # s; a score comes 8 s after its image's end
            cases.append(Case(strategy, objective, int(m * 60 / per_generation), 10, 1.0, 0, schedule))
    parts = bench.run(cases)
    print("\nequal scan time, noise 1, generations of 10: generational waits for the last score, steady never")
    print(f"{'objective':<12}{'strategy':<12}{'schedule':<14}" + "".join(f"{f'{m} min':>14}" for m in minutes))
    for k, row in enumerate(rows):
        print(f"{row[0]:<12}{row[1]:<12}{row[2]:<14}" + "".join(f"{cell(part):>14}" for part in parts[3 * k : 3 * k + 3]))


def gaps_table(bench: Bench) -> None:
    """With late and missing scores, and with some that are far off."""
    gaps = ((0.0, 0.0, 0.0), (0.2, 0.0, 0.0), (0.0, 0.2, 0.0), (0.2, 0.2, 0.0), (0.0, 0.0, 0.05))
    rows = list(itertools.product(("surrogate", "truncation", "cma"), ("steady", "generational")))
    parts = bench.run([Case(s, "cosine", 10, 20, 1.0, 0, schedule, *gap) for s, schedule in rows for gap in gaps])
    print("\ncosine, noise 1, 10 x 20: shares of scores missing, late by 30 s (generational waits for them), and with ten times the noise")
    print(f"{'strategy':<12}{'schedule':<14}" + "".join(f"{' / '.join(f'{share:.0%}' for share in gap):>16}" for gap in gaps))
    for k, row in enumerate(rows):
        print(f"{row[0]:<12}{row[1]:<14}" + "".join(f"{cell(part):>16}" for part in parts[len(gaps) * k :][: len(gaps)]))


def picture_table(bench: Bench) -> None:
    """The built-in image model's own objective."""
    o = bench.options
    rows = list(itertools.product(o.noise, o.strategies))
    budgets = ((4, 20), (6, 10))
    parts = bench.run(
        [Case(s, "picture", g, p, noise, 0, size=PICTURE_SIZE) for noise, s in rows for g, p in budgets], play_case=play_picture
    )
    print(f"\npicture: similarity of the re-encoded picture to a hidden one, built-in model, {PICTURE_SIZE} dimensions")
    print(f"{'noise':>5}  {'strategy':<11}" + "".join(f"{f'{g} x {p}':>14}" for g, p in budgets))
    for k, (noise, strategy) in enumerate(rows):
        print(f"{noise:>5g}  {strategy:<11}" + "".join(f"{cell(part):>14}" for part in parts[2 * k : 2 * k + 2]))


def returned_table(bench: Bench) -> None:
    """What comes back of embeddings of several lengths, in directions of the first components and of all, built-in model."""
    generator, _ = _painter()
    space = LatentSpace.load(generate.TINY_LATENT_SPACE)
    usual = math.sqrt(float((space.scale.astype(np.float64) ** 2).sum()))
    print(f"\nreturned: pictures re-encoded, {bench.options.seeds} for each length; lengths as shares of the usual one ({usual:.2f})")
    print(f"{'asked for':>9}" + "".join(f"{name + text:>24}" for name in ("first 12, ", "all 64, ") for text in ("length", "cosine")))
    for share in LENGTHS:
        row = f"{share:>9g}"
        for first in (12, space.latent_size):
            latents = np.random.default_rng(first).standard_normal((bench.options.seeds, space.latent_size))
            latents[:, first:] = 0
            asked = space.to_embedding(latents).astype(np.float64)
            asked *= share * usual / np.linalg.norm(asked, axis=1, keepdims=True)
            seeds = np.arange(len(asked), dtype=np.uint64)
            back = np.array([painted.embedding for painted in generator.paint(asked.astype(np.float32), seeds)], np.float64)
            length = np.linalg.norm(back, axis=1)
            row += f"{cell(list(length / usual)):>24}{cell(list((back * asked).sum(axis=1) / length / share / usual)):>24}"
        print(row, flush=True)


def quality_table(bench: Bench) -> None:
    """Maps that correlate r with the truth: ten minutes of 16 dimensions at CNR 0.33, twenty at 0.5."""
    qualities, kinds = (1.0, 0.7, 0.5, 0.3), ("cosine", "multimodal", "saturating")
    rows = list(itertools.product(((15, 10, 3.0), (30, 10, 2.0)), ("surrogate", "truncation")))
    cases = [
        Case(strategy, kind, generations, population, noise, 0, "steady", size=PICTURE_SIZE, mutation_sd=0.55, quality=quality)
        for (generations, population, noise), strategy in rows
        for quality in qualities
        for kind in kinds
    ]
    parts = np.array(bench.run(cases)).reshape(len(rows), len(qualities), len(kinds), -1).mean(axis=2)
    print(f"\nmaps of r = {', '.join(f'{q:g}' for q in qualities)}: gain, mean of {', '.join(kinds)}; steady, {PICTURE_SIZE} dimensions")
    for (budget, strategy), own in zip(rows, parts, strict=True):
        print(f"{budget[0]} x {budget[1]}, noise {budget[2]:g}  {strategy:<12}" + "".join(f"{cell(list(part)):>14}" for part in own))


MAPS = (
    "face", "face - place", "face - 0.5 * place", "face - 0.1 * keep(place)", "face - 0.3 * keep(place)", "face - keep(place)",
    "rank(face) - 0.5 * rank(place)",
)  # fmt: skip


def play_maps(text: str, seed: int, size: int = 12, generations: int = 12, population: int = 5) -> np.ndarray:
    """Responses of two maps to the last ten images; their directions have a cosine of 0.5, their noise is 1 and correlates 0.5."""
    rng = np.random.default_rng([seed, 1])
    face, away = rng.standard_normal((2, size))
    face /= np.linalg.norm(face)
    away -= (away @ face) * face
    directions = np.stack([face, 0.5 * face + math.sqrt(0.75) * away / np.linalg.norm(away)])
    goal = parse_objective(text).over(["face", "place"])
    order = [("face", "place").index(name) for name in goal.maps]
    shared, weights = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array(goal.linear)
    own = shared[np.ix_(order, order)]
    evolver = create("surrogate", size, population, np.random.default_rng([seed, 2]), budget=generations * population)
    true = np.zeros((0, 2))
    scores = np.zeros((0, 2))
    for _ in range(generations):
        new = evolver.ask(population) @ directions.T
        true = np.concatenate([true, new])
        scores = np.concatenate([scores, new + rng.multivariate_normal(np.zeros(2), shared, population)])
        seen = scores[:, order]
        sums = np.column_stack([seen @ weights, np.full(len(seen), math.sqrt(weights @ own @ weights))]) if weights.any() else None
        evolver.tell(np.arange(len(seen)), *objective_values(goal, seen, np.ones(seen.shape), sums, own))
    return np.asarray(true[-2 * population :].mean(axis=0))


def maps_table(bench: Bench) -> None:
    """What objectives over two maps do to both."""
    print("\nresponse of each map to the last ten of 60 images, standard deviations of random images; noise 1, 12 dimensions")
    print(f"{'objective':<34}{'face':>14}{'place':>14}")
    for text in MAPS:
        found = np.array([play_maps(text, seed) for seed in range(bench.options.seeds)])
        print(f"{text:<34}" + "".join(f"{cell(list(part)):>14}" for part in found.T))


def runs_table(bench: Bench) -> None:
    """Two, three and five runs of 35 images, each with an offset and a unit of its own."""
    counts, offsets, scales = (2, 3, 5), (-6.0, 0.0, 6.0), (0.3, 1.0, 3.0)
    base = Case("surrogate", "cosine", 7, 5, 1.0, 0, "steady", size=30)
    fresh, *long = bench.run([base, *(replace(base, generations=7 * count) for count in counts)])
    cells = [replace(base, runs=count, offset=o, scale=s) for count in counts for s in scales for o in offsets]
    parts = np.array(bench.run(cells)).reshape(len(counts), len(scales), len(offsets), -1)
    print("\ncosine, noise 1, 30 dimensions, 7 x 5 images a run, steady; offset (SD) and scale are the second run's, others differ as")
    print(f"rehearse.Case says; the first run alone: {cell(fresh)}; * less than 95% of the gain at offset 0, scale 1")
    for count, of_count, whole in zip(counts, parts, long, strict=True):
        print(f"\n{count} runs (as many images in one run: {cell(whole)})\n{'scale':>8}" + "".join(f"{o:>+15g}" for o in offsets))
        least = 0.95 * float(of_count[scales.index(1.0), offsets.index(0.0)].mean())
        for scale, row in zip(scales, of_count, strict=True):
            print(f"{scale:>8g}" + "".join(f"{cell(list(own)) + ('*' if own.mean() < least else ' '):>15}" for own in row))
    others = {
        "one in six a probe": replace(base, runs=2, offset=3.0, scale=3.0, probe_every=6),
        "standard errors known": replace(base, runs=2, offset=3.0, scale=3.0, informed=True),
        "drift of 2 SD a run": replace(base, runs=2, offset=3.0, scale=3.0, drift=2.0),
        "drift of -2 SD a run": replace(base, runs=2, offset=3.0, scale=3.0, drift=-2.0),
        "one in twenty wild": replace(base, runs=2, offset=3.0, scale=3.0, outliers=0.05),
    }
    others |= {name: replace(base, strategy=name, runs=2, offset=3.0, scale=3.0) for name in ("truncation", "cma", "sepcma")}
    flat = [replace(case, offset=0.0, scale=1.0) for case in others.values()]
    found = bench.run([*others.values(), *flat])
    print(f"\ntwo runs{'':<20}{'+3 SD, scale 3':>15}{'neither':>15}")
    for name, own, neither in zip(others, found, found[len(others) :], strict=False):
        print(f"{name:<28}{cell(own):>15}{cell(neither):>15}")


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", nargs="+", default=list(TABLES), choices=TABLES, help="which tables (default: all)")
    parser.add_argument("--json", type=Path, help="write every session's result here")
    parser.add_argument("--seeds", type=int, default=20, help="sessions for each number (default 20)")
    parser.add_argument("--strategies", nargs="+", default=list(OF_SCORES), choices=list(OF_SCORES))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--noise", nargs="+", type=float, default=[0.5, 1.0, 3.0], help="standard deviations of random images")
    parser.add_argument("--schedule", default="generational", choices=("generational", "steady"), help="of the gain table")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the gain table")
    add_options(parser)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    machine = platform.processor() or platform.machine()
    print(f"{options.seeds} seeds from 0; {machine}, Python {platform.python_version()}, NumPy {np.__version__}")
    tables = {"gain": gain_tables, "prototype": prototype_table, "schedule": schedule_table, "gaps": gaps_table, "picture": picture_table}
    tables |= {"quality": quality_table, "maps": maps_table, "runs": runs_table, "returned": returned_table}
    try:
        with client(options) as where:
            bench = Bench(options, where)
            for name in options.table:
                tables[name](bench)
    except RtevoError as error:
        print(f"rtevo: {error}", file=sys.stderr)
        return 2
    print(f"\n{len(bench.rows)} sessions in {time.perf_counter() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(bench.rows) + "\n")
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
