"""Closed loops: a latent direction, images asked for by the surrogate, responses in a noisy series, scores by the filter.

What evolution gains depends on what it is told: the shrunken scores with their own errors, as if these were independent (`apart`; with
amplitudes that are taken to be independent too: `independent`), or what the volumes alone say, with its covariance (`together`). All else
is the same, noise included. Gain: mean fitness of the last 20 images, in standard deviations of random ones; mean: of all images.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cells import IMAGE_S, Cell, drawn_noise, kernel, sampled
from numpy.typing import NDArray

from rtevo.decode.grid import ALONE, Grid
from rtevo.decode.nuisance import Nuisance
from rtevo.decode.separate import Separate
from rtevo.evolve import Course, CourseSettings, create
from rtevo.evolve.together import Link

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


LOOPS = (
    Loop("plain"),
    Loop("weak", contrast=0.7),
    Loop("every 2 s", cadence_s=2.0, images=200),
    Loop("strong drift", drift=6.0),
    Loop("peak 7 s, 1/f", peak_s=7.0, noise="1/f"),
)
TOLD = ("independent", "apart", "together")


def play(loop: Loop, seed: int, told: str) -> dict[str, float]:
    """Run one session; return its gain in standard deviations of random images' fitness."""
    rng = np.random.default_rng([seed, 1])
    cell = Cell(loop.name, peak_s=loop.peak_s, cadence_s=loop.cadence_s, noise=loop.noise, drift=loop.drift)
    goal = rng.standard_normal(loop.size)
    goal /= np.linalg.norm(goal)
    n = int((10 + loop.images * loop.cadence_s + 24) / cell.tr_s)
    noise = drawn_noise(rng, loop.noise, n, cell.tr_s)
    minutes = (np.arange(n) + 0.5) * cell.tr_s / 60
    slow = [np.cos(2 * math.pi * minutes / period + 6.3 * rng.random()) for period in (2.5, 4.0, 7.0)]
    noise += loop.drift * (0.2 * rng.standard_normal(3) @ np.array(slow) + 0.1 * rng.standard_normal() * minutes)
    own = rng.standard_normal(loop.images)
    response = kernel("double", loop.peak_s)
    evolver = create("surrogate", loop.size, 10, np.random.default_rng([seed, 2]))
    course = Course(evolver, CourseSettings(loop.images // 10, 10, "steady", 2))
    grid = replace(Grid(), shared=(ALONE,)) if told == "independent" else None
    known = np.ones(2), np.ones(2)
    scorer = Separate(np.array([1.0, -1.0]), cell.tr_s, IMAGE_S, Nuisance(cell.tr_s), known=known, grid=grid)
    motion = 0.005 * rng.standard_normal((n, 6))
    waiting, shown, truth, onsets, amplitudes = list(course.due()), 0, [], [], []
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
            tell(course, score, told)
        waiting += course.due(t)
    return {"gain": float(np.mean(truth[-20:])), "mean": float(np.mean(truth))}


def tell(course: Any, score: Any, told: str) -> None:
    """Pass a score to evolution."""
    link = Link.of(score.onset_s, score.measured, score.measured_se, score.neighbours) if told == "together" else None
    course.score(*score.key, score.score, score.score_se, link)


def run_loops(seeds: int, path: Path) -> str:
    """Run what the file does not have yet; return a table."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(row["loop"], row["told"], row["seed"]): row for row in rows}
    with path.open("a", encoding="utf-8") as file:
        for loop, seed, told in itertools.product(LOOPS, range(seeds), TOLD):
            if (loop.name, told, seed) not in known:
                row = {"loop": loop.name, "told": told, "seed": seed, **play(loop, seed, told)}
                known[loop.name, told, seed] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
    lines = [f"{'loop':<16}{'told':<13}{'gain':>14}{'mean':>14}{'gain over independent':>24}"]
    for loop, told in itertools.product(LOOPS, TOLD):
        own, base = ([known[loop.name, which, seed] for seed in range(seeds)] for which in (told, "independent"))
        columns = [np.array([row[name] for row in own]) for name in ("gain", "mean")]
        columns.append(columns[0] - [row["gain"] for row in base])
        cells = [f"{each.mean():.2f}±{each.std(ddof=1) / math.sqrt(seeds):.2f}" for each in columns]
        lines.append(f"{loop.name:<16}{told:<13}{cells[0]:>14}{cells[1]:>14}{cells[2]:>24}")
    return "\n".join(lines) + "\n"
