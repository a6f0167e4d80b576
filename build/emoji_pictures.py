"""Training pictures of the small unCLIP: Noto's colour emoji, rendered, named, and augmented on the GPU.

The font is Debian's ``fonts-noto-color-emoji`` (SIL Open Font Licence 1.1); the list of emoji, their CLDR short names and keywords
come from the npm package ``emojibase-data`` (MIT; Unicode licence). Sequences (flags, families, skin tones) need Pillow with Raqm and
FriBiDi.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

STORED = 96  # pixels a side, as stored: augmentation samples from them
SIDE = 64  # pixels a side of the networks' input
_STRIKE = 109  # the only size of the font's bitmaps
_FILLED = 0.94  # of a side
_TONES = [chr(c) for c in range(0x1F3FB, 0x1F400)]
_NEWEST = 15.0  # latest Emoji version in the font
_NOT_SAID = {"skin", "tone", "light", "medium", "dark", "with", "and", "in", "of", "person", "s", "other"}


@dataclass(frozen=True)
class Pictures:
    """All emoji, in the order of Unicode's list.

    Parameters
    ----------
    rgba : ndarray, uint8 (n, 96, 96, 4)
        Not premultiplied.
    names : list of str
        CLDR short names in lower case, "flag: norway".
    keywords : list of str
        Words of the name, CLDR's keywords and Unicode's subgroup ("animal bug"), with spaces between.
    plain : ndarray, bool (n,)
        Whether it has no skin tone.
    share : ndarray, float32 (n,)
        Frequency of each in training: the five skin tones of one emoji together as often as that emoji.
    """

    rgba: NDArray[np.uint8]
    names: list[str]
    keywords: list[str]
    plain: NDArray[np.bool_]
    share: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        names, keywords = np.array(self.names), np.array(self.keywords)
        np.savez_compressed(path, rgba=self.rgba, names=names, keywords=keywords, plain=self.plain, share=self.share)

    @classmethod
    def load(cls, path: Path) -> Pictures:
        """Read a file from :meth:`save`."""
        with np.load(path) as found:
            names, keywords = ([str(text) for text in found[name]] for name in ("names", "keywords"))
            return cls(found["rgba"], names, keywords, found["plain"], found["share"])

    def some(self, which: NDArray[np.intp]) -> Pictures:
        """Return some of the pictures."""
        names, keywords = ([texts[i] for i in which] for texts in (self.names, self.keywords))
        return Pictures(self.rgba[which], names, keywords, self.plain[which], self.share[which])


def known_emoji(data: Path) -> list[tuple[str, str, str]]:
    """Return all emoji from emojibase-data's folder, in Unicode's order: text, name, keywords."""
    entries = json.loads((data / "en" / "data.json").read_text(encoding="utf-8"))
    subgroups = json.loads((data / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    found = []
    for entry in entries:
        if "group" not in entry:
            continue  # letters that make up flags
        subgroup = subgroups[str(entry["subgroup"])]
        for one in [entry, *entry.get("skins", [])]:
            words = words_of(" ".join([one["label"], *entry.get("tags", []), subgroup]))
            keywords = " ".join(dict.fromkeys(w for w in words if w not in _NOT_SAID))
            if one["version"] <= _NEWEST:
                found.append((one["order"], one["emoji"], one["label"].lower(), keywords))
    return [entry[1:] for entry in sorted(found)]


def render(font_file: Path, data: Path) -> Pictures:
    """Render every emoji that is one glyph in the font; of equal pictures, the first is kept."""
    from PIL import ImageFont, features

    if not (features.check("raqm") and features.check("fribidi")):
        raise SystemExit("rendering needs Pillow with Raqm and FriBiDi (Debian: libfribidi0)")
    font = ImageFont.truetype(str(font_file), _STRIKE, layout_engine=ImageFont.Layout.RAQM)
    one_glyph = font.getlength("\N{SPIDER}")
    found: dict[bytes, tuple[str, str, str, NDArray[np.uint8]]] = {}
    for text, name, keywords in known_emoji(data):
        pixels = _draw(font, text) if font.getlength(text) == one_glyph else np.zeros((1, 1, 4), np.uint8)
        if pixels[..., 3].any():
            found.setdefault(pixels.tobytes(), (text, name, keywords, pixels))
    texts, names, all_keywords, all_pixels = zip(*found.values(), strict=True)
    bare = ["".join(c for c in text if c not in _TONES and c != "\ufe0f") for text in texts]
    toned = np.array([any(c in _TONES for c in text) for text in texts])
    count: dict[str, int] = {}
    for key, tone in zip(bare, toned, strict=True):
        count[key] = count.get(key, 0) + int(tone)
    share = np.array([1 / count[key] if tone else 1.0 for key, tone in zip(bare, toned, strict=True)], np.float32)
    return Pictures(np.stack(all_pixels), list(names), list(all_keywords), ~toned, share)


def _draw(font: Any, text: str) -> NDArray[np.uint8]:
    """Draw one emoji in the middle of a square: uint8 (96, 96, 4)."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(text)
    side = max(right - left, bottom - top)
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    origin = ((side - right + left) // 2 - left, (side - bottom + top) // 2 - top)
    ImageDraw.Draw(canvas).text(origin, text, font=font, embedded_color=True)
    inner = round(STORED * _FILLED)
    small = Image.new("RGBA", (STORED, STORED), (255, 255, 255, 0))
    small.paste(canvas.resize((inner, inner), Image.Resampling.BOX), ((STORED - inner) // 2,) * 2)
    return np.asarray(small)


def words_of(name: str) -> list[str]:
    """The words of a name, plain letters and digits."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.findall(r"[a-z]+|[0-9]+", plain)


# --- augmentation -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """Ranges of random changes. All uniform: scale, turn in degrees, shift as a fraction of the side, gain of a colour channel."""

    scale: tuple[float, float]
    turn: float
    shift: float
    gain: float
    background: float  # probability of a background that is not white
    rough: float  # probability of blur or noise


NONE = Augmentation((1, 1), 0, 0, 0, 0, 0)
MILD = Augmentation((0.92, 1.02), 4, 0.02, 0.05, 0, 0)
STRONG = Augmentation((0.75, 1.1), 15, 0.08, 0.15, 0.3, 0.3)


def augment(rgba: torch.Tensor, how: Augmentation, draw: torch.Generator) -> torch.Tensor:
    """Change pictures at random.

    Parameters
    ----------
    rgba : tensor, uint8 (n, 96, 96, 4)
    how : Augmentation
    draw : torch.Generator
        Random generator on the pictures' device.

    Returns
    -------
    tensor, float32 (n, 3, 64, 64)
        0 is black, 1 is white.
    """
    n, device = len(rgba), rgba.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand((n, *shape), generator=draw, device=device) * (high - low) + low

    source = rgba.permute(0, 3, 1, 2).float() / 255
    source = torch.cat([source[:, :3] * source[:, 3:], source[:, 3:]], 1)  # premultiplied: no fringes
    zoom, angle = 1 / uniform(*how.scale), uniform(-how.turn, how.turn) * (math.pi / 180)
    matrix = torch.stack([zoom * angle.cos(), -zoom * angle.sin(), zoom * angle.sin(), zoom * angle.cos()], 1).view(n, 2, 2)
    matrix = torch.cat([matrix, uniform(-2 * how.shift, 2 * how.shift, 2, 1)], 2)
    fine = functional.grid_sample(
        source, functional.affine_grid(matrix, [n, 4, 2 * SIDE, 2 * SIDE], align_corners=False), align_corners=False
    )
    seen = functional.avg_pool2d(fine, 2)
    colour = (seen[:, :3] * uniform(1 - how.gain, 1 + how.gain, 3, 1, 1)).clamp(0, 1)
    other = (torch.rand((n, 1, 1, 1), generator=draw, device=device) < how.background).float()
    ground = torch.lerp(torch.ones(n, 3, 1, 1, device=device), uniform(0, 1, 3, 1, 1), other)
    picture = colour.minimum(seen[:, 3:]) + (1 - seen[:, 3:]) * ground
    if how.rough:
        rough = torch.rand((n, 1, 1, 1), generator=draw, device=device)
        soft = functional.avg_pool2d(functional.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
        noisy = picture + 0.08 * torch.randn(picture.shape, generator=draw, device=device)
        picture = torch.where(rough < how.rough / 2, soft, torch.where(rough < how.rough, noisy, picture))
    return picture.clamp(0, 1)
