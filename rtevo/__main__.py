"""One command for all of it: ``rtevo``, and ``python -m rtevo``.

Each part has its own command line (``python -m rtevo.decode``) with its own options; exit statuses are in :mod:`rtevo.command`. Only the
part that was named is imported.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rtevo import __version__
from rtevo.command import ASKED, INTERRUPTED, Parser, say, typed_as

__all__ = ["COMMANDS", "WAY", "main"]


class Command(NamedTuple):
    """The command line of a part: the module of its ``main``, and what it does."""

    module: str
    words: str


COMMANDS = {
    "init": Command("rtevo.init", "write a short session file for a scanner, or for a simulated one"),
    "localizer": Command("rtevo.localizer.__main__", "show pictures of known categories, to fit a decoder"),
    "run": Command("rtevo.run", "run a session; check one first (--check), resume one, recompute one"),
    "study": Command("rtevo.study.__main__", "manage participants, visits and arms in one file: what comes next, what counts, unsealing"),
    "ingest": Command("rtevo.ingest.__main__", "list what a scanner has exported; convert a run"),
    "decode": Command("rtevo.decode.__main__", "build decoders, score recorded runs, carry a decoder to today's grid"),
    "latent": Command("rtevo.latent.__main__", "make the latent space that evolution searches"),
    "generate": Command("rtevo.generate.__main__", "download image models and check them"),
    "evolve": Command("rtevo.evolve.__main__", "plan a study's evolution; draw a blinding key"),
    "realign": Command("rtevo.realign.__main__", "align a recorded run to one reference"),
    "report": Command("rtevo.report.__main__", "write a page about a run"),
    "export": Command("rtevo.export.__main__", "write a run as BIDS"),
    "record": Command("rtevo.record.__main__", "rebuild a run's tables from its log"),
    "bridge": Command("rtevo.bridge.__main__", "make the stimulus PC's keys; answer its self-test"),
    "gate": Command("rtevo.gate.__main__", "show which pictures would be kept from the participant"),
    "completion": Command("rtevo.completion", "print the shell code that completes commands, options and file names"),
    "shm": Command("rtevo.shm.__main__", "list rings in shared memory; remove those of dead sessions"),
}
WAY = (
    ("init siemens", "writes a short session file; or ge, philips; simulate: try everything without a scanner"),
    ("ingest EXPORT_DIR", "lists what the scanner exports, and the series that a session would take"),
    ("localizer session.toml --folder PICTURES", "shows pictures of known categories to the participant"),
    ("decode fit RUN_FOLDER", "makes a decoder from that run; for runs from elsewhere: RUN --events E.tsv"),
    ("generate get sd15-lcm --into model", "downloads an image model; generate get alone lists them"),
    ("latent fit PICTURES --model model --out latent.npz", "makes the latent space that evolution searches"),
    ("bridge keys keys", "makes keys for the stimulus PC"),
    ("run --check session.toml", "checks everything before the participant lies down"),
    ("run --console 8080 session.toml", "runs the session, with the operator's page"),
    ("export OUT BIDS_DIR", "writes the session as BIDS; report OUT: a page about it"),
)
"""The steps of an experiment: arguments of ``rtevo``, and what each does."""


OPTIONS = ("-h", "--help", "--version")  # the only ones without a command


def _way(typed: str) -> str:
    """Return the steps of an experiment, one line each, and where to find more."""
    steps = [*WAY, ("--help", "lists all commands; COMMAND --help lists its options")]
    width = max(len(step) for step, _ in steps)
    return "\n".join(f"{typed} {step:{width}}  {words}" for step, words in steps)


def _parser(typed: str) -> Parser:
    """Return the parser of the first argument."""
    parser = Parser(
        prog=typed,
        description="Real-time fMRI closed loop: evolves AI-generated images towards what a participant's brain responds to.",
        epilog=f"{typed} COMMAND --help lists the options of a command; {typed} alone shows the steps of an experiment.",
    )
    parser.add_argument("--version", action="version", version=f"rtevo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, each in COMMANDS.items():
        commands.add_parser(name, help=each.words, add_help=False)
    return parser


def _unknown(name: str, typed: str) -> str:
    """Return the error for an unknown command, with the nearest known one."""
    if name.endswith(".toml"):
        return f"expected a command, got {name!r}; for a session: {typed} run {name}"
    if name.startswith("-"):
        return f"expected a command before {name}; for a session: {typed} run {name} ..."
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"expected a command, got {name!r}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}")


def _half_typed() -> list[str]:
    """Return the arguments before the one to complete, and hand the completion to the command that they name."""
    before = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
    words = before.split()[1 : None if before[-1:].isspace() else -1]
    if words[:1] and words[0] in COMMANDS:
        os.environ[ASKED] = "2"  # its command line begins with the second word
        return words
    return ["--help"]


def main(arguments: Sequence[str] | None = None, typed: str = "rtevo") -> int:
    """Run the command line, and return the exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments of the command; None: those of the process, which then exits with the status.
    typed : str
        The command's name as it was typed, for its help.
    """
    given = _half_typed() if ASKED in os.environ else list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        print(_way(typed))
        return 0
    name, *rest = given
    if name not in COMMANDS:
        parser = _parser(typed)
        if name in OPTIONS:
            parser.parse_args([name])  # exits
        parser.error(_unknown(name, typed))
    if arguments is None:
        sys.argv = [f"{typed} {name}", *rest]
    try:
        with typed_as(f"{typed} "):
            part = importlib.import_module(COMMANDS[name].module)
            return int(part.main(None if arguments is None else rest))
    except KeyboardInterrupt:  # during its import
        say("interrupted")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(typed="python -m rtevo"))
