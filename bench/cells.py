"""Series with known responses, made otherwise than the filter assumes, and what the filter and its peers find in them.

One number a volume, the projection on a map, is simulated in units of its white noise: nothing here uses rtevo's response, noise or drift.

- Response: a gamma density, with or without an undershoot, or a sum of three logistic steps (M. A. Lindquist and T. D. Wager 2007,
  doi:10.1002/hbm.20310), convolved with the image's boxcar on a fine lattice; its peak after a brief event, 4 to 8 s, is set.
- Noise: AR(1), ARMA(1, 1), 1/f, aliased pulse and breath, the effect of motion to 1 mm (linear, squared and of the volume before).
- Drift: cosines of a few minutes and a slope, small, or several times larger in the cell "strong drift".
- Amplitudes: normal, heavy-tailed, sparse, habituating, rising by three of their standard deviations over the run; in dense blocks of
  six categories, images 1 s apart.

A cell is one combination; each run of it is a function of the cell's name and the seed, and every run is a line of a file, so that a bench
that is started again goes on. Peers see the whole run: `LSS` (an image's regressor and all others' as one; J. A. Mumford et al. 2012,
doi:10.1016/j.neuroimage.2011.08.076), `peak` (mean of the volumes around the response's expected peak less the mean of all so far), and
`library`: amplitudes of N(mu, s^2), cosines, motion and AR(1) by restricted likelihood, the response that has the largest one taken from a
library of 32.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import norm

from rtevo.decode import Deconvolver

__all__ = ["CELLS", "Cell", "Made", "make", "measure", "run_cells", "table"]

Array = NDArray[np.float64]
IMAGE_S, CONTRAST, FIRST_S, STEP_S = 3.0, 1.5, 8.0, 0.05
CATEGORIES, IN_BLOCK, REST_S = 6, 16, 12.0


@dataclass(frozen=True)
class Cell:
    """One combination; the defaults are the plain one."""

    name: str
    peak_s: float = 5.0
    shape: str = "double"
    tr_s: float = 1.0
    cadence_s: float = 4.0
    noise: str = "ar"
    drift: float = 1.0
    amplitudes: str = "normal"
    images: int = 60
    contrast: float = CONTRAST


CELLS: tuple[Cell, ...] = (
    Cell("plain"),
    Cell("peak 4 s", peak_s=4.0, shape="gamma"),
    Cell("peak 6 s", peak_s=6.0, shape="logistic"),
    Cell("peak 7 s", peak_s=7.0),
    Cell("peak 8 s", peak_s=8.0),
    Cell("peak 8 s, gamma", peak_s=8.0, shape="gamma"),
    Cell("peak 7 s, every 2 s", peak_s=7.0, cadence_s=2.0),
    Cell("peak 8 s, every 6 s", peak_s=8.0, cadence_s=6.0),
    Cell("TR 0.8 s", tr_s=0.8, shape="gamma"),
    Cell("TR 2 s", tr_s=2.0),
    Cell("TR 2 s, peak 7 s", tr_s=2.0, peak_s=7.0),
    Cell("every 2 s", cadence_s=2.0),
    Cell("every 6 s", cadence_s=6.0, shape="logistic"),
    Cell("ARMA", noise="arma"),
    Cell("1/f", noise="1/f"),
    Cell("pulse and breath", noise="physiology"),
    Cell("motion", noise="motion"),
    Cell("strong drift", drift=8.0),
    Cell("heavy tails", amplitudes="heavy"),
    Cell("sparse", amplitudes="sparse"),
    Cell("habituating", amplitudes="habituating"),
    Cell("rising", amplitudes="rising"),
    Cell("rising, every 2 s", amplitudes="rising", cadence_s=2.0, images=120),
    Cell("rising, 1/f", amplitudes="rising", noise="1/f"),
    Cell("dense blocks", amplitudes="blocks", cadence_s=1.0, images=CATEGORIES * IN_BLOCK, contrast=0.35),
    Cell("dense blocks, TR 2 s", amplitudes="blocks", cadence_s=1.0, images=CATEGORIES * IN_BLOCK, contrast=0.35, tr_s=2.0),
)


@dataclass(frozen=True, eq=False)
class Made:
    """One run: onsets, the volumes' middles, the series, motion terms (mm), true amplitudes, and each image's block (-1: none)."""

    onsets_s: Array
    times_s: Array
    series: Array
    motion: Array
    truth: Array
    block: NDArray[np.int64]
    image_s: float


def gamma(t: Array, peak_s: float, width_s: float) -> Array:
    """Gamma density by the place of its peak and its standard deviation."""
    scale = (-peak_s + math.sqrt(peak_s**2 + 4 * width_s**2)) / 2
    shape = peak_s / scale + 1
    late = np.maximum(t, 1e-9) / scale
    return np.asarray(np.where(t > 0, np.exp((shape - 1) * np.log(late) - late - gammaln(shape)) / scale, 0.0))


def logistic(t: Array, peak_s: float) -> Array:
    """Sum of three logistic steps: up, down below zero, back."""

    def step(at_s: float, soft_s: float) -> Array:
        return np.asarray(1 / (1 + np.exp(-(t - at_s) / soft_s)))

    value = step(peak_s - 2.3, 0.8) - 1.2 * step(peak_s + 2.5, 1.1) + 0.2 * step(peak_s + 9.0, 1.8)
    return np.asarray(np.where(t > 0, value - value[np.argmin(np.abs(t))], 0.0))


def kernel(shape: str, peak_s: float) -> Array:
    """Response to a brief event on the lattice, over 40 s."""
    t = np.arange(0, 40, STEP_S)
    if shape == "logistic":
        return logistic(t, peak_s)
    main = gamma(t, peak_s, 2.4 + 0.15 * (peak_s - 5))
    return main - 0.14 * gamma(t, peak_s + 9.0, 3.6) if shape == "double" else main


def sampled(response: Array, times_s: Array, onsets_s: Array, image_s: float) -> Array:
    """Responses to images at the volumes' middles, (volumes, images), of largest value 1."""
    whole = np.convolve(response, np.ones(round(image_s / STEP_S)))
    lattice = np.arange(len(whole)) * STEP_S
    apart = times_s[:, np.newaxis] - onsets_s
    return np.asarray(np.interp(apart, lattice, whole / whole.max(), left=0.0, right=0.0))


