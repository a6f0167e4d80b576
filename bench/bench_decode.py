"""How well single-image responses are recovered: simulated volumes with known responses, and what nuisance terms cost and save.

Run as a script, ``python bench/bench_decode.py [--json FILE] [--seeds N] [--images N] ...``, it prints, mean and standard error over seeds,
the correlation of scores with the true responses

- over cadence and contrast, for the volumes around the peak (as the prototype does it), for least squares and ridge regression on the whole
  run (an image's penalty fixed at 1, or the best of five with hindsight; constant, cosines over 128 s and motion not penalised), for
  deconvolution as published first (8 s after an onset), 16 s after it, and last, and for the same model given the whole run; and the share
  of 95% intervals that hold the truth, first and last;
- under slow drift, task-locked motion and spikes, for a running mean, plain least squares and priors, each before a peak is read, and for
  deconvolution with and without motion terms, with cosines, and with the 24 terms;
- for the simulated participant, with the decoder of a localizer run: 80 x 80 x 35 voxels, realigned and smoothed, an image every 4 s. The
  unit of the responses, which intervals need, is taken from the scores.

With ``--cells [NAME ...] --runs FILE`` it measures instead the filter on series that are made otherwise than it assumes
(``bench/cells.py``), beside peers that see the whole run; with ``--loops FILE`` what a closed loop gains by what evolution is told
(``bench/loops.py``). Both go on where they were stopped.

With ``--fit RUN TSV --score RUN TSV`` it measures instead what ``python -m rtevo.decode fit`` with its defaults is worth on two real runs
(or the two halves of one) and prints image and block AUC and accuracy; with ``--localizers RUN TSV`` what ridge on all voxels and on
selected ones are worth on made-up localizers with that run's noise (``bench/localizers.py``).

Under pytest-benchmark the cost of a volume is timed at 80 x 80 x 35 voxels, smoothing included, and with realignment.

Volumes have a tSNR of 60, AR(1) noise (0.3 at a TR of 0.867 s), a random-walk drift and small motion. Contrast is the standard deviation
of the responses' peaks along the map, in noise standard deviations of the projection on it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.decode import Decoder, Deconvolver, Score, Scorer
from rtevo.decode import Grid as Parameters
from rtevo.decode.hrf import response
from rtevo.decode.nuisance import DRIFT_SD, MOTION_SD
from rtevo.decode.separate import Projection
from rtevo.realign import Realigner, warm_up
from rtevo.records import Grid
from rtevo.simulate import Simulation, make_decoder
from rtevo.simulate.participant import Participant
from rtevo.simulate.scanner import Scanner

Array = NDArray[np.float64]
TR_S, IMAGE_S, TSNR, SIGNAL = 0.867, 3.0, 60.0, 1000.0
SHAPE = (9, 9, 9)
CADENCES_S, CONTRASTS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0), (0.5, 1.0, 2.0, 4.0)
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
WAYS = {"running mean": (0.0, 0.0), "least squares": (math.inf, math.inf), "priors": (DRIFT_SD, MOTION_SD)}
MODELS: dict[str, dict[str, Any]] = {
    "deconvolve": {},
    "no motion": {"grid": Parameters(motion_sd=(0.0,))},
    "24 terms": {"motion_terms": 24},
    "cosines": {"drift": "cosine"},
}
TROUBLES = ("none", "drift", "motion", "spikes", "artefacts")


@dataclass(frozen=True)
class Liking:
    """A participant's preference, given beforehand image by image."""

    values: Iterator[float]

    def __call__(self, pixels: NDArray[np.uint8]) -> float:
        return float(next(self.values))

    def settings(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Run:
    """A simulated run."""

    decoder: Decoder
    onsets_s: Array
    truth: Array
    volumes: NDArray[np.float32]
    motion: Array
    contrast: float


def simulate(seed: int, cadence_s: float, contrast: float, images: int, trouble: str = "none") -> Run:
    """Make volumes with responses along a map, a response common to all images, noise, drift and motion."""
    rng = np.random.default_rng(seed)
    mask = np.ones(SHAPE, bool)
    weights = rng.standard_normal(SHAPE)
    grid, noise_sd = Grid(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0])), np.full(SHAPE, SIGNAL / TSNR)
    decoder = Decoder(grid, np.full(SHAPE, SIGNAL), mask, weights, "map", {}, noise_sd)
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
    if trouble in ("spikes", "artefacts"):  # of a jump of the head; of the scanner
        for t in rng.choice(len(times), max(1, len(times) // 40), replace=False):
            volumes[t] += (6 if trouble == "spikes" else 12) * sd * rng.standard_normal(SHAPE)
            motion[t:, 0] += 1.2 * rng.choice([-1, 1]) * (trouble == "spikes")
    return Run(decoder, onsets, truth, volumes.astype(np.float32), motion, contrast)


def scan(seed: int, images: int) -> Run:
    """Scan the simulated participant, who moves and whose responses differ, and align the volumes."""
    settings = Simulation(seed=seed, participant_seed=seed, tr_s=TR_S)
    head, made = settings.head(), make_decoder(settings)
    decoder = Decoder(made.grid, made.reference.astype(np.float32), made.mask, made.weights, "liking", {}, made.noise_sd)
    onsets, truth = 6 + 4.0 * np.arange(images), np.random.default_rng(seed).standard_normal(images)
    participant, scanner, shown = Participant(Liking(iter(truth)), np.random.default_rng(seed)), Scanner(head, settings), 0
    volumes, motion = [], []
    with Realigner(decoder.reference, decoder.grid.affine) as realigner:
        for index in range(int((onsets[-1] + 24) / TR_S)):
            while shown < images and onsets[shown] < (index + 1) * TR_S:
                participant.look("image", float(onsets[shown]), np.zeros((1, 1, 3), np.uint8))
                participant.look("fixation", float(onsets[shown]) + IMAGE_S)
                shown += 1
            volume = scanner.acquire(index, participant)
            moved = realigner.estimate(volume)
            volumes.append(realigner.reslice(volume, moved).copy())
            motion.append(moved.params)
    return Run(decoder, onsets, truth, np.array(volumes), np.array(motion), 1.0)


def scores(run: Run, **options: Any) -> tuple[dict[int, Score], dict[int, Score], dict[int, Score]]:
    """Score a run; return the first word on each image, that 16 s after its onset, and the last, all before the run's end."""
    scorer = Scorer(run.decoder, TR_S, **{"fwhm_mm": 0.0, **options})
    first: dict[int, Score] = {}
    passed: dict[int, Score] = {}
    last: dict[int, Score] = {}
    shown = 0
    for index, volume in enumerate(run.volumes):
        while shown < len(run.onsets_s) and run.onsets_s[shown] < (index + 1) * TR_S:
            scorer.add_onset((0, shown), float(run.onsets_s[shown]))
            shown += 1
        scorer.add_volume(index, volume, run.motion[index])
        for score in scorer.ready():
            first.setdefault(score.key[1], score)
            last[score.key[1]] = score
            if (index + 0.5) * TR_S <= score.onset_s + 16 + TR_S:
                passed[score.key[1]] = score
    for score in scorer.ready(final=True):  # only what has not been scored before
        first.setdefault(score.key[1], score)
        last.setdefault(score.key[1], score)
    return first, {**last, **passed}, last


def series(run: Run) -> tuple[Array, Array]:
    """Projection of each volume on the map, (n,), and the responses to the images, (n, images)."""
    mask = run.decoder.mask
    project = Projection(run.decoder.weights[mask].astype(float), np.full(int(mask.sum()), SIGNAL / TSNR))
    times = (np.arange(len(run.volumes)) + 0.5) * TR_S
    return np.array([project(volume[mask]) for volume in run.volumes]), np.array([response(times - o, IMAGE_S) for o in run.onsets_s]).T


def regress(run: Run, penalty: float) -> Array:
    """Amplitudes by ridge regression on the whole run; images are drawn to their mean."""
    y, shapes = series(run)
    n = len(y)
    slow = [np.cos(np.pi * k * (np.arange(n) + 0.5) / n) for k in range(1, int(2 * n * TR_S / 128) + 1)]
    others = np.column_stack([np.ones(n), *slow, run.motion * ([1.0] * 3 + [50.0] * 3), shapes.sum(axis=1)])
    if penalty == 0:
        return np.asarray(np.linalg.lstsq(np.column_stack([shapes, others[:, :-1]]), y, rcond=None)[0][: shapes.shape[1]])
    design = np.column_stack([shapes, others])
    normal = design.T @ design + np.diag([penalty] * shapes.shape[1] + [1e-9] * others.shape[1])
    return np.asarray(np.linalg.solve(normal, design.T @ y)[: shapes.shape[1]])


def offline(run: Run) -> Array:
    """Amplitudes given the whole run, by dense matrices, at the point of the grid that the filter finds the most probable at the end."""
    y, _ = series(run)
    motion = run.motion * ([1.0] * 3 + [50.0] * 3)
    times = (np.arange(len(y)) + 0.5) * TR_S
    filtered, shown = Deconvolver(TR_S, 6), 0
    for t_s, value, terms in zip(times, y, motion, strict=True):
        while shown < len(run.onsets_s) and run.onsets_s[shown] <= t_s:
            filtered.add_image((0, shown), float(run.onsets_s[shown]), IMAGE_S)
            shown += 1
        filtered.add_volume(t_s, value, terms)
    amplitude_sd, rho, drift_sd, motion_sd, lag_s = Parameters().points()[:, int(np.argmax(filtered.weights()))]
    shapes = np.array([response(times - o - lag_s, IMAGE_S) for o in run.onsets_s]).T
    covariance = rho ** (np.abs(times[:, np.newaxis] - times) / TR_S) + 1e6 + motion_sd**2 * motion @ motion.T
    covariance += drift_sd**2 * np.minimum.outer(times - times[0], times - times[0])
    loading = np.column_stack([30.0 * shapes.sum(axis=1), amplitude_sd * shapes])
    weights = loading.T @ np.linalg.solve(covariance + loading @ loading.T, y)
    return np.asarray(30.0 * weights[0] + amplitude_sd * weights[1:])


def agreement(found: dict[int, Score] | Array, truth: Array) -> float:
    """Correlation with the truth."""
    values = found if isinstance(found, np.ndarray) else np.array([found[k].score for k in range(len(truth))])
    return float(np.corrcoef(values, truth)[0, 1])


def coverage(found: dict[int, Score], amplitudes: Array) -> float:
    """Share of the 95% intervals that hold the truth, relative to the mean of all images."""
    values, errors = np.array([(found[k].score, found[k].score_se) for k in range(len(amplitudes))]).T
    apart = values - amplitudes
    return float((np.abs(apart - apart.mean()) < 1.96 * errors).mean())


def cell(values: list[float]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):5.2f} ±{np.std(values, ddof=1) / math.sqrt(len(values)):.2f}" if len(values) > 1 else f"{values[0]:5.2f}"


def recover(run: Run) -> dict[str, float]:
    """Every method on one run."""
    first, passed, last = scores(run, method="deconvolve", duration_s=IMAGE_S)
    truth = run.truth
    return {
        "peak": agreement(scores(run, method="peak")[2], truth),
        "squares": agreement(regress(run, 0.0), truth),
        "ridge 1": agreement(regress(run, 1.0), truth),
        "best ridge": max(agreement(regress(run, penalty), truth) for penalty in RIDGES),
        "first": agreement(first, truth),
        "16 s": agreement(passed, truth),
        "last": agreement(last, truth),
        "offline": agreement(offline(run), truth),
        "95% first": coverage(first, run.contrast * truth),
        "95% last": coverage(last, run.contrast * truth),
    }


def recovery_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods over cadence and contrast."""
    rows: list[dict[str, Any]] = []
    for cadence_s, contrast in itertools.product(options.cadences, options.contrasts):
        found = [recover(simulate(seed, cadence_s, contrast, options.images)) for seed in range(options.seeds)]
        columns = {name: [each[name] for each in found] for name in found[0]}
        if not rows:
            print(f"{'cadence':>8}{'contrast':>9}" + "".join(f"{name:>13}" for name in columns))
        print(f"{cadence_s:>6g} s{contrast:>9g}" + "".join(f"{cell(column):>13}" for column in columns.values()), flush=True)
        rows.append({"cadence_s": cadence_s, "contrast": contrast, **columns})
    every = {name: np.concatenate([row[name] for row in rows]) for name in ("95% first", "95% last")}
    print("all cells:", ", ".join(f"{name} {cell(list(values))}" for name, values in every.items()))
    return rows


def nuisance_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What taking out drift and motion costs and saves."""
    rows = []
    print("\ncadence 4 s, contrast 2: a peak after each way of taking out drift and motion; and deconvolution")
    print(f"{'trouble':>9}" + "".join(f"{way:>15}" for way in (*WAYS, *MODELS)))
    for trouble in options.troubles:
        columns: dict[str, list[float]] = {way: [] for way in (*WAYS, *MODELS)}
        for seed in range(options.seeds):
            run = simulate(seed, 4.0, 2.0, options.images, trouble)
            for way, (drift_sd, motion_sd) in WAYS.items():
                columns[way].append(agreement(scores(run, method="peak", drift_sd=drift_sd, motion_sd=motion_sd)[2], run.truth))
            for model, settings in MODELS.items():
                columns[model].append(agreement(scores(run, duration_s=IMAGE_S, **settings)[2], run.truth))
        print(f"{trouble:>9}" + "".join(f"{cell(column):>15}" for column in columns.values()), flush=True)
        rows.append({"trouble": trouble, **columns})
    return rows


def participant_table(options: argparse.Namespace) -> list[dict[str, float]]:
    """Scores of the simulated participant."""
    rows: list[dict[str, float]] = []
    for seed in range(options.participants):
        run = scan(seed, options.images)
        row = {
            f"peak, {way}": agreement(scores(run, method="peak", fwhm_mm=4.0, drift_sd=drift_sd, motion_sd=motion_sd)[2], run.truth)
            for way, (drift_sd, motion_sd) in WAYS.items()
        }
        first, _, last = scores(run, fwhm_mm=4.0, duration_s=IMAGE_S)
        unit = 1 / np.polyfit([last[k].score for k in range(options.images)], run.truth, 1)[0]  # scores are posterior means
        row |= {"first": agreement(first, run.truth), "last": agreement(last, run.truth)}
        row |= {"95% first": coverage(first, unit * run.truth), "95% last": coverage(last, unit * run.truth)}
        if not rows:
            print("\nsimulated participant\n" + "".join(f"{name:>21}" for name in row))
        print("".join(f"{value:>21.2f}" for value in row.values()), flush=True)
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the first table, a panel for each cadence."""
    from matplotlib.figure import Figure

    lines = {
        "peak": ("peak", "o-", "grey"),
        "squares": ("least squares", "s:", "silver"),
        "ridge 1": ("ridge, fixed", "s--", "tab:orange"),
        "first": ("deconvolve, first (8 s)", "o:", "tab:blue"),
        "last": ("deconvolve, latest", "o-", "tab:blue"),
        "offline": ("same model, whole run", "--", "black"),
    }
    cadences = sorted({row["cadence_s"] for row in rows})
    columns = min(3, len(cadences))
    figure = Figure(figsize=(3.3 * columns, 3.1 * math.ceil(len(cadences) / columns)), layout="constrained")
    axes = np.ravel(figure.subplots(math.ceil(len(cadences) / columns), columns, sharex=True, sharey=True, squeeze=False))
    for axis, cadence_s in zip(axes, cadences, strict=False):
        mine = [row for row in rows if row["cadence_s"] == cadence_s]
        for name, (label, style, colour) in lines.items():
            values = np.array([row[name] for row in mine])
            errors = values.std(axis=1, ddof=1) / math.sqrt(values.shape[1]) if values.shape[1] > 1 else None
            axis.errorbar(
                [row["contrast"] for row in mine], values.mean(axis=1), errors, fmt=style, color=colour, label=label, ms=4, capsize=2
            )
        axis.set(title=f"an image every {cadence_s:g} s", xscale="log", ylim=(0, 1))
        axis.set_xticks(CONTRASTS, [f"{contrast:g}" for contrast in CONTRASTS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[len(cadences) - 1].legend(fontsize=7)
    figure.supxlabel("contrast (noise sd)", fontsize=10)
    figure.supylabel("correlation with the true responses", fontsize=10)
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--figure", type=Path, help="draw the first table here")
    parser.add_argument("--seeds", type=int, default=10, help="runs for each number (default 10)")
    parser.add_argument("--images", type=int, default=40, help="in a run (default 40)")
    parser.add_argument("--cadences", type=float, nargs="+", default=CADENCES_S, help="seconds")
    parser.add_argument("--contrasts", type=float, nargs="+", default=CONTRASTS, help="noise standard deviations")
    parser.add_argument("--troubles", nargs="*", choices=TROUBLES, default=TROUBLES, help="of the second table")
    parser.add_argument("--participants", type=int, default=6, help="of the third table (default 6)")
    parser.add_argument("--fit", nargs=2, type=Path, metavar=("RUN", "TSV"), help="fit maps to this real run by the command")
    parser.add_argument("--score", nargs=2, type=Path, metavar=("RUN", "TSV"), help="and score this one")
    parser.add_argument("--localizers", nargs=2, type=Path, metavar=("RUN", "TSV"), help="made-up localizers with this run's noise")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.25, 0.35], help="of their responses, noise standard deviations")
    parser.add_argument("--cells", nargs="*", metavar="NAME", help="series made otherwise than the filter assumes; default: all cells")
    parser.add_argument("--runs", type=Path, default=Path("cells.jsonl"), help="file of their runs (default cells.jsonl)")
    parser.add_argument("--loops", type=Path, metavar="FILE", help="closed loops; file of their runs")
    parser.add_argument("--of", nargs="+", default=[], metavar="NAME", help="of the closed loops, only these")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="closed loops at a time (default 1)")
    options = parser.parse_args(arguments)
    if options.cells is not None or options.loops:
        from cells import run_cells, table
        from loops import run_loops

        if options.cells is not None:
            print(table(run_cells(options.cells, options.seeds, options.runs)))
        if options.loops:
            print(run_loops(options.seeds, options.loops, options.of, options.jobs))
        return 0
    if (options.fit is None) != (options.score is None):
        parser.error("--fit and --score: expected both")
    if options.fit or options.localizers:
        from localizers import real_table, study_table

        if options.fit:
            real_table(options.fit, options.score)
        if options.localizers:
            study_table(*options.localizers, options.seeds, options.sizes)
        return 0
    print(f"{options.images} images of {IMAGE_S:g} s, TR {TR_S} s; {options.seeds} seeds from 0; correlation with the true responses")
    rows = {"recovery": recovery_table(options), "nuisance": nuisance_table(options), "participants": participant_table(options)}
    if options.figure:
        draw(rows["recovery"], options.figure)
    if options.json:
        options.json.write_text(json.dumps(rows) + "\n")
    return 0


@pytest.mark.parametrize("length", [60, 1500])
@pytest.mark.parametrize("method", ["peak", "deconvolve", "pattern"])
def test_cost_of_a_volume(benchmark: Any, method: str, length: int) -> None:
    """One volume of 80 x 80 x 35, an image every 4 s, from raw volume to scores, after a short and a long run."""
    shape = (80, 80, 35)
    rng = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = (axes**2).sum(axis=0)
    head = 1000 * np.exp(-((radius / 0.8) ** 4)) * (1 + 0.2 * np.sin(9 * axes[0]) * np.cos(7 * axes[1]) * np.sin(5 * axes[2]))
    decoder = Decoder(Grid(shape, np.diag([3.0, 3.0, 3.3, 1.0])), head, radius < 0.8, rng.standard_normal(shape), "map")
    volumes = [(head + 10 * rng.standard_normal(shape)).astype(np.float32) for _ in range(8)]
    warm_up()
    scorer = Scorer(decoder, TR_S, method=method)  # type: ignore[arg-type]
    state = {"index": 0, "shown": 0}
    with Realigner(decoder.reference, decoder.grid.affine) as realigner:

        def step(aligned: bool = False) -> list[Score]:
            index = state["index"]
            while 4.0 * state["shown"] < (index + 1) * TR_S:
                scorer.add_onset((0, state["shown"]), 4.0 * state["shown"])
                state["shown"] += 1
            data = volumes[index % 8]
            if aligned:
                scorer.add_volume(index, data, 0.02 * rng.standard_normal(6) * ([1.0] * 3 + [0.02] * 3))
            else:
                motion = realigner.estimate(data)
                scorer.add_volume(index, realigner.reslice(data, motion), motion.params)
            state["index"] += 1
            return scorer.ready()

        for _ in range(length):
            step(aligned=True)
        benchmark.pedantic(step, rounds=100, warmup_rounds=5)
    times_ms = 1e3 * np.sort(benchmark.stats.stats.data)
    benchmark.extra_info["p99_ms"] = float(np.percentile(times_ms, 99))
    assert state["index"] == length + 105


if __name__ == "__main__":
    sys.exit(main())
