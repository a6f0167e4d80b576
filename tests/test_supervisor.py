"""What the supervisor makes of its stages, without starting any: stalls, and whose death was the first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rtevo import supervisor as module
from rtevo.errors import StageError
from rtevo.stages import STAGES, readers_of
from rtevo.supervisor import Supervisor

DECODE = next(stage for stage in STAGES if stage.name == "decode")


class FakeRing:
    def __init__(self, published: int, lag: int) -> None:
        self.published, self.behind = published, lag

    def lag(self, reader: str) -> int:
        return self.behind


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A supervisor of one stage with fake rings and a clock that a test moves."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.s)
    supervisor = Supervisor(SimpleNamespace(devices=1))  # type: ignore[arg-type]
    supervisor.children["decode"] = module._Child(DECODE, None, None)  # type: ignore[arg-type]
    supervisor.rings = {"volumes": FakeRing(3, 2), "events": FakeRing(0, 0)}  # type: ignore[dict-item]
    return supervisor, now


def test_a_stage_that_takes_nothing_for_its_deadline_has_stalled(watched: Any) -> None:
    supervisor, now = watched
    supervisor._watch()
    now.s = DECODE.deadline_s - 1
    supervisor._watch()
    now.s = DECODE.deadline_s + 1
    with pytest.raises(StageError, match="stage 'decode' failed: has not read from 'volumes' for 31 s while 2 are waiting"):
        supervisor._watch()


def test_a_slow_stage_that_goes_on_has_not_stalled(watched: Any) -> None:
    supervisor, now = watched
    for step in range(5):
        now.s = step * (DECODE.deadline_s - 1)
        supervisor.rings["volumes"].published += 1  # one more came, one more was taken
        supervisor._watch()


def test_the_stage_that_died_is_named_not_those_that_lost_it(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, _ = watched
    found = [[(StageError("ingest", "its reader is dead"), True)], [(StageError("decode", "was killed"), False)]]
    monkeypatch.setattr(supervisor, "_failures", lambda timeout_s: found.pop(0))
    with pytest.raises(StageError, match="stage 'decode' failed: was killed"):
        supervisor.pump(0)


def test_every_stage_reads_what_it_is_declared_to_read() -> None:
    for stage in STAGES:
        assert all(stage.name in readers_of(ring) for ring in stage.reads)
