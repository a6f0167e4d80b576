"""Every shape, dtype, unit and frame that crosses a process boundary.

A slot of a ring buffer is one record of the structured dtypes below. Times named ``*_ns`` are ``time.monotonic_ns()`` of the
support computer, except ``t_ns`` in an event, which is session time (see :mod:`rtevo.session.clock`). Volume axes are (X, Y, Z) as nibabel
has them; affines map voxel indices to RAS+ millimetres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FD_LIMIT_MM",
    "HEAD_RADIUS_MM",
    "MOTION_COLUMNS",
    "NOTES",
    "Decision",
    "EventKind",
    "Given",
    "Grid",
    "MessageKind",
    "Projected",
    "RunClock",
    "VolumeFlag",
    "aligned_dtype",
    "event_dtype",
    "fitness_dtype",
    "image_dtype",
    "latent_dtype",
    "message_dtype",
    "named",
    "physiology_dtype",
    "placement_dtype",
    "put_volume",
    "score_dtype",
    "series_dtype",
    "volume_dtype",
    "volume_of",
]

ACQUISITION_BYTES = 4096
VERDICT_BYTES = 4096
HEAD_RADIUS_MM = 50.0  # of the sphere on which rotations become millimetres: Power et al. 2012, doi:10.1016/j.neuroimage.2011.10.018
FD_LIMIT_MM = 0.5  # framewise displacement that is worth a look, the usual limit for task data (ibid.)
MOTION_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")  # mm, mm, mm, rad, rad, rad; RAS+


class VolumeFlag(IntFlag):
    """Flags of a volume."""

    OK = 0
    MISSING = 1  # never arrived whole: data are zero and must not be used
    UNALIGNED = 2  # could not be aligned: motion is NaN, data are passed on as they came
    LATE = 4  # arrived after its gap had been declared
    SPIKE = 8  # displaced by more than [decoder] spike_mm since the volume before


class EventKind(IntEnum):
    """Kinds of the presenter's reports."""

    TRIGGER = 1  # the scanner's pulse that starts the run: time zero of the session's onsets; a second one, before any image, corrects it
    ONSET = 2  # an image's first flip
    OFFSET = 3  # the flip that removed it; value: frames dropped since the offset before
    RATING = 4  # value: the rating, NaN where the window closed without one; response_time_s from the window's opening
    FIXATION = 5  # fixation is held because the next image is not there yet; value 1: because the support computer does not answer
    END = 6  # end text shown, or Escape pressed (text says which)
    NOTE = 7  # text: anything worth keeping (reconnects, refused strangers)
    PULSE = 8  # a later pulse of the scanner
    PHYSIOLOGY = 9  # value: what an image did to the participant's physiology; NaN where it could not be measured
    PAUSE = 10  # fixation is held from here on, after the trial's end, because the operator asked for it
    GO_ON = 11  # and no longer
    READY = 12  # the presenter's display stands; text: "presenter ready: " and what it shows with
    WAITS = 13  # another presenter waits to be let in; text names it after ": " and before ";"
    LEFT = 14  # it waits no longer
    SILENT = 15  # the presenter does not answer
    BACK = 16  # it answers again, or was started anew
    REPLACED = 17  # another presenter has taken its place
    TAKEN = 18  # an image was taken away, or will not be shown; text: by whom, see `rtevo.wire.TAKERS`; the flip where it was on the screen
    REFUSED = 19  # the presenter did not take an image: its verdict or its digest is not right; text: why
    STOP_ASKED = 20  # the participant asks to stop: the session continues until the operator ends it
    PRESS = 21  # a key of the response box, where every press is reported (a localizer's task); text: the key; the image on the screen


NOTES = frozenset({EventKind.NOTE, *(kind for kind in EventKind if EventKind.READY <= kind <= EventKind.REPLACED)})
"""Kinds of the bridge's own messages, whose text is for the operator; other parts act on the kinds."""


class Decision(IntEnum):
    """Decision on an attempt to place the decoder."""

    PENDING = 0  # the operator is asked
    ACCEPTED = 1  # good, or the operator has accepted it
    AGAIN = 2  # the next volumes are tried


class Given(IntEnum):
    """Why a fitness is missing for good: `given_up` of :func:`fitness_dtype`."""

    NO = 0
    UP = 1  # the score is no longer waited for
    REFUSED = 2  # the image was refused or taken away


