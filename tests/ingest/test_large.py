"""Watched folders that hold far more than the run: what is read of it, what is looked at when, and that nothing is missed."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.ingest import FolderSource, Volume
from rtevo.ingest.turns import FEWEST, Turns
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter

FakeClock = Any
GRID = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
PATIENCE_S, TR_S = 3.0, 2.0
FOLDERS, VOLUMES = 12, 5
MOST_POLLS = 400  # in which all of these folders and files have had their turn, on the slowest computer
LONG_AGO_S = 1.7e9


class Export:
    """A folder of older series, each in a folder of its own, and a source that watches it of whose folders two are hot."""

    def __init__(self, root: Path, clock: FakeClock, series: str | None = None) -> None:
        self.root = root
        self.writers = {k: self.writer(k, self.folder(k)) for k in range(1, FOLDERS + 1)}
        for k, writer in self.writers.items():
            for index in range(VOLUMES):
                path = writer.write(index, self.data(k, index))
                os.utime(path, (LONG_AGO_S + 100 * k + index,) * 2)
            os.utime(self.folder(k), (LONG_AGO_S + 100 * k,) * 2)
        self.source = FolderSource(root, series=series, patience_s=PATIENCE_S, clock_ns=clock, confined=True)

    def folder(self, series: int) -> Path:
        return self.root / f"study-{series % 3}" / f"series-{series:02d}"

    @staticmethod
    def writer(series: int, folder: Path) -> MosaicWriter:
        folder.mkdir(parents=True, exist_ok=True)
        return MosaicWriter(folder, GRID, TR_S, description="bold", series_number=series)

    @staticmethod
    def data(series: int, index: int) -> np.ndarray:
        return np.random.default_rng([series, index]).integers(1, 4096, GRID.shape).astype(np.float32)

    def send(self, writer: MosaicWriter, series: int, *indices: int) -> None:
        for index in indices:
            part = writer.path(index).with_suffix(".part")
            part.write_bytes(writer.encode(index, self.data(series, index)))
            part.rename(writer.path(index))

    def until(self, count: int) -> list[Volume]:
        """Poll until so many volumes have come."""
        got: list[Volume] = []
        for _ in range(MOST_POLLS):
            got += self.source.poll()
            if len(got) >= count:
                break
        return got

    def check(self, volumes: list[Volume], series: int, *indices: int) -> None:
        assert [volume.index for volume in volumes] == list(indices)
        for volume in volumes:
            np.testing.assert_array_equal(volume.data, self.data(series, volume.index))


@pytest.fixture
def export(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.setattr("rtevo.ingest.listing.HOT", 2)
    monkeypatch.setattr("rtevo.ingest.present.FEWEST", 2)
    monkeypatch.setattr("rtevo.ingest.present.READ_S", -1.0)
    return Export(tmp_path, clock)


def test_old_files_are_judged_by_their_listing(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    look = FolderSource._look

    def noted(self: FolderSource, path: str, *rest: Any, **options: Any) -> int:
        read.append(path)
        return look(self, path, *rest, **options)

    monkeypatch.setattr(FolderSource, "_look", noted)
    told = export.source.pass_over_present()
    newest = [str(export.writers[FOLDERS].path(index)) for index in (VOLUMES - 1, VOLUMES - 2)]
    assert read == newest
    left = FOLDERS * VOLUMES - 2
    assert told == (
        f"{export.root} holds from before the session unused series: series 12 'bold', "
        f"older files, known by name, size and time only: {left}"
    )
    for _ in range(MOST_POLLS):
        assert export.source.poll() == []
    assert read == newest
    assert (export.source.problems, export.source.streams[0].series.number) == ([], FOLDERS)


@pytest.mark.parametrize("series", [1, FOLDERS])
def test_late_files_of_old_series_are_not_the_run_whether_they_were_read_or_not(series: int, export: Export) -> None:
    export.source.pass_over_present()
    export.send(export.writers[series], series, VOLUMES)
    today = export.writer(20, export.root / "today")
    seen = export.source.seen
    for _ in range(MOST_POLLS):
        assert export.source.poll() == []
        if export.source.seen > seen:
            break
    export.send(today, 20, 0, 1)
    export.check(export.until(2), 20, 0, 1)
    assert export.source.problems == [
        f"series {series} 'bold': files still come, but the series existed before the session: it is used only if named by number"
    ]


@pytest.mark.parametrize("place", ["study-1/series-01", "study-1", "study-1/new", "new/and/deeper", "."])
def test_a_run_is_seen_wherever_it_comes(place: str, export: Export) -> None:
    export.source.pass_over_present()
    export.until(1)
    today = export.writer(20, export.root / place)
    for index in range(4):
        export.send(today, 20, index)
        export.check(export.until(1), 20, index)


def test_what_is_overwritten_in_place_in_a_quiet_folder_is_seen(export: Export) -> None:
    export.source.pass_over_present()
    today, folder = export.writer(20, export.root / "elsewhere"), export.folder(3)
    for index in range(VOLUMES):
        export.writers[3].path(index).write_bytes(today.encode(index, export.data(20, index)))
        export.check(export.until(1), 20, index)
    assert len(list(folder.iterdir())) == VOLUMES


def test_what_is_overwritten_with_nonsense_is_read_and_named_once(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    export.source.pass_over_present()
    export.writers[3].path(2).write_bytes(b"no picture" * 100)
    for _ in range(MOST_POLLS):
        export.source.poll()
        if export.source.problems:
            break
    (problem,) = export.source.problems
    assert "study-0/series-03/001_000003_000003.dcm: not a DICOM file" in problem
    monkeypatch.setattr("rtevo.ingest.folder.read_dicom", lambda *_, **__: pytest.fail("read again"))
    for _ in range(MOST_POLLS):
        assert export.source.poll() == []
    assert export.source.problems == [problem]


def test_a_series_that_is_named_is_taken_from_among_many_files(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtevo.ingest.folder.BATCH_FILES", 10)
    export = Export(tmp_path, clock, series="4")
    assert export.source.pass_over_present() == ""
    export.source.poll()
    assert export.source.seen <= 10 + 8  # what came, and what was there
    export.check(export.until(VOLUMES), 4, *range(VOLUMES))


def test_many_files_at_once_are_looked_at_in_parts_and_none_is_missed(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtevo.ingest.folder.BATCH_FILES", 10)
    export.source.pass_over_present()
    today = export.writer(20, export.root / "today")
    export.send(today, 20, *range(25))
    counts = []
    volumes: list[Volume] = []
    while not volumes or export.source.backlog:
        got = export.source.poll()
        counts += [len(got)] * bool(got)
        volumes += got
    assert counts == [10, 10, 5]
    export.check(volumes, 20, *range(25))


def test_folders_that_are_removed_are_forgotten(export: Export) -> None:
    export.source.pass_over_present()
    for k in range(2, FOLDERS + 1):
        shutil.rmtree(export.folder(k))
    export.source.finish()
    listing = export.source._listing
    assert sorted(listing._folders) == sorted(str(path) for path in (export.root, *export.root.glob("**/*")) if path.is_dir())
    assert set(listing._hot) <= set(listing._folders)


def test_a_round_looks_at_everything_once_and_the_next_at_what_is_new() -> None:
    things = list(range(1000))
    turns = Turns(lambda: things)
    seen = list(itertools.chain.from_iterable(itertools.islice(iter(lambda: list(turns.go()), None), 1000 // FEWEST + 1)))
    assert seen[:1000] == things
    things.append(-1)
    assert -1 in itertools.chain.from_iterable(itertools.islice(iter(lambda: list(turns.go()), None), 2 * (1000 // FEWEST + 1)))
    assert list(Turns(lambda: []).go()) == []
