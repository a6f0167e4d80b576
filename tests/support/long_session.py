"""A session whose processes' memory is watched, and what becomes of memory and latency by its minutes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.record import AlignedRecord, ImageRecord, RecordedSession, ScoreRecord

__all__ = ["LATENCIES", "WARM", "Memory", "measure", "run_session", "watched_session"]

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
        self.cpu_s: dict[str, list[tuple[int, float]]] = {}

    def run(self) -> None:
        """Sample until stopped."""
        while not self._over.wait(EVERY_S):
            text = self._log.read_text(encoding="utf-8") if self._log.exists() else ""
            processes = {name: int(pid) for name, pid in re.findall(r"stage (\S+) is process (\d+)", text)} | {"supervisor": self._own}
            for name, pid in processes.items():
                try:
                    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
                    ticks = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
                except OSError:
                    continue
                if found := re.search(r"RssAnon:\s+(\d+) kB", status):
                    self.samples.setdefault(name, []).append((time.monotonic_ns(), int(found[1]) / 1024))
                    self.cpu_s.setdefault(name, []).append((time.monotonic_ns(), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")))

    def finish(self) -> None:
        """Take no more samples."""
        self._over.set()
        self.join()


def run_session(folder: Path, settings: str) -> tuple[Path, dict[str, list[tuple[int, float]]]]:
    """Run a session of these settings (TOML); gives its folder and the memory of its processes, MB, by monotonic time, ns."""
    out, memory = watched_session(folder, settings)
    return out, memory.samples


def watched_session(folder: Path, settings: str, may_fail: bool = False) -> tuple[Path, Memory]:
    """As `run_session`; gives the thread that watched: `cpu_s` is the processor time of each, s."""
    out, file = folder / "out", folder / "session.toml"
    file.write_text(settings, encoding="utf-8")
    with (folder / "printed.log").open("w") as printed:
        process = subprocess.Popen([sys.executable, "-m", "rtevo.run", str(file), "--out", str(out)], stdout=printed, stderr=printed)
        memory = Memory(out, process.pid)
        memory.start()
        status = process.wait()
        memory.finish()
    if status and not may_fail:
        raise RuntimeError(f"the session ended with {status}: {(folder / 'printed.log').read_text()[-1000:]}")
    return out, memory


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
