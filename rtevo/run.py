"""Command line of a session: ``python -m rtevo.run``.

All checks are made before the first process starts (:mod:`rtevo.session.checks`).
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo import __version__
from rtevo.command import FAILED, MISTAKE, Parser, command, finite, say
from rtevo.config import choices, example, is_localizer, load
from rtevo.errors import ConfigError, RtevoError, StageError, full_disk
from rtevo.session.counting import counted, said
from rtevo.session.prepare import attended, prepare
from rtevo.stops import Stops
from rtevo.visit import Following, Succession, run, sit

if TYPE_CHECKING:
    from rtevo.session.plan import Plan

__all__ = ["WAIT_S", "conduct", "main", "run", "speed_of", "wait_of"]

WAIT_S = 30.0  # how long a check of a session waits for the presenter


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = Parser(
        prog="python -m rtevo.run",
        description="Run a closed-loop session: volumes are realigned and scored, latents evolve, images are painted and shown. "
        "With no argument, a simulated participant lies in a simulated scanner.",
        epilog="Ctrl-C ends a session properly: everything shown so far is saved.",
    )
    p.add_argument("session", nargs="?", type=Path, metavar="SESSION.toml", help="session file (see --example); options override it")
    p.add_argument("--replay", metavar="DIR", help="deliver a recorded DICOM series at its own pace, along the same path as a scanner's")
    p.add_argument("--decoder", metavar="DIR", help="decoder folder")
    p.add_argument("--participant", metavar="LABEL", help="BIDS label of the participant (default: the session file's, or sim)")
    p.add_argument("--session", dest="label", metavar="LABEL", help="BIDS label of the session (default: the session file's, or 01)")
    p.add_argument("--run", type=int, metavar="N", help="number of the run (default: one more than the last in sessions/)")
    p.add_argument(
        "--out",
        metavar="DIR",
        help="output folder, must not exist yet (default: sessions/sub-02_ses-01_run-01; of participant sim: DATE-N)",
    )
    p.add_argument("--condition", choices=choices("session", "condition"), help="what drives evolution")
    p.add_argument("--strategy", choices=choices("evolution", "strategy"), help="how scores become the next latents")
    p.add_argument(
        "--schedule",
        choices=choices("evolution", "schedule"),
        help="request images one by one, or whole generations that wait for all scores",
    )
    p.add_argument("--yoked-to", metavar="DIR", help="condition yoked: the session whose scores are used")
    p.add_argument("--evolution-from", metavar="DIR", help="continue the evolution of an earlier session")
    p.add_argument(
        "--resume",
        type=Path,
        metavar="OUT",
        help="resume an interrupted session in its own folder, at the first image that was not shown; restart the scanner's run for it",
    )
    p.add_argument(
        "--rerun",
        type=Path,
        metavar="OUT",
        help="no session: recompute a recorded one from its volumes and events, into a new folder, and compare the results; the keys of a "
        "session file and options change settings",
    )
    p.add_argument("--rebaseline", action="store_true", help="with --resume: the decoder starts afresh, without what it had learnt")
    p.add_argument("--generations", type=int, metavar="N", help="generations in the run")
    p.add_argument("--population", type=int, metavar="N", help="images in a generation")
    p.add_argument("--prefers", metavar="CONCEPT", help="what the simulated participant likes: spider, fruit...; list: all names")
    p.add_argument("--seed", type=int, metavar="N", help="the same seed and input give the same session")
    p.add_argument(
        "--speed",
        type=speed_of,
        metavar="X|max",
        help="time runs X times faster (simulate and replay); max: as fast as the computer allows",
    )
    p.add_argument(
        "--check",
        action="store_true",
        help="no session: check everything before the participant lies down (files, scanner, decoder, model and its speed, disk, shared "
        "memory, presenter), and list what to do; exit status 0 if no check fails, else 1",
    )
    p.add_argument(
        "--sample", type=Path, metavar="PATH", help="with --check: a volume of the same protocol (DICOM or NIfTI; file or folder)"
    )
    p.add_argument("--wait", type=wait_of, metavar="S", help="with --check: how long to wait for the presenter, s (default: 30)")
    p.add_argument("--json", action="store_true", help="with --check: print JSON")
    p.add_argument(
        "--console",
        nargs="?",
        const=8080,
        type=int,
        metavar="PORT",
        help="serve the operator's page in a browser, at 127.0.0.1 and this port (default: 8080); the session begins when Start is pressed",
    )
    p.add_argument(
        "--visit",
        nargs="?",
        const=0,
        type=_runs,
        metavar="N",
        help="several runs in one visit: after each run the console or the terminal offers the next run, a repetition, or the end; with no "
        "operator, N runs follow each other. Each run continues where the last one ended",
    )
    p.add_argument("--example", action="store_true", help="print a commented session file and exit")
    p.add_argument("--version", action="version", version=f"rtevo {__version__}")
    return p


def wait_of(text: str) -> float:
    """Read a waiting time, s."""
    if (wait_s := finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return wait_s


def _runs(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"expected a number of runs, 1 to 1000, got {text!r}")
    return int(text)


def speed_of(text: str) -> float:
    """Read the speed of time; max: 0, as fast as the computer allows."""
    if text == "max":
        return 0.0
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not 0 < speed < 1e4:
        raise argparse.ArgumentTypeError(f"expected a number > 0 or max, got {text!r}")
    return speed


def _overrides(options: argparse.Namespace) -> dict[tuple[str, str], Any]:
    given = {
        ("acquisition", "folder"): options.replay,
        ("acquisition", "source"): "replay" if options.replay is not None else None,
        ("decoder", "folder"): options.decoder,
        ("record", "out"): options.out,
        ("session", "participant"): options.participant,
        ("session", "session"): options.label,
        ("session", "run"): options.run,
        ("session", "condition"): options.condition,
        ("session", "seed"): options.seed,
        ("session", "speed"): options.speed,
        ("simulation", "prefers"): options.prefers,
        ("evolution", "strategy"): options.strategy,
        ("evolution", "schedule"): options.schedule,
        ("evolution", "yoked_to"): options.yoked_to,
        ("evolution", "continue_from"): options.evolution_from,
        ("evolution", "generations"): options.generations,
        ("evolution", "population"): options.population,
        ("console", "port"): options.console,
    }
    return {key: value for key, value in given.items() if value is not None}


def _forget(plan: Plan | None) -> str:
    """Remove the files of a session that never began, and return a sentence about what is left; a resumed session's files are kept."""
    if plan is not None:
        shutil.rmtree(plan.runtime, ignore_errors=True)
        if plan.part or (plan.out / "summary.json").exists():
            return f"rtevo: stopped before the session was resumed; earlier records are in {plan.out}"
        shutil.rmtree(plan.out, ignore_errors=True)
    return "rtevo: stopped before the session began: nothing was recorded"


