"""How well single-image responses are recovered: simulated volumes with known responses, and what nuisance terms cost and save.

Run as a script, ``python bench/bench_decode.py [--json FILE] [--seeds N] [--images N]``, it prints, mean and standard error over the seeds,
the correlation of scores with the true responses

- over cadence and contrast, for the volumes around the peak (as the prototype does it) and for deconvolution: as published first (8 s
  after an onset), as last said, and the share of 95% intervals that hold the truth;
- under slow drift, task-locked motion and spikes, for a running mean, plain least squares and the default priors.

Under pytest-benchmark the cost of a volume is timed at 80 x 80 x 35 voxels, smoothing included.

Volumes have a tSNR of 60, AR(1) noise (0.3 at a TR of 0.867 s), a random-walk drift and small motion. Contrast is the standard deviation
of the responses' peaks along the map, in noise standard deviations of the projection on it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.decode import Decoder, Score, Scorer
from rtevo.decode.hrf import response
from rtevo.decode.scorer import DRIFT_SD, MOTION_SD
from rtevo.records import Grid

Array = NDArray[np.float64]
TR_S, IMAGE_S, TSNR, SIGNAL = 0.867, 3.0, 60.0, 1000.0
SHAPE = (9, 9, 9)
CADENCES_S, CONTRASTS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0), (0.5, 1.0, 2.0, 4.0)
WAYS = {"running mean": (1e-6, 1e-6), "least squares": (math.inf, math.inf), "default": (DRIFT_SD, MOTION_SD)}
TROUBLES = ("none", "drift", "motion", "spikes")


@dataclass(frozen=True)
class Run:
    """A simulated run."""

    decoder: Decoder
    onsets_s: Array
    truth: Array
    volumes: NDArray[np.float32]
    motion: Array


def simulate(seed: int, cadence_s: float, contrast: float, images: int, trouble: str = "none") -> Run:
    """Make volumes with responses along a map, a response common to all images, noise, drift and motion."""
    rng = np.random.default_rng(seed)
    mask = np.ones(SHAPE, bool)
    weights = rng.standard_normal(SHAPE)
    decoder = Decoder(Grid(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0])), np.full(SHAPE, SIGNAL), mask, weights, "map")
    onsets = 6 + cadence_s * np.arange(images)
    times = (np.arange(int((onsets[-1] + 24) / TR_S)) + 0.5) * TR_S
    truth = rng.standard_normal(images)
    shapes = np.array([response(times - onset, IMAGE_S) for onset in onsets])
    sd = SIGNAL / TSNR
    noise = rng.standard_normal((len(times), *SHAPE))
    for t in range(1, len(times)):
        noise[t] = 0.3 * noise[t - 1] + math.sqrt(1 - 0.3**2) * noise[t]
    centred = weights - weights.mean()
    along = contrast * (1 + truth) @ shapes
    volumes = SIGNAL + sd * (noise + np.multiply.outer(along, centred / np.linalg.norm(centred)))
    volumes += np.multiply.outer(shapes.sum(axis=0), rng.normal(0, 0.3 * sd, SHAPE))  # all images alike, off the map
    drift = np.cumsum(rng.standard_normal(len(times))) * math.sqrt(TR_S) * (0.15 if trouble == "drift" else 0.02)
    volumes += sd * np.multiply.outer(drift, rng.standard_normal(SHAPE))
    motion = np.cumsum(rng.normal(0, [0.01] * 3 + [0.0002] * 3, (len(times), 6)), axis=0)
    if trouble == "motion":
        motion += 0.3 * np.outer(shapes.sum(axis=0) / shapes.sum(axis=0).max(), rng.standard_normal(6) * ([1.0] * 3 + [0.02] * 3))
        motion[:, :3] += 0.15 * rng.standard_normal((len(times), 3))
    effect = rng.normal(0, 2.0 * sd, (6, *SHAPE))
    volumes += np.tensordot(motion * ([1.0] * 3 + [50.0] * 3), effect, 1)
    if trouble == "spikes":
        for t in rng.choice(len(times), max(1, len(times) // 40), replace=False):
            volumes[t] += 6 * sd * rng.standard_normal(SHAPE)
            motion[t:, 0] += 1.2 * rng.choice([-1, 1])
    return Run(decoder, onsets, truth, volumes.astype(np.float32), motion)


def scores(run: Run, **options: Any) -> tuple[dict[int, Score], dict[int, Score]]:
    """Score a run; return the first and the last word on each image."""
    scorer = Scorer(run.decoder, TR_S, fwhm_mm=0, **options)
    first: dict[int, Score] = {}
    last: dict[int, Score] = {}
    shown = 0
    for index, volume in enumerate(run.volumes):
        while shown < len(run.onsets_s) and run.onsets_s[shown] < (index + 1) * TR_S:
            scorer.add_onset((0, shown), float(run.onsets_s[shown]))
            shown += 1
        scorer.add_volume(index, volume, run.motion[index])
        for score in scorer.ready(final=index == len(run.volumes) - 1):
            first.setdefault(score.key[1], score)
            last[score.key[1]] = score
    return first, last


def agreement(found: dict[int, Score], truth: Array) -> float:
    """Correlation with the truth."""
    return float(np.corrcoef([found[k].score for k in range(len(truth))], truth)[0, 1])


def coverage(found: dict[int, Score], truth: Array) -> float:
    """Share of the 95% intervals that hold the truth, its scale and mean being those that fit best."""
    values, errors = np.array([(found[k].score, found[k].score_se) for k in range(len(truth))]).T
    slope = float(np.clip(np.std(values) / np.std(truth), 1e-6, None)) / max(agreement(found, truth), 0.1)
    fitted = slope * truth
    return float((np.abs(values - fitted - np.mean(values - fitted)) < 1.96 * errors).mean())


def cell(values: list[float]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):5.2f} ±{np.std(values, ddof=1) / math.sqrt(len(values)):.2f}" if len(values) > 1 else f"{values[0]:5.2f}"


def recovery_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak and deconvolution over cadence and contrast."""
    rows = []
    print(f"{'cadence':>8}{'contrast':>9}{'peak':>13}{'first word':>13}{'last word':>13}{'covered':>13}")
    for cadence_s, contrast in itertools.product(CADENCES_S, CONTRASTS):
        columns: list[list[float]] = [[], [], [], []]
        for seed in range(options.seeds):
            run = simulate(seed, cadence_s, contrast, options.images)
            first, last = scores(run, method="deconvolve", duration_s=IMAGE_S)
            found = (agreement(scores(run, method="peak")[1], run.truth), agreement(first, run.truth), agreement(last, run.truth))
            for column, value in zip(columns, (*found, coverage(last, run.truth)), strict=True):
                column.append(value)
        print(f"{cadence_s:>6g} s{contrast:>9g}" + "".join(f"{cell(column):>13}" for column in columns), flush=True)
        rows.append({"cadence_s": cadence_s, "contrast": contrast, **dict(zip(("peak", "first", "last", "covered"), columns, strict=True))})
    return rows


