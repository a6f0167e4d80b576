"""Recorded series of four kinds of scanners, volume for volume as dcm2niix converts them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtevo.ingest import FolderSource, Volume, describe

FLOAT32_AFFINE_MM = 1e-3  # dcm2niix computes affines in float32: 7 digits of positions up to a metre
SCALED_FLOAT32 = 2e-6  # of the value: dcm2niix keeps slopes in float32, and rescaling rounds once more

ARCHIVES = {
    "siemens-mosaic": ("Siemens", "mosaic", 1.5, 10),
    "philips-slices": ("Philips", "slices", 2.0, 78),
    "ge-slices": ("GE", "slices", 5.0, 10),
    "siemens-xa30-enhanced": ("Siemens", "enhanced", 1.0, 20),
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
    vendor, kind, tr_s, volumes = ARCHIVES[name]
    info = describe(scanner_data(name))
    assert (info.vendor, info.kind, info.n_volumes, info.missing) == (vendor, kind, volumes, ())
    assert info.tr_s == pytest.approx(tr_s, rel=1e-6)
    assert info.likely


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
