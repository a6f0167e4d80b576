"""What comes next for a participant: the run is started with everything filled in, and how it ended is written into the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from rtevo import __version__
from rtevo.command import INTERRUPTED, MISTAKE
from rtevo.config import Config, load
from rtevo.errors import StudyError
from rtevo.record import DECODER_BEFORE, LOG, RecordedSession, hold
from rtevo.session.prepare import attended
from rtevo.session.takeover import STATE
from rtevo.study.counting import excluded, figures_of, fit_figures, fit_refused
from rtevo.study.file import SHOWING
from rtevo.study.ledger import Attempt, append
from rtevo.study.loading import Planned, Study
from rtevo.study.settings import write_session
from rtevo.study.start import RESUMES, STARTED, fit_arguments, main_of, sit

__all__ = ["Ask", "begin", "choices_of", "close", "following", "following_run", "waits_for"]

CHOICES = {"resume": "go on with it where it stopped", "again": "repeat it", "on": "go on without it"}
BROKEN = {
    "stopped": "it was stopped",
    "failed": "it failed",
    "unscored": "its images could not be scored",
    "unfinished": "it was interrupted",
}
Ask = Callable[[Planned, Attempt], str]


def waits_for(study: Study, planned: Planned) -> list[str]:
    """Return the participants of earlier blocks whose same run has to be over first; nobody where no arm needs another's scores.

    It is the same for all arms, so that waiting says nothing of them.
    """
    if planned.kind != "loop" or "yoked" not in study.file.study.arms:
        return []
    own = next(number for number, block in enumerate(study.blocks) if planned.participant in block)
    earlier = [who for block in study.blocks[:own] for who in block]
    return [who for who in earlier if not study.settled(replace(planned, participant=who))]


def choices_of(planned: Planned) -> dict[str, str]:
    """Return what can be done about a run that was interrupted, stopped or failed; only where images evolve it can go on."""
    return {choice: words for choice, words in CHOICES.items() if choice != "resume" or planned.kind in SHOWING}


def begin(study: Study, planned: Planned) -> tuple[Attempt, list[str]]:
    """Write a run's session file, and into the ledger that it begins.

    Returns
    -------
    attempt : Attempt
    arguments : list of str
        Of the command that runs it.

    Raises
    ------
    RtevoError
        It cannot begin; the ledger is as it was.
    """
    if waiting := waits_for(study, planned):
        raise StudyError(f"{planned}: waits until this run of earlier participants is over: {', '.join(waiting)}")
    who, visit = planned.participant, planned.visit.label
    number, out = _free(study, planned)
    if planned.kind == "fit":
        arguments, digest = fit_arguments(study, planned, out), ""
        out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        file = write_session(study, planned, number, out)
        arguments, digest = [str(file)], hashlib.sha256(file.read_bytes()).hexdigest()
    attempt = Attempt(who, visit, planned.number, number, planned.kind, str(out.relative_to(study.folder)))
    fields = {"participant": who, "visit": visit, "planned": planned.number, "run": number, "kind": planned.kind}
    append(study.folder, "began", **fields, folder=attempt.folder, session_sha256=digest, rtevo=__version__)
    return attempt, arguments


def _free(study: Study, planned: Planned) -> tuple[int, Path]:
    """Return number and folder of a run: those of the plan, or the first after all others that are not there yet."""
    taken = {attempt.run for attempt in study.attempts if (attempt.participant, attempt.visit) == planned.slot[:2]}
    name = "decoder" if planned.kind == "fit" else "run"
    folder = study.folder / f"sub-{planned.participant}" / f"ses-{planned.visit.label}"
    for number in chain([planned.number], count(max([*taken, len(planned.visit.runs)]) + 1)):
        if number not in taken and not (folder / f"{name}-{number:02d}").exists():
            return number, folder / f"{name}-{number:02d}"
    raise AssertionError


def close(study: Study, attempt: Attempt, failed: bool = False) -> Attempt:
    """Write into the ledger how a run ended, and whether it counts by the study file's rules.

    Parameters
    ----------
    study : Study
    attempt : Attempt
    failed : bool
        A fit: whether it was not made.
    """
    folder, figures = study.folder / attempt.folder, None
    if attempt.kind == "fit":
        status = "failed" if failed or not folder.is_dir() else "completed"
        figures = fit_figures(folder, _goal(study, attempt)) if status == "completed" else None
        why = fit_refused(study.file.fit, figures) if figures else ""
    elif not (folder / LOG).exists():
        status, why = "not begun", ""
    else:
        session = RecordedSession(folder, damaged=True)
        status, figures = session.status, figures_of(session.summary)
        why = excluded(study.file.exclusion, figures, attempt.kind)
    if status not in ("completed", "not begun"):
        why = BROKEN.get(status, f"it is {status}")
    counts = status == "completed" and not why
    append(study.folder, "ended", folder=attempt.folder, status=status, counts=counts, excluded=why, figures=figures)
    return replace(attempt, status=status, counts=counts, excluded=why, figures=figures)


def _goal(study: Study, attempt: Attempt) -> str:
    """Return the objective that a fit's maps have to serve; empty where the fit has one target."""
    visit = next(visit for visit in study.file.visits if visit.label == attempt.visit)
    return "" if study.file.fit.target else study.objective(attempt.participant, visit)