def drawn_noise(rng: np.random.Generator, kind: str, n: int, tr_s: float) -> Array:
    """Noise of standard deviation 1."""
    white = rng.standard_normal(n + 50)
    if kind in ("ar", "motion", "physiology"):
        rho = 0.3 ** (tr_s / 0.867)
        for t in range(1, len(white)):
            white[t] = rho * white[t - 1] + math.sqrt(1 - rho**2) * white[t]
    elif kind == "arma":
        inner = white.copy()
        for t in range(1, len(white)):
            white[t] = 0.8 * white[t - 1] + inner[t] - 0.5 * inner[t - 1]
    elif kind == "1/f":
        size = 4 * (n + 50)
        spectrum = np.fft.rfft(rng.standard_normal(size))
        frequency = np.maximum(np.fft.rfftfreq(size, tr_s), 1 / 600.0)
        white = white + 1.0 * _unit(np.fft.irfft(spectrum * frequency**-0.5, size)[: n + 50])
    found = _unit(white)[50:]
    if kind == "physiology":
        times = np.arange(n) * tr_s
        for rate, size in ((1.05, 0.7), (0.27, 0.7)):
            phase = 2 * math.pi * np.cumsum(tr_s * rate * (1 + 0.04 * rng.standard_normal(n))) + 6.3 * rng.random()
            found = found + size * np.cos(phase + 0 * times)
    return found


def _unit(values: Array) -> Array:
    return np.asarray((values - values.mean()) / values.std())


