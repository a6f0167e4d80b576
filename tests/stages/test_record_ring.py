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


def plan_of(save: str) -> Any:
    config = build({"record": {"save_volumes": save}})
    grid = Grid((4, 4, 4), np.eye(4))
    return SimpleNamespace(name=f"test{os.getpid()}", config=config, grid=grid, capacity=64, image_size=(4, 4), embedding_size=8, devices=1)


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
