"""Texts as pictures: drawn here, to check beforehand that they fit and that the font has every character.

Right-to-left scripts, and scripts whose letters join or reorder, need Pillow's Raqm layout (part of all its wheels).
"""

from __future__ import annotations

import contextlib
import math
import sys
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from presenter.display import DisplayError

__all__ = ["Lettering"]

PREFERRED = (
    "Noto Sans", "DejaVu Sans", "Segoe UI", "Arial", "Helvetica Neue", "Liberation Sans", "Arial Unicode MS", "Noto Sans CJK JP",
    "Yu Gothic", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic", "Noto Sans Devanagari", "Nirmala UI",
    "Kohinoor Devanagari",
)  # fmt: skip
REGULAR = ("Regular", "Book", "Roman", "Normal", "Text")
SPACING = 0.35  # between lines, of the font's size
PADDING = 0.35  # around a text, of the font's size: room for the mark of the chosen answer
LARGEST = 0.95  # of the screen that a text may fill
SMALLEST = 4  # smallest font size that is tried, pixels
_SHAPED = ("ARABIC", "HEBREW", "SYRIAC", "THAANA", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA",
           "MALAYALAM", "SINHALA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER")  # fmt: skip
_ABSENT = "\U0010ffff"  # no font has it: it is drawn like any missing character

Pixels = NDArray[np.uint8]


def _font_folders() -> Iterator[Path]:
    """Yield the folders of installed fonts."""
    home = Path.home()
    if sys.platform == "win32":
        yield from (Path("C:/Windows/Fonts"), home / "AppData/Local/Microsoft/Windows/Fonts")
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts")


@lru_cache(maxsize=4)
def _installed(extra: tuple[Path, ...]) -> dict[str, Path]:
    """Find all fonts: family -> file of its regular style."""
    found: dict[str, tuple[bool, Path]] = {}
    for folder in (*extra, *_font_folders()):
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix.lower() not in (".ttf", ".otf", ".ttc"):
                continue
            with contextlib.suppress(OSError, ValueError):
                family, style = ImageFont.truetype(str(path), 12).getname()
                regular = (style or "") in REGULAR
                if family and (family not in found or (regular and not found[family][0])):
                    found[family] = regular, path
    return {family: path for family, (_, path) in found.items()}


