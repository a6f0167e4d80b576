"""The table of how each kind of run is started."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rtevo.command import MISTAKE
from rtevo.config import load
from rtevo.errors import StudyError
from rtevo.study.loading import Planned, Study

if TYPE_CHECKING:
    from rtevo.visit import Following

__all__ = ["STARTED", "Started", "fit_arguments", "main_of", "sit"]


class Started(NamedTuple):
    """How a kind of run is started: the module of its ``main``, and a description."""

    module: str
    words: str


STARTED = {
    "scout": Started("rtevo.localizer.__main__", "known pictures are shown, without making a decoder"),
    "localizer": Started("rtevo.localizer.__main__", "known pictures are shown"),
    "fit": Started("rtevo.decode.__main__", "a decoder is made from the localizers"),
    "loop": Started("rtevo.run", "images evolve"),
    "ratings": Started("rtevo.run", "images evolve by the participant's ratings"),
}
RESUMES = "rtevo.run"  # resumes a run of any kind with a log


def main_of(name: str) -> Callable[[Sequence[str]], int]:
    """Return the function that starts a kind of run: it takes the command's arguments, and returns the exit status."""

    def start(arguments: Sequence[str]) -> int:
        try:
            return int(importlib.import_module(name).main(list(arguments)))
        except SystemExit as left:  # of a parser, which has printed the reason
            return left.code if isinstance(left.code, int) else MISTAKE

    return start


def sit(file: Path, follow: Following) -> int:
    """Run a session file, and the runs that follow in the same visit; return the exit status of the last run.

    Parameters
    ----------
    file : Path
    follow : Following
        See :data:`rtevo.visit.Following`.
    """
    from rtevo.run import conduct
    from rtevo.session.prepare import prepare
    from rtevo.stops import Stops

    with Stops() as stops:
        return conduct(lambda: prepare(load(file), file), stops, lambda plan: follow)


def fit_arguments(study: Study, planned: Planned, into: Path) -> list[str]:
    """Return the arguments of `rtevo decode` that make a participant's decoder from the localizers that count so far.

    Parameters
    ----------
    study : Study
    planned : Planned
        The fit.
    into : Path
        The decoder's folder, which does not exist yet.

    Raises
    ------
    StudyError
        No localizer counts.
    """
    own = [a for a in study.attempts if a.participant == planned.participant and a.kind == "localizer" and a.counts]
    if not own:
        raise StudyError(f"{planned}: expected a counting localizer of the participant, found none")
    target = ["--target", study.file.fit.target] if study.file.fit.target else []
    return ["fit", *(str(study.folder / a.folder) for a in own), *target, "--out", str(into)]
