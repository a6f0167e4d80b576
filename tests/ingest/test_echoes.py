"""Several echoes of each volume: waited for, passed on together, never made up."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence as DicomSequence

from rtevo.ingest import FolderSource, Volume
from rtevo.ingest.echoes import EchoJoin
from rtevo.ingest.push import PushSource
from rtevo.ingest.replay import Replay
from rtevo.records import Grid, VolumeFlag
from rtevo.simulate.dicom import MosaicWriter

FakeClock = Any
Made = Any
Encode = Callable[..., bytes]
GRID = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
PATIENCE_S, TR_S = 3.0, 2.0
TE_S = (0.012, 0.029, 0.046)


def write(folder: Path, index: int, *echoes: int, of: int = 3) -> None:
    """Write echoes (1 = first) of a volume; their values say which they are."""
    for echo in echoes:
        writer = MosaicWriter(
            folder, GRID, TR_S, description="bold", started=datetime.datetime(2026, 1, 2), echo=(echo, of, TE_S[echo - 1])
        )
        writer.write(index, np.full(GRID.shape, 100 * echo + index, np.float32))


def source_of(folder: Path, clock: FakeClock, **options: Any) -> FolderSource:
    return FolderSource(folder, patience_s=PATIENCE_S, clock_ns=clock, **{"echoes": 3, **options})


def values(volumes: list[Volume]) -> list[Any]:
    """Index, and the echoes' values; None of a volume that is missing."""
    return [(v.index, None if v.data is None else v.data.reshape(len(v.data), -1).max(axis=1).tolist()) for v in volumes]


def test_a_volume_goes_on_when_all_its_echoes_are_there(tmp_path: Path, clock: FakeClock) -> None:
    source = source_of(tmp_path, clock)
    write(tmp_path, 0, 1, 2)
    assert source.poll() == []
    assert source.told == ""
    write(tmp_path, 0, 3)
    (volume,) = source.poll()
    assert values([volume]) == [(0, [100, 200, 300])]
    assert volume.data is not None
    assert volume.data.shape == (3, *GRID.shape)
    assert volume.flags == 0
    assert len(volume.files) == 3
    assert source.sidecar(volume)["EchoTimes"] == list(TE_S)
    assert "echoes of 12, 29, 46 ms combined" in source.told
    write(tmp_path, 1, 3, 2)
    write(tmp_path, 2, 1, 2, 3)
    assert values(source.poll()) == []
    write(tmp_path, 1, 1)
    assert values(source.poll()) == [(1, [101, 201, 301]), (2, [102, 202, 302])]
    assert source.problems == []
    assert source.pending == 0


def test_without_combination_the_first_echo_is_the_run(tmp_path: Path, clock: FakeClock) -> None:
    source = source_of(tmp_path, clock, echoes=1)
    for index in range(3):
        write(tmp_path, index, 1, 2, 3)
    got = source.poll() + source.finish()
    assert [(v.index, float(v.data.max())) for v in got if v.data is not None] == [(0, 100), (1, 101), (2, 102)]
    assert "EchoTimes" not in source.sidecar(got[0])


def test_a_missing_echo_makes_its_volume_missing_by_name_and_a_late_one_is_late(tmp_path: Path, clock: FakeClock) -> None:
    source = source_of(tmp_path, clock)
    for index in range(2):
        write(tmp_path, index, 1, 2, 3)
    write(tmp_path, 2, 1, 3)
    write(tmp_path, 3, 1, 2, 3)
    assert values(source.poll()) == [(0, [100, 200, 300]), (1, [101, 201, 301])]
    clock.advance(PATIENCE_S)
    got = source.poll()
    assert values(got) == [(2, None), (3, [103, 203, 303])]
    assert got[0].flags == VolumeFlag.MISSING
    assert "volume 2: echo 2 of 3 is missing, so the volume counts as missing" in source.problems
    write(tmp_path, 2, 2)
    (late,) = source.poll()
    assert (values([late]), late.flags) == ([(2, [102, 202, 302])], VolumeFlag.LATE)


def test_the_last_volume_is_missing_where_the_run_ends_between_its_echoes(tmp_path: Path, clock: FakeClock) -> None:
    source = source_of(tmp_path, clock)
    write(tmp_path, 0, 1, 2, 3)
    write(tmp_path, 1, 1, 2)
    assert values(source.poll() + source.finish()) == [(0, [100, 200, 300]), (1, None)]