def amplitudes(rng: np.random.Generator, cell: Cell) -> tuple[Array, NDArray[np.int64]]:
    """True amplitudes, in noise standard deviations, and blocks."""
    n, kind = cell.images, cell.amplitudes
    block = np.full(n, -1)
    z = rng.standard_normal(n)
    if kind == "heavy":
        z = rng.standard_t(3, n) / math.sqrt(3)
    elif kind == "sparse":
        z = np.where(rng.random(n) < 0.2, 2.0, -0.5)
    elif kind == "habituating":
        z = (1.5 + z) * (0.3 + 1.4 * np.exp(-np.arange(n) / (n / 3))) - 1.5
    elif kind == "rising":
        z = z + 3.0 * np.linspace(0, 1, n)
    elif kind == "blocks":
        block = np.repeat(np.arange(CATEGORIES), IN_BLOCK)
        z = rng.permutation(np.linspace(-1.3, 1.3, CATEGORIES))[block] * 0.45 + 0.1 * z
        return cell.contrast * (0.3 + z), block
    return cell.contrast * (1 + z), block


def make(cell: Cell, seed: int) -> Made:
    """Make one run."""
    rng = np.random.default_rng([zlib.crc32(cell.name.encode()), seed])
    truth, block = amplitudes(rng, cell)
    image_s = 0.5 if cell.amplitudes == "blocks" else IMAGE_S
    steps = cell.cadence_s * np.arange(cell.images) + REST_S * np.maximum(block, 0)
    onsets = 10.0 + steps + 0.05 * rng.random(cell.images)
    times = (np.arange(int((onsets[-1] + 20) / cell.tr_s)) + 0.5) * cell.tr_s
    shapes = sampled(kernel(cell.shape, cell.peak_s), times, onsets, image_s)
    n, minutes = len(times), times / 60.0
    series = shapes @ truth + drawn_noise(rng, cell.noise, n, cell.tr_s)
    slow = [np.cos(2 * math.pi * minutes / period + 6.3 * rng.random()) for period in (2.5, 4.0, 7.0)]
    series += cell.drift * (0.2 * rng.standard_normal(3) @ np.array(slow) + 0.1 * rng.standard_normal() * minutes)
    motion = np.cumsum(rng.normal(0, 0.006, (n, 6)), axis=0)
    if cell.noise == "motion":
        motion += 0.12 * rng.standard_normal((n, 6)) * (rng.random((n, 1)) < 0.1)
        jumps = np.cumsum((rng.random((n, 1)) < 0.02) * rng.normal(0, 0.25, (n, 6)), axis=0)
        motion = np.clip(motion + jumps, -1, 1)
        before = np.vstack([motion[:1], motion[:-1]])
        series += motion @ rng.normal(0, 2.5, 6) + motion**2 @ rng.normal(0, 1.0, 6) + before @ rng.normal(0, 0.5, 6)
    measured = motion + 0.005 * rng.standard_normal((n, 6))
    return Made(onsets, times, series, measured, truth, block, image_s)


# --- what is found ---------------------------------------------------------------------------------------------------------------------


def filtered(cell: Cell, run: Made, make_filter: Callable[[float, int], Any]) -> tuple[Array, Array, Any]:
    """First and last words, (images, 2) each: value and its error against others; and the filter as it ends."""
    found, shown = make_filter(cell.tr_s, 6), 0
    first, last = np.full((2, len(run.onsets_s), 2), math.nan)
    waiting = list(range(len(run.onsets_s)))
    for t_s, value, terms in zip(run.times_s, run.series, run.motion, strict=True):
        while shown < len(run.onsets_s) and run.onsets_s[shown] <= t_s:
            found.add_image((0, shown), float(run.onsets_s[shown]), run.image_s)
            shown += 1
        found.add_volume(float(t_s), float(value), terms)
        if waiting and t_s >= run.onsets_s[waiting[0]] + FIRST_S:
            said = found.amplitudes(past=64)
            while waiting and t_s >= run.onsets_s[waiting[0]] + FIRST_S:
                k = waiting.pop(0)
                first[k] = said[0, k].value, said[0, k].se_apart
    for (_, k), amplitude in found.amplitudes().items():
        last[k] = amplitude.value, amplitude.se_apart
    return first, last, found


