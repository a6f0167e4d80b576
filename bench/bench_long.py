"""A session of an hour: ``python -m bench.bench_long``: are latency and memory the same at its end as at its beginning?

A simulated session with 900 images and about 4,150 volumes at TR 0.867 s runs in lock-step, as fast as the computer allows. Meanwhile
the memory of each process is read from ``/proc`` (RssAnon: what is its own; rings and files are not counted), and afterwards latencies
come from the session's log. Written are a JSON file, a table, and a figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.long_session import measure, run_session


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    p = argparse.ArgumentParser(prog="python -m bench.bench_long", description="Latency and memory over a session of an hour.")
    p.add_argument("--generations", type=int, default=36, metavar="N", help="of the session (default: 36)")
    p.add_argument("--population", type=int, default=25, metavar="N", help="images in each (default: 25)")
    p.add_argument("--minutes", type=float, default=10.0, metavar="M", help="of the session that a row of the table is of (default: 10)")
    p.add_argument("--voxel-mm", type=float, nargs=3, default=(3.0, 3.0, 3.3), metavar="MM", help="voxel size (default: 3 3 3.3)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw them there")
    options = p.parse_args(arguments)
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
