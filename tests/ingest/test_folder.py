"""A watched folder in all the ways in which a scanner, a share or a copy program may fill it."""

from __future__ import annotations

import builtins
import datetime
import errno
import itertools
import math
import os
import re
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtevo.errors import DataError
from rtevo.ingest import FolderSource, TruncatedError, Volume, describe, read_dicom
from rtevo.records import Grid, VolumeFlag
from rtevo.simulate.dicom import MosaicWriter

Made = Any  # the classes in conftest.py
FakeClock = Any
Encode = Callable[..., bytes]
GRID = Grid((8, 6, 5), np.array([[-3.0, 0, 0, 12], [0, 3, 0, -9], [0, 0, 3.5, 5], [0, 0, 0, 1]]))
PATIENCE_S, STALL_S, TR_S = 3.0, 10.0, 2.0
ROUNDING_MM = 1e-6  # of decimal strings in headers


class Scanner:
    """A simulated series, file by file."""

    def __init__(self, folder: Path, description: str = "bold", series_number: int = 1) -> None:
        self.folder = folder
        self.writer = MosaicWriter(folder, GRID, TR_S, description=description, series_number=series_number)

    def volume(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 4096, GRID.shape).astype(np.float32)

    def contents(self, index: int) -> bytes:
        return self.writer.encode(index, self.volume(index))

    def send(self, *indices: int) -> None:
        for index in indices:
            self.writer.write(index, self.volume(index))

    def check(self, volumes: list[Volume], expected: list[int], missing: tuple[int, ...] = ()) -> None:
        assert [volume.index for volume in volumes] == expected
        for volume in volumes:
            if volume.index in missing:
                assert volume.flags == VolumeFlag.MISSING
                assert volume.data is None
            else:
                assert volume.data is not None
                np.testing.assert_array_equal(volume.data, self.volume(volume.index))
            np.testing.assert_allclose(volume.grid.affine, GRID.affine, atol=ROUNDING_MM)


def with_another_uid(contents: bytes) -> bytes:
    found = re.search(rb"2\.25\.\d+", contents)
    assert found is not None
    uid = found[0]
    assert contents.count(uid) == 2
    return contents.replace(uid, uid[:-1] + (b"1" if uid[-1:] != b"1" else b"2"))


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    return Scanner(tmp_path / "watched")


@pytest.fixture
def source(scanner: Scanner, clock: FakeClock) -> FolderSource:
    return FolderSource(scanner.folder, patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)


def test_volumes_come_once_and_in_order(scanner: Scanner, source: FolderSource) -> None:
    assert source.poll() == []
    scanner.send(0)
    volumes = source.poll()
    scanner.check(volumes, [0])
    scanner.send(2, 1)
    scanner.check(source.poll(), [1, 2])
    assert source.poll() == []
    assert source.finish() == []
    assert (source.seen, source.pending, source.duplicates, source.problems) == (3, 0, 0, [])
    assert volumes[0].tr_s == TR_S
    assert volumes[0].files == ("001_000001_000001.dcm",)


def test_a_file_that_grows_counts_when_it_is_whole(scanner: Scanner, source: FolderSource) -> None:
    contents = scanner.contents(0)
    path = scanner.folder / "growing.dcm"
    path.touch()
    assert (source.poll(), source.seen, source.pending) == ([], 0, 1)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(contents), 97):
            assert source.poll() == []
            file.write(contents[start : start + 97])
    scanner.check(source.poll(), [0])
    assert (source.seen, source.pending) == (1, 0)