def _explain(error: RtevoError, out: Path | None) -> str:
    lines = [f"rtevo: {line}" for line in str(error).splitlines()] if isinstance(error, ConfigError) else [f"rtevo: {error}"]
    if out is not None and (out / "summary.json").exists():
        lines.append(f"rtevo: the data recorded until then are in {out}")
    return "\n".join(lines)


def _plan(options: argparse.Namespace) -> Plan:
    """Prepare the session that the options describe.

    Raises
    ------
    RtevoError
        For any mistake, before a process has started.
    """
    overrides = _overrides(options)
    if options.resume is None:
        if options.rebaseline:
            raise ConfigError("--rebaseline: expected together with --resume")
        config = counted(load(options.session, overrides), fixed=options.run is not None)
        if options.visit is not None and is_localizer(config):
            raise ConfigError("--visit: expected a session in which images evolve, got a localizer: start each run by its own command")
        if options.visit == 0 and not attended(config):
            raise ConfigError("--visit: expected the number of runs, because nobody is at the console or the terminal; got none")
        if words := said(config):
            print(f"rtevo: {words}", file=sys.stderr)
        return prepare(config, options.session)
    if options.session is not None or overrides:
        raise ConfigError(f"--resume {options.resume}: expected no other option or file: all settings come from its folder")
    from rtevo.past.resume import resume

    print(f"rtevo: reading {options.resume}", file=sys.stderr)
    plan, words = resume(options.resume, options.rebaseline)
    print(f"rtevo: resuming {plan.out}, part {plan.part + 1}, from {words}", file=sys.stderr)
    return plan


def _rerun(options: argparse.Namespace) -> int:
    """Recompute a session, and print the comparison."""
    from rtevo.config import overrides_of
    from rtevo.past.rerun import rerun
    from rtevo.record import taken_over

    out: Path = options.rerun.resolve()
    recorded = load(out / "session.toml", taken := taken_over(out))
    changes = {**taken, **(overrides_of(options.session) if options.session else {}), **_overrides(options)}
    into = Path(changes.pop(("record", "out"), "") or _free(out))
    if into.exists():
        raise ConfigError(f"--out: expected a folder that does not exist yet, got {str(into)!r}: rtevo overwrites nothing")
    result = rerun(out, recorded, load(out / "session.toml", changes), into)
    print("\n".join(["changed: " + (", ".join(result["changed"]) or "nothing"), *_words(result), f"results: {into}"]))
    return 0


