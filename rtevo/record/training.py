"""A localizer's run folder as a training run: its volumes and its pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.events import Event
from rtevo.errors import DataError
from rtevo.outside import shown
from rtevo.realign.echoes import FITTED
from rtevo.realign.series import Run
from rtevo.record.making import recorded_making
from rtevo.record.recorder import read_volume, volume_path
from rtevo.record.session import RecordedSession

__all__ = ["localizer_in", "run_of", "shown_in"]


def localizer_in(out: Path) -> RecordedSession:
    """Open the run folder of a localizer, also of an interrupted one.

    Raises
    ------
    DataError
        The folder is not a localizer's, or its volumes were not kept.
    """
    session = RecordedSession(out, damaged=True)
    if not session.localizer:
        raise DataError(f"{out}: expected the run folder of `rtevo localizer`, found a session in which images evolve")
    if session.damage:
        sys.stderr.write(f"rtevo.decode: {out}: read up to the damage: {session.damage}\n")
    if session.grid is None or len(session.absent) == len(session.came):
        raise DataError(
            f"{out / 'volumes'}: expected the run's raw volumes, found none of {len(session.came)}; runs keep them with [record] "
            'save_volumes = "raw"'
        )
    return session


def run_of(session: RecordedSession) -> Run:
    """Give the volumes of a recorded run: with echoes combined and distortion undone where the session did that."""
    assert session.grid is not None
    making, grid = recorded_making(session), session.grid

    def volume(index: int) -> NDArray[np.float32] | None:
        return making.still(_volume(session.out, index), grid.affine)

    if not making.plain:
        for index in [index for index in session.came if index not in session.absent][:FITTED]:  # from which T2* is known
            volume(index)
    return Run(grid, session.start.tr_s, max(session.came) + 1, volume)


def _volume(out: Path, index: int) -> NDArray[np.float32] | None:
    """Return a raw volume; None if there is no file."""
    import nibabel

    path = volume_path(out, index)
    if not path.exists():
        return None
    try:
        return read_volume(path)
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise DataError(f"{path}: expected a volume, found something else ({shown(error)})") from None


def shown_in(session: RecordedSession, run: Run) -> list[Event]:
    """Return the pictures shown during a recorded run.

    Raises
    ------
    DataError
        No pictures were shown.
    """
    rows = session.events_table.to_dict("records")
    events = [
        Event(
            float(row["onset"]),
            float(row["duration"]) if row["duration"] == row["duration"] else 0.1,
            str(row["trial_type"]),
            {name: str(value) for name, value in row.items()},
        )
        for row in rows
        if row["onset"] < run.count * run.tr_s
    ]
    if not events:
        raise DataError(f"{session.out}: expected pictures shown while volumes arrived, found none")
    return events