def nuisance(run: Made) -> Array:
    """Constant, cosines above 128 s, motion."""
    n = len(run.times_s)
    tr_s = run.times_s[1] - run.times_s[0]
    slow = [np.cos(np.pi * k * (np.arange(n) + 0.5) / n) for k in range(1, int(2 * n * tr_s / 128) + 1)]
    return np.column_stack([np.ones(n), *slow, run.motion])


def lss(run: Made) -> Array:
    """Least squares of each image against all others together, with the double gamma of the plain cell."""
    shapes, others = sampled(kernel("double", 5.0), run.times_s, run.onsets_s, run.image_s), nuisance(run)
    q, _ = np.linalg.qr(others)
    y, x = run.series - q @ (q.T @ run.series), shapes - q @ (q.T @ shapes)
    total = x.sum(axis=1)
    rest = total[:, np.newaxis] - x
    a, b, c = (x * x).sum(axis=0), (x * rest).sum(axis=0), (rest * rest).sum(axis=0)
    return np.asarray((c * (x.T @ y) - b * (rest.T @ y)) / (a * c - b**2))


def peak(run: Made) -> Array:
    """Mean of the volumes about 5 s and half an image after the onset, less the mean of all until then."""
    middle = run.onsets_s + 5.0 + run.image_s / 2
    tr_s = run.times_s[1] - run.times_s[0]
    mean = np.cumsum(run.series) / np.arange(1, len(run.series) + 1)
    window = [np.flatnonzero(np.abs(run.times_s - m) <= 1.2 * tr_s) for m in middle]
    return np.array([run.series[w].mean() - mean[w[-1]] for w in window])


def library(run: Made) -> Array:
    """Amplitudes under the response, spread and autocorrelation of largest restricted likelihood."""
    others, n = nuisance(run), len(run.times_s)
    tried = [("double", p) for p in np.arange(3.5, 9.0, 0.5)] + [("gamma", p) for p in np.arange(3.5, 9.0, 0.5)]
    tried += [("logistic", p) for p in np.arange(4.0, 9.0, 0.5)]
    gaps = np.abs(np.arange(n)[:, np.newaxis] - np.arange(n))
    best = (-math.inf, np.zeros(len(run.onsets_s)))
    for rho in (0.15, 0.4, 0.65):
        whiten = np.linalg.inv(np.linalg.cholesky(rho**gaps))
        y, u = whiten @ run.series, whiten @ others
        for shape, peak_s in tried:
            x = whiten @ sampled(kernel(shape, float(peak_s)), run.times_s, run.onsets_s, run.image_s)
            fixed = np.column_stack([u, x.sum(axis=1)])
            q, r = np.linalg.qr(fixed)
            xr, yr = x - q @ (q.T @ x), y - q @ (q.T @ y)
            values, vectors = np.linalg.eigh(xr.T @ xr)
            values, turned = np.maximum(values, 0.0), vectors.T @ (xr.T @ yr)
            log_r = np.log(np.abs(np.diag(r))).sum() - np.log(np.diag(whiten)).sum()
            for ratio in np.geomspace(0.05, 50, 9):  # spread squared over noise variance
                left = yr @ yr - ratio * (turned**2 / (1 + ratio * values)).sum()
                free = n - fixed.shape[1]
                log = -0.5 * np.log1p(ratio * values).sum() - 0.5 * free * math.log(left) - log_r
                if log > best[0]:
                    own = vectors @ (ratio * turned / (1 + ratio * values))
                    coefficients = np.linalg.solve(r, q.T @ (y - x @ own))
                    best = (log, own + coefficients[-1])
    return best[1]


# --- figures ---------------------------------------------------------------------------------------------------------------------------


