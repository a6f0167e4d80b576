"""rtevo: real-time fMRI closed loop that evolves AI-generated images from the brain's responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rtevo.record import RecordedSession
    from rtevo.study import Study

__all__ = ["__version__", "load"]

__version__ = "0.2.0"


def load(run: Path | str) -> RecordedSession | Study:
    """Read what a run has left; also of one that goes on, was interrupted, or has a damaged log. Or read a whole study.

    Parameters
    ----------
    run : Path
        The session's folder, or a study's.

    Returns
    -------
    RecordedSession or Study
        Of a run trials, volumes' motion, pictures, latents, settings, and the log itself: see :class:`rtevo.record.RecordedSession`. Of a
        study its runs, and one table of all images: see :class:`rtevo.study.Study`.

    Raises
    ------
    DataError
        There is no session.
    StudyError
        A study has been changed since it was sealed.
    """
    from pathlib import Path

    from rtevo import record

    if (Path(run) / "study.jsonl").is_file():
        from rtevo.study import load as load_study

        return load_study(run)
    return record.load(run)
