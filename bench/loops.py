"""Closed loops: a latent direction, images asked for by the surrogate, responses in a noisy series, scores by the filter.

What evolution gains depends on what it is told: the shrunken scores with their own errors, as if these were independent (`apart`; with
amplitudes that are taken to be independent too: `independent`), or what the volumes alone say, with its covariance (`together`). All else
is the same, noise included. `unrelated` is what there would be to gain if errors were as large as in `together`, image by image, and had
nothing to do with each other. Gain: mean fitness of the last 20 images, in standard deviations of random ones; mean: of all images.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cells import IMAGE_S, Cell, drawn_noise, kernel, sampled
from numpy.typing import NDArray

from rtevo.decode.grid import ALONE, Grid
from rtevo.decode.nuisance import Nuisance
from rtevo.decode.separate import Separate
from rtevo.evolve import Course, CourseSettings, Evolver, create
from rtevo.evolve.together import Link, Together

__all__ = ["LOOPS", "TOLD", "Loop", "play", "run_loops"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Loop:
    """One kind of session."""

    name: str
    contrast: float = 1.5
    size: int = 40
    images: int = 120
    cadence_s: float = 4.0
    peak_s: float = 5.0
    noise: str = "ar"
    drift: float = 1.0
    own: float = 0.5
    quality: float = 1.0
    runs: int = 1  # of so many images each, in which evolution goes on; the gain is that of the last


LOOPS = (
    Loop("plain"),
    Loop("three runs", images=40, runs=3),
    Loop("weak", contrast=0.7),
    Loop("every 2 s", cadence_s=2.0, images=200),
    Loop("strong drift", drift=6.0),
    Loop("peak 7 s, 1/f", peak_s=7.0, noise="1/f"),
)
TOLD = ("independent", "apart", "together", "unrelated")


def play(loop: Loop, seed: int, told: str) -> dict[str, float]:
    """Run one session; return its gain in standard deviations of random images' fitness."""
    rng = np.random.default_rng([seed, 1])
    cell = Cell(loop.name, peak_s=loop.peak_s, cadence_s=loop.cadence_s, noise=loop.noise, drift=loop.drift)
    goal = rng.standard_normal(loop.size)
    goal /= np.linalg.norm(goal)
    evolver = create("surrogate", loop.size, 10, np.random.default_rng([seed, 2]))
    every: list[float] = []
    for number in range(loop.runs):
        truth = _run(loop, cell, goal, evolver, told, rng, np.random.default_rng([seed, 3, number]))
        every += truth
    return {"gain": float(np.mean(truth[-20:])), "mean": float(np.mean(every))}


