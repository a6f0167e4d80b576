"""A session of an hour: ``python -m bench.bench_long``: are latency and memory the same at its end as at its beginning?

A simulated session with 900 images and about 4,150 volumes at TR 0.867 s runs in lock-step, as fast as the computer allows. Meanwhile
the memory of each process is read from ``/proc`` (RssAnon: what is its own; rings and files are not counted), and afterwards latencies
come from the session's log. Written are a JSON file, a table, and a figure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.record import AlignedRecord, ImageRecord, RecordedSession, ScoreRecord

LATENCIES = {
    "file closed -> in the ring": (AlignedRecord, "closed_ns", "ingested_ns"),
    "file closed -> aligned": (AlignedRecord, "closed_ns", "aligned_ns"),
    "last needed volume -> first score": (ScoreRecord, "closed_ns", "scored_ns"),
    "asked -> painted": (ImageRecord, "evolved_ns", "painted_ns"),
}
EVERY_S = 0.5
WARM = 100  # volumes before which memory may grow: caches fill, code is loaded


class Memory(threading.Thread):
    """Reads the private memory of a session's processes while it runs.

    Parameters
    ----------
    out : Path
        The session's folder; its ``session.log`` names the processes.
    supervisor : int
        Process that started them.
    """

    def __init__(self, out: Path, supervisor: int) -> None:
        super().__init__(daemon=True)
        self._log, self._own = out / "session.log", supervisor
        self._over = threading.Event()
        self.samples: dict[str, list[tuple[int, float]]] = {}

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._over.wait(EVERY_S):
            text = self._log.read_text(encoding="utf-8") if self._log.exists() else ""
            processes = {name: int(pid) for name, pid in re.findall(r"stage (\S+) is process (\d+)", text)} | {"supervisor": self._own}
            for name, pid in processes.items():
                try:
                    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
                except OSError:
                    continue
                if found := re.search(r"RssAnon:\s+(\d+) kB", status):
                    self.samples.setdefault(name, []).append((time.monotonic_ns(), int(found[1]) / 1024))

    def finish(self) -> None:
        """Take no more samples."""
        self._over.set()
        self.join()


def run_session(folder: Path, settings: str) -> tuple[Path, dict[str, list[tuple[int, float]]]]:
    """Run a session of these settings (TOML); gives its folder and the memory of its processes, MB, by monotonic time, ns."""
    out, file = folder / "out", folder / "session.toml"
    file.write_text(settings, encoding="utf-8")
    with (folder / "printed.log").open("w") as printed:
        process = subprocess.Popen([sys.executable, "-m", "rtevo.run", str(file), "--out", str(out)], stdout=printed, stderr=printed)
        memory = Memory(out, process.pid)
        memory.start()
        status = process.wait()
        memory.finish()
    if status:
        raise RuntimeError(f"the session ended with {status}: {(folder / 'printed.log').read_text()[-1000:]}")
    return out, memory.samples


def measure(out: Path, samples: dict[str, list[tuple[int, float]]], minutes: float = 10.0) -> dict[str, Any]:
    """Bring together what was measured, by minutes of the session.

    Returns
    -------
    dict
        ``volumes``; ``latencies_ms``: for each kind a list of {minute, n, p50, p99, max}; ``memory_mb``: for each process the ``minute``
        and ``mb`` of samples after the first volume, and ``growth_mb``: median of the last tenth less that of the first after `WARM`.
    """
    recorded = RecordedSession(out)
    aligned = recorded.records(AlignedRecord)
    at_ns, minute = np.array([r.aligned_ns for r in aligned]), np.array([r.index for r in aligned]) * recorded.start.tr_s / 60
    result: dict[str, Any] = {"volumes": len(aligned), "minutes": round(float(minute[-1]), 2), "latencies_ms": {}, "memory_mb": {}}
    for name, (kind, first, last) in LATENCIES.items():
        records = [r for r in recorded.records(kind) if getattr(r, first) and not getattr(r, "revision", 0)]
        took_ms = np.array([(getattr(r, last) - getattr(r, first)) / 1e6 for r in records])
        part = (np.array([r.clock_ns for r in records]) / 6e10 // minutes).astype(int)
        result["latencies_ms"][name] = [
            {
                "minute": float(k * minutes),
                "n": int((part == k).sum()),
                "p50": round(float(np.percentile(took_ms[part == k], 50)), 3),
                "p99": round(float(np.percentile(took_ms[part == k], 99)), 3),
                "max": round(float(took_ms[part == k].max()), 3),
            }
            for k in np.unique(part)
        ]
    for name, own in samples.items():
        when, mb = (np.array(column, float) for column in zip(*own, strict=True))
        volume = np.interp(when, at_ns, np.arange(len(at_ns)), left=-1, right=len(at_ns))
        inside = (volume > 0) & (volume < len(at_ns))
        after = np.sort(np.flatnonzero(inside & (volume >= min(WARM, len(at_ns) / 2))))
        tenth = max(1, len(after) // 10)
        growth = float(np.median(mb[after[-tenth:]]) - np.median(mb[after[:tenth]])) if len(after) else 0.0
        shown = np.flatnonzero(inside)[:: max(1, int(inside.sum()) // 200)]
        result["memory_mb"][name] = {
            "growth_mb": round(growth, 2),
            "minute": np.round(np.interp(volume[shown], np.arange(len(minute)), minute), 2).tolist(),
            "mb": np.round(mb[shown], 2).tolist(),
        }
    return result


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
