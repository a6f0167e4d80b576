"""A study is opened: from then on everybody may know the arms."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rtevo.errors import DataError, StudyError
from rtevo.record import LOG, LogWriter, RecordedSession, Unsealed, hold, load_secret
from rtevo.study.ledger import append
from rtevo.study.loading import Study

__all__ = ["unseal"]


def unseal(folder: Path, by: str, why: str) -> Study:
    """Open a study for good: the ledger says by whom, when and why, each run what drove it, and tables are written again.

    What was cut short is done to its end by the next call.

    Parameters
    ----------
    folder : Path
    by, why : str

    Raises
    ------
    RtevoError
        The arms cannot be read, or a run of the study goes on; or logs are damaged: then all other runs are unsealed.
    """
    study = Study(folder)
    arms = study.concealed_arms()
    runs = [run for run in study.runs if run.kind == "loop" and (run.folder / LOG).exists()]
    with ExitStack() as held:
        for run in runs:
            held.enter_context(hold(run.folder))
        if not study.unsealed:
            complete = all(study.settled(planned) for who in study.participants for planned in study.planned(who))
            append(study.folder, "unsealed", by=by, why=why, complete=complete)
            study = Study(folder)
        told = next(entry for entry in study.ledger if entry.kind == "unsealed")
        secret = load_secret(study.file.path(study.file.study.secret)).hex()
        left: list[str] = []
        for run in runs:
            fields = {"condition": arms[run.participant], "secret": secret, "at": told["at"], "by": told["by"], "why": told["why"]}
            try:
                _open(run.folder, fields)
            except DataError as problem:
                left.append(str(problem))
    if left:
        more = f"{len(left)} of its runs are not: mend their logs (`rtevo record RUN --skip-damaged`), then unseal again"
        raise StudyError("\n".join([f"{study.folder}: the study is unsealed, {more}", *left]))
    return study


def _open(run: Path, fields: Mapping[str, str]) -> None:
    """Let a run's log say what drove it, and write its tables again, also where only that was missing."""
    session = RecordedSession(run)
    if session.sealed:
        with LogWriter(run / LOG) as log:
            log.append("unsealed", fields)
        session = RecordedSession(run)
    if session.records(Unsealed):
        session.save()
