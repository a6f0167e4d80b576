"""From a scanner's files to the volumes of a run: ordered by their headers, each once, on an RAS+ grid, with gaps where one is missing.

- :class:`FolderSource` watches a folder, :class:`DicomReceiver` is a node to which DICOM files are sent, and
  :class:`rtevo.ingest.push.PushSource` a socket to which scripts push volumes; all three have ``poll()`` and ``finish()``.
- :func:`describe` says what a run over a folder would use, :func:`replay` delivers a recorded series again at its own pace.
- :func:`read_dicom` reads one file.
"""

from rtevo.ingest.assembly import Assembler
from rtevo.ingest.dicom import DicomFile, TruncatedError, read_dicom
from rtevo.ingest.folder import FolderSource
from rtevo.ingest.ranking import is_number
from rtevo.ingest.receiver import DicomReceiver
from rtevo.ingest.replay import Replay, replay
from rtevo.ingest.survey import SeriesInfo, Survey, describe, survey
from rtevo.ingest.volume import Volume

__all__ = [
    "Assembler",
    "DicomFile",
    "DicomReceiver",
    "FolderSource",
    "Replay",
    "SeriesInfo",
    "Survey",
    "TruncatedError",
    "Volume",
    "describe",
    "is_number",
    "read_dicom",
    "replay",
    "survey",
]