def test_a_file_that_stays_as_it_is_is_not_read_again(scanner: Scanner, source: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    (scanner.folder / "half.dcm").write_bytes(scanner.contents(0)[:2000])
    source.poll()
    monkeypatch.setattr("rtevo.ingest.folder.read_dicom", lambda *_, **__: pytest.fail("read again"))
    for _ in range(5):
        source.poll()


def test_reserved_space_is_not_taken_for_a_file(scanner: Scanner, source: FolderSource) -> None:
    contents = scanner.contents(0)
    path = scanner.folder / "reserved.dcm"
    path.write_bytes(bytes(len(contents)))
    assert (source.poll(), source.pending) == ([], 1)
    path.write_bytes(contents)
    scanner.check(source.poll(), [0])


def test_temporary_names_count_once_they_are_renamed(scanner: Scanner, source: FolderSource) -> None:
    for index, name in enumerate((".hidden", "0001.dcm.tmp", "0002.part")):
        (scanner.folder / name).write_bytes(scanner.contents(index))
    assert (source.poll(), source.seen, source.pending) == ([], 0, 0)
    for index, name in enumerate((".hidden", "0001.dcm.tmp", "0002.part")):
        (scanner.folder / name).rename(scanner.folder / f"{index}.dcm")
    scanner.check(source.poll(), [0, 1, 2])


def test_a_renamed_file_is_no_duplicate(scanner: Scanner, source: FolderSource) -> None:
    scanner.send(0)
    source.poll()
    scanner.writer.path(0).rename(scanner.folder / "renamed.dcm")
    assert source.poll() == []
    assert source.duplicates == 0
    (scanner.folder / "copy.dcm").write_bytes(scanner.contents(0))
    assert source.poll() == []
    assert source.duplicates == 1


def test_a_file_that_is_replaced_before_it_was_whole(scanner: Scanner, source: FolderSource) -> None:
    path = scanner.folder / "x.dcm"
    path.write_bytes(scanner.contents(0)[:100])
    source.poll()
    path.unlink()
    assert (source.poll(), source.pending) == ([], 0)
    path.write_bytes(scanner.contents(0))
    scanner.check(source.poll(), [0])


def test_copies_are_dropped_and_counted(scanner: Scanner, source: FolderSource, made: Made, encode: Encode) -> None:
    scanner.send(0, 1)
    (scanner.folder / "copy.dcm").write_bytes(scanner.contents(1))
    (scanner.folder / "other-uid.dcm").write_bytes(with_another_uid(scanner.contents(0)))
    scanner.check(source.poll(), [0, 1])
    assert (source.duplicates, source.seen, source.problems) == (2, 4, [])


def test_another_picture_for_a_volume_that_came_is_named(scanner: Scanner, source: FolderSource) -> None:
    scanner.send(0)
    source.poll()
    contents = bytearray(scanner.contents(0))
    contents[-1] ^= 1
    (scanner.folder / "changed.dcm").write_bytes(with_another_uid(bytes(contents)))
    assert source.poll() == []
    assert source.duplicates == 0
    assert source.problems == [
        "changed.dcm: by its headers it is the same as an earlier volume ({'instance': 1, 'acquisition': 1, 'moment': 1}); left out"
    ]


def test_a_missing_volume_is_declared_after_patience_and_slotted_in_when_late(
    scanner: Scanner, source: FolderSource, clock: FakeClock
) -> None:
    scanner.send(0, 2, 3)
    scanner.check(source.poll(), [0])
    assert source.pending == 2
    clock.advance(PATIENCE_S - 0.1)
    assert source.poll() == []
    clock.advance(0.2)
    scanner.check(source.poll(), [1, 2, 3], missing=(1,))
    assert source.problems == ["volume 1: never came"]
    scanner.send(1)
    (late,) = source.poll()
    assert (late.index, late.flags) == (1, VolumeFlag.LATE)
    np.testing.assert_array_equal(late.data, scanner.volume(1))
    assert source.finish() == []


def test_the_first_volume_missing_is_a_gap_too(scanner: Scanner, source: FolderSource, clock: FakeClock) -> None:
    scanner.send(2)
    source.poll()
    clock.advance(PATIENCE_S)
    volumes = source.poll()
    scanner.check(volumes, [0, 1, 2], missing=(0, 1))
    assert volumes[2].acquired_s == pytest.approx(2 * TR_S)


def test_the_end_flushes_and_declares_gaps_at_once(scanner: Scanner, source: FolderSource) -> None:
    scanner.send(1, 3)
    scanner.check(source.finish(), [0, 1, 2, 3], missing=(0, 2))
    assert source.pending == 0


def test_a_file_that_never_completes_is_named_and_its_volume_is_a_gap(scanner: Scanner, source: FolderSource, clock: FakeClock) -> None:
    scanner.send(0)
    (scanner.folder / "cut.dcm").write_bytes(scanner.contents(1)[:-1])
    scanner.check(source.poll(), [0])
    clock.advance(STALL_S - 1)
    source.poll()
    assert source.problems == []
    clock.advance(2)
    assert (source.poll(), source.pending, source.seen) == ([], 0, 2)
    size = len(scanner.contents(1))
    assert source.problems == [f"cut.dcm: ends at byte {size - 1}, its header says {size}; it never completed"]
    scanner.check(source.finish(), [1], missing=(1,))
    assert source.problems[1:] == ["volume 1: never came whole"]


def test_a_file_that_was_given_up_may_still_complete(scanner: Scanner, source: FolderSource, clock: FakeClock) -> None:
    path = scanner.folder / "slow.dcm"
    path.write_bytes(scanner.contents(0)[:1000])
    source.poll()
    clock.advance(STALL_S)
    source.poll()
    assert len(source.problems) == 1
    path.write_bytes(scanner.contents(0))
    clock.advance(2)
    scanner.check(source.poll(), [0])
    assert source.problems[1:] == ["slow.dcm: is complete now"]
    assert source.seen == 1


def test_files_that_are_no_pictures_are_named_once(scanner: Scanner, source: FolderSource, clock: FakeClock) -> None:
    (scanner.folder / "notes.txt").write_text("participant moved a lot in the second run\n" * 10)
    scanner.send(0)
    scanner.check(source.poll(), [0])
    for _ in range(3):
        clock.advance(5)
        source.poll()
    assert source.problems == ["notes.txt: not a DICOM file: no 'DICM' at byte 128"]
    assert (source.seen, source.pending) == (2, 0)


def test_a_folder_that_appears_late_goes_away_and_comes_back(tmp_path: Path, clock: FakeClock) -> None:
    source = FolderSource(tmp_path / "watched", patience_s=PATIENCE_S, clock_ns=clock)
    assert source.poll() == []
    scanner = Scanner(tmp_path / "watched")
    scanner.send(0)
    scanner.check(source.poll(), [0])
    (tmp_path / "watched").rename(tmp_path / "away")
    assert source.poll() == []
    assert source.poll() == []
    (tmp_path / "away").rename(tmp_path / "watched")
    scanner.send(1)
    scanner.check(source.poll(), [1])
    where = str(tmp_path / "watched")
    assert source.problems == [f"{where}: is not accessible (No such file or directory); waiting for it", f"{where}: is accessible again"]


def test_folders_within_the_folder(tmp_path: Path, clock: FakeClock) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    assert source.poll() == []
    scanner = Scanner(tmp_path / "patient" / "series")
    scanner.send(0)
    (volume,) = source.poll()
    assert volume.files == (os.path.join("patient", "series", "001_000001_000001.dcm"),)


def test_a_file_that_is_locked_is_read_later(
    scanner: Scanner, source: FolderSource, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("rtevo.ingest.folder.read_dicom", locked)
        scanner.send(0)
        assert (source.poll(), source.pending) == ([], 1)
        clock.advance(STALL_S)
        assert source.poll() == []
        assert source.problems == [f"{scanner.writer.path(0).name}: cannot be read (Permission denied); it never completed"]
    clock.advance(STALL_S)
    scanner.check(source.poll(), [0])
    assert source.problems[1:] == [f"{scanner.writer.path(0).name}: is complete now"]


class Share:
    """Lets a folder's file system fail, as a share does whose server is away."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.error, self.calls = str(folder), 0, 0
        self.fails_at = -1  # call
        for module, name in ((os, "stat"), (os, "scandir"), (builtins, "open")):
            monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(self.folder):
                self.calls += 1
                if self.error and (self.fails_at < 0 or self.calls == self.fails_at):
                    raise OSError(self.error, os.strerror(self.error))
            return call(path, *arguments, **options)

        return wrapped


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ESTALE, errno.EIO, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EACCES])
def test_a_share_that_goes_away_and_comes_back(error: int, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = Scanner(tmp_path / "share" / "patient" / "series")
    share = Share(tmp_path / "share", monkeypatch)
    source = FolderSource(tmp_path / "share", patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
    scanner.send(0)
    scanner.check(source.poll(), [0])
    share.error = error
    for _ in range(5):
        clock.advance(1)
        assert source.poll() == []
    share.error = 0
    scanner.send(1, 2)
    clock.advance(1)
    scanner.check(source.poll() + source.poll(), [1, 2])
    where = str(tmp_path / "share")
    assert source.problems == [f"{where}: is not accessible ({os.strerror(error)}); waiting for it", f"{where}: is accessible again"]


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ESTALE, errno.EIO])
def test_a_share_that_fails_once_anywhere_loses_nothing(
    error: int, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 1
    for fails_at in itertools.count(1):
        if fails_at > calls:
            break
        folder = tmp_path / str(fails_at)
        scanner = Scanner(folder / "patient" / "series")
        with monkeypatch.context() as patch:
            share = Share(folder, patch)
            source = FolderSource(folder, patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
            got: list[Volume] = []
            scanner.send(0, 1)
            share.error, share.fails_at, share.calls = error, fails_at, 0
            got += source.poll()
            scanner.send(2)
            for _ in range(3):
                clock.advance(0.5)
                got += source.poll()
            calls = share.calls
        scanner.check(got, [0, 1, 2])
    assert calls > 10


def test_a_share_that_is_unmounted_leaves_an_empty_mount_point(tmp_path: Path, clock: FakeClock) -> None:
    mount, server = tmp_path / "mount", tmp_path / "server"
    source = FolderSource(mount, patience_s=PATIENCE_S, clock_ns=clock)
    scanner = Scanner(mount / "patient" / "series")
    scanner.send(0)
    scanner.check(source.poll(), [0])
    mount.rename(server)
    mount.mkdir()
    for _ in range(3):
        clock.advance(1)
        assert source.poll() == []
    mount.rmdir()
    server.rename(mount)
    scanner.send(1)
    clock.advance(1)
    scanner.check(source.poll(), [1])


def test_links_are_followed_but_not_in_circles(tmp_path: Path, clock: FakeClock) -> None:
    scanner = Scanner(tmp_path / "elsewhere" / "series")
    scanner.send(0, 1)
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "current").symlink_to(scanner.folder)
    (scanner.folder / "round").symlink_to(watched)
    (watched / "gone").symlink_to(tmp_path / "nowhere")
    source = FolderSource(watched, patience_s=PATIENCE_S, clock_ns=clock)
    scanner.check(source.poll(), [0, 1])
    (watched / "one.dcm").symlink_to(scanner.writer.path(0))
    scanner.send(2)
    scanner.check(source.poll(), [2])
    assert source.duplicates == 1
    assert source.finish() == []
    assert source.problems == []


def test_a_series_spread_over_folders_under_names_of_all_kinds(tmp_path: Path, clock: FakeClock) -> None:
    scanner = Scanner(tmp_path / "made")
    source = FolderSource(tmp_path / "export", patience_s=PATIENCE_S, clock_ns=clock)
    names = ["A/IM_0001", "A/1.2.840.113619.2", "B/MR0002.IMA", "B/C/i3.MRDC.4", "ünïcode/Bild ‰.DCM"]
    for index, name in enumerate(names):
        (tmp_path / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "export" / name).write_bytes(scanner.contents(index))
    for name in ("Thumbs.db", "protocol.pdf", "A/README", "A/.DS_Store", "B/events.json"):
        (tmp_path / "export" / name).write_bytes(b"no picture at all, but some text that is longer than a DICOM preamble is: " * 3)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    listing = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    listing.FileSetID, listing.DirectoryRecordSequence = "EXPORT", []
    listing.SOPClassUID = meta.MediaStorageSOPClassUID
    listing.save_as(tmp_path / "export" / "DICOMDIR")
    scanner.check(source.poll() + source.finish(), list(range(5)))
    assert len(source.problems) == 5
    assert any("DICOMDIR: holds no picture (SOP class 1.2.840.10008.1.3.10)" in problem for problem in source.problems)


def test_series_from_before_the_session_are_passed_over(tmp_path: Path, clock: FakeClock) -> None:
    before, now = Scanner(tmp_path, "bold", 3), Scanner(tmp_path, "bold", 5)
    before.send(0, 1, 2)
    (tmp_path / "notes.txt").write_bytes(b"x" * 200)
    source = FolderSource(tmp_path, series="bold", patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
    told = source.pass_over_present()
    assert told == f"{tmp_path} holds from before the session unused series: series 3 'bold', useless files: 1"
    assert source.poll() == []
    before.send(3)  # its end came late
    assert source.poll() == []
    assert source.told == ""
    now.send(0, 1)
    now.check(source.poll(), [0, 1])
    assert source.told == "series 5 'bold' (Siemens mosaic, TR 2 s): it is 'bold'"
    assert source.problems == [
        "series 3 'bold': files still come, but the series existed before the session: it is used only if named by number"
    ]
    named = FolderSource(tmp_path, series="3", patience_s=PATIENCE_S, clock_ns=clock)
    assert named.pass_over_present() == ""
    before.check(named.poll(), [0, 1, 2, 3])


@pytest.mark.parametrize("emptied", [False, True])
def test_late_files_of_the_run_before_begin_no_run_of_a_visit(tmp_path: Path, clock: FakeClock, emptied: bool) -> None:
    """Its series lies in the folder, or was moved away before the next run began: then it is known by its UID."""
    before, now = Scanner(tmp_path, "bold", 3), Scanner(tmp_path, "bold", 5)
    before.send(0, 1, 2)
    last = FolderSource(tmp_path, patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
    last.poll()
    known = [stream.series.uid for stream in last.streams]
    if emptied:
        for path in list(tmp_path.iterdir()):
            path.unlink()
    trigger_s = clock.now_ns + round(20e9)
    opened = {"opened": lambda: trigger_s if clock.now_ns >= trigger_s else None}
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock, **opened)
    source.pass_over_present(known)
    before.send(3)
    assert source.poll() == []
    clock.advance(20 + 4 * TR_S)  # the next run's trigger has been, and a late file comes at a time that would fit
    before.send(4)
    assert source.poll() == []
    assert source.told == ""
    now.send(0, 1)
    now.check(source.poll(), [0, 1])
    assert source.told.startswith("series 5 'bold'")


def test_the_closing_time_is_the_files_where_it_is_recent(scanner: Scanner, source: FolderSource) -> None:
    scanner.send(0, 1)
    now_ns, mono_ns = time.time_ns(), time.monotonic_ns()
    os.utime(scanner.writer.path(0), ns=(now_ns, now_ns - 4 * 10**9))
    os.utime(scanner.writer.path(1), ns=(now_ns, now_ns - 60 * 10**9))
    recent, old = source.poll()
    assert mono_ns - 5 * 10**9 < recent.closed_ns < mono_ns - 3 * 10**9
    assert mono_ns <= old.closed_ns <= time.monotonic_ns()


def test_slices_of_a_volume_in_any_order(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    for vendor in ("Philips", "GE"):
        folder = tmp_path / vendor
        folder.mkdir()
        source = FolderSource(folder, patience_s=PATIENCE_S, clock_ns=clock)
        got = []
        for step, (volume, index) in enumerate((v, k) for v in range(4) for k in (3, 0, 4, 1, 2)):
            (folder / f"{step * 7919 % 101}.dcm").write_bytes(encode(made.slice(volume, index, vendor)))
            got += source.poll()
            assert len(got) == (step + 1) // 5
        for volume in got:
            np.testing.assert_array_equal(volume.data, made.data(volume.index))
        acquired = [volume.acquired_s for volume in got]
        assert all(map(math.isnan, acquired)) if vendor == "GE" else acquired == [0, 2, 4, 6]
        assert source.finish() == []


def test_a_volume_without_one_slice_is_a_gap(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume in range(3):
        for index in range(5):
            if (volume, index) != (1, 2):
                (tmp_path / f"{volume}-{index}").write_bytes(encode(made.slice(volume, index)))
    assert [v.index for v in source.poll()] == [0]
    clock.advance(PATIENCE_S)
    gap, whole = source.poll()
    assert (gap.index, gap.flags, len(gap.files)) == (1, VolumeFlag.MISSING, 4)
    assert whole.index == 2
    assert source.problems == ["volume 1: 4 of 5 slices came"]
    (tmp_path / "late").write_bytes(encode(made.slice(1, 2)))
    (late,) = source.poll()
    assert late.flags == VolumeFlag.LATE
    np.testing.assert_array_equal(late.data, made.data(1))


def test_slices_whose_number_no_header_tells(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume in range(4):
        for index in range(5):
            (tmp_path / f"{volume}-{index}").write_bytes(encode(made.slice(volume, index, "Other")))
    assert source.poll() == []
    clock.advance(PATIENCE_S)
    assert [v.index for v in source.poll()] == [0, 1, 2, 3]


def test_a_philips_series_without_temporal_positions(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    got = []
    for volume in range(4):
        for index in range(5):
            dataset = made.slice(volume, index)
            del dataset.TemporalPositionIdentifier
            (tmp_path / f"{volume}-{index}").write_bytes(encode(dataset))
            got += source.poll()
    got += source.finish()
    assert [v.index for v in got] == [0, 1, 2, 3]
    for volume in got:
        np.testing.assert_array_equal(volume.data, made.data(volume.index))
    assert source.problems == []


def test_enhanced_volumes_whose_temporal_position_is_always_one(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    got = []
    for volume in (0, 2, 1, 3):
        dataset = made.enhanced([volume], instance=volume + 1)
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            groups.FrameContentSequence[0].TemporalPositionIndex = 1
        (tmp_path / f"{volume}").write_bytes(encode(dataset))
        got += source.poll()
    assert [v.index for v in got] == [0, 1, 2, 3]
    for volume in got:
        np.testing.assert_array_equal(volume.data, made.data(volume.index))


def test_a_whole_series_in_one_file(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    (tmp_path / "all").write_bytes(encode(made.enhanced([0, 1, 2, 3], "Philips Medical Systems", shuffle=True)))
    got = source.poll()
    assert [v.index for v in got] == [0, 1, 2, 3]
    assert [v.acquired_s for v in got] == [0, 2, 4, 6]
    for volume in got:
        np.testing.assert_array_equal(volume.data, made.data(volume.index))


def test_magnitude_is_taken_and_phase_is_left(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for component in ("P", "M"):
        for volume in range(2):
            for index in range(5):
                dataset = made.slice(volume, index)
                dataset.ImageType = ["ORIGINAL", "PRIMARY", component, "FFE"]
                dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{ord(component)}.{volume}.{index}"
                if component == "P":
                    dataset.PixelData = bytes(len(dataset.PixelData))
                (tmp_path / f"{component}-{volume}-{index}").write_bytes(encode(dataset, enforce_file_format=False))
    got = source.poll()
    assert [v.index for v in got] == [0, 1]
    np.testing.assert_array_equal(got[1].data, made.data(1))
    assert {stream.key.component for stream in source.streams} == {"M", "P"}


def test_the_functional_series_is_found_among_others(tmp_path: Path, clock: FakeClock) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for number, name in enumerate(("AAHead_Scout", "bold_SBRef")):
        Scanner(tmp_path / name, name, number + 1).send(0)
    assert source.poll() == []
    run = Scanner(tmp_path / "bold", "bold", 3)
    run.send(0, 1)
    run.check(source.poll(), [0, 1])
    assert source.run is not None
    assert source.run.label == "series 3 'bold'"
    Scanner(tmp_path / "again", "bold again", 4).send(0)
    assert source.poll() == []
    assert source.problems == ["series 4 'bold again' could also be the run; used is series 3 'bold' (name the series to choose another)"]


@pytest.mark.parametrize(("pattern", "number"), [("2", 2), ("run-1", 1), ("*run-2*", 2), ("RUN-2", 2)])
def test_a_series_that_was_asked_for(pattern: str, number: int, tmp_path: Path, clock: FakeClock) -> None:
    for n in (1, 2):
        Scanner(tmp_path / str(n), f"task_run-{n}", n).send(0, 1)
    source = FolderSource(tmp_path, series=pattern, patience_s=PATIENCE_S, clock_ns=clock)
    assert len(source.poll()) == 2
    assert source.run is not None
    assert source.run.series.number == number
    assert source.problems == []


def test_a_doubtful_series_is_taken_where_nothing_better_comes(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume in range(2):
        for index in range(5):
            dataset = made.slice(volume, index)
            dataset.ScanningSequence = "GR"
            (tmp_path / f"{volume}-{index}").write_bytes(encode(dataset))
    assert source.poll() == []
    clock.advance(PATIENCE_S)
    assert [v.index for v in source.poll()] == [0, 1]


def test_a_changed_geometry_is_named(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume, shift in enumerate((0.0, 0.5, 40.0)):
        for index in range(5):
            dataset = made.slice(volume, index)
            dataset.ImagePositionPatient[0] += shift
            (tmp_path / f"{volume}-{index}").write_bytes(encode(dataset))
    first, moved, lost = source.poll()
    assert (first.flags, moved.flags, lost.flags) == (0, 0, VolumeFlag.MISSING)
    assert len(source.problems) == 2
    assert source.problems[0].startswith("volume 1: voxels lie up to 0.50 mm apart")
    assert source.problems[1].startswith("volume 2: its geometry differs from the run's: voxels lie up to 40.00 mm apart")


def test_a_clock_that_jumps_is_named_once(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume in range(4):
        for index in range(5):
            dataset = made.slice(volume, index)
            if volume > 1:
                dataset.AcquisitionTime = f"1115{TR_S * volume:09.6f}"
            (tmp_path / f"{volume}-{index}").write_bytes(encode(dataset))
    assert [v.acquired_s for v in source.poll()] == [0, 2, 3604, 3606]
    (problem,) = source.problems
    assert problem.startswith("volume 2: acquired 3604.000 s after the first by its header, expected 4.000 s")


def test_a_large_folder_is_taken_in_parts(scanner: Scanner, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner.send(*range(5))
    size = max(path.stat().st_size for path in scanner.folder.iterdir())  # they differ by the length of their UIDs
    monkeypatch.setattr("rtevo.ingest.folder.BATCH_BYTES", size + 1)
    source = FolderSource(scanner.folder, patience_s=PATIENCE_S, clock_ns=clock)
    scanner.check(source.poll(), [0, 1])
    assert source.pending == 3
    scanner.check(source.poll(), [2, 3])
    scanner.check(source.finish(), [4])


def test_describe_names_what_is_wrong_with_a_folder(tmp_path: Path, scanner: Scanner) -> None:
    with pytest.raises(DataError, match="nowhere: expected a folder of DICOM files, found nothing"):
        describe(tmp_path / "nowhere")
    with pytest.raises(DataError, match="watched: no DICOM pictures"):
        describe(scanner.folder)
    (scanner.folder / "notes.txt").write_text("nothing of use" * 20)
    with pytest.raises(DataError, match=r"(?s)watched: no DICOM pictures.*notes.txt: not a DICOM file"):
        describe(scanner.folder)
    Scanner(scanner.folder, "scout", 9).send(0)
    with pytest.raises(DataError, match=r"no series in it looks functional; found series 9 'scout' .*'scout' in its name"):
        describe(scanner.folder)
    with pytest.raises(DataError, match=r"no series in it is 'rest'; found series 9 'scout'"):
        describe(scanner.folder, "rest")


def test_describe_names_a_series_without_a_whole_volume(tmp_path: Path, made: Made, encode: Encode) -> None:
    for volume in range(2):
        (tmp_path / str(volume)).write_bytes(encode(made.slice(volume, 0)))
    with pytest.raises(DataError, match="series 7 'bold task': none of its volumes is whole"):
        describe(tmp_path)


def test_describe_gives_gaps(scanner: Scanner) -> None:
    scanner.send(1, 2, 4)
    info = describe(scanner.folder)
    assert (info.n_volumes, info.missing, info.files, info.tr_s) == (5, (0, 3), 3, TR_S)
    assert info.problems == ("volume 0: never came", "volume 3: never came")
    assert info.grid.shape == GRID.shape


def test_a_series_that_is_started_again_is_named(tmp_path: Path, clock: FakeClock) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    Scanner(tmp_path / "1", "bold", 3).send(0, 1)
    assert len(source.poll()) == 2
    Scanner(tmp_path / "2", "bold", 4).send(0)
    assert source.poll() == []
    assert source.problems == [
        "series 4 'bold' has the name of the run, series 3 'bold', of which 2 volumes came: was the run restarted? The "
        "session keeps the first (name the series to choose another)"
    ]


def test_numbers_that_begin_again_within_a_series_are_named(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume in range(3):
        (tmp_path / f"{volume}").write_bytes(encode(made.enhanced([volume], instance=volume + 1)))
    assert len(source.poll()) == 3
    dataset = made.enhanced([0], instance=1)
    dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.1"
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.FrameContentSequence[0].FrameAcquisitionDateTime = "20260102101700.0"
    (tmp_path / "again").write_bytes(encode(dataset))
    assert source.poll() == []
    assert "was the run restarted under the same series?" in source.problems[0]


def test_a_run_that_is_begun_again_within_a_series_gives_the_run_none_of_its_volumes(tmp_path: Path, clock: FakeClock) -> None:
    """Not those either whose numbers are further than the run had come; what was measured in the run and comes late is taken."""
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    begin = datetime.datetime(2026, 1, 2, 10)
    first, again = (MosaicWriter(tmp_path, GRID, TR_S, started=begin + datetime.timedelta(seconds=s)) for s in (0, 60))
    again._fixed_series = first._fixed_series  # the same identifier
    for index in (0, 1, 3):
        first.write(index, np.full(GRID.shape, 100 + index, np.int16))
    found = source.poll()
    for index in range(6):
        (tmp_path / f"again-{index}.dcm").write_bytes(again.encode(index, np.full(GRID.shape, 200 + index, np.int16)))
    found += source.poll()
    first.write(2, np.full(GRID.shape, 102, np.int16))
    found += source.poll() + source.finish()
    assert [(v.index, int(v.data.max())) for v in found if v.data is not None] == [(0, 100), (1, 101), (2, 102), (3, 103)]
    assert source.run is not None
    assert source.run.assembler.again_s < math.inf
    assert "was the run restarted under the same series? Its volumes are left out" in source.problems[0]
    assert "5 more files that by their headers are the same as earlier volumes; left out" in source.problems


def test_two_volumes_in_a_repetition_are_named(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume in range(4):
        for index in range(5):
            dataset = made.slice(volume, index)
            dataset.RepetitionTime = 2 * TR_S * 1000
            (tmp_path / f"{volume}-{index}").write_bytes(encode(dataset))
    assert [v.acquired_s for v in source.poll()] == [0, 2, 4, 6]
    assert source.problems == [
        "by the headers, volumes were acquired every 2 s, half the repetition time of 4 s: two volumes a repetition; 2 s is used"
    ]


@pytest.mark.parametrize(("signal", "named"), [((1.6, 1.2), "volumes 0 to 1: up to 60%"), ((1.3,), "volume 0: up to 30%"), ((1.02,), "")])
def test_volumes_before_the_steady_state_are_named(signal: tuple[float, ...], named: str, tmp_path: Path, clock: FakeClock) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    writer = MosaicWriter(tmp_path, GRID, TR_S)
    for index in range(8):
        writer.write(index, np.full(GRID.shape, 1000 * (signal[index] if index < len(signal) else 1), np.float32))
    assert len(source.poll()) == 8
    assert [problem[: len(named)] for problem in source.problems] == ([named] if named else [])


@pytest.mark.parametrize("fields", ["numbered", "all alike"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_a_series_for_every_volume(
    fields: str, order: tuple[int, ...], tmp_path: Path, clock: FakeClock, made: Made, encode: Encode
) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    got = []
    for volume in order:
        dataset = made.enhanced([volume], instance=volume + 1 if fields == "numbered" else 1)
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{volume}"
        dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID[:50]}.{volume}"
        dataset.SeriesNumber = 12 + 2 * volume
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            groups.FrameContentSequence[0].TemporalPositionIndex = 1
        (tmp_path / f"{volume}").write_bytes(encode(dataset))
        got += source.poll()
    assert [v.index for v in got] == [0, 1, 2, 3]
    assert [v.acquired_s for v in got] == [0, 2, 4, 6]
    for volume in got:
        np.testing.assert_array_equal(volume.data, made.data(volume.index))
    assert source.problems == []


def test_a_second_run_of_the_same_name_is_not_taken_for_more_volumes_of_the_first(
    tmp_path: Path, clock: FakeClock, made: Made, encode: Encode
) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for run, volumes in enumerate(([0, 1], [3])):
        for volume in volumes:
            dataset = made.enhanced([volume], instance=volume + 1)
            dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID[:50]}.{run}"
            dataset.SeriesNumber = 5 + 3 * run
            (tmp_path / f"{run}-{volume}").write_bytes(encode(dataset))
    assert [v.index for v in source.poll()] == [0, 1]
    assert "was the run restarted?" in source.problems[0]


def remove(dataset: Any, *names: str) -> None:
    """Take elements out of a data set and everything in it."""
    for element in list(dataset):
        if element.keyword in names:
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                remove(item, *names)


@pytest.mark.parametrize(
    "missing",
    [
        ["RepetitionTime"],
        ["SpacingBetweenSlices", "SliceThickness"],
        ["MREchoSequence"],
        ["MRImageFrameTypeSequence"],
        ["FrameAcquisitionDateTime"],
        ["TemporalPositionIndex", "InStackPositionNumber", "StackID", "DimensionIndexValues"],
        ["SeriesNumber"],
        ["ProtocolName"],
        ["AcquisitionNumber"],
        ["FrameContentSequence"],
        ["NumberOfFrames"],
        ["AcquisitionNumber", "InstanceNumber", "SeriesDescription"],
    ],
)
def test_enhanced_files_whose_header_lacks_fields(missing: list[str], tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    for volume in range(4):
        dataset = made.enhanced([volume], instance=volume + 1)
        remove(dataset, *missing)
        (tmp_path / f"{volume}").write_bytes(encode(dataset))
    got = source.poll()
    clock.advance(PATIENCE_S)
    got += source.finish()
    assert [v.index for v in got] == [0, 1, 2, 3]
    for volume in got:
        np.testing.assert_array_equal(volume.data, made.data(volume.index))
    assert source.problems == []


def test_mosaics_without_private_headers(tmp_path: Path, clock: FakeClock) -> None:
    grid = Grid((8, 6, 7), GRID.affine)
    writer = MosaicWriter(tmp_path, grid, TR_S)
    rng = np.random.default_rng(0)
    volumes = [rng.integers(1, 4096, grid.shape).astype(np.float32) for _ in range(3)]
    for index, volume in enumerate(volumes):
        dataset = pydicom.dcmread(BytesIO(writer.encode(index, volume)))
        dataset.remove_private_tags()
        dataset.save_as(tmp_path / f"{index}.dcm")
    got = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock).poll()
    for volume, expected in zip(got, volumes, strict=True):
        np.testing.assert_array_equal(volume.data, expected)
        np.testing.assert_allclose(volume.grid.affine, grid.affine, atol=ROUNDING_MM)
    contents = (tmp_path / "2.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(contents[:-1])
    with pytest.raises(TruncatedError):
        read_dicom(tmp_path / "cut.dcm")


def ge_private(dataset: Any, element: int, vr: str, value: object) -> None:
    dataset.private_block(0x43, "GEMS_PARM_01", create=True).add_new(element, vr, value)


def test_what_ge_writes_in_tags_of_its_own(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    times_ms = [0.0, 1000.0, 333.0, 1333.0, 667.0]
    for component in (0, 1):
        for volume in range(2):
            for index in range(5):
                dataset = made.slice(volume, index, "GE")
                dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{component}.{volume}.{index}"
                dataset.TriggerTime = times_ms[index]
                ge_private(dataset, 0x2F, "SS", component)
                ge_private(dataset, 0x7C, "FL", 0.5)
                (tmp_path / f"{component}-{volume}-{index}").write_bytes(encode(dataset, enforce_file_format=False))
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    got = source.poll()
    assert [volume.index for volume in got] == [0, 1]
    assert {stream.key.component for stream in source.streams} == {"M", "P"}
    assert got[0].tr_s == TR_S + 0.5  # with the pause after every volume
    for volume in got:
        np.testing.assert_allclose(volume.slice_times_s, np.array(times_ms) / 1000)


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=30))
def test_damaged_files_among_whole_ones_neither_stop_nor_spoil_a_run(
    flips: list[tuple[int, float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    scanner = Scanner(tmp_path_factory.mktemp("watched"))
    contents = [bytearray(scanner.contents(index)) for index in range(4)]
    pixels = contents[0].index(b"\xe0\x7f\x10\x00")
    for index, where, value in flips:
        contents[index][int(where * pixels)] = value
    for index in range(4):
        scanner.writer.path(index).write_bytes(contents[index])
    source = FolderSource(scanner.folder, series="*bold*", patience_s=PATIENCE_S)
    volumes = source.poll() + source.finish()
    indices = [volume.index for volume in volumes if VolumeFlag.LATE not in volume.flags]
    assert indices == sorted(set(indices))
    assert all(np.isfinite(volume.data).all() for volume in volumes if volume.data is not None)
    assert source.pending == 0
