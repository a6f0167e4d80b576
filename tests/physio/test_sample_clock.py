"""Times of samples from the times at which they came."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.physio.clock import SampleClock


def sent(rate_hz: float, seconds: float, seed: int = 0) -> list[tuple[int, float]]:
    """Numbers of samples that come at once, and when: in bunches, late by up to 60 ms, now and then held up for longer."""
    rng, bunches, done, t = np.random.default_rng(seed), [], 0, 0.0
    while t < seconds:
        t += rng.uniform(0.02, 0.1)
        late = rng.uniform(0.0, 0.06) + (0.5 if rng.random() < 0.02 else 0.0)
        count = int(t * rate_hz) - done
        if count > 0:
            done += count
            bunches.append((count, 100.0 + (done - 1) / rate_hz + late))
    return bunches


@pytest.mark.parametrize("actual_hz", [50.0, 49.7, 400.0])
def test_what_comes_late_and_in_bunches_has_its_even_times(actual_hz: float) -> None:
    clock = SampleClock(round(actual_hz / 10) * 10)
    for count, stamp_s in sent(actual_hz, 60.0):
        clock.add(count, stamp_s)
    assert clock.segment == 0
    last = clock.number - 1
    for number in (last, last - round(10 * actual_hz)):
        error_s = clock.time_s(number) - (100.0 + number / actual_hz)
        assert abs(error_s) < 0.03
        assert clock.error_s - abs(error_s) > -0.005
    assert clock.rate_hz == pytest.approx(actual_hz, rel=1e-3)


def test_lost_samples_begin_another_series() -> None:
    clock = SampleClock(100.0)
    for k in range(50):
        assert clock.add(10, 0.1 * (k + 1)) == 10 * k
    assert clock.add(10, 0.1 * 50 + 7.0) == 0
    assert clock.segment == 1
    assert clock.time_s(9) == pytest.approx(12.0)


def test_a_pause_of_the_reader_loses_nothing() -> None:
    clock = SampleClock(100.0)
    for k in range(50):
        clock.add(10, 0.1 * (k + 1))
    assert clock.add(300, 8.02) == 500
    assert clock.segment == 0
    assert clock.time_s(500) == pytest.approx(5.01, abs=0.02)


def test_the_scanners_pulse_takes_a_delay_off() -> None:
    clock = SampleClock(100.0)
    clock.add(100, 1.3)
    before = clock.time_s(50)
    clock.anchor(0.25, 0.001)
    assert clock.anchored
    assert clock.time_s(50) == pytest.approx(before - 0.25)
    assert clock.error_s == pytest.approx(0.006)
    clock.anchor(-0.05, 0.001)  # found again, of what is left
    assert clock.time_s(50) == pytest.approx(before - 0.2)
