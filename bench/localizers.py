"""What ``fit`` is worth: on localizers with the noise of a real run, and on two real runs.

Of a made-up localizer another run with the same responses can be made. The noise has the spatial components, voxel variances and
smoothness that a real run leaves when its events, motion and slow trends are taken out; in time it is autoregressive. Responses are made
up: regions that prefer one category, regions that all categories share, and images of one category that differ. Nothing of that is what
``fit`` or the scorer assume (they know neither regions nor components).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.decode import Decoder, Scorer
from rtevo.decode.__main__ import main
from rtevo.decode.categories import categories_of
from rtevo.decode.events import Event, parse_target, predicted
from rtevo.decode.hrf import response
from rtevo.decode.recorded import aligned, events_of, open_with, reference_of, series_of
from rtevo.decode.selection import pooled, select_maps
from rtevo.decode.train import Examples, fit_weights
from rtevo.kernels.mask import brain_mask
from rtevo.records import Grid

__all__ = ["KINDS", "STUDIES", "Noise", "noise_of", "real_table", "study", "study_table"]

Array = NDArray[np.float64]
KINDS = ("body", "face", "house", "object", "scene", "scramble")
STUDIES = {"one run, one block": (1, 1), "two runs, four blocks": (2, 4)}
"""Runs, and blocks of each category in a run, that a decoder is fitted to; it is then tested on one run more, of one block each."""
TR_S, SIGNAL, COMPONENTS, AR, AR_COMPONENTS = 2.0, 1000.0, 15, 0.3, 0.5
_IMAGES, _BLOCK_S, _REST_S, _IMAGE_S = 16, 16.0, 8.0, 0.9


@dataclass(frozen=True, eq=False)
class Noise:
    """Of a run: components (with their spread) and what is left of each voxel's variance, in units of the voxel's noise."""

    mask: NDArray[np.bool_]
    size_mm: Array
    components: NDArray[np.float32]
    spread: Array
    left: NDArray[np.float32]

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Draw volumes, float32 (count, voxels)."""
        white = np.empty((count, int(self.mask.sum())), np.float32)
        sigma = 4.0 / math.sqrt(8 * math.log(2)) / self.size_mm
        for one in white:
            field = ndimage.gaussian_filter(rng.standard_normal(self.mask.shape).astype(np.float32), sigma, truncate=3)[self.mask]
            one[:] = field / field.std()
        slow = rng.standard_normal((count, len(self.spread)))
        for series, rho in ((white, AR), (slow, AR_COMPONENTS)):
            for t in range(1, count):
                series[t] = rho * series[t - 1] + math.sqrt(1 - rho**2) * series[t]
        return white * self.left + (slow * self.spread).astype(np.float32) @ self.components


def noise_of(path: Path, table: Path) -> Noise:
    """Estimate the noise of a run, given its events."""
    run = open_with(path, SimpleNamespace(series=None, tr=None))  # type: ignore[arg-type]
    reference = reference_of(run)
    mask = brain_mask(reference, run.grid.affine)
    series = series_of(run, reference, mask, 4.0, aligned(run, reference, mask))
    events = events_of(table, run)
    times = (series.index + 0.5) * run.tr_s
    kinds = sorted({event.trial_type for event in events})
    shown = [predicted(times, events, [1.0 if event.trial_type == kind else math.nan for event in events]) for kind in kinds]
    slow = np.polynomial.legendre.legvander(2 * times / times.max() - 1, 2)
    design = np.column_stack([slow, series.motion_mm[series.index], *shown])
    values = series.values.astype(np.float64)
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    freedom = len(design) - design.shape[1]
    sd = np.sqrt((left**2).sum(axis=0) / freedom)
    left /= np.where(sd > 0, sd, 1.0)
    _, lengths, components = np.linalg.svd(left, full_matrices=False)
    spread = lengths[:COMPONENTS] / math.sqrt(freedom)
    rest = np.sqrt(np.maximum(1 - (components[:COMPONENTS] ** 2 * spread[:, np.newaxis] ** 2).sum(axis=0), 0.05))
    return Noise(mask, np.asarray(run.grid.voxel_size_mm), components[:COMPONENTS].astype(np.float32), spread, rest.astype(np.float32))


def responses(rng: np.random.Generator, noise: Noise, size: float) -> NDArray[np.float32]:
    """Make each category's map, (categories, voxels): eight shared regions, and six of its own, in the back of the head."""
    points = np.argwhere(noise.mask)
    back = points[points[:, 1] < np.percentile(points[:, 1], 40)]

    def region(sd_mm: float) -> Array:
        centre = back[rng.integers(len(back))]
        return np.asarray(np.exp(-(((points - centre) * noise.size_mm) ** 2).sum(axis=1) / (2 * sd_mm**2)))

    shared = sum(abs(rng.normal(1, 0.3)) * region(12.0) for _ in range(8))
    own = [sum(rng.normal(1, 0.5) * region(7.0) for _ in range(6)) for _ in KINDS]
    return np.asarray(size * (np.array(own) + shared), np.float32)


Scan = tuple[NDArray[np.float32], Array, list[Event]]


def scan(rng: np.random.Generator, noise: Noise, maps: NDArray[np.float32], order: Sequence[str]) -> Scan:
    """Make a run of blocks: volumes in units of the voxels' noise, their middles, and the events."""
    events = [
        Event(12.0 + block * (_BLOCK_S + _REST_S) + k * _BLOCK_S / _IMAGES, _IMAGE_S, kind, {})
        for block, kind in enumerate(order)
        for k in range(_IMAGES)
    ]
    times = (np.arange(int((events[-1].onset_s + 18) / TR_S)) + 0.5) * TR_S
    volumes = noise.draw(rng, len(times))
    for kind, shape in zip(KINDS, maps, strict=True):
        own = [event for event in events if event.trial_type == kind]
        volumes += np.outer(predicted(times, own, 1 + 0.2 * rng.standard_normal(len(own))), shape).astype(np.float32)
    return volumes, times, events


