"""A study is opened: from then on everybody may know the arms."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rtevo.record import LOG, LogWriter, RecordedSession, hold, load_secret
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
        The arms cannot be read, or a run of the study goes on.
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
        for run in runs:
            if not RecordedSession(run.folder, damaged=True).sealed:
                continue
            with LogWriter(run.folder / LOG) as log:
                fields = {"condition": arms[run.participant], "secret": secret, "at": told["at"], "by": told["by"], "why": told["why"]}
                log.append("unsealed", fields)
            RecordedSession(run.folder).save()
    return study
