"""Arrays of several kinds -> the pixels that are sent, if the conversion is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError

__all__ = ["rgb8"]

WHOLE = 1e-4  # tolerance of a float times 255: float32 holds k / 255 to within 2e-5 of an integer, float64 is better


def rgb8(pixels: Any) -> NDArray[np.uint8]:
    """Return an image as 8-bit RGB; only exact conversions are made.

    Parameters
    ----------
    pixels : array_like (height, width) or (height, width, 1, 3 or 4)
        Row 0 at the top: grey, RGB or opaque RGBA. Integers of 0 to 255, uint16 of 0 to 65535 in steps of 257 (8 bits, widened), or floats
        of 0 to 1 in steps of 1/255.

    Returns
    -------
    ndarray, uint8 (height, width, 3)
        C-contiguous.

    Raises
    ------
    DataError
        The conversion would lose levels; the message says how to convert.
    """
    image = np.asarray(pixels)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise DataError(f"image: expected pixels of shape (height, width), or (height, width, 1, 3 or 4), got {np.shape(pixels)}")
    levels = _levels(image)
    if levels.shape[2] == 4:
        if (levels[:, :, 3] != 255).any():
            raise DataError("image: expected opaque pixels, got RGBA with transparent ones: lay it over a background first")
        levels = levels[:, :, :3]
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _levels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn the levels of an image into 0 to 255."""
    kind = image.dtype
    if kind == np.uint8:
        return image
    if kind == np.uint16:
        if (image % 257).any():
            raise DataError(
                "image: expected 8 bits a channel, got uint16 that needs more: convert it with (pixels / 257).round().astype('uint8')"
            )
        return (image // 257).astype(np.uint8)
    if np.issubdtype(kind, np.integer):
        if image.min() < 0 or image.max() > 255:
            raise DataError(f"image: expected levels of 0 to 255, got {kind} of {image.min()} to {image.max()}")
        return image.astype(np.uint8)
    if not np.issubdtype(kind, np.floating):
        raise DataError(f"image: expected uint8, uint16, whole numbers or floats, got {kind}")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise DataError(f"image: expected floats of 0 to 1, got {low:g} to {high:g}: convert them to uint8 first")
    scaled = image.astype(np.float64) * 255
    if np.abs(scaled - np.rint(scaled)).max() > WHOLE:
        raise DataError("image: expected floats in steps of 1/255, got others: convert them with (255 * pixels).round().astype('uint8')")
    return np.rint(scaled).astype(np.uint8)
