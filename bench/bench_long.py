"""A session of an hour: ``python -m bench.bench_long``: are latency and memory the same at its end as at its beginning?

A simulated session with 900 images and about 4,150 volumes at TR 0.867 s runs in lock-step, as fast as the computer allows. Meanwhile
the memory of each process is read from ``/proc`` (RssAnon: what is its own; rings and files are not counted), and afterwards latencies
come from the session's log. Written are a JSON file, a table, and a figure.

With ``--replay X Y Z`` a prepared series of volumes of that size (a head that moves, as Siemens mosaics) is replayed at TR 0.8 s in real
time: is every volume aligned before the next one is there? Processor time and wall-clock time are measured apart, as the computer may be
busy with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.realign import resliced
from rtevo.record import AlignedRecord, RecordedSession
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.head import Head, HeadMotion, scan_grid
from tests.support.long_session import Memory, measure, run_session, watched_session

REPLAY_TR_S, STEPS = 0.8, 4
FIELD_MM = 220.0  # of view, in plane


def table(result: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    lines = ["| minutes | " + " | ".join(f"{name}, ms: p50 / p99 / max" for name in result["latencies_ms"]) + " |"]
    lines.append("|" + "---|" * (1 + len(result["latencies_ms"])))
    for row in zip(*result["latencies_ms"].values(), strict=False):
        lines.append(f"| {row[0]['minute']:g}+ | " + " | ".join(f"{d['p50']:.1f} / {d['p99']:.1f} / {d['max']:.0f}" for d in row) + " |")
    lines += ["", "| process | MB at the end | growth, MB |", "|---|---|---|"]
    lines += [f"| {name} | {own['mb'][-1]:.0f} | {own['growth_mb']:+.1f} |" for name, own in result["memory_mb"].items() if own["mb"]]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw memory and latencies over the session."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), dpi=110, layout="constrained")
    memory, latency = figure.subplots(1, 2)
    for name, own in result["memory_mb"].items():
        memory.plot(own["minute"], own["mb"], linewidth=1.2, label=f"{name} ({own['growth_mb']:+.1f} MB)")
    memory.set(xlabel="minute of the session", ylabel="private memory, MB", ylim=(0, None), title="Memory (growth after the first volumes)")
    memory.legend(fontsize=7, frameon=False, ncol=2)
    for (name, rows), color in zip(result["latencies_ms"].items(), ("#8a8a8a", "#0b6e75", "#c2571a", "#5b4b8a"), strict=True):
        middle = [row["minute"] + (rows[1]["minute"] / 2 if len(rows) > 1 else 0) for row in rows]
        latency.plot(middle, [row["p50"] for row in rows], "o-", color=color, label=name)
        latency.plot(middle, [row["p99"] for row in rows], "o:", color=color)
    latency.set(xlabel="minute of the session", ylabel="ms", yscale="log", title="Latencies: p50, and p99 dotted")
    latency.set_ylim(top=10 * latency.get_ylim()[1])  # the legend's
    latency.legend(fontsize=7, frameon=False, loc="upper left")
    figure.savefig(path)


def prepare(folder: Path, shape: tuple[int, int, int], volumes: int) -> None:
    """Write a series of a head that moves by some tenths of a millimetre, with noise."""
    voxel_mm = (FIELD_MM / shape[0], FIELD_MM / shape[1], 150.0 / shape[2])
    rng = np.random.default_rng(0)
    grid: Grid = scan_grid(shape, voxel_mm)
    head, motion = Head.build(grid, rng), HeadMotion.draw(rng, 0.3, 0.004)
    writer = MosaicWriter(folder, grid, REPLAY_TR_S, description="bold", volumes=volumes)
    noise = [rng.normal(0, 8, shape).astype(np.float32) for _ in range(8)]
    moved = [resliced(head.signal, grid.affine, motion.at(4.0 * k)) for k in range(32)]
    for index in range(volumes):  # positions go back and forth, so that no volume is far from the one before
        position = (index % 62) if index % 62 < 32 else 62 - index % 62
        writer.write(index, np.clip(moved[position] + noise[index % 8], 0, 4000))


def replay(shape: tuple[int, int, int], minutes: float, folder: Path, speed: float) -> dict[str, Any]:
    """Replay a prepared series, in real time at speed 1; gives latencies, lateness, memory and processor time."""
    volumes = round(60 * minutes / REPLAY_TR_S)
    prepare(folder / "series", shape, volumes)
    images = int(60 * minutes / 4) - 4
    settings = (
        f'[session]\nspeed = {speed}\n[acquisition]\nsource = "replay"\nfolder = "{folder / "series"}"\ntr_s = {REPLAY_TR_S}\n'
        f'[evolution]\ngenerations = {images // 4}\npopulation = 4\n[generator]\nsteps = {STEPS}\n[record]\nsave_volumes = "raw"\n'
    )
    out, memory = watched_session(folder, settings, may_fail=True)
    recorded = RecordedSession(out)
    if not recorded.records(AlignedRecord):
        raise RuntimeError(f"no volume was aligned: {(folder / 'printed.log').read_text()[-1000:]}")
    took_s = np.array([(r.aligned_ns - r.closed_ns) / 1e9 for r in recorded.records(AlignedRecord)])
    result = {"shape": list(shape), "tr_s": REPLAY_TR_S, "load": os.getloadavg(), **measure(out, memory.samples, max(1.0, minutes / 3))}
    result["status"], result["missing"] = f"{recorded.status} {recorded.summary.get('reason', '')}".strip(), len(recorded.missing)
    result["sent"] = volumes
    result["later_than_a_tr"] = int((took_s > REPLAY_TR_S).sum())
    result["cpu_ms_per_volume"] = cpu_per_volume(memory, recorded)
    return result


def cpu_per_volume(memory: Memory, recorded: RecordedSession) -> dict[str, float]:
    """Processor time of each process, ms a volume, from a tenth of the volumes on, whatever else the computer does."""
    aligned = recorded.records(AlignedRecord)
    tenth = len(aligned) // 10
    begin, end, count = aligned[tenth].aligned_ns, aligned[-1].aligned_ns, len(aligned) - 1 - tenth
    found = {}
    for name, own in memory.cpu_s.items():
        when, seconds = (np.array(column, float) for column in zip(*own, strict=True))
        found[name] = round(float(np.interp(end, when, seconds) - np.interp(begin, when, seconds)) * 1e3 / count, 1)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    p = argparse.ArgumentParser(prog="python -m bench.bench_long", description="Latency and memory over a session of an hour.")
    p.add_argument("--generations", type=int, default=36, metavar="N", help="of the session (default: 36)")
    p.add_argument("--population", type=int, default=25, metavar="N", help="images in each (default: 25)")
    p.add_argument("--minutes", type=float, default=10.0, metavar="M", help="of the session that a row of the table is of (default: 10)")
    p.add_argument("--voxel-mm", type=float, nargs=3, default=(3.0, 3.0, 3.3), metavar="MM", help="voxel size (default: 3 3 3.3)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw them there")
    p.add_argument("--replay", type=int, nargs=3, metavar="N", help="replay volumes of this size in real time instead, at TR 0.8 s")
    p.add_argument("--session-minutes", type=float, default=15.0, metavar="M", help="of the replay (default: 15)")
    p.add_argument("--speed", type=float, default=1.0, help="of the replay; 0: in lock-step, for processor times on a busy computer")
    options = p.parse_args(arguments)
    if options.replay:
        with tempfile.TemporaryDirectory(prefix="rtevo-long-") as folder:
            result = replay(tuple(options.replay), options.session_minutes, Path(folder), options.speed)
        print(f"{options.replay}: {result['volumes']} of {result['sent']} volumes, {result['status']}, {result['missing']} missing, "
              f"{result['later_than_a_tr']} aligned later than a TR after they were closed; load {result['load'][0]:.1f}")  # fmt: skip
        print(f"processor time, ms a volume: {result['cpu_ms_per_volume']}\n\n{table(result)}")
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory(prefix="rtevo-long-") as folder:
        began = time.monotonic()
        settings = (
            f"[session]\nspeed = 0.0\n[evolution]\ngenerations = {options.generations}\npopulation = {options.population}\n"
            f'[generator]\nsteps = 4\n[simulation]\nvoxel_mm = {list(options.voxel_mm)}\n[record]\nsave_volumes = "raw"\n'
        )
        out, samples = run_session(Path(folder), settings)
        seconds = round(time.monotonic() - began)
        result = {"voxel_mm": list(options.voxel_mm), "seconds": seconds, **measure(out, samples, options.minutes)}
    print(f"{result['volumes']} volumes, {result['minutes']} minutes of session in {result['seconds']} s\n\n{table(result)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(result, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
