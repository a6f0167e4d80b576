"""A session on another grid, in a head that lies elsewhere: which way of scoring it comes nearest to the decoder's own grid, at what cost.

Run as a script, ``python bench/bench_carry.py [--json FILE] [--seed N] [--images N] [--rough X] [--cases NAME ...]``. The simulated head
(2 mm) is scanned twice: on the decoder's grid; and moved, turned and on another grid. Both scans see the same responses and the same noise,
a function of the head (random fields of 6 and 12 mm, AR(1) in time), each as its voxels see it, and no thermal noise; the head moves a
little within both, and its brain lies inside both fields of view. Each scan is aligned to its own reference; the placement is found by
``rtevo.place``. The map is the true one with an error: a random field of 5 mm, and with ``--rough`` white noise besides, X times the true
map's standard deviation. Printed is, for all three methods, the correlation of the scores with those of the decoder's own grid, and with
the true responses:

- ``volumes``: each volume is sampled on the decoder's grid, once, by motion after placement, and scored there;
- ``pull``: weights and noise are read off trilinearly at today's voxels (volumes stay on today's grid, as in the two below);
- ``adjoint``: weights / noise are pushed from the decoder's voxels by the adjoint of trilinear interpolation;
- ``carry``: :func:`rtevo.decode.carry.carry`, validated first: it holds a constant.

Then the cost: of a volume (alignment, reslicing, smoothing, scoring) either way, p50, p99 and largest, and of carrying (processor time).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from rtevo.decode import Decoder, Scorer
from rtevo.decode.carry import carry
from rtevo.decode.hrf import response
from rtevo.decode.sampling import sample
from rtevo.kernels.rigid import matrix_from_params
from rtevo.kernels.smooth import smooth
from rtevo.place import place
from rtevo.realign import Realigner, warm_up
from rtevo.records import Grid
from rtevo.simulate import scan_grid
from rtevo.simulate.head import Head

Array = NDArray[np.float64]
Volume = NDArray[np.float32]
TR_S, IMAGE_S, CADENCE_S, FWHM_MM, FINE_MM = 2.0, 3.0, 4.0, 4.0, 2.0
WAYS = ("volumes", "pull", "adjoint", "carry")
METHODS = ("deconvolve", "pattern", "peak")
CONSTANT = 1e-3
HOME = scan_grid()


@dataclass(frozen=True)
class Case:
    """Where the head lies today, and what the scanner sees."""

    shape: tuple[int, int, int]
    size_mm: tuple[float, float, float]
    degrees: tuple[float, float, float]  # of the slices
    axes: tuple[int, int, int]  # which of the world's axes each is
    motion: tuple[float, ...]  # of the head, mm and rad

    def matrix(self) -> Array:
        return matrix_from_params(self.motion, (0.0, -14.0, 9.0))

    def grid(self) -> Grid:
        affine = np.eye(4)
        turn = matrix_from_params([0, 0, 0, *np.deg2rad(self.degrees)])[:3, :3]
        affine[:3, :3] = turn[:, list(self.axes)] @ np.diag(self.size_mm) @ np.diag([-1, 1, 1])
        centre = (self.matrix() @ [0, -14, 12, 1])[:3]
        affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return Grid(self.shape, affine)


CASES = {
    "3 x 3 x 3.3, 10 deg": Case((80, 80, 44), (3.0, 3.0, 3.3), (10, 4, -6), (0, 1, 2), (4.0, -3.0, 6.0, 0.05, -0.04, 0.06)),
    "4 mm, 30 deg": Case((60, 60, 40), (4.0, 4.0, 4.0), (30, -10, 20), (0, 1, 2), (-12.0, 9.0, 8.0, -0.15, 0.1, 0.2)),
    "2.4 mm, 45 deg": Case((96, 96, 66), (2.4, 2.4, 2.4), (45, 8, -10), (0, 1, 2), (20.0, 15.0, -10.0, 0.2, -0.1, 0.15)),
    "1.8 mm, 20 deg": Case((120, 124, 84), (1.8, 1.8, 1.8), (-20, 12, 15), (0, 1, 2), (8.0, -20.0, 5.0, 0.1, 0.2, -0.25)),
    "2 x 2 x 4 coronal, 15 deg": Case((100, 90, 52), (2.0, 2.0, 4.0), (15, -12, 8), (0, 2, 1), (-6.0, 4.0, 12.0, 0.12, 0.0, -0.3)),
    "3 mm sagittal, 25 deg": Case((76, 60, 60), (3.0, 3.0, 3.0), (5, 25, -15), (1, 2, 0), (10.0, 10.0, 10.0, -0.1, 0.15, 0.1)),
}


class Session:
    """What happens in the head, on a fine grid, and when."""

    def __init__(self, seed: int, images: int) -> None:
        rng = np.random.default_rng(seed)
        shape = (98, 112, 82)
        affine = np.diag([FINE_MM, FINE_MM, FINE_MM, 1.0])
        affine[:3, 3] = np.array([0.8, -14.0, 9.0]) - FINE_MM * (np.array(shape) - 1) / 2
        self.grid = Grid(shape, affine)
        head = Head.build(self.grid, rng)
        self.signal, self.brain = head.signal.astype(np.float32), head.brain
        self.onsets = 6 + CADENCE_S * np.arange(images)
        self.truth = rng.standard_normal(images)
        times = (np.arange(int((self.onsets[-1] + 20) / TR_S)) + 0.5) * TR_S
        shapes = np.array([response(times - onset, IMAGE_S) for onset in self.onsets])
        active = (head.gains * head.signal / 100).astype(np.float32)
        fields = [self._field(rng, fwhm) for fwhm in np.repeat([6.0, 12.0], 12)]
        courses = rng.standard_normal((len(fields), len(times)))
        for t in range(1, len(times)):
            courses[:, t] = 0.4 * courses[:, t - 1] + math.sqrt(1 - 0.4**2) * courses[:, t]
        self.maps = np.stack([active, *fields])
        self.courses = np.vstack([2.0 * (1 + self.truth) @ shapes, 2.0 * courses]).astype(np.float32)
        self.motion = np.cumsum(rng.normal(0, [0.03] * 3 + [0.0006] * 3, (len(times), 6)), axis=0)
        self.estimated = active + 0.5 * float(active.std()) * self._field(rng, 5.0)  # what a localizer would have found

    def _field(self, rng: np.random.Generator, fwhm_mm: float) -> Volume:
        found = gaussian_filter(rng.standard_normal(self.grid.shape, dtype=np.float32), fwhm_mm / 2.355 / FINE_MM)
        return np.asarray(found / found.std() * (self.signal / 700) * self.brain, np.float32)

    def on(self, grid: Grid, matrix: Array, what: Volume) -> Volume:
        """Return a field as seen by a grid's voxels: a mean over about their size."""
        spread = math.sqrt(max(float((grid.voxel_size_mm**2).mean()) - FINE_MM**2, 0.0) / 12)
        soft = smooth(what, self.grid.voxel_size_mm, 2.355 * spread)
        return sample(soft, np.linalg.inv(self.grid.affine) @ np.linalg.inv(matrix) @ grid.affine, grid.shape)

    def volumes(self, grid: Grid, matrix: Array) -> Iterator[Volume]:
        for k, params in enumerate(self.motion):
            now = self.signal + np.tensordot(self.courses[:, k], self.maps, axes=1)
            yield self.on(grid, matrix @ matrix_from_params(params, (0.0, -14.0, 9.0)), now)

    def decoder(self, rough: float = 0.0) -> Decoder:
        reference = self.on(HOME, np.eye(4), self.signal)
        mask = self.on(HOME, np.eye(4), self.brain.astype(np.float32)) > 0.6
        inner = np.zeros(HOME.shape, bool)
        inner[2:-2, 2:-2, 2:-2] = True
        variance = sum(gaussian_filter(self.on(HOME, np.eye(4), each) ** 2, 1.5) for each in self.maps[1:])
        sd = np.sqrt(np.maximum(variance, 1e-3))
        weights = self.on(HOME, np.eye(4), self.estimated)
        weights = weights + rough * float(self.maps[0].std()) * np.random.default_rng(0).standard_normal(HOME.shape)
        return Decoder(HOME, reference, mask & inner, weights / sd, "liking", {"fwhm_mm": FWHM_MM}, sd)


