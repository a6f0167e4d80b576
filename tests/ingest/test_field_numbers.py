"""Headers and pixels that mean something else than they seem to: what others have met, and their brothers made up here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.uid import JPEGLSNearLossless, RLELossless

from rtevo.ingest import FolderSource
from rtevo.ingest.__main__ import main
from rtevo.ingest.dicom import parse_dicom

Made = Any  # the class in conftest.py
Encode = Callable[..., bytes]
VOLUMES, SLICES, TR_S = 4, 5, 2.0


@pytest.fixture
def field(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies one folder of small inputs that others have met; skips where there are none."""
    source = Path(os.environ.get("RTEVO_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "field"

    def copy(name: str) -> Path:
        if not (source / name).is_dir():
            pytest.skip(f"no such inputs: {source / name} is not there (set RTEVO_TEST_DATA)")
        shutil.copytree(source / name, tmp_path / name, copy_function=shutil.copyfile)
        (tmp_path / name).chmod(0o755)
        return tmp_path / name

    return copy


def write(folder: Path, datasets: list[Any], encode: Encode) -> Path:
    """Put data sets into a folder as files, in this order."""
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        (folder / f"{number:04d}.dcm").write_bytes(encode(dataset, enforce_file_format=True))
    return folder


# --- bits -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("high_bit", "compressed"), [(11, False), (13, False), (15, False), (11, True)])
def test_bits_that_hold_no_pixel_do_not_count(signed: bool, high_bit: int, compressed: bool, made: Made, encode: Encode) -> None:
    """Unused ones above the highest bit are set, as overlays and old scanners do, and those below are."""
    values = made.pixels[0, 0].astype(np.int32) - (2048 if signed else 0)  # of 12 bits
    shift = high_bit - 11
    unused = 0xFFFF ^ (0xFFF << shift)
    dataset = made.slice(0, 0)
    dataset.HighBit, dataset.PixelRepresentation = high_bit, int(signed)
    dataset.PixelData = (((values & 0xFFF) << shift) | unused).astype(np.uint16).tobytes()
    if compressed:
        dataset.compress(RLELossless)
    (part,) = parse_dicom(encode(dataset, enforce_file_format=True), "x").parts
    np.testing.assert_array_equal(part.pixels[0], values)


def test_bits_above_those_stored(field: Callable[[str], Path]) -> None:
    source = FolderSource(field("bits_above_stored"), patience_s=1.0)
    assert [round(float(volume.data.mean()), 1) for volume in source.poll() if volume.data is not None] == [399.5, 409.5]


# --- what is not there ----------------------------------------------------------------------------------------------------------------


def undecodable(made: Made, volumes: list[int]) -> list[Any]:
    """A run of which the slices of some volumes are compressed into what no decoder reads."""
    datasets = []
    for volume in range(VOLUMES):
        for index in range(SLICES):
            datasets.append(made.slice(volume, index))
            if volume in volumes:
                datasets[-1].file_meta.TransferSyntaxUID = JPEGLSNearLossless
                datasets[-1].PixelData = (
                    b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0odds\xfe\xff\xdd\xe0\0\0\0\0"  # offset table, fragment, end
                )
                datasets[-1]["PixelData"].is_undefined_length = True
    return datasets


def test_a_run_that_cannot_be_decoded_is_not_written(
    made: Made, encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "in", undecodable(made, [0, 1, 2, 3]), encode)
    assert main([str(folder), "--out", str(tmp_path / "run.nii.gz")]) == 1
    told = capsys.readouterr().err
    assert "compressed pixels" in told
    assert "install pylibjpeg[libjpeg]" in told
    assert not (tmp_path / "run.nii.gz").exists()


def test_volumes_that_cannot_be_decoded_are_named_with_an_exit_status(
    made: Made, encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "in", undecodable(made, [2]), encode)
    assert main([str(folder), "--out", str(tmp_path / "run.nii.gz")]) == 1
    told = capsys.readouterr().err
    assert "written, but 1 of its volumes cannot be read and are NaN: 2" in told
    assert "install pylibjpeg[libjpeg]" in told
    data = nibabel.load(tmp_path / "run.nii.gz").get_fdata()
    assert [bool(np.isnan(data[..., k]).all()) for k in range(VOLUMES)] == [False, False, True, False]


def test_a_compressed_recording_without_its_decoder(
    field: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        import jpeg_ls  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("its decoder (pyjpegls) is installed")
    assert main([str(field("compressed_nan")), "--out", str(tmp_path / "R.nii.gz")]) == 1
    assert "install" in capsys.readouterr().err
    assert not (tmp_path / "R.nii.gz").exists()
