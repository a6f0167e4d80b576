"""Files that are as long as their header says before all of them is there, and names that stand for another file later."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from rtevo.ingest import FolderSource, Volume
from rtevo.ingest.whole import SUSPECT_S
from rtevo.records import Grid, VolumeFlag
from rtevo.simulate.dicom import MosaicWriter

FakeClock = Any
GRID = Grid((32, 32, 13), np.diag([-3.0, 3.0, 3.5, 1.0]))
PATIENCE_S, TR_S = 3.0, 2.0


class Scanner:
    """A simulated series of pictures of a few kilobytes."""

    def __init__(self, folder: Path, number: int = 7, value: int = 100) -> None:
        self.writer = MosaicWriter(folder, GRID, TR_S, description="bold", series_number=number)
        self.value = value

    def data(self, index: int) -> np.ndarray:
        data = np.random.default_rng(index).integers(1, 50, GRID.shape) + self.value + index
        return data.astype(np.float32)

    def contents(self, index: int, share: float = 1.0) -> bytes:
        """A file of which only a share of the pixels is written yet."""
        whole = self.writer.encode(index, self.data(index))
        pixels = 16 * 32 * 32 * 2
        there = len(whole) - pixels + int(share * pixels)
        return whole[:there] + bytes(len(whole) - there)

    def send(self, *indices: int, share: float = 1.0) -> None:
        for index in indices:
            write(self.writer.path(index), self.contents(index, share))

    def check(self, volumes: list[Volume], *indices: int) -> None:
        assert [(v.index, v.flags) for v in volumes] == [(index, VolumeFlag.OK) for index in indices]
        for volume in volumes:
            np.testing.assert_array_equal(volume.data, self.data(volume.index))


def write(path: Path, contents: bytes) -> None:
    """Write in place, as a copier does; the time of change is another one for certain."""
    before = os.stat(path).st_mtime_ns if path.exists() else 0
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(contents)
        file.truncate()
    if os.stat(path).st_mtime_ns == before:
        os.utime(path, ns=(before + 1, before + 1))


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    return Scanner(tmp_path / "watched")


@pytest.fixture
def source(scanner: Scanner, clock: FakeClock) -> FolderSource:
    return FolderSource(scanner.writer.folder, patience_s=PATIENCE_S, clock_ns=clock)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75])
def test_a_file_whose_length_was_set_first_counts_once_its_pixels_are_there(
    share: float, scanner: Scanner, source: FolderSource, clock: FakeClock
) -> None:
    for index in range(3):
        scanner.send(index, share=share)
        for _ in range(5):
            assert source.poll() == []
            clock.advance(SUSPECT_S / 6)
        scanner.send(index)
        got = source.poll()
        clock.advance(SUSPECT_S)  # the settling time has become as long, as pauses of this share are
        scanner.check(got + source.poll(), index)
    assert source.problems == []


def test_a_picture_that_ends_in_zeros_is_taken_after_a_while(scanner: Scanner, source: FolderSource, clock: FakeClock) -> None:
    scanner.send(0, share=0.7)
    assert source.poll() == []
    clock.advance(SUSPECT_S)
    assert len(source.poll()) == 1
    scanner.send(1, share=0.7)
    scanner.send(2)
    assert len(source.poll()) == 2  # as the one before
    scanner.send(3, share=0.6)
    assert source.poll() == []
    assert len(source.finish()) == 1
    [problem] = source.problems  # nobody can wait for it any longer
    assert problem.startswith(f"{scanner.writer.path(3).name}: ends in ")


def test_a_file_that_is_never_completed_is_named_and_changes_nothing_for_the_next(
    scanner: Scanner, source: FolderSource, clock: FakeClock
) -> None:
    """It is taken, as nothing says for certain that it is not whole; the next that is still being written is waited for as before."""
    scanner.send(0, 1)
    scanner.check(source.poll(), 0, 1)
    scanner.send(2, share=0.5)
    assert source.poll() == []
    clock.advance(SUSPECT_S + 0.1)
    assert [volume.index for volume in source.poll()] == [2]
    [problem] = source.problems
    assert problem.startswith(f"{scanner.writer.path(2).name}: ends in ")
    assert problem.endswith("the file may be incomplete; used as it is")
    scanner.send(3, share=0.6)
    assert source.poll() == []
    clock.advance(0.9 * SUSPECT_S)
    scanner.send(3)
    clock.advance(0.9 * SUSPECT_S)
    scanner.check([v for _ in range(3) for v in (clock.advance(1.0), source.poll())[1]], 3)
    assert source.problems == [problem]


def test_recorded_files_are_not_waited_for(scanner: Scanner, source: FolderSource) -> None:
    scanner.send(0, share=0.1)
    os.utime(scanner.writer.path(0), (1e9, 1e9))
    assert len(source.poll()) == 1


def test_every_file_settles_where_a_session_asks_for_it(scanner: Scanner, clock: FakeClock) -> None:
    source = FolderSource(scanner.writer.folder, patience_s=PATIENCE_S, clock_ns=clock, settle_s=0.02)
    contents = scanner.contents(0)
    holes = contents[:-9000] + bytes(4096) + contents[-9000 + 4096 :]  # written out of order: its end is there
    write(scanner.writer.path(0), holes)
    assert source.poll() == []
    clock.advance(0.015)
    scanner.send(0)
    assert source.poll() == []
    clock.advance(0.029)  # twice the pause that was seen is the share's settling time now
    assert source.poll() == []
    clock.advance(0.002)
    scanner.check(source.poll(), 0)
    assert source.problems == []


def test_a_file_that_changes_after_it_was_taken_is_taken_again(scanner: Scanner, source: FolderSource, clock: FakeClock) -> None:
    scanner.send(0)
    scanner.check(source.poll(), 0)
    contents = scanner.contents(2)
    write(scanner.writer.path(2), contents[:-9000] + bytes(4096) + contents[-9000 + 4096 :])
    assert source.poll() == []
    scanner.send(2)  # it is not passed on before volume 1
    source.poll()
    scanner.send(1)
    clock.advance(SUSPECT_S)
    scanner.check(source.poll() + source.poll(), 1, 2)
    assert source.problems == []


def test_a_file_that_changes_after_its_volume_was_passed_on_is_named_once(scanner: Scanner, source: FolderSource, clock: FakeClock) -> None:
    contents = scanner.contents(0)
    write(scanner.writer.path(0), contents[:-9000] + bytes(4096) + contents[-9000 + 4096 :])
    assert len(source.poll()) == 1
    scanner.send(0)
    assert source.poll() == []
    clock.advance(SUSPECT_S)
    assert source.poll() == []
    (problem,) = source.problems
    assert "001_000007_000001.dcm: changed after volume 0 had been read from it: the file was incomplete then" in problem
    os.utime(scanner.writer.path(0))  # touched, but the same
    clock.advance(SUSPECT_S)
    assert source.poll() + source.finish() == []
    assert len(source.problems) == 1


@pytest.mark.parametrize("way", ["overwritten", "removed first", "folder emptied", "folder replaced", "by a temporary name"])
@pytest.mark.parametrize("older", [False, True])
def test_names_that_are_used_again_stand_for_new_files(way: str, older: bool, scanner: Scanner, clock: FakeClock) -> None:
    folder = scanner.writer.folder
    scanner.send(0, 1, 2)
    source = FolderSource(folder, patience_s=PATIENCE_S, clock_ns=clock)
    assert "series 7 'bold'" in source.pass_over_present()
    assert source.poll() == []
    today = Scanner(folder, 7, value=500)
    if way == "folder emptied":
        for path in folder.iterdir():
            path.unlink()
        source.poll()
    if way == "folder replaced":
        shutil.rmtree(folder)
        source.poll()
        folder.mkdir()
    got = []
    for index in range(2):
        path = today.writer.path(index)
        if way == "removed first":
            path.unlink()
        if way == "by a temporary name":
            (folder / "x.part").write_bytes(today.contents(index))
            (folder / "x.part").rename(path)
        else:
            write(path, today.contents(index))
        if older:
            os.utime(path, (1.7e9 + index, 1.7e9 + index))  # a copy that keeps old times
        got += source.poll()
    clock.advance(SUSPECT_S)
    today.check(got + source.poll(), 0, 1)


def test_a_run_that_is_started_again_under_the_same_identifier(scanner: Scanner, clock: FakeClock, tmp_path: Path) -> None:
    """Aborted before the session: what comes now counts; the rest of the run before does not."""
    scanner.send(0, 1, 2)
    source = FolderSource(scanner.writer.folder, patience_s=PATIENCE_S, clock_ns=clock)
    source.pass_over_present()
    scanner.send(3)
    assert source.poll() == []
    again = Scanner(tmp_path / "again", value=700)
    for index in range(2):
        dataset = pydicom.dcmread(BytesIO(again.contents(index)))
        dataset.SeriesInstanceUID = pydicom.dcmread(scanner.writer.path(0)).SeriesInstanceUID
        dataset.save_as(scanner.writer.folder / f"again-{index}.dcm")
    again.check(source.poll(), 0, 1)
    assert "is restarted under the same identifier: volumes from now on count" in source.problems[-1]


def test_the_inputs_from_the_field(tmp_path: Path, clock: FakeClock) -> None:
    field = Path(os.environ.get("RTEVO_TEST_DATA", "")) / "field"
    if not field.is_dir():
        pytest.skip(f"{field} is not there (set RTEVO_TEST_DATA)")
    source = FolderSource(tmp_path / "a", patience_s=PATIENCE_S, clock_ns=clock)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "x.dcm", (field / "prealloc" / "at_first.dcm").read_bytes())
    assert source.poll() == []
    write(tmp_path / "a" / "x.dcm", (field / "prealloc" / "whole.dcm").read_bytes())
    assert [round(float(v.data.mean()), 1) for v in source.poll() if v.data is not None] == [399.5]
    source = FolderSource(tmp_path / "b", patience_s=PATIENCE_S, clock_ns=clock)
    (tmp_path / "b").mkdir()
    for path in (field / "names_again").glob("yesterday_*"):
        write(tmp_path / "b" / path.name.partition("_")[2], path.read_bytes())
    source.pass_over_present()
    for path in sorted((field / "names_again").glob("today_*")):
        write(tmp_path / "b" / path.name.partition("_")[2], path.read_bytes())
    assert [round(float(v.data.mean()), 1) for v in source.poll() if v.data is not None] == [399.5, 409.5]


@pytest.mark.parametrize("several", [False, True])
def test_nifti_files_whose_length_was_set_first(several: bool, tmp_path: Path, clock: FakeClock) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    data = np.random.default_rng(0).integers(1, 99, (16, 16, 20, 2)).astype(np.int16)
    path = tmp_path / "run_0001.nii"
    image = nibabel.Nifti1Image(data if several else data[..., 0], np.diag([3.0, 3, 3, 1]))
    whole = image.to_bytes()
    write(path, whole[:1000] + bytes(len(whole) - 1000))
    assert source.poll() == []
    cut = 11000 if several else 6000
    write(path, whole[:cut] + bytes(len(whole) - cut))
    got = source.poll()
    clock.advance(SUSPECT_S / 2)
    assert source.poll() == []
    write(path, whole)
    got += source.poll()
    clock.advance(SUSPECT_S)
    got += source.poll()
    np.testing.assert_array_equal(got[-1].data, data[..., int(several)])
    assert source.problems == []


@pytest.mark.parametrize("way", ["growing", "preallocated", "renamed", "out of order"])
def test_no_torn_volume_gets_through_without_a_word(way: str, tmp_path: Path, clock: FakeClock) -> None:
    """Pauses of 1 to 500 ms between any two writes, looked at every 10 ms; bench_torn.py does the same with writers of their own."""
    rng = np.random.default_rng(1)
    source = FolderSource(tmp_path, patience_s=60.0, clock_ns=clock, settle_s=0.02)
    scanner = Scanner(tmp_path)
    wall_ns, begin_ns, got = time.time_ns() - 10**9, clock(), []
    for index in range(12):
        whole, path = scanner.contents(index), scanner.writer.path(index)
        target = path.with_suffix(".part") if way == "renamed" else path
        ends = [0, *sorted(rng.integers(1, len(whole), 3)), len(whole)]
        pieces = list(itertools.pairwise(ends))
        with target.open("wb", buffering=0) as file:
            if way in ("preallocated", "out of order"):
                file.truncate(len(whole))
            if way == "out of order":
                file.write(whole[:9000])
                pieces.reverse()
            for start, end in pieces:
                for _ in range(1 + int(rng.integers(50))):
                    got += source.poll()
                    clock.advance(float(rng.uniform(0.001, 0.01)))
                file.seek(start)
                file.write(whole[start:end])
                os.utime(target, ns=(wall_ns, wall_ns + clock() - begin_ns))
        if way == "renamed":
            target.rename(path)
    for _ in range(150):
        got += source.poll()
        clock.advance(0.01)
    assert [v.index for v in got] == list(range(12))
    torn = [v.index for v in got if not np.array_equal(v.data, scanner.data(v.index))]
    assert [index for index in torn if not any(f"volume {index} had been read" in problem for problem in source.problems)] == []
    if way in ("growing", "renamed"):
        assert torn == []
