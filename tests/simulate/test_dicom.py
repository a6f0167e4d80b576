"""Files of the mosaic writer, held against dcm2niix and pydicom."""

from __future__ import annotations

import datetime
import io
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter

FLOAT32_AFFINE_MM = 1e-3  # dcm2niix computes affines in float32: 7 digits of positions up to a metre
STARTED = datetime.datetime(2026, 1, 2, 23, 59, 58)  # crosses midnight
TILT = Rotation.from_euler("xyz", [10, -15, 5], degrees=True).as_matrix()


def affine(columns: NDArray[np.float64], origin: tuple[float, float, float]) -> NDArray[np.float64]:
    out = np.eye(4)
    out[:3, :3] = columns
    out[:3, 3] = origin
    return out


GRIDS = {
    "radiological": Grid((80, 80, 35), affine(np.diag([-3.0, 3.0, 3.3]), (118.5, -90, -50))),
    "right-handed": Grid((80, 80, 35), affine(np.diag([3.0, 3.0, 3.3]), (-118.5, -90, -50))),
    "oblique": Grid((64, 72, 27), affine(TILT @ np.diag([-2.5, 2.5, 4.0]), (100, -80, -40))),
    "anisotropic": Grid((48, 64, 12), affine(TILT @ np.diag([-3.0, 2.0, 4.5]), (70, -60, -20))),
    "sagittal": Grid((64, 60, 20), affine(TILT @ np.array([[0, 0, 3.0], [-2, 0, 0], [0, 2, 0]]), (-60, 80, -40))),
}


def convert(folder: Path, out: Path) -> nibabel.Nifti1Image:
    out.mkdir()
    command = [sys.executable, "-m", "dcm2niix", "-b", "n", "-z", "n", "-f", "out", "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return nibabel.load(out / "out.nii")


def volumes(shape: tuple[int, int, int], count: int) -> list[NDArray[np.int16]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4096, shape).astype(np.int16) for _ in range(count)]


@pytest.mark.parametrize("name", GRIDS)
def test_dcm2niix_gives_the_same_data_and_affine(name: str, tmp_path: Path) -> None:
    grid = GRIDS[name]
    writer = MosaicWriter(tmp_path / "in", grid, 0.867, description=name, started=STARTED)
    written = volumes(grid.shape, 3)
    for index in (2, 0, 1):
        assert writer.write(index, written[index]) == writer.path(index)
    image = convert(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.stack(written, axis=-1))
    np.testing.assert_allclose(image.affine, grid.affine, atol=FLOAT32_AFFINE_MM)
    assert float(image.header.get_zooms()[3]) == pytest.approx(0.867)


def test_headers_as_pydicom_reads_them(tmp_path: Path) -> None:
    grid = GRIDS["oblique"]
    writer = MosaicWriter(tmp_path, grid, 1.5, description="taste — tâche", series_number=7, volumes=20, started=STARTED)
    dataset = pydicom.dcmread(io.BytesIO(writer.encode(3, volumes(grid.shape, 1)[0])))
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert dataset.SeriesDescription == "taste — tâche"
    assert (dataset.SeriesNumber, dataset.AcquisitionNumber, dataset.InstanceNumber) == (7, 4, 4)
    assert (dataset.AcquisitionDate, dataset.AcquisitionTime) == ("20260103", "000002.500000")
    assert dataset.RepetitionTime == 1500
    assert dataset.pixel_array.shape == (6 * 72, 6 * 64)
    tags = [element.tag for element in dataset]
    assert tags == sorted(tags)


def test_values_are_rounded_clipped_and_scaled(tmp_path: Path) -> None:
    grid = Grid((4, 5, 3), affine(np.diag([-3.0, 3.0, 3.0]), (0, 0, 0)))
    volume = np.full(grid.shape, 10.26, np.float32)
    volume[0, 0, 0], volume[1, 0, 0] = -5.0, 1e9
    writer = MosaicWriter(tmp_path / "in", grid, 2.0, units_per_step=0.5)
    for index in range(2):
        writer.write(index, volume)
    data = convert(tmp_path / "in", tmp_path / "out").get_fdata()[..., 0]
    assert data[0, 0, 0] == 0
    assert data[1, 0, 0] == 4095 * 0.5
    assert np.unique(data[2:]).tolist() == [10.5]


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    grid = GRIDS["anisotropic"]
    volume = volumes(grid.shape, 1)[0]
    first, second = (MosaicWriter(tmp_path, grid, 1.0, started=STARTED).encode(0, volume) for _ in range(2))
    assert first == second
    other = MosaicWriter(tmp_path, grid, 1.0, started=STARTED, series_number=2).encode(0, volume)
    assert pydicom.dcmread(io.BytesIO(other)).SOPInstanceUID != pydicom.dcmread(io.BytesIO(first)).SOPInstanceUID


def test_mistakes_are_named(tmp_path: Path) -> None:
    grid = GRIDS["oblique"]
    writer = MosaicWriter(tmp_path, grid, 1.0)
    with pytest.raises(ValueError, match=r"volume: expected shape \(64, 72, 27\), got \(3, 3, 3\)"):
        writer.write(0, np.zeros((3, 3, 3), np.float32))
    with pytest.raises(ValueError, match="volume 4: expected finite values"):
        writer.write(4, np.full(grid.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"tr_s: expected > 0 seconds, got 0"):
        MosaicWriter(tmp_path, grid, 0)
    with pytest.raises(ValueError, match="units_per_step: expected > 0"):
        MosaicWriter(tmp_path, grid, 1, units_per_step=0)
    sheared = grid.affine.copy()
    sheared[0, 1] += 1
    with pytest.raises(ValueError, match="voxel axes at right angles"):
        MosaicWriter(tmp_path, Grid(grid.shape, sheared), 1.0)
