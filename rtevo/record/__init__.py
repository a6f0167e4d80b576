"""What a run leaves behind: an append-only log, and the tables that follow from it.

The recorder is an observer of every ring: it can hold up nobody, and is told where it has missed something. :class:`RecordedSession` is
the one way to read what a run has left (:func:`rtevo.load` in a notebook). It makes ``trials.tsv``, ``motion.tsv``, ``latents.npz`` and
``summary.json`` from the log alone, also after a crash: ``python -m rtevo.record OUT``. What the log holds stands in
:mod:`rtevo.record.kinds`. A session that was resumed has several *parts* in one log, each a run of the scanner; volumes are counted, and
onsets are timed, as if each part had followed upon the one before without a gap.
"""

from rtevo.record.fitting import record_of
from rtevo.record.kinds import (
    SCHEMA,
    AlignedRecord,
    End,
    EventRecord,
    FitnessRecord,
    GridRecord,
    ImageRecord,
    LatentRecord,
    Lost,
    Notice,
    Other,
    PlacementRecord,
    Record,
    RefusedRecord,
    ScoreRecord,
    Sealed,
    SeriesRecord,
    Start,
    Truth,
    Unsealed,
    VolumeRecord,
    floats,
)
from rtevo.record.localizer import EVENTS, event_rows, shown_trials, task_of
from rtevo.record.log import LOG, LogFollower, LogWriter, hold, read_log, skip_damaged
from rtevo.record.parts import Part, earlier, is_measured, of_kind, parts, projected_of
from rtevo.record.recorder import Recorder, compact, image_path, placement_folder, reference_path, refused_path, volume_path
from rtevo.record.reserve import release, reserve
from rtevo.record.sealing import SECRET_BYTES, cipher_of, is_sealed, load_secret, open_sealed, seal, secret_of
from rtevo.record.session import (
    DECODER_BEFORE,
    EVOLUTION,
    EVOLUTION_BEFORE,
    Images,
    RecordedSession,
    evolution_of,
    finalise,
    load,
    taken_over,
)
from rtevo.record.tables import MOTION, TRIALS, frame, hidden_truth, write_table
from rtevo.record.waits import Holding, Painting, held

__all__ = [
    "DECODER_BEFORE",
    "EVENTS",
    "EVOLUTION",
    "EVOLUTION_BEFORE",
    "LOG",
    "MOTION",
    "SCHEMA",
    "SECRET_BYTES",
    "TRIALS",
    "AlignedRecord",
    "End",
    "EventRecord",
    "FitnessRecord",
    "GridRecord",
    "Holding",
    "ImageRecord",
    "Images",
    "LatentRecord",
    "LogFollower",
    "LogWriter",
    "Lost",
    "Notice",
    "Other",
    "Painting",
    "Part",
    "PlacementRecord",
    "Record",
    "RecordedSession",
    "Recorder",
    "RefusedRecord",
    "ScoreRecord",
    "Sealed",
    "SeriesRecord",
    "Start",
    "Truth",
    "Unsealed",
    "VolumeRecord",
    "cipher_of",
    "compact",
    "earlier",
    "event_rows",
    "evolution_of",
    "finalise",
    "floats",
    "frame",
    "held",
    "hidden_truth",
    "hold",
    "image_path",
    "is_measured",
    "is_sealed",
    "load",
    "load_secret",
    "of_kind",
    "open_sealed",
    "parts",
    "placement_folder",
    "projected_of",
    "read_log",
    "record_of",
    "reference_path",
    "refused_path",
    "release",
    "reserve",
    "seal",
    "secret_of",
    "shown_trials",
    "skip_damaged",
    "taken_over",
    "task_of",
    "volume_path",
    "write_table",
]
