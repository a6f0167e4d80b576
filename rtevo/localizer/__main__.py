"""Command line of a localizer: ``rtevo localizer``, and ``python -m rtevo.localizer``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rtevo.command import Parser, command
from rtevo.config import choices, load
from rtevo.run import WAIT_S, conduct, speed_of, wait_of
from rtevo.session.counting import counted, said
from rtevo.session.localizer import said_of
from rtevo.session.plan import Plan
from rtevo.session.prepare import prepare
from rtevo.stops import Stops

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m rtevo.localizer",
        description="Show a folder of pictures, a subfolder for each category, in blocks or singly, with a task, and record the volumes: "
        "`rtevo decode fit RUN_FOLDER` makes a decoder from the run. Without a folder, a simulated participant sees a small built-in set.",
        epilog="Ctrl-C ends a run properly: the images shown so far can be fitted.",
    )
    p.add_argument(
        "session", nargs="?", type=Path, metavar="SESSION.toml", help="session file, with [localizer] in it; options override it"
    )
    p.add_argument("--folder", metavar="PICTURES", help="folder of pictures, a subfolder for each category, all of one size")
    p.add_argument("--design", choices=choices("localizer", "design"), help="blocks of one category, or single pictures")
    p.add_argument("--task", choices=choices("localizer", "task"), help="the participant's task")
    p.add_argument("--repetitions", type=int, metavar="N", help="blocks of each category")
    p.add_argument("--participant", metavar="LABEL", help="BIDS label of the participant (default: the session file's, or sim)")
    p.add_argument("--session", dest="label", metavar="LABEL", help="BIDS label of the session (default: the session file's, or 01)")
    p.add_argument("--run", type=int, metavar="N", help="number of the run (default: one more than the last in sessions/)")
    p.add_argument("--out", metavar="DIR", help="output folder, must not exist yet (default: sessions/sub-02_ses-01_task-localizer_run-01)")
    p.add_argument("--seed", type=int, metavar="N", help="seed of the order")
    p.add_argument(
        "--speed", type=speed_of, metavar="X|max", help="time runs X times faster (simulate); max: as fast as the computer allows"
    )
    p.add_argument("--check", action="store_true", help="no run: check everything before the participant lies down")
    p.add_argument(
        "--wait", type=wait_of, metavar="S", default=WAIT_S, help="with --check: how long to wait for the presenter, s (default: 30)"
    )
    p.add_argument("--json", action="store_true", help="with --check: print JSON")
    p.add_argument(
        "--console",
        nargs="?",
        const=8080,
        type=int,
        metavar="PORT",
        help="serve the operator's page in a browser; the run begins with Start",
    )
    return p


def _overrides(options: argparse.Namespace) -> dict[tuple[str, str], Any]:
    given = {
        ("session", "task"): "localizer",
        ("localizer", "folder"): options.folder,
        ("localizer", "design"): options.design,
        ("localizer", "task"): options.task,
        ("localizer", "repetitions"): options.repetitions,
        ("record", "out"): options.out,
        ("session", "participant"): options.participant,
        ("session", "session"): options.label,
        ("session", "run"): options.run,
        ("session", "seed"): options.seed,
        ("session", "speed"): options.speed,
        ("console", "port"): options.console,
    }
    return {key: value for key, value in given.items() if value is not None}


def _plan(options: argparse.Namespace) -> Plan:
    """Prepare the run, and print its number and duration."""
    config = counted(load(options.session, _overrides(options)), fixed=options.run is not None)
    if words := said(config):
        print(f"rtevo: {words}", file=sys.stderr)
    plan = prepare(config, options.session)
    print(f"rtevo: {said_of(plan.trials, plan.config, plan.tr_s)}", file=sys.stderr)
    return plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status, as for ``rtevo.run``.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments of the command; None: those of the process, which then exits, so that no later signal changes the exit status.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    with Stops(leaving=arguments is None) as stops:
        if options.check:
            from rtevo.preflight import main as check

            return command(lambda: check(options.session, _overrides(options), None, options.wait, options.json))
        return conduct(lambda: _plan(options), stops)


if __name__ == "__main__":
    sys.exit(main())