def study(noise: Noise, seed: int, runs: int, each: int, size: float) -> dict[str, tuple[float, float]]:
    """Fit by several ways to some runs and score another; return pooled image AUC and accuracy of each way."""
    rng = np.random.default_rng(seed)
    maps = responses(rng, noise, size)
    made = [scan(rng, noise, maps, [kind for _ in range(each) for kind in rng.permutation(KINDS)]) for _ in range(runs)]
    test = scan(rng, noise, maps, list(rng.permutation(KINDS)))
    volumes = np.concatenate([(one - one.mean(axis=0)) / one.std(axis=0) for one, _, _ in made])
    times, run = np.concatenate([t for _, t, _ in made]), np.repeat(np.arange(runs), [len(t) for _, t, _ in made])
    events = [part for _, _, part in made]
    categories, parts = categories_of(events, times, run)
    chosen = select_maps([volumes], categories, parts)
    whole = np.array([
        fit_weights(Examples(volumes, times, run, events, [parse_target(kind, part) for part in events])) for kind in categories.names
    ])  # fmt: skip
    sd = np.sqrt(np.mean([one.var(axis=0) for one, _, _ in made], axis=0))
    plain = np.ones(len(KINDS))
    found: dict[str, tuple[float, float]] = {}
    for name, weights, units in (("ridge", whole, plain), ("select", chosen.weights, chosen.units)):
        for way, method in (("deconvolve", _online), ("peak", _online), ("LSS", _lss)):
            scores = np.array([method(test, w, sd, unit, way) for w, unit in zip(weights, units, strict=True)]).T
            found[f"{name}, {way}"] = pooled(scores, np.array([KINDS.index(event.trial_type) for event in test[2]]))
    found["select, promised"] = (chosen.auc, chosen.accuracy)
    found["select, voxels"] = (float(chosen.recipe.voxels), chosen.recipe.penalty)
    return found


def _online(run: Scan, weights: Array, sd: Array, unit: float, method: str) -> Array:
    """Score by the session's own scorer, causally; the last word."""
    volumes, _, events = run
    shape = (volumes.shape[1], 1, 1)
    grid, level = Grid(shape, np.diag([3.0, 3.0, 3.0, 1.0])), np.full(shape, SIGNAL)
    settings = {"unit": float(unit)}
    decoder = Decoder(grid, level, np.ones(shape, bool), weights.reshape(shape), "map", settings, sd.reshape(shape))
    scorer = Scorer(decoder, TR_S, method=method, fwhm_mm=0.0, duration_s=_IMAGE_S)  # type: ignore[arg-type]
    last, shown = {}, 0
    for index, volume in enumerate(volumes):
        while shown < len(events) and events[shown].onset_s < (index + 1) * TR_S:
            scorer.add_onset((0, shown), events[shown].onset_s)
            shown += 1
        scorer.add_volume(index, SIGNAL + volume.reshape(shape), np.zeros(6))
        last.update({score.key[1]: score.score for score in scorer.ready()})
    last.update({score.key[1]: score.score for score in scorer.ready(final=True)})
    return np.array([last[k] for k in range(len(events))])


def _lss(run: Scan, weights: Array, sd: Array, unit: float, _: str) -> Array:
    """Least squares, one image against all others (J. Mumford et al. 2012, doi:10.1016/j.neuroimage.2011.08.076), offline."""
    volumes, times, events = run
    series = (volumes / sd) @ (weights - weights.mean())
    shapes = np.array([response(times - event.onset_s, event.duration_s) for event in events]).T
    slow = np.polynomial.legendre.legvander(2 * times / times.max() - 1, 2)
    made = []
    for k in range(len(events)):
        design = np.column_stack([shapes[:, k], shapes.sum(axis=1) - shapes[:, k], slow])
        made.append(np.linalg.lstsq(design, series, rcond=None)[0][0] / unit / np.linalg.norm(weights))
    return np.array(made)


def study_table(path: Path, table: Path, seeds: int, sizes: Sequence[float]) -> None:
    """Print what each way of fitting and scoring is worth on made-up localizers."""
    noise = noise_of(path, table)
    for size in sizes:
        for name, (runs, each) in STUDIES.items():
            rows = [study(noise, seed, runs, each, size) for seed in range(seeds)]
            print(f"\nresponses of {size:g} noise sd, fitted to {name} a category; another run, {seeds} seeds")
            print(f"{'fit, score':<22}{'image AUC':>16}{'6-way':>16}")
            for way in rows[0]:
                values = np.array([row[way] for row in rows])
                errors = values.std(axis=0, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.full(2, math.nan)
                print(f"{way:<22}" + "".join(f"{m:>9.3f} ±{e:.3f}" for m, e in zip(values.mean(axis=0), errors, strict=True)), flush=True)


def real_table(train: Sequence[Path], test: Sequence[Path], options: Sequence[str] = ()) -> None:
    """Fit to one real run by the command with its defaults and score another as a session does; print both commands' words."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "decoder"
        for words in (
            ["fit", str(train[0]), "--events", str(train[1]), "--out", str(out), "--permutations", "0", *options],
            ["score", str(out), str(test[0]), "--events", str(test[1]), "--out", str(Path(folder) / "scores.tsv")],
        ):
            print(f"python -m rtevo.decode {' '.join(words)}", flush=True)
            if main(words) != 0:
                raise SystemExit(2)
