"""The trigger opens the run: what came before it is held, and judged by when its volumes came."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.ingest import FolderSource
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter

FakeClock = Any
GRID = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
PATIENCE_S, TR_S = 3.0, 1.0


class Room:
    """A scanner whose files come at chosen times before or after the trigger."""

    def __init__(self, folder: Path, clock: FakeClock, series: str | None) -> None:
        self.folder, self.clock = folder, clock
        self.trigger_ns: int | None = None
        self.at_ns = clock() + 20 * 10**9  # of the trigger
        self.source = FolderSource(folder, series=series, patience_s=PATIENCE_S, clock_ns=clock, opened=lambda: self.trigger_ns)
        self.got: list[Any] = []
        self.writers: dict[int, MosaicWriter] = {}

    def send(self, number: int, index: int, at_s: float) -> None:
        if number not in self.writers:
            self.writers[number] = MosaicWriter(self.folder, GRID, TR_S, description="bold", series_number=number)
        self.clock.now_ns = self.at_ns + round(at_s * 1e9)
        self.writers[number].write(index, np.full(GRID.shape, 100 * number + index, np.float32))
        self.poll()

    def poll(self) -> None:
        self.got += [(v.index, float(v.data.max()) if v.data is not None else None) for v in self.source.poll()]

    def trigger(self) -> None:
        self.trigger_ns = self.at_ns
        self.poll()


@pytest.fixture(params=[None, "bold"])
def room(tmp_path: Path, clock: FakeClock, request: pytest.FixtureRequest) -> Room:
    return Room(tmp_path, clock, request.param)


def test_of_two_first_volumes_the_one_that_was_measured_later_is_the_run(room: Room) -> None:
    """Another participant's first volume, of yesterday and with a lower number, comes in the moment of the run's own."""
    day = datetime.datetime(2026, 1, 2, 10)
    for number, started in ((5, day), (6, day + datetime.timedelta(days=1))):
        room.writers[number] = MosaicWriter(room.folder, GRID, TR_S, description="bold", series_number=number, started=started)
    room.trigger()
    room.writers[5].write(0, np.full(GRID.shape, 500, np.float32))
    for index in range(3):
        room.send(6, index, index + 1.1)
    assert room.got == [(0, 600.0), (1, 601.0), (2, 602.0)]
    assert any("series 5 'bold' is of another study than the run" in problem for problem in room.source.problems)


def test_the_late_end_of_another_run_is_not_taken(room: Room) -> None:
    for k, index in enumerate((40, 41, 42)):
        room.send(5, index, -0.9 + 0.1 * k)
    assert room.got == []
    assert room.source.before_trigger == 3  # the session raises an alarm where no trigger follows
    room.trigger()
    assert room.source.before_trigger == 0
    room.send(5, 43, 0.5)
    for index in range(4):
        room.send(6, index, index + 1.1)
    assert room.got == [(k, 600 + k) for k in range(4)]
    held, judged = room.source.problems
    assert held == "series 5 'bold': comes before the trigger; its volumes are held and judged when the trigger comes"
    assert judged.startswith("series 5 'bold': 4 volumes from 40 on came too early for this trigger: the late end of another run")


def test_another_run_that_comes_late_as_a_whole_is_not_taken(room: Room) -> None:
    for index in range(8):
        room.send(5, index, 0.05 * index - 0.2)
        if index == 4:
            room.trigger()
    for index in range(2):
        room.send(6, index, index + 1.1)
    assert room.got == [(0, 600), (1, 601)]


def test_a_run_whose_trigger_was_missed_is_taken_and_told(room: Room) -> None:
    for index in range(8):
        if index == 2:
            room.trigger()
        room.send(5, index, index - 1.3)
    assert room.got == [(k, 500 + k) for k in range(8)]
    assert "and more follow: it is used as the run; the trigger was probably missed: onsets are wrong" in room.source.problems[-1]


def test_a_run_that_the_trigger_began_comes_at_once(room: Room) -> None:
    room.trigger()
    room.send(5, 0, 1.02)
    assert room.got == [(0, 500)]
    assert room.source.problems == []


def test_without_a_trigger_what_came_is_kept_at_the_end(room: Room) -> None:
    for index in range(2):
        room.send(5, index, index - 3)
    assert room.got == []
    assert [v.index for v in room.source.finish()] == [0, 1]


def test_a_run_that_goes_on_for_long_before_the_trigger_is_let_go(room: Room) -> None:
    for index in range(66):
        room.send(5, index, -5 + 0.01 * index)
    assert "65 volumes came before the trigger: another run, not used" in room.source.problems[-1]
    room.trigger()
    room.send(5, 66, 1.1)
    room.send(6, 0, 1.1)
    assert room.got == [(0, 600)]
