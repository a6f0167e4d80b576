"""What more nuisance terms are worth: in the noise of a real run, in a simulated head, and for slice times.

- A real run (`prepare` aligns it; its own responses are taken out): responses to images are put into its volumes, in regions of the map,
  and the scores of the session's filter are held against what was put in. Only the responses are made up: noise and terms are the run's.
- A simulated head: grey matter, white matter, ventricles; pulse, breath and slow waves of their own places and sizes (none of it is what
  the filter assumes); motion that moves bright edges, and spins that remember it; responses reach into white matter.
- Slice times: the response is taken at each slice's own time, the filter takes it at the middle of the volume or at the map's mean time.

::

    python bench/bench_nuisance.py prepare RUN events.tsv real.npz
    python bench/bench_nuisance.py --real real.npz --jobs 2 --out table.md
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cells import drawn_noise, kernel, sampled
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import rankdata

from rtevo.decode import Deconvolver
from rtevo.decode.compartments import Compartments, compartments_of
from rtevo.decode.grid import Grid as Parameters
from rtevo.decode.grid import ResponsePrior
from rtevo.records import Grid

Array = NDArray[np.float64]
IMAGE_S, CADENCE_S, CONTRAST = 3.0, 4.0, 1.0
SHAPE, VOXEL_MM = (40, 48, 30), 4.0
PARTS = ("real", "head", "slices", "cost")
CASES = ((1.0, False, 1.0), (2.0, False, 1.0), (2.0, True, 1.0), (2.0, False, 0.0), (2.0, True, 0.0))
SETS: dict[str, tuple[str, ...]] = {
    "white matter": ("white_matter",),
    "csf": ("csf",),
    "white matter, csf": ("white_matter", "csf"),
    "acompcor": ("acompcor",),
    "global": ("global",),
    "acompcor, global": ("acompcor", "global"),
}


# --- what is found ---------------------------------------------------------------------------------------------------------------------


def last_words(
    series: Array, times: Array, onsets: Array, motion: Array, sizes: Sequence[int], columns: Array
) -> tuple[Array, list[float]]:
    """Amplitudes by the session's filter, and how probable each group is at the end."""
    tr_s, shown = float(times[1] - times[0]), 0
    found = Deconvolver(tr_s, motion.shape[1], nuisance_terms=sizes)
    for index, t_s in enumerate(times):
        while shown < len(onsets) and onsets[shown] <= t_s:
            found.add_image((0, shown), float(onsets[shown]), IMAGE_S)
            shown += 1
        found.add_volume(float(t_s), float(series[index]), np.concatenate([motion[index], columns[index]]))
    said = found.amplitudes()
    return np.array([said[0, k].value for k in range(len(onsets))]), found.there()


def area(values: Array, truth: Array) -> float:
    """Area under the ROC curve: images over the median of the truth against those under it."""
    high = truth > np.median(truth)
    ranks = rankdata(values)
    return float((ranks[high].sum() - high.sum() * (high.sum() + 1) / 2) / (high.sum() * (~high).sum()))


def left(series: Array, terms: Array) -> float:
    """Standard deviation of what least squares leave of a series, degrees of freedom counted."""
    used = np.column_stack([terms[:, np.ptp(terms, axis=0) > 0], np.ones(len(series))])
    used = used / np.sqrt((used**2).sum(axis=0))
    rest = series - used @ np.linalg.lstsq(used, series, rcond=None)[0]
    return float(np.sqrt((rest**2).sum() / (len(series) - np.linalg.matrix_rank(used))))


