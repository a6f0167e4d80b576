"""What combining echoes and undoing distortion gain and cost, on simulated heads whose truth is known.

``python bench/bench_echoes.py [echoes] [distortion] [speed] [--seeds N] [--jobs N] [--out FILE]`` prints tables, and writes them. It needs
no data.

* echoes: volumes of 12, 29 and 46 ms of heads that move; motion is estimated from the first echo. *One echo*: the second alone. *Before*:
  combined as they came, with the first volumes' weights, and then interpolated. *After*: each interpolated, combined where the head lies
  still (what sessions do). Error: against the same combination of the head at rest without noise, percent of the brain's mean signal, 95th
  percentile over the brain, of volumes without noise. Contrast: change of the combined signal with a change of 1 / T2* of 1%, over the
  standard deviation over time of volumes with noise, median over the brain; that of one echo is 1.
* distortion: volumes that a known field has moved and piled up along phase encoding, of heads that move with their field. *None*; *still*:
  the field stays in the scanner; *moving*: it moves with the head (what sessions do); *two*: so, but each volume is undistorted and then
  aligned in two interpolations; *no Jacobian*. Error: mean absolute difference from the undistorted head, percent of the brain's mean
  signal, in the part of the brain that is moved by half a voxel or more.
* speed: milliseconds of processor time a volume, median of 10 after the first.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rtevo.kernels.rigid import matrix_from_params
from rtevo.realign import Echoes, Making, Motion, Realigner, Warp
from rtevo.realign.echoes import echo_weights
from rtevo.records import Grid
from rtevo.simulate.echoes import AIR_MM, ECHO_S, echo_times_s, relaxation_per_s
from rtevo.simulate.head import Head, scan_grid

Array = NDArray[np.float64]
Volume = NDArray[np.float32]
Pool = Callable[[Callable[..., Any], Sequence[tuple[int, float]]], list[Any]]
TE_S = echo_times_s(3)
SIZES = {"small": 0.2, "moderate": 1.0, "large": 3.0}  # mm and degrees, uniform in +/- size along and about each axis
VOLUMES = 12
THERMAL = 1 / 60  # standard deviation of each echo's noise, of the brain's mean signal at ECHO_S
VOXELS = 3.5  # of the largest displacement
SHAPES = {"64 x 64 x 32": (64, 64, 32), "104 x 104 x 72": (104, 104, 72)}


@dataclass(frozen=True, eq=False)
class Scene:
    """A head at rest: its signal at ECHO_S, 1 / T2*, the distortion in voxels along y, its brain."""

    grid: Grid
    signal: Array
    rate: Array
    shift: Array
    brain: NDArray[np.bool_]


def scene(seed: int, shape: tuple[int, int, int] = (64, 64, 32)) -> Scene:
    """Draw a head in a field of view of 240 x 240 x 115 mm."""
    voxel = (240 / shape[0], 240 / shape[1], 115 / shape[2])
    grid = scan_grid(shape, voxel)
    head = Head.build(grid, np.random.default_rng([seed, 1]))
    world = np.einsum("ab,bxyz->axyz", grid.affine[:3, :3], np.indices(shape)) + grid.affine[:3, 3].reshape(3, 1, 1, 1)

    def hill(centre: Any, wide_mm: float) -> Array:
        return np.asarray(np.exp(-((world - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0) / (2 * wide_mm**2)))

    shift = VOXELS * (hill(AIR_MM, 26.0) - 0.5 * hill((62, -18, -22), 18.0) - 0.5 * hill((-62, -18, -22), 18.0))
    brain = ndimage.binary_erosion(head.brain, iterations=1)
    return Scene(grid, head.signal.astype(float), relaxation_per_s(grid).astype(float), shift, brain)


def motions(grid: Grid, size: float, count: int, rng: np.random.Generator) -> list[Array]:
    """Draw rigid motions, the first of which is none."""
    centre = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    scale = size * np.array([1, 1, 1, *[np.pi / 180] * 3])
    return [np.eye(4), *(matrix_from_params(rng.uniform(-1, 1, 6) * scale, centre) for _ in range(count - 1))]


def moved(volume: Array, matrix: Array, grid: Grid) -> Array:
    """A volume of the head where it lies after a motion."""
    back = np.linalg.inv(grid.affine) @ np.linalg.inv(matrix) @ grid.affine
    return np.asarray(ndimage.affine_transform(volume, back[:3, :3], back[:3, 3], order=5, mode="nearest"))


def exact(matrix: Array) -> Motion:
    """A motion that is known."""
    return Motion(matrix, np.zeros(6), True, 0, 0.0)


# --- echoes


def echoes_at(place: Scene, matrix: Array) -> list[Array]:
    """The echoes of the head where it lies, without noise."""
    signal, rate = moved(place.signal, matrix, place.grid), moved(place.rate, matrix, place.grid)
    return [np.maximum(signal, 0) * np.exp(-rate * (te - ECHO_S)) for te in TE_S]


def one_run(seed: int, size: float) -> dict[str, tuple[float, float]]:
    """Error and contrast of each way, of one head that moves."""
    place, rng = scene(seed), np.random.default_rng([seed, round(1000 * size)])
    level = place.signal[place.brain].mean()
    weights = echo_weights(1 / place.rate, TE_S)
    truth = np.stack(echoes_at(place, np.eye(4)))
    change = np.stack([echo * np.expm1(0.01 * place.rate * te) for echo, te in zip(truth, TE_S, strict=True)])
    wanted = {"one echo": truth[1], "before": (weights * truth).sum(axis=0)}
    gains = {"one echo": change[1], "before": (weights * change).sum(axis=0)}
    wanted["after"], gains["after"] = wanted["before"], gains["before"]
    errors: dict[str, list[float]] = {name: [] for name in wanted}
    series: dict[str, list[Volume]] = {name: [] for name in wanted}
    for noise in (0.0, THERMAL * level):
        making = Making(None, Echoes(TE_S))
        first = [np.asarray(echo + noise * rng.standard_normal(echo.shape), np.float32) for echo in truth]
        with Realigner(first[0], place.grid.affine) as realigner:
            for matrix in motions(place.grid, size, VOLUMES, rng):
                came = np.stack([
                    np.asarray(echo + noise * rng.standard_normal(echo.shape), np.float32) for echo in echoes_at(place, matrix)
                ])  # fmt: skip
                motion = realigner.estimate(came[0])
                found = {
                    "one echo": realigner.reslice(came[1], motion),
                    "before": realigner.reslice((came * weights).sum(axis=0), motion),
                    "after": making.aligned(realigner, came, motion),
                }
                for name, volume in found.items():
                    if noise:
                        series[name].append(volume)
                    else:
                        off = np.abs(volume - wanted[name])[place.brain] / wanted[name][place.brain].mean()
                        errors[name].append(100 * float(np.percentile(off, 95)))
    contrast = {name: float(np.median(gains[name][place.brain] / np.std(series[name], axis=0)[place.brain])) for name in wanted}
    return {name: (float(np.mean(errors[name])), contrast[name] / contrast["one echo"]) for name in wanted}


def echoes(pool: Pool, seeds: int) -> list[str]:
    """The table of ways to combine echoes."""
    lines = ["| motion | way | error, % | contrast |", "|---|---|---|---|"]
    found = pool(one_run, [(seed, size) for size in SIZES.values() for seed in range(seeds)])
    for k, label in enumerate(SIZES):
        runs = found[k * seeds : (k + 1) * seeds]
        for name in runs[0]:
            error, contrast = (statistics.mean(run[name][part] for run in runs) for part in (0, 1))
            lines.append(f"| {label} | {name} | {error:.2f} | {contrast:.2f} |")
    return lines


# --- distortion


def distorted(volume: Array, shift: Array, fine: int = 16) -> Array:
    """What an echo-planar scan makes of a volume: signal, in parts of a voxel, lies `shift` voxels further along y."""
    n = volume.shape[1]
    y = (np.arange(n * fine) + 0.5) / fine - 0.5
    low = np.clip(np.floor(y).astype(int), 0, n - 2)
    share = (y - low).reshape(1, -1, 1)
    dense = [each[:, low] * (1 - share) + each[:, low + 1] * share for each in (volume, shift)]
    at = y.reshape(1, -1, 1) + dense[1]
    cell = np.floor(at).astype(int)
    out = np.zeros(volume.shape)
    i, k = np.arange(volume.shape[0]).reshape(-1, 1, 1), np.arange(volume.shape[2]).reshape(1, 1, -1)
    for here, part in ((cell, 1 - (at - cell)), (cell + 1, at - cell)):
        inside = (here >= 0) & (here < n)
        flat = np.ravel_multi_index(np.broadcast_arrays(i, np.clip(here, 0, n - 1), k), volume.shape)
        out += np.bincount(flat.ravel(), (dense[0] * part * inside / fine).ravel(), out.size).reshape(out.shape)
    return out


def corrections(place: Scene, warp: Warp, realigner: Realigner, volume: Volume, motion: Motion) -> dict[str, Volume]:
    """The volume as each way makes it."""
    plain = Warp(warp.shift, np.ones_like(warp.gain))
    still = realigner.reslice(volume, exact(np.eye(4)), warp=warp)
    fixed = moved(place.shift, np.linalg.inv(motion.matrix), place.grid)  # what the voxels see of a field that stays in the scanner
    stays = Warp.of(np.stack([np.zeros(fixed.shape), fixed, np.zeros(fixed.shape)], axis=-1))
    return {
        "none": realigner.reslice(volume, motion),
        "still": realigner.reslice(volume, motion, warp=stays),
        "moving": realigner.reslice(volume, motion, warp=warp),
        "two": realigner.reslice(still, motion),
        "no Jacobian": realigner.reslice(volume, motion, warp=plain),
    }


def one_distorted(seed: int, size: float) -> dict[str, float]:
    """Error of each way, of one head that moves with its field."""
    place, rng = scene(seed), np.random.default_rng([seed, 2, round(1000 * size)])
    warp = Warp.of(np.stack([np.zeros(place.shift.shape), place.shift, np.zeros(place.shift.shape)], axis=-1))
    region = place.brain & (np.abs(place.shift) > 0.5)
    level = place.signal[place.brain].mean()
    errors: dict[str, list[float]] = {}
    with Realigner(distorted(place.signal, place.shift), place.grid.affine) as realigner:
        for matrix in motions(place.grid, size, VOLUMES // 2, rng)[1:]:
            came = distorted(moved(place.signal, matrix, place.grid), moved(place.shift, matrix, place.grid)).astype(np.float32)
            for name, volume in corrections(place, warp, realigner, came, realigner.estimate(came)).items():
                errors.setdefault(name, []).append(100 * float(np.abs(volume - place.signal)[region].mean() / level))
    return {name: statistics.mean(found) for name, found in errors.items()}


def distortion(pool: Pool, seeds: int) -> list[str]:
    """The table of ways to undo distortion."""
    lines = ["| motion | way | error, % |", "|---|---|---|"]
    found = pool(one_distorted, [(seed, size) for size in SIZES.values() for seed in range(seeds)])
    for k, label in enumerate(SIZES):
        runs = found[k * seeds : (k + 1) * seeds]
        lines += [f"| {label} | {name} | {statistics.mean(run[name] for run in runs):.2f} |" for name in runs[0]]
    return lines


# --- speed


def _ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(11):
        began = time.process_time()
        work()
        times.append(1000 * (time.process_time() - began))
    return statistics.median(times[1:])


def speed_of(label: str, shape: tuple[int, int, int]) -> str:
    """One row of the table of times."""
    place = scene(0, shape)
    warp = Warp.of(np.stack([np.zeros(shape), place.shift, np.zeros(shape)], axis=-1))
    came = np.asarray(echoes_at(place, motions(place.grid, 1.0, 2, np.random.default_rng(1))[1]), np.float32)
    t2star_s = np.asarray(1 / place.rate, np.float32)
    with Realigner(np.asarray(echoes_at(place, np.eye(4))[0]), place.grid.affine) as realigner:
        motion = realigner.estimate(came[0])
        makings = Making(None, None), Making(warp), Making(None, Echoes(TE_S, t2star_s)), Making(warp, Echoes(TE_S, t2star_s))
        times = [_ms(partial(realigner.estimate, came[0]))]
        times += [_ms(partial(making.aligned, realigner, came, motion)) for making in makings]
    return f"| {label} | {' | '.join(f'{t:.1f} ms' for t in times)} |"


def speed(_pool: Pool, _seeds: int) -> list[str]:
    """The table of times."""
    lines = [
        "| voxels | estimate | reslice | reslice, undistorted | three echoes | three echoes, undistorted |",
        "|---|---|---|---|---|---|",
    ]
    return [*lines, *(speed_of(label, shape) for label, shape in SHAPES.items())]


PARTS = {"echoes": echoes, "distortion": distortion, "speed": speed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="heads")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="file for the tables")
    options = parser.parse_args()
    lines = [f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"]
    print(lines[0])
    with ProcessPoolExecutor(options.jobs) as workers:

        def pool(work: Callable[..., Any], tasks: Sequence[tuple[int, float]]) -> list[Any]:
            return list(workers.map(work, *zip(*tasks, strict=True)))

        for name in options.parts or PARTS:
            table = ["", name, "", *PARTS[name](pool, options.seeds)]
            print("\n".join(table), flush=True)
            lines += table
            if options.out:
                options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
