"""Recorded series of four kinds of scanners, volume for volume as dcm2niix converts them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rtevo.ingest import FolderSource, Volume, describe
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter

FLOAT32_AFFINE_MM = 1e-3  # dcm2niix computes affines in float32: 7 digits of positions up to a metre
SCALED_FLOAT32 = 2e-6  # of the value: dcm2niix keeps slopes in float32, and rescaling rounds once more

SLICE_TIME_S = 3e-3  # XA headers round each slice's time to the sequence's clock, differently in every volume

ARCHIVES = {
    "siemens-mosaic": ("Siemens", "mosaic", 1.5, 10, "(0008,0032)"),
    "philips-slices": ("Philips", "slices", 2.0, 78, "(2005,xxA0)"),
    "ge-slices": ("GE", "slices", 5.0, 10, ""),
    "siemens-xa30-enhanced": ("Siemens", "enhanced", 1.0, 20, "(0018,9074)"),
}


def read_all(source: FolderSource) -> list[Volume]:
    volumes = source.poll()
    return volumes + source.finish()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_recorded_series_is_what_dcm2niix_makes_of_it(
    name: str, scanner_data: Callable[[str], Path], dcm2niix: Callable[[Path], nibabel.Nifti1Image]
) -> None:
    folder = scanner_data(name)
    expected = dcm2niix(folder / "dicom")
    reference = expected.get_fdata(dtype=np.float32)
    source = FolderSource(folder, patience_s=1.0)
    volumes = read_all(source)
    assert [volume.index for volume in volumes] == list(range(reference.shape[3]))
    for volume in volumes:
        assert volume.data is not None
        assert volume.data.dtype == np.float32
        assert volume.data.flags.c_contiguous
        assert volume.flags == 0
        np.testing.assert_allclose(volume.data, reference[..., volume.index], rtol=SCALED_FLOAT32, err_msg=f"volume {volume.index}")
        np.testing.assert_allclose(volume.grid.affine, expected.affine, atol=FLOAT32_AFFINE_MM)
        assert volume.tr_s == pytest.approx(float(expected.header.get_zooms()[3]), rel=1e-6)
        assert math.isnan(volume.acquired_s) or volume.acquired_s == pytest.approx(volume.index * volume.tr_s, abs=2e-3)
        assert volume.closed_ns > 0
    assert source.pending == 0


@pytest.mark.parametrize("name", ARCHIVES)
def test_describe_says_what_is_there(name: str, scanner_data: Callable[[str], Path]) -> None:
    vendor, kind, tr_s, volumes, source = ARCHIVES[name]
    info = describe(scanner_data(name))
    assert (info.vendor, info.kind, info.n_volumes, info.missing) == (vendor, kind, volumes, ())
    assert info.tr_s == pytest.approx(tr_s, rel=1e-6)
    assert info.likely
    assert info.acquired_from.endswith(source)
    assert bool(info.acquired_from) == bool(source)


def test_a_duplicate_and_a_truncated_file_of_a_mosaic_series(scanner_data: Callable[[str], Path]) -> None:
    source = FolderSource(scanner_data("siemens-mosaic"), patience_s=1.0)
    volumes = read_all(source)
    assert len(volumes) == 10
    assert source.duplicates == 1
    assert source.problems == ["truncated.dcm: ends at byte 307200, its header says 457030; it never completed"]
    assert source.seen == 12
    assert not any("truncated.dcm" in volume.files for volume in volumes)


def test_siemens_and_philips_say_when_a_volume_was_acquired(scanner_data: Callable[[str], Path]) -> None:
    for name in ("siemens-mosaic", "siemens-xa30-enhanced", "philips-slices"):
        volumes = read_all(FolderSource(scanner_data(name), patience_s=1.0, pixels=False))
        np.testing.assert_allclose([v.acquired_s for v in volumes], np.arange(len(volumes)) * volumes[0].tr_s, atol=2e-3)


TILT = Rotation.from_euler("xyz", [8, -12, 6], degrees=True).as_matrix()
ORIENTATIONS = {
    "transverse": [1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "turned round": [-1, 0, 0, 0, 1, 0],
    "tilted transverse": [*TILT[:, 0], *TILT[:, 1]],
    "tilted coronal": [*TILT[:, 0], *-TILT[:, 2]],
    "tilted sagittal": [*TILT[:, 1], *-TILT[:, 2]],
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["Philips", "GE", "Philips enhanced"])
def test_every_orientation_is_arranged_as_dcm2niix_does(
    kind: str, name: str, make: Any, encode: Any, dcm2niix: Callable[[Path], nibabel.Nifti1Image], tmp_path: Path
) -> None:
    made = make(orientation=[float(x) for x in ORIENTATIONS[name]], descending=name in ("turned round", "tilted sagittal", "coronal"))
    if kind == "Philips enhanced":
        datasets = [made.enhanced([0, 1, 2, 3], "Philips Medical Systems")]
    else:
        datasets = [made.slice(volume, index, kind) for volume in range(4) for index in range(5)]
    for number, dataset in enumerate(datasets):
        (tmp_path / f"{number:02d}.dcm").write_bytes(encode(dataset, enforce_file_format=True))
    expected = dcm2niix(tmp_path)
    volumes = read_all(FolderSource(tmp_path, patience_s=1.0))
    np.testing.assert_array_equal(np.stack([volume.data for volume in volumes], axis=-1), expected.get_fdata())
    np.testing.assert_allclose(volumes[0].grid.affine, expected.affine, atol=FLOAT32_AFFINE_MM)


@pytest.mark.parametrize("columns", [np.diag([-3.0, 3, 3.5]), np.diag([3.0, 3, 3.5]), np.array([[0, 0, 3.0], [-2, 0, 0], [0, 2, 0]])])
@pytest.mark.parametrize("turned", [False, True])
def test_mosaics_of_either_direction_and_numbering(
    turned: bool, columns: np.ndarray, dcm2niix: Callable[[Path], nibabel.Nifti1Image], tmp_path: Path
) -> None:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, (1, 2, 3)
    writer = MosaicWriter(tmp_path, Grid((20, 24, 7), affine), 2.0)
    for index in range(2):
        volume = np.random.default_rng(index).integers(0, 4096, (20, 24, 7)).astype(np.float32)
        contents = writer.encode(index, volume)
        if turned:  # the console's "image numbering" reversed
            at = contents.index(b"ProtocolSliceNumber\0") + 64 + 20 + 16
            assert contents[at : at + 2] == b"0\0"
            contents = contents[:at] + b"6" + contents[at + 1 :]
        writer.path(index).write_bytes(contents)
    expected = dcm2niix(tmp_path)
    volumes = read_all(FolderSource(tmp_path, patience_s=1.0))
    np.testing.assert_array_equal(np.stack([volume.data for volume in volumes], axis=-1), expected.get_fdata())
    np.testing.assert_allclose(volumes[0].grid.affine, expected.affine, atol=FLOAT32_AFFINE_MM)


@pytest.mark.parametrize("name", ["siemens-mosaic", "siemens-xa30-enhanced", "philips-slices"])
def test_slice_times_are_those_of_dcm2niix(name: str, scanner_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = scanner_data(name)
    command = [sys.executable, "-m", "dcm2niix", "-b", "o", "-f", "out", "-o", str(tmp_path), str(folder / "dicom")]
    subprocess.run(command, capture_output=True, check=True)
    expected = json.loads((tmp_path / "out.json").read_text()).get("SliceTiming")
    volumes = read_all(FolderSource(folder, patience_s=1.0))
    for volume in volumes:
        if expected is None:
            assert volume.slice_times_s is None
        else:
            np.testing.assert_allclose(volume.slice_times_s, expected, atol=SLICE_TIME_S)
    found = describe(folder).slice_times_s
    assert found is None if expected is None else found == tuple(volumes[0].slice_times_s)
