"""The strategy of docs/how-to-add-a-strategy.md is one: what the page promises of it holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rtevo.evolve import Evolver

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to-add-a-strategy.md"
DIRECTION = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture
def evolver() -> Evolver:
    """The page's own code, made into a strategy."""
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, type[Evolver]] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    made: Evolver = names["Climbing"](4, 0.5, np.random.default_rng(1))  # type: ignore[call-arg, arg-type]
    return made


def test_it_climbs_where_scores_have_no_noise(evolver: Evolver) -> None:
    first = evolver.ask(5)
    evolver.tell(range(5), first @ DIRECTION)
    for generation in range(1, 8):
        evolver.tell(range(5 * generation, 5 * generation + 5), (last := evolver.ask(5)) @ DIRECTION)
    assert (last @ DIRECTION).mean() > (first @ DIRECTION).max()


def test_it_is_resumed_bit_for_bit(evolver: Evolver) -> None:
    evolver.tell(range(5), evolver.ask(5) @ DIRECTION)
    resumed = type(evolver).from_state(json.loads(json.dumps(evolver.to_state())))
    np.testing.assert_array_equal(resumed.ask(5), evolver.ask(5))