def _free(out: Path) -> Path:
    """Return the first folder name beside the session's that is free."""
    return next(path for k in range(1, 10**6) if not (path := out.with_name(f"{out.name}-rerun-{k}")).exists())


def _words(result: dict[str, Any]) -> list[str]:
    selected, rank, versions = result["selected"], result["rank_correlation"], result["rtevo"]
    others = [version for version in versions["recorded"] if version != versions["now"]]
    made = [f"recorded by rtevo {' and '.join(others)}, computed by {versions['now']}: a comparison, not a bit-for-bit repetition"]
    scores = "identical" if result["scores_identical"] else f"rank correlation {'-' if rank is None else rank} with the recorded ones"
    return [
        *(made if others else []),
        f"scores: {scores} ({result['scored']} of {result['images']} images)",
        f"latents requested: {'identical' if result['latents_identical'] else 'different'}",
        f"better halves of the generations: {selected['both']} images in both, {selected['recorded']} as recorded, {selected['now']} now",
        f"fittest image: {result['fittest']['recorded']} as recorded, {result['fittest']['now']} now",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status: 0 completed or stopped by the user, 1 failed, 2 not started, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments of the command; None: those of the process, which then exits, so that no later signal changes the exit status.
    """
    options = parser().parse_args(arguments)
    with Stops(leaving=arguments is None) as stops:
        return _main(options, stops)


def _main(options: argparse.Namespace, stops: Stops) -> int:
    if options.example:
        return command(lambda: print(example(), end=""))
    if options.prefers == "list":
        from rtevo.simulate import concepts

        return command(lambda: print("\n".join(concepts())))
    logging.basicConfig(level=logging.WARNING)
    if options.check:
        from rtevo.preflight import main as check

        wait_s = WAIT_S if options.wait is None else options.wait
        return command(lambda: check(options.session, _overrides(options), options.sample, wait_s, options.json))
    if given := [name for name in ("sample", "wait", "json") if getattr(options, name) not in (None, False)]:
        say(ConfigError([f"--{name}: expected only with --check" for name in given]))
        return MISTAKE
    if options.rerun is not None:
        if options.visit is not None:
            say("--visit: expected without --rerun, which recomputes one recorded session")
            return MISTAKE
        return command(lambda: _rerun(options))
    runs = options.visit
    return conduct(lambda: _plan(options), stops, None if runs is None else lambda plan: Succession(plan, runs))


def conduct(make: Callable[[], Plan], stops: Stops, follow: Callable[[Plan], Following] | None = None) -> int:
    """Run the session that `make` prepares, or a visit that begins with it; print how it ended, and return the exit status.

    Parameters
    ----------
    make : callable
        Returns the session's plan.
    stops : Stops
        The signals that end it; already entered.
    follow : callable, optional
        For a visit: takes the plan, and returns the callback that chooses the following run.
    """
    plan: Plan | None = None
    try:
        plan = make()
        if follow is not None:
            return _visit(plan, stops, follow(plan))
        summary = run(plan, stops)
    except RtevoError as error:
        print(_explain(error, plan.out if plan else None), file=sys.stderr)
        return 1 if plan else 2
    except OSError as error:
        full = full_disk(error, *([plan.out] if plan else []))
        if not full and (plan or not error.filename):
            raise
        say(full or f"{error.filename}: {error.strerror}")
        return FAILED if plan else MISTAKE
    except KeyboardInterrupt:
        print(_forget(plan), file=sys.stderr)
        return 130
    from rtevo.console import closing_words

    closing_words(summary, plan.out)
    return _status(summary)


def _visit(plan: Plan, stops: Stops, following: Following) -> int:
    """Run a visit, and return the exit status of its last run."""
    try:
        return _status(sit(plan, stops, following))
    except StageError:  # printed when the run ended
        return FAILED


def _status(summary: dict[str, Any]) -> int:
    """Return the exit status of a session that completed; print a sentence if its images have no scores."""
    if summary["status"] != "unscored":
        return 0
    why = "no usable volumes arrived, or too few to see a response"
    print(f"rtevo: the images that were shown could not be scored: {why}; see the warnings", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
