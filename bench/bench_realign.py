"""How accurate and how fast realignment is, on this machine, beside its peers.

``python bench/bench_realign.py [accuracy] [speed] [series] [--quick] [--json FILE] [--only NAME ...]`` prints tables and writes them
as JSON. The real volumes come from the archives of real scanner files (``RTEVO_TEST_DATA``, or ``../shared/data``), read as a session
reads them. Peers that are not installed (``pip install -e ".[bench]"``) are named and left out. Under pytest-benchmark only this
project's own steps are timed.

* accuracy: real volumes moved by known rigid motions (:mod:`truth`): displacement error over the brain, mean and largest, mm;
  plain, and with what real runs hold: a 3 % activation in a blob, a 30 % dropout in another, and noise grown by half.
* speed: estimate and reslice of one volume that lies up to 1.5 mm and 1.5 degrees off, all methods in turns on the same volumes, with 1
  and 2 threads, alone and with one core kept busy by another process; this project also on disturbed volumes. ``cpu`` is the processor time
  of all threads: what other programs took does not count, and so it is what to compare where the machine was not quiet.
* series: whole real runs: temporal signal-to-noise ratio before and after, and framewise displacement.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))  # its other files, also in worker processes

from realign_peers import PEERS, Ours, Peer
from truth import SIZES, Truth, displacement, make_truth

ARCHIVES = ("philips-slices", "siemens-xa30-enhanced", "siemens-mosaic", "ge-slices")
HELD = {"activation": 0.03, "dropout": 0.3, "noise": 1.5}
CONDITIONS: dict[str, dict[str, Any]] = {"plain": {}, "disturbed": HELD, "disturbed, sharp": {**HELD, "sharp": True}}
SPEED_CASES = {"51 x 51 x 46": ("siemens-xa30-enhanced", (51, 51, 46)), "104 x 104 x 72": ("philips-slices", (104, 104, 72))}
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, eq=False)
class Recording:
    """A real run: volumes (X, Y, Z, n), its affine, brain mask."""

    volumes: NDArray[np.float32]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]


def recording(name: str, most: int | None = None) -> Recording:
    """Read a run from its archive; raises FileNotFoundError if there is none."""
    from rtevo.ingest import FolderSource, describe
    from rtevo.kernels.mask import brain_mask

    archive = Path(os.environ.get("RTEVO_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / f"{name}.tar.xz"
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        info, source = describe(Path(folder)), FolderSource(Path(folder), patience_s=0.0)
        found = [v.data for v in (*source.poll(), *source.finish()) if v.data is not None][:most]
    volumes = np.stack(found, axis=3)
    return Recording(volumes, info.grid.affine, brain_mask(volumes[..., 0], info.grid.affine))


def on_grid(run: Recording, shape: tuple[int, int, int]) -> Recording:
    """The first volume of a run, resampled to another number of voxels over the same field of view."""
    from rtevo.kernels.mask import brain_mask

    zoom = np.array(shape) / run.volumes.shape[:3]
    volume = np.maximum(ndimage.zoom(run.volumes[..., 0].astype(float), zoom, order=3, grid_mode=True, mode="nearest"), 0)
    affine = run.affine.copy()
    affine[:3, :3] /= zoom
    affine[:3, 3] += affine[:3, :3] @ ((1 - zoom) / 2)
    return Recording(volume[..., None].astype(np.float32), affine, brain_mask(volume, affine))


def truth_for(run: Recording, name: str, size: float, condition: str, count: int, seed: int) -> Truth:
    """Moved volumes that are the same on every machine."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{name} {size} {condition}".encode())])
    return make_truth(run.volumes[..., 0].astype(float), run.affine, run.mask, size, count, rng, **CONDITIONS[condition])


# --- accuracy


def _errors(kind: type[Peer], truth: Truth) -> list[tuple[float, float]]:
    peer = kind(truth.reference, truth.affine, 1)
    found = []
    for volume, matrix in zip(truth.volumes, truth.matrices, strict=True):
        error = displacement(peer.align(volume)[0], matrix, truth.affine, truth.mask)
        found.append((float(error.mean()), float(error.max())))
    peer.close()
    return found


