"""How evolution does on objectives that it was not made for, in spaces that it was not made for, beside its peers.

``python bench/bench_unseen.py [--groups report check] [--seeds N] [--jobs N] [--keep FILE] [--out FILE] [--figure PNG]``

A cell is an objective (``objectives.py``), a space whose variances are equal or fall as 1/k, a noise and a budget, generational, in 100
dimensions. The gain is the preference for the last generation, in standard deviations of random images. The surrogate knows the space's
shell, as in sessions. In each cell it is held against the prototype's rule (``truncation``), CMA-ES and a Gaussian process with expected
improvement (``gaussian_process.py``) on the same participants: paired differences, two-sided t-tests, corrected by Holm's method over all
cells and peers of a group. *Twice* is said of a cell where the gain is twice the prototype's, or at least 95% of the ceiling, or as high
as the prototype's with a quarter of the scores. What is not above, lost, or not twice is marked.

``--ablations`` adds the surrogate without the shell, with the same expectations of all components, and with those of all directions of
the embedding alike. How long the last images' embeddings are is printed with each group.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from objectives import GROUPS, SPACES, ceiling, participant, spectrum
from scipy.stats import ttest_rel

from rtevo.errors import RtevoError
from rtevo.evolve import Evolver, Shell, create
from rtevo.evolve.controls import Feedback
from rtevo.evolve.jobs import add_options, client, run_all
from rtevo.evolve.rehearse import Case, rehearse
from rtevo.progress import shown

SIZE = 100
BUDGETS = ((4, 20), (10, 20))
QUARTERS = {(4, 20): (4, 5), (10, 20): (5, 10)}
NOISES = (1.0, 3.0)
PEERS = ("truncation", "cma", "gp")
ABLATIONS = {"no shell": None, "flat prior": 0.0, "spectral prior": 1.0}  # and how far the prior follows the space
CEILING = 0.95  # of it counts as at it
COLOURS = {"surrogate": "#0b6e75", "truncation": "#c1561a", "cma": "#6a4ba0", "gp": "#8a8f2a"}


@dataclass(frozen=True)
class Session:
    """One simulated run of one participant."""

    strategy: str
    objective: str
    space: str
    generations: int
    population: int
    noise: float
    seed: int


@dataclass(frozen=True)
class Result:
    """Gain of the last generation, and the rms length of its embeddings, as a share of the usual one."""

    gain: float
    length: float


def shell_of(space: str) -> Shell:
    """Return the shell of a space whose mean is zero."""
    return Shell(spectrum(space, SIZE), np.zeros(SIZE))


def evolver_of(session: Session, rng: np.random.Generator) -> Evolver:
    """Make a strategy or a peer."""
    if session.strategy == "gp":
        from gaussian_process import GaussianProcess

        return GaussianProcess(SIZE, rng)
    if session.strategy in ("surrogate", *ABLATIONS):
        follows = ABLATIONS.get(session.strategy)
        shell = None if session.strategy == "no shell" else shell_of(session.space)
        shell = shell if shell is None or follows is None else replace(shell, follows=follows)
        return create("surrogate", SIZE, session.population, rng, shell=shell)
    return create(session.strategy, SIZE, session.population, rng)


def play(session: Session) -> Result:
    """Run a session."""
    images = session.generations * session.population
    person = participant(session.objective, session.space, SIZE, session.seed, images)
    case = Case("", "", session.generations, session.population, session.noise, session.seed, size=SIZE)
    evolver = evolver_of(session, np.random.default_rng([session.seed, 2]))
    noise = np.random.default_rng([session.seed, 3])
    truth, _ = rehearse(case, evolver, person.truth, person.seen or person.truth, noise, Feedback())
    last = evolver.history().latents[-session.population :] * spectrum(session.space, SIZE)
    return Result(float(truth[-session.population :].mean()), float(np.sqrt((last**2).sum(axis=1).mean() / SIZE)))


@dataclass(frozen=True)
class Top:
    """Names a ceiling."""

    objective: str
    space: str
    seed: int


@dataclass(frozen=True)
class Height:
    """A ceiling."""

    top: float


def find_top(top: Top) -> Height:
    """Find the highest preference on the shell."""
    within = partial(shell_of(top.space).within, high=1 + 1 / math.sqrt(SIZE))

    def shortened(points: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(points, axis=1, keepdims=True) / math.sqrt(SIZE)
        return within(points * np.minimum(1.0, (1 + 1 / math.sqrt(SIZE)) / length))

    return Height(ceiling(top.objective, top.space, SIZE, top.seed, 1, shortened))


def holm(p: np.ndarray) -> np.ndarray:
    """Correct p values for their number (S. Holm 1979)."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return corrected


