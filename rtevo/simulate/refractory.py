"""Responses that are not additive: images close to each other in time, and pictures like those just seen, drive the brain less.

A response is divided by one plus 0.95 times the sum over all images before of exp(-seconds / 2.8). These constants are our choice: a
second image 1 s and 6 s after a first has 0.60 and 0.90 of its response (measured: 0.55 and 0.90, S. A. Huettel, G. McCarthy 2000,
doi:10.1006/nimg.2000.0553), and images every 5 s have 0.84 of single ones' (of the size of what F. M. Miezin et al. 2000 report,
doi:10.1006/nimg.2000.0568). Then it loses up to 0.4 of itself, our choice too, to the picture before that it is most like (repetition
suppression: K. Grill-Spector et al. 2006, doi:10.1016/j.tics.2005.11.006), which is forgotten with 15 s.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Refractory"]

_SATURATION, _RECOVERY_S = 0.95, 2.8
_SUPPRESSION, _FORGOTTEN_S = 0.4, 15.0
_COARSE, _KEPT = 8, 60


class Refractory:
    """The remaining share of the response to each picture, as they come."""

    def __init__(self) -> None:
        self._before: list[tuple[float, NDArray[np.float64]]] = []

    def __call__(self, onset_s: float, pixels: NDArray[np.uint8]) -> float:
        """Add a picture, uint8 (H, W, 3); return the share of its response that is left."""
        rows, columns = (np.linspace(0, size - 1, _COARSE).round().astype(np.int64) for size in pixels.shape[:2])
        layout = pixels[np.ix_(rows, columns)].astype(np.float64).ravel()
        layout -= layout.mean()
        layout /= max(float(np.linalg.norm(layout)), 1e-9)
        crowd = sum(math.exp(-(onset_s - at_s) / _RECOVERY_S) for at_s, _ in self._before)
        alike = [max(float(layout @ other), 0.0) * math.exp(-(onset_s - at_s) / _FORGOTTEN_S) for at_s, other in self._before]
        self._before = [*self._before[-_KEPT:], (onset_s, layout)]
        return (1.0 - _SUPPRESSION * max(alike, default=0.0)) / (1.0 + _SATURATION * crowd)
