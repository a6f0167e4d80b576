"""Which series is the run: the same answer in a session, whatever the order of arrival, as on the day before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.ingest import FolderSource, describe
from rtevo.records import Grid, VolumeFlag
from rtevo.simulate.dicom import MosaicWriter

FakeClock = Any
Made = Any
Encode = Callable[..., bytes]
GRID = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
PATIENCE_S, TR_S = 3.0, 2.0


def send(folder: Path, description: str, number: int, *indices: int, value: int = 100) -> None:
    writer = MosaicWriter(folder, GRID, TR_S, description=description, series_number=number)
    for index in indices:
        writer.write(index, np.full(GRID.shape, value + index, np.float32))


@pytest.mark.parametrize("beside", ["bold_SBRef", "bold_MoCo", "bold_PhysioLog"])
@pytest.mark.parametrize("slow", [False, True])
def test_what_is_made_beside_a_run_is_taken_last_also_under_its_name(beside: str, slow: bool, tmp_path: Path, clock: FakeClock) -> None:
    source = FolderSource(tmp_path / "live", series="bold", patience_s=PATIENCE_S, clock_ns=clock)
    send(tmp_path / "live", beside, 6, 0, value=1)
    got = source.poll()
    if slow:
        clock.advance(PATIENCE_S)
        got += source.poll()
    send(tmp_path / "live", "bold", 7, 0, 1, 2)
    got += source.poll()
    assert [float(v.data.max()) for v in got if v.data is not None] == [100, 101, 102]
    better = f"it looks more functional (echo-planar series; the other: {why(beside)})"
    assert source.problems == [f"series 6 '{beside}' came first, but series 7 'bold' is the run: {better}"]
    assert describe(tmp_path / "live", "bold").number == 7
    assert describe(tmp_path / "live", "6").number == 6
    assert describe(tmp_path / "live", beside).number == 6


def why(name: str) -> str:
    return "processed by the scanner" if "MoCo" in name else f"'{name.partition('_')[2].lower()}' in its name"


def test_only_a_reference_is_taken_at_the_end(tmp_path: Path, clock: FakeClock) -> None:
    send(tmp_path, "bold_SBRef", 6, 0)
    source = FolderSource(tmp_path, series="bold", patience_s=PATIENCE_S, clock_ns=clock)
    clock.advance(100 * PATIENCE_S)
    assert source.poll() == []
    assert [v.index for v in source.finish()] == [0]
    assert describe(tmp_path, "bold").number == 6


def test_the_inputs_from_the_field(tmp_path: Path, clock: FakeClock) -> None:
    folder = Path(os.environ.get("RTEVO_TEST_DATA", "")) / "field" / "sbref_named"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set RTEVO_TEST_DATA)")
    source = FolderSource(tmp_path, series="bold", patience_s=PATIENCE_S, clock_ns=clock)
    got = []
    for path in sorted(folder.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        got += source.poll()
    assert (source.run.series.number if source.run else None, len(got)) == (7, 3)
    assert describe(tmp_path, "bold").number == 7


def test_a_doubtful_series_gives_way_to_a_better_one_while_nothing_was_shown(tmp_path: Path, clock: FakeClock) -> None:
    shown = []
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock, replaceable=lambda: not shown)
    send(tmp_path, "bold_MoCo", 6, 0, 1)
    source.poll()
    clock.advance(PATIENCE_S)
    assert len(source.poll()) == 2
    assert source.doubtful
    send(tmp_path, "bold", 7, 0, 1, 2)
    assert [float(v.data.max()) for v in source.poll() if v.data is not None] == [100, 101, 102]
    assert not source.doubtful
    assert source.problems[-1].startswith("series 6 'bold_MoCo' came first, but series 7 'bold' is the run")
    shown.append(True)
    send(tmp_path, "bold", 8, 0)
    assert source.poll() == []


@pytest.mark.parametrize("of", ["Siemens", "Siemens sequence", "Philips", "Philips directions", "GE", "later"])
def test_diffusion_series_of_older_scanners_are_not_functional(
    of: str, tmp_path: Path, clock: FakeClock, made: Made, encode: Encode
) -> None:
    vendor = of.split()[0]
    for volume in range(2):
        for index in range(5):
            dataset = made.slice(volume, index, "Philips" if vendor in ("Siemens", "later") else vendor)
            if vendor == "Siemens":
                dataset.Manufacturer = "SIEMENS"
            if of == "Siemens":
                dataset.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1000")
            elif of == "Siemens sequence":
                dataset.SequenceName = "*ep_b0"
            elif of == "Philips directions":
                dataset.private_block(0x2005, "Philips MR Imaging DD 002", create=True).add_new(0x15, "SL", 33)
            elif of in ("Philips", "later"):
                weight = 800.0 if of == "Philips" or (volume, index) == (1, 4) else 0.0
                dataset.private_block(0x2001, "Philips Imaging DD 001").add_new(0x03, "FL", weight)
            else:
                dataset.private_block(0x43, "GEMS_PARM_01", create=True).add_new(0x39, "IS", ["1000000700", "8", "0", "0"])
            (tmp_path / f"{volume}-{index}").write_bytes(encode(dataset))
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    assert source.poll() + source.finish() == []
    assert "diffusion" in source.problems[-1]


def enhanced(made: Made, encode: Encode, folder: Path, volume: int, slices: int | None = None, **changes: Any) -> None:
    """A file of one volume, cut short where `slices` is given: whole by its own header."""
    dataset = made.enhanced([volume], instance=volume + 1)
    if slices is not None:
        dataset.NumberOfFrames = slices
        dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:slices]
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) * slices // 5]
    for name, value in changes.items():
        setattr(dataset, name, value)
    (folder / f"{volume}.dcm").write_bytes(encode(dataset))


@pytest.mark.parametrize("confirm", [False, True])
def test_a_first_volume_that_is_cut_short_does_not_fix_the_grid(
    confirm: bool, tmp_path: Path, clock: FakeClock, made: Made, encode: Encode
) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock, confirm=confirm)
    got = []
    for volume in range(4):
        enhanced(made, encode, tmp_path, volume, slices=3 if volume == 0 else None)
        got += source.poll()
    assert [v.index for v in got] == [0, 1, 2, 3]
    for v in got[1:]:
        np.testing.assert_array_equal(v.data, made.data(v.index))
    if confirm:
        assert got[0].flags == VolumeFlag.MISSING
        assert all(v.grid.shape == (8, 6, 5) for v in got)
    assert "shape" in " ".join(source.problems)
    found = describe(tmp_path)
    assert (found.grid.shape, found.missing, found.n_volumes) == ((8, 6, 5), (0,), 4)


def test_one_wrong_volume_after_the_first_is_left_out(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock)
    got = []
    for volume in range(3):
        enhanced(made, encode, tmp_path, volume, slices=3 if volume == 1 else None)
        got += source.poll()
    assert [(v.index, bool(v.flags & VolumeFlag.MISSING)) for v in got] == [(0, False), (1, True), (2, False)]


def test_a_session_passes_a_lonely_first_volume_on_after_its_patience(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock, confirm=True)
    enhanced(made, encode, tmp_path, 0)
    assert source.poll() == []
    clock.advance(PATIENCE_S)
    assert [v.index for v in source.poll()] == [0]


def test_a_run_that_is_started_again_before_it_was_used(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    """Under the same series number and identifier, while its first volume still waits for a second one."""
    source = FolderSource(tmp_path, patience_s=PATIENCE_S, clock_ns=clock, confirm=True)
    enhanced(made, encode, tmp_path, 0)
    assert source.poll() == []
    (tmp_path / "again").mkdir()
    for volume in range(2):
        dataset = made.enhanced([volume], instance=volume + 1)
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{volume}"
        dataset.PixelData = bytes(len(dataset.PixelData) - 2) + b"\7\0"
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            groups.FrameContentSequence[0].FrameAcquisitionDateTime = f"2026010210170{2 * volume}.0"
        (tmp_path / "again" / f"{volume}.dcm").write_bytes(encode(dataset, enforce_file_format=False))
    got = source.poll()
    assert [(v.index, float(v.data.max())) for v in got if v.data is not None] == [(0, 7.0), (1, 7.0)]
    assert any("the series was restarted before any of its volumes was used" in problem for problem in source.problems)


def test_the_leftover_of_another_participant_is_named_and_never_taken(tmp_path: Path, clock: FakeClock, made: Made, encode: Encode) -> None:
    source = FolderSource(tmp_path / "run", patience_s=PATIENCE_S, clock_ns=clock)
    (tmp_path / "run").mkdir()
    for volume in range(2):
        enhanced(made, encode, tmp_path / "run", volume)
    assert len(source.poll()) == 2
    (tmp_path / "run" / "other").mkdir()
    for volume in range(2):
        changes = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": f"1.2.3.4.{volume}", "SeriesNumber": 9}
        enhanced(made, encode, tmp_path / "run" / "other", volume, **changes)
    assert source.poll() == []
    (problem,) = source.problems
    assert problem == "series 9 'bold task' is of another study than the run, series 7 'bold task' (another participant?): not used"
