"""What the times between flips say of a screen."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from presenter.frames import frame_of, measure_frame


def gaps(hertz: float, seed: int = 0, jitter_ms: float = 0.1) -> list[int]:
    return [round(gap) for gap in 1e9 / hertz + np.random.default_rng(seed).normal(0, jitter_ms * 1e6, 119)]


@pytest.mark.parametrize("hertz", [59.94, 60.0, 120.0, 240.0])
def test_a_screen_that_is_waited_for(hertz: float) -> None:
    frame = frame_of(gaps(hertz))
    assert frame is not None
    assert 1e9 / frame == pytest.approx(hertz, rel=0.005)


def test_dropped_frames_do_not_count() -> None:
    times = gaps(60)
    times[10], times[11] = 3 * times[10], times[11] // 3
    assert 1e9 / (frame_of(times) or 1) == pytest.approx(60, rel=0.005)


def test_flips_that_wait_for_nothing() -> None:
    assert frame_of([300_000] * 119) is None
    assert frame_of([round(x) for x in np.random.default_rng(1).uniform(1e6, 30e6, 119)]) is None


def test_a_computer_that_is_busy_for_a_moment_is_measured_again() -> None:
    busy = gaps(60)
    busy[20:80:2] = [40_000_000] * 30
    tries = deque([busy, busy, gaps(60)])
    assert frame_of(busy) is None
    assert 1e9 / (measure_frame(tries.popleft) or 1) == pytest.approx(60, rel=0.005)
    tries = deque([busy] * 4)
    assert measure_frame(tries.popleft) is None
    assert not tries
