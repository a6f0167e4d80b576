"""The record of a run: an append-only log, and the tables that follow from it.

The recorder is an observer of every ring: it delays no process, and learns of slots that it missed. :class:`RecordedSession` is the way
to read a run's record (:func:`rtevo.load` in a notebook). It makes ``trials.tsv``, ``motion.tsv``, ``latents.npz`` and ``summary.json``
from the log alone, also after a crash: ``python -m rtevo.record OUT``. :mod:`rtevo.record.kinds` is the log's schema. A resumed session has
several *parts* in one log, each a run of the scanner; volumes are counted, and onsets are timed, as if the parts followed each other
without a gap.
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
    Start,
    Truth,
    Unsealed,
    VolumeRecord,
    floats,
    is_measured,
)
from rtevo.record.localizer import EVENTS, event_rows, shown_trials, task_of
from rtevo.record.log import LOG, LogFollower, LogWriter, hold, read_log, skip_damaged
from rtevo.record.parts import Part, earlier, of_kind, parts
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
