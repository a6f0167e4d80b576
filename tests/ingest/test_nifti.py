"""NIfTI files as a source: a file for each volume, or one that grows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from rtevo.ingest import FolderSource, Volume, describe

FakeClock = Any
SHAPE, TR_S, PATIENCE_S, STALL_S = (8, 6, 5), 2.0, 3.0, 10.0
AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("xyz", [8, -12, 6], degrees=True).as_matrix() @ np.diag([-3, 3, 3.5])
AFFINE[:3, 3] = 20, -30, 10
FLOAT32_MM = 1e-5


def image(data: NDArray[Any], kind: type = nibabel.Nifti1Image, tr_s: float = TR_S) -> Any:
    made = kind(data, AFFINE)
    made.header.set_xyzt_units("mm", "sec")
    made.header["pixdim"][4] = tr_s
    return made


def volume(index: int) -> NDArray[np.int16]:
    return np.random.default_rng(index).integers(0, 4096, SHAPE).astype(np.int16)


def check(volumes: list[Volume], expected: list[int]) -> None:
    assert [v.index for v in volumes] == expected
    for v in volumes:
        assert v.data is not None
        assert v.data.dtype == np.float32
        assert v.data.flags.c_contiguous
        np.testing.assert_array_equal(v.data, volume(v.index))
        np.testing.assert_allclose(v.grid.affine, AFFINE, atol=FLOAT32_MM)
        assert v.tr_s == TR_S


@pytest.fixture
def source(tmp_path: Path, clock: FakeClock) -> FolderSource:
    return FolderSource(tmp_path, patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_file_for_each_volume(kind: type, ending: str, first: int, tmp_path: Path, source: FolderSource, clock: FakeClock) -> None:
    for index in (0, 2, 1):
        nibabel.save(image(volume(index), kind), tmp_path / f"run1_{index + first:04d}{ending}")
        check(source.poll(), {0: [0], 2: [], 1: [1, 2]}[index])
    nibabel.save(image(volume(4), kind), tmp_path / f"run1_{4 + first:04d}{ending}")
    assert source.poll() == []
    clock.advance(PATIENCE_S)
    gap, last = source.poll()
    assert gap.data is None
    check([last], [4])
    assert source.problems == ["volume 3: never came"]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_counts_when_it_is_whole(ending: str, tmp_path: Path, source: FolderSource, clock: FakeClock) -> None:
    nibabel.save(image(volume(0)), tmp_path.parent / f"x{ending}")
    contents = (tmp_path.parent / f"x{ending}").read_bytes()
    path = tmp_path / f"vol1{ending}"
    for end in (0, 5, 300, 352, len(contents) - 1):
        path.write_bytes(contents[:end])
        assert (source.poll(), source.pending) == ([], 1)
    clock.advance(STALL_S)
    source.poll()
    assert "it never completed" in source.problems[0]
    path.write_bytes(contents)
    clock.advance(2)
    check(source.poll(), [0])


@pytest.mark.parametrize("announced", ["all", "so far", "one"])
def test_one_file_that_grows(announced: str, tmp_path: Path, source: FolderSource) -> None:
    data = np.stack([volume(k) for k in range(5)], axis=-1)
    contents = image(data).to_bytes()
    size = int(np.prod(SHAPE)) * 2
    start = len(contents) - 5 * size
    path = tmp_path / "run.nii"
    for k in range(5):
        header = image(data[..., : {"all": 5, "so far": k + 1, "one": 1}[announced]]).header
        header["dim"][0], header["dim"][4] = 4, {"all": 5, "so far": k + 1, "one": 1}[announced]
        header["vox_offset"] = start
        body = contents[start : start + (k + 1) * size]
        path.write_bytes(header.binaryblock + bytes(start - 348) + body[:-7])
        assert source.poll() == []
        path.write_bytes(header.binaryblock + bytes(start - 348) + body)
        check(source.poll(), [k])
    assert source.finish() == []
    assert (source.problems, source.pending, source.seen) == ([], 0, 1)


def test_a_whole_run_in_one_file(tmp_path: Path, source: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtevo.ingest.folder.BATCH_BYTES", 1)  # one volume a look
    for ending in (".nii", ".nii.gz"):
        folder = tmp_path / ending
        folder.mkdir()
        nibabel.save(image(np.stack([volume(k) for k in range(4)], axis=-1)), folder / f"task_bold{ending}")
        source = FolderSource(folder, patience_s=PATIENCE_S)
        check(source.poll(), [0])
        check(source.finish(), [1, 2, 3])
        assert source.problems == []


def test_scaling_and_byte_order(tmp_path: Path, source: FolderSource) -> None:
    big = nibabel.Nifti1Image(volume(0), AFFINE, header=image(volume(0)).header.as_byteswapped(">"))
    big.header.set_slope_inter(0.5, 3)
    nibabel.save(big, tmp_path / "vol1.nii")
    (found,) = source.poll() or source.finish()
    np.testing.assert_allclose(found.data, nibabel.load(tmp_path / "vol1.nii").get_fdata(dtype=np.float32), rtol=1e-6)


def test_a_sidecar_gives_times(tmp_path: Path) -> None:
    times = [0.0, 1.0, 0.25, 1.25, 0.5]
    (tmp_path / "bold.json").write_text(json.dumps({"RepetitionTime": 1.5, "SliceTiming": times, "SeriesDescription": "my run"}))
    nibabel.save(image(np.stack([volume(k) for k in range(3)], axis=-1)), tmp_path / "bold.nii")
    found = describe(tmp_path, "my run")
    assert (found.tr_s, found.slice_times_s, found.n_volumes, found.kind) == (1.5, tuple(times), 3, "nifti")


def test_what_is_no_volume_is_named(tmp_path: Path, source: FolderSource) -> None:
    nowhere = nibabel.Nifti1Image(volume(0), None)
    nowhere.header["sform_code"] = nowhere.header["qform_code"] = 0
    (tmp_path / "a1.nii").write_bytes(nowhere.to_bytes())
    nibabel.save(image(volume(0).astype(np.complex64)), tmp_path / "b1.nii")
    nibabel.save(image(np.zeros((4, 4, 4, 1, 3), np.int16)), tmp_path / "c1.nii")
    (tmp_path / "d1.nii").write_text("no picture at all")
    (tmp_path / "e1.nii.gz").write_bytes(b"no stream at all")
    (tmp_path / "f1.nii.gz").write_bytes(gzip.compress(b"no picture at all"))
    assert source.poll() == []
    for name, why in zip("abcdef", ("sform or a qform", "complex64", "three dim", "348 or 540", "inflated", "348 or 540"), strict=True):
        assert [why in problem for problem in source.problems if problem.startswith(f"{name}1.nii")] == [True], source.problems