def _run(loop: Loop, cell: Cell, goal: Array, evolver: Evolver, told: str, rng: Any, errors: Any) -> list[float]:
    """Run the scanner once; return the fitness of its images."""
    n = int((10 + loop.images * loop.cadence_s + 24) / cell.tr_s)
    noise = drawn_noise(rng, loop.noise, n, cell.tr_s)
    minutes = (np.arange(n) + 0.5) * cell.tr_s / 60
    slow = [np.cos(2 * math.pi * minutes / period + 6.3 * rng.random()) for period in (2.5, 4.0, 7.0)]
    noise += loop.drift * (0.2 * rng.standard_normal(3) @ np.array(slow) + 0.1 * rng.standard_normal() * minutes)
    own = rng.standard_normal(loop.images)
    response = kernel("double", loop.peak_s)
    course = Course(evolver, CourseSettings(loop.images // 10, 10, "steady", 2))
    grid = replace(Grid(), shared=(ALONE,)) if told == "independent" else None
    known = np.ones(2), np.ones(2)
    scorer = Separate(np.array([1.0, -1.0]), cell.tr_s, IMAGE_S, Nuisance(cell.tr_s), known=known, grid=grid)
    motion = 0.005 * rng.standard_normal((n, 6))
    waiting, shown, truth, onsets, amplitudes = list(course.due()), 0, [], [], []
    unrelated = Unrelated(errors.standard_normal(loop.images)) if told == "unrelated" else None
    for index in range(n):
        while shown < loop.images and 10 + shown * loop.cadence_s < (index + 1) * cell.tr_s and waiting:
            request = waiting.pop(0)
            fitness = float(request.latent @ goal)
            onset = 10 + shown * loop.cadence_s
            truth.append(fitness)
            onsets.append(onset)
            amplitudes.append(loop.contrast * (1 + loop.quality * fitness + loop.own * own[shown]))
            scorer.add_onset((request.generation, request.candidate), onset)
            course.show()
            shown += 1
            waiting += course.due(onset)
        t = (index + 0.5) * cell.tr_s
        recent = [k for k in range(len(onsets)) if t - onsets[k] < 40]
        value = noise[index]
        if recent:
            value += float(sampled(response, np.array([t]), np.array(onsets)[recent], IMAGE_S)[0] @ np.array(amplitudes)[recent])
        pair = np.array([1 + value / math.sqrt(2), 1 - value / math.sqrt(2)], np.float32)  # whose projection is the value
        for score in scorer.add_volume(index, motion[index], pair):
            if unrelated is None:
                tell(course, score, told)
            else:
                unrelated.tell(course, score, amplitudes[onsets.index(score.onset_s)])
        waiting += course.due(t)
    return truth


class Unrelated:
    """Tells an image's response with an error as large as that of what the volumes alone say, drawn for itself."""

    def __init__(self, drawn: Array) -> None:
        self._drawn, self._known, self._numbers = drawn, Together(), dict[tuple[int, int], int]()

    def tell(self, course: Any, score: Any, amplitude: float) -> None:
        """Tell evolution of a score."""
        link = Link.of(score.onset_s, score.measured, score.measured_se, score.neighbours)
        number = self._numbers.setdefault(score.key, len(self._numbers))
        if link is None:
            course.score(*score.key, math.nan, math.nan)
            return
        self._known.add(0, score.key, number, link)
        found = self._known.of(np.array([number]), np.zeros(1), np.ones(1))
        assert found is not None
        error = math.sqrt(float(found[1][0, 0]))
        course.score(*score.key, amplitude + error * float(self._drawn[number]), error)


def tell(course: Any, score: Any, told: str) -> None:
    """Pass a score to evolution."""
    link = Link.of(score.onset_s, score.measured, score.measured_se, score.neighbours) if told == "together" else None
    course.score(*score.key, score.score, score.score_se, link)


def one(job: tuple[Loop, int, str]) -> dict[str, Any]:
    """Run one session, in a process of its own."""
    loop, seed, told = job
    return {"loop": loop.name, "told": told, "seed": seed, **play(loop, seed, told)}


def run_loops(seeds: int, path: Path, names: Sequence[str] = (), jobs: int = 1) -> str:
    """Run what the file does not have yet, of some kinds of session or of all; return a table."""
    loops = [loop for loop in LOOPS if not names or loop.name in names]
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(row["loop"], row["told"], row["seed"]): row for row in rows}
    every = itertools.product(loops, range(seeds), TOLD)
    left = [(loop, seed, told) for loop, seed, told in every if (loop.name, told, seed) not in known]
    with path.open("a", encoding="utf-8") as file, ProcessPoolExecutor(jobs) as pool:
        for row in pool.map(one, left):
            known[row["loop"], row["told"], row["seed"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    lines = [f"{'loop':<16}{'told':<13}{'gain':>14}{'mean':>14}{'gain over independent':>24}{'over unrelated':>18}"]
    for loop, told in itertools.product(loops, TOLD):
        own, base = ([known[loop.name, which, seed] for seed in range(seeds)] for which in (told, "independent"))
        columns = [np.array([row[name] for row in own]) for name in ("gain", "mean")]
        columns.append(columns[0] - [row["gain"] for row in base])
        whole = [known[loop.name, "unrelated", seed]["gain"] for seed in range(seeds)]
        columns.append(columns[0] - whole)
        cells = [f"{each.mean():.2f}±{each.std(ddof=1) / math.sqrt(seeds):.2f}" for each in columns]
        lines.append(f"{loop.name:<16}{told:<13}{cells[0]:>14}{cells[1]:>14}{cells[2]:>24}{cells[3]:>18}")
    return "\n".join(lines) + "\n"
