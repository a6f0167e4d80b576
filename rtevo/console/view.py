"""A session's state from its log, for the operator: records in, the state of everything out. Pure; the page only draws it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rtevo.config import Config, is_localizer
from rtevo.localizer import Task, judge
from rtevo.record import (
    AlignedRecord,
    EventRecord,
    FitnessRecord,
    GridRecord,
    Holding,
    ImageRecord,
    LatentRecord,
    Notice,
    Painting,
    PlacementRecord,
    Record,
    RefusedRecord,
    ScoreRecord,
    Start,
)
from rtevo.records import FD_LIMIT_MM, HEAD_RADIUS_MM, NOTES, Decision, EventKind, RunClock, VolumeFlag, named
from rtevo.session.plan import MEASURED

__all__ = ["FULL", "LATENCIES", "Latency", "Trial", "View", "Volume"]

CLOCK_LIMIT_MS = 8.0  # half a frame at 60 Hz
SILENCE_TR = 4.0  # time without a volume after which the operator is warned
FULL = 0.75  # share of a ring waiting to be read, above which the operator is warned
RECENT = 8  # volumes
SENSORS_S = 15.0  # of the run, from which on pulse and respiration should be known
LATENCIES = {  # what is slow when it is; its short name; in what time it has to be done
    "align": ("Aligning a volume", "volume aligned", "TR"),
    "score": ("Scoring", "image scored", "TR"),
    "evolve": ("Evolution", "score used", "TR"),
    "paint": ("Painting", "picture painted", "image"),
    "report": ("The stimulus PC's report", "onset reported", "TR"),
}
OfImage = LatentRecord | ImageRecord | ScoreRecord | FitnessRecord | EventRecord
_SHOWN = {
    "pause": "pause after this image",
    "go_on": "go on",
    "resume": "go on",  # in logs of 0.1
    "start": "start",
    "stop": "stop",
    "mark": "mark",
    "seen": "the alarm has been seen",
    "accept": "the placement is accepted",
    "again": "the next volumes are tried",
    "restart": "the scanner's run begins anew",
    "admit": "the waiting presenter is let in",
    "correct": "the start is corrected, as the volumes say",
    "show": "shown",
    "veto": "taken out",
    "away": "taken away",
}


@dataclass
class Trial:
    """One image, as far as it has come."""

    generation: int
    candidate: int
    probe: bool = False
    painted: bool = False
    shown: bool = False
    refused: bool = False  # by the gate, or taken away
    sha256: str = ""

    @property
    def name(self) -> str:
        """Name of its picture in the operator's actions."""
        return named(self.generation, self.candidate, self.sha256)

    value: float = math.nan  # score; in the conditions ratings and physiology what has been measured instead
    error: float = math.nan  # its standard error
    fitness: float = math.nan
    maps: str = ""  # scores of an objective's maps, in words


@dataclass(frozen=True)
class Volume:
    """Motion of one volume; NaN where it is not known."""

    index: int
    flags: int
    displacement_mm: float  # framewise
    motion_mm: tuple[float, ...]  # translations, and rotations as millimetres on a sphere of 50 mm


@dataclass
class Latency:
    """Durations of a stage, wall milliseconds."""

    deadline_ms: float
    values: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    late: int = 0

    def add(self, ms: float) -> None:
        """Add one value."""
        self.values.append(ms)
        self.late += ms > self.deadline_ms

    @property
    def worst(self) -> float:
        """The longest of the last 200."""
        return max(self.values, default=math.nan)

    @property
    def usual(self) -> float:
        """Their median."""
        return sorted(self.values)[len(self.values) // 2] if self.values else math.nan


def maps_in_words(maps: Mapping[str, Sequence[float]] | None) -> str:
    """Return the scores of an objective's maps: ``face +1.20 ± 0.31, place -0.40 ± 0.28``."""
    said = []
    for name, (score, error) in (maps or {}).items():
        said.append(f"{name} {score:+.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}"))
    return ", ".join(said)


