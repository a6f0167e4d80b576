"""How much the rings hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rtevo.config import build
from rtevo.session.rings import RINGS


@pytest.mark.parametrize("ring", ["scores", "fitness"])
@pytest.mark.parametrize(("generations", "population"), [(36, 25), (1, 900), (7, 5)])
def test_what_is_said_of_every_image_at_once_fits_so_that_the_recorder_misses_none(ring: str, generations: int, population: int) -> None:
    plan: Any = SimpleNamespace(config=build({"evolution": {"generations": generations, "population": population}}))
    assert RINGS[ring].slots(plan) >= 2 * generations * population