def test_fewer_echoes_than_wanted_are_named_and_give_no_volume(tmp_path: Path, clock: FakeClock) -> None:
    source = source_of(tmp_path, clock)
    got = []
    for index in range(6):
        write(tmp_path, index, 1, 2, of=2)
        clock.advance(2 * PATIENCE_S)
        got += source.poll()
    got += source.finish()
    assert values(got) == [(index, None) for index in range(6)]
    assert any("expected 3 echoes of each volume ([acquisition] echoes), found 2" in problem for problem in source.problems)


def test_a_doubtful_series_gives_way_to_all_echoes_of_a_better_one(tmp_path: Path, clock: FakeClock) -> None:
    source = source_of(tmp_path, clock, replaceable=lambda: True)
    corrected = MosaicWriter(tmp_path, GRID, TR_S, description="bold_MoCo", series_number=9)
    for index in range(2):
        corrected.write(index, np.full(GRID.shape, 1, np.float32))
    source.poll()
    clock.advance(PATIENCE_S)
    assert source.poll() == []
    for index in range(2):
        write(tmp_path, index, 3, 2, 1)
    assert values(source.poll()) == [(0, [100, 200, 300]), (1, [101, 201, 301])]


def test_of_more_echoes_the_shortest_are_combined(tmp_path: Path, clock: FakeClock) -> None:
    source = source_of(tmp_path, clock, echoes=2)
    for index in range(2):
        write(tmp_path, index, 1, 2, 3)
    assert values(source.poll() + source.finish()) == [(0, [100, 200]), (1, [101, 201])]


