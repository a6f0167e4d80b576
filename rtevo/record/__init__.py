"""What a run leaves behind: an append-only log, and the tables that are rebuilt from it.

The recorder is an observer of every ring: it can hold up nobody, and is told where it has missed something. :func:`finalise` makes
``trials.tsv``, ``motion.tsv``, ``latents.npz`` and ``summary.json`` from the log alone, also after a crash: ``python -m rtevo.record OUT``.
A session that was resumed has several *parts* in one log, each a run of the scanner; volumes are counted, and onsets are timed, as if
each part had followed upon the one before without a gap.
"""

from rtevo.record.log import LOG, LogFollower, LogWriter, earlier, grid_of, hold, parts, read_log, skip_damaged
from rtevo.record.recorder import Recorder, compact, image_path, placement_folder, reference_path, volume_path
from rtevo.record.reserve import release, reserve
from rtevo.record.tables import finalise, floats, hidden_truth
from rtevo.record.waits import Holding, Painting, held

__all__ = [
    "LOG",
    "Holding",
    "LogFollower",
    "LogWriter",
    "Painting",
    "Recorder",
    "compact",
    "earlier",
    "finalise",
    "floats",
    "grid_of",
    "held",
    "hidden_truth",
    "hold",
    "image_path",
    "parts",
    "placement_folder",
    "read_log",
    "reference_path",
    "release",
    "reserve",
    "skip_damaged",
    "volume_path",
]
