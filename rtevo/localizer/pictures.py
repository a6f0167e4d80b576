"""The site's pictures: a folder with a subfolder for each category, checked as a whole before the start."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import ConfigError, DataError
from rtevo.outside import shown
from rtevo.wire import MAX_PIXEL_BYTES, MAX_SIDE

__all__ = ["BUILT_IN", "MARK", "Picture", "load_pixels", "marked", "read_folder"]

BUILT_IN = Path(__file__).resolve().parents[1] / "assets" / "localizer"
"""Pictures for rehearsals, painted by the built-in model: `build/localizer_pictures.py`."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MARK = (230, 20, 20)
"""Colour of the dot to detect."""
MARK_SHARE = 0.06  # radius of the dot, of the picture's height
MOST_TOLD = 5

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One picture of the folder.

    Parameters
    ----------
    category : str
        Name of its subfolder.
    path : Path
    sha256 : str
        Digest of the file.
    size : (int, int)
        Height, width.
    """

    category: str
    path: Path
    sha256: str
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """``category/file``."""
        return f"{self.category}/{self.path.name}"


def load_pixels(path: Path, background: Sequence[float] = (0.5, 0.5, 0.5)) -> Pixels:
    """Return a picture as shown, uint8 (H, W, 3): upright, with transparent parts in the colour of the screen's background.

    Raises
    ------
    DataError
        The file is not a picture, or too large.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path) as opened:
                width, height = opened.size
                if max(width, height) > MAX_SIDE or width * height * 3 > MAX_PIXEL_BYTES:
                    raise DataError(
                        f"{path}: expected at most {MAX_SIDE} pixels a side and {MAX_PIXEL_BYTES >> 20} MiB, found {width} x {height}"
                    )
                upright: Any = ImageOps.exif_transpose(opened)
                if "A" not in upright.getbands() and "transparency" not in upright.info:
                    return np.array(upright.convert("RGB"))
                behind = Image.new("RGBA", upright.size, (*(round(255 * level) for level in background), 255))
                return np.array(Image.alpha_composite(behind, upright.convert("RGBA")).convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise errors of many kinds
        raise DataError(f"{path}: expected a picture, found something else ({shown(error)})") from None


def marked(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a copy of a picture with the dot to detect at a random place in its middle."""
    height, width, _ = pixels.shape
    radius = MARK_SHARE * height
    y, x = rng.uniform(0.25 * height, 0.75 * height), rng.uniform(0.25 * width, 0.75 * width)
    rows, columns = np.ogrid[:height, :width]
    made = pixels.copy()
    made[np.hypot(rows - y, columns - x) <= radius] = MARK
    return made


def read_folder(folder: Path, background: Sequence[float] = (0.5, 0.5, 0.5)) -> dict[str, list[Picture]]:
    """Check every picture of a folder.

    Parameters
    ----------
    folder : Path
        Folder with a subfolder for each category. Files without a picture's suffix, and names that begin with a dot, are ignored.
    background : sequence of float, (3,)
        Colour of the screen, 0 to 1.

    Returns
    -------
    dict of str to list of Picture
        By category, in the order of their names.

    Raises
    ------
    ConfigError
        With all mistakes: fewer than two categories, unusable names, unreadable pictures, different sizes.
    """
    where = f"[localizer] folder: {folder}"
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{where}: expected a folder, found none that can be read: {error.strerror}") from None
    subfolders = [path for path in inside if path.is_dir()]
    if len(subfolders) < 2:
        found = f"only {subfolders[0].name}" if subfolders else "no subfolder"
        raise ConfigError(f"{where}: expected a subfolder for each of two or more categories, with its pictures in it, found {found}")
    mistakes = [
        f"{where}: a subfolder names its category: expected letters, digits, _ . and -, found {shown(repr(path.name))}"
        for path in subfolders
        if not NAME.fullmatch(path.name)
    ]
    categories: dict[str, list[Picture]] = {}
    for path in subfolders:
        files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
        categories[path.name] = _read(path.name, files, background, mistakes)
        if not files:
            mistakes.append(f"{where}: expected pictures ({', '.join(SUFFIXES)}) in {path.name}, found none")
    mistakes += _sizes(where, [picture for own in categories.values() for picture in own])
    if mistakes:
        raise ConfigError(mistakes)
    return categories


def _read(category: str, files: Sequence[Path], background: Sequence[float], mistakes: list[str]) -> list[Picture]:
    """Read the pictures of a category; add their first few mistakes to `mistakes`."""
    found, wrong = [], []
    for file in files:
        try:
            if not file.is_file():
                raise DataError(f"{file}: expected a file")
            height, width, _ = load_pixels(file, background).shape
            found.append(Picture(category, file, hashlib.sha256(file.read_bytes()).hexdigest(), (height, width)))
        except (DataError, OSError) as error:
            wrong.append(f"[localizer] folder: {error}")
    more = [f"[localizer] folder: {len(wrong) - MOST_TOLD} more files of {category} cannot be read"] if len(wrong) > MOST_TOLD else []
    mistakes += wrong[:MOST_TOLD] + more
    return found


def _sizes(where: str, pictures: Sequence[Picture]) -> list[str]:
    """Return a mistake if pictures differ in size: they would differ in visual angle or sharpness."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for picture in pictures:
        sizes.setdefault(picture.size, []).append(picture.name)
    if len(sizes) < 2:
        return []
    usual = max(sizes, key=lambda size: len(sizes[size]))
    others = [f"{names[0]} has {width} x {height}" for (height, width), names in sizes.items() if (height, width) != usual]
    return [
        f"{where}: expected pictures of one size, as {usual[1]} x {usual[0]} of most, found others: {'; '.join(others[:MOST_TOLD])} "
        "(resize them first, so that pictures differ in nothing but their category)"
    ]
