"""What a volume costs with one map and with objectives over several: aligned and smoothed once, projected and taken apart for each map.

``python bench/bench_maps.py [--volumes N] [--tr S]`` prints processor time of one core, p50, p99 and largest, after 60 volumes of a run
with an image every 4 s; alignment, which happens once for all maps, stands apart, and so does carrying the maps to another day's grid.
Before anything is timed, the projection of a sum of maps is held against the sum of their projections.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from rtevo.decode import Decoder, carry, scorer_of
from rtevo.decode.carry import together, warm_up
from rtevo.decode.separate import Projection
from rtevo.decode.several import combined
from rtevo.objective import parse_objective
from rtevo.place import Placement, Verdict
from rtevo.realign import Realigner
from rtevo.realign import warm_up as warm_up_kernels
from rtevo.records import Grid

SHAPE, NAMES = (80, 80, 35), ("face", "place", "body", "house", "object", "scene")
OBJECTIVES = ("face", "face - place", "face - 0.3 * keep(place)", " + ".join(f"rank({name})" for name in NAMES), "face - mean(others)")
BEGUN = 60  # volumes before those that are timed


def make_maps() -> tuple[list[Decoder], list[np.ndarray]]:
    """Six smooth maps in a head of 45,396 voxels, and volumes of it."""
    rng, grid = np.random.default_rng(0), Grid(SHAPE, np.diag([3.0, 3.0, 3.3, 1.0]))
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    mask = (places**2).sum(axis=0) < 0.55
    reference = (1000 * mask * (1 + 4 * gaussian_filter(rng.standard_normal(SHAPE), 2))).astype(np.float32)
    settings = {"unit": 3.0, "fwhm_mm": 4.0}
    noise = np.where(mask, 10.0, 0.0)
    maps = [Decoder(grid, reference, mask, gaussian_filter(rng.standard_normal(SHAPE), 1), name, settings, noise) for name in NAMES]
    return maps, [(reference + 10 * rng.standard_normal(SHAPE) * mask).astype(np.float32) for _ in range(8)]


def bundle(maps: list[Decoder], text: str) -> Decoder:
    """A decoder of the maps that an objective names."""
    goal, named = parse_objective(text).over(NAMES), {one.name: one for one in maps}
    return together(replace(maps[0], goal=goal), [named[name] for name in goal.maps])


def validate(maps: list[Decoder], volumes: list[np.ndarray]) -> None:
    """A sum's projection is the sum of the maps' projections."""
    weights = np.array([1.0, -0.5, 0.25, 0, 0, 2.0])

    def projected(one: Decoder) -> list[float]:
        project = Projection(one.weights[one.mask].astype(float), one.noise_sd[one.mask].astype(float), float(one.settings["unit"]))
        return [project(volume[one.mask]) for volume in volumes]

    expected = weights @ np.array([projected(one) for one in maps])
    np.testing.assert_allclose(projected(combined(maps, weights.tolist())), expected, atol=1e-3)


def told(name: str, ms: list[float]) -> None:
    p50, p99 = np.percentile(ms, [50, 99])
    print(f"{name[:44]:<46}{p50:8.1f}{p99:8.1f}{max(ms):8.1f}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--volumes", type=int, default=90, help="that are timed (default 90)")
    parser.add_argument("--tr", type=float, default=2.0, help="repetition time, s (default 2)")
    options = parser.parse_args(arguments)
    warm_up_kernels()
    warm_up()
    maps, volumes = make_maps()
    validate(maps, volumes)
    print(f"{platform.processor() or platform.machine()}; {int(maps[0].mask.sum()):,} voxels; TR {options.tr:g} s; processor time, ms")
    print(f"{'':<46}{'p50':>8}{'p99':>8}{'max':>8}")
    with Realigner(maps[0].reference, maps[0].grid.affine) as realigner:
        spent = []
        for k in range(options.volumes):
            began = time.process_time()
            realigner.reslice(volumes[k % 8], realigner.estimate(volumes[k % 8]))
            spent.append(1e3 * (time.process_time() - began))
    told("aligned, once for all maps", spent)
    for text in OBJECTIVES:
        scorer, spent, shown = scorer_of(bundle(maps, text), options.tr, fwhm_mm=4.0), [], 0
        for index in range(BEGUN + options.volumes):
            while 4.0 + 4.0 * shown < (index + 1) * options.tr:
                scorer.add_onset((0, shown), 4.0 + 4.0 * shown)
                shown += 1
            began = time.process_time()
            scorer.add_volume(index, volumes[index % 8], np.zeros(6))
            scorer.ready()
            spent.append(1e3 * (time.process_time() - began))
        told(text, spent[BEGUN:])
    matrix, today = np.eye(4), Grid((96, 96, 46), np.diag([2.5, 2.5, 2.5, 1.0]))
    placement = Placement(matrix, 0.9, 1.0, 1.0, 0.1, Verdict.GOOD, ())
    reference = np.full(today.shape, 1000.0, np.float32)
    for text in ("face", OBJECTIVES[-1]):
        began = time.process_time()
        carry(bundle(maps, text), placement, reference, today)
        print(f"carried to 96 x 96 x 46 voxels, once: {text}: {time.process_time() - began:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
