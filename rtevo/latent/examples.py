"""Pictures that a latent space was made of, or kinds of them: by what they are called, a direction can be said in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.outside import load_arrays

if TYPE_CHECKING:
    from rtevo.latent.space import LatentSpace

__all__ = ["ARRAYS", "MOST_EXAMPLES", "Examples", "examples_of"]

MOST_EXAMPLES = 400  # pictures of a fit that its space keeps
THUMBNAIL_PX = 64
ARRAYS = ("example_names", "example_points", "example_thumbnails", "example_bytes")
"""Names of what :meth:`Examples.arrays` gives."""
_LONGEST_NAME = 80  # characters
_ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True, eq=False)
class Examples:
    """Named points of a latent space.

    Parameters
    ----------
    names : tuple of str, (n,)
        Of the files, with the folder that they lie in, or words.
    points : ndarray, float32 (n, d)
        Where they are: embedding units from the space's mean along each component.
    thumbnails : tuple of bytes, (n,) or ()
        JPEG files of 64 pixels; none where only names are known.

    Raises
    ------
    DataError
        There are not as many of each, or a number is not finite.
    """

    names: tuple[str, ...]
    points: NDArray[np.float32]
    thumbnails: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        points = np.asarray(self.points, np.float32)
        if points.ndim != 2 or len(points) != len(self.names) or not np.isfinite(points).all():
            raise DataError(f"latent space: expected {len(self.names)} finite points, as there are names of examples, got {points.shape}")
        if len(self.thumbnails) not in (0, len(self.names)):
            raise DataError(f"latent space: expected {len(self.names)} pictures of examples, or none, got {len(self.thumbnails)}")
        object.__setattr__(self, "points", points)

    def first(self, n: int) -> Examples:
        """Return them in the space of the first `n` components."""
        return Examples(self.names, self.points[:, :n], self.thumbnails)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return them as plain arrays, that :meth:`of` reads."""
        sizes = np.array([len(each) for each in self.thumbnails], np.int64)
        together = np.frombuffer(b"".join(self.thumbnails), np.uint8)
        return dict(zip(ARRAYS, (np.array(self.names, np.str_), self.points.astype(np.float16), together, sizes), strict=True))

    @classmethod
    def of(cls, found: Mapping[str, NDArray[Any]]) -> Examples | None:
        """Read them from a file's arrays; None where it has none.

        Raises
        ------
        DataError
            The arrays do not fit each other.
        """
        if ARRAYS[0] not in found:
            return None
        names, points, together, sizes = (found.get(name, np.zeros(0, np.int64)) for name in ARRAYS)
        if names.dtype.kind != "U" or names.ndim != 1 or points.dtype.kind != "f" or len(names) > MOST_EXAMPLES:
            raise DataError(
                f"latent space: expected at most {MOST_EXAMPLES} names of examples, and points, got {names.shape}, {points.shape}"
            )
        if sizes.dtype.kind != "i" or sizes.ndim != 1 or (sizes < 0).any() or int(sizes.sum()) != together.size:
            raise DataError(f"latent space: expected {together.size} bytes of pictures of examples, found lengths of {int(sizes.sum())}")
        ends = np.cumsum(sizes)
        pictures = tuple(together[end - size : end].astype(np.uint8).tobytes() for end, size in zip(ends, sizes, strict=True))
        return cls(tuple(str(name)[:_LONGEST_NAME] for name in names), points.astype(np.float32), pictures)

    @classmethod
    def of_files(cls, files: Sequence[Path], below: Path, points: NDArray[np.floating]) -> Examples:
        """Keep pictures of a fit: of more than 400, that many, evenly in the order of their names.

        Parameters
        ----------
        files : sequence of Path, (n,)
        below : Path
            The folder that names begin in.
        points : ndarray, float (n, d)
            See the class.
        """
        chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_EXAMPLES)).round().astype(int))
        names = [files[k].relative_to(below).with_suffix("").as_posix()[-_LONGEST_NAME:] for k in chosen]
        return cls(tuple(names), np.asarray(points)[chosen].astype(np.float32), tuple(_thumbnail(files[k]) for k in chosen))


def _thumbnail(file: Path) -> bytes:
    """Return a picture as a small JPEG file."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def examples_of(space: LatentSpace) -> Examples | None:
    """Return what is known of a space's pictures: its own, of the built-in space the means of keywords; None where it keeps none."""
    if space.examples is not None:
        return space.examples
    mean, components, known = _built_in()
    d, e = space.latent_size, space.embedding_size
    if e != len(mean) or not (np.array_equal(space.mean, mean) and np.array_equal(space.components, components[:d])):
        return None
    return known.first(d)


@lru_cache(maxsize=1)
def _built_in() -> tuple[NDArray[np.float32], NDArray[np.float32], Examples]:
    """Mean and components of the built-in space, and the means of keywords in it."""
    space, found = load_arrays(_ASSETS / "tiny-unclip" / "latent_space.npz"), load_arrays(_ASSETS / "keyword-means.npz")
    points = (found["embeddings"].astype(np.float32) - space["mean"]) @ space["components"].T
    return space["mean"], space["components"], Examples(tuple(map(str, found["names"])), points)
