"""How long it takes to hand an array to another process, and how many bytes per second go through: this project's ring and its peers.

Run as a script, ``python bench/bench_rings.py [--json FILE] [--sizes ...] [--readers ...] [--rounds N]``, it prints one table per size
and number of readers and writes everything as JSON. Under pytest-benchmark the ring alone is timed, one case per size.

All ways are measured in one run, in turns, in another order each round, so that whatever else the machine does, and what one way
leaves behind for the next, hits all of them alike; the load and the share of the processors that other programs used are part of the
result. Every way hands over a checked message before it is timed.

*Latency* is one way: from the producer's first step (before it writes the contents) until the reader has them in its hands, with the
reader asleep before it. *Hand-over* is the part of it after the contents are in place. *memcpy* is what writing the contents alone
takes; *semaphore alone* what waking the reader takes without any contents. No way can have less than both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the readers' processes import their side of it by name

from ring_peers import PEERS, SLOTS, Bytes, Peer, SemaphorePeer, serve

SIZES = {"8 KB": 8_192, "800 KB": 800_000, "1.6 MB": 1_600_000, "6.8 MB": 6_800_000}
GAP_S = 0.002  # between messages of a latency block: the readers have gone to sleep
WARM_UP = 5  # messages at the start of each block that do not count
FLOOD_BYTES = 150e6


class Copier(Peer):
    """memcpy into a ring of buffers in this process."""

    name = "memcpy"

    def __init__(self, size: int, readers: int) -> None:
        super().__init__(size, readers)
        self.slots = np.zeros((SLOTS, size), np.uint8) + np.uint8(1)
        self.sent = 0

    def send(self, source: Bytes) -> None:
        self.slots[self.sent % SLOTS][...] = source
        self.sent += 1


class Bench:
    """All peers for one size and number of readers, and the readers' processes."""

    def __init__(self, size: int, readers: int) -> None:
        self.size, self.readers = size, readers
        self.source: Bytes = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        self.copier = Copier(size, readers)
        self.peers: dict[str, Peer] = {}
        self.missing: dict[str, str] = {}
        for kind in PEERS:
            try:
                self.peers[kind.name] = kind(size, readers)
            except ImportError as error:
                self.missing[kind.name] = str(error)
        context = mp.get_context("spawn")
        self.controls, self.processes = [], []
        for index in range(readers):
            ours, theirs = context.Pipe()
            endpoints = {name: peer.endpoint(index) for name, peer in self.peers.items()}
            process = context.Process(target=serve, args=(endpoints, theirs), daemon=True)
            process.start()
            self.controls.append(ours)
            self.processes.append(process)
        self._hear("open")
        for peer in self.peers.values():
            self.block(peer, 2 * SLOTS, check=True)

    def _hear(self, word: str) -> None:
        for control in self.controls:
            answer = control.recv()
            assert answer == word, answer

    def block(self, peer: Peer, count: int, gap_s: float = 0, check: bool = False) -> Any:
        """Send messages through one peer; times per reader, (readers, count, 3) ns: began, in place, received."""
        for control in self.controls:
            control.send((peer.name, count, self.source if check and not isinstance(peer, SemaphorePeer) else None))
        self._hear("ready")
        for _ in range(count):
            if gap_s:
                time.sleep(gap_s)
            peer.send(self.source)
        answers = [control.recv() for control in self.controls]
        assert all(whole for _, whole in answers), f"{peer.name}: a message arrived damaged"
        return np.array([times for times, _ in answers])

    def close(self) -> None:
        for control in self.controls:
            control.send(None)
        for process in self.processes:
            process.join()
        for peer in self.peers.values():
            peer.close()

    def cpu_s(self) -> float:
        """CPU time of this process and the readers so far, s."""
        ticks = sum(
            sum(int(n) for n in Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
            for process in self.processes
        )
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """CPU time that all processors have spent working since boot, s."""
    user, nice, system, _idle, _iowait, irq, soft_irq = (int(text) for text in Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def summary(microseconds: Any) -> dict[str, float]:
    """p50, p99 and max."""
    return {"p50": float(np.percentile(microseconds, 50)), "p99": float(np.percentile(microseconds, 99)), "max": float(microseconds.max())}


def measure(size: int, readers: int, rounds: int, messages: int) -> dict[str, Any]:
    """Measure all peers in turns.

    Returns
    -------
    dict
        ``peers``: name -> latency_us, hand_over_us (p50, p99, max), throughput_GBps (median of rounds, best); ``machine``: load.
    """
    bench = Bench(size, readers)
    times: dict[str, list[Any]] = {name: [] for name in bench.peers}
    rates: dict[str, list[float]] = {name: [] for name in [*bench.peers, Copier.name]}
    copies: list[float] = []
    order = np.random.default_rng(0)
    flood = int(np.clip(FLOOD_BYTES / size, 20, 500))
    loads, began, cpu, busy = [os.getloadavg()[0]], time.monotonic(), bench.cpu_s(), busy_s()
    try:
        for _ in range(rounds):
            for name in order.permutation(list(bench.peers)):
                times[name].append(bench.block(bench.peers[name], messages + WARM_UP, GAP_S)[:, WARM_UP:])
                copies += copy_times(bench, messages // 4)
            for name in order.permutation([name for name in rates if name != SemaphorePeer.name]):
                rates[name].append(copy_rate(bench, flood) if name == Copier.name else flood_rate(bench, bench.peers[name], flood))
            loads.append(os.getloadavg()[0])
        elapsed = time.monotonic() - began
        others = max(0.0, busy_s() - busy - bench.cpu_s() + cpu) / elapsed / (os.cpu_count() or 1)
    finally:
        bench.close()
    peers = {name: _report(np.concatenate(found, axis=1), rates[name]) for name, found in times.items()}
    peers[Copier.name] = {"latency_us": summary(np.array(copies)), "hand_over_us": None, **_rates(rates[Copier.name])}
    return {
        "size": size,
        "readers": readers,
        "samples": rounds * messages * readers,
        "peers": peers,
        "not_installed": bench.missing,
        "load": loads,
        "cpu_share_of_others": others,
    }


def copy_times(bench: Bench, count: int) -> list[float]:
    """Times of single copies with the caches as cold as a paced producer finds them, us."""
    found = []
    for _ in range(count):
        time.sleep(GAP_S)
        began = time.monotonic_ns()
        bench.copier.send(bench.source)
        found.append((time.monotonic_ns() - began) / 1e3)
    return found


def flood_rate(bench: Bench, peer: Peer, count: int) -> float:
    """Bytes per nanosecond of messages in a row, until the last reader has the last."""
    found = bench.block(peer, count)
    return float(bench.size * count / (found[:, -1, 2].max() - found[0, 0, 0]))


def copy_rate(bench: Bench, count: int) -> float:
    """Bytes per nanosecond of copies in a row."""
    began = time.monotonic_ns()
    for _ in range(count):
        bench.copier.send(bench.source)
    return bench.size * count / (time.monotonic_ns() - began)


def _rates(rates: list[float]) -> dict[str, Any]:
    return {"throughput_GBps": {"median": float(np.median(rates)), "best": max(rates)} if rates else None}


def _report(times: Any, rates: list[float]) -> dict[str, Any]:
    last = times[:, :, 2].max(axis=0)  # the message has arrived when the last reader has it
    began, placed = times[0, :, 0], times[0, :, 1]
    return {"latency_us": summary((last - began) / 1e3), "hand_over_us": summary((last - placed) / 1e3), **_rates(rates)}


def hardware() -> dict[str, Any]:
    """Return the description of the machine."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.processor())
    versions = {}
    for package in ("rtevo", "numpy", "posix_ipc", "pyzmq", "iceoryx2", "llvmlite"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": versions,
    }


def table(result: dict[str, Any]) -> str:
    """One result as text."""
    memcpy = result["peers"][Copier.name]["throughput_GBps"]["median"]
    lines = [
        f"{result['size']:,} bytes, {result['readers']} reader(s); {result['samples']} samples; load {min(result['load']):.1f} to "
        f"{max(result['load']):.1f}; other programs used {result['cpu_share_of_others']:.0%} of the processors",
        f"  {'':22}{'latency us: p50':>16}{'p99':>9}{'max':>9}{'hand-over us: p50':>19}{'p99':>9}{'GB/s':>8}{'of memcpy':>11}",
    ]
    for name, each in result["peers"].items():
        latency, hand_over, rate = each["latency_us"], each["hand_over_us"], each["throughput_GBps"]
        text = f"  {name:22}{latency['p50']:16.0f}{latency['p99']:9.0f}{latency['max']:9.0f}"
        text += f"{hand_over['p50']:19.0f}{hand_over['p99']:9.0f}" if hand_over else " " * 28
        text += f"{rate['median']:8.2f}{rate['median'] / memcpy:11.0%}" if rate else ""
        lines.append(text)
    lines += [f"  {name:22}{why}" for name, why in result["not_installed"].items()]
    return "\n".join(lines)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--readers", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=100, help="per round and peer")
    options = parser.parse_args()
    machine = hardware()
    print(f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}\n")
    results = []
    for readers in options.readers:
        for size in options.sizes:
            results.append(measure(SIZES[size], readers, options.rounds, options.messages))
            print(table(results[-1]) + "\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"hardware": machine, "results": results}, indent=1))


# -- pytest-benchmark ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_write_and_read(benchmark: Any, size: int) -> None:
    """One message in and out, in one process: what the ring itself costs besides the copy."""
    from rtevo.shm import Ring

    source = np.ones(size, np.uint8)
    with Ring.create(f"/rtevo-b{os.getpid()}", np.dtype([("bytes", "u1", (size,))]), SLOTS, ["a"], writer=True, reader="a") as ring:

        def once() -> None:
            with ring.reserve() as slot:
                slot["bytes"][...] = source
            with ring.read() as slot:
                slot["bytes"]

        benchmark(once)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_hand_over_to_a_sleeping_process(benchmark: Any, size: int) -> None:
    """Send one message to another process and wait until it says that it has it."""
    bench = Bench(size, 1)
    try:
        benchmark.pedantic(bench.block, (next(iter(bench.peers.values())), 1), rounds=200, warmup_rounds=10)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
