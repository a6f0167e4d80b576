"""Amplitudes of images: the estimate of one, and the filters' state of many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Amplitude", "Image", "Snapshot", "averaged"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Amplitude:
    """Response to one image.

    Parameters
    ----------
    value : float
        Posterior mean of its peak, in units of the series.
    se : float
        Posterior standard deviation.
    se_apart : float
        The same if the common mean were known, which is what is uncertain about all images alike (the series' level is, and the mean with
        it): the error of one image against others. What an image shares with those near it only, the error of the drift there, counts.
    volumes : int
        Volumes that saw at least half of the response's peak.
    """

    value: float
    se: float
    se_apart: float
    volumes: int


@dataclass
class Image:
    """An image whose response has not passed yet, and its place in the state."""

    key: tuple[int, int]
    onset_s: float
    duration_s: float
    at: int
    volumes: int = 0
    shown_s: float = math.nan  # where it was taken away before its time


@dataclass(frozen=True)
class Snapshot:
    """Amplitudes of images, (points, images), under each point of the grid, and how they depend on the common mean."""

    value: Array
    variance: Array
    slope: Array
    mu: Array
    mu_variance: Array

    def rows(self, rows: slice, points: NDArray[Any]) -> Snapshot:
        """Some of the rows, at some of the points, where all arrays have an image a row."""
        return Snapshot(*[each[rows][:, points] for each in (self.value, self.variance, self.slope, self.mu, self.mu_variance)])

    def put(self, row: int, now: Snapshot, image: int) -> None:
        """Copy one image of a snapshot into a row of this one."""
        self.value[row], self.variance[row], self.slope[row] = now.value[:, image], now.variance[:, image], now.slope[:, image]
        self.mu[row], self.mu_variance[row] = now.mu, now.mu_variance

    def longer(self) -> Snapshot:
        """The same with room for twice as many rows."""
        arrays = (self.value, self.variance, self.slope, self.mu, self.mu_variance)
        return Snapshot(*[np.concatenate([each, np.zeros_like(each)]) for each in arrays])


def averaged(
    images: Iterable[tuple[tuple[int, int], int]], value: Array, apart: Array, shared: Array, weights: Array, shift: Array
) -> dict[tuple[int, int], Amplitude]:
    """Mean and spread of a mixture for each image (a row); apart from others, its parts are moved by `shift` against each other."""
    mean = value @ weights
    far = value - mean[:, np.newaxis]
    se = np.sqrt(np.maximum((apart + shared + far**2) @ weights, 0.0))
    se_apart = np.sqrt(np.maximum((apart + (far - shift) ** 2) @ weights, 0.0))
    each = zip(images, mean.tolist(), se.tolist(), se_apart.tolist(), strict=True)
    return {key: Amplitude(mean, se, apart, volumes) for (key, volumes), mean, se, apart in each}