class MessageKind(IntEnum):
    """Kinds of the supervisor's messages."""

    WARNING = 1  # of a stage, or of the supervisor's own
    ERROR = 2  # what ends the session
    OPERATOR = 3  # action: what the person at the console has done; text: the note that came with it
    ALARM = 4  # somebody must act: shown until it has been seen


@dataclass(frozen=True)
class RunClock:
    """Session time -> seconds from the session's first volume, in one run of the scanner: the one conversion there is.

    Volumes of a session that was interrupted are counted through, and its onsets are timed, as if each run had followed upon the one
    before without a gap.

    Parameters
    ----------
    tr_s : float
    first_volume : int
        Number of the run's first volume in the session.
    trigger_ns : int, optional
        Session time of the trigger, which is the start of the run's first volume; None before it.
    """

    tr_s: float
    first_volume: int = 0
    trigger_ns: int | None = None

    def triggered(self, t_ns: int) -> RunClock:
        """Return the clock of a run whose trigger came at this session time; a later trigger, before any image, corrects the first."""
        return replace(self, trigger_ns=int(t_ns))

    @property
    def begins_s(self) -> float:
        """Start of the run's first volume, s."""
        return self.first_volume * self.tr_s

    def since_trigger_s(self, t_ns: int) -> float:
        """Return the time from the run's trigger to a session time, s; NaN before the trigger."""
        return math.nan if self.trigger_ns is None else (int(t_ns) - self.trigger_ns) / 1e9

    def seconds(self, t_ns: int) -> float:
        """Return a session time in s from the session's first volume; NaN before the trigger."""
        return self.since_trigger_s(t_ns) + self.begins_s

    def starts_s(self, index: int) -> float:
        """Return the session time at which a volume of the run starts, s; NaN before the trigger."""
        return math.nan if self.trigger_ns is None else self.trigger_ns / 1e9 + (index - self.first_volume) * self.tr_s


@dataclass(frozen=True, eq=False)
class Grid:
    """Sampling grid of a volume.

    Parameters
    ----------
    shape : tuple of int, (3,)
        Number of voxels along X, Y, Z.
    affine : ndarray, float64 (4, 4)
        Voxel index to RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
            raise ValueError(f"Grid affine: expected an invertible finite 4 x 4 matrix, got {self.affine!r}")
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"Grid shape: expected 3 positive numbers, got {self.shape!r}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @property
    def voxel_size_mm(self) -> NDArray[np.float64]:
        """Voxel edge lengths in millimetres, float64 (3,)."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def difference(self, other: Grid, tolerance_mm: float = 0.1) -> str:
        """Return how another grid differs from this one: an empty string if it does not.

        Two grids agree when their shapes are equal and every corner voxel lies within `tolerance_mm`.
        """
        if self.shape != other.shape:
            return f"expected shape {self.shape}, found {other.shape}"
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        corners[:, :3] *= np.array(self.shape) - 1
        shift = np.abs((corners @ (self.affine - other.affine).T)[:, :3]).max()
        if shift <= tolerance_mm:
            return ""
        return (
            f"voxels lie up to {shift:.2f} mm apart (voxel sizes: expected {np.round(self.voxel_size_mm, 3)}, found "
            f"{np.round(other.voxel_size_mm, 3)} mm; origins: expected {np.round(self.affine[:3, 3], 2)}, found "
            f"{np.round(other.affine[:3, 3], 2)})"
        )


@dataclass(frozen=True)
class Projected:
    """One volume as used by decoding, with the noise and response estimated then.

    Parameters
    ----------
    index : int
        Its number in the session.
    t_s : float
        Middle of its acquisition, s from the session's first volume.
    value : float
        Its projection on the map, in units of the noise.
    motion_mm : tuple of float, (6,)
        Of the head, mm; rotations on a sphere of 50 mm.
    autocorrelation : float
        Of the noise over one second.
    drift_sd : float
        Spread of the drift after one second, in noise standard deviations.
    lag_s, lag_sd_s, width, undershoot : float
        Of the response, see :mod:`rtevo.decode.grid`.
    """

    index: int
    t_s: float
    value: float
    motion_mm: tuple[float, ...]
    autocorrelation: float
    drift_sd: float
    lag_s: float
    lag_sd_s: float
    width: float
    undershoot: float = 1.0


