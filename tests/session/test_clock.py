"""Session time: scaled, and virtual in lock-step."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rtevo.session.clock import RUNNING, Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clock"


def test_scaled_time_is_the_monotonic_clock_times_the_speed(path: Path) -> None:
    with Clock.create(path, speed=4.0) as clock:
        assert clock.now_ns() == 0
        clock.set("started_ns", 1_000)
        assert clock.session_ns(1_500) == 2_000


def test_words_are_shared_between_maps_of_the_same_file(path: Path) -> None:
    with Clock.create(path, speed=1.0) as mine, Clock(path) as other:
        assert not other.ending
        mine.set("end", 1)
        assert other.ending


def test_waiting_in_real_time_is_given_up_when_told(path: Path) -> None:
    with Clock.create(path, speed=1.0) as clock:
        clock.start()
        assert clock.wait_until(0.0)
        clock.set("stop_scanner", 1)
        assert not clock.wait_until(1e6)


def test_lock_step_moves_only_when_granted(path: Path) -> None:
    with Clock.create(path, speed=0) as clock, Clock(path) as conductor:
        served = threading.Event()
        results: list[bool] = []
        waiter = threading.Thread(target=lambda: results.append(clock.wait_until(2.5, serve=lambda pause: served.set() or False)))
        waiter.start()
        assert served.wait(10)
        assert conductor.get("scanner_wake_ns") == 2_500_000_000
        assert conductor.now_ns() == 0
        conductor.grant("scanner")
        waiter.join(10)
        assert results == [True]
        assert clock.now_s() == 2.5
        assert clock.get("scanner_wake_ns") == RUNNING


def test_a_served_message_ends_the_wait_and_time_stands_still(path: Path) -> None:
    with Clock.create(path, speed=0) as clock:
        assert clock.wait_until(2.5, serve=lambda pause: True)
        assert clock.get("scanner_wake_ns") == RUNNING
        assert clock.now_ns() == 0


def test_session_time_never_runs_backwards(path: Path) -> None:
    with Clock.create(path, speed=0) as clock:
        for wake in (5, 3):
            clock.set("presenter_wake_ns", wake)
            clock.grant("presenter")
        assert clock.now_ns() == 5