@pytest.mark.parametrize("vendor", ["GE", "Philips"])
def test_one_file_for_each_slice_and_echo(vendor: str, tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = source_of(tmp_path, clock, echoes=2)
    for volume in range(4):
        for echo in (1, 2):
            for index in range(5):
                dataset = made.slice(volume, index, vendor)
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{echo}"
                dataset.EchoTime, dataset.EchoNumbers = 1000 * TE_S[echo - 1], echo
                if vendor == "GE":
                    dataset.InstanceNumber = (volume * 2 + echo - 1) * 5 + index + 1
                dataset.PixelData = (made.pixels[volume, index] // echo).tobytes()
                (tmp_path / f"{volume}-{echo}-{index}").write_bytes(encode(dataset))
    got = source.poll() + source.finish()
    assert [v.index for v in got] == [0, 1, 2, 3]
    for volume in got:
        assert volume.data is not None
        np.testing.assert_array_equal(volume.data, np.stack([made.data(volume.index), made.data(volume.index) // 2]))


@pytest.mark.parametrize("together", [True, False])
def test_multi_frame_files_that_hold_all_echoes_or_one_each(
    together: bool, tmp_path: Path, clock: FakeClock, made: Made, encode: Encode
) -> None:
    source = source_of(tmp_path, clock, echoes=2)
    for volume in range(3):
        frames = [(echo, k) for echo in (1, 2) for k in range(5)]
        for part, own in enumerate([frames] if together else [frames[:5], frames[5:]]):
            dataset = made.enhanced([volume], instance=2 * volume + part + 1 if not together else volume + 1)
            dataset.AcquisitionNumber = volume + 1
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{part}"
            dataset.NumberOfFrames = len(own)
            groups = [made.frame(volume, k, te_ms=1000 * TE_S[echo - 1]) for echo, k in own]
            dataset.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
            dataset.PixelData = np.stack([made.pixels[volume, k] // echo for echo, k in own]).tobytes()
            (tmp_path / f"{volume}-{part}").write_bytes(encode(dataset))
    got = source.poll() + source.finish()
    assert [v.index for v in got] == [0, 1, 2]
    for volume in got:
        assert volume.data is not None
        np.testing.assert_array_equal(volume.data, np.stack([made.data(volume.index), made.data(volume.index) // 2]))


@pytest.mark.parametrize("name", ["siemens-mosaic", "siemens-xa30-enhanced"])
def test_real_files_as_a_multi_echo_protocol_would_have_written_them(
    name: str, scanner_data: Callable[[str], Path], tmp_path: Path, clock: FakeClock
) -> None:
    """Copies of real files, edited: a second echo, and instance numbers that count through both, or through each."""
    paths = sorted((scanner_data(name) / "dicom").iterdir())[1:3]
    plain = FolderSource(tmp_path / "plain", patience_s=PATIENCE_S, clock_ns=clock)
    (tmp_path / "plain").mkdir()
    (tmp_path / "echoes").mkdir()
    for number, path in enumerate(paths):
        (tmp_path / "plain" / f"{number}.dcm").write_bytes(path.read_bytes())
        for echo in (1, 2):
            dataset = pydicom.dcmread(path)
            if echo == 2:
                uid = f"{dataset.SOPInstanceUID[:60]}.2"
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
                if "PerFrameFunctionalGroupsSequence" in dataset:
                    for frame in (*dataset.PerFrameFunctionalGroupsSequence, *dataset.SharedFunctionalGroupsSequence):
                        for item in frame.get("MREchoSequence", []):
                            item.EffectiveEchoTime += 20
                else:
                    dataset.EchoTime, dataset.EchoNumbers = float(dataset.EchoTime) + 20, 2
            if name == "siemens-mosaic":
                dataset.InstanceNumber = 2 * int(dataset.InstanceNumber) - 2 + echo
            dataset.save_as(tmp_path / "echoes" / f"{number}-{echo}.dcm")
    source = source_of(tmp_path / "echoes", clock, echoes=2)
    wanted, got = plain.poll() + plain.finish(), source.poll() + source.finish()
    assert [v.index for v in got] == [v.index for v in wanted]
    whole = [(one, both) for one, both in zip(wanted, got, strict=True) if one.data is not None]
    assert len(whole) == 2
    for one, both in whole:
        assert both.data is not None
        np.testing.assert_array_equal(both.data, np.stack([one.data, one.data]))
        assert one.grid.difference(both.grid) == ""
    first, second = source.sidecar(got[0])["EchoTimes"]
    assert second - first == pytest.approx(0.02)


def test_a_recorded_series_is_replayed_with_all_its_echoes(tmp_path: Path) -> None:
    for index in range(2):
        write(tmp_path / "recorded", index, 1, 2, 3)
    replayed = Replay(tmp_path / "recorded", tmp_path / "live", tr_s=TR_S, echoes=3)
    assert [len(names) for names in replayed.deliveries] == [3, 3]
    assert [len(names) for names in Replay(tmp_path / "recorded", tmp_path / "live", tr_s=TR_S).deliveries] == [1, 1]


def test_a_script_pushes_all_echoes_in_one_message(clock: FakeClock) -> None:
    import zmq

    data = np.arange(3 * 4 * 3 * 2, dtype="<i2").reshape(3, 4, 3, 2)
    header = {"shape": data.shape, "dtype": "<i2", "affine": np.diag([3.0, 3, 3, 1]).tolist(), "tr_s": TR_S, "echo_times_s": TE_S}
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, clock_ns=clock, echoes=3) as source:
        socket = zmq.Context.instance().socket(zmq.REQ)
        socket.set(zmq.LINGER, 0)
        socket.connect(source.endpoint)
        got: list[Volume] = []

        def push(**changes: Any) -> Any:
            message = {**header, **changes}
            sent = data[0] if len(message["shape"]) == 3 else data
            socket.send_multipart([json.dumps(message).encode(), sent.tobytes()])
            while not socket.poll(1):
                got.extend(source.poll())
            return json.loads(socket.recv())

        assert push(index=0)["ok"]
        assert "expected 3 echoes" in push(index=1, shape=[4, 3, 2])["error"]
        assert "echo_times_s: expected 3 times" in push(index=1, echo_times_s=[0.01, 0.02])["error"]
        assert "expected the run's" in push(index=1, echo_times_s=[0.01, 0.02, 0.03])["error"]
        assert push(index=1)["ok"]
        got += source.finish()
        socket.close()
        assert [v.index for v in got] == [0, 1]
        np.testing.assert_array_equal(np.stack([v.data for v in got if v.data is not None]), np.stack([data, data]))
        assert source.sidecar(got[0])["EchoTimes"] == list(TE_S)


def test_an_echo_that_lies_elsewhere_makes_its_volume_missing() -> None:
    def of(shift_mm: float) -> Volume:
        affine = GRID.affine.copy()
        affine[0, 3] += shift_mm
        return Volume(0, np.zeros(GRID.shape, np.float32), Grid(GRID.shape, affine), TR_S, 0.0, 1, VolumeFlag.OK, ("file",))

    join = EchoJoin(2, PATIENCE_S)
    join.add(0, [of(0.0)], 0.0)
    join.add(1, [of(5.0)], 0.0)
    (volume,) = join.advance(0.0)
    assert (volume.data, volume.flags) == (None, VolumeFlag.MISSING)
    assert "echo 2 lies elsewhere than the first" in join.problems[0]