def _with_volume(fields: list[tuple[Any, ...]], capacity: int, echoes: int = 1) -> np.dtype[np.void]:
    """Add a volume of any shape of up to `capacity` voxels, with its grid, or so many echoes of it; see :func:`put_volume`."""
    voxels = (capacity,) if echoes == 1 else (echoes, capacity)
    return np.dtype([*fields, ("shape", "<i4", (3,)), ("affine", "<f8", (4, 4)), ("data", "<f4", voxels)], align=True)


def put_volume(slot: Any, data: NDArray[Any] | None, grid: Grid) -> None:
    """Write a volume and its grid into a slot of ``volumes`` or ``aligned``.

    Parameters
    ----------
    slot : numpy.void
    data : ndarray (X, Y, Z), or (echoes, X, Y, Z) in a slot of several, or None
        None: zeros.
    grid : Grid
        Of at most as many voxels as the slot holds.
    """
    slot["shape"], slot["affine"] = grid.shape, grid.affine
    voxels = slot["data"]
    into = voxels[..., : math.prod(grid.shape)]
    if voxels.ndim == 1:
        into.reshape(grid.shape)[...] = 0 if data is None else data
        return
    for k, echo in enumerate(into):  # of which each is contiguous, and all together are not
        echo.reshape(grid.shape)[...] = 0 if data is None else data[k]


def volume_of(slot: Any) -> tuple[NDArray[np.float32], Grid]:
    """Return the volume in a slot, float32 (X, Y, Z) or (echoes, X, Y, Z), without a copy, and the grid that it lies on."""
    grid = Grid(tuple(slot["shape"]), slot["affine"])
    voxels, count = slot["data"], math.prod(grid.shape)
    if voxels.ndim == 1:
        return voxels[:count].reshape(grid.shape), grid
    steps = (voxels.strides[0], *(4 * math.prod(grid.shape[axis + 1 :]) for axis in range(3)))
    return np.lib.stride_tricks.as_strided(voxels, (len(voxels), *grid.shape), steps, writeable=False), grid


def volume_dtype(capacity: int, echoes: int = 1) -> np.dtype[np.void]:
    """Slot of the ``volumes`` ring: one brain volume of up to `capacity` voxels as the scanner gave it (rescaled), on its own grid.

    Where echoes are combined the slot holds all of them, so that a volume crosses to another process once.

    All volumes of a run lie on one grid; a volume that is missing has that of the others (one voxel, where none has come yet).
    """
    return _with_volume(
        [
            ("index", "<i4"),  # position in the run, from the headers, 0 = first
            ("flags", "<u4"),  # VolumeFlag
            ("acquired_s", "<f8"),  # scanner's acquisition time from the first volume, s; NaN where the header has none
            ("closed_ns", "<i8"),  # the last file of the volume was closed by its writer
            ("ingested_ns", "<i8"),  # published
            ("acquisition", f"S{ACQUISITION_BYTES}"),  # of the run's first volume: what the headers say, JSON with BIDS's names
        ],
        capacity,
        echoes,
    )


def aligned_dtype(capacity: int | None = None, physio: int | None = None) -> np.dtype[np.void]:
    """Slot of the ``aligned`` ring: motion of one volume, and where `capacity` (voxels) is given the aligned volume with its grid.

    Where pulse or respiration is measured (`physio`: the number of terms that are made of them) these come with it.
    """
    fields: list[tuple[Any, ...]] = [
        ("index", "<i4"),
        ("flags", "<u4"),
        ("acquired_s", "<f8"),
        ("motion", "<f8", (6,)),  # MOTION_COLUMNS: against today's reference; on the decoder's own grid, against the decoder's
        ("framewise_displacement_mm", "<f8"),  # NaN for the first volume
        ("dvars_percent", "<f8"),  # inside the decoder's mask; NaN for the first volume, and before the decoder is placed
        ("tsnr", "<f8"),  # median inside the decoder's mask, all volumes so far; NaN for the first ones
        ("closed_ns", "<i8"),
        ("ingested_ns", "<i8"),
        ("aligned_ns", "<i8"),
        ("events_taken", "<i4"),  # of the part, that decoding had taken before it; -1: not known
    ]
    if physio is not None:
        fields += [
            ("physio", "<f8", (physio,)),  # terms of the volume, see `rtevo.physio.Physiology`; 0 where a sensor was not used
            ("heart_rate", "<f8"),  # a minute; NaN where the pulse was not used
            ("respiration_rate", "<f8"),  # a minute; NaN where it is not known
        ]
    return np.dtype(fields, align=True) if capacity is None else _with_volume(fields, capacity)


SAMPLES = 256