def nuisance_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What taking out drift and motion costs and saves."""
    rows = []
    print("\ncadence 4 s, contrast 2: peak, by what is taken out; and deconvolution")
    print(f"{'trouble':>8}" + "".join(f"{way:>15}" for way in (*WAYS, "deconvolve")))
    for trouble in TROUBLES:
        columns: dict[str, list[float]] = {way: [] for way in (*WAYS, "deconvolve")}
        for seed in range(options.seeds):
            run = simulate(seed, 4.0, 2.0, options.images, trouble)
            for way, (drift_sd, motion_sd) in WAYS.items():
                columns[way].append(agreement(scores(run, method="peak", drift_sd=drift_sd, motion_sd=motion_sd)[1], run.truth))
            columns["deconvolve"].append(agreement(scores(run, method="deconvolve", duration_s=IMAGE_S)[1], run.truth))
        print(f"{trouble:>8}" + "".join(f"{cell(column):>15}" for column in columns.values()), flush=True)
        rows.append({"trouble": trouble, **columns})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--seeds", type=int, default=10, help="runs for each number (default 10)")
    parser.add_argument("--images", type=int, default=40, help="in a run (default 40)")
    options = parser.parse_args(arguments)
    print(f"{options.images} images of {IMAGE_S:g} s, TR {TR_S} s; {options.seeds} seeds from 0; correlation with the true responses")
    rows = {"recovery": recovery_table(options), "nuisance": nuisance_table(options)}
    if options.json:
        options.json.write_text(json.dumps(rows) + "\n")
    return 0


@pytest.mark.parametrize("method", ["peak", "deconvolve"])
def test_cost_of_a_volume(benchmark: Any, method: str) -> None:
    """One volume of 80 x 80 x 35, an image every 4 s, scores included."""
    shape = (80, 80, 35)
    rng = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    mask = (axes**2).sum(axis=0) < 0.8
    decoder = Decoder(Grid(shape, np.diag([3.0, 3.0, 3.3, 1.0])), np.ones(shape), mask, rng.standard_normal(shape), "map")
    volumes = [(1000 + 10 * rng.standard_normal(shape)).astype(np.float32) for _ in range(8)]
    scorer = Scorer(decoder, TR_S, method=method)  # type: ignore[arg-type]
    state = {"index": 0, "shown": 0}

    def step() -> list[Score]:
        index = state["index"]
        while 4.0 * state["shown"] < (index + 1) * TR_S:
            scorer.add_onset((0, state["shown"]), 4.0 * state["shown"])
            state["shown"] += 1
        scorer.add_volume(index, volumes[index % 8], 0.05 * rng.standard_normal(6) * ([1.0] * 3 + [0.02] * 3))
        state["index"] += 1
        return scorer.ready()

    for _ in range(60):  # past the baseline, with as many responses under way as there will ever be
        step()
    benchmark.pedantic(step, rounds=100)
    assert state["index"] == 160


if __name__ == "__main__":
    sys.exit(main())
