"""Numbering of runs: a session's folder is named after its BIDS labels, and the run number is the next free one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rtevo.config import Config, is_localizer
from rtevo.errors import ConfigError

__all__ = ["SESSIONS", "SIMULATED", "counted", "default_folder", "said"]

SESSIONS = Path("sessions")  # default folder of sessions
SIMULATED = "sim"  # the default participant, whose runs are not numbered


def default_folder(config: Config) -> Path | None:
    """Return a session's default folder; None if that is named after the date."""
    if config.record.out or config.session.participant == SIMULATED:
        return None
    return SESSIONS / f"{_beginning(config)}{config.session.run:02d}"


def _beginning(config: Config) -> str:
    task = "task-localizer_" if is_localizer(config) else ""
    return f"sub-{config.session.participant}_ses-{config.session.session}_{task}run-"


def _runs(config: Config) -> set[int]:
    """Return the existing runs of the participant's session, also interrupted ones, from the folders' numbers."""
    name = re.compile(re.escape(_beginning(config)) + r"(\d{1,6})", re.ASCII)
    try:
        return {int(found[1]) for path in SESSIONS.iterdir() if (found := name.fullmatch(path.name))}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def counted(config: Config, fixed: bool = False) -> Config:
    """Return the configuration with the run's number: its own, or one more than the last existing one.

    Parameters
    ----------
    config : Config
    fixed : bool
        The number was requested, and is used or refused.

    Raises
    ------
    ConfigError
        The run exists already.
    """
    if (folder := default_folder(config)) is None or not (there := _runs(config)):
        return config
    following = max(there) + 1
    if not fixed:
        return replace(config, session=replace(config.session, run=max(config.session.run, following)))
    if config.session.run in there:
        raise ConfigError(
            f"--run {config.session.run}: expected a run that does not exist yet, found {folder}; without --run it is {following}"
        )
    return config


def said(config: Config) -> str:
    """Return a sentence about a session's run number; empty if runs are not numbered."""
    if (folder := default_folder(config)) is None:
        return ""
    before = sorted(_runs(config))
    why = f"; existing runs: {', '.join(map(str, before))}" if before else ""
    run = f"{'localizer run' if is_localizer(config) else 'run'} {config.session.run}"
    return f"participant {config.session.participant}, session {config.session.session}, {run}: {folder}{why}"
