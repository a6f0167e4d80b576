"""Whole runs on the command line: what it writes, and that it is what a running session computes, bit for bit."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from rtevo.kernels.rigid import matrix_from_params
from rtevo.realign import Realigner, framewise_displacement
from rtevo.realign.__main__ import main
from rtevo.realign.series import open_nifti
from rtevo.records import MOTION_COLUMNS

AFFINE = np.array([[-3.0, 0.1, 0.2, 40.0], [0.1, 2.9, -0.6, -35.0], [0.15, 0.6, 3.2, -20.0], [0, 0, 0, 1]])
SHAPE = (22, 24, 18)
COUNT = 5


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """A scaled int16 run with small motion; its volume 3 is empty."""
    rng = np.random.default_rng(6)
    grid = [(np.arange(n) - (n - 1) / 2) / (0.36 * n) for n in SHAPE]
    radius = np.sqrt(sum(g**2 for g in np.meshgrid(*grid, indexing="ij")))
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.4)
    head = 1000 / (1 + np.exp(8 * (radius - 1))) * (1 + 0.25 * texture / texture.std())
    volumes = []
    for n in range(COUNT):
        back = np.linalg.inv(AFFINE) @ np.linalg.inv(matrix_from_params(0.1 * n * np.array([1, -1, 0.5, 0.01, 0, 0.02]))) @ AFFINE
        moved = ndimage.affine_transform(head, back[:3, :3], back[:3, 3], order=3, mode="nearest")
        volumes.append(np.rint(moved * 0 if n == 3 else moved + rng.normal(scale=5, size=SHAPE)))
    image = nib.Nifti1Image(np.stack(volumes, axis=3).astype(np.int16), AFFINE)
    image.header.set_zooms((*image.header.get_zooms()[:3], 0.8))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(1.7, 3.0)
    path = tmp_path_factory.mktemp("run") / "run.nii.gz"
    nib.save(image, path)
    return path


def _table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _params(rows):
    return np.array([[float(row[name].replace("n/a", "nan")) for name in MOTION_COLUMNS] for row in rows])


@pytest.mark.parametrize("threads", [1, 2])
def test_offline_is_online(run_file, tmp_path, capsys, threads):
    assert main([str(run_file), "--out", str(tmp_path), "--threads", str(threads)]) == 0
    assert "volume 3 could not be aligned" in capsys.readouterr().out
    data = nib.load(run_file).get_fdata(dtype=np.float32)
    image = nib.load(tmp_path / "aligned.nii.gz")
    aligned, rows = np.asarray(image.dataobj), _table(tmp_path / "motion.tsv")
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert image.header.get_zooms()[3] == pytest.approx(0.8)
    assert image.get_data_dtype() == np.float32
    with Realigner(data[..., 0], nib.load(run_file).affine) as realigner:
        for n in range(COUNT):
            volume = np.ascontiguousarray(data[..., n])
            motion = realigner.estimate(volume)
            np.testing.assert_array_equal(_params(rows)[n], motion.params)
            np.testing.assert_array_equal(aligned[..., n], realigner.reslice(volume, motion))
    assert [row["flags"] for row in rows] == ["0", "0", "0", "2", "0"]
    found = np.array([float(row["framewise_displacement"].replace("n/a", "nan")) for row in rows])
    np.testing.assert_array_equal(found, framewise_displacement(_params(rows)))
    assert (tmp_path / "motion.png").stat().st_size > 10_000


def test_reference_from_a_file_and_the_mean(run_file, tmp_path, capsys):
    first = nib.load(run_file).slicer[..., 1]
    nib.save(first, tmp_path / "ref.nii.gz")
    assert main([str(run_file), "--out", str(tmp_path / "file"), "--reference", str(tmp_path / "ref.nii.gz")]) == 0
    assert main([str(run_file), "--out", str(tmp_path / "mean"), "--reference", "mean"]) == 0
    capsys.readouterr()
    by_file, by_mean = (_params(_table(tmp_path / name / "motion.tsv")) for name in ("file", "mean"))
    np.testing.assert_allclose(by_file[1], 0, atol=1e-4)
    np.testing.assert_allclose(by_file[2] - by_file[0], by_mean[2] - by_mean[0], atol=0.05)


def test_says_what_is_wrong(run_file, tmp_path, capsys):
    (tmp_path / "text.nii").write_text("no image")
    (tmp_path / "empty").mkdir()
    other = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    nib.save(other, tmp_path / "other.nii")
    out = ["--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "text.nii"), *out]) == 2
    assert "expected a NIfTI file" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing.nii"), *out]) == 2
    assert "nothing.nii" in capsys.readouterr().err
    assert main([str(run_file), *out, "--reference", str(tmp_path / "other.nii")]) == 2
    assert "expected shape (22, 24, 18), found (4, 5, 6)" in capsys.readouterr().err
    assert main([str(tmp_path / "empty"), *out]) == 2
    assert "empty" in capsys.readouterr().err
    assert main([str(run_file), *out, "--threads", "0"]) == 2
    assert "--threads: expected at least 1" in capsys.readouterr().err


def test_volumes_as_nibabel_reads_them(run_file):
    run = open_nifti(run_file)
    assert run.tr_s == pytest.approx(0.8)
    assert run.count == COUNT
    np.testing.assert_array_equal(run.volume(2), nib.load(run_file).get_fdata(dtype=np.float32)[..., 2])


@pytest.mark.slow
def test_real_run_from_dicom(scanner_data, tmp_path, capsys):
    folder = scanner_data("siemens-xa30-enhanced")
    assert main([str(folder), "--out", str(tmp_path)]) == 0
    assert "20 of 20 volumes aligned" in capsys.readouterr().out
    params = _params(_table(tmp_path / "motion.tsv"))
    displacement = framewise_displacement(params)[1:]
    assert 0.01 < displacement.mean() < 0.5  # a participant who lay still
    assert np.abs(params[:, :3]).max() < 2.0
