"""A course that is gone through again from its log stands where it stood, wherever the log ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.config import Config
from rtevo.evolve import Course, Told
from rtevo.evolve.together import Link
from rtevo.latent import LatentSpace
from rtevo.past.evolution import go_through, measured, volumes_of
from rtevo.record import FitnessRecord, ImageRecord, LatentRecord, Record, of_kind, record_of
from rtevo.records import EventKind, Given, Projected
from rtevo.session.course import make_course, state_of

SPACE = LatentSpace(np.zeros(6, np.float32), np.eye(6, dtype=np.float32)[:3], np.ones(3, np.float32))
Key = tuple[int, int]
IMAGE_S, EVERY_S = 1.0, 1.5


class Session:
    """Does with a course what the evolve stage does, and keeps the log of it."""

    def __init__(self, config: Config, condition: str, refused: float = 0.0, *, linked: bool = False) -> None:
        self.refused, self.linked, self.latents = refused, linked, {}
        self.config, self.condition = config, condition
        self.course, self.rng = self.fresh(), np.random.default_rng(5)
        start = {"type": "start", "tr_s": 1.0, "settings": {"presentation": {"image_s": IMAGE_S}}}
        self.log: list[Record] = [record_of(start), record_of({"type": "events", "kind": int(EventKind.TRIGGER), "t_ns": 0})]
        self.taken = self.now = self.volumes = self.onsets = 0
        self.unshown: list[Key] = []
        self.waiting: list[Key] = []

    def fresh(self) -> Course:
        return make_course(self.config, self.condition, SPACE)

    def record(self, ring: str, key: Key, **fields: Any) -> None:
        self.now += 1
        self.log.append(record_of({"type": ring, "generation": key[0], "candidate": key[1], **fields}))

    def go_on(self) -> None:
        for request in self.course.due():
            key = (request.generation, request.candidate)
            taken = {"scores_taken": self.taken, "volumes_taken": self.volumes, "onsets_taken": self.onsets}
            self.record("latents", key, probe=request.probe, latent=request.latent, evolved_ns=self.now, **taken)
            self.unshown.append(key)
            self.latents[key] = request.latent

    def refuse(self, key: Key, *, shown: bool) -> None:
        if shown:
            at_s = EVERY_S * self.onsets + 0.5
            self.record("events", key, kind=int(EventKind.TAKEN), text="operator", t_ns=round(1e9 * at_s))
            self.course.cut_short(*key, at_s)
        else:
            self.record("images", key, refused=1, verdict=[{"refused": True, "value": 1.0}])
        for told in self.course.refuse(*key, self.latents[key], shown=shown):
            self.publish([told], Given.REFUSED if (told.generation, told.candidate) == key else Given.NO)
        self.go_on()

    def publish(self, told: list[Told], given_up: Given = Given.NO) -> None:
        for t in told:
            self.record("fitness", (t.generation, t.candidate), scores_taken=self.taken, given_up=int(given_up), decided_ns=self.now)

    def show(self) -> None:
        key = self.unshown.pop(0)
        if self.rng.random() < self.refused:
            self.refuse(key, shown=False)
            return
        self.onsets += 1
        self.record("events", key, kind=int(EventKind.ONSET), t_ns=round(1e9 * EVERY_S * self.onsets))
        self.course.appeared(*key, EVERY_S * self.onsets, IMAGE_S)
        self.course.show()
        self.waiting.append(key)
        self.go_on()
        if self.rng.random() < self.refused:
            self.refuse(key, shown=True)

    def scan(self) -> None:
        for _ in range(int(self.rng.integers(3))):
            volume = Projected(self.volumes, self.volumes + 0.5, float(self.rng.normal()), (0.1,) * 6, 0.3, 0.05, 0.0, 0.5, 1.0)
            self.volumes += 1
            self.log.append(record_of({"type": "series", "part": 0, **asdict(volume)}))
            self.course.volume(0, volume)

    def score(self) -> None:
        key = self.waiting[int(self.rng.integers(len(self.waiting)))]
        if self.rng.random() < 0.7:
            self.waiting.remove(key)  # else it will be revised
        value = float(self.rng.normal()) if self.rng.random() < 0.9 else float("nan")
        known = {"onset_s": 4.0 * self.taken, "measured": value, "measured_se": 0.4, "neighbours": [0.3, 0.1]} if self.linked else {}
        self.record("scores", key, score=value, score_se=0.5, **known)
        self.taken += 1
        link = Link.of(known["onset_s"], value, known["measured_se"], known["neighbours"]) if known else None
        self.publish(self.course.score(*key, value, 0.5, link))
        self.go_on()

    def run(self) -> Iterator[int]:
        """Go through a whole session; yields the length of the log whenever the evolve stage would be idle."""
        self.go_on()
        yield len(self.log)
        while self.unshown or self.waiting:
            if self.config.evolution.strategy == "direct":
                self.scan()
            if self.unshown and (not self.waiting or self.rng.random() < 0.5):
                self.show()
            elif self.rng.random() < 0.1 and not self.unshown:
                self.publish(self.course.give_up(), Given.UP)
                self.waiting.clear()
                self.go_on()
            else:
                self.score()
            yield len(self.log)


CASES = [
    {"strategy": "surrogate", "schedule": "steady"},
    {"strategy": "surrogate", "schedule": "generational", "probe_every": 3},
    {"strategy": "direct", "schedule": "steady", "probe_every": 4},
    {"strategy": "truncation", "schedule": "generational"},
    {"strategy": "truncation", "schedule": "steady", "probe_every": 4},
    {"strategy": "cma", "schedule": "generational"},
    {"strategy": "random", "schedule": "steady"},
]


@pytest.mark.parametrize("refused", [0.0, 0.2])
@pytest.mark.parametrize("condition", ["brain", "sham"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_the_state_is_that_of_the_moment_at_which_the_log_ends(case: dict[str, Any], condition: str, refused: float) -> None:
    config = Config()
    generations = 2 if refused or case["strategy"] == "direct" else 4
    config = replace(config, evolution=replace(config.evolution, generations=generations, population=4, latent_size=3, **case))
    session = Session(replace(config, safety=replace(config.safety, keep_away=0.05 if refused else 0.0)), condition, refused)
    for length in session.run():
        log = session.log[:length]
        again = session.fresh()
        past = go_through(again, log, measured(log, condition), volumes=volumes_of(log))
        assert again.evolver.to_state() == session.course.evolver.to_state()
        assert (again.missing, again.all_shown, again.generation) == (
            session.course.missing, session.course.all_shown, session.course.generation,
        )  # fmt: skip
        assert [(r.generation, r.candidate) for r in past.pending] == session.unshown
        assert past.told == []
        assert past.refused == []
        assert past.scores_taken == session.taken
    assert session.course.finished


@pytest.mark.parametrize("strategy", ["surrogate", "truncation"])
def test_a_session_that_went_on_from_earlier_ones_stands_where_it_stood_too(strategy: str, tmp_path: Path) -> None:
    config = Config()
    settings = replace(config.evolution, generations=2, population=4, latent_size=3, strategy=strategy, probe_every=4)
    before = ""
    for number in range(3):
        session = Session(replace(config, evolution=replace(settings, continue_from=before)), "brain", linked=True)
        for length in session.run():
            if number == 2:
                again = session.fresh()
                go_through(again, session.log[:length], measured(session.log[:length], "brain"))
                assert again.evolver.to_state() == session.course.evolver.to_state()
        before = str(tmp_path / f"{number}.json")
        Path(before).write_text(json.dumps(state_of(session.course, SPACE)), encoding="utf-8")
    assert session.course.evolver.to_state()["runs"] == [0, 8, 16]


def test_whatever_the_last_record_was_nothing_is_asked_for_twice_and_everything_is_told() -> None:
    config = Config()
    settings = replace(config.evolution, generations=3, population=3, latent_size=3, strategy="truncation", schedule="generational")
    session = Session(replace(config, evolution=replace(settings, probe_every=3)), "sham", refused=0.1)
    list(session.run())
    for length in range(1, len(session.log) + 1):
        log = session.log[:length]
        course = session.fresh()
        past = go_through(course, log, measured(log, "sham"))
        asked = {(r.generation, r.candidate) for r in of_kind(log, LatentRecord)}
        pending = [(r.generation, r.candidate) for r in past.pending]
        assert len(pending) == len(set(pending))
        gone = {(r.generation, r.candidate) for r in of_kind(log, ImageRecord) if r.refused}
        assert asked <= past.shown | set(pending) | gone  # what a decision asked for is asked for as a whole
        told_of = {(r.generation, r.candidate) for r in of_kind(log, FitnessRecord) if r.given_up == Given.REFUSED}
        assert set(past.refused) >= gone - told_of
        told = [r for r in of_kind(log, FitnessRecord) if not r.given_up]
        whole = [r for r in of_kind(session.log, FitnessRecord) if not r.given_up][: len(told) + len(past.told)]
        assert [(t.generation, t.candidate) for t, _ in past.told] == [(r.generation, r.candidate) for r in whole[len(told) :]]


def test_the_log_of_another_session_is_refused() -> None:
    config = Config()
    settings = replace(config.evolution, generations=2, population=3, latent_size=3)
    session = Session(replace(config, evolution=settings), "brain")
    list(session.run())
    other = Session(replace(config, evolution=replace(settings, population=2)), "brain").fresh()
    with pytest.raises(ValueError, match="expected image 1/0, got 0/2"):
        go_through(other, session.log, measured(session.log, "brain"))