def number(values: np.ndarray) -> str:
    """Mean and standard error."""
    return f"{values.mean():.2f} ±{values.std(ddof=1) / math.sqrt(len(values)):.2f}"


def paired_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p of the paired differences."""
    return 1.0 if np.ptp(ours - theirs) == 0 else float(ttest_rel(ours, theirs).pvalue)


def mark(above: float, p: float) -> str:
    """Say how the surrogate compares."""
    if p < 0.05:
        return "+" if above > 0 else "**-**"
    return "" if above > 0 else "(-)"


def table(cells: list[Session], gains: dict[tuple[Session, str], np.ndarray], tops: np.ndarray, names: list[str], out: TextIO) -> None:
    """Print a group's cells and what they come to."""
    p = np.array([[paired_p(gains[cell, "surrogate"], gains[cell, name]) for name in names] for cell in cells])
    corrected = holm(p.ravel()).reshape(p.shape)
    above = np.array([[gains[cell, "surrogate"].mean() - gains[cell, name].mean() for name in names] for cell in cells])
    print("| objective | space | noise | images | ceiling | surrogate | " + " | ".join(names) + " | a quarter | twice |", file=out)
    print("|---" * (8 + len(names)) + "|", file=out)
    twice = []
    for k, cell in enumerate(cells):
        ours, rule, quarter = (gains[cell, name].mean() for name in ("surrogate", "truncation", "quarter"))
        twice.append(ours >= 2 * rule or ours >= CEILING * tops[k] or quarter >= rule)
        texts = [f"{number(gains[cell, name])} {mark(above[k, m], corrected[k, m])}".strip() for m, name in enumerate(names)]
        row = [cell.objective, cell.space, f"{cell.noise:g}", f"{cell.generations} x {cell.population}", f"{tops[k]:.2f}"]
        row += [number(gains[cell, "surrogate"]), *texts, number(gains[cell, "quarter"]), "yes" if twice[-1] else "**no**"]
        print("| " + " | ".join(row) + " |", file=out)
    print("\n+ / **-**: the surrogate is significantly above / below (Holm); (-): its mean is below\n", file=out)
    for m, name in enumerate(names):
        sure = corrected[:, m] < 0.05
        won, lost, ahead = int((sure & (above[:, m] > 0)).sum()), int((sure & (above[:, m] < 0)).sum()), int((above[:, m] > 0).sum())
        print(f"- against {name}: {won} cells won, {lost} lost of {len(cells)}; mean above in {ahead}", file=out)
    print(f"- mean above in {(above > 0).mean():.0%} of all comparisons", file=out)
    print(f"- twice the prototype in {sum(twice)} of {len(cells)} cells\n", file=out)


