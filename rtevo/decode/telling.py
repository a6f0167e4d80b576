"""Measures of how well scores separate categories."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["area", "pooled"]

Array = NDArray[np.float64]


def area(positive: Array, negative: Array) -> float:
    """Area under the ROC curve; NaN where either side is empty."""
    if not len(positive) or not len(negative):
        return math.nan
    difference = positive[:, np.newaxis] - negative
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def pooled(scores: Array, labels: Array) -> tuple[float, float]:
    """Area under the ROC curve of all maps' scores together, own category against others, and share whose own map scores highest.

    Parameters
    ----------
    scores : ndarray, float64 (n, K)
    labels : ndarray, int (n,)
        The column that is each one's own.
    """
    own = np.asarray(labels, np.int64)[:, np.newaxis] == np.arange(scores.shape[1])
    known = np.isfinite(scores).all(axis=1)
    scores, own = scores[known], own[known]
    if not len(scores):
        return math.nan, math.nan
    return area(scores[own], scores[~own]), float(own[np.arange(len(scores)), scores.argmax(axis=1)].mean())
