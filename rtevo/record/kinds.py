"""The log's records, one class a kind: this page is the log's schema, and :data:`SCHEMA` is its version.

A log holds one JSON object a line (:mod:`rtevo.record.log`): ``seq``, ``type``, ``clock_ns`` and the fields of the class whose ``TYPE`` it
is, by their names. The schema grows by addition and its version stays: a kind that this version does not know is an :class:`Other`, a
field that it does not know is kept in ``more``, and both are written again as they were. A field that a record lacks, because an older
version wrote it, has its default. The version stands in ``start``; logs of rtevo 0.1 have none (0). What 0.1 wrote otherwise is put
right where a log is read (:func:`rtevo.record.log.typed`), so that nobody else has to know.

Records of the rings have the fields of the ring's slot, whose meaning, units and clocks stand in :mod:`rtevo.records`. In the log flags and
kinds are their numbers, and float32 arrays are base64 of their little-endian bytes, so that nothing is rounded.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KINDS",
    "NAMES",
    "SCHEMA",
    "AlignedRecord",
    "End",
    "EventRecord",
    "FitnessRecord",
    "GridRecord",
    "ImageRecord",
    "LatentRecord",
    "Lost",
    "Notice",
    "Other",
    "PhysiologyRecord",
    "PlacementRecord",
    "Record",
    "RefusedRecord",
    "ScoreRecord",
    "Sealed",
    "SeriesRecord",
    "Start",
    "Truth",
    "Unsealed",
    "VolumeRecord",
    "floats",
]

SCHEMA = 1


def floats(text: str) -> NDArray[np.float32]:
    """Read a float32 array as the log holds it."""
    return np.frombuffer(base64.b64decode(text), "<f4")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """Fields of every record.

    Parameters
    ----------
    seq : int
        Its number in the log, 0 = first.
    clock_ns : int
        Session time when it was recorded.
    more : dict, optional
        Fields that this version does not know.
    """

    TYPE: ClassVar[str] = ""
    seq: int = -1
    clock_ns: int = 0
    more: Mapping[str, Any] | None = None

    @property
    def type(self) -> str:
        """Name of its kind in the log."""
        return self.TYPE

    def fields(self) -> dict[str, Any]:
        """Its own fields as the log holds them, without those that are None."""
        values = ((name, getattr(self, name)) for name in NAMES[type(self)])
        return {**{name: _plain(value) for name, value in values if value is not None}, **(self.more or {})}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start(Record):
    """A part of a session begins: a run of the scanner.

    Parameters
    ----------
    schema : int
        Version of the log's schema; 0: written by rtevo 0.1.
    part : int
        0 = the session's first.
    first_volume : int
        Number of the part's first volume: the session's volumes are counted through.
    decoder_state : str
        ``new``, ``taken over`` (from an earlier run), ``kept`` or ``rebaselined``.
    sha256 : dict of str to str
        Of what the session depends on: ``session``, ``decoder``, ``latent_space``, ``model``.
    rtevo : str
        The version that recorded it.
    started : str
        Date and time, ISO 8601.
    participant, condition, source : str
        Of the session file; condition ``blinded`` where it is, ``localizer`` where nothing evolves.
    seed : int
    speed : float
        0: in lock-step.
    tr_s : float
    cadence_s : float
        From image to image.
    settings : dict of dict
        The resolved session file.
    provenance : dict
        Versions, hashes, machine.
    shape, affine : list, optional
        The grid, in logs from before it was a record of its own.
    trials : list of dict, optional
        Of a localizer: its schedule, see `rtevo.localizer.Trial`.
    follows : str, optional
        Of a run in a visit: folder of the run before; empty: it is the first.
    repeats : str, optional
        Folder of the run that it repeats, which therefore does not count.
    """

    TYPE: ClassVar[str] = "start"
    schema: int = 0
    part: int = 0
    first_volume: int = 0
    decoder_state: str = "new"
    sha256: Mapping[str, str] | None = None
    rtevo: str = ""
    started: str | None = None
    participant: str | None = None
    condition: str | None = None
    source: str | None = None
    seed: int | None = None
    speed: float | None = None
    tr_s: float = math.nan
    cadence_s: float | None = None
    settings: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None
    shape: Sequence[int] | None = None
    affine: Sequence[Sequence[float]] | None = None
    trials: Sequence[Mapping[str, Any]] | None = None
    follows: str | None = None
    repeats: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridRecord(Record):
    """The grid that a part's volumes lie on, recorded with the first of them.

    Parameters
    ----------
    part : int
    shape : list of int, (3,)
    affine : list of list of float, (4, 4)
        Voxel index to RAS+ millimetres.
    """

    TYPE: ClassVar[str] = "grid"
    part: int = 0
    shape: Sequence[int] | None = None
    affine: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeRecord(Record):
    """A volume came, or was declared missing: see `rtevo.records.volume_dtype`."""

    TYPE: ClassVar[str] = "volumes"
    index: int = -1
    flags: int = 0
    acquired_s: float = math.nan
    closed_ns: int = 0
    ingested_ns: int = 0
    acquisition: Mapping[str, Any] | None = None  # of the run's first volume
    saved: bool | None = None  # False: it came, was to be kept as it came, and could not be saved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AlignedRecord(Record):
    """A volume was aligned: see `rtevo.records.aligned_dtype`."""

    TYPE: ClassVar[str] = "aligned"
    index: int = -1
    flags: int = 0
    acquired_s: float = math.nan
    motion: Sequence[float] = (math.nan,) * 6
    framewise_displacement_mm: float = math.nan
    dvars_percent: float = math.nan
    tsnr: float = math.nan
    closed_ns: int = 0
    ingested_ns: int = 0
    aligned_ns: int = 0
    events_taken: int | None = None  # of the part, that decoding had taken before it; -1, None: not known
    physio: Sequence[float] | None = None  # from here on None: neither pulse nor respiration was measured
    heart_rate: float | None = None
    respiration_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhysiologyRecord(Record):
    """Samples of pulse or respiration came: see `rtevo.records.physiology_dtype`."""

    TYPE: ClassVar[str] = "physiology"
    sensor: int = -1
    segment: int = 0
    number: int = 0
    t_ns: int = 0
    error_ns: int = 0
    anchored: int = 0
    step_ns: float = math.nan
    values: NDArray[np.float32] = field(default_factory=lambda: floats(""))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacementRecord(Record):
    """An attempt to place the decoder was made, or decided: see `rtevo.records.placement_dtype`."""

    TYPE: ClassVar[str] = "placements"
    attempt: int = 0
    volume: int = -1
    own_grid: int = 0
    decision: int = 0
    matrix: Sequence[Sequence[float]] = ()
    correlation: float = math.nan
    overlap: float = math.nan
    weight_kept: float = math.nan
    expected_error_mm: float = math.nan
    verdict: str = ""
    reasons: str = ""
    placed_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreRecord(Record):
    """An image was scored, or scored again: see `rtevo.records.score_dtype`."""

    TYPE: ClassVar[str] = "scores"
    generation: int = -1
    candidate: int = -1
    revision: int = 0
    volumes_used: int = 0
    score: float = math.nan
    score_se: float = math.nan
    reliability: float = math.nan
    lag_s: float | None = None  # from here to `neighbours` None: not recorded, as before there were these
    lag_sd_s: float | None = None
    width: float | None = None
    width_sd: float | None = None
    measured: float | None = None
    measured_se: float | None = None
    neighbours: Sequence[float] | None = None
    onset_s: float = math.nan
    closed_ns: int = 0
    scored_ns: int = 0
    maps: Mapping[str, Sequence[float]] | None = None  # score and standard error of each map of an objective, by its name
    nuisance: Sequence[float] | None = None  # probability that each of `[decoder] nuisance`, then of `[physio]`, is there; NaN: not yet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesRecord(Record):
    """Decoding has used a volume, and evolution uses volumes: see `rtevo.records.series_dtype`."""

    TYPE: ClassVar[str] = "series"
    index: int = -1
    part: int = 0
    t_s: float = math.nan
    value: float = math.nan
    motion_mm: Sequence[float] = (math.nan,) * 6
    autocorrelation: float = math.nan
    drift_sd: float = math.nan
    lag_s: float = math.nan
    lag_sd_s: float = math.nan
    width: float = math.nan
    undershoot: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitnessRecord(Record):
    """Evolution received a fitness: see `rtevo.records.fitness_dtype`."""

    TYPE: ClassVar[str] = "fitness"
    generation: int = -1
    candidate: int = -1
    fitness: float = math.nan
    fitness_se: float = math.nan
    scores_taken: int = 0
    given_up: int = 0
    decided_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentRecord(Record):
    """Evolution requested an image: see `rtevo.records.latent_dtype`."""

    TYPE: ClassVar[str] = "latents"
    generation: int = -1
    candidate: int = -1
    probe: int = -1
    scores_taken: int = 0
    volumes_taken: int | None = None  # as the next, None: not recorded, as before there was a strategy that uses volumes
    onsets_taken: int | None = None
    seed: int = 0
    scored_ns: int = 0
    evolved_ns: int = 0
    latent: NDArray[np.float32] = field(default_factory=lambda: floats(""))
    embedding: NDArray[np.float32] = field(default_factory=lambda: floats(""))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Picture(Record):
    """Fields of ``images`` and ``refused``: see `rtevo.records.image_dtype`."""

    generation: int = -1
    candidate: int = -1
    scored_ns: int = 0
    evolved_ns: int = 0
    painted_ns: int = 0
    embedding: NDArray[np.float32] = field(default_factory=lambda: floats(""))
    sha256: str = ""  # of its pixels, which are in a file: `rtevo.record.image_path`, `rtevo.record.refused_path`
    attempt: int | None = None
    refused: int | None = None
    verdict: Sequence[Mapping[str, Any]] | None = None  # what each filter found (`rtevo.gate.Finding`); None before 0.2: there was no gate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRecord(_Picture):
    """An image was painted, or could not be painted so that the gate let it through (`refused`)."""

    TYPE: ClassVar[str] = "images"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RefusedRecord(_Picture):
    """A picture was painted that the gate did not let through."""

    TYPE: ClassVar[str] = "refused"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EventRecord(Record):
    """Something happened at the stimulus PC: see `rtevo.records.event_dtype`."""

    TYPE: ClassVar[str] = "events"
    kind: int = 0
    generation: int = -1
    candidate: int = -1
    t_ns: int = 0
    error_ns: int = 0
    received_ns: int = 0
    value: float = math.nan
    response_time_s: float = math.nan
    guess: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Notice(Record):
    """A message of the ring ``messages``: see `rtevo.records.message_dtype`.

    Parameters
    ----------
    level : str
        Its type in the log: ``warning``, ``alarm``, ``error`` or ``operator``.
    t_ns : int
        Session time that is meant; 0 before its start.
    stage, action, text : str
        `action`: of the operator; else empty.
    """

    level: str = "warning"
    t_ns: int = 0
    stage: str = ""
    action: str = ""
    text: str = ""

    @property
    def type(self) -> str:
        """Name of its kind in the log."""
        return self.level


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth(Record):
    """A simulated participant's opinion of the images.

    Parameters
    ----------
    preferences : dict of str to float
        By the first 16 digits of the SHA-256 of the pixels.
    """

    TYPE: ClassVar[str] = "truth"
    preferences: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lost(Record):
    """Stands in for a line that was damaged or missing: see `rtevo.record.skip_damaged`.

    Parameters
    ----------
    line : int
        1 = first.
    text : str
    """

    TYPE: ClassVar[str] = "lost"
    line: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class End(Record):
    """A part of a session has ended.

    Parameters
    ----------
    ended : str
        Date and time, ISO 8601.
    status : str
        ``completed``, ``stopped``, ``unscored``, ``restarted`` or ``failed``.
    reason : str
        Why it failed.
    condition : str
        What drove evolution, also of a blinded session; ``blinded`` of a sealed one.
    generator : str
        What painted, in its own words.
    rings : dict of dict
        What handing messages over cost.
    warnings : list of str
        All of this part.
    """

    TYPE: ClassVar[str] = "end"
    ended: str | None = None
    status: str | None = None
    reason: str | None = None
    condition: str | None = None
    generator: str | None = None
    rings: Mapping[str, Any] | None = None
    warnings: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sealed(Record):
    """The fitness that evolution received after one score, in a sealed session: see :mod:`rtevo.record.sealing`.

    data : str
        Hexadecimal.
    """

    TYPE: ClassVar[str] = "sealed"
    data: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unsealed(Record):
    """The study was unsealed, and from here on the session shows what drove it.

    condition, secret : str
        What drove evolution, and what opens `sealed` records (hexadecimal).
    by, why, at : str
        Who unsealed it, for what reason, and when (ISO 8601).
    """

    TYPE: ClassVar[str] = "unsealed"
    condition: str = ""
    secret: str = ""
    by: str = ""
    why: str = ""
    at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Other(Record):
    """A record of a kind that this version does not know; all that it holds is in `more`.

    Parameters
    ----------
    name : str
        Its type in the log.
    """

    name: str = ""

    @property
    def type(self) -> str:
        """Name of its kind in the log."""
        return self.name


_LEVELS = ("warning", "alarm", "error", "operator")
KINDS: dict[str, type[Record]] = {
    kind.TYPE: kind
    for kind in (
        Start, GridRecord, VolumeRecord, AlignedRecord, PlacementRecord, ScoreRecord, SeriesRecord, FitnessRecord, LatentRecord,
        ImageRecord, RefusedRecord, EventRecord, PhysiologyRecord, Truth, Lost, End, Sealed, Unsealed,
    )
} | dict.fromkeys(_LEVELS, Notice)  # fmt: skip
_COMMON = ("seq", "clock_ns", "more")
NAMES = {
    kind: tuple(f.name for f in fields(kind) if f.name not in (*_COMMON, *(("level",) if kind is Notice else ())))
    for kind in {*KINDS.values()}
} | {Other: ()}


def _plain(value: Any) -> Any:
    return base64.b64encode(value.tobytes()).decode() if isinstance(value, np.ndarray) else value
