"""A simulated scanner: measures the head of a simulated participant.

Every volume is the head at rest, moved as it lies at that moment, plus the responses of its hidden voxels, slow drift and noise. Volume
``k`` is acquired slice by slice during ``[k TR, (k + 1) TR)``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.records import Grid
from rtevo.simulate.body import LONGEST_S, Body
from rtevo.simulate.concept import ConceptPreference
from rtevo.simulate.echoes import echoes_of, relaxation_per_s
from rtevo.simulate.head import Head, HeadMotion, motion_matrix, scan_grid
from rtevo.simulate.participant import ColourPreference, Participant, Preference
from rtevo.simulate.today import MASTER, Today, sampled

__all__ = ["Noise", "Scanner", "Simulation", "slice_times_s"]

Field = NDArray[np.float32]
HEAD, PREFERENCE, NOISE, MOTION, BEHAVIOUR, LOCALIZER = range(6)  # streams of random numbers
AREA, BODY, SENSORS = 7, 8, 9  # others
_RANGES = {
    "seed": (0, math.inf),
    "participant_seed": (0, math.inf),
    "tr_s": (1e-3, 60),
    "amplitude_percent": (-50, 50),
    "visual_percent": (0, 50),
    "tsnr": (1, math.inf),
    "ar1": (0, 0.99),
    "physiological": (0, 1),
    "drift_percent": (0, 50),
    "motion_mm": (0, 50),
    "physiology_percent": (0, 50),
}


@dataclass(frozen=True)
class Simulation:
    """One simulated participant in one simulated run; the same values give the same head, preference, noise and motion.

    Parameters
    ----------
    seed : int
        Of the run: noise, motion, answers.
    participant_seed : int
        Of the participant: head, hidden voxels, preference.
    tr_s : float
        Repetition time, s.
    shape : tuple of int, (3,)
        Voxels along X, Y, Z.
    voxel_size_mm : tuple of float, (3,)
        Voxel edges.
    amplitude_percent : float
        Peak response of the strongest hidden voxel to a picture of preference 1, percent of its signal.
    visual_percent : float
        Peak response of the visual cortex to any picture, percent of its signal.
    refractory : bool
        Short intervals and pictures like those just seen make responses smaller.
    tsnr : float
        Temporal signal-to-noise ratio of grey matter: mean over the standard deviation of the noise below.
    ar1 : float
        Correlation of the physiological part of the noise from one volume to the next; that part is proportional to the signal and
        spatially smooth.
    physiological : float
        Share of the noise's variance in grey matter that is physiological; the rest is white.
    drift_percent : float
        Standard deviation of the slow drift, percent of the signal.
    motion_mm : float
        Extent of slow head motion, mm, and degrees for rotations.
    prefers : str
        Concept that is preferred; empty: colours and their layout, drawn by `participant_seed`.
    keys : tuple of str
        Of the ratings 0, 1, 2, ...
    trigger_key : str
        Pressed when the first volume starts.
    part : int
        Of the run, where it was interrupted and taken up again: noise, motion and answers of each are others.
    today : Today, optional
        Another day than the localizer's: head and slices lie elsewhere. With it the head is sampled from a fine one (see
        :mod:`rtevo.simulate.today`), so it is another than without.
    areas : tuple of str
        Concepts that have voxels of their own, beside those of what is preferred: each responds to pictures that look like its concept.
    echo_times_s : tuple of float
        Of each volume, s; empty: one echo.
    physiology_percent : float
        What pulse and respiration (:mod:`rtevo.simulate.body`) do to grey matter, standard deviation, percent of the signal.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    seed: int = 1
    participant_seed: int = 1
    tr_s: float = 0.867
    shape: tuple[int, int, int] = (80, 80, 35)
    voxel_size_mm: tuple[float, float, float] = (3.0, 3.0, 3.3)
    amplitude_percent: float = 3.0
    visual_percent: float = 2.0
    tsnr: float = 60.0
    ar1: float = 0.4
    physiological: float = 0.5
    drift_percent: float = 0.7
    motion_mm: float = 0.3
    prefers: str = ""
    keys: tuple[str, ...] = ("1", "2", "3", "4", "6")
    trigger_key: str = "5"
    part: int = 0
    today: Today | None = None
    areas: tuple[str, ...] = ()
    echo_times_s: tuple[float, ...] = ()
    physiology_percent: float = 0.0
    refractory: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"simulation {name}: expected {low:g} to {high:g}, got {getattr(self, name)!r}")
        if len(self.shape) != 3 or min(self.shape) < 8:
            raise ValueError(f"simulation shape: expected three numbers of at least 8, got {self.shape!r}")

    def rng(self, stream: int) -> np.random.Generator:
        """Return the generator of one stream of random numbers."""
        of_person = stream in (HEAD, PREFERENCE)
        of_run = [] if of_person else [self.seed, self.part] if self.part else [self.seed]
        return np.random.default_rng([stream, self.participant_seed, *of_run])

    @property
    def grid(self) -> Grid:
        """Where volumes are sampled."""
        return scan_grid(self.shape, self.voxel_size_mm) if self.today is None else self.today.grid(self.voxel_size_mm)

    def head(self) -> Head:
        """Draw the participant's head (about 0.2 s at 80 x 80 x 35)."""
        if self.today is None:
            return Head.build(self.grid, self.rng(HEAD), areas=self._of_areas())
        person = self.participant_seed if self.today.person is None else self.today.person
        other = replace(self, participant_seed=person)
        whole = Head.build(MASTER, other.rng(HEAD), areas=other._of_areas())
        return sampled(whole, self.grid, self.today.pose)

    def _of_areas(self) -> list[np.random.Generator]:
        """Return the generator of each area: the same for a concept, whatever other areas there are."""
        return [np.random.default_rng([AREA, self.participant_seed, *name.encode()]) for name in self.areas]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values; without optional parts that the participant or scanner lacks."""
        optional = ("areas", "echo_times_s", "physiology_percent", "refractory")
        return {name: value for name, value in asdict(self).items() if name not in optional or value}

    def localizer(self) -> Simulation:
        """The day of the localizer: the same participant, where head and slices lay then."""
        return replace(self, today=None if self.today is None else Today(), echo_times_s=())

    def body(self) -> Body | None:
        """Return the participant's heart and breathing; None if they have no effect."""
        return Body(self.rng(BODY), LONGEST_S) if self.physiology_percent else None

    def preference(self) -> Preference:
        """Return the participant's preference: for a concept, or drawn.

        Raises
        ------
        ConfigError
            The concept is unknown.
        """
        return ConceptPreference(self.prefers) if self.prefers else ColourPreference(self.rng(PREFERENCE))