def draw(cells: list[Session], gains: dict[tuple[Session, str], np.ndarray], names: list[str], path: Path) -> None:
    """Draw the gains: a panel for each space and noise, objectives along it, the larger budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(len(SPACES), len(NOISES), squeeze=False, sharex=True)
    most = max(cell.generations for cell in cells)
    objectives = list(dict.fromkeys(cell.objective for cell in cells))
    for row, space in enumerate(SPACES):
        for column, noise in enumerate(NOISES):
            panel = panels[row, column]
            for k, name in enumerate(["surrogate", *names]):
                here = [cell for cell in cells if (cell.space, cell.noise, cell.generations) == (space, noise, most)]
                of = [gains[cell, name] for cell in here]
                at = np.arange(len(objectives)) + 0.2 * k - 0.3
                errors = [one.std(ddof=1) / math.sqrt(len(one)) for one in of]
                panel.bar(at, [one.mean() for one in of], 0.18, yerr=errors, color=COLOURS[name], label=name, error_kw={"lw": 1})
            panel.set_title(f"{space} space, noise {noise:g}", fontsize=10)
            panel.set_xticks(range(len(objectives)), objectives, fontsize=9)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_ylabel("gain, SD")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=100)


def of(cell: Session, kind: str, seed: int) -> Session:
    """Return a cell's session of a strategy; "quarter" is the surrogate with a quarter of the images."""
    if kind != "quarter":
        return replace(cell, strategy=kind, seed=seed)
    generations, population = QUARTERS[cell.generations, cell.population]
    return replace(cell, generations=generations, population=population, seed=seed)


def run_group(group: str, options: argparse.Namespace, where: Any, out: TextIO) -> None:
    """Run the cells of a group and print its table."""
    objectives = [make.__name__ for make in GROUPS[group]]
    combinations = itertools.product(objectives, options.spaces, options.noise, BUDGETS)
    cells = [Session("surrogate", objective, space, *budget, noise, 0) for objective, space, noise, budget in combinations]
    peers = list(dict.fromkeys(["truncation", *options.peers]))
    others = [*peers, *(ABLATIONS if options.ablations else ())]
    kinds = ["surrogate", *others, "quarter"]
    every = [(cell, kind, of(cell, kind, seed)) for kind in kinds for cell in cells for seed in range(options.seeds)]
    every.sort(key=lambda one: one[1] != "gp")  # the slowest first
    with shown() as progress:
        told = partial(progress, group)
        results = run_all([session for _, _, session in every], play, Session, Result, where, options.keep, told)
    gains: dict[tuple[Session, str], Any] = {}
    lengths: dict[tuple[str, str], list[float]] = {}
    for (cell, kind, _), result in zip(every, results, strict=True):
        gains.setdefault((cell, kind), []).append(result.gain)
        lengths.setdefault((kind, cell.space), []).append(result.length)
    gains = {key: np.array(values) for key, values in gains.items()}
    tops = [Top(cell.objective, cell.space, seed) for cell in cells for seed in range(options.seeds)]
    heights = run_all(list(dict.fromkeys(tops)), find_top, Top, Height, where)
    height_of = dict(zip(dict.fromkeys(tops), heights, strict=True))
    print(f"\n## {group}\n", file=out)
    table(cells, gains, np.array([height_of[top].top for top in tops]).reshape(len(cells), -1).mean(axis=1), others, out)
    for (kind, space), own in lengths.items():
        print(f"- last embeddings, {kind}, {space}: {np.mean(own):.2f} times as long as usual, at most {max(own):.2f}", file=out)
    if options.figure:
        draw(cells, gains, peers, options.figure.with_stem(f"{options.figure.stem}-{group}"))


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--groups", nargs="+", default=["report"], choices=list(GROUPS), help="which objectives (default: report)")
    parser.add_argument("--seeds", type=int, default=20, help="participants for each cell (default 20)")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="(default: all; gp needs botorch)")
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--noise", nargs="+", type=float, default=list(NOISES), help="standard deviations of random images")
    parser.add_argument("--ablations", action="store_true", help="the surrogate without the shell and with other priors, too")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables here (default: the terminal)")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the gains of the larger budget; the group is put into its name")
    add_options(parser)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        with client(options) as where:
            out = options.out.open("w", encoding="utf-8") if options.out else sys.stdout
            versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
            print(f"{options.seeds} seeds from 0; {platform.machine()}, {versions}", file=out)
            for group in options.groups:
                run_group(group, options, where, out)
                out.flush()
            print(f"\n{time.perf_counter() - began:.0f} s", file=out)
    except RtevoError as error:
        print(f"rtevo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
