"""An interrupted session is taken up again: ``python -m rtevo.run --resume OUT``.

The session goes on in its own folder, with a new run of the scanner, at the first image that was not shown: the generation that was
interrupted is completed, and the next ones follow from all scores. What is recorded is appended.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo.config import Config, load
from rtevo.errors import ConfigError, DataError
from rtevo.ingest import is_number
from rtevo.session.checks import check_again, check_console, describe_source
from rtevo.session.prepare import make_plan
from rtevo.session.provenance import hashes

if TYPE_CHECKING:
    from rtevo.session.plan import Plan

__all__ = ["describe", "resume"]

LEAVING_S = 5.0  # processes of a killed session may take so long to leave
_NAMES = {
    "session": "the session file OUT/session.toml",
    "decoder": "the decoder",
    "latent_space": "the latent space",
    "model": "the image model",
}


def resume(out: Path, rebaseline: bool = False) -> tuple[Plan, str]:
    """Check that a session can go on, and from where.

    Parameters
    ----------
    out : Path
        The session's folder.
    rebaseline : bool
        Images are scored from the volumes that come now alone. Else the decoder is first brought to where it stood, from the volumes that
        were kept.

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
    from rtevo.decode import Decoder
    from rtevo.record import LOG, parts, read_log

    out = out.resolve()
    if not (out / LOG).exists():
        raise DataError(f"--resume {out}: expected the folder of a session with something recorded, found no {LOG}: start it anew")
    dropped = _close_log(out)
    log = read_log(out / LOG)
    _check_unfinished(out, log)
    config = load(out / "session.toml")
    decoder_folder = Path(config.decoder.folder) if config.decoder.folder else out / "decoder"
    _check_unchanged(out, config, decoder_folder, log[0]["sha256"])
    indices = [r["index"] for r in log if r["type"] in ("volumes", "aligned")]
    if not rebaseline:
        _check_volumes(out, config, log)
    decoder = Decoder.load(decoder_folder, config.decoder.name or None)
    condition, embedding_size, image_size = check_again(config, out / "latent_space.npz")
    config, found = _of_next_run(config)
    plan = make_plan(
        config,
        out,
        decoder_folder,
        decoder,
        describe_source(config),
        tr_s=log[0]["tr_s"],
        condition=condition,
        embedding_size=embedding_size,
        image_size=image_size,
        part=len(parts(log)),
        first_volume=max(indices, default=-1) + 1,
        rebaseline=rebaseline,
        token=check_console(config),
    )
    return plan, describe(log, dropped) + found


def describe(log: list[dict[str, Any]], dropped: int) -> str:
    """Say what a log holds of an interrupted session."""
    from rtevo.records import EventKind

    shown = sum(r["type"] == "events" and r["kind"] == EventKind.ONSET for r in log)
    volumes = sum(r["type"] == "volumes" for r in log)
    words = f"{len(log)} records: {volumes} volumes, {shown} images shown"
    return f"{words}; the last record had been cut short and is dropped ({dropped} bytes)" if dropped else words


def _of_next_run(config: Config) -> tuple[Config, str]:
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
        except DataError as error:
            if "another process" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _check_unfinished(out: Path, log: list[dict[str, Any]]) -> None:
    if not log:
        raise DataError(f"--resume {out}: nothing was recorded before the session was interrupted: start it anew")
    if log[-1]["type"] == "end" and log[-1]["status"] == "completed":
        raise ConfigError(
            f"--resume {out}: the session was completed, there is nothing left of it to run; --evolution-from lets a new session's "
            "evolution go on from it"
        )


def _check_unchanged(out: Path, config: Config, decoder: Path, before: dict[str, str]) -> None:
    now = hashes(out, config, decoder)
    changed = [_NAMES[name] for name in now if now[name] != before.get(name)]
    if changed:
        raise ConfigError(
            f"--resume {out}: {' and '.join(changed)} changed since the session began: its images and scores would not be comparable; "
            "put back what was there, or start a new session (--evolution-from lets its evolution go on from this one's)"
        )


def _check_volumes(out: Path, config: Config, log: list[dict[str, Any]]) -> None:
    """See whether the decoder can be brought to where it stood."""
    from rtevo.record import volume_path
    from rtevo.records import VolumeFlag

    if config.record.save_volumes not in ("raw", "both"):
        raise ConfigError(
            f"--resume {out}: the decoder's state comes from the volumes as they came, which this session does not keep "
            f"([record] save_volumes = {config.record.save_volumes!r}): add --rebaseline to go on without it"
        )
    wanted = [r["index"] for r in log if r["type"] == "volumes" and not r["flags"] & VolumeFlag.MISSING]
    if absent := [index for index in wanted if not volume_path(out, index).exists()]:
        raise ConfigError(
            f"--resume {out}: {len(absent)} of {len(wanted)} volumes are not there (first: {volume_path(out, absent[0])}): add "
            "--rebaseline to go on without the decoder's state"
        )