def slice_times_s(slices: int, tr_s: float) -> NDArray[np.float64]:
    """Return the acquisition time of each slice from the volume's start, s: interleaved, in Siemens' order, float64 (slices,)."""
    first = 0 if slices % 2 else 1
    order = [*range(first, slices, 2), *range(1 - first, slices, 2)]
    times = np.empty(slices)
    times[order] = np.arange(slices) * tr_s / slices
    return times


class Noise:
    """The signal besides the head: thermal noise, physiological fluctuations, slow drift.

    Parameters
    ----------
    head : Head
    settings : Simulation
    rng : numpy.random.Generator
    """

    def __init__(self, head: Head, settings: Simulation, rng: np.random.Generator) -> None:
        shape = head.grid.shape
        level = float(head.signal[head.grey > 0.8 * head.grey.max()].mean())
        sd = level / settings.tsnr
        self._rng, self._rho = rng, settings.ar1
        self.thermal_sd = sd * math.sqrt(1 - settings.physiological)
        self._weight = head.signal * np.float32(math.sqrt(settings.physiological) / settings.tsnr)
        self._state = self._smooth_normal(shape)
        self._maps = [head.signal * ndimage.zoom(rng.standard_normal((4, 4, 3)), np.array(shape) / (4, 4, 3), order=1).astype(np.float32)]
        self._maps.append(head.signal * np.float32(0.5))
        self._drift = settings.drift_percent / 100
        self._rates = 2 * np.pi / np.exp(rng.uniform(np.log(150.0), np.log(900.0), (2, 3)))
        self._phases = rng.uniform(0, 2 * np.pi, (2, 3))

    def _smooth_normal(self, shape: tuple[int, ...]) -> Field:
        """Gaussian noise of unit variance, smooth over about 2.4 voxels (full width at half maximum), float32 (X, Y, Z)."""
        kernel = np.exp(-0.5 * np.arange(-2, 3) ** 2)
        kernel /= math.sqrt((kernel**2).sum())
        field = self._rng.standard_normal(shape, dtype=np.float32)
        for axis in range(3):
            field = ndimage.correlate1d(field, kernel, axis=axis, mode="wrap")
        return np.asarray(field, np.float32)

    def next(self, t_s: float) -> Field:
        """Return the noise and drift of the volume at `t_s`; volumes must be requested in order.

        Returns
        -------
        ndarray, float32 (X, Y, Z)
            Scanner units.
        """
        noise = self._rng.standard_normal(self._state.shape, dtype=np.float32)
        noise *= np.float32(self.thermal_sd)
        fresh = self._smooth_normal(self._state.shape)
        self._state = np.float32(self._rho) * self._state + np.float32(math.sqrt(1 - self._rho**2)) * fresh
        noise += self._weight * self._state
        course = (np.sin(self._rates * t_s + self._phases) - np.sin(self._phases)).sum(axis=1) * self._drift / math.sqrt(1.5)
        for shape, now in zip(self._maps, course, strict=True):
            noise += shape * np.float32(now)
        return noise


