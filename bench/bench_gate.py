"""What the gate costs a picture: ``python bench/bench_gate.py``.

Each way of judging is timed from painted pixels in host memory to a verdict. It validates first: the marked picture is refused, an
ordinary one passes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.gate import Apart, Gate, marked_picture
from rtevo.gate.filters import Avoided
from rtevo.latent import Avoid, LatentSpace


class Nothing:
    """A filter that finds nothing: what is left is the way to its process and back."""

    version, threshold, reason = "1", 0.5, "never"

    def __call__(self, pixels: Any) -> float:
        return float(pixels[0, 0, 0] > 300)


def timed(gate: Gate, pixels: np.ndarray, embedding: np.ndarray, repeats: int) -> np.ndarray:
    """Times of judging, ms."""
    assert gate.judge(marked_picture(*pixels.shape[:2]), embedding).refused
    assert not gate.judge(pixels, embedding).refused
    times = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        gate.judge(pixels, embedding)
        times.append((time.perf_counter_ns() - began) / 1e6)
    return np.array(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--checker", help="folder of a CLIP safety checker, to be timed too")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # of the filter's process
    rng = np.random.default_rng(0)
    space, embedding = LatentSpace.random(12, 1024, seed=1), rng.standard_normal(1024).astype(np.float32)
    print("| judged by | px | p50, ms | p99 | max |\n|---|---|---|---|---|")
    for px in (512, 768):
        pixels = rng.integers(0, 256, (px, px, 3), np.uint8)
        ways: dict[str, list[Any]] = {
            "nothing but the mark": [],
            "a list of 1000 embeddings (1024-d)": [Avoided(Avoid(space, rng.standard_normal((1000, 1024)), 0.01))],
            "a filter in its own process that does nothing": [Apart("nothing", "bench.bench_gate:Nothing", (), None, 10.0)],
        }
        if options.checker:
            ways["the safety checker"] = [Apart("checker", "rtevo.generate.checker:Checker", (options.checker, "auto"), 9.0, 60.0)]
        for name, filters in ways.items():
            with Gate(filters) as gate:
                times = timed(gate, pixels, embedding, options.repeats)
            print(f"| {name} | {px} | {np.median(times):.2f} | {np.percentile(times, 99):.2f} | {times.max():.2f} |")


if __name__ == "__main__":
    main()