class View:
    """State of a session, from the records of its log.

    In a blinded session no score, rating or fitness gets in; nor where the operator looks at the pictures before they are shown: to take
    one out is a choice, which must not follow from scores.

    Parameters
    ----------
    config : Config
    tr_s : float

    Attributes
    ----------
    voxel_mm : float
        Shortest edge of a voxel: the head should stay within it. NaN before the first volume.
    """

    def __init__(self, config: Config, tr_s: float) -> None:
        self.config, self.tr_s, self.voxel_mm = config, tr_s, math.nan
        self.blinded = config.session.condition == "blinded" or config.safety.approval != "none"
        self.measured = MEASURED.get(config.session.condition)
        speed = config.session.speed or math.inf
        cadence_s = config.generator.deadline_s or config.presentation.image_s + config.presentation.washout_s
        limits_ms = {"TR": 1e3 * tr_s / speed or math.inf, "image": 1e3 * cadence_s / speed or math.inf}
        self.latencies = {name: Latency(limits_ms[limit]) for name, (_, _, limit) in LATENCIES.items()}
        self._painting, self._holding = Painting(1e3 * cadence_s / speed), Holding()
        self.trials: dict[tuple[int, int], Trial] = {}
        self.localizer = is_localizer(config)
        self.planned: dict[tuple[int, int], Mapping[str, Any]] = {}  # of a localizer: its schedule
        self.presses_s: list[float] = []  # session time
        self.refusals = 0  # pictures that the gate did not let through
        self.approved: set[str] = set()  # names of pictures
        self.vetoed: set[str] = set()
        self.score, self.score_maps = math.nan, ""  # the last one; NaN where it is not known or must not be
        self.volumes: list[Volume] = []
        self.part = 0
        self.messages: deque[tuple[float, str, str]] = deque(maxlen=200)  # session time s, kind, text
        self.begin()

    def begin(self) -> None:
        """A part of the session begins: its clock starts at 0."""
        self._painting.begin()
        self._holding.begin()
        self.run = RunClock(self.tr_s)  # of this part alone
        self.scene, self.since_s = "nothing", 0.0
        self.onsets: list[tuple[float, Trial]] = []  # of this part
        self.showing: tuple[int, int] | None = None  # on the screen now
        self.last: tuple[int, int] | None = None  # shown last
        self.volume_s = math.nan  # when the last volume came
        self.rates: dict[str, float] = {}  # a minute, of pulse and respiration where they are measured; NaN: not used now
        self.onset_s = math.nan  # when the last image appeared
        self.placement: PlacementRecord | None = None  # the latest attempt to place the decoder on today's head
        self.clock_error_ms = math.nan
        self._errors_ms: deque[float] = deque(maxlen=2)  # of the last events
        self.presenter, self.silent = "", False
        self.other = ""  # presenter that waits to be let in
        self.held = 0
        self.unseen: list[str] = []  # alarms that nobody has seen yet
        self._scored_ns: dict[tuple[int, int], int] = {}

    # --- records --------------------------------------------------------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """Process one record of the log; those of no interest to the operator are skipped."""
        handler = self._HANDLERS.get(type(record))
        if handler is not None:
            handler(self, record)

    def _start(self, record: Start) -> None:
        self.begin()
        self.part = record.part
        self.planned = {(trial["block"], trial["place"]): trial for trial in record.trials or ()}

    def _grid(self, record: GridRecord) -> None:
        self.voxel_mm = float(np.linalg.norm(np.array(record.affine)[:3, :3], axis=0).min())

    def _placements(self, record: PlacementRecord) -> None:
        self.placement = record

    @property
    def asked(self) -> PlacementRecord | None:
        """The placement that waits for the operator."""
        found = self.placement
        return found if found is not None and found.decision == Decision.PENDING and found.verdict != "good" else None

    @property
    def placed(self) -> bool:
        """Whether the decoder lies on today's head; a localizer has none that would have to."""
        return self.localizer or (self.placement is not None and self.placement.decision == Decision.ACCEPTED)

    def _trial(self, record: OfImage) -> Trial:
        key = (record.generation, record.candidate)
        return self.trials.setdefault(key, Trial(*key))

    def _latents(self, record: LatentRecord) -> None:
        self._trial(record).probe = record.probe >= 0
        self._painting.asked(record)

    def _refused(self, record: RefusedRecord) -> None:
        self.refusals += 1

    def _images(self, record: ImageRecord) -> None:
        trial = self._trial(record)
        trial.painted, trial.refused, trial.sha256 = not record.refused, bool(record.refused), record.sha256
        ns = self._painting.painted(record)
        if ns is not None and self.run.trigger_ns is not None:  # the first ones have waited for it
            self.latencies["paint"].add(ns / 1e6)

    def _scores(self, record: ScoreRecord) -> None:
        if record.closed_ns:
            self.latencies["score"].add((record.scored_ns - record.closed_ns) / 1e6)
        self._scored_ns[record.generation, record.candidate] = record.scored_ns
        if not self.blinded and self.measured is None:
            trial = self._trial(record)
            trial.value, trial.error, trial.maps = record.score, record.score_se, maps_in_words(record.maps)
            self.score, self.score_maps = record.score, trial.maps

    def _fitness(self, record: FitnessRecord) -> None:
        scored_ns = self._scored_ns.pop((record.generation, record.candidate), None)
        if scored_ns is not None and self.measured is None:
            self.latencies["evolve"].add((record.decided_ns - scored_ns) / 1e6)
        if not self.blinded:
            self._trial(record).fitness = record.fitness

    def _aligned(self, record: AlignedRecord) -> None:
        x, y, z, *angles = record.motion
        motion = (x, y, z, *(angle * HEAD_RADIUS_MM for angle in angles))
        volume = Volume(record.index, record.flags, record.framewise_displacement_mm, motion)
        if volume.flags & VolumeFlag.LATE:  # takes the place of its gap
            self.volumes = sorted([v for v in self.volumes if v.index != volume.index] + [volume], key=lambda v: v.index)
        else:
            self.volumes.append(volume)
        self.volume_s = record.clock_ns / 1e9
        known = (
            ("pulse", self.config.physio.cardiac, record.heart_rate),
            ("respiration", self.config.physio.respiration, record.respiration_rate),
        )
        self.rates = {name: rate for name, there, rate in known if there and rate is not None}
        if self.placed and not record.flags & VolumeFlag.MISSING:  # before, it may take longer: nobody waits for a score
            self.latencies["align"].add((record.aligned_ns - record.closed_ns) / 1e6)

    def _notice(self, record: Notice) -> None:
        text = record.text
        if record.level == "operator":
            text = _SHOWN.get(record.action, record.action) + (f": {text}" if text else "")
        if record.action in ("show", "veto"):
            (self.approved if record.action == "show" else self.vetoed).add(record.text)
        if record.action == "seen":
            self.unseen.clear()
        elif record.level == "alarm":
            self.unseen.append(text)
        self.messages.append((record.t_ns / 1e9, record.level, text))

    def _events(self, record: EventRecord) -> None:
        kind, t_s = record.kind, record.t_ns / 1e9
        self.held += self._holding.take(record)
        if kind not in NOTES and kind != EventKind.PHYSIOLOGY and self.config.session.speed:
            self._errors_ms.append(record.error_ns / 1e6)
            self.clock_error_ms = min(self._errors_ms)  # others may also hold what a stalled screen leaves unknown
            self.latencies["report"].add(max(0.0, 1e3 * (record.clock_ns / 1e9 - t_s) / self.config.session.speed))
        if kind in NOTES:
            self._note(record)
        elif kind == EventKind.TRIGGER:  # a second one corrects it
            if self.run.trigger_ns is None:
                self._scene("fixation", t_s)
            self.run = self.run.triggered(record.t_ns)
        elif kind == EventKind.ONSET:
            self.showing = self.last = (record.generation, record.candidate)
            self.onset_s = t_s
            self._trial(record).shown = True
            self.onsets.append((t_s, self._trial(record)))
            self._scene("image", t_s)
        elif kind == EventKind.OFFSET:
            self.showing = None
            self._scene("rating" if self.measured == EventKind.RATING else "fixation", t_s)
        elif kind in (EventKind.TAKEN, EventKind.REFUSED):
            self._trial(record).refused = True
        elif kind == EventKind.PRESS:
            self.presses_s.append(t_s)
        elif kind in (EventKind.FIXATION, EventKind.PAUSE, EventKind.GO_ON, EventKind.END):
            paused = "paused" if self.placed else "placing"
            scenes = {EventKind.FIXATION: "late", EventKind.PAUSE: paused, EventKind.GO_ON: "fixation", EventKind.END: "over"}
            self._scene(scenes[EventKind(kind)], t_s)
        elif kind == self.measured:
            self._scene("fixation", t_s)
            if not self.blinded:
                self._trial(record).value = record.value

    def _scene(self, scene: str, t_s: float) -> None:
        self.scene, self.since_s = scene, t_s

    def _note(self, record: EventRecord) -> None:
        """Process the bridge's messages on the presenter."""
        kind, name = record.kind, record.text.partition(": ")[2]
        if kind == EventKind.READY:
            self.presenter = name
            if self.scene == "nothing":
                self.scene = "waiting"
        elif kind == EventKind.WAITS:
            self.other = name.partition(";")[0]
        elif kind in (EventKind.LEFT, EventKind.REPLACED):
            self.other = ""
        if kind in (EventKind.SILENT, EventKind.BACK, EventKind.REPLACED):
            self.silent = kind == EventKind.SILENT

    _HANDLERS: ClassVar[dict[type[Record], Callable[[View, Any], None]]] = {
        Start: _start,
        GridRecord: _grid,
        PlacementRecord: _placements,
        LatentRecord: _latents,
        ImageRecord: _images,
        RefusedRecord: _refused,
        ScoreRecord: _scores,
        FitnessRecord: _fitness,
        AlignedRecord: _aligned,
        EventRecord: _events,
        Notice: _notice,
    }

    # --- what follows from them -----------------------------------------------------------------------------------------------------

    @property
    def generations(self) -> list[tuple[int, list[Trial]]]:
        """Trials by generation, the newest first; those that nobody has painted yet are left out."""
        found: dict[int, list[Trial]] = {}
        for trial in self.trials.values():
            if trial.painted:
                found.setdefault(trial.generation, []).append(trial)
        return sorted(((g, sorted(own, key=lambda t: t.candidate)) for g, own in found.items()), reverse=True, key=lambda row: row[0])

    @property
    def upcoming(self) -> list[Trial]:
        """Pictures that are painted and not shown yet, in the order of their requests; without those that will not be shown."""
        waiting = [t for t in self.trials.values() if t.painted and not (t.shown or t.refused)]
        return [t for t in waiting if t.name not in self.vetoed]

    def on_screen(self, t_s: float) -> Trial | None:
        """The image that was on the screen at a session time; None where none is known to have been."""
        on = next(((onset_s, trial) for onset_s, trial in reversed(self.onsets) if onset_s <= t_s), None)
        return on[1] if on is not None and t_s - on[0] < self.config.presentation.image_s else None

    @property
    def due_s(self) -> float:
        """Session time at which the next image is due; NaN where none is."""
        if self.scene not in ("image", "fixation", "rating") or self.onset_s != self.onset_s:
            return math.nan
        if (trial := self.planned.get(self.last or (-1, -1))) is not None:
            return self.onset_s + float(trial["image_s"]) + float(trial["washout_s"])
        settings = self.config.presentation
        return self.onset_s + settings.image_s + settings.washout_s

    @property
    def task(self) -> Task:
        """Results of a localizer's task so far."""
        targets = [bool(self.planned.get((trial.generation, trial.candidate), {}).get("target")) for _, trial in self.onsets]
        return judge([onset_s for onset_s, _ in self.onsets], targets, self.presses_s, self.config.localizer.response_s)

    @property
    def shown(self) -> int:
        """Number of images that have been shown."""
        return sum(trial.shown for trial in self.trials.values())

    @property
    def missing(self) -> int:
        """Number of volumes that never arrived whole."""
        return sum(bool(volume.flags & VolumeFlag.MISSING) for volume in self.volumes)

    def means(self) -> list[tuple[int, float, float]]:
        """Return each generation's mean fitness and its standard error (NaN for one value); probes are left out."""
        found = []
        for generation, trials in reversed(self.generations):
            known = [t.fitness for t in trials if not t.probe and not math.isnan(t.fitness)]
            if known:
                found.append((generation, *mean_and_error(known)))
        return found

    def alarms(self, now_s: float, depths: Mapping[str, tuple[int, int]]) -> list[str]:
        """Return in plain words what is not in order now, the worst first.

        Parameters
        ----------
        now_s : float
            Session time.
        depths : mapping of ring to (waiting, slots)
        """
        now = [*self._placement_alarms(), *self._link_alarms(now_s), *self._scanner_alarms(now_s), *self._speed_alarms(depths)]
        return [*self.unseen, *now]

    def _placement_alarms(self) -> list[str]:
        asked = self.asked
        if asked is None or self.scene == "over":
            return []
        return [f"The placement of the decoder on today's head is {asked.verdict}.", *filter(None, asked.reasons.split("\n"))]

    def _link_alarms(self, now_s: float) -> list[str]:
        found: list[str] = []
        if self.scene == "over":
            return found
        if self.silent:
            found.append("The stimulus PC does not answer: look at its screen and cable. The participant sees fixation.")
        if self.other:
            found.append(
                f"Another presenter waits: {self.other}. It stays outside unless you let it in (the participant must see that screen)."
            )
        each = self.config.safety.approval == "each" and any(t.name not in self.approved for t in self.upcoming[:1])
        if self.scene == "late" and each:
            found.append(f"The next picture waits for your approval; fixation has been held for {now_s - self.since_s:.0f} s.")
        elif self.scene == "late" and now_s - self.since_s > 2 * self.tr_s and self.config.evolution.schedule == "steady":
            found.append(f"The next picture is late: fixation has been held for {now_s - self.since_s:.0f} s.")
        if self.clock_error_ms > CLOCK_LIMIT_MS:
            found.append(f"The stimulus PC's clock is known only to {self.clock_error_ms:.0f} ms, and so are the onsets.")
        return found

    def _scanner_alarms(self, now_s: float) -> list[str]:
        found: list[str] = []
        last = self.volume_s if not math.isnan(self.volume_s) else (self.run.trigger_ns or 0) / 1e9
        if self.run.trigger_ns is not None and self.scene != "over" and now_s - last > SILENCE_TR * self.tr_s:
            found.append(f"No volume for {now_s - last:.0f} s: does the scanner still run and export?")
        if lost := [name for name, rate in self.rates.items() if math.isnan(rate) and len(self.volumes) * self.tr_s > SENSORS_S]:
            found.append(f"The {' and the '.join(lost)} cannot be used now, so its effect stays in the signal: check the sensor.")
        recent = self.volumes[-RECENT:]
        moved = max((v.displacement_mm for v in recent if not math.isnan(v.displacement_mm)), default=0.0)
        if moved > self.config.decoder.spike_mm:
            found.append(f"The head has just moved by {moved:.1f} mm: the volume is left out. Remind the participant to keep still.")
        elif moved > FD_LIMIT_MM:
            found.append(f"The head has just moved by {moved:.1f} mm.")
        far = max((abs(x) for v in recent[-1:] for x in v.motion_mm if not math.isnan(x)), default=0.0)
        if far > self.voxel_mm:
            found.append(f"The head lies {far:.1f} mm from the reference (a voxel is {self.voxel_mm:.1f} mm).")
        if any(v.flags & VolumeFlag.MISSING for v in recent):
            found.append("A volume is missing or incomplete.")
        if any(v.flags & VolumeFlag.UNALIGNED for v in recent):
            found.append("A volume could not be aligned.")
        return found

    def _speed_alarms(self, depths: Mapping[str, tuple[int, int]]) -> list[str]:
        found: list[str] = []
        for name, latency in self.latencies.items():
            if latency.values and latency.values[-1] > latency.deadline_ms:
                found.append(f"{LATENCIES[name][0]} took {latency.values[-1]:.0f} ms: {latency.deadline_ms:.0f} are allowed.")
        for ring, (waiting, slots) in depths.items():
            if waiting > FULL * slots:
                found.append(f"{waiting} of {slots} slots of {ring} are full: its readers cannot keep up.")
        return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return a mean and its standard error; NaN for the error of one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