def physiology_dtype() -> np.dtype[np.void]:
    """Slot of the ``physiology`` ring: samples of pulse or respiration as they came, evenly measured."""
    return np.dtype(
        [
            ("sensor", "<i4"),  # rtevo.physio.Sensor
            ("segment", "<i4"),  # counts series: after lost samples another one begins
            ("number", "<i8"),  # of the first sample in its series
            ("count", "<i4"),
            ("t_ns", "<i8"),  # session time of the first sample, as it is known now: it holds for those before, too
            ("error_ns", "<i8"),  # bound of that; where `anchored` is 0, for a device that sends what it has measured at once
            ("anchored", "<i4"),  # 1: by the scanner's pulses on a channel of the same device
            ("step_ns", "<f8"),  # between two samples
            ("values", "<f4", (SAMPLES,)),
        ],
        align=True,
    )


def placement_dtype() -> np.dtype[np.void]:
    """Slot of the ``placements`` ring: how the decoder was found to lie on today's head, and what was decided about it.

    An attempt is published when it has been made and again when it has been decided. What it decides holds from the next volume on.
    """
    return np.dtype(
        [
            ("attempt", "<i4"),  # 0 = the part's first
            ("volume", "<i4"),  # the last volume that had come
            ("own_grid", "<i4"),  # 1: volumes lie on the decoder's own grid, and are aligned to its reference
            ("decision", "<i4"),  # Decision
            ("matrix", "<f8", (4, 4)),  # decoder's world to today's, RAS+ mm
            ("correlation", "<f8"),
            ("overlap", "<f8"),  # share of the decoder's reference inside today's field of view
            ("weight_kept", "<f8"),  # share of the decoder's weight inside today's field of view
            ("expected_error_mm", "<f8"),
            ("verdict", "S12"),  # good, doubtful, bad
            ("reasons", "S1000"),  # sentences, a line each
            ("placed_ns", "<i8"),
        ],
        align=True,
    )


NEIGHBOURS = 8
"""Number of images before an image with which a score's error may be correlated."""


def score_dtype(maps: int = 0, nuisance: int = 0) -> np.dtype[np.void]:
    """Slot of the ``scores`` ring: the response to one image, NaN where it could not be measured; with those of `maps` maps.

    `nuisance` groups of nuisance terms: the probability that each is there, NaN where it is not known yet.
    """
    several: list[tuple[Any, ...]] = [("maps", "<f8", (maps, 2))] if maps else []  # score and standard error of each
    several += [("nuisance", "<f8", (nuisance,))] if nuisance else []
    return np.dtype(
        [
            *several,
            ("generation", "<i4"),
            ("candidate", "<i4"),
            ("revision", "<i4"),  # 0 = first value; later values replace it
            ("volumes_used", "<i4"),
            ("score", "<f8"),
            ("score_se", "<f8"),  # of one image against others; NaN where the method gives none
            ("reliability", "<f8"),  # of all scores so far: expected squared correlation with the responses; NaN where not known
            ("lag_s", "<f8"),  # of the response against the canonical one, as far as known then; NaN where nothing is learnt of it
            ("lag_sd_s", "<f8"),
            ("width", "<f8"),  # of its peak, as a multiple of the canonical one
            ("width_sd", "<f8"),
            ("measured", "<f8"),  # the response as the volumes alone have it, drawn to nothing; NaN where it is not known
            ("measured_se", "<f8"),  # of what its error has of its own
            ("neighbours", "<f8", (NEIGHBOURS,)),  # how its error follows from those of the scored images before it, the nearest first
            ("onset_s", "<f8"),  # from the first volume
            ("closed_ns", "<i8"),  # of the last volume that was needed
            ("scored_ns", "<i8"),
        ],
        align=True,
    )


def series_dtype() -> np.dtype[np.void]:
    """Slot of the ``series`` ring: a volume as used by decoding, for a strategy that uses volumes (``[evolution] strategy``)."""
    return np.dtype(
        [
            ("index", "<i4"),
            ("part", "<i4"),  # of the session: each has a signal level of its own
            ("t_s", "<f8"),  # middle of its acquisition, from the first volume
            ("value", "<f8"),  # projection on the map, noise standard deviations
            ("motion_mm", "<f8", (6,)),  # MOTION_COLUMNS, rotations on a sphere of 50 mm
            ("autocorrelation", "<f8"),  # of the noise over a second, as far as known then, as all that follows
            ("drift_sd", "<f8"),  # spread of the drift after a second, noise standard deviations
            ("lag_s", "<f8"),  # of the response against the canonical one
            ("lag_sd_s", "<f8"),
            ("width", "<f8"),  # of its peak, as a multiple of the canonical one
            ("undershoot", "<f8"),  # likewise
        ],
        align=True,
    )


