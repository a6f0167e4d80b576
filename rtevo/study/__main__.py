"""Command line of studies: ``rtevo study new | status | next | override | report | plan | export | unseal``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rtevo.command import Parser, command, say
from rtevo.errors import StudyError
from rtevo.study.file import FILE
from rtevo.study.ledger import Attempt, append
from rtevo.study.loading import Planned, Study, folder_of, load
from rtevo.study.next import choices_of, following_run, waits_for

__all__ = ["main"]

ELSEWHERE = {  # commands with their own command lines
    "report": ("rtevo.study.report", "write a page about the study"),
    "plan": ("rtevo.study.power", "how many participants and runs a study needs, by simulation"),
}
OVERRIDES = {
    "fit": "loops may use a fit that failed",
    "identity": "the scanner's PatientID and study date are not checked",
    "counts": "the last run counts, whatever the rules say",
    "left": "the participant has left the study: no other participant waits for this one",
}


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = Parser(prog="python -m rtevo.study", description="Run a study: its arms are drawn and sealed once, and stay hidden until the end.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="write a study file; if it exists: draw and seal the study")
    new.add_argument("folder", type=Path, metavar="FOLDER", help="the study's folder")
    status = commands.add_parser("status", help="show the runs of each participant, which count, and what comes next")
    nxt = commands.add_parser("next", help="start the participant's next run, with all settings filled in")
    nxt.add_argument("participant", metavar="PARTICIPANT", help="label")
    what = nxt.add_mutually_exclusive_group()
    what.add_argument("--resume", dest="choice", action="store_const", const="resume", help="resume a run that did not complete")
    what.add_argument(
        "--again", nargs="?", const=0, type=int, metavar="RUN", help="repeat a run of the latest visit (default: the last run)"
    )
    what.add_argument("--on", dest="choice", action="store_const", const="on", help="continue without a run that did not complete")
    over = commands.add_parser("override", help="sign for an exception to the study's rules; the ledger records it")
    over.add_argument("participant", metavar="PARTICIPANT", help="label")
    over.add_argument("--what", required=True, choices=OVERRIDES, help="; ".join(f"{name}: {words}" for name, words in OVERRIDES.items()))
    export = commands.add_parser("export", help="write the study as one BIDS data set, and validate it")
    export.add_argument("bids", type=Path, metavar="BIDS_DIR", help="new or empty folder")
    unsealing = commands.add_parser("unseal", help="open the arms permanently; the ledger records who did it, when and why")
    for each in (over, unsealing):
        each.add_argument("--by", required=True, metavar="NAME", help="who signs")
        each.add_argument("--why", required=True, metavar="TEXT", help="reason")
    for each in (status, nxt, over, export, unsealing):
        each.add_argument("--study", type=Path, metavar="FOLDER", help="the study's folder (default: the current one, or one above it)")
    for name, (_, words) in ELSEWHERE.items():
        commands.add_parser(name, help=words, add_help=False)
    return p


def _new(options: argparse.Namespace) -> None:
    from rtevo.study.new import new

    made = new(options.folder)
    if made is None:
        print(f"{options.folder / FILE}: edit this file; then `rtevo study new {options.folder}` draws and seals the study")
        return
    who = made.participants
    print(f"{options.folder}: drawn and sealed for {len(who)} participants; begin with `rtevo study next {who[0]}`")
    if not made.file.study.probe_every:
        say("there are no probes ([study] probe_every = 0): the absolute gain across runs will not be identified")
    print(f"keep {made.file.path(made.file.study.secret)} where the operators do not look, and a copy of it elsewhere")


def _status(options: argparse.Namespace) -> None:
    print("\n".join(status_lines(load(folder_of(options.study)))))


def status_lines(study: Study) -> list[str]:
    """Return lines about the participants' runs; with arms if the study is unsealed."""
    arms = study.arms() if study.unsealed else {}
    lines = [f"{study.file.study.name}: {'unsealed' if arms else 'sealed'}, drawn on {study.drawn['at']}"]
    for who in study.participants:
        lines.append(f"\nparticipant {who}" + (f" ({arms[who]})" if arms else "") + (": has left" if study.left(who) else ""))
        for planned in study.planned(who):
            tried = study.tried(planned.slot)
            state = study.state(planned) if not tried or study.state(planned) == "passed over" else ""
            lines.append(f"  visit {planned.visit.label} run {planned.number} {planned.kind:10} {state}".rstrip())
            lines += [f"    {a.folder}: {a.status}, " + ("counts" if a.counts else f"does not count: {_why(a)}") for a in tried]
        if (coming := study.following(who)) is not None:
            waiting = waits_for(study, coming)
            words = f", waits for {', '.join(waiting)}" if waiting else ""
            lines.append(f"  next: visit {coming.visit.label} run {coming.number} ({coming.kind}){words}")
    return lines


def _why(attempt: Attempt) -> str:
    return attempt.excluded or "it was interrupted, or still runs"


def _next(options: argparse.Namespace) -> int:
    def ask(planned: Planned, last: Attempt) -> str:
        if options.choice:
            return str(options.choice)
        choices = choices_of(planned)
        ways = "; ".join(f"--{choice}: {words}" for choice, words in choices.items())
        if sys.stdin is None or not sys.stdin.isatty():
            raise StudyError(f"{planned}: {last.folder} did not complete ({last.status}): choose what to do ({ways})")
        letters = {choice[0]: choice for choice in choices}
        print(f"{planned}: {last.folder} did not complete ({last.status}).")
        answer = ""
        while answer not in letters:
            print("; ".join(f"{choice[0]}: {words}" for choice, words in choices.items()) + " > ", end="", flush=True)
            if not (line := sys.stdin.readline()):
                raise KeyboardInterrupt
            answer = line.strip().lower()[:1]
        return letters[answer]

    return following_run(folder_of(options.study), options.participant, options.again, ask, lambda text: print(text, flush=True))


def _override(options: argparse.Namespace) -> None:
    study = load(folder_of(options.study))
    study.planned(options.participant)
    own = [attempt for attempt in study.attempts if attempt.participant == options.participant]
    if options.what == "counts" and not own:
        raise StudyError(f"participant {options.participant}: expected a run that may count, found none")
    last = {"folder": own[-1].folder} if options.what == "counts" else {}
    fields = {"participant": options.participant, "what": options.what, "by": options.by, "why": options.why}
    append(study.folder, "override", **fields, **last)
    print(f"participant {options.participant}: {OVERRIDES[options.what]}; signed by {options.by}")


def _export(options: argparse.Namespace) -> None:
    from rtevo.study.export import export_study, validated

    study = load(folder_of(options.study))
    for why in export_study(study, options.bids):
        say(why)
    print(f"{options.bids}: {validated(options.bids)}")


def _unseal(options: argparse.Namespace) -> None:
    from rtevo.study.unseal import unseal

    study = unseal(folder_of(options.study), options.by, options.why)
    print("\n".join(f"participant {who}: {arm}" for who, arm in study.arms().items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in ELSEWHERE:
        return int(importlib.import_module(ELSEWHERE[given[0]][0]).main(given[1:]))
    options = parser().parse_args(given)
    work = {"new": _new, "status": _status, "next": _next, "override": _override, "export": _export, "unseal": _unseal}
    return command(lambda: work[options.command](options))


if __name__ == "__main__":
    sys.exit(main())
