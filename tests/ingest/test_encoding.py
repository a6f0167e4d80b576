"""Phase encoding, echo spacing and acceleration of each vendor, as dcm2niix reads them; polarities that change within a run."""

from __future__ import annotations

import io
import itertools
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from rtevo.ingest import FolderSource, survey
from rtevo.ingest.dicom import parse_dicom
from rtevo.ingest.encoding import acceleration_of_slices
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter, csa_header

Made = Any  # the class in conftest.py
Encode = Callable[..., bytes]
VOLUMES, SLICES, TR_S = 4, 5, 2.0
NAMES = (
    "PhaseEncodingDirection",
    "PhaseEncodingAxis",
    "EffectiveEchoSpacing",
    "TotalReadoutTime",
    "ParallelReductionFactorInPlane",
    "MultibandAccelerationFactor",
    "EstimatedEffectiveEchoSpacing",
    "EstimatedTotalReadoutTime",
)
SIX_DIGITS = 2e-5  # dcm2niix writes six
SLICE_TIME_S = 5e-3  # dcm2niix has Siemens XA's times from another element, in steps of 2.5 ms


def oracle(folder: Path, out: Path) -> dict[str, Any]:
    """What dcm2niix says of a folder of one series."""
    out.mkdir()
    command = [sys.executable, "-m", "dcm2niix", "-b", "o", "-f", "out", "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (path,) = out.glob("*.json")
    assert path, done.stdout
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def sidecar(folder: Path) -> dict[str, Any]:
    """What the source says of it; of the second volume, as some headers have wrong slice times in the first."""
    source = FolderSource(folder, patience_s=1.0, pixels=False)
    volumes = source.poll() + source.finish()
    return source.sidecar(volumes[1])


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """An acceleration of 1 may be left out."""
    for name in NAMES:
        one = 1 if name.endswith(("InPlane", "Factor")) else None
        told, wanted = found.get(name, one), expected.get(name, one)
        assert told == (pytest.approx(wanted, rel=SIX_DIGITS) if isinstance(wanted, int | float) else wanted), name


@pytest.mark.parametrize("archive", ["siemens-mosaic", "siemens-xa30-enhanced", "ge-slices", "philips-slices"])
def test_recorded_series_are_read_as_dcm2niix_does(archive: str, scanner_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = scanner_data(archive) / "dicom"
    found, expected = sidecar(folder), oracle(folder, tmp_path / "out")
    agree(found, expected)
    assert found.get("PhaseEncodingDirection", found.get("PhaseEncodingAxis")) in ("j-", "j")
    if "SliceTiming" in expected:
        np.testing.assert_allclose(found["SliceTiming"], expected["SliceTiming"], atol=SLICE_TIME_S)


def write(folder: Path, datasets: list[Any], encode: Encode) -> Path:
    folder.mkdir()
    for number, dataset in enumerate(datasets):
        (folder / f"{number:03d}").write_bytes(encode(dataset, enforce_file_format=True))
    return folder


def mosaics(tmp_path: Path, change: Callable[[pydicom.Dataset], None], positive: str, bandwidth: str) -> list[Any]:
    """Two Siemens mosaics of 6 rows and 8 columns with a CSA header of these values."""
    grid, datasets = Grid((8, 6, SLICES), np.diag([-3.0, 3.0, 3.5, 1.0])), []
    writer = MosaicWriter(tmp_path / "none", grid, TR_S)
    for volume in range(2):
        dataset = pydicom.dcmread(io.BytesIO(writer.encode(volume, np.full(grid.shape, 100 + volume, np.float32))))
        entries = [
            ("NumberOfImagesInMosaic", "US", 1, [str(SLICES)]),
            ("SliceNormalVector", "FD", 3, ["0", "0", "1"]),
            ("PhaseEncodingDirectionPositive", "IS", 1, [positive] if positive else []),
            ("BandwidthPerPixelPhaseEncode", "FD", 1, [bandwidth] if bandwidth else []),
        ]
        dataset[0x0029, 0x1010].value = csa_header(entries)
        change(dataset)
        datasets.append(dataset)
    return datasets


@pytest.mark.parametrize(
    ("axis", "positive", "bandwidth", "mode"),
    [(*each, "43.403", "p2") for each in itertools.product(("COL", "ROW"), ("0", "1", ""))]
    + [("COL", "1", "", ""), ("ROW", "1", "20.5", "p2s4"), ("COL", "1", "20.5", "s2")],
)
def test_mosaics(axis: str, positive: str, bandwidth: str, mode: str, tmp_path: Path, encode: Encode) -> None:
    def change(dataset: pydicom.Dataset) -> None:
        dataset.InPlanePhaseEncodingDirection = axis
        if mode:
            dataset.private_block(0x51, "SIEMENS MR HEADER", create=True).add_new(0x11, "LO", mode)

    folder = write(tmp_path / "in", mosaics(tmp_path, change, positive, bandwidth), encode)
    found = sidecar(folder)
    expected = oracle(folder, tmp_path / "out")
    agree(found, {**expected, "ParallelReductionFactorInPlane": 2} if mode == "p2s4" else expected)  # which dcm2niix reads by halves
    sign = {"COL": {"1": "j-", "0": "j"}, "ROW": {"1": "i", "0": "i-"}}[axis].get(positive)
    assert found.get("PhaseEncodingDirection") == sign
    assert ("EffectiveEchoSpacing" in found) == bool(bandwidth)
    assert found.get("MultibandAccelerationFactor", 1) == {"p2s4": 4, "s2": 2}.get(mode, 1)


@pytest.mark.parametrize("axis", ["COLUMN", "ROW"])
@pytest.mark.parametrize("positive", [0, 1])
def test_multi_frame_files_of_siemens(axis: str, positive: int, made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = []
    for volume in range(2):
        dataset = made.enhanced([volume], instance=volume + 1)
        geometry = Dataset()
        geometry.InPlanePhaseEncodingDirection = axis
        dataset.SharedFunctionalGroupsSequence[0].MRFOVGeometrySequence = [geometry]
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            inner = Dataset()
            block = inner.private_block(0x21, "SIEMENS MR SDI 02", create=True)
            block.add_new(0x1C, "IS", str(positive))
            block.add_new(0x53, "FD", 31.25)
            groups.private_block(0x21, "SIEMENS MR SDI 02", create=True).add_new(0xFE, "SQ", [inner])
        datasets.append(dataset)
    found = sidecar(write(tmp_path / "in", datasets, encode))
    lines = 8 if axis == "ROW" else 6
    assert found["PhaseEncodingDirection"] == {"COLUMN": {1: "j-", 0: "j"}, "ROW": {1: "i", 0: "i-"}}[axis][positive]
    assert found["EffectiveEchoSpacing"] == pytest.approx(1 / (31.25 * lines), abs=1e-9)
    assert found["TotalReadoutTime"] == pytest.approx((lines - 1) / (31.25 * lines), abs=1e-9)


def user_data(flags: int, order: int, version: float = 26.002) -> bytes:
    """GE's, with the flags of echo-planar imaging."""
    data, start, moved = bytearray(1200), 44, version >= 25.002
    struct.pack_into("<H", data, 24, start)
    struct.pack_into("<f", data, start, version)
    base = start + 0x4C * moved
    struct.pack_into("<H", data, base + 0x30, flags)
    struct.pack_into("<H", data, base + 0x3A, 0x0800)
    struct.pack_into("<H", data, base + 0x394 - 0x8C * moved, order)
    return bytes(data)


def ge(made: Made, **settings: Any) -> list[Any]:
    """A GE run with private tags."""
    datasets = []
    for volume in range(2):
        for index in range(SLICES):
            dataset = made.slice(volume, index, "GE")
            dataset.NumberOfTemporalPositions = 2
            dataset.InPlanePhaseEncodingDirection = settings.get("axis", "COL")
            dataset.AcquisitionMatrix = settings.get("matrix", [8, 0, 0, 6])
            dataset.ScanOptions = settings.get("options", ["EPI_GEMS"])
            if "reordering" in settings:
                dataset.RectilinearPhaseEncodeReordering = settings["reordering"]
            block = dataset.private_block(0x43, "GEMS_PARM_01", create=True)
            block.add_new(0x2C, "SS", 500)
            block.add_new(0x83, "DS", [settings.get("reciprocal", "1"), "1"])
            block.add_new(0xB6, "LO", [str(settings.get("bands", 0)), "0", "0", "", "", "", ""])
            if "data" in settings:
                block.add_new(0x2A, "OB", settings["data"])
            dataset.private_block(0x19, "GEMS_ACQU_01", create=True).add_new(0x9C, "LO", "epiRT")
            if "order" in settings:
                text = f'PSEQ "x"\nSLICEORDER "{settings["order"]}"\nVIEWORDER "0"\n'.encode()
                packed = zlib.compressobj(wbits=31)
                packed_block = packed.compress(text) + packed.flush()
                contents = struct.pack("<I", len(packed_block)) + packed_block
                dataset.private_block(0x25, "GEMS_SERS_01", create=True).add_new(0x1B, "OB", contents + b"\0" * (len(contents) % 2))
            datasets.append(dataset)
    return datasets


@pytest.mark.parametrize(
    "settings",
    [
        {"reordering": "LINEAR"},
        {"reordering": "REVERSE_LINEAR"},
        {"reordering": "LINEAR", "axis": "ROW"},
        {"reordering": "REVERSE_LINEAR", "axis": "ROW"},
        {"reordering": "LINEAR", "reciprocal": "0.5", "options": ["EPI_GEMS", "PFF"]},
        {"reordering": "LINEAR", "reciprocal": "0.666667"},
        {"reordering": "LINEAR", "bands": 2},
        {},
        *[{"data": user_data(flags, order, version)} for flags in (0, 4) for order in (0, 2) for version in (24.0, 26.002)],
    ],
)
def test_ge(settings: dict[str, Any], made: Made, encode: Encode, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", ge(made, **settings), encode)
    agree(sidecar(folder), oracle(folder, tmp_path / "out"))


def test_an_interpolated_picture_of_ge(made: Made, encode: Encode) -> None:
    """The formula in dcm2niix's README: 4 lines of 500 us were acquired, 6 reconstructed."""
    told = parse_dicom(encode(ge(made, reordering="LINEAR", matrix=[4, 0, 0, 4])[0]), "x").series.encoding
    assert told["TotalReadoutTime"] == pytest.approx(3 * 500e-6)
    assert told["EffectiveEchoSpacing"] == pytest.approx(3 * 500e-6 / 5)


@pytest.mark.parametrize("slices", [SLICES, 4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_slice_times_of_ge_by_the_order_of_the_protocol(
    interleaved: bool, slices: int, made: Made, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = [d for d in ge(made, order=int(interleaved), reordering="LINEAR") if (d.InstanceNumber - 1) % SLICES < slices]
    for dataset in datasets:
        dataset.InstanceNumber = (dataset.InstanceNumber - 1) // SLICES * slices + (dataset.InstanceNumber - 1) % SLICES + 1
        dataset[0x0021, 0x104F].value = slices
    found = sidecar(write(tmp_path / "in", datasets, encode))
    step_s = TR_S / slices
    order = [*range(0, slices, 2), *range(1, slices, 2)] if interleaved else list(range(slices))
    expected = np.zeros(slices)
    expected[order] = np.arange(slices) * step_s
    np.testing.assert_allclose(found["SliceTiming"], expected, atol=1e-6)


def test_philips_has_an_axis_and_estimates(made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = [made.slice(volume, index) for volume in range(2) for index in range(SLICES)]
    for dataset in datasets:
        dataset.NumberOfTemporalPositions, dataset.InPlanePhaseEncodingDirection, dataset.ImagingFrequency = 2, "COL", 127.77
        block = dataset.private_block(0x2001, "Philips Imaging DD 001")
        block.add_new(0x13, "SL", 43)
        block.add_new(0x22, "FL", 12.5)
        copy = Dataset()
        copy.ParallelReductionFactorInPlane = 2.0
        dataset.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [copy])
    folder = write(tmp_path / "in", datasets, encode)
    found, expected = sidecar(folder), oracle(folder, tmp_path / "out")
    assert "PhaseEncodingDirection" not in found
    agree(found, {**expected, "ParallelReductionFactorInPlane": 2})


def test_slices_at_once_by_their_times() -> None:
    assert acceleration_of_slices(np.tile([0.0, 0.5, 0.25], 3)) == 3
    assert acceleration_of_slices(np.arange(6) / 6) == 1
    assert acceleration_of_slices(np.array([0, 0, 0.5])) == 1


@pytest.mark.parametrize("reversed_volumes", [[0], [2], [1, 3]])
def test_two_polarities_in_one_run_are_told_once(reversed_volumes: list[int], made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = []
    for volume in range(VOLUMES):
        for index in range(SLICES):
            dataset = made.slice(volume, index, "GE")
            dataset.InPlanePhaseEncodingDirection = "COL"
            dataset.RectilinearPhaseEncodeReordering = "REVERSE_LINEAR" if volume in reversed_volumes else "LINEAR"
            datasets.append(dataset)
    found = survey(write(tmp_path / "in", datasets, encode)).run
    assert found is not None
    (told,) = found.problems
    first = reversed_volumes[0] or 1
    here, before = ("j", "j-") if 0 in reversed_volumes else ("j-", "j")
    assert told.startswith(f"volume {first}: phase is encoded along {here}, before it along {before}: the run has two polarities")


def test_damaged_numbers_say_nothing(made: Made, encode: Encode) -> None:
    dataset = ge(made, reordering="SIDEWAYS", reciprocal="0", bands=5000, data=b"\xff" * 1200)[0]
    dataset[0x0043, 0x102C].value = -1
    told = parse_dicom(encode(dataset), "x").series.encoding
    assert set(told) <= {"PhaseEncodingAxis", "ParallelReductionFactorInPlane"}
