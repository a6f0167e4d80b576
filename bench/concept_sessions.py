"""Whole simulated sessions over many seeds: how far does the hidden response rise, and does it under sham?

    python bench/concept_sessions.py --seeds 20 --jobs 8 --out sessions.json

Every seed runs twice at ``--speed max``, with the same participant, head and first images: condition brain and condition sham (scores
shuffled). The gain is the mean hidden response of the last generation less that of the first, in standard deviations over all emoji.
Prints a Markdown table, and writes every session's generations as JSON. Options after ``--`` go to ``rtevo.run``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
CONDITIONS = ("brain", "sham")


def session(seed: int, condition: str, concept: str, more: list[str], folder: Path) -> dict[str, Any]:
    """Run one session; give its generations' mean hidden responses."""
    out = folder / f"{condition}-{seed}"
    command = [sys.executable, "-m", "rtevo.run", "--out", str(out), "--speed", "max", "--seed", str(seed), "--condition", condition]
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([*command, "--prefers", concept, *more], capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode:
        return {"seed": seed, "condition": condition, "failed": (done.stdout + done.stderr)[-2000:]}
    generations = json.loads((out / "summary.json").read_text())["generations"]
    means = [g["mean_true_response"] for g in generations]
    return {"seed": seed, "condition": condition, "hidden": means, "seconds": round(time.monotonic() - began, 1)}


def mean_and_error(values: list[float]) -> str:
    """Mean and its standard error, in words."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.2f} ± {error:.2f}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: hidden response by generation and gain, each with its standard error."""
    count = max(len(r["hidden"]) for r in results)
    lines = ["| condition | sessions | " + " | ".join(f"generation {g + 1}" for g in range(count)) + " | gain | above 0 |"]
    lines.append("|---" * (count + 4) + "|")
    gains = {}
    for condition in CONDITIONS:
        whole = [r for r in results if r["condition"] == condition and len(r["hidden"]) == count]
        gains[condition] = {r["seed"]: r["hidden"][-1] - r["hidden"][0] for r in whole}
        cells = [mean_and_error([r["hidden"][g] for r in whole]) for g in range(count)]
        cells += [mean_and_error(list(gains[condition].values())), f"{sum(v > 0 for v in gains[condition].values())} of {len(whole)}"]
        lines.append(f"| {condition} | {len(whole)} | " + " | ".join(cells) + " |")
    both = [gains["brain"][seed] - gains["sham"][seed] for seed in gains["brain"] if seed in gains["sham"]]
    lines.append(f"\nGain of brain less that of sham, by seed: {mean_and_error(both)}")
    return "\n".join(lines)


def main() -> int:
    """Run the sessions; print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=20, metavar="N", help="seeds 1 to N (default: %(default)s)")
    p.add_argument("--concept", default="spider", help="what the participant prefers (default: %(default)s)")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="sessions at a time (default: %(default)s)")
    p.add_argument("--out", type=Path, help="file for every session's generations (JSON)")
    p.add_argument("--keep", type=Path, help="folder to keep the sessions in")
    p.add_argument("--until", type=float, default=math.inf, metavar="S", help="start no more sessions after so many seconds")
    p.add_argument("more", nargs="*", help="options of rtevo.run, after --")
    options = p.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="rtevo-sessions-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def run(job: tuple[int, str]) -> dict[str, Any] | None:
        if time.monotonic() - began > options.until:
            return None
        result = session(*job, options.concept, options.more, folder.resolve())
        print(json.dumps(result), file=sys.stderr, flush=True)
        return result

    jobs = [(seed, condition) for seed in range(1, options.seeds + 1) for condition in CONDITIONS]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = [r for r in pool.map(run, jobs) if r is not None]
    if options.out:
        about = {"platform": platform.platform(), "cpus": os.cpu_count(), "concept": options.concept, "options": options.more}
        options.out.write_text(json.dumps({**about, "sessions": results}, indent=1))
    if not options.keep:
        shutil.rmtree(folder)
    whole = [r for r in results if "failed" not in r]
    print(table(whole) if whole else "no session ended well")
    return 0 if len(whole) == len(jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