def fitness_dtype() -> np.dtype[np.void]:
    """Slot of the ``fitness`` ring: the fitness that evolution received for one image: its score, rating, or another's (sham, yoked)."""
    return np.dtype(
        [
            ("generation", "<i4"),
            ("candidate", "<i4"),
            ("fitness", "<f8"),  # NaN where it was missing and left out; later values replace it
            ("fitness_se", "<f8"),  # NaN where not known
            ("scores_taken", "<i4"),  # scores (or ratings) that evolution had taken by then
            ("given_up", "<i4"),  # 1: the score is no longer waited for; 2: not shown, or taken away (see `Given`)
            ("decided_ns", "<i8"),
        ],
        align=True,
    )


def latent_dtype(latent_size: int, embedding_size: int) -> np.dtype[np.void]:
    """Slot of the ``latents`` ring: one candidate to paint."""
    return np.dtype(
        [
            ("generation", "<i4"),
            ("candidate", "<i4"),
            ("probe", "<i4"),  # number of the probe; -1: a candidate of evolution
            ("scores_taken", "<i4"),  # scores (or ratings) that evolution had taken when it asked
            ("volumes_taken", "<i4"),  # of the ring `series`, in the whole session; 0 if the strategy uses scores
            ("onsets_taken", "<i4"),  # images of whose appearance it had heard
            ("seed", "<u8"),  # of the diffusion noise
            ("scored_ns", "<i8"),  # of the last score that shaped this generation (0 for the first)
            ("evolved_ns", "<i8"),
            ("latent", "<f4", (latent_size,)),
            ("embedding", "<f4", (embedding_size,)),
        ],
        align=True,
    )


def image_dtype(height: int, width: int, embedding_size: int) -> np.dtype[np.void]:
    """Slot of the ``images`` and ``refused`` rings: one picture, row 0 at the top, RGB, and the embedding that it re-encodes to.

    ``images`` has one for each latent, the last attempt; ``refused`` every picture that the gate did not let through.
    """
    return np.dtype(
        [
            ("generation", "<i4"),
            ("candidate", "<i4"),
            ("scored_ns", "<i8"),
            ("evolved_ns", "<i8"),
            ("painted_ns", "<i8"),
            ("attempt", "<i4"),  # 0 = first; further ones are painted with other noise, because those before were refused
            ("refused", "<i4"),  # 1: the gate did not let it through: nobody shows it
            ("sha256", "S64"),  # of the pixels that were judged
            ("verdict", f"S{VERDICT_BYTES}"),  # JSON, see `rtevo.gate.Verdict.fields`
            ("embedding", "<f4", (embedding_size,)),  # re-encoded
            ("pixels", "u1", (height, width, 3)),
        ],
        align=True,
    )


def event_dtype() -> np.dtype[np.void]:
    """Slot of the ``events`` ring: what happened at the stimulus PC."""
    return np.dtype(
        [
            ("kind", "<i4"),  # EventKind
            ("generation", "<i4"),  # -1 where no image is meant
            ("candidate", "<i4"),
            ("t_ns", "<i8"),  # session time
            ("error_ns", "<i8"),  # bound of t_ns: of the clock mapping and of what the presenter does not know
            ("received_ns", "<i8"),
            ("value", "<f8"),
            ("response_time_s", "<f8"),
            ("guess", "?"),  # t_ns is a guess; the truth lies within error_ns of it
            ("text", "S240"),
        ],
        align=True,
    )


def named(generation: int, candidate: int, sha256: str) -> str:
    """Name a picture, as the operator's actions do: this one and no other."""
    return f"{generation}/{candidate}/{sha256[:16]}"


def message_dtype() -> np.dtype[np.void]:
    """Slot of the ``messages`` ring: warnings, and what the operator does."""
    return np.dtype(
        [
            ("kind", "<i4"),  # MessageKind
            ("t_ns", "<i8"),  # session time; 0 before its start
            ("stage", "S16"),  # who says it; empty: the supervisor
            # of the operator: start, pause, go_on, stop, mark, seen, accept, again, restart, admit, correct, show, veto, away
            ("action", "S16"),
            ("text", "S480"),
        ],
        align=True,
    )