def compare(
    series: Array, responses: Array, times: Array, onsets: Array, truth: Array, motion: Array, ways: dict[str, tuple[Sequence[int], Array]]
) -> dict[str, dict[str, float]]:
    """Every way on one run: agreement, area, the map's tSNR as a multiple of that without terms, and the groups' probability."""
    slow = np.polynomial.legendre.legvander(2 * times / times.max() - 1, 3)
    noise = series - responses
    begins = max((np.flatnonzero(c.any(axis=1))[0] for _, c in ways.values() if c.any()), default=0)  # the terms are known from here
    plain = left(noise[begins:], np.column_stack([slow, motion])[begins:])
    rows, half = {}, len(onsets) // 2
    for name, (sizes, columns) in ways.items():
        six = motion if name != "motion: 24 terms" else friston(motion)
        values, there = last_words(series, times, onsets, six, sizes, columns)
        rest = left(noise[begins:], np.column_stack([slow, six, columns])[begins:])
        rows[name] = {
            "r": float(np.corrcoef(values, truth)[0, 1]),
            "late": float(np.corrcoef(values[half:], truth[half:])[0, 1]),
            "auc": area(values, truth),
            "tsnr": plain / rest,
            "there": float(np.mean(there)) if there else math.nan,
        }
    return rows


def friston(motion: Array) -> Array:
    """Twenty-four terms: motion, that of the volume before, and both squared."""
    before = np.vstack([motion[:1], motion[:-1]])
    return np.hstack([motion, before, motion**2, before**2])


def ways_of(volumes: NDArray[np.float32], masks: dict[str, Any], weighed: Any, motion: Array, tr_s: float) -> dict[str, Any]:
    """Terms of each way, as they come with the volumes, (volumes, terms)."""
    n = len(volumes)
    found: dict[str, tuple[Sequence[int], Array]] = {"none": ((), np.zeros((n, 0)))}
    for name, kinds in SETS.items():
        made = Compartments(kinds, masks, weighed, tr_s)
        found[name] = made.sizes, np.nan_to_num(np.array([made.terms(volume) for volume in volumes]))
    step = np.vstack([np.zeros(6), np.diff(motion, axis=0)])
    before = np.vstack([np.zeros((1, 6)), step[:-1]])
    found["spins: step before"] = (6,), scaled(before, tr_s)
    found["spins: its square"] = (6,), scaled(before**2, tr_s)
    found["motion: 24 terms"] = (), np.zeros((n, 0))
    found["five of pure noise"] = (5,), np.random.default_rng(n).standard_normal((n, 5))
    return found


def scaled(columns: Array, tr_s: float) -> Array:
    """In units of their spread over the first 40 s; what lies far beyond it is cut."""
    first = max(round(40.0 / tr_s), 20)
    made = columns / np.maximum(columns[:first].std(axis=0), 1e-9)
    made[:first] = 0.0
    return np.clip(made, -10, 10)


# --- a real run ------------------------------------------------------------------------------------------------------------------------


def prepare(path: Path, table: Path, out: Path) -> None:
    """Align a run as a session does and keep the head's voxels, without its responses: raw and smoothed."""
    from rtevo.decode.events import predicted
    from rtevo.decode.nuisance import motion_in_mm
    from rtevo.decode.recorded import aligned, events_of, open_with, reference_of
    from rtevo.kernels.smooth import smooth

    run = open_with(path, SimpleNamespace(series=None, tr=None))  # type: ignore[arg-type]
    reference = reference_of(run)
    masks = compartments_of(reference, run.grid)
    head, raw, soft, motion, index = masks["global"], [], [], [], []
    for number, volume, params in aligned(run, reference, head):
        if volume is not None:
            raw.append(volume[head].astype(np.float32))
            soft.append(smooth(np.nan_to_num(volume), run.grid.voxel_size_mm, 4.0)[head])
            motion.append(motion_in_mm(params))
            index.append(number)
    times = (np.array(index) + 0.5) * run.tr_s
    events = events_of(table, run)
    kinds = sorted({event.trial_type for event in events})
    shown = np.column_stack([predicted(times, events, [1.0 if e.trial_type == kind else math.nan for e in events]) for kind in kinds])
    design = np.column_stack([np.polynomial.legendre.legvander(2 * times / times.max() - 1, 3), np.array(motion), shown])
    arrays = {}
    for name, values in (("raw", np.array(raw)), ("soft", np.array(soft))):
        own = np.linalg.lstsq(design, values, rcond=None)[0][-len(kinds) :]
        arrays[name] = (values - shown @ own).astype(np.float32)
    points = np.argwhere(head) * run.grid.voxel_size_mm
    named = {name: mask[head] for name, mask in masks.items()}
    np.savez_compressed(out, **arrays, **named, motion=np.array(motion), points=points, times=times)  # type: ignore[arg-type]


