"""From pictures to embeddings, with a pipeline's image encoder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rtevo.errors import DataError, ModelError
from rtevo.generate.folder import describe
from rtevo.generate.loading import load_encoder, pick_device
from rtevo.generate.tiny import TINY_UNCLIP
from rtevo.progress import shown

__all__ = ["encode", "encode_folder", "pictures_below"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def encode(
    files: Sequence[Path],
    model_path: Path | None = None,
    device: str = "auto",
    batch: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Encode picture files.

    Parameters
    ----------
    files : sequence of Path
    model_path : Path, optional
        diffusers folder of a Stable unCLIP pipeline. None: the built-in tiny one.
    device : str
        As in :class:`rtevo.generate.GeneratorSettings`.
    batch : int
        Number of pictures that are encoded together.
    on_progress : callable, optional
        Called with the number of encoded pictures, and the total.

    Returns
    -------
    ndarray, float32 (n, e)

    Raises
    ------
    DataError
        A file cannot be read as a picture.
    ModelError
        The model's image encoder cannot be loaded, or gives numbers that are not finite.
    """
    where = pick_device(device)
    encoder, extractor = load_encoder(describe(model_path or TINY_UNCLIP))
    encoder = encoder.to(where)
    rows: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for part in _parts(files, batch):
            seen = extractor(images=[_read(file) for file in part], return_tensors="pt").pixel_values
            found = encoder(seen.to(where)).image_embeds.float().cpu()
            if not torch.isfinite(found).all():
                raise ModelError(f"image encoder: expected finite numbers for pictures up to {part[-1]}, got others (weights damaged?)")
            rows.append(np.asarray(found.numpy(), np.float32))
            if on_progress is not None:
                on_progress(sum(map(len, rows)), len(files))
    return np.concatenate(rows)


def encode_folder(folder: Path, model_path: Path | None = None, device: str = "auto") -> NDArray[np.float32]:
    """Encode all pictures below a folder, in the order of their names, with a progress bar.

    Parameters
    ----------
    folder : Path
    model_path, device
        As for :func:`encode`.

    Raises
    ------
    DataError
        There are no pictures, or a picture cannot be read.
    """
    files = pictures_below(folder)
    with shown() as progress:
        return encode(files, model_path, device, on_progress=lambda done, total: progress("encoding", done, total))


def pictures_below(folder: Path) -> list[Path]:
    """List all pictures below a folder, in the order of their names.

    Raises
    ------
    DataError
        There are none.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"{folder}: expected pictures ({', '.join(PICTURES)}), found none")
    return files


def _parts(files: Sequence[Path], batch: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), batch):
        yield files[start : start + batch]


def _read(file: Path) -> Image.Image:
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as problem:
        raise DataError(f"{file}: expected a picture, found something else: {problem}") from None
