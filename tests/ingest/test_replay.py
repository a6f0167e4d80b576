"""A recorded series delivered again: at its times, in its order, with its faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.errors import DataError
from rtevo.ingest import FolderSource, Replay, Volume, replay, survey
from rtevo.records import Grid, VolumeFlag
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.faults import Delivery, Fate

Made = Any  # the class in conftest.py
Encode = Callable[..., bytes]
GRID = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))


class Watcher:
    """Looks at the watched folder whenever the replay waits."""

    def __init__(self, folder: Path) -> None:
        self.source = FolderSource(folder, patience_s=0.0, stall_s=1e9)
        self.times: list[float] = []
        self.files: list[int] = []
        self.volumes: list[list[Volume]] = []

    def wait_until(self, time_s: float) -> None:
        self.times.append(time_s)
        self.files.append(len([path for path in self.source.folder.rglob("*") if path.is_file()]))
        self.volumes.append(self.source.poll())


@pytest.mark.parametrize(("name", "tr_s", "files"), [("siemens-mosaic", 1.5, 12), ("ge-slices", 5.0, 150)])
def test_a_recording_comes_out_as_it_went_in(
    name: str, tr_s: float, files: int, scanner_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = scanner_data(name)
    watcher = Watcher(tmp_path / "watched")
    assert replay(folder, tmp_path / "watched", watcher.wait_until) == files
    watcher.wait_until(-1)
    assert watcher.times[:-1] == [k * tr_s for k in range(10)]
    assert watcher.files[-1] == files
    assert [[volume.index for volume in volumes] for volumes in watcher.volumes] == [[], *([k] for k in range(10))]
    original = FolderSource(folder, patience_s=0.0)
    for volume, expected in zip(itertools.chain(*watcher.volumes), [*original.poll(), *original.finish()], strict=True):
        assert volume.data is not None
        assert expected.data is not None
        np.testing.assert_array_equal(volume.data, expected.data)
    watcher.source.finish()
    assert (watcher.source.duplicates, watcher.source.problems) == (original.duplicates, original.problems)


def test_faults_go_with_their_volumes(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    grid = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
    writer = MosaicWriter(recording, grid, 2.0)
    contents = [writer.encode(k, np.full(grid.shape, k, np.float32)) for k in range(5)]
    for k in (0, 1, 4):  # 2 was lost, 3 was cut
        (recording / f"{k}.dcm").write_bytes(contents[k])
    (recording / "3.dcm").write_bytes(contents[3][:-5])
    (recording / "9-copy-of-0.dcm").write_bytes(contents[0])
    (recording / "1-empty-header.dcm").write_bytes(contents[2][:200])
    (recording / "events.tsv").write_text("onset\tduration\n" * 20)
    MosaicWriter(recording / "scout", grid, 2.0, description="scout", series_number=2).write(0, np.zeros(grid.shape, np.float32))
    found = survey(recording)
    assert found.run is not None
    assert (found.run.n_volumes, found.run.missing, found.duplicates) == (5, (2, 3), 1)
    assert sorted(found.extra_files) == [("1-empty-header.dcm", None), ("3.dcm", 3), ("9-copy-of-0.dcm", 0)]
    watcher = Watcher(tmp_path / "watched")
    assert replay(recording, tmp_path / "watched", watcher.wait_until) == 6
    assert watcher.files == [0, 3, 4, 4, 5]
    assert sorted(path.name for path in (tmp_path / "watched").iterdir()) == sorted(
        ["0.dcm", "1.dcm", "1-empty-header.dcm", "3.dcm", "4.dcm", "9-copy-of-0.dcm"]
    )
    volumes = [*itertools.chain(*watcher.volumes), *watcher.source.poll(), *watcher.source.finish()]
    assert [volume.index for volume in volumes] == [0, 1, 2, 3, 4]
    assert [VolumeFlag.MISSING in volume.flags for volume in volumes] == [False, False, True, True, False]
    assert watcher.source.duplicates == 1


def test_slices_of_a_volume_come_together_in_run_order(tmp_path: Path, made: Made, encode: Encode) -> None:
    recording = tmp_path / "recording"
    recording.mkdir()
    for number, (volume, index) in enumerate((v, k) for k in range(5) for v in range(4)):  # names sort by slice, not by time
        (recording / f"{number:03d}").write_bytes(encode(made.slice(volume, index)))
    watcher = Watcher(tmp_path / "watched")
    assert replay(recording, tmp_path / "watched", watcher.wait_until, tr_s=0.5) == 20
    watcher.wait_until(-1)
    assert watcher.times[:-1] == [0, 0.5, 1, 1.5]
    assert [[volume.index for volume in volumes] for volumes in watcher.volumes] == [[], [0], [1], [2], [3]]


def test_what_cannot_be_replayed_is_said_before_anything_is_copied(tmp_path: Path, made: Made, encode: Encode) -> None:
    def never(_: float) -> None:
        raise AssertionError("waited")

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="empty: no DICOM pictures"):
        replay(empty, tmp_path / "into", never)
    with pytest.raises(DataError, match="expected a folder outside the recording"):
        replay(empty, empty / "into", never)
    timeless = tmp_path / "timeless"
    timeless.mkdir()
    for volume in range(2):
        for index in range(5):
            dataset = made.slice(volume, index, "GE")
            del dataset.RepetitionTime
            (timeless / f"{volume}-{index}").write_bytes(encode(dataset))
    with pytest.raises(DataError, match="expected a repetition time"):
        replay(timeless, tmp_path / "into", never)
    assert not (tmp_path / "into").exists()


def test_a_replay_through_a_faulty_delivery(tmp_path: Path) -> None:
    writer = MosaicWriter(tmp_path / "recording", GRID, 2.0, description="bold")
    for index in range(6):
        writer.write(index, np.full(GRID.shape, index, np.float32))
    with Delivery(tmp_path / "watched", "drop=0.3, reorder=2", seed=1) as delivery:
        assert Replay(tmp_path / "recording", tmp_path / "watched").run(lambda _: None, delivery.send) == 6
    volumes = FolderSource(tmp_path / "watched", patience_s=1).finish()
    lost = [Fate.LOST in fate for fate in delivery.fates.values()]
    assert any(lost)
    assert [v.data is None for v in volumes] == lost[: len(volumes)]