def planted(path: Path, seed: int) -> dict[str, dict[str, float]]:
    """Put responses into a real run, in a region or six, and find them."""
    run = np.load(path)
    rng, points, times, motion, soft = np.random.default_rng(seed), run["points"], run["times"], run["motion"], run["soft"]
    slow = np.polynomial.legendre.legvander(2 * times / times.max() - 1, 3)
    plain = np.column_stack([slow, motion])
    sd = (soft - plain @ np.linalg.lstsq(plain, soft, rcond=None)[0]).std(axis=0)
    back = points[points[:, 1] < np.percentile(points[:, 1], 60)]

    def region(sd_mm: float) -> Array:
        return np.asarray(np.exp(-((points - back[rng.integers(len(back))]) ** 2).sum(axis=1) / (2 * sd_mm**2)))

    pattern = region(8.0) if seed % 2 else sum(rng.normal() * region(7.0) for _ in range(6))
    weights = pattern - pattern.mean()
    length = float(np.linalg.norm(weights))
    noise = (soft / sd) @ (weights / length)
    unit = left(noise, plain)
    onsets = 6.0 + CADENCE_S * np.arange(int((times[-1] - 18.0) / CADENCE_S))
    truth = CONTRAST * (1 + rng.standard_normal(len(onsets)))
    responses = sampled(kernel("double", 6.0), times, onsets, IMAGE_S) @ truth
    series = noise / unit + responses
    volumes = run["raw"] + np.outer(responses, pattern / length * unit * sd).astype(np.float32)
    masks = {name: run[name] for name in ("white_matter", "csf", "global")}
    ways = ways_of(volumes, masks, np.abs(pattern) > 0.3 * np.abs(pattern).max(), motion, float(times[1] - times[0]))
    return compare(series - series[0], responses, times, onsets, truth, motion, ways)


# --- a simulated head ------------------------------------------------------------------------------------------------------------------


