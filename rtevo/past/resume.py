"""An interrupted session is taken up again: ``python -m rtevo.run --resume OUT``.

The session goes on in its own folder, with a new run of the scanner, at the first image that was not shown: the generation that was
interrupted is completed, and the next ones follow from all scores. What is recorded is appended.
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

MANY = 20  # volumes that are named
LEAVING_S = 5.0  # processes of a killed session may take so long to leave
_NAMES = {
    "session": "the session file OUT/session.toml",
    "decoder": "the decoder",
    "latent_space": "the latent space",
    "model": "the image model",
}


def resume(out: Path, rebaseline: bool = False, token: str | None = None) -> tuple[Plan, str]:
    """Check that a session can go on, and from where.

    Parameters
    ----------
    out : Path
        The session's folder.
    rebaseline : bool
        Images are scored from the volumes that come now alone. Else the decoder is first brought to where it stood, from the volumes that
        were kept.
    token : str, optional
        Of the operator's page, where it is served already.

    Returns
    -------
    plan : Plan
    words : str
        What was found, for the operator.

    Raises
    ------
    RtevoError
        It cannot go on: it is finished or still running, or what it depends on has changed.
    """
    from rtevo.record import LOG, AlignedRecord, RecordedSession, VolumeRecord

    check_open_files()
    out = out.resolve()
    if not (out / LOG).exists():
        raise DataError(f"--resume {out}: expected the folder of a session with something recorded, found no {LOG}: start it anew")
    dropped = _close_log(out)
    session = RecordedSession(out)
    if session.localizer:
        raise DataError(
            f"--resume {out}: expected a session in which images evolve, found a localizer: run another; what this one has is used by "
            "`rtevo decode fit`, which takes several runs"
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
    """Say what a log holds of an interrupted session."""
    from rtevo.record import VolumeRecord
    from rtevo.records import EventKind

    shown = len(session.events(EventKind.ONSET))
    words = f"{len(session.log)} records: {len(session.records(VolumeRecord))} volumes, {shown} images shown"
    return f"{words}; the last record had been cut short and is dropped ({dropped} bytes)" if dropped else words


def gone(volumes: Sequence[int]) -> str:
    """Say which volumes could not be saved."""
    which = ", ".join(map(str, volumes[:MANY])) + (", ..." if len(volumes) > MANY else "")
    return f"{len(volumes)} volumes were not saved and count as missing for the decoder: {which}"


def of_next_run(config: Config) -> tuple[Config, str]:
    """Look for the scanner's next run: a number names the one that was interrupted. Gives words for the operator, too."""
    acquisition = config.acquisition
    if acquisition.source != "watch" or not is_number(acquisition.series):
        return config, ""
    words = f"; series {acquisition.series} was the interrupted run's, the next one that looks functional is taken"
    return replace(config, acquisition=replace(acquisition, series="")), words


def _close_log(out: Path) -> int:
    """Take away a last record that was cut short, once nobody writes any more; gives its bytes."""
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
        raise DataError(f"--resume {out}: nothing was recorded before the session was interrupted: start it anew")
    if session.parts[-1].ended_well and session.status == "completed":
        raise ConfigError(
            f"--resume {out}: the session was completed, there is nothing left of it to run; --evolution-from lets a new session's "
            "evolution go on from it"
        )
    if others := [version for version in session.versions if version != __version__]:
        raise ConfigError(
            f"--resume {out}: rtevo {' and '.join(others)} recorded the session, this is rtevo {__version__}: its images and scores would "
            f"not be comparable; go on with rtevo {others[0]}, or start a new session (--evolution-from lets its evolution go on from this "
            "one's)"
        )


def _check_unchanged(session: RecordedSession, model_sha256: str) -> None:
    out, before = session.out, session.start.sha256 or {}
    now = hashes(out, session.decoder_folder, model_sha256, session.settings.get("decoder", {}).get("more_folders", ()))
    changed = [_NAMES[name] for name in now if now[name] != before.get(name)]
    if changed:
        raise ConfigError(
            f"--resume {out}: {' and '.join(changed)} changed since the session began: its images and scores would not be comparable; "
            "put back what was there, or start a new session (--evolution-from lets its evolution go on from this one's)"
        )


def _check_volumes(session: RecordedSession, config: Config) -> None:
    """See whether the decoder can be brought to where it stood."""
    from rtevo.record import volume_path

    out, kept = session.out, config.record.save_volumes
    if kept not in ("raw", "both"):
        raise ConfigError(
            f"--resume {out}: the decoder's state comes from the volumes as they came, which this session does not keep "
            f"([record] save_volumes = {kept!r}): add --rebaseline to go on without it"
        )
    if absent := [index for index in session.absent if index not in session.unsaved]:
        raise ConfigError(
            f"--resume {out}: {len(absent)} of {len(session.came)} volumes are not there (first: {volume_path(out, absent[0])}): add "
            "--rebaseline to go on without the decoder's state"
        )
