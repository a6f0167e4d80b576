"""The next run of a participant: it is started with all settings filled in, and its end is recorded in the ledger."""

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

CHOICES = {"resume": "continue it where it stopped", "again": "repeat it", "on": "continue without it"}
BROKEN = {
    "stopped": "it was stopped",
    "failed": "it failed",
    "unscored": "its images could not be scored",
    "unfinished": "it was interrupted",
}
Ask = Callable[[Planned, Attempt], str]


def waits_for(study: Study, planned: Planned) -> list[str]:
    """Return the participants of earlier blocks whose same run must be over first; empty if no arm needs another's scores.

    The list does not depend on the arm, so that waiting reveals nothing.
    """
    if planned.kind != "loop" or "yoked" not in study.file.study.arms:
        return []
    own = next(number for number, block in enumerate(study.blocks) if planned.participant in block)
    earlier = [who for block in study.blocks[:own] for who in block]
    return [who for who in earlier if not study.settled(replace(planned, participant=who))]


def choices_of(planned: Planned) -> dict[str, str]:
    """Return the choices after a run that was interrupted, stopped or failed; only runs in which images evolve can be resumed."""
    return {choice: words for choice, words in CHOICES.items() if choice != "resume" or planned.kind in SHOWING}


def begin(study: Study, planned: Planned) -> tuple[Attempt, list[str]]:
    """Write a run's session file, and record its beginning in the ledger.

    Returns
    -------
    attempt : Attempt
    arguments : list of str
        Arguments of the command that runs it.

    Raises
    ------
    RtevoError
        The run cannot begin; the ledger is unchanged.
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
    """Return number and folder of a run: those of the plan, or the first free ones after all others."""
    taken = {attempt.run for attempt in study.attempts if (attempt.participant, attempt.visit) == planned.slot[:2]}
    name = "decoder" if planned.kind == "fit" else "run"
    folder = study.folder / f"sub-{planned.participant}" / f"ses-{planned.visit.label}"
    for number in chain([planned.number], count(max([*taken, len(planned.visit.runs)]) + 1)):
        if number not in taken and not (folder / f"{name}-{number:02d}").exists():
            return number, folder / f"{name}-{number:02d}"
    raise AssertionError


def close(study: Study, attempt: Attempt, failed: bool = False) -> Attempt:
    """Record in the ledger how a run ended, and whether it counts by the study file's rules.

    Parameters
    ----------
    study : Study
    attempt : Attempt
    failed : bool
        For a fit: it was not made.
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
    """Return the objective for which a fit's maps are needed; empty if the fit has one target."""
    visit = next(visit for visit in study.file.visits if visit.label == attempt.visit)
    return "" if study.file.fit.target else study.objective(attempt.participant, visit)


def following_run(folder: Path, participant: str, again: int | None, ask: Ask, tell: Callable[[str], None]) -> int:
    """Start a participant's next run, and return the exit status of its command.

    Parameters
    ----------
    folder : Path
        Folder of the study.
    participant : str
    again : int or None
        Repeat this run of the latest visit; 0: the last run.
    ask : callable
        Returns what to do about a run that did not complete: one of its :func:`choices_of`.
    tell : callable
        Called with each line for the user.

    Raises
    ------
    RtevoError
        No run has begun.
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
    """Record in the ledger the ends of runs that it does not know of; return the study in its new state."""
    for attempt in study.attempts:
        log = study.folder / attempt.folder / LOG
        if attempt.participant != participant or attempt.status == "completed":
            continue
        if attempt.kind == "fit" or not log.exists():
            news = attempt.status == "begun"
        else:
            news = RecordedSession(log.parent, damaged=True).status not in ("unfinished", attempt.status)
        if news:
            close(study, attempt, failed=attempt.kind == "fit")  # a killed fit may have left some of the maps
    return Study(study.folder)


def _repeated(study: Study, participant: str, again: int) -> Planned:
    """Return the run to repeat."""
    own = [attempt for attempt in study.attempts if attempt.participant == participant]
    if not own:
        raise StudyError(f"participant {participant}: expected a run to repeat, found none")
    slot = (participant, own[-1].visit, again or own[-1].planned)
    found = next((planned for planned in study.planned(participant) if planned.slot == slot), None)
    if found is None:
        raise StudyError(f"--again {again}: expected the number of a run of visit {own[-1].visit}")
    return found


def _chosen(study: Study, participant: str, ask: Ask) -> tuple[Planned, Attempt | None]:
    """Return the next run, and its attempt to resume; None: a new attempt."""
    while (planned := study.following(participant)) is not None:
        tried = study.tried(planned.slot)
        if not tried:
            return planned, None
        choice = ask(planned, tried[-1])
        if choice not in (ways := choices_of(planned)):
            said = "; ".join(f"--{way}: {words}" for way, words in ways.items())
            raise StudyError(
                f"{planned}: --{choice}: expected a run in which images evolve, because no other can be resumed: choose what to do ({said})"
            )
        if choice != "on":
            return planned, tried[-1] if choice == "resume" else None
        append(study.folder, "passed_over", participant=participant, visit=planned.visit.label, planned=planned.number)
        study = Study(study.folder)
    why = "has left the study" if study.left(participant) else "has done all runs of the study"
    raise StudyError(f"participant {participant} {why}")


def following(folder: Path, participant: str) -> Callable[[Path, Mapping[str, Any], str], Config | None]:
    """Return the callback that chooses the following run of a visit, from a finished run's folder, summary and the operator's choice.

    The choice is ``next``, ``again`` or ``end``. The callback returns the settings of the next run of the same visit, which the ledger then
    records as begun; or None if there is none, or it is of another kind, waits for other participants, or is for another day.
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
        taken = config.decoder.folder and learnt.is_dir()  # without a folder each run makes its own decoder
        return replace(config, decoder=replace(config.decoder, continue_from=str(learnt) if taken else ""))

    return choose
