"""The campaign's command line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from bench.campaign.check import Outcome, check
from bench.campaign.play import DiskError, play
from bench.campaign.scenarios import KINDS, scenario
from bench.campaign.series import decoder

COMMAND = "python -m bench.campaign"
SESSIONS = 17  # of a kind


def reproducer(outcome: Outcome) -> str:
    """The command that plays a session again."""
    return f"{COMMAND} --kind {outcome.kind} --seed {outcome.seed}"


def one(kind: str, seed: int, decoded: Path, keep: bool) -> Outcome:
    """Play and check a session; what it wrote is kept where something is wrong, or `keep`."""
    began_s = time.monotonic()
    planned = scenario(kind, seed)
    place = Path(tempfile.mkdtemp(prefix=f"rtevo-campaign-{kind}-{seed}-"))
    outcome = check(planned, play(planned, place, decoded))
    outcome.seconds = round(time.monotonic() - began_s, 1)
    if outcome.problems or keep:
        print(f"  kept: {place}", flush=True)
    else:
        shutil.rmtree(place)
    return outcome


def line(outcome: Outcome) -> str:
    """One line about a session."""
    counts = f"{outcome.sent} sent = {outcome.received} received + {outcome.missing} missing + {outcome.refused} refused"
    counts += f" + {outcome.doubtful} doubtful" * bool(outcome.doubtful)
    late = f" ({outcome.late} late)" * bool(outcome.late)
    what = f"{outcome.kind} {outcome.seed} [{outcome.transport}; {outcome.words}]"
    return f"{what} {outcome.status} in {outcome.seconds:.0f} s: {counts}{late}"


def table(outcomes: Sequence[Outcome]) -> str:
    """The campaign's figures as Markdown."""
    columns = (
        "sessions",
        "completed",
        "taken up",
        "one sentence",
        "sent",
        "received",
        "of them late",
        "doubtful",
        "missing",
        "refused",
        "failures",
    )
    rows = ["| kind | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    total = [0] * len(columns)
    for kind in KINDS:
        own = [o for o in outcomes if o.kind == kind]
        figures = [
            len(own),
            sum(o.status == "completed" for o in own),
            sum(o.parts > 1 for o in own),
            sum(bool(o.sentence) for o in own),
            *(sum(getattr(o, name) for o in own) for name in ("sent", "received", "late", "doubtful", "missing", "refused")),
            sum(bool(o.problems) for o in own),
        ]
        total = [a + b for a, b in zip(total, figures, strict=True)]
        rows.append(f"| {kind} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join([*rows, "| **all** | " + " | ".join(f"**{n}**" for n in total) + " |"])


def write_page(path: Path, outcomes: Sequence[Outcome], each: int) -> None:
    """Put the figures into a page, between its two marks."""
    begin, end = "<!-- figures -->", "<!-- end of figures -->"
    failed = [f"- `{reproducer(o)}`: {o.problems[0]}" for o in outcomes if o.problems]
    machine = f"{os.cpu_count()} x {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    told = [begin, f"`{COMMAND} --each {each}` on {machine}:", "", table(outcomes), *([""] * bool(failed)), *failed, end]
    text = path.read_text(encoding="utf-8") if path.exists() else f"# The campaign of faults\n\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    path.write_text(before + "\n".join(told) + rest.partition(end)[2], encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = argparse.ArgumentParser(
        prog=COMMAND,
        description="Run short sessions whose deliveries go wrong, whose processes are signalled, whose disks fill up; check each against "
        "the journal of the sender.",
        epilog="Small disks need root (mount); without it sessions with one are left out.",
    )
    p.add_argument("--kind", choices=KINDS, action="append", help="only this kind (may be repeated)")
    p.add_argument("--seed", type=int, metavar="N", help="only the session with this seed; else 0, 1, 2, ...")
    p.add_argument("--each", type=int, default=SESSIONS, metavar="N", help=f"so many sessions of a kind (default: {SESSIONS})")
    p.add_argument("--at-a-time", type=int, default=1, metavar="N", help="so many sessions at a time (default: 1)")
    p.add_argument("--results", type=Path, metavar="FILE", help="outcomes, a line each; a call with the same file goes on from them")
    p.add_argument("--again", action="store_true", help="with --results: play those in which something was wrong once more")
    p.add_argument("--minutes", type=float, default=1e9, metavar="M", help="begin no session after so long")
    p.add_argument("--page", type=Path, metavar="FILE", help="write the table into this page of Markdown (docs/campaign.md)")
    p.add_argument("--keep", action="store_true", help="keep what every session writes")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status: 1 if anything was wrong."""
    options = parser().parse_args(arguments)
    done: dict[tuple[str, int], Outcome] = {}
    if options.results and options.results.exists():
        found = [Outcome(**json.loads(line)) for line in options.results.read_text(encoding="utf-8").splitlines()]
        done = {(o.kind, o.seed): o for o in found}  # the last of each
    kinds = options.kind or KINDS
    seeds = range(options.each) if options.seed is None else [options.seed]
    wanted = [(kind, seed) for seed in seeds for kind in kinds]
    todo = [key for key in wanted if key not in done or (options.again and done[key].problems)]
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="rtevo-campaign-decoder-") as folder, ThreadPoolExecutor(options.at_a_time) as pool:
        decoder(Path(folder))

        def turn(key: tuple[str, int]) -> None:
            if time.monotonic() > deadline:
                return
            try:
                outcome = done[key] = one(*key, Path(folder), options.keep)
            except DiskError as error:
                print(f"{key[0]} {key[1]} is left out: {error}", flush=True)
                return
            if options.results:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
            print(f"{len(done)}/{max(len(wanted), len(done))} {line(outcome)}", flush=True)
            for problem in outcome.problems:
                print(f"  WRONG: {problem}\n  again: {reproducer(outcome)}", flush=True)

        list(pool.map(turn, todo))
    outcomes = [done[key] for key in sorted(done)]
    print(table(outcomes))
    if options.page:
        write_page(options.page, outcomes, options.each)
    return int(any(o.problems for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
