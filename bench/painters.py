"""What painting on Dask workers costs over painting here: ``python -m bench.painters [MODEL_DIR]``.

Two workers on this computer, over loopback, or those of ``--scheduler HOST:PORT``. A worker says how long it painted; what comes on top is
the way there and back: packing, Dask, the sockets, checking. Pictures are compared with those painted in this process before that is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.generator import spread
from rtevo.errors import RtevoError
from rtevo.generate import TINY_UNCLIP, GeneratorSettings, load
from rtevo.generate.hashes import fingerprint, hash_files
from rtevo.generate.remote import RemoteGenerator

__all__ = ["Measured", "main"]


class Measured(RemoteGenerator):
    """Keeps what each worker says of its time, ns."""

    painted_ns: list[int]

    def _read(self, header, rest):  # type: ignore[no-untyped-def]
        self.painted_ns.append(int(header.get("painted_ns", 0)))
        return super()._read(header, rest)


@contextlib.contextmanager
def workers(scheduler: str | None, count: int) -> Iterator[str]:
    """Address of a scheduler with workers."""
    if scheduler:
        yield scheduler
        return
    import distributed

    with distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        yield cluster.scheduler_address.partition("://")[2]


def measure(generator: Measured, asked: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """Time of a picture, and of it what is not the worker's painting, ms; one picture at a time."""
    whole, extra = [], []
    for k, embedding in enumerate(asked):
        generator.painted_ns = []
        began = time.perf_counter()
        list(generator.paint(embedding[None], np.array([k], np.uint64)))
        whole.append(1e3 * (time.perf_counter() - began))
        extra.append(whole[-1] - generator.painted_ns[-1] / 1e6)
    return spread(whole), spread(extra)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.painters", description="Measure what painting on Dask workers costs.")
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL_DIR", help="model folder (default: the built-in model)")
    parser.add_argument("--scheduler", metavar="HOST:PORT", help="a scheduler with workers (default: two on this computer)")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--px", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=100, metavar="N")
    options = parser.parse_args(arguments)
    mark = fingerprint(hash_files(options.model or TINY_UNCLIP))
    settings = GeneratorSettings(options.model, steps=options.steps, px=options.px, fingerprint=mark, device="auto", answer_s=120.0)
    try:
        with load(settings) as here:
            here.warm_up()
            asked = np.random.default_rng(0).standard_normal((options.pictures, here.embedding_size)).astype(np.float32)
            wanted = list(here.paint(asked[:4], np.arange(4)))
            own = []
            for k, embedding in enumerate(asked):
                began = time.perf_counter()
                list(here.paint(embedding[None], np.array([k], np.uint64)))
                own.append(1e3 * (time.perf_counter() - began))
        with workers(options.scheduler, 2) as address:
            generator = Measured(here.folder, replace(settings, device=f"dask://{address}"))  # type: ignore[attr-defined]
            with generator:
                generator.painted_ns = []
                generator.warm_up()
                found = list(generator.paint(asked[:4], np.arange(4)))
                same = sum(a.pixels.tobytes() == b.pixels.tobytes() for a, b in zip(wanted, found, strict=True))
                whole, extra = measure(generator, asked)
                began = time.perf_counter()
                list(generator.paint(asked, np.arange(len(asked))))
                together = len(asked) / (time.perf_counter() - began)
                print(generator.description)
    except RtevoError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(f"{same} of 4 pictures are those painted here, to the last bit")
    for name, figures in (("here", spread(own)), ("by a worker", whole), ("of that not painting", extra)):
        print(f"{name}: p50 {figures['p50']:.1f}, p99 {figures['p99']:.1f}, max {figures['max']:.1f} ms (n = {figures['n']})")
    print(f"all asked for together: {together:.2f} images/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
