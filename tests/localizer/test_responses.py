"""Presses and targets: what is a hit, a miss, a false alarm."""

from __future__ import annotations

import math

import pytest

from rtevo.localizer import judge

ONSETS = [0.0, 1.0, 2.0, 3.0, 10.0]


@pytest.mark.parametrize(
    ("targets", "presses", "times", "false"),
    [
        ([1], [1.6], [0.6], []),
        ([1], [], [math.nan], []),
        ([1], [1.05], [math.nan], [1]),  # too early to be an answer
        ([1], [2.5], [1.5], []),  # the last moment
        ([1], [2.51], [math.nan], [2]),
        ([1], [1.6, 1.9], [0.6], [1]),  # a target has one answer
        ([1, 2], [2.4, 2.6], [1.4, 0.6], []),  # each its own
        ([1, 2], [2.4], [1.4, math.nan], []),  # the first that waits
        ([], [-1.0, 0.5, 20.0], [], [-1, 0, 4]),
    ],
)
def test_presses_are_judged(targets: list[int], presses: list[float], times: list[float], false: list[int]) -> None:
    task = judge(ONSETS, [k in targets for k in range(5)], presses, 1.5)
    assert task.targets == pytest.approx(tuple(times), nan_ok=True)
    assert task.false_alarms == tuple(false)
    assert task.hits + task.misses == len(targets)


def test_a_task_is_said_in_a_line() -> None:
    assert judge(ONSETS, [False, True, False, True, False], [1.5, 6.0], 1.5).words() == "1 of 2 targets answered, 0.50 s; 1 false alarms"
    assert judge([], [], [], 1.5).words() == "0 of 0 targets answered; 0 false alarms"
