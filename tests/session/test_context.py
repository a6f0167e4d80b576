"""How much the rings hold, and in what order they are read."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.session.context import IN_A_ROW, serve
from rtevo.session.rings import RINGS
from rtevo.shm import Reader, Ring


@pytest.mark.parametrize("ring", ["scores", "fitness"])
@pytest.mark.parametrize(("generations", "population"), [(36, 25), (1, 900), (7, 5)])
def test_what_is_said_of_every_image_at_once_fits_so_that_the_recorder_misses_none(ring: str, generations: int, population: int) -> None:
    plan: Any = SimpleNamespace(config=build({"evolution": {"generations": generations, "population": population}}))
    assert RINGS[ring].slots(plan) >= 2 * generations * population


def test_a_ring_that_is_never_empty_keeps_no_other_from_being_read() -> None:
    """A decoder that is slower than the volumes come still hears of the images."""
    dtype, heard = np.dtype([("number", "<i4")]), []
    with ExitStack() as stack:
        reader, rings = Reader("a", semaphore=f"/rtevo-{os.getpid()}-a"), {}
        for name in ("volumes", "events"):
            ring = Ring.create(f"/rtevo-{os.getpid()}-{name}", dtype, 64, [reader], writer=True, reader="a")
            rings[name] = stack.enter_context(ring)

        def publish(name: str) -> None:
            with rings[name].reserve(timeout_s=0) as slot:
                slot["number"] = 1

        def volume(_: Any) -> None:
            heard.append("volume")
            publish("volumes")  # the next one is there before this one is done

        publish("volumes")
        for _ in range(3):
            publish("events")
        serve(dict(rings), {"volumes": volume, "events": lambda _: heard.append("event")}, 0.0)
    assert heard == ["volume"] * IN_A_ROW + ["event"] * 3
