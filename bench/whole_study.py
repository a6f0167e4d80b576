"""A whole simulated study, from its plan to its export: ``python -m bench.whole_study FOLDER``.

Two visits of three runs for each of 2 x 8 participants, in lock-step and with coarse voxels. Some runs are killed in their midst, and some
commands between two runs, both drawn from a seed; the study is then gone on with as an operator would. All state is the study's own: the
command can be interrupted and started again, and goes on where the ledger says. At the end it is reported while sealed, unsealed, reported
and exported as BIDS.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rtevo.record import LOG
from rtevo.study import load
from rtevo.study.ledger import LEDGER

SESSION = """
[session]
speed = 0.0
[acquisition]
tr_s = 2.0
[evolution]
generations = {generations}
population = 5
[presentation]
baseline_s = 6.0
[generator]
steps = 4
[simulation]
voxel_mm = [8.0, 8.0, 8.8]
"""
STUDY = """
[study]
name = "whole"
participants = [{participants}]
arms = ["brain", "sham"]
probe_every = 5
[files]
loop = "session.toml"
[[visits]]
label = "1"
runs = ["loop", "loop", "loop"]
[[visits]]
label = "2"
runs = ["loop", "loop", "loop"]
[analysis]
summary = "gain"
"""
KILLED_WITHIN, KILLED_BETWEEN = 0.08, 0.08  # shares of the runs
LOOK_S = 0.05


def study(*arguments: str, quiet: bool = True) -> subprocess.Popen[str]:
    """Start a command of the study, in a process group of its own."""
    words = [sys.executable, "-m", "rtevo", "study", *arguments]
    out = subprocess.PIPE if quiet else None
    return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, start_new_session=True)


def done(*arguments: str, over: Callable[[], bool] = bool) -> str:
    """Run a command of the study to its end; returns what it printed. It may find that all is `over`."""
    process = study(*arguments)
    printed, _ = process.communicate()
    if process.returncode and not over():
        raise SystemExit(f"rtevo study {' '.join(arguments)} left with {process.returncode}:\n{printed}")
    return printed


def participant_runs(folder: Path, who: str) -> dict[str, int]:
    """Do all that is left of a participant's runs; returns how many were killed within and between, and how many went on."""
    found = {"killed within": 0, "killed between": 0, "resumed": 0, "runs": 0}
    where = ("--study", str(folder))

    def over() -> bool:
        return load(folder).following(who) is None  # the run that was killed had been the last, and was whole

    while (planned := load(folder).following(who)) is not None:
        tried = load(folder).tried(planned.slot)
        rng = np.random.default_rng([int(who), int(planned.visit.label), planned.number, len(tried)])
        if tried:
            found["resumed"] += "goes on in" in done("next", who, "--resume", *where, over=over)
        elif (drawn := rng.random()) < KILLED_WITHIN + KILLED_BETWEEN:
            kind = "killed within" if drawn < KILLED_WITHIN else "killed between"
            kill(folder, who, int(rng.integers(20, 80)) if kind == "killed within" else 0)
            found[kind] += 1
        else:
            done("next", who, *where)
        found["runs"] += 1
    return found


def kill(folder: Path, who: str, records: int) -> None:
    """Start the next run, and kill it once its log has so many records; 0: once its summary is written, before the ledger may know."""
    process = study("next", who, "--study", str(folder))
    before = {path for path in (folder / f"sub-{who}").glob("ses-*/run-*/summary.json")}
    while process.poll() is None:
        logs = sorted((folder / f"sub-{who}").glob(f"ses-*/run-*/{LOG}"), key=lambda path: path.stat().st_mtime)
        if records and logs and logs[-1].read_bytes().count(b"\n") >= records and not (logs[-1].parent / "summary.json").exists():
            break
        if not records and {path for path in (folder / f"sub-{who}").glob("ses-*/run-*/summary.json")} - before:
            break
        time.sleep(LOOK_S)
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def main() -> None:
    """Do what is left of the study."""
    p = argparse.ArgumentParser(prog="python -m bench.whole_study", description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="the study's; made if it is not there")
    p.add_argument("--participants", type=int, default=16)
    p.add_argument("--generations", type=int, default=2, help="of five images, in each run")
    p.add_argument("--studies", type=int, default=7, help="that are simulated to plan it")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="participants at a time")
    options = p.parse_args()
    folder: Path = options.folder.resolve()
    if not (folder / LEDGER).exists():
        folder.mkdir(parents=True, exist_ok=True)
        labels = ", ".join(f'"{k:02d}"' for k in range(1, options.participants + 1))
        (folder / "session.toml").write_text(SESSION.format(generations=options.generations))
        (folder / "study.toml").write_text(STUDY.format(participants=labels))
        minutes, half, n = str(max(2.0, options.generations * 5 * 4 / 60)), str(options.participants // 2), str(options.studies)
        sizes = ("--minutes", minutes, "--cnr", "1", "--participants", half, "--runs", "6", "--studies", n)
        print(done("plan", *sizes, "--jobs", str(options.jobs), "--out", str(folder / "plan")))
        print(done("new", str(folder)))
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda who: participant_runs(folder, who), load(folder).participants))
    took_s = time.monotonic() - began
    print({name: sum(own[name] for own in found) for name in found[0]}, f"in {took_s:.0f} s")
    where = ("--study", str(folder))
    print(done("status", *where)[-2000:])
    if not load(folder).unsealed:
        done("report", *where, "--to", str(folder / "sealed-report"))
        done("unseal", "--by", "bench", "--why", "all runs are done", *where)
    print(done("report", *where))
    if not (folder / "bids").exists():
        print(done("export", str(folder / "bids"), *where))
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    print("\n".join(re.findall(r"p = [0-9.]+[^<]{0,80}", page)[:5]))


if __name__ == "__main__":
    main()
