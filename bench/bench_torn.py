"""Files that are written in pieces, with pauses between any two writes: does a torn volume get through, and what does caution cost?

Run as a script, ``python bench/bench_torn.py [--files N] [--json FILE]``. A writer of its own process writes a series of mosaics (80 x 80 x
35) in one of three ways: *growing* (appended to), *preallocated* (the length is set first, then filled from the start) and *renamed*
(written under a temporary name). The pauses between its writes go from 1 to 500 ms (each file has one, in turn). Volumes are compared with
what was written, voxel for voxel: *torn* ones differ; *without a word* are torn volumes without a reported problem. Latency is counted from
the writer's last write, or rename, until the volume is out of the source; the way *at once* has no pauses. Many writers run side by side,
so a thousand files of a kind take as long as the slowest fifty.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing as mp
import os
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.ingest import FolderSource
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter
from rtevo.stages.ingest import SETTLE_S

SHAPE = (80, 80, 35)
PAUSES_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
WAYS = ("growing", "preallocated", "renamed")
PIECES = 4  # writes of a file
POLL_S = 0.01
EVERY_S = 0.1  # between two files
TARGET_MS = 60.0  # p50 where the writer renames, or closes at once


def volume(index: int) -> np.ndarray:
    """Noise with an empty background, as far as the end of the last slice."""
    rng = np.random.default_rng(index)
    data = rng.integers(1, 4096, SHAPE).astype(np.float32)
    data[:8] = data[-8:] = 0
    return data


def write(way: str, path: Path, contents: bytes, pause_s: float) -> int:
    """Write a file; returns time.monotonic_ns() of the last thing that was done to it."""
    target = path.with_name(f"{path.name}.part") if way == "renamed" else path
    ends = [round(len(contents) * k / PIECES) for k in range(PIECES + 1)]
    if pause_s == 0:
        ends = [0, len(contents)]
    with target.open("wb", buffering=0) as file:
        if way == "preallocated":
            file.truncate(len(contents))
            file.write(contents[:8192])  # the header is there
            time.sleep(pause_s)
            file.seek(0)
        for start, end in itertools.pairwise(ends):
            if start:
                time.sleep(pause_s)
            file.write(contents[start:end])
    if way == "renamed":
        time.sleep(pause_s)
        target.rename(path)
    return time.monotonic_ns()


def send(way: str, folder: Path, indices: range, pauses_ms: tuple[float, ...], done: Any) -> None:
    """Write a series; the moments of completion go into the pipe."""
    writer = MosaicWriter(folder, Grid(SHAPE, np.diag([-3.0, 3.0, 3.3, 1.0])), 1.0, description="bold")
    for index in indices:
        contents = writer.encode(index, volume(index))
        time.sleep(EVERY_S)
        done.send((index, write(way, writer.path(index), contents, pauses_ms[index % len(pauses_ms)] / 1e3)))
    done.close()


@dataclass(frozen=True)
class Outcome:
    """What became of the files of one way."""

    way: str
    files: int
    torn: int
    without_a_word: int
    missing: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def series(way: str, files: int, pauses_ms: tuple[float, ...], settle_s: float = SETTLE_S) -> tuple[list[float], int, int, int]:
    """Write and read a series; return latencies (ms), and the numbers of volumes that are torn, torn without a word, and missing."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mine, its = context.Pipe(duplex=False)
        sender = context.Process(target=send, args=(way, folder, range(files), pauses_ms, its))
        sender.start()
        its.close()
        source = FolderSource(folder, series="bold", patience_s=30.0, settle_s=settle_s)
        closed: dict[int, int] = {}
        seen: dict[int, tuple[int, int]] = {}
        quiet_s = 0.0
        while quiet_s < 2.5:  # longer than the longest pause and the longest look
            for found in source.poll():
                now_ns = time.monotonic_ns()
                seen[found.index] = (now_ns, 0 if found.data is None else zlib.crc32(found.data))
            while mine.poll():
                try:
                    index, at_ns = mine.recv()
                except EOFError:
                    break
                closed[index] = at_ns
            over = not sender.is_alive() and len(seen) == files
            quiet_s = quiet_s + POLL_S if over or not sender.is_alive() else 0.0
            time.sleep(POLL_S)
        sender.join()
        told = " ".join(source.problems)
        torn = [index for index, (_, checksum) in seen.items() if checksum != zlib.crc32(volume(index))]
        silent = [index for index in torn if f"volume {index} had been read" not in told]
        late_ms = [(at_ns - closed[index]) / 1e6 for index, (at_ns, _) in seen.items() if index not in torn and index in closed]
        return late_ms, len(torn), len(silent), files - len(seen)


def campaign(way: str, files: int, pauses_ms: tuple[float, ...], at_a_time: int = 8, each: int = 25) -> Outcome:
    """Read so many files of one way, in series side by side."""
    parts = [min(each, files - start) for start in range(0, files, each)]
    with ThreadPool(min(at_a_time, len(parts))) as pool:
        found = pool.map(lambda n: series(way, n, pauses_ms), parts)
    late_ms = np.array([ms for part in found for ms in part[0]] or [np.nan])
    torn, silent, missing = (sum(part[k] for part in found) for k in (1, 2, 3))
    p50, p99 = np.percentile(late_ms, [50, 99])
    return Outcome(way, files, torn, silent, missing, round(float(p50), 1), round(float(p99), 1), round(float(late_ms.max()), 1))


@pytest.mark.parametrize("way", WAYS)
def test_no_torn_volume_gets_through_without_a_word(way: str, benchmark: Callable[..., Any]) -> None:
    found = benchmark.pedantic(campaign, args=(way, 25, PAUSES_MS), rounds=1)
    assert (found.without_a_word, found.missing) == (0, 0)


def main() -> int:
    """Run all ways and print what became of the files."""
    parser = argparse.ArgumentParser(description="Have files written in pieces, and look for torn volumes.")
    parser.add_argument("--files", type=int, default=1000, help="of each way (default: 1000)")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    machine = f"{os.cpu_count()} x {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, settling {SETTLE_S * 1e3:g} ms, looking every {POLL_S * 1e3:g} ms")
    print(f"{'way':24} {'files':>6} {'torn':>5} {'silent':>6} {'missing':>7} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    runs = [(f"{way}, at once", campaign(way, min(options.files, 200), (0.0,), at_a_time=1, each=200)) for way in WAYS]
    runs += [(f"{way}, {PAUSES_MS[0]}-{PAUSES_MS[-1]} ms", campaign(way, options.files, PAUSES_MS)) for way in WAYS]
    bad = 0
    for name, run in runs:
        miss = run.without_a_word or run.missing or ("at once" in name and run.way != "preallocated" and run.p50_ms > TARGET_MS)
        bad += bool(miss)
        print(
            f"{name:24} {run.files:6} {run.torn:5} {run.without_a_word:6} {run.missing:7} {run.p50_ms:8.1f} {run.p99_ms:8.1f} "
            f"{run.max_ms:8.1f}{'  MISSED' if miss else ''}"
        )
    if options.json:
        options.json.write_text(json.dumps({name: asdict(run) for name, run in runs}, indent=2) + "\n", encoding="utf-8")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
