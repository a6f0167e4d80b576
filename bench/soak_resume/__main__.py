"""Sessions that are killed again and again: ``python -m bench.soak_resume --kills 100``.

Each is resumed until it is completed, and then everything that it has recorded is checked (:mod:`tests.support.killed`). With
``--keep FILE`` outcomes are written as they come, and a later call goes on from them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tests.support.killed import KINDS, Outcome, play


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status: 1 where anything was wrong."""
    p = argparse.ArgumentParser(
        prog="python -m bench.soak_resume", description="Kill simulated sessions at random moments and resume them."
    )
    p.add_argument("--kills", type=int, default=100, metavar="N", help="so many in all (default: 100)")
    p.add_argument("--seed", type=int, default=1, metavar="N")
    p.add_argument("--minutes", type=float, default=1e9, metavar="M", help="begin no session after so long")
    p.add_argument("--keep", type=Path, metavar="FILE", help="outcomes, a line each; a call with the same file goes on from them")
    options = p.parse_args(arguments)
    outcomes: list[Outcome] = []
    if options.keep and options.keep.exists():
        outcomes = [Outcome(**json.loads(line)) for line in options.keep.read_text().splitlines()]
    began = time.monotonic()
    while (done := sum(len(o.kills) for o in outcomes)) < options.kills and time.monotonic() < began + 60 * options.minutes:
        number = len(outcomes)
        rng = np.random.default_rng([options.seed, number])
        kills = min(options.kills - done, int(rng.integers(3, 9)))
        place = Path(tempfile.mkdtemp(prefix="rtevo-soak-"))
        outcome = play(number, KINDS[number % len(KINDS)], kills, rng, place)
        outcomes.append(outcome)
        if options.keep:
            with options.keep.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        found = "; ".join(outcome.problems) or "all there, once"
        print(f"session {number} {outcome.kind or ''}: kills {', '.join(outcome.kills) or '-'}; {found}", flush=True)
        if outcome.problems:
            print(f"  kept: {place}", flush=True)
        else:
            shutil.rmtree(place)
    where = Counter(kill for o in outcomes for kill in o.kills)
    bad = sum(bool(o.problems) for o in outcomes)
    print(f"{sum(where.values())} kills in {len(outcomes)} sessions ({', '.join(f'{n} {what}' for what, n in where.items())})")
    lost, torn = (sum(getattr(o, name) for o in outcomes) for name in ("records_lost", "torn"))
    print(f"records lost {lost}, cut short {torn}, sessions with anything wrong {bad}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
