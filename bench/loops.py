"""Closed loops: a latent direction, images asked for by the surrogate, responses in a noisy series, scores by the filter.

What evolution gains depends on what it is told: the shrunken scores with their own errors, as if these were independent (`apart`), or
the likelihood's with its covariance (`together`). All else is the same, noise included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cells import IMAGE_S, Cell, drawn_noise, kernel, sampled
from numpy.typing import NDArray

from rtevo.decode.grid import ALONE, Grid
from rtevo.decode.nuisance import Nuisance
from rtevo.decode.separate import Separate
from rtevo.evolve import Course, CourseSettings, create
from rtevo.evolve.together import Link

__all__ = ["Loop", "play"]

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
    """Tell evolution of a score."""
    link = Link.of(score.onset_s, score.measured, score.measured_se, score.neighbours) if told == "together" else None
    course.score(*score.key, score.score, score.score_se, link)