class Scanner:
    """Measures volumes of a head that moves and responds.

    Parameters
    ----------
    head : Head
    settings : Simulation

    Attributes
    ----------
    motion : HeadMotion
        How the head is going to move.
    """

    def __init__(self, head: Head, settings: Simulation) -> None:
        self.head, self.settings = head, settings
        self.motion = HeadMotion.draw(settings.rng(MOTION), settings.motion_mm, math.radians(settings.motion_mm))
        self.slice_times_s = slice_times_s(head.grid.shape[2], settings.tr_s)
        self._rng = settings.rng(NOISE)
        self._noise = Noise(head, settings, self._rng)
        self._box = _bounding_box(head.signal > 1.0)
        self._spline = ndimage.spline_filter(head.signal, order=3, mode="mirror", output=np.float32)
        active = (head.gains != 0) | (head.visual > 0.02)
        for area in head.areas:
            active |= area != 0
        self._active_box = _bounding_box(active)
        percent = np.float32(0.01) * head.signal
        self._hidden, self._visual = percent * head.gains, percent * np.where(active, head.visual, 0)
        self._areas = [percent * area for area in head.areas]
        self._relaxation = relaxation_per_s(head.grid) if settings.echo_times_s else None
        self._relaxes: Field | None = None  # as the head lies in the volume that is prepared
        self.body = settings.body()
        self._body_maps = [] if self.body is None else self._of_body(head, settings.physiology_percent)
        self._prepared: tuple[int, Field, Field, Field, list[Field]] | None = None
        self._next = 0

    def _of_body(self, head: Head, percent: float) -> list[Field]:
        """The effect of pulse, chest, breathing and heart rate on each voxel: smooth over space, stronger at some places."""
        rng, shape = self.settings.rng(BODY), head.grid.shape
        maps = []
        for share in (0.7, 0.55, 0.35, 0.25):
            coarse = rng.standard_normal((7, 7, 5)) * np.exp(0.5 * rng.standard_normal((7, 7, 5)))
            smooth = ndimage.zoom(coarse, np.array(shape) / coarse.shape, order=1)
            smooth *= share / float(smooth[head.grey > 0.5 * head.grey.max()].std())
            maps.append(head.signal * (0.01 * percent * smooth).astype(np.float32))
        return maps

    def params(self, index: int) -> NDArray[np.float64]:
        """Return the true head displacement in the middle of volume `index`, float64 (6,); see :class:`rtevo.simulate.head.HeadMotion`."""
        return self.motion.at((index + 0.5) * self.settings.tr_s)

    def prepare(self, index: int) -> None:
        """Work out all of volume `index` but the responses, ahead of its end; volumes come in order from 0.

        Raises
        ------
        ValueError
            If it is not the next volume.
        """
        if index != self._next:
            raise ValueError(f"scanner: expected volume {self._next} next, got {index}")
        to_rest = np.linalg.inv(motion_matrix(self.params(index), self.head.grid))
        affine = self.head.grid.affine
        voxels = np.linalg.inv(affine) @ to_rest @ affine
        still = _moved(self._spline, voxels, self._box, order=3)
        still += self._noise.next((index + 0.5) * self.settings.tr_s)
        hidden = _moved(self._hidden, voxels, self._active_box, order=1, whole=False)
        visual = _moved(self._visual, voxels, self._active_box, order=1, whole=False)
        areas = [_moved(area, voxels, self._active_box, order=1, whole=False) for area in self._areas]
        if self._relaxation is not None:
            self._relaxes = _moved(self._relaxation, voxels, self._box, order=1)
        self._prepared = (index, still, hidden, visual, areas)
        self._next += 1

    def acquire(self, index: int, participant: Participant) -> NDArray[np.int16]:
        """Measure volume `index`.

        Parameters
        ----------
        index : int
            Position in the run.
        participant : Participant
            Whose responses until the volume's end are known.

        Returns
        -------
        ndarray, int16 (X, Y, Z), or (echoes, X, Y, Z) of several
            Magnitude in scanner units.
        """
        if self._prepared is None or self._prepared[0] != index:
            self.prepare(index)
        assert self._prepared is not None
        _, volume, hidden, visual, areas = self._prepared
        self._prepared = None
        still = volume.copy() if self._relaxes is not None else volume
        times_s = index * self.settings.tr_s + self.slice_times_s
        liked, seen = (course.astype(np.float32)[self._active_box[2]] for course in participant.response(times_s))
        volume[self._active_box] += hidden * liked + visual * (np.float32(self.settings.visual_percent) * seen)
        for area, course in zip(areas, participant.area_responses(times_s), strict=True):
            volume[self._active_box] += area * course.astype(np.float32)[self._active_box[2]]
        if self.body is not None:
            for field, course in zip(self._body_maps, self.body.effects(times_s), strict=True):
                volume += field * course.astype(np.float32)
        if self._relaxes is not None:
            echoes = echoes_of(still, volume - still, self._relaxes, self.settings.echo_times_s)
            return np.stack([self._magnitude(echo) for echo in echoes])
        return self._magnitude(volume)

    def _magnitude(self, volume: Field) -> NDArray[np.int16]:
        quadrature = self._rng.standard_normal(volume.shape, dtype=np.float32)
        quadrature *= np.float32(self._noise.thermal_sd)
        return np.asarray(np.rint(np.hypot(volume, quadrature)), np.int16)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box around a mask and one voxel more, as slices along X, Y, Z."""
    box = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(inside[0]), int(inside[-1])) if inside.size else (0, 0)
        box.append(slice(max(low - 1, 0), min(high + 2, mask.shape[axis])))
    return tuple(box)


def _moved(volume: Field, voxels: NDArray[np.float64], box: tuple[slice, ...], order: int, whole: bool = True) -> Field:
    """Resample the box of a volume (spline coefficients where `order` is 3) at ``voxels @ index``; zeros outside the box if `whole`."""
    start = np.array([s.start for s in box])
    offset = voxels[:3, 3] + voxels[:3, :3] @ start - start
    out: Field = np.zeros(volume.shape, np.float32)
    target = out[box] if whole else np.empty(out[box].shape, np.float32)
    mode = "nearest" if order == 3 else "constant"
    ndimage.affine_transform(volume[box], voxels[:3, :3], offset, target.shape, target, order=order, mode=mode, prefilter=False)
    return out if whole else target