def pull(decoder: Decoder, matrix: Array, reference: Volume, grid: Grid) -> Decoder:
    """Read weights, mask and noise off at today's voxels."""
    to = np.linalg.inv(decoder.grid.affine) @ np.linalg.inv(matrix) @ grid.affine
    assert decoder.noise_sd is not None
    arrays = [np.asarray(a, np.float64) for a in (decoder.mask, decoder.weights, decoder.noise_sd)]
    mask, weights, noise = (affine_transform(a, to[:3, :3], to[:3, 3], grid.shape, order=1) for a in arrays)
    inside = mask > 0.5
    return Decoder(grid, reference, inside, weights, decoder.name, decoder.settings, np.where(inside, noise, 0))


def adjoint(decoder: Decoder, matrix: Array, reference: Volume, grid: Grid) -> Decoder:
    """Push weights / noise of each of the decoder's voxels to the eight of today around it."""
    assert decoder.noise_sd is not None
    found = np.argwhere(decoder.mask)
    to = np.linalg.inv(grid.affine) @ matrix @ decoder.grid.affine
    at = found @ to[:3, :3].T + to[:3, 3]
    low = np.floor(at).astype(int)
    part = at - low
    density = (decoder.weights / np.where(decoder.mask, decoder.noise_sd, 1))[decoder.mask]
    noise = decoder.noise_sd[decoder.mask]
    sums = [np.zeros(grid.shape) for _ in range(3)]
    for corner in np.ndindex(2, 2, 2):
        share = np.where(corner, part, 1 - part).prod(axis=1)
        voxel = low + corner
        inside = ((voxel >= 0) & (voxel < grid.shape)).all(axis=1)
        for total, values in zip(sums, (density, noise, np.ones(len(noise))), strict=True):
            np.add.at(total, tuple(voxel[inside].T), (share * values)[inside])
    mask = sums[2] > 0.05
    sd = np.divide(sums[1], sums[2], out=np.zeros(grid.shape), where=mask)
    return Decoder(grid, reference, mask, np.where(mask, sums[0] * sd, 0), decoder.name, decoder.settings, sd)


