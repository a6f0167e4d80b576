"""The recorder never misses a volume that is saved, however slow the disk."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.records import Grid
from rtevo.session.rings import create_rings, ring_name
from rtevo.shm import Ring, RingTimeout
from rtevo.stages import record as module


def plan_of(save: str) -> Any:
    config = build({"record": {"save_volumes": save}})
    grid = Grid((4, 4, 4), np.eye(4))
    return SimpleNamespace(
        localizer=False,
        name=f"test{os.getpid()}",
        config=config,
        grid=grid,
        capacity=64,
        image_size=(4, 4),
        embedding_size=8,
        tr_s=2.0,
        devices=1,
        maps=(),
    )


@pytest.mark.parametrize(("name", "save"), [("volumes", "raw"), ("aligned", "aligned")])
def test_a_slow_disk_holds_up_the_writer_and_loses_nothing(name: str, save: str) -> None:
    plan = plan_of(save)
    with ExitStack() as stack:
        rings = create_rings(plan, stack)
        full = ring_name(plan.name, name)
        writer = stack.enter_context(Ring.attach(full, writer=True))
        recorder = stack.enter_context(Ring.attach(full, reader="record"))
        others = [stack.enter_context(Ring.attach(full, reader=reader)) for reader in ("decode",) if name == "volumes"]

        def publish(index: int) -> None:
            with writer.reserve(timeout_s=0) as slot:
                slot["index"] = index
            for other in others:
                with other.read(timeout_s=0):
                    pass

        slots = rings[name].slots
        for index in range(slots):
            publish(index)
        with pytest.raises(RingTimeout, match="record"):
            publish(slots)
        seen = []
        for index in range(slots, 3 * slots):
            with recorder.read(timeout_s=0) as slot:
                seen.append(int(slot["index"]))
            assert recorder.lost == 0
            publish(index)
        assert seen == list(range(2 * slots))


class Written:
    """What a recorder was given, in its order."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.problems: list[str] = []

    def take(self, ring: str, slot: Any, clock_ns: int) -> None:
        self.taken.append(ring)

    def flush(self) -> None:
        """Nothing is held."""


def test_no_effect_is_recorded_without_its_cause_though_both_came_while_the_rings_were_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, context, recorder, held = plan_of("none"), SimpleNamespace(clock=SimpleNamespace(now_ns=lambda: 0)), Written(), []
    with ExitStack() as stack:
        create_rings(plan, stack)
        names = ("events", "scores")
        writers = {name: stack.enter_context(Ring.attach(ring_name(plan.name, name), writer=True)) for name in names}
        inputs = {name: stack.enter_context(Ring.attach(ring_name(plan.name, name), reader="record")) for name in names}
        drain = module._drain

        def drain_and_go_on(name: str, *rest: Any) -> Any:
            found = drain(name, *rest)
            if name == "events" and not recorder.taken:  # an image appears, and a score knows of it, before the scores are looked at
                for each in names:
                    with writers[each].reserve(timeout_s=0):
                        pass
            return found

        monkeypatch.setattr(module, "_drain", drain_and_go_on)
        with writers["scores"].reserve(timeout_s=0):
            pass
        args: Any = (recorder, dict(inputs), held, context, 0)
        assert module.take_all(*args) == 1
        assert [taken.ring for taken in held] == ["scores"]
        assert module.take_all(*args) == 2
    assert (recorder.taken, held) == (["scores", "events", "scores"], [])
