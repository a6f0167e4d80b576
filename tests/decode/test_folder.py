"""Decoder folders: what is written is read back, the three NIfTI files alone are enough, and whatever is wrong is said clearly."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rtevo.decode import Decoder, write_decoder
from rtevo.errors import DecoderError
from rtevo.records import Grid

SHAPE = (5, 6, 4)
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3, 0, -20], [0, 0, 3.3, 5], [0, 0, 0, 1]])


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 2:5, 1:3] = True
    return {"reference": rng.uniform(0, 1000, SHAPE), "mask": mask, "weights": rng.standard_normal(SHAPE)}


@pytest.fixture
def folder(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    write_decoder(tmp_path / "decoder", "face", **arrays, affine=AFFINE, settings={"fwhm_mm": 4})
    return tmp_path / "decoder"


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.Nifti1Image(data, affine).to_filename(path)


def test_what_is_written_is_read_back(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    decoder = Decoder.load(folder)
    assert (decoder.name, decoder.settings) == ("face", {"fwhm_mm": 4})
    assert decoder.grid.difference(Grid(SHAPE, AFFINE)) == ""
    np.testing.assert_array_equal(decoder.reference, arrays["reference"].astype(np.float32))
    np.testing.assert_array_equal(decoder.mask, arrays["mask"])
    np.testing.assert_array_equal(decoder.weights, np.where(arrays["mask"], arrays["weights"], 0).astype(np.float32))
    assert (decoder.reference.dtype, decoder.mask.dtype, decoder.weights.dtype) == (np.float32, np.bool_, np.float32)
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.json", "face_img.nii.gz", "mask_img.nii.gz", "ref_img.nii.gz"]


def test_writing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_decoder(tmp_path / "again", "face", **arrays, affine=AFFINE, settings={"fwhm_mm": 4})
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_three_nifti_files_alone_are_a_decoder(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with_an_axis_of_one = arrays["reference"].astype(np.int16)[..., np.newaxis]  # as some tools write it
    save(tmp_path / "ref_img.nii.gz", with_an_axis_of_one)
    save(tmp_path / "mask_img.nii.gz", arrays["mask"].astype(np.uint8))
    outside_nan = np.where(arrays["mask"], arrays["weights"], np.nan)
    save(tmp_path / "fear_img.nii.gz", outside_nan)
    decoder = Decoder.load(tmp_path)
    assert (decoder.name, decoder.settings) == ("fear", {})
    assert not decoder.weights[~decoder.mask].any()
    np.testing.assert_array_equal(decoder.mask, arrays["mask"])


def test_one_map_of_several(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    save(folder / "house_img.nii.gz", -arrays["weights"])
    assert Decoder.load(folder).name == "face"  # decoder.json says so
    assert Decoder.load(folder, "house").name == "house"
    (folder / "decoder.json").unlink()
    with pytest.raises(DecoderError, match="the name of one of several, found face, house"):
        Decoder.load(folder)
    with pytest.raises(DecoderError, match=r"expected a weight map 'cat' \(cat_img.nii.gz\), found face, house"):
        Decoder.load(folder, "cat")


@pytest.mark.parametrize("name", ["ref_img.nii.gz", "mask_img.nii.gz", "face_img.nii.gz"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DecoderError, match=name.split("_")[0]):
        Decoder.load(folder)


def test_no_map_at_all(folder: Path) -> None:
    (folder / "face_img.nii.gz").unlink()
    (folder / "decoder.json").unlink()
    with pytest.raises(DecoderError, match="found none"):
        Decoder.load(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match="found no such folder"):
        Decoder.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["mask_img.nii.gz", "face_img.nii.gz"])
def test_grids_must_agree(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    save(folder / name, np.ones((5, 6, 5), np.float32))
    with pytest.raises(DecoderError, match=rf"{name}: not on the grid.*expected shape \(5, 6, 4\), found \(5, 6, 5\)"):
        Decoder.load(folder)
    moved = AFFINE.copy()
    moved[0, 3] += 2
    save(folder / name, arrays["weights"].astype(np.float32), moved)
    with pytest.raises(DecoderError, match=rf"{name}: not on the grid.*2\.00 mm apart"):
        Decoder.load(folder)


def test_an_empty_mask_is_refused(folder: Path) -> None:
    save(folder / "mask_img.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(DecoderError, match="at least 2 voxels, found 0: it is empty"):
        Decoder.load(folder)


def test_weights_must_be_a_map(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    broken = arrays["weights"].copy()
    broken[2, 3, 1] = np.nan
    save(folder / "face_img.nii.gz", broken)
    with pytest.raises(DecoderError, match="weights: expected finite numbers inside the mask, found 1 NaN or infinite"):
        Decoder.load(folder)
    save(folder / "face_img.nii.gz", np.full(SHAPE, 2.5))
    with pytest.raises(DecoderError, match=r"expected a map, found 2\.5 in every voxel"):
        Decoder.load(folder)


def test_a_reference_with_nan_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    arrays["reference"][0, 0, 0] = np.inf
    with pytest.raises(DecoderError, match="reference: expected finite numbers, found 1"):
        write_decoder(tmp_path / "bad", "face", **arrays, affine=AFFINE, settings={})
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("content", [b"", b"not a NIfTI file at all", "half"])
def test_a_file_that_is_no_nifti(folder: Path, content: bytes | str) -> None:
    path = folder / "ref_img.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else bytes(content))  # type: ignore[arg-type]
    with pytest.raises(DecoderError, match=r"ref_img.nii.gz: expected a 3-D NIfTI file"):
        Decoder.load(folder)


def test_a_series_is_no_map(folder: Path) -> None:
    save(folder / "ref_img.nii.gz", np.zeros((*SHAPE, 3), np.float32))
    with pytest.raises(DecoderError, match="3 positive numbers"):
        Decoder.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON file"),
        ("[]", "expected an object"),
        ('{"settings": 3}', "an object 'settings'"),
        ('{"format_version": 9}', "expected format_version 1, found 9"),
        ('{"name": 3}', "expected 'name' to be a text, found 3"),
        ('{"name": "cat"}', "expected a weight map 'cat'"),
    ],
)
def test_wrong_settings_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / "decoder.json").write_text(text)
    with pytest.raises(DecoderError, match=message):
        Decoder.load(folder)


@pytest.mark.parametrize("name", ["ref", "mask", "", "../x", "a b", ".x"])
def test_names_are_checked(name: str, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(DecoderError, match="decoder name"):
        write_decoder(tmp_path, name, **arrays, affine=AFFINE, settings={})


def test_writing_checks_what_it_writes(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(DecoderError, match="plain JSON types"):
        write_decoder(tmp_path, "face", **arrays, affine=AFFINE, settings={"x": np.zeros(3)})
    with pytest.raises(DecoderError, match="plain JSON types"):
        write_decoder(tmp_path, "face", **arrays, affine=AFFINE, settings={"x": float("nan")})
    with pytest.raises(DecoderError, match=r"mask: expected shape \(5, 6, 4\), found \(2, 2, 2\)"):
        write_decoder(tmp_path, "face", **{**arrays, "mask": np.ones((2, 2, 2))}, affine=AFFINE, settings={})
    with pytest.raises(DecoderError, match="affine"):
        write_decoder(tmp_path, "face", **arrays, affine=np.zeros((4, 4)), settings={})
    assert list(tmp_path.iterdir()) == []


def test_settings_file_is_readable_json(folder: Path) -> None:
    assert json.loads((folder / "decoder.json").read_text()) == {"format_version": 1, "name": "face", "settings": {"fwhm_mm": 4}}
