"""What the console costs the loop: latencies of every stage with its page open in a browser, and without it.

Run as a module, ``python -m bench.bench_console [--json FILE] [--rounds N] [--generations N] [--population N]``. The same simulated session
(seed 1, real time) runs in turns without the console, and with its page open in headless chromium on this computer, which draws pictures
and charts; all latencies of the log are pooled by kind. The peer of each figure is the same session without the console, in the same run.

``--maps`` measures instead what the live maps cost the console's process: reading a saved volume of 80 x 80 x 35 voxels into mean and
variance, and drawing all maps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from rtevo.record import AlignedRecord, EventRecord, FitnessRecord, ImageRecord, RecordedSession, ScoreRecord
from rtevo.records import EventKind, VolumeFlag

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WARM_UP_VOLUMES = 5
LATENCIES = {
    "align": "file closed -> volume aligned",
    "score": "last volume closed -> image scored",
    "evolve": "scored -> told to evolution",
    "paint": "asked for -> painted",
    "report": "onset -> heard",
    "cadence": "onset to onset, off 4 s",
}


def measure(recorded: RecordedSession) -> dict[str, list[float]]:
    """Return every latency of a session's log, ms."""
    events, scores = recorded.records(EventRecord), recorded.records(ScoreRecord)
    started_ns = min(e.received_ns - e.t_ns for e in events if e.t_ns)  # the report that took least
    whole = [r for r in recorded.records(AlignedRecord) if not r.flags & VolumeFlag.MISSING][WARM_UP_VOLUMES:]
    scored = {(r.generation, r.candidate, r.scored_ns) for r in scores}
    last = {(g, c): max(ns for a, b, ns in scored if (a, b) == (g, c)) for g, c, _ in scored}
    onsets, cadence_ms = recorded.events(EventKind.ONSET), 1e3 * float(recorded.start.cadence_s or 0)
    triggered_ns = recorded.events(EventKind.TRIGGER)[0].received_ns
    decided = {(r.generation, r.candidate): r.decided_ns for r in recorded.records(FitnessRecord)}
    return {
        "align": [(r.aligned_ns - r.closed_ns) / 1e6 for r in whole],
        "score": [(r.scored_ns - r.closed_ns) / 1e6 for r in scores if r.closed_ns],
        "evolve": [(decided[key] - ns) / 1e6 for key, ns in last.items() if decided.get(key, 0) >= ns],
        "paint": [(r.painted_ns - r.evolved_ns) / 1e6 for r in recorded.records(ImageRecord) if r.evolved_ns > triggered_ns],
        "report": [(e.received_ns - e.t_ns - started_ns) / 1e6 for e in onsets],
        "cadence": [abs((b.t_ns - a.t_ns) / 1e6 - cadence_ms) for a, b in pairwise(onsets)],
    }


def session(out: Path, options: list[str], console: bool) -> dict[str, list[float]]:
    """Run one session to its end, and return its latencies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "rtevo.run", "--seed", "1", "--out", str(out), *options]
    command += ["--console", str(port)] if console else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        if console:
            for line in process.stderr:
                if "waiting for Start" in line:
                    break
            watch(port, process)
        printed = process.stderr.read()
    if process.returncode:
        raise SystemExit(f"a session ended with {process.returncode}:\n{printed}")
    return measure(RecordedSession(out))


def watch(port: int, process: subprocess.Popen[str]) -> None:
    """Open the page, press Start, and look at it until the session has ended."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("window.did_handshake === true")
        page.keyboard.press("s")
        page.locator(".state", has_text="Running").wait_for()
        while process.poll() is None:
            page.wait_for_timeout(500)
        browser.close()


def summary(ms: list[float]) -> dict[str, float]:
    """Return n, p50, p99 and max."""
    p50, p99, top = np.percentile(ms, [50, 99, 100])
    return {"n": len(ms), "p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(top), 2)}


def rows(found: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Yield the table's lines."""
    yield f"{'latency, ms':38} {'n':>5} {'without: p50':>13} {'p99':>7} {'max':>7} {'with: p50':>11} {'p99':>7} {'max':>7} {'ratio':>6}"
    for name, label in LATENCIES.items():
        a, b = (summary(found[kind][name]) for kind in ("without", "with"))
        ratio = b["p50"] / a["p50"] if a["p50"] else float("nan")
        yield (
            f"{label:38} {b['n']:5.0f} {a['p50']:13.1f} {a['p99']:7.1f} {a['max']:7.1f} "
            f"{b['p50']:11.1f} {b['p99']:7.1f} {b['max']:7.1f} {ratio:6.2f}"
        )


def maps_cost(volumes: int = 60) -> str:
    """Time what the live maps do, of the CPU of this process, ms."""
    import time

    import nibabel

    from rtevo.console.maps import LiveMaps
    from rtevo.record import record_of, volume_path
    from rtevo.simulate import Simulation, make_decoder

    decoder, rng = make_decoder(Simulation()), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "volumes").mkdir()
        for index in range(volumes):
            data = decoder.reference + rng.normal(0, 10, decoder.grid.shape)
            nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), decoder.grid.affine), volume_path(out, index))
        maps = LiveMaps(out, "raw", decoder, 0.867, False)
        maps.take(record_of({"type": "grid", "part": 0, "shape": list(decoder.grid.shape), "affine": decoder.grid.affine.tolist()}))
        maps.take(record_of({"type": "placements", "decision": 1, "matrix": np.eye(4).tolist()}))
        for index in range(volumes):
            maps.take(record_of({"type": "aligned", "index": index, "motion": [0.0] * 6}))
        read = []
        for _ in range(volumes):
            began = time.process_time()
            maps.step()
            read.append(1e3 * (time.process_time() - began))
        began = time.process_time()
        maps.draw()
        drawn = 1e3 * (time.process_time() - began)
        shape = " x ".join(map(str, decoder.grid.shape))
    return (
        f"{shape} voxels: a volume read {np.median(read):.1f} ms (largest {max(read):.1f}, with a drawing), all maps drawn {drawn:.1f} ms"
    )


def main() -> None:
    """Run the command line."""
    p = argparse.ArgumentParser(prog="python -m bench.bench_console", description="What the console costs the loop.")
    p.add_argument("--rounds", type=int, default=2, metavar="N", help="sessions of either kind (default: 2)")
    p.add_argument("--generations", default="2", metavar="N", help="of a session (default: 2)")
    p.add_argument("--population", default="4", metavar="N", help="images in a generation (default: 4)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write figures here")
    p.add_argument("--maps", action="store_true", help="measure what the live maps cost the console's process")
    options = p.parse_args()
    if options.maps:
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n{maps_cost()}")
        return
    if CHROMIUM is None:
        raise SystemExit("no browser: apt-get install chromium")
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in LATENCIES} for kind in ("without", "with")}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for kind in ("without", "with") if turn % 2 == 0 else ("with", "without"):
                print(f"round {turn + 1}, {kind} the console", file=sys.stderr)
                size = ["--generations", options.generations, "--population", options.population]
                for name, values in session(Path(folder) / f"{kind}-{turn}", size, kind == "with").items():
                    found[kind][name] += values
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("\n".join(rows(found)))
    if options.json:
        table = {kind: {name: summary(ms) for name, ms in own.items()} for kind, own in found.items()}
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], **table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