def following_run(folder: Path, participant: str, again: int | None, ask: Ask, tell: Callable[[str], None]) -> int:
    """Start what comes next for a participant; gives the exit status of its command.

    Parameters
    ----------
    folder : Path
        The study's.
    participant : str
    again : int or None
        Repeat this run of the latest visit; 0: the last one that was begun.
    ask : callable
        What to do about a run that did not come to its end: one of its :func:`choices_of`.
    tell : callable
        Is told what happens.

    Raises
    ------
    RtevoError
        Nothing was begun.
    """
    study = Study(folder)
    study.planned(participant)
    own = study.folder / f"sub-{participant}"
    own.mkdir(mode=0o700, exist_ok=True)
    with hold(own):
        study = _settled(study, participant)
        planned, last = (_repeated(study, participant, again), None) if again is not None else _chosen(study, participant, ask)
        if last is not None:
            tell(f"{planned}: goes on in {last.folder}")
            append(study.folder, "resumed", folder=last.folder)
            status = main_of(RESUMES)(["--resume", str(study.folder / last.folder)])
            ended = [close(study, last)]
        else:
            last, arguments = begin(study, planned)
            tell(f"{planned}: {last.folder}")
            if planned.kind in SHOWING and attended(load(Path(arguments[0]))):
                status = sit(Path(arguments[0]), following(folder, participant))
                known = {attempt.folder for attempt in study.attempts}
                ended = [attempt for attempt in _settled(Study(folder), participant).attempts if attempt.folder not in known]
            else:
                status = main_of(STARTED[planned.kind].module)(arguments)
                ended = [close(study, last, failed=status != 0)]
    plan = {each.slot: each for each in study.planned(participant)}
    for one in ended:
        if one.status != "not begun":
            tell(f"{plan[one.slot]}: {one.status}, " + ("counts" if one.counts else f"does not count: {one.excluded}"))
    coming = Study(folder).following(participant)
    tell(f"next: {coming}" if coming else f"participant {participant} has done all runs")
    done = bool(ended) and ended[-1].status == "completed"
    return status if status in (MISTAKE, INTERRUPTED) or not done else 0


def _settled(study: Study, participant: str) -> Study:
    """Write into the ledger how runs ended that ended without its knowledge; returns the study as it stands then."""
    for attempt in study.attempts:
        log = study.folder / attempt.folder / LOG
        if attempt.participant != participant or attempt.status == "completed":
            continue
        if attempt.kind == "fit" or not log.exists():
            news = attempt.status == "begun"
        else:
            news = RecordedSession(log.parent, damaged=True).status not in ("unfinished", attempt.status)
        if news:
            close(study, attempt, failed=attempt.kind == "fit")  # it was killed, and its folder may hold a part of the maps
    return Study(study.folder)


def _repeated(study: Study, participant: str, again: int) -> Planned:
    """Return the run that is to be repeated."""
    own = [attempt for attempt in study.attempts if attempt.participant == participant]
    if not own:
        raise StudyError(f"participant {participant}: expected a run to repeat, none was begun")
    slot = (participant, own[-1].visit, again or own[-1].planned)
    found = next((planned for planned in study.planned(participant) if planned.slot == slot), None)
    if found is None:
        raise StudyError(f"--again {again}: expected the number of a run of visit {own[-1].visit}")
    return found


def _chosen(study: Study, participant: str, ask: Ask) -> tuple[Planned, Attempt | None]:
    """Return the next run, and the attempt of it that goes on; None: it begins anew."""
    while (planned := study.following(participant)) is not None:
        tried = study.tried(planned.slot)
        if not tried:
            return planned, None
        choice = ask(planned, tried[-1])
        if choice not in (ways := choices_of(planned)):
            said = "; ".join(f"--{way}: {words}" for way, words in ways.items())
            raise StudyError(f"{planned}: --{choice}: expected a run in which images evolve, no other goes on: say what to do ({said})")
        if choice != "on":
            return planned, tried[-1] if choice == "resume" else None
        append(study.folder, "passed_over", participant=participant, visit=planned.visit.label, planned=planned.number)
        study = Study(study.folder)
    why = "has left the study" if study.left(participant) else "has done all runs of the study"
    raise StudyError(f"participant {participant} {why}")


def following(folder: Path, participant: str) -> Callable[[Path, Mapping[str, Any], str], Config | None]:
    """Return what says which run follows in one sitting: takes a finished run's folder, its summary and the operator's choice.

    The choice is ``next``, ``again`` or ``end``. What it returns is the settings of the next run of the same visit, which the ledger then
    has as begun; None where there is none, or it is of another kind, waits for others, or is for another day.
    """

    def choose(finished: Path, summary: Mapping[str, Any], choice: str) -> Config | None:
        study = _settled(Study(folder), participant)
        name = str(finished.resolve().relative_to(study.folder))
        attempt = next(each for each in study.attempts if each.folder == name)
        plan = {planned.slot: planned for planned in study.planned(participant)}
        if choice == "next" and not attempt.counts and attempt.status != "completed":
            append(study.folder, "passed_over", participant=participant, visit=attempt.visit, planned=attempt.planned)
        study = Study(folder)
        planned = plan[attempt.slot] if choice == "again" else study.following(participant) if choice == "next" else None
        if planned is None or planned.kind not in SHOWING or planned.visit.label != attempt.visit or waits_for(study, planned):
            return None
        config = load(Path(begin(study, planned)[1][0]))
        learnt = finished / (STATE if choice == "next" else DECODER_BEFORE)
        taken = config.decoder.folder and learnt.is_dir()  # without a folder each run makes a decoder of its own
        return replace(config, decoder=replace(config.decoder, continue_from=str(learnt) if taken else ""))

    return choose
