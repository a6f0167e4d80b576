"""Runs count themselves: a session's folder bears its BIDS labels, and its run is the next one that is not there yet."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rtevo.config import Config, is_localizer
from rtevo.errors import ConfigError

__all__ = ["SESSIONS", "SIMULATED", "counted", "default_folder", "said"]

SESSIONS = Path("sessions")  # where sessions are recorded by default
SIMULATED = "sim"  # the participant by default, of whom nobody counts the runs


def default_folder(config: Config) -> Path | None:
    """Return the folder that a session is recorded in where none is named; None where that is one with a date."""
    if config.record.out or config.session.participant == SIMULATED:
        return None
    return SESSIONS / f"{_beginning(config)}{config.session.run:02d}"


def _beginning(config: Config) -> str:
    task = "task-localizer_" if is_localizer(config) else ""
    return f"sub-{config.session.participant}_ses-{config.session.session}_{task}run-"


def _runs(config: Config) -> set[int]:
    """Return the runs of the participant's session that are there, also broken ones: their folders bear their numbers."""
    name = re.compile(re.escape(_beginning(config)) + r"(\d{1,6})", re.ASCII)
    try:
        return {int(found[1]) for path in SESSIONS.iterdir() if (found := name.fullmatch(path.name))}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def counted(config: Config, fixed: bool = False) -> Config:
    """Return the configuration with the number that the run has: its own, or one more than the last that is there.

    Parameters
    ----------
    config : Config
    fixed : bool
        The number was asked for, and is taken or refused as it is.

    Raises
    ------
    ConfigError
        That run is there already.
    """
    if (folder := default_folder(config)) is None or not (there := _runs(config)):
        return config
    following = max(there) + 1
    if not fixed:
        return replace(config, session=replace(config.session, run=max(config.session.run, following)))
    if config.session.run in there:
        raise ConfigError(
            f"--run {config.session.run}: expected a run that is not there yet, found {folder}; without --run it is {following}"
        )
    return config


def said(config: Config) -> str:
    """Return which run a session will be, and why; empty where runs are not counted."""
    if (folder := default_folder(config)) is None:
        return ""
    before = sorted(_runs(config))
    why = f"; there already: {', '.join(map(str, before))}" if before else ""
    run = f"{'localizer run' if is_localizer(config) else 'run'} {config.session.run}"
    return f"participant {config.session.participant}, session {config.session.session}, {run}: {folder}{why}"
