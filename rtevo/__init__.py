"""rtevo: real-time fMRI closed loop that evolves AI-generated images from the brain's responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rtevo.record import RecordedSession

__all__ = ["__version__", "load"]

__version__ = "0.2.0.dev0"


def load(run: Path | str) -> RecordedSession:
    """Read what a run has left; also of one that goes on, was interrupted, or has a damaged log.

    Parameters
    ----------
    run : Path
        The session's folder.

    Returns
    -------
    RecordedSession
        Trials, volumes' motion, pictures, latents, settings, and the log itself: see :class:`rtevo.record.RecordedSession`.

    Raises
    ------
    DataError
        There is no session.
    """
    from rtevo import record

    return record.load(run)
