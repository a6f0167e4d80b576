"""A filter of a site's own: it refuses pictures that are mostly red, as a model of fear of blood might.

A filter is a class whose instances are called with the pixels of a picture. Its version, threshold and reason are in the log with every
picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Filter"]


class Filter:
    """Refuses pictures of which a large share is red."""

    version = "1.0"
    threshold = 0.5
    reason = "mostly red"

    def __call__(self, pixels: NDArray[np.uint8]) -> float:
        """Return the share of red pixels.

        Parameters
        ----------
        pixels : ndarray, uint8 (height, width, 3)
            RGB.
        """
        red, green, blue = (pixels[..., k].astype(np.int16) for k in range(3))
        return float(((red > 128) & (red > 2 * green) & (red > 2 * blue)).mean())
