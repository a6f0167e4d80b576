"""The conductor of the lock-step, alone: time moves when everything is at rest, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rtevo.session.clock import NEVER, RUNNING, Clock
from rtevo.session.conductor import Conductor

S = 10**9


class Waiting:
    """A ring of which only counters are looked at."""

    def __init__(self) -> None:
        self.published, self.behind, self.closed = 0, 0, False

    def lag(self, reader: str) -> int:
        return self.behind


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Any]:
    """A session at rest: the scanner waits for second 2, the presenter for second 3."""
    rings = {name: Waiting() for name in ("volumes", "latents", "images", "images-1")}
    left: list[bool] = []
    rested: list[int] = []
    with Clock.create(tmp_path / "clock", 0) as clock:
        clock.set("scanner_wake_ns", 2 * S)
        clock.set("presenter_wake_ns", 3 * S)
        conductor = Conductor(clock, rings, 2, lambda: bool(left), lambda: rested.append(clock.get("now_ns")))  # type: ignore[arg-type]
        yield SimpleNamespace(clock=clock, rings=rings, conductor=conductor, left=left, rested=rested)


def test_time_moves_to_what_is_waited_for_next(stage: Any) -> None:
    stage.conductor.conduct()
    assert (stage.clock.get("now_ns"), stage.clock.get("scanner_wake_ns"), stage.clock.get("scanner_grants")) == (2 * S, RUNNING, 1)
    stage.conductor.conduct()
    assert stage.clock.get("now_ns") == 2 * S  # the scanner runs
    stage.clock.set("scanner_wake_ns", NEVER)
    stage.conductor.conduct()
    assert (stage.clock.get("now_ns"), stage.clock.get("presenter_grants")) == (3 * S, 1)
    assert stage.rested == [0, 2 * S]


def test_where_both_are_due_the_scanner_comes_first(stage: Any) -> None:
    stage.clock.set("presenter_wake_ns", 2 * S)
    stage.conductor.conduct()
    assert (stage.clock.get("scanner_grants"), stage.clock.get("presenter_grants")) == (1, 0)


def busy(stage: Any, what: str) -> None:
    """Put a message under way."""
    clock, rings = stage.clock, stage.rings
    changes = {
        "a message is not read": lambda: setattr(rings["volumes"], "behind", 1),
        "a picture of the second device is not read": lambda: setattr(rings["images-1"], "behind", 1),
        "a file has not been looked at": lambda: clock.set("delivered", 1),
        "the presenter runs": lambda: clock.set("presenter_wake_ns", RUNNING),
        "the presenter does not know that images may be shown": lambda: clock.set("placed", 1),
        "the presenter does not know that images are held": lambda: clock.set("held", 1),
        "the end of the latents has not come through": lambda: setattr(rings["latents"], "closed", True),
        "the end of the images has not come through": lambda: [setattr(ring, "closed", True) for ring in rings.values()],
    }
    changes[what]()


BUSY = (
    "a message is not read",
    "a picture of the second device is not read",
    "a file has not been looked at",
    "the presenter runs",
    "the presenter does not know that images may be shown",
    "the presenter does not know that images are held",
    "the end of the latents has not come through",
    "the end of the images has not come through",
)


@pytest.mark.parametrize("what", BUSY)
def test_time_stands_still_while(stage: Any, what: str) -> None:
    busy(stage, what)
    stage.conductor.conduct()
    assert (stage.clock.get("now_ns"), stage.rested) == (0, [])


@pytest.mark.parametrize("what", BUSY[-4:])
def test_once_the_bridge_has_left_nobody_acts_on_words_any_more(stage: Any, what: str) -> None:
    busy(stage, what)
    stage.left.append(True)
    stage.clock.set("held_told", stage.clock.get("held"))
    stage.conductor.conduct()
    assert stage.clock.get("now_ns") == 2 * S


def test_a_message_that_came_between_the_two_looks_is_seen(stage: Any) -> None:
    looks = iter([0, 1])
    type(stage.rings["volumes"]).published = property(lambda self: next(looks, 1), lambda self, value: None)  # type: ignore[assignment]
    try:
        stage.conductor.conduct()
        assert stage.clock.get("now_ns") == 0
    finally:
        del type(stage.rings["volumes"]).published


def test_what_is_decided_at_rest_is_acted_on_first(stage: Any) -> None:
    stage.conductor._at_rest = lambda: stage.clock.set("held", 1)
    stage.conductor.conduct()
    assert stage.clock.get("now_ns") == 0


def test_a_pause_holds_time_once_the_presenter_holds_fixation(stage: Any) -> None:
    stage.clock.set("pause", 1)
    stage.clock.set("presenter_wake_ns", NEVER)
    stage.conductor.conduct()
    assert stage.clock.get("now_ns") == 0
    stage.clock.set("pause", 0)
    stage.conductor.conduct()
    assert stage.clock.get("now_ns") == 2 * S


def test_nobody_waits_for_anything_any_more(stage: Any) -> None:
    for who in ("scanner", "presenter"):
        stage.clock.set(f"{who}_wake_ns", NEVER)
    stage.conductor.conduct()
    assert (stage.clock.get("now_ns"), stage.clock.get("scanner_grants"), stage.clock.get("presenter_grants")) == (0, 0, 0)
