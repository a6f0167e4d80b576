"""Which volumes of a run make today's reference."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.realign.first import PATIENCE, FirstVolumes


def ball(level: float = 100.0) -> np.ndarray:
    x = np.indices((16, 16, 16)) - 7.5
    return np.asarray(level * np.exp(-(((x**2).sum(axis=0) / 30) ** 2)), np.float32)


def first(levels: list[float], moved_mm: dict[int, float] | None = None) -> FirstVolumes:
    found = FirstVolumes(tr_s=2.0)
    for k, level in enumerate(levels):
        motion = np.zeros(6)
        motion[1] = (moved_mm or {}).get(k, 0.0)
        found.add(ball(level), motion, np.eye(4))
    return found


def test_three_steady_volumes_and_six_seconds_are_waited_for() -> None:
    assert first([100, 100]).steady() == ()
    assert len(first([100, 100.2, 99.9]).steady()) == 3
    slow = FirstVolumes(tr_s=0.8)
    for _ in range(7):
        slow.add(ball(), np.zeros(6), np.eye(4))
    assert slow.steady() == ()
    slow.add(ball(), np.zeros(6), np.eye(4))
    assert len(slow.steady()) == 8


def test_volumes_before_steady_state_do_not_count() -> None:
    levels = [160, 112, 103, 100, 100.1, 99.9]
    assert first(levels[:5]).steady() == ()
    found = first(levels).steady()
    assert [float(v.max()) for v in found] == pytest.approx([ball(level).max() for level in levels[3:]])


def test_volumes_where_the_head_lay_elsewhere_do_not_count() -> None:
    assert first([100] * 3, {1: 3.0}).steady() == ()
    found = first([100, 100, 101, 100], {2: 3.0}).steady()
    assert len(found) == 3
    assert all(float(v.max()) < float(ball(100.5).max()) for v in found)


def test_a_run_that_never_comes_to_rest_is_not_waited_for_without_end() -> None:
    restless = first([100 * 1.1**k for k in range(3 * PATIENCE - 1)])
    assert restless.steady() == ()
    restless.add(ball(50), np.zeros(6), np.eye(4))
    assert len(restless.steady()) == 3
