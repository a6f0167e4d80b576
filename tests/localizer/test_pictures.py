"""The site's folder of pictures: what is read, and every mistake in one message."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtevo.errors import ConfigError, DataError
from rtevo.localizer import BUILT_IN, MARK, read_folder
from rtevo.localizer.pictures import load_pixels, marked


def draw(path: Path, size: tuple[int, int] = (12, 8), mode: str = "RGB", colour: object = (10, 200, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("face", "place"):
        for k in range(2):
            draw(tmp_path / name / f"{k}.png")
    return tmp_path


def mistakes(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read_folder(folder)
    return list(raised.value.mistakes)


def test_subfolders_are_categories_and_what_is_no_picture_is_passed_over(folder: Path) -> None:
    (folder / "face" / "notes.txt").write_text("x")
    (folder / "face" / ".hidden.png").write_text("x")
    (folder / ".git").mkdir()
    (folder / "readme.md").write_text("x")
    found = read_folder(folder)
    assert {name: [picture.name for picture in own] for name, own in found.items()} == {
        "face": ["face/0.png", "face/1.png"],
        "place": ["place/0.png", "place/1.png"],
    }
    assert found["face"][0].size == (8, 12)
    assert found["face"][0].sha256 == hashlib.sha256((folder / "face" / "0.png").read_bytes()).hexdigest()


def test_the_built_in_set_can_be_shown_in_blocks_of_the_default_size() -> None:
    found = read_folder(BUILT_IN)
    assert {name: len(own) for name, own in found.items()} == dict.fromkeys(("animal", "face", "flag", "food"), 12)


def test_a_folder_without_categories_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    assert "expected a subfolder for each of two or more categories, with its pictures in it, found no subfolder" in mistakes(tmp_path)[0]
    draw(tmp_path / "face" / "a.png")
    assert "found only face" in mistakes(tmp_path)[0]
    assert "found none that can be read: No such file or directory" in mistakes(tmp_path / "nowhere")[0]


def test_every_mistake_is_told_at_once(folder: Path) -> None:
    (folder / "face" / "bad.jpg").write_bytes(b"no picture")
    (folder / "face" / "pipe.png").mkdir()
    (folder / "empty").mkdir()
    draw(folder / "a b" / "0.png")
    draw(folder / "place" / "small.png", (4, 4))
    told = "\n".join(mistakes(folder))
    for part in (
        "bad.jpg: expected a picture, found something else",
        "pipe.png: expected a file",
        "in empty, found none",
        "expected letters, digits, _ . and -, found 'a b'",
        "expected pictures of one size, as 12 x 8 of most, found others: place/small.png has 4 x 4",
    ):
        assert part in told, told


def test_many_bad_pictures_are_counted(folder: Path) -> None:
    for k in range(9):
        (folder / "face" / f"bad{k}.png").write_bytes(b"x")
    told = mistakes(folder)
    assert len(told) == 6
    assert "4 more files of face cannot be read" in told[-1]


def test_pictures_are_shown_upright_in_rgb_and_over_the_background(tmp_path: Path) -> None:
    grey = load_pixels(draw(tmp_path / "grey.png", mode="L", colour=77))
    assert (grey == 77).all()
    assert grey.shape == (8, 12, 3)
    clear = load_pixels(draw(tmp_path / "clear.png", mode="RGBA", colour=(255, 0, 0, 0)), (0.0, 0.5, 1.0))
    assert clear[0, 0].tolist() == [0, 128, 255]
    turned = Image.new("RGB", (12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_pixels(tmp_path / "turned.jpg").shape == (12, 8, 3)


def test_a_picture_that_no_presenter_takes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at most 8192 pixels a side"):
        load_pixels(draw(tmp_path / "wide.png", (8193, 1), "1", 0))


def test_the_dot_lies_in_the_middle_and_the_picture_stays(tmp_path: Path) -> None:
    pixels = load_pixels(draw(tmp_path / "a.png", (100, 100)))
    before = pixels.copy()
    dotted = marked(pixels, np.random.default_rng(1))
    np.testing.assert_array_equal(pixels, before)
    where = (dotted == MARK).all(axis=-1)
    assert 0.008 < where.mean() < 0.015  # a disc of 6 pixels
    assert where[20:80, 20:80].sum() == where.sum()
    np.testing.assert_array_equal(dotted[~where], before[~where])