def accuracy(kinds: list[type[Peer]], quick: bool) -> list[dict[str, Any]]:
    """Errors of every method on every run, size of motion and condition; one row each."""
    rows = []
    for name in ARCHIVES:
        try:
            run = recording(name, 1)
        except FileNotFoundError as error:
            print(f"left out: {error}")
            continue
        for condition in CONDITIONS:
            for label, size in SIZES.items():
                truths = [truth_for(run, name, size, condition, 2 if quick else 5, seed) for seed in range(1 if quick else 3)]
                for kind in kinds:
                    slow = kind is not Ours
                    try:
                        errors = [e for truth in (truths[:1] if slow else truths) for e in _errors(kind, truth)]
                    except ImportError:
                        continue
                    mean, largest = np.mean([e[0] for e in errors]), np.max([e[1] for e in errors])
                    rows.append({"run": name, "condition": condition, "motion": label, "method": kind.name, "volumes": len(errors)})
                    rows[-1] |= {"mean_mm": round(float(mean), 4), "max_mm": round(float(largest), 4)}
                    rows[-1]["mean_of_max_mm"] = round(float(np.mean([e[1] for e in errors])), 4)
    return rows


def print_accuracy(rows: list[dict[str, Any]]) -> None:
    """One table per condition: mean / mean of the volumes' largest / largest error, mm."""
    for condition in dict.fromkeys(r["condition"] for r in rows):
        print(f"\nDisplacement error over the brain, {condition}: mean / mean over volumes of the largest / largest, mm\n")
        print(f"| run | method | {' | '.join(SIZES)} |\n|---|---|{'---|' * len(SIZES)}")
        for run, method in dict.fromkeys((r["run"], r["method"]) for r in rows if r["condition"] == condition):
            cells = []
            for size in SIZES:
                key = (run, method, condition, size)
                r = next(r for r in rows if (r["run"], r["method"], r["condition"], r["motion"]) == key)
                cells.append(f"{r['mean_mm']:.4f} / {r['mean_of_max_mm']:.4f} / {r['max_mm']:.4f}")
            print(f"| {run} | {method} | {' | '.join(cells)} |")


# --- speed


Times = list[tuple[float, float]]
DISTURBED = "rtevo, disturbed volumes"


def _spin() -> None:
    while True:
        pass


def _time_all(names: list[str], truth: Truth, disturbed: Truth, threads: int, rounds: int, slow: int) -> dict[str, Times]:
    """Milliseconds (wall, processor) of estimate + reslice by method, methods in turns; the slow ones join the first rounds only."""
    peers: dict[str, Peer] = {}
    for kind in PEERS:
        if kind.name in names:
            try:
                peers[kind.name] = kind(truth.reference, truth.affine, threads)
            except ImportError:
                continue
    volumes = [v.astype(np.float32) for v in truth.volumes]
    others = [v.astype(np.float32) for v in disturbed.volumes]
    peers[DISTURBED] = Ours(disturbed.reference, disturbed.affine, threads)
    times: dict[str, Times] = {name: [] for name in peers}
    for name, peer in peers.items():  # warm up, and check that it aligns at all
        case = disturbed if name == DISTURBED else truth
        error = displacement(peer.align(case.volumes[0])[0], case.matrices[0], case.affine, case.mask).mean()
        assert error < 1.0, f"{peer.name}: off by {error:.2f} mm"
    for n in range(rounds):
        for name, peer in peers.items():
            if isinstance(peer, Ours) or n < slow:
                volume = (others if name == DISTURBED else volumes)[n % len(volumes)]
                start, used = time.perf_counter(), time.process_time()
                peer.align(volume)
                times[name].append(((time.perf_counter() - start) * 1e3, (time.process_time() - used) * 1e3))
    for peer in peers.values():
        peer.close()
    return times


