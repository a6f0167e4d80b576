"""``python -m rtevo.ingest``: the listing and the conversion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtevo.ingest.__main__ import main
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter

FLOAT32_AFFINE_MM = 1e-3  # NIfTI and dcm2niix keep affines in float32
GRID = Grid((8, 6, 5), np.array([[-3.0, 0, 0, 12], [0, 3, 0, -9], [0, 0, 3.5, 5], [0, 0, 0, 1]]))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    folder = tmp_path / "recording"
    run = MosaicWriter(folder / "bold", GRID, 2.0, description="bold [run 1]", series_number=3)
    for index in (1, 2, 4):
        run.write(index, np.full(GRID.shape, index, np.float32))
    (folder / "copy").write_bytes(run.encode(4, np.full(GRID.shape, 4, np.float32)))
    (folder / "cut").write_bytes(run.encode(5, np.full(GRID.shape, 5, np.float32))[:-7])
    MosaicWriter(folder / "scout", GRID, 2.0, description="scout").write(0, np.zeros(GRID.shape, np.float32))
    return folder


def test_the_table(recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    assert main([str(recording)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "bold [run 1]",
        "Siemens",
        "mosaic",
        "8 x 6 x 5",
        "3 x 3 x 3.5",
        "0, 3, 5",
        "duplicates: 1",
        "cut: ends at byte",
        "'scout' in its name",
    ):
        assert text in shown


def test_json(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recording), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = next(series for series in found["series"] if series["run"])
    assert (run["number"], run["volumes"], run["missing"], run["files"], run["tr_s"]) == (3, 6, [0, 3, 5], 3, 2.0)
    assert found["run"] == run["uid"]
    assert found["duplicates"] == 1
    assert len(found["series"]) == 2


def test_conversion_leaves_gaps_as_nan(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.nii.gz"
    assert main([str(recording), "--out", str(out)]) == 0
    image = nibabel.load(out)
    data = image.get_fdata()
    assert [float(data[0, 0, 0, k]) for k in (0, 1, 3)] == [1, 2, 4]
    assert np.isnan(data[..., 2]).all()
    assert image.header.get_zooms()[3] == 2.0
    np.testing.assert_allclose(image.affine, GRID.affine, atol=FLOAT32_AFFINE_MM)


def test_conversion_of_a_recorded_series(
    scanner_data: Callable[[str], Path], dcm2niix: Callable[[Path], nibabel.Nifti1Image], tmp_path: Path
) -> None:
    folder = scanner_data("siemens-xa30-enhanced") / "dicom"
    assert main([str(folder), "--out", str(tmp_path / "run.nii")]) == 0
    image, expected = nibabel.load(tmp_path / "run.nii"), dcm2niix(folder)
    np.testing.assert_array_equal(image.get_fdata(), expected.get_fdata())
    np.testing.assert_allclose(image.affine, expected.affine, atol=FLOAT32_AFFINE_MM)
    assert image.header.get_zooms() == pytest.approx(expected.header.get_zooms())


def test_mistakes_end_in_one_message(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "expected a folder of DICOM files, found nothing" in capsys.readouterr().err
    assert main([str(recording), "--series", "rest"]) == 1
    assert "no series in it is 'rest'" in capsys.readouterr().err
    assert main([str(recording), "--out", str(tmp_path / "run.mgz")]) == 2
    assert "expected a name that ends in .nii or .nii.gz" in capsys.readouterr().err
    assert main([str(recording), "--out", str(tmp_path / "no" / "run.nii")]) == 2
    assert "expected an existing folder to write into" in capsys.readouterr().err