class Way:
    """One way of scoring a session, all methods at once."""

    def __init__(self, decoder: Decoder, onsets: Array, methods: tuple[str, ...] = METHODS) -> None:
        self.scorers = {m: Scorer(decoder, TR_S, method=m, fwhm_mm=FWHM_MM, duration_s=IMAGE_S) for m in methods}  # type: ignore[arg-type]
        self.onsets, self.shown, self.last = onsets, 0, {m: np.full(len(onsets), np.nan) for m in methods}

    def add(self, index: int, volume: Volume, params: Array) -> None:
        while self.shown < len(self.onsets) and self.onsets[self.shown] < (index + 1) * TR_S:
            for scorer in self.scorers.values():
                scorer.add_onset((0, self.shown), float(self.onsets[self.shown]))
            self.shown += 1
        for method, scorer in self.scorers.items():
            scorer.add_volume(index, volume, params)
            self._take(method, scorer.ready())

    def _take(self, method: str, scores: list[Any]) -> None:
        for score in scores:
            self.last[method][score.key[1]] = score.score

    def end(self) -> dict[str, Array]:
        for method, scorer in self.scorers.items():
            self._take(method, scorer.ready(final=True))
        return self.last


def at_home(session: Session, decoder: Decoder) -> dict[str, Array]:
    way = Way(decoder, session.onsets)
    with Realigner(decoder.reference, HOME.affine) as realigner:
        for index, raw in enumerate(session.volumes(HOME, np.eye(4))):
            motion, volume = realigner.align(raw)
            way.add(index, volume, motion.params)
    return way.end()