def speed(kinds: list[type[Peer]], quick: bool, sizes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Times of every method for two sizes, 1 and 2 threads, alone and beside a busy process."""
    rows = []
    names = [kind.name for kind in kinds]
    context = mp.get_context("spawn")
    for label, (name, shape) in SPEED_CASES.items():
        if sizes and label not in sizes:
            continue
        try:
            run = on_grid(recording(name, 1), shape)
        except FileNotFoundError as error:
            print(f"left out: {error}")
            continue
        truth, disturbed = (truth_for(run, label, SIZES["moderate"], condition, 6, 0) for condition in ("plain", "disturbed"))
        for threads in (1, 2):
            os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)  # read by ANTs in the worker
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                for busy in (False, True):
                    other = context.Process(target=_spin, daemon=True) if busy else None
                    if other:
                        other.start()
                    times = pool.submit(_time_all, names, truth, disturbed, threads, *((60, 3) if quick else (300, 6))).result()
                    if other:
                        other.kill()
                        other.join()
                    rows += [_row(label, method, threads, busy, values, times) for method, values in times.items()]
    return rows


def _row(case: str, method: str, threads: int, busy: bool, values: Times, times: dict[str, Times]) -> dict[str, Any]:
    wall, used = np.array(values).T
    p50, p95, p99 = np.percentile(wall, [50, 95, 99])
    ours = np.array(times[Ours.name])[:, 0] if Ours.name in times else None
    row = {"volume": case, "method": method, "threads": threads, "busy": busy, "n": len(values), "min_ms": wall.min()}
    row |= {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "cpu_ms": np.median(used), "load": os.getloadavg()[0]}
    row["ratio"] = None if ours is None else p50 / np.median(ours)
    return {key: round(float(v), 2) if isinstance(v, float) else v for key, v in row.items()}


def print_speed(rows: list[dict[str, Any]]) -> None:
    """One table per size."""
    for case in dict.fromkeys(r["volume"] for r in rows):
        print(f"\nEstimate + reslice, {case}, ms (ratio of medians to {Ours.name})\n")
        print(f"| method | threads | other core | n | min | p50 | p95 | p99 | cpu | load | ratio |\n|{'---|' * 11}")
        for r in (r for r in rows if r["volume"] == case):
            times = " | ".join(f"{r[k]:.1f}" for k in ("min_ms", "p50_ms", "p95_ms", "p99_ms", "cpu_ms", "load"))
            print(f"| {r['method']} | {r['threads']} | {'busy' if r['busy'] else 'free'} | {r['n']} | {times} | {r['ratio']} |")


# --- real series


def series(kinds: list[type[Peer]], quick: bool) -> list[dict[str, Any]]:
    """Temporal signal-to-noise ratio (mean over the brain, linear drift removed) before and after alignment.

    Twice: as each method resamples, and all by the same cubic splines with its motion, for linear interpolation smooths, and what is
    smoothed varies less whether or not it lies well.
    """
    from rtevo.kernels.rigid import params_from_matrix
    from rtevo.realign import Motion, Realigner, framewise_displacement

    rows = []
    for name in ARCHIVES:
        try:
            run = recording(name, 12 if quick else None)
        except FileNotFoundError as error:
            print(f"left out: {error}")
            continue
        inside = ndimage.binary_erosion(run.mask, iterations=1)
        inside[:, :, [0, -1]] = False  # slices that motion takes out of the field of view
        plain = _tsnr(run.volumes[inside])
        rows.append({"run": name, "method": "unaligned", "tsnr": plain, "tsnr_same_splines": plain, "mean_fd_mm": None})
        splines = Realigner(run.volumes[..., 0], run.affine)
        for kind in kinds:
            try:
                peer = kind(run.volumes[..., 0], run.affine, 1)
            except ImportError:
                continue
            values, same, motion = [], [], []
            for n in range(run.volumes.shape[3]):
                matrix, aligned = peer.align(run.volumes[..., n])
                values.append(np.array(aligned[inside]))
                found = Motion(matrix, params_from_matrix(matrix), True, 0, 0.0)
                same.append(splines.reslice(run.volumes[..., n], found)[inside])
                motion.append(found.params)
            displaced = np.nanmean(framewise_displacement(np.array(motion))[1:])
            row = {"run": name, "method": kind.name, "tsnr": _tsnr(np.stack(values, axis=1))}
            rows.append({**row, "tsnr_same_splines": _tsnr(np.stack(same, axis=1)), "mean_fd_mm": round(float(displaced), 4)})
            peer.close()
    return rows


def _tsnr(values: NDArray[Any]) -> float:
    values = values.astype(np.float64)
    time_ = np.linspace(-1, 1, values.shape[1])
    design = np.stack([np.ones_like(time_), time_], axis=1)
    left = values - (design @ np.linalg.lstsq(design, values.T, rcond=None)[0]).T
    spread = np.sqrt((left**2).sum(axis=1) / (values.shape[1] - 2))
    return round(float((values.mean(axis=1)[spread > 0] / spread[spread > 0]).mean()), 2)


def print_series(rows: list[dict[str, Any]]) -> None:
    """One table."""
    print("\nReal runs: temporal signal-to-noise ratio over the brain (edge voxels left out), mean framewise displacement (mm)\n")
    print("| run | method | tSNR | tSNR, all resampled by the same cubic splines | FD |\n|---|---|---|---|---|")
    for r in rows:
        displaced = "" if r["mean_fd_mm"] is None else r["mean_fd_mm"]
        print(f"| {r['run']} | {r['method']} | {r['tsnr']} | {r['tsnr_same_splines']} | {displaced} |")


# --- command line


def machine() -> dict[str, Any]:
    """Return the description of the machine."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    versions = {}
    for package in ("numpy", "numba", "antspyx", "SimpleITK", "python-rtspm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg(), "versions": versions}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="accuracy|speed|series", help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer volumes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"methods: {', '.join(k.name for k in PEERS)}")
    parser.add_argument("--size", nargs="+", default=[], metavar="SIZE", choices=SPEED_CASES, help="speed: of volumes (default: all)")
    parser.add_argument("--json", type=Path, default=Path("bench_realign.json"))
    options = parser.parse_args()
    parts = options.parts or ["accuracy", "speed", "series"]
    if unknown := set(parts) - {"accuracy", "speed", "series"}:
        parser.error(f"expected accuracy, speed or series, got {', '.join(sorted(unknown))}")
    kinds = [k for k in PEERS if not options.only or k.name in options.only]
    result: dict[str, Any] = {"machine": machine()}
    print(json.dumps(result["machine"]))
    for part, measure, show in (("accuracy", accuracy, print_accuracy), ("speed", speed, print_speed), ("series", series, print_series)):
        if part in parts:
            result[part] = speed(kinds, options.quick, options.size) if part == "speed" else measure(kinds, options.quick)
            show(result[part])
            options.json.write_text(json.dumps(result, indent=1))


# --- pytest-benchmark


@pytest.fixture(scope="module", params=list(SPEED_CASES))
def case(request: pytest.FixtureRequest) -> Truth:
    """A moved volume, and its reference."""
    name, shape = SPEED_CASES[request.param]
    try:
        run = on_grid(recording(name, 1), shape)
    except FileNotFoundError as error:
        pytest.skip(f"no real scanner files: {error}")
    return truth_for(run, request.param, SIZES["moderate"], "plain", 1, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("step", ["estimate", "reslice", "align"])
def test_realign(benchmark: Any, case: Truth, step: str, threads: int) -> None:
    """One volume, moved back and forth so that no estimate starts where the last one ended."""
    from rtevo.realign import Realigner

    volume, reference = case.volumes[0].astype(np.float32), case.reference.astype(np.float32)
    out = np.empty(volume.shape, np.float32)
    with Realigner(case.reference, case.affine, threads=threads) as realigner:
        motion = realigner.estimate(volume)
        assert displacement(motion.matrix, case.matrices[0], case.affine, case.mask).mean() < 0.05

        def away() -> tuple[tuple[Any, ...], dict[str, Any]]:
            realigner.estimate(reference)
            return {"estimate": (volume,), "reslice": (volume, motion, out), "align": (volume, out)}[step], {}

        benchmark.pedantic(getattr(realigner, step), setup=away, rounds=50)


def test_smooth(benchmark: Any, case: Truth) -> None:
    """4 mm FWHM."""
    from rtevo.kernels.smooth import smooth

    volume, out = case.reference.astype(np.float32), np.empty(case.reference.shape, np.float32)
    benchmark(smooth, volume, (3.0, 3.0, 3.0), 4.0, out)


if __name__ == "__main__":
    main()