def head() -> tuple[dict[str, NDArray[np.bool_]], Array, Array]:
    """Tissues, where voxels lie (mm from the middle), and their signal."""
    axes = [(np.arange(n) - (n - 1) / 2) * VOXEL_MM for n in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt((x / 68) ** 2 + (y / 84) ** 2 + (z / 54) ** 2)
    folds = 0.06 * np.sin(x / 7.0) * np.cos(y / 8.0) * np.sin(z / 6.0 + 1.0)
    ventricle = np.sqrt(((np.abs(x) - 11) / 7) ** 2 + ((y + 3) / 26) ** 2 + ((z - 6) / 9) ** 2) < 1
    white = (radius + folds < 0.72) & ~ventricle
    grey = (radius < 0.92) & ~white & ~ventricle
    rim = (radius < 1.0) & (radius >= 0.92)
    signal = 1000.0 * (1.02 * grey + 0.92 * white + 1.35 * ventricle + 0.7 * rim)
    return {"grey": grey, "white_matter": white, "csf": ventricle | rim}, np.stack([x, y, z], axis=-1), signal


def field(rng: np.random.Generator, sd_mm: float) -> Array:
    """Smooth noise over the head, of standard deviation 1."""
    made = ndimage.gaussian_filter(rng.standard_normal(SHAPE), sd_mm / VOXEL_MM)
    return np.asarray(made / made.std())


def simulated(size: float, seed: int) -> dict[str, dict[str, float]]:
    """Make a run of a head whose physiology is `size` times as large as the thermal noise, and find its responses."""
    rng, tr_s = np.random.default_rng([7, seed]), 1.0
    tissue, points, signal = head()
    inside = signal > 0
    onsets = 10.0 + CADENCE_S * np.arange(60)
    times = (np.arange(int((onsets[-1] + 20) / tr_s)) + 0.5) * tr_s
    n = len(times)
    sources = [beats(rng, times, 1.08, 0.05), beats(rng, times, 0.26, 0.08), *[slow_wave(rng, times) for _ in range(3)]]
    low = np.clip((20 - points[..., 2]) / 50, 0, 1)  # vessels at the base
    places = [
        tissue["csf"] * 1.5 + 0.8 * low * np.abs(field(rng, 8.0)) + 0.25 * field(rng, 12.0),
        0.6 + 0.5 * points[..., 1] / 84 + 0.4 * field(rng, 20.0),
        *[(0.9 * tissue["grey"] + 0.45 * tissue["white_matter"] + 0.3 * tissue["csf"]) * (0.6 + field(rng, 16.0)) for _ in range(3)],
    ]
    motion = np.cumsum(rng.normal(0, 0.006, (n, 6)), axis=0)
    motion += 0.1 * rng.standard_normal((n, 6)) * (rng.random((n, 1)) < 0.05)
    edges = np.gradient(ndimage.gaussian_filter(signal, 0.7))
    volumes = np.zeros((n, int(inside.sum())), np.float32)
    for source, place in zip(sources, places, strict=True):
        volumes += np.outer(source, 7.0 * size * place[inside]).astype(np.float32)
    for axis in range(3):  # what realignment leaves, and spins that saw another slice the volume before
        volumes += np.outer(0.1 * motion[:, axis] / VOXEL_MM, edges[axis][inside]).astype(np.float32)
    moved = np.abs(np.diff(motion[:, 2], prepend=motion[0, 2]))
    volumes -= np.outer(np.concatenate([[0.0], moved[:-1]]), 60.0 * inside[inside] * (1 + 0.5 * field(rng, 12.0)[inside])).astype(
        np.float32
    )
    volumes += (10.0 * np.array([drawn_noise(rng, "ar", n, tr_s) for _ in range(inside.sum())]).T).astype(np.float32)
    cortex = np.argwhere(tissue["grey"] & (points[..., 1] < -10))
    pattern = sum(rng.normal(0.5, 1.0) * bump(points, points[tuple(cortex[rng.integers(len(cortex))])]) for _ in range(5))[inside]
    weights = pattern - pattern.mean()
    length = float(np.linalg.norm(weights))
    noise = volumes @ (weights / length)
    unit = left(noise, np.column_stack([np.polynomial.legendre.legvander(2 * times / times.max() - 1, 3), motion]))
    truth = CONTRAST * (1 + rng.standard_normal(len(onsets)))
    responses = sampled(kernel("double", 5.5), times, onsets, IMAGE_S) @ truth
    volumes += np.outer(responses, pattern / length * unit).astype(np.float32)
    whole = compartments_of((signal + 10 * rng.standard_normal(SHAPE)).astype(np.float32), Grid(SHAPE, np.diag([VOXEL_MM] * 3 + [1.0])))
    guessed = {name: mask[inside] for name, mask in whole.items()}
    weighed = np.abs(pattern) > 0.3 * np.abs(pattern).max()
    measured = motion + 0.005 * rng.standard_normal(motion.shape)
    ways = ways_of(volumes, guessed, weighed, measured, tr_s)
    true = {"white_matter": ndimage.binary_erosion(tissue["white_matter"])[inside], "csf": tissue["csf"][inside], "global": inside[inside]}
    made = Compartments(["acompcor"], true, weighed, tr_s)
    ways["acompcor, true masks"] = made.sizes, np.nan_to_num(np.array([made.terms(volume) for volume in volumes]))
    series = noise / unit + responses
    return compare(series - series[0], responses, times, onsets, truth, measured, ways)


def bump(points: Array, centre: Array) -> Array:
    """Region of a response."""
    return np.asarray(np.exp(-((points - centre) ** 2).sum(axis=-1) / (2 * 7.0**2)))


def beats(rng: np.random.Generator, times: Array, rate_hz: float, jitter: float) -> Array:
    """A rhythm whose rate wanders, as the volumes see it, with its first overtone."""
    fine = np.arange(0, times[-1] + 1, 0.05)
    rate = rate_hz * (1 + jitter * ndimage.gaussian_filter1d(rng.standard_normal(len(fine)), 40) * 10)
    phase = np.interp(times, fine, 2 * math.pi * np.cumsum(rate) * 0.05)
    return np.asarray(np.cos(phase) + 0.4 * np.cos(2 * phase + 1.0))


def slow_wave(rng: np.random.Generator, times: Array) -> Array:
    """Slow changes of vessels and carbon dioxide, periods of 15 to 60 s."""
    fast, slow = (ndimage.gaussian_filter1d(rng.standard_normal(len(times)), sigma) for sigma in (2.5, 10.0))
    return np.asarray((fast / fast.std() - slow / slow.std()) / math.sqrt(2))


# --- slice times -----------------------------------------------------------------------------------------------------------------------


def slices(case: tuple[float, bool, float], seed: int) -> dict[str, dict[str, float]]:
    """A map of some slices; the case: TR, whether a fit has told the response as scores take it, whether slices are interleaved."""
    tr_s, known, spread = case
    rng = np.random.default_rng([11, seed])
    count = 33
    order = np.concatenate([np.arange(0, count, 2), np.arange(1, count, 2)]) if spread > 0 else np.arange(count)
    at = np.empty(count)
    at[order] = (np.arange(count) + 0.5) * tr_s / count - tr_s / 2  # from the volume's middle
    middle = rng.integers(4, count - 4)
    weight = np.exp(-((np.arange(count) - middle) ** 2) / (2 * 2.0**2))
    weight /= weight.sum()
    onsets = 10.0 + CADENCE_S * np.arange(60) + 0.05 * rng.random(60)
    times = (np.arange(int((onsets[-1] + 20) / tr_s)) + 0.5) * tr_s
    truth = 1.5 * (1 + rng.standard_normal(60))
    shapes = sum(w * sampled(kernel("double", 5.5), times + own, onsets, IMAGE_S) for w, own in zip(weight, at, strict=True))
    series = shapes @ truth + drawn_noise(rng, "ar", len(times), tr_s)
    rows = {}
    for name, by in (("middle of the volume", 0.0), ("mean slice time", float(weight @ at))):
        lag_s = 0.6 + (float(weight @ at) if name.startswith("middle") else 0.0) * -1.0
        grid = Parameters().known(ResponsePrior(lag_s, 0.3, 1.0, 0.1)) if known else Parameters()
        found, shown = Deconvolver(tr_s, 0, grid), 0
        for t_s, value in zip(times + by, series, strict=True):
            while shown < 60 and onsets[shown] <= t_s:
                found.add_image((0, shown), float(onsets[shown]), IMAGE_S)
                shown += 1
            found.add_volume(float(t_s), float(value), [])
        values = np.array([found.amplitudes()[0, k].value for k in range(60)])
        r, late = (float(np.corrcoef(values[k:], truth[k:])[0, 1]) for k in (0, 30))
        rows[name] = {"r": r, "late": late, "auc": area(values, truth), "tsnr": math.nan, "there": math.nan}
    return rows


# --- cost ------------------------------------------------------------------------------------------------------------------------------


def cost() -> list[str]:
    """Milliseconds of processor time for a volume of 80 x 80 x 35: its terms, and the filter with them."""
    rng, shape = np.random.default_rng(0), (80, 80, 35)
    masks = {name: rng.random(shape) < share for name, share in (("white_matter", 0.05), ("csf", 0.01), ("global", 0.25))}
    volumes = (1000 + 10 * rng.standard_normal((6, *shape))).astype(np.float32)
    lines = ["| terms | making them, p50 / p99 | filter, p50 / p99 / dividing | more than without, p50 |", "|---|---|---|---|"]
    base = 0.0
    for name, kinds in {"none": (), **SETS}.items():
        made, spent, filtering = Compartments(kinds, masks, np.zeros(shape, bool), 1.0), [], []
        filters, shown = Deconvolver(1.0, 6, nuisance_terms=made.sizes), 0
        for index in range(200):
            begun = time.process_time()
            terms = np.nan_to_num(made.terms(volumes[index % 6])) if kinds else np.zeros(0)
            spent.append(1e3 * (time.process_time() - begun))
            while 5 + 4.0 * shown <= index:
                filters.add_image((0, shown), 5 + 4.0 * shown, IMAGE_S)
                shown += 1
            terms = np.clip(terms + 0.1 * rng.standard_normal(len(terms)) * (index >= 40), -3, 3)
            begun = time.process_time()
            filters.add_volume(index + 0.5, float(rng.standard_normal()), np.concatenate([0.05 * rng.standard_normal(6), terms]))
            filtering.append(1e3 * (time.process_time() - begun))
        steady = np.delete(np.array(filtering), np.argmax(filtering))
        total = float(np.median(steady) + np.median(spent))
        base = base or total
        own = f"{np.median(spent):.2f} / {np.percentile(spent[41:], 99):.2f}"
        lines.append(
            f"| {name} | {own} | {np.median(steady):.1f} / {np.percentile(steady, 99):.1f} / {max(filtering):.0f} | {total - base:+.1f} |"
        )
    return lines


# --- tables ----------------------------------------------------------------------------------------------------------------------------


def table(title: str, rows: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """Means over runs, and differences to the first way, with their standard errors."""
    names = list(rows[0])
    heading = "| terms | r | r, gain | second half, gain | AUC | AUC, gain | tSNR | there |"
    lines = [f"**{title}** ({len(rows)} runs)", "", heading, "|" + 8 * "---|"]
    for name in names:
        own = {key: np.array([row[name][key] for row in rows]) for key in ("r", "late", "auc", "tsnr", "there")}
        first = {key: np.array([row[names[0]][key] for row in rows]) for key in own}
        gains = [
            f"{(own[k] - first[k]).mean():+.3f} ± {(own[k] - first[k]).std() / math.sqrt(len(rows)):.3f}" for k in ("r", "late", "auc")
        ]
        there = "" if np.isnan(own["there"]).all() else f"{np.nanmean(own['there']):.2f}"
        ratio = "" if np.isnan(own["tsnr"]).all() else f"x {own['tsnr'].mean():.2f}"
        lines.append(
            f"| {name} | {own['r'].mean():.3f} | {gains[0]} | {gains[1]} | {own['auc'].mean():.3f} | {gains[2]} | {ratio} | {there} |"
        )
    return [*lines, ""]


def run(make: Callable[[int], dict[str, dict[str, float]]], seeds: int, jobs: int) -> list[dict[str, dict[str, float]]]:
    """All seeds, by so many processes."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        return list(pool.map(make, range(seeds)))


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["prepare"]:
        prepare(*[Path(each) for each in given[1:4]])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--real", type=Path, help="what `prepare` has written")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="tables (default all)")
    parser.add_argument("--seeds", type=int, default=24, help="runs of each table (default 24)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    options = parser.parse_args(given)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    lines: list[str] = []

    def say(more: list[str]) -> None:
        print("\n".join(more), flush=True)
        lines.extend(more)
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")

    if "real" in options.parts and options.real:
        say(table("responses put into a real run", run(partial(planted, options.real), options.seeds, options.jobs)))
    for size in (1.0, 0.3, 0.0) if "head" in options.parts else ():
        title = f"simulated head, physiology {size:g} times"
        say(table(title, run(partial(simulated, size), options.seeds, options.jobs)))
    for case in CASES if "slices" in options.parts else ():
        words = f"TR {case[0]:g} s, {'interleaved' if case[2] else 'one after another'}, response {'of a fit' if case[1] else 'not known'}"
        say(table(f"slice times: {words}", run(partial(slices, case), options.seeds, options.jobs)))
    if "cost" in options.parts:
        say(cost())
    return 0


if __name__ == "__main__":
    sys.exit(main())