def agreement(values: Array, run: Made) -> float:
    """Correlation with the truth."""
    return float(np.corrcoef(values, run.truth)[0, 1])


def inside(found: Array, truth: Array) -> float:
    """Share of the 95% intervals that hold the truth, relative to the mean of all images."""
    apart = found[:, 0] - truth
    return float((np.abs(apart - apart.mean()) < 1.96 * found[:, 1]).mean())


def measure(cell: Cell, seed: int, peers: bool = True, make_filter: Callable[[float, int], Any] = Deconvolver) -> dict[str, Any]:
    """All figures of one run."""
    run = make(cell, seed)
    begun = time.process_time()
    first, last, _ = filtered(cell, run, make_filter)
    cost_ms = 1e3 * (time.process_time() - begun) / len(run.times_s)
    row: dict[str, Any] = {"cell": cell.name, "seed": seed, "cost_ms": round(cost_ms, 3)}
    row |= {"first": agreement(first[:, 0], run), "last": agreement(last[:, 0], run)}
    row |= {"95% first": inside(first, run.truth), "95% last": inside(last, run.truth)}
    row["slope"] = float(np.polyfit(last[:, 0], run.truth, 1)[0])
    if peers:
        row |= {"LSS": agreement(lss(run), run), "peak": agreement(peak(run), run), "library": agreement(library(run), run)}
    return row


def run_cells(names: Sequence[str], seeds: int, path: Path, variant: str = "filter") -> list[dict[str, Any]]:
    """Run what the file does not have yet of these cells; return all rows of theirs. Peers are run once, whatever the variant."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(row["cell"], row["seed"]): row for row in rows if row["variant"] == variant}
    judged = {(row["cell"], row["seed"]): row for row in rows if "library" in row}
    with path.open("a", encoding="utf-8") as file:
        for cell in CELLS:
            for seed in range(seeds) if not names or cell.name in names else ():
                key = cell.name, seed
                if key in known:
                    continue
                row = {"variant": variant, **measure(cell, seed, peers=key not in judged)}
                if key in judged:
                    row |= {name: judged[key][name] for name in ("LSS", "peak", "library")}
                known[key] = judged[key] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
    wanted = [cell.name for cell in CELLS if not names or cell.name in names]
    return [row for name in wanted for (cell, seed), row in known.items() if cell == name and seed < seeds]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard error of each cell; intervals that differ from 95% (t over runs, Holm over cells and words) are marked."""
    columns = ("first", "last", "LSS", "peak", "library", "95% first", "95% last", "slope", "cost_ms")
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    values = {(cell, name): np.array([row[name] for row in rows if row["cell"] == cell], float) for cell in cells for name in columns}
    tests = []
    for cell in cells:
        for name in ("95% first", "95% last"):
            own = values[cell, name]
            error = max(own.std(ddof=1), 0.01) / math.sqrt(len(own)) if len(own) > 1 else math.inf
            tests.append((float(2 * norm.sf(abs(own.mean() - 0.95) / error)), cell, name))
    marked, tests = set(), sorted(tests)
    for k, (p, cell, name) in enumerate(tests):
        if p * (len(tests) - k) > 0.05:
            break
        marked.add((cell, name))
    lines = [f"{'cell':<24}{'runs':>5}" + "".join(f"{name:>13}" for name in columns)]
    for cell in cells:
        texts = []
        for name in columns:
            own = values[cell, name]
            error = own.std(ddof=1) / math.sqrt(len(own)) if len(own) > 1 else math.nan
            texts.append(f"{own.mean():.3f}±{error:.3f}" + ("*" if (cell, name) in marked else ""))
        lines.append(f"{cell:<24}{len(values[cell, 'first']):>5}" + "".join(f"{text:>13}" for text in texts))
    return "\n".join(lines) + "\n* differs from 95%\n"


def with_name(name: str) -> Cell:
    """The cell of that name."""
    return replace(next(cell for cell in CELLS if cell.name == name))