def _needed(text: str) -> list[str]:
    """Return the characters that a font must have."""
    return sorted({c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp")})


@lru_cache(maxsize=256)
def _missing_of(path: Path, characters: str) -> str:
    """Return the characters that a font lacks."""
    font = ImageFont.truetype(str(path), 24, layout_engine=ImageFont.Layout.BASIC)
    absent = _drawn(font, _ABSENT)
    return "".join(c for c in characters if _drawn(font, c) == absent)


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[Any, bytes]:
    mask: Any = font.getmask(character, mode="L")
    return mask.size, bytes(mask)


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


class Lettering:
    """Draws a session's texts with one font.

    Parameters
    ----------
    texts : dict of str to str
        All texts to draw: name in the session file -> text.
    font : str
        Family or file; empty: the first that has every character.
    direction : {"auto", "left-to-right", "right-to-left"}
    fonts : tuple of Path
        Folders with further fonts.

    Attributes
    ----------
    path : Path
        File of the font.

    Raises
    ------
    DisplayError
        There is no such font, or it lacks characters; the message names a font that has them.
    """

    def __init__(self, texts: dict[str, str], font: str = "", direction: str = "auto", fonts: tuple[Path, ...] = ()) -> None:
        self._fonts, self._direction = fonts, direction
        self._needed = "".join(_needed("".join(texts.values())))
        self.path = self._find(font)
        lacking = _missing_of(self.path, self._needed)
        if lacking:
            where = next(name for name, text in texts.items() if set(text) & set(lacking))
            raise DisplayError(f"[presentation] {where}: {font or 'no installed font'} {self._lacks(font, lacking)}")
        shaped = sorted({_script(c) for c in self._needed} & set(_SHAPED))
        self._raqm = bool(features.check("raqm"))
        if shaped and not self._raqm:
            raise DisplayError(
                f"[presentation] texts: {shaped[0].title()} script needs Pillow with Raqm here, got Pillow without it "
                "(pip install --upgrade pillow)"
            )

    def _find(self, font: str) -> Path:
        """Return the font's file."""
        if font and Path(font).suffix.lower() in (".ttf", ".otf", ".ttc"):
            try:
                ImageFont.truetype(font, 12)
            except OSError as error:
                raise DisplayError(f"[presentation] font: expected the file of a font on this computer, got {font!r}: {error}") from error
            return Path(font)
        known = _installed(self._fonts)
        if not known:
            raise DisplayError("[presentation] font: expected at least one font on this computer, found none")
        if font:
            near = {family.lower(): path for family, path in known.items()}.get(font.lower())
            if near is None:
                names = ", ".join(sorted(known)[:8])
                raise DisplayError(f"[presentation] font: expected a font of this computer ({names}, ...), got {font!r}")
            return near
        able = (known[family] for family in self._by_preference(known) if not _missing_of(known[family], self._needed))
        return next(able, self._first(known))

    @staticmethod
    def _by_preference(known: dict[str, Path]) -> list[str]:
        return [*(family for family in PREFERRED if family in known), *sorted(set(known) - set(PREFERRED))]

    def _first(self, known: dict[str, Path]) -> Path:
        return known[self._by_preference(known)[0]]

    def _lacks(self, font: str, lacking: str) -> str:
        """Return which characters are missing, and which font has them."""
        known = _installed(self._fonts)
        shown = " ".join(f"{c} (U+{ord(c):04X})" for c in lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        has = next((family for family in self._by_preference(known) if not _missing_of(known[family], self._needed)), None)
        verb = "lacks" if font else "has all characters:"
        if has is not None:
            return f"{verb} {shown}: {has!r} has all characters"
        missing = shown if font else f"missing are {shown}"
        return f"{verb} {missing}: install a font that has them on the stimulus PC (for example Noto Sans for that script)"

    # --- drawing ------------------------------------------------------------------------------------------------------------------

    def _font(self, size: int) -> ImageFont.FreeTypeFont:
        engine = ImageFont.Layout.RAQM if self._raqm else ImageFont.Layout.BASIC
        return ImageFont.truetype(str(self.path), size, layout_engine=engine)

    def _direction_of(self, text: str) -> str | None:
        """Return Pillow's word for a text's direction; None if the layout knows only left to right."""
        if not self._raqm:
            return None
        if self._direction != "auto":
            return {"left-to-right": "ltr", "right-to-left": "rtl"}[self._direction]
        strong = next((unicodedata.bidirectional(c) for c in text if unicodedata.bidirectional(c) in ("L", "R", "AL")), "L")
        return "ltr" if strong == "L" else "rtl"

    def lines(self, text: str, size: int, wrap: float) -> list[str]:
        """Break a text into lines.

        Parameters
        ----------
        text : str
        size : int
            Of the font, pixels.
        wrap : float
            Longest line, pixels; a line that cannot be broken may be longer.
        """
        font, direction = self._font(size), self._direction_of(text)

        def width(line: str) -> float:
            return float(font.getlength(line, direction=direction))

        broken = []
        for paragraph in text.split("\n"):
            line = ""
            for part, gap in _parts(paragraph):
                longer = f"{line}{gap}{part}" if line else part
                if line and width(longer) > wrap:
                    broken.append(line)
                    longer = part
                line = longer
            broken.append(line)
        return broken

    def width(self, text: str, size: int) -> int:
        """Return the width of the picture of an unbroken text, pixels."""
        return int(self.picture(text, size, 1e9).shape[1])

    def picture(self, text: str, size: int, wrap: float, *, marked: bool = False) -> Pixels:
        """Draw a text.

        Parameters
        ----------
        text : str
        size : int
            Of the font, pixels.
        wrap : float
            Longest line, pixels.
        marked : bool
            With a frame around it.

        Returns
        -------
        ndarray, uint8 (height, width)
            Ink: 0 none, 255 full.
        """
        font, direction = self._font(size), self._direction_of(text)
        lines = self.lines(text, size, wrap)
        widths = [float(font.getlength(line, direction=direction)) for line in lines]
        ascent, descent = font.getmetrics()
        step, pad = ascent + descent + round(SPACING * size), max(2, round(PADDING * size))
        width, height = round(max(widths)) + 2 * pad, step * len(lines) - round(SPACING * size) + 2 * pad
        canvas = Image.new("L", (max(1, width), height), 0)
        draw = ImageDraw.Draw(canvas)
        for k, (line, own) in enumerate(zip(lines, widths, strict=True)):
            draw.text(((width - own) / 2, pad + k * step), line, fill=255, font=font, direction=direction)
        if marked:
            draw.rectangle((0, 0, width - 1, height - 1), outline=255, width=max(2, round(0.08 * size)))
        return np.asarray(canvas)

    def fitted(self, where: str, text: str, size: int, room: tuple[float, float], *, marked: bool = False) -> Pixels:
        """Draw a text into an area of the screen.

        Parameters
        ----------
        where : str
            The text's name in the session file.
        text : str
        size : int
            Of the font, pixels.
        room : tuple of float, (2,)
            Width and height, pixels.
        marked : bool
            With a frame around it.

        Raises
        ------
        DisplayError
            The text does not fit; the message names the size at which it would.
        """
        drawn = self.picture(text, size, room[0] - 2 * max(2, round(PADDING * size)), marked=marked)
        if drawn.shape[1] <= room[0] + 1 and drawn.shape[0] <= room[1]:
            return drawn
        fits = bisect_left(range(SMALLEST, size), True, key=lambda smaller: not self._fits(text, smaller, room)) + SMALLEST - 1
        what = f"[presentation] {where}: the text does not fit on the screen: {text[:40]!r}{'...' if len(text) > 40 else ''}"
        smaller = f"make text_height at most {math.floor(100 * fits / size) / 100:.2f} times what it is, or "
        advice = (smaller if fits >= SMALLEST else "") + "shorten it"
        raise DisplayError(f"{what}; {advice}")

    def _fits(self, text: str, size: int, room: tuple[float, float]) -> bool:
        drawn = self.picture(text, size, room[0] - 2 * max(2, round(PADDING * size)))
        return bool(drawn.shape[1] <= room[0] + 1 and drawn.shape[0] <= room[1])


def _parts(paragraph: str) -> Iterable[tuple[str, str]]:
    """Return the parts between which a line may be broken: words, and signs of scripts without spaces; each with the space before it."""
    gap, word = "", ""
    for character in paragraph:
        alone = unicodedata.east_asian_width(character) in ("W", "F")
        if character == " " or alone:
            if word:
                yield word, gap
                gap, word = "", ""
            if alone:
                yield character, gap
                gap = ""
            else:
                gap += " "
        else:
            word += character
    if word or gap:
        yield word, gap
