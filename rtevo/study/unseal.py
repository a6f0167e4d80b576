"""Unsealing of a study: afterwards the arms are public."""

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
    """Open a study permanently: record who did it, when and why in the ledger, add each run's condition to its log, and rewrite the tables.

    The next call completes an interrupted one.

    Parameters
    ----------
    folder : Path
    by, why : str

    Raises
    ------
    RtevoError
        The arms cannot be read, or a run of the study still runs; or logs are damaged: then all other runs are unsealed.
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
        more = f"{len(left)} of its runs are not: repair their logs (`rtevo record RUN --skip-damaged`), then unseal again"
        raise StudyError("\n".join([f"{study.folder}: the study is unsealed, {more}", *left]))
    return study


def _open(run: Path, fields: Mapping[str, str]) -> None:
    """Add the condition to a run's log, and rewrite its tables, also if only that was missing."""
    session = RecordedSession(run)
    if session.sealed:
        with LogWriter(run / LOG) as log:
            log.append("unsealed", fields)
        session = RecordedSession(run)
    if session.records(Unsealed):
        session.save()
