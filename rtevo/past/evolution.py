"""The state of evolution when a session was interrupted, from its log.

A course is a function of its inputs and requests, in their order: every latent and every fitness in the log holds the number of scores
taken before it. So replaying the course restores its state: strategy, feedback and random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rtevo.evolve import Course, Request, Told
from rtevo.evolve.together import Link
from rtevo.record import (
    AlignedRecord,
    EventRecord,
    FitnessRecord,
    ImageRecord,
    LatentRecord,
    Record,
    ScoreRecord,
    SeriesRecord,
    is_measured,
    of_kind,
    parts,
    projected_of,
)
from rtevo.records import EventKind, Given, Projected, RunClock
from rtevo.session.plan import MEASURED

__all__ = ["Past", "Scored", "Volume", "go_through", "measured", "volumes_of"]

GONE = (EventKind.TAKEN, EventKind.REFUSED)
Key = tuple[int, int]
Scored = tuple[Key, float, float, Link | None]
Volume = tuple[int, Projected]
Decided = LatentRecord | FitnessRecord


@dataclass
class Past:
    """The open work of an interrupted session.

    Parameters
    ----------
    pending : list of Request
        Images that were requested and not shown, in order.
    told : list of (Told, int)
        Fitness that evolution received but the log does not hold, each with the number of scores taken by then.
    steps : list of (Told, int, Given)
        All fitness that it received, in order, each with the number of scores taken by then, and why no score will come.
    asked : list of Request
        Its requests, in order; with other fitness than the log's, these differ too.
    shown : set of (int, int)
        Generation and candidate of the images shown.
    refused : list of (int, int)
        Images that were refused or taken away, without evolution's knowledge.
    measured : set of (int, int)
        Images that were refused or taken away because of their contents.
    latents : dict of (int, int) to ndarray, float32 (d,)
        All that were asked for.
    scores_taken, volumes_taken : int
    """

    pending: list[Request] = field(default_factory=list)
    told: list[tuple[Told, int]] = field(default_factory=list)
    steps: list[tuple[Told, int, Given]] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    shown: set[Key] = field(default_factory=set)
    refused: list[Key] = field(default_factory=list)
    measured: set[Key] = field(default_factory=set)
    latents: dict[Key, np.ndarray] = field(default_factory=dict)
    scores_taken: int = 0
    volumes_taken: int = 0


def volumes_of(log: Sequence[Record]) -> list[Volume]:
    """Give the volumes that a strategy looks at, in their order, each with its part."""
    return [(r.part, projected_of(r)) for r in of_kind(log, SeriesRecord)]


class _Seen:
    """What a strategy that looks at volumes hears of these and of images, as far as it had heard of it at each decision.

    Parameters
    ----------
    course : Course
    log : sequence of Record
    volumes : sequence of (int, Projected)
    """

    def __init__(self, course: Course, log: Sequence[Record], volumes: Sequence[Volume]) -> None:
        self._course, self._volumes = course, volumes
        self._appeared: list[tuple[Key, float, float]] = []
        self._recorded = [r.index for r in of_kind(log, SeriesRecord)]
        self._before: dict[int, tuple[int, int]] = {}  # the last volume and the images before a record, where the session had no series
        self._cut: dict[Key, float] = {}
        self.taken = self._shown = 0
        image_s = 0.0
        for part in parts(log) if volumes else ():  # else nobody looks at them
            clock, index = RunClock(part.start.tr_s, part.start.first_volume), -1
            image_s = float(part.start.settings["presentation"]["image_s"]) if part.start.settings else image_s
            for record in part:
                if isinstance(record, AlignedRecord):
                    index = max(index, record.index)
                elif isinstance(record, LatentRecord):
                    self._before[record.seq] = index, len(self._appeared)
                elif isinstance(record, EventRecord) and record.kind == EventKind.TRIGGER:
                    clock = clock.triggered(record.t_ns)
                elif isinstance(record, EventRecord) and record.kind == EventKind.ONSET:
                    self._appeared.append((_key(record), clock.seconds(record.t_ns), image_s))
                elif isinstance(record, EventRecord) and record.kind == EventKind.TAKEN:
                    self._cut.setdefault(_key(record), clock.seconds(record.t_ns))

    def until(self, record: LatentRecord) -> None:
        """Pass on what was known when this was asked for."""
        if not self._volumes:
            return
        (volume, onsets), taken = self._before[record.seq], record.volumes_taken or 0
        if self._recorded:
            onsets, volume = record.onsets_taken or 0, self._recorded[taken - 1] if taken else -1
        if [projected.index for _, projected in self._volumes] == self._recorded:
            self._pass_on(taken, onsets)
        else:
            self._pass_on(sum(projected.index <= volume for _, projected in self._volumes), onsets)

    def all(self) -> None:
        """Pass on all that is left."""
        self._pass_on(len(self._volumes), len(self._appeared))

    def refused(self, key: Key) -> None:
        """Pass on that an image was taken away, where it had appeared."""
        appeared = [known for known, _, _ in self._appeared]
        if key in appeared:
            self._pass_on(self.taken, appeared.index(key) + 1)
        if key in self._cut and key in appeared:
            self._course.cut_short(*key, self._cut[key])

    def _pass_on(self, volumes: int, onsets: int) -> None:
        for key, onset_s, image_s in self._appeared[self._shown : onsets]:
            self._course.appeared(*key, onset_s, image_s)
        for part, volume in self._volumes[self.taken : volumes]:
            self._course.volume(part, volume)
        self._shown, self.taken = max(self._shown, onsets), max(self.taken, volumes)


def measured(log: Sequence[Record], condition: str) -> list[Scored]:
    """Return the scores that evolution takes, in order: image, value, standard error, estimate from the volumes alone."""
    if condition in MEASURED:
        wanted = MEASURED[condition]
        return [(_key(r), float(r.value), math.nan, None) for r in of_kind(log, EventRecord) if r.kind == wanted]
    return [(_key(r), float(r.score), float(r.score_se), _link(r)) for r in of_kind(log, ScoreRecord)]


def _link(record: ScoreRecord) -> Link | None:
    """Return the estimate from the volumes alone of an image, if recorded."""
    if record.measured is None or record.measured_se is None or record.neighbours is None:
        return None
    return Link.of(record.onset_s, record.measured, record.measured_se, record.neighbours)


def go_through(
    course: Course,
    log: Sequence[Record],
    scores: Sequence[Scored],
    place: Mapping[Key, np.ndarray] | None = None,
    taken: Callable[[int], int] = lambda recorded: recorded,
    volumes: Sequence[Volume] = (),
) -> Past:
    """Replay a log in a new course.

    Parameters
    ----------
    course : Course
    log : sequence of Record
        Records of the earlier parts.
    scores : sequence of ((int, int), float, float, Link or None)
        See :func:`measured`.
    place : mapping of (int, int) to ndarray, float32 (d,), optional
        Actual latents of pictures, by generation and candidate.
    taken : callable
        Number of the scores that come before a decision, from the number of recorded ones that did: for other scores than those.
    volumes : sequence of (int, Projected)
        See :func:`volumes_of`; for a strategy that looks at volumes.

    Raises
    ------
    ValueError
        The log is of another course, with other images than this course requests.
    """
    past = Past()

    def take_until(number: int) -> None:
        while past.scores_taken < min(number, len(scores)):
            key, value, error, link = scores[past.scores_taken]
            past.scores_taken += 1
            past.steps.extend((told, past.scores_taken, Given.NO) for told in course.score(*key, value, error, link))

    seen = _Seen(course, log, volumes)
    known: dict[Key, Request] = {}
    past.shown = {_key(r) for r in of_kind(log, EventRecord) if r.kind == EventKind.ONSET}
    past.measured = _measured(log)
    refused: set[Key] = set()
    for decisions in _decisions(log, course.settings.schedule == "steady"):
        take_until(taken(decisions[0].scores_taken))
        first = decisions[0]
        if isinstance(first, FitnessRecord) and first.given_up == Given.REFUSED:
            refused |= {_key(r) for r in decisions}
            for key in dict.fromkeys(_key(r) for r in decisions):
                seen.refused(key)
                for told in course.refuse(
                    *key, known[key].latent if key in known and key in past.measured else None, shown=key in past.shown
                ):
                    why = Given.REFUSED if (told.generation, told.candidate) == key else Given.NO
                    past.steps.append((told, past.scores_taken, why))
        elif isinstance(first, FitnessRecord):
            past.steps.extend((told, past.scores_taken, Given.UP) for told in course.give_up({_key(r) for r in decisions}))
        elif recorded := [_request(r) for r in of_kind(decisions, LatentRecord) if _key(r) not in known]:
            seen.until(of_kind(decisions, LatentRecord)[0])
            asked = course.repeat(recorded)
            past.asked += asked
            known |= {(r.generation, r.candidate): r for r in [*recorded, *asked[len(recorded) :]]}
            for key in (_key(r) for r in decisions):
                if place is not None and key in place:
                    course.place(*key, place[key])
    take_until(len(scores))
    seen.all()
    past.volumes_taken = seen.taken
    said = sum(not r.given_up for r in of_kind(log, FitnessRecord))
    past.told = [(told, number) for told, number, given_up in past.steps if not given_up][said:]
    gone = _gone(log)
    past.refused = [key for key in gone if key in known and key not in refused]
    past.pending = [request for key, request in known.items() if key not in {*past.shown, *gone}]
    past.latents = {key: request.latent for key, request in known.items()}
    for _ in past.shown:
        course.show()
    return past


def _gone(log: Sequence[Record]) -> list[Key]:
    """Return the images that were refused or taken away, in order; an image shown to its end cannot be taken away."""
    over: set[Key] = set()
    found: list[Key] = []
    for record in log:
        if isinstance(record, EventRecord) and record.kind == EventKind.OFFSET:
            over.add(_key(record))
        elif (isinstance(record, ImageRecord) and record.refused) or (isinstance(record, EventRecord) and record.kind in GONE):
            found += [] if _key(record) in over else [_key(record)]
    return list(dict.fromkeys(found))


def _measured(log: Sequence[Record]) -> set[Key]:
    """Return the images that were refused or taken away because of their contents."""
    taken = {_key(r) for r in of_kind(log, EventRecord) if r.kind == EventKind.TAKEN}
    return taken | {_key(r) for r in of_kind(log, ImageRecord) if r.refused and is_measured(r.verdict)}


def _decisions(log: Sequence[Record], steady: bool) -> Iterator[list[Decided]]:
    """Yield evolution's requests and withdrawals in order; decisions made together form a group."""
    for part in parts(log):
        steps: list[tuple[int, Decided]] = [(r.evolved_ns, r) for r in part.records(LatentRecord)]
        steps += [(r.decided_ns, r) for r in part.records(FitnessRecord) if r.given_up]
        group: list[Decided] = []
        for _, record in sorted(steps, key=lambda step: step[0]):
            if group and not _together(group[-1], record, steady):
                yield group
                group = []
            group.append(record)
        if group:
            yield group


def _together(a: Decided, b: Decided, steady: bool) -> bool:
    if type(a) is not type(b) or a.scores_taken != b.scores_taken:
        return False
    if isinstance(b, FitnessRecord):
        return isinstance(a, FitnessRecord) and a.given_up == b.given_up
    return a.generation == b.generation and (not steady or b.probe >= 0)


def _key(record: Decided | ImageRecord | ScoreRecord | EventRecord) -> Key:
    return record.generation, record.candidate


def _request(record: LatentRecord) -> Request:
    return Request(record.generation, record.candidate, record.probe, record.latent.copy())