def elsewhere(session: Session, decoder: Decoder, case: Case) -> tuple[dict[str, dict[str, Array]], dict[str, Any]]:
    """Score today's session every way; return the scores, and what it costs in ms."""
    grid, matrix = case.grid(), case.matrix()
    today = session.on(grid, matrix, session.signal)
    placement = place(decoder.reference, HOME, today, grid, weight=np.abs(decoder.weights))
    carrying = []
    for _ in range(3):
        start = time.process_time()
        carried = carry(decoder, placement, today, grid)
        carrying.append(1e3 * (time.process_time() - start))
    _validate(decoder, carried, placement, today, grid)
    others: dict[str, Callable[..., Decoder]] = {"pull": pull, "adjoint": adjoint}
    ways = {"volumes": Way(decoder, session.onsets), "carry": Way(carried, session.onsets)}
    ways |= {name: Way(make(decoder, placement.matrix, today, grid), session.onsets) for name, make in others.items()}
    to_voxel, to_world = np.linalg.inv(grid.affine), placement.matrix @ HOME.affine
    spent: dict[str, list[float]] = {"volumes": [], "carry": []}
    timed = {name: Way(made, session.onsets, ("deconvolve",)) for name, made in (("volumes", decoder), ("carry", carried))}
    with Realigner(today, grid.affine) as realigner:
        for index, raw in enumerate(session.volumes(grid, matrix)):
            start = time.perf_counter()
            motion, volume = realigner.align(raw)
            timed["carry"].add(index, volume, motion.params)
            spent["carry"].append(1e3 * (time.perf_counter() - start))
            start = time.perf_counter()
            moved = realigner.estimate(raw)
            there = sample(raw, to_voxel @ moved.matrix @ to_world, HOME.shape)
            timed["volumes"].add(index, there, moved.params)
            spent["volumes"].append(1e3 * (time.perf_counter() - start))
            for name, way in ways.items():
                way.add(index, there if name == "volumes" else volume, motion.params)
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)], float).T
    error = float(np.linalg.norm(((placement.matrix - matrix) @ corners)[:3], axis=0).mean())
    volume_mm3 = [mask.sum() * abs(np.linalg.det(one.affine[:3, :3])) for mask, one in ((carried.mask, grid), (decoder.mask, HOME))]
    about = {"carry_once_ms": min(carrying), "placement_error_mm": error, "kept": volume_mm3[0] / volume_mm3[1]}
    return {name: way.end() for name, way in ways.items()}, {**about, **spent}


def _validate(decoder: Decoder, carried: Decoder, placement: Any, today: Volume, grid: Grid) -> None:
    """Hold a constant map against its value."""
    even = np.where(decoder.mask, 2.0, 0.0)
    even[tuple(np.argwhere(decoder.mask)[0])] *= 1 + 1e-6
    found = carry(replace(decoder, weights=even, noise_sd=np.where(decoder.mask, 5.0, 0)), placement, today, grid)
    wrong = float(np.abs(found.weights[found.mask] - 2).max())
    assert wrong < CONSTANT, f"a constant map of 2 is off by {wrong}"
    assert np.array_equal(found.mask, carried.mask)


def summary(values: list[float]) -> str:
    return f"{np.percentile(values, 50):5.0f} {np.percentile(values, 99):5.0f} {max(values):5.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rough", type=float, default=0.0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    warm_up()
    session = Session(options.seed, options.images)
    decoder = session.decoder(options.rough)
    home = at_home(session, decoder)
    true = {m: float(np.corrcoef(home[m], session.truth)[0, 1]) for m in METHODS}
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    print(f"{model}, one thread; {options.images} images, {len(session.motion)} volumes; "
          f"own grid against the truth: {', '.join(f'{m} {r:.3f}' for m, r in true.items())}", flush=True)  # fmt: skip
    rows = []
    for name in options.cases:
        found, about = elsewhere(session, decoder, CASES[name])
        print(f"{name}: placement error {about['placement_error_mm']:.3f} mm, {about['kept']:.0%} of the mask", flush=True)
        for way in WAYS:
            same = {m: float(np.corrcoef(home[m], found[way][m])[0, 1]) for m in METHODS}
            right = {m: float(np.corrcoef(session.truth, found[way][m])[0, 1]) for m in METHODS}
            cells = "   ".join(f"{m} {same[m]:.4f} (truth {right[m]:.3f})" for m in METHODS)
            print(f"  {way:8s} {cells}" + (f"   ms a volume (p50 p99 max) {summary(about[way])}" if way in about else ""), flush=True)
            rows.append({"case": name, "way": way, "same": same, "truth": right})
        print(f"  carrying once: {about['carry_once_ms']:.0f} ms of processor time", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "rough": options.rough, "home": true, "rows": rows}, indent=2))


@pytest.fixture(scope="module")
def prepared() -> tuple[Session, Decoder]:
    session = Session(0, 4)
    return session, session.decoder()


def test_cost_of_carrying(benchmark: Any, prepared: tuple[Session, Decoder]) -> None:
    session, decoder = prepared
    case = CASES["2.4 mm, 45 deg"]
    today = session.on(case.grid(), case.matrix(), session.signal)
    placement = place(decoder.reference, HOME, today, case.grid())
    benchmark(lambda: carry(decoder, placement, today, case.grid()))


if __name__ == "__main__":
    main()
