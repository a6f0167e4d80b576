"""Resuming an interrupted session: ``python -m rtevo.run --resume OUT``.

The session continues in its own folder, with a new run of the scanner, at the first image that was not shown: the interrupted generation is
completed, and the next ones follow from all scores. New records are appended.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rtevo import __version__
from rtevo.config import Config
from rtevo.errors import BusyError, ConfigError, DataError
from rtevo.ingest import is_number
from rtevo.session.checks import check_again, check_console, check_open_files, describe_source
from rtevo.session.prepare import make_plan
from rtevo.session.provenance import hashes, model_hash

if TYPE_CHECKING:
    from rtevo.record import RecordedSession
    from rtevo.session.plan import Plan

__all__ = ["describe", "gone", "of_next_run", "resume"]

MANY = 20  # most volumes that a message names
LEAVING_S = 5.0  # longest time for processes of a killed session to exit
_NAMES = {
    "session": "the session file OUT/session.toml",
    "decoder": "the decoder",
    "latent_space": "the latent space",
    "model": "the image model",
}


def resume(out: Path, rebaseline: bool = False, token: str | None = None) -> tuple[Plan, str]:
    """Check that a session can be resumed, and from where.

    Parameters
    ----------
    out : Path
        The session's folder.
    rebaseline : bool
        Images are scored from new volumes alone. Otherwise the decoder's state is first restored from the saved volumes.
    token : str, optional
        Token of the operator's page, if it is served already.

    Returns
    -------
    plan : Plan
    words : str
        A summary of the log, for the operator.

    Raises
    ------
    RtevoError
        The session cannot be resumed: it is complete or still runs, or its files have changed.
    """
    from rtevo.record import LOG, AlignedRecord, RecordedSession, VolumeRecord

    check_open_files()
    out = out.resolve()
    if not (out / LOG).exists():
        raise DataError(f"--resume {out}: expected the folder of a recorded session, found no {LOG}: start a new session")
    dropped = _close_log(out)
    session = RecordedSession(out)
    if session.localizer:
        raise DataError(
            f"--resume {out}: expected a session in which images evolve, found a localizer: run another; `rtevo decode fit` takes several, "
            "also interrupted ones"
        )
    _check_unfinished(session)
    config = session.config
    model_sha256 = model_hash(config)
    _check_unchanged(session, model_sha256)
    indices = [*(r.index for r in session.records(VolumeRecord)), *(r.index for r in session.records(AlignedRecord))]
    if not rebaseline:
        _check_volumes(session, config)
    condition, embedding_size, image_size = check_again(config, out / "latent_space.npz")
    config, found = of_next_run(config)
    plan = make_plan(
        config,
        out,
        session.decoder_folder,
        session.decoder,
        describe_source(config),
        tr_s=session.start.tr_s,
        condition=condition,
        embedding_size=embedding_size,
        image_size=image_size,
        part=len(session.parts),
        first_volume=max(indices, default=-1) + 1,
        rebaseline=rebaseline,
        token=check_console(config) if token is None else token,
        model_sha256=model_sha256,
    )
    unsaved = "" if rebaseline or not session.unsaved else f"; {gone(session.unsaved)}"
    return plan, describe(session, dropped) + unsaved + found


def describe(session: RecordedSession, dropped: int) -> str:
    """Return a summary of an interrupted session's log."""
    from rtevo.record import VolumeRecord
    from rtevo.records import EventKind

    shown = len(session.events(EventKind.ONSET))
    words = f"{len(session.log)} records: {len(session.records(VolumeRecord))} volumes, {shown} images shown"
    return f"{words}; the last record was incomplete and is dropped ({dropped} bytes)" if dropped else words


def gone(volumes: Sequence[int]) -> str:
    """Return which volumes could not be saved."""
    which = ", ".join(map(str, volumes[:MANY])) + (", ..." if len(volumes) > MANY else "")
    return f"{len(volumes)} volumes were not saved and count as missing for the decoder: {which}"


def of_next_run(config: Config) -> tuple[Config, str]:
    """Return settings for the scanner's next run, because a series number names the interrupted run; and a text for the operator."""
    acquisition = config.acquisition
    if acquisition.source != "watch" or not is_number(acquisition.series):
        return config, ""
    words = f"; series {acquisition.series} was the interrupted run's; the next functional series is used"
    return replace(config, acquisition=replace(acquisition, series="")), words


def _close_log(out: Path) -> int:
    """Remove an incomplete last record, once no process writes any more; return its bytes."""
    from rtevo.record import LOG, LogWriter, hold

    deadline = time.monotonic() + LEAVING_S
    while True:
        try:
            with hold(out), LogWriter(out / LOG) as log:
                return log.dropped
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _check_unfinished(session: RecordedSession) -> None:
    out = session.out
    if not session.log:
        raise DataError(f"--resume {out}: nothing was recorded before the interruption: start a new session")
    if session.parts[-1].ended_well and session.status == "completed":
        raise ConfigError(f"--resume {out}: the session is complete; a new session can continue its evolution (--evolution-from)")
    if others := [version for version in session.versions if version != __version__]:
        raise ConfigError(
            f"--resume {out}: rtevo {' and '.join(others)} recorded the session, this is rtevo {__version__}: images and scores would "
            f"not be comparable; resume with rtevo {others[0]}, or start a new session (--evolution-from continues the evolution of this "
            "one's)"
        )


def _check_unchanged(session: RecordedSession, model_sha256: str) -> None:
    out, before = session.out, session.start.sha256 or {}
    now = hashes(out, session.decoder_folder, model_sha256, session.settings.get("decoder", {}).get("more_folders", ()))
    changed = [_NAMES[name] for name in now if now[name] != before.get(name)]
    if changed:
        raise ConfigError(
            f"--resume {out}: {' and '.join(changed)} changed since the session began: images and scores would not be comparable; "
            "restore it, or start a new session (--evolution-from continues the evolution of this one)"
        )


def _check_volumes(session: RecordedSession, config: Config) -> None:
    """Check that the decoder's state can be restored."""
    from rtevo.record import volume_path

    out, kept = session.out, config.record.save_volumes
    if kept not in ("raw", "both"):
        raise ConfigError(
            f"--resume {out}: the decoder's state comes from raw volumes, which this session does not keep "
            f"([record] save_volumes = {kept!r}): add --rebaseline to continue without it"
        )
    if absent := [index for index in session.absent if index not in session.unsaved]:
        raise ConfigError(
            f"--resume {out}: {len(absent)} of {len(session.came)} volumes are missing (first: {volume_path(out, absent[0])}): add "
            "--rebaseline to continue without the decoder's state"
        )
