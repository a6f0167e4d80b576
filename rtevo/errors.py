"""The exception tree of rtevo.

::

    RtevoError                 any error that rtevo raises on purpose; its message says what to do
    |-- ConfigError            a session file or an option is wrong; holds every mistake found
    |-- DataError              data from a scanner or a user cannot be used
    |   |-- BusyError          a session's folder or log is in use: the session still runs
    |   |-- DicomError         a DICOM file is unreadable, truncated or unsupported
    |   |   |-- NotDicomError  a file is not DICOM
    |   |   `-- PixelsError    compressed pixels cannot be decoded here
    |   |-- GeometryError      shape or affine differ from what was expected
    |   `-- DecoderError       a decoder folder is incomplete or inconsistent
    |-- ModelError             an image model folder is missing or incomplete, or the model paints bad pictures
    |-- RingError              a shared-memory ring failed (rtevo.shm has the branches)
    |-- LinkError              the link to the stimulus PC failed: version, keys, peer lost
    |-- StudyError             a study does not allow the request: sealed data, another participant's turn, a failed fit
    `-- StageError             a process of the session died; carries its name and traceback
"""

from __future__ import annotations

import errno
import os
import shutil

__all__ = [
    "REMEDIES",
    "BusyError",
    "ConfigError",
    "DataError",
    "DecoderError",
    "DicomError",
    "GeometryError",
    "LinkError",
    "ModelError",
    "NotDicomError",
    "PixelsError",
    "RingError",
    "RtevoError",
    "StageError",
    "StudyError",
    "full_disk",
]

_LITTLE = 1 << 16  # bytes: a disk that has less is full


class RtevoError(Exception):
    """Base of all errors that rtevo raises on purpose."""


class ConfigError(RtevoError):
    """A session file or an option is wrong.

    Parameters
    ----------
    mistakes : list of str
        All mistakes, one line each: where, the rule, the value.
    """

    def __init__(self, mistakes: list[str] | str) -> None:
        self.mistakes = [mistakes] if isinstance(mistakes, str) else list(mistakes)
        super().__init__("\n".join(self.mistakes))


class DataError(RtevoError):
    """Data from a scanner or a user cannot be used."""


class BusyError(DataError):
    """Another process holds a session's folder or writes to its log."""


class DicomError(DataError):
    """One DICOM file is unreadable, truncated or of an unsupported kind."""


class NotDicomError(DicomError):
    """A file is not a DICOM file."""


class PixelsError(DicomError):
    """Compressed pixels cannot be decoded here: a plugin is missing."""


class GeometryError(DataError):
    """The shape or affine of a volume differs from what was expected."""


class DecoderError(DataError):
    """A decoder folder is incomplete or inconsistent."""


class ModelError(RtevoError):
    """An image model folder is missing or incomplete, or the model paints bad pictures."""


class RingError(RtevoError):
    """Base of the shared-memory ring errors."""


class LinkError(RtevoError):
    """The link to the stimulus PC failed: version, keys, or a peer that is gone."""


class StudyError(RtevoError):
    """A study does not allow the request; the message says what must be done first."""


class StageError(RtevoError):
    """A process of the session died.

    Parameters
    ----------
    stage : str
        Name of the stage.
    reason : str
        What happened: a traceback, an exit code or a signal.
    """

    def __init__(self, stage: str, reason: str) -> None:
        self.stage = stage
        self.reason = reason
        super().__init__(f"stage '{stage}' failed: {reason}")


REMEDIES: dict[type[RtevoError], str] = {
    RtevoError: "read the sentence: it says what was expected, what was found, and what to do.",
    ConfigError: "correct each line that is named, in the session file or on the command line, and start again. Nothing was begun.",
    DataError: "check the file or folder that is named, and correct what the sentence says of it.",
    BusyError: "wait until the other command has ended, or end it; then start this one again.",
    DicomError: "export the series again; `rtevo ingest FOLDER` lists every file that cannot be used.",
    NotDicomError: "keep other files out of the scanner's export folder; a session passes over them.",
    PixelsError: "install the plug-in that is named (`pip install 'rtevo[dicom-compressed]'`), or export without compression.",
    GeometryError: "see that the series, the field of view and the matrix are those of the protocol.",
    DecoderError: "make the folder again with `rtevo decode fit` or `rtevo decode import`.",
    ModelError: "run `rtevo generate check MODEL_DIR`; it lists everything that is wrong with the model.",
    RingError: "run `rtevo shm` to see who holds shared memory, and `rtevo shm clean` to remove what dead sessions have left.",
    LinkError: "check cable, address and keys, and that both computers have the same version; `rtevo bridge test` tries the link.",
    StudyError: "do first what the sentence names; `rtevo study status` shows what comes next.",
    StageError: "keep the run folder. Go on with `rtevo run --resume OUT`, and report the traceback that is in `session.log`.",
}
"""What a user does about each kind of error; the message itself says more. The reference of the messages shows it."""


def full_disk(error: BaseException, *places: str | os.PathLike[str]) -> str:
    """Return a sentence if an error means that a disk is full, else an empty text.

    Parameters
    ----------
    error : BaseException
        The error as raised; libraries do not always keep the error number in it.
    places : path
        Folders that may have been written to.
    """
    if not isinstance(error, OSError):
        return ""
    full = [str(place) for place in places if os.path.isdir(place) and shutil.disk_usage(place).free < _LITTLE]
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not full:
        return ""
    where = ", ".join(full) or error.filename or ", ".join(map(str, places))
    return f"the disk is full ({where}): make room there"
