"""The responses to all images in a series of volumes, estimated together: amplitudes, with the covariance of their errors.

The series is the sum of each image's response (:mod:`rtevo.decode.hrf`) times its amplitude, a linear function of the head's motion, a
random walk and first-order autoregressive noise. What decoding holds of noise, drift and response comes with each volume; given that,
everything is linear and Gaussian: noise is whitened (:mod:`rtevo.kernels.whiten`), motion is taken out with a prior, and what is left are
normal equations of all amplitudes. They hold whatever part of a response has been seen, and however many responses overlap. The response
is the mean over what is still possible of its lag.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.linalg.lapack import dtrtri

from rtevo.decode.hrf import HRF_LENGTH_S, response, share_of_peak
from rtevo.kernels.whiten import whiten
from rtevo.records import Projected

__all__ = ["Estimate", "Series", "warm_up"]

Array = NDArray[np.float64]
Key = tuple[int, int]
_MOTION_SD = 3.0  # effect of a mm, in noise standard deviations, beforehand
_FREE_SD = 20.0  # of the amplitudes beforehand: as good as free
_SEEN_S = 2.0  # so much of a response tells something
_EARLY_S = 4.0  # a response begins before its image at most, where it is earlier than the canonical one
_STEP_S = 0.005  # of the lattice that responses are read from
_LAGS = ((-(3.0**0.5), 1 / 6), (0.0, 2 / 3), (3.0**0.5, 1 / 6))  # standard deviations and weights: Gauss and Hermite


@dataclass
class _Shown:
    """An image on the screen: its candidate's number (-1: a probe, or refused), when, how long, how long it should have been."""

    number: int
    onset_s: float
    image_s: float
    shown_s: float


@dataclass(frozen=True)
class Estimate:
    """Amplitudes of images.

    Parameters
    ----------
    numbers : ndarray, int64 (n,)
        Of the candidates whose amplitudes these are.
    values : ndarray, float64 (n,)
    covariance : ndarray, float64 (n, n)
        Of their errors, in noise variances.
    alone : float
        Usual variance of an amplitude if all others were known.
    """

    numbers: NDArray[np.int64]
    values: Array
    covariance: Array
    alone: float


class Series:
    """Volumes and images of one run of the evolution; parts of an interrupted session each have a level of their own."""

    def __init__(self) -> None:
        self._volumes: list[tuple[int, Projected]] = []  # each with its part
        self._images: dict[Key, _Shown] = {}

    def add_volume(self, part: int, volume: Projected) -> None:
        """Add a volume, later than the last one."""
        self._volumes.append((part, volume))

    @property
    def volumes(self) -> int:
        """How many there are."""
        return len(self._volumes)

    def add_image(self, key: Key, number: int, onset_s: float, image_s: float) -> None:
        """Add an image that has appeared; `number` is its candidate's, -1 for a probe."""
        self._images[key] = _Shown(number, onset_s, image_s, image_s)

    def taken(self, key: Key, at_s: float) -> None:
        """Record that an image was taken away before its time."""
        if key in self._images:
            image = self._images[key]
            image.shown_s = min(max(at_s - image.onset_s, 0.05), image.image_s)

    def belongs(self, key: Key, number: int) -> None:
        """Set the candidate for which an image counts from now on; -1: none."""
        if key in self._images:
            self._images[key].number = number

    def estimate(self) -> Estimate | None:
        """Amplitudes of the candidates' images with at least a part of their responses seen; None if there are none."""
        if len(self._volumes) < 2 or not self._images:
            return None
        now = self._volumes[-1][1]
        images = [each for each in self._images.values() if each.onset_s + now.lag_s + _SEEN_S <= now.t_s]
        images.sort(key=lambda image: image.onset_s)
        if not images:
            return None
        size, gram = len(images), self._gram(images, now)
        motion = slice(size, size + 6)
        held = gram[motion, motion] + np.eye(6) / _MOTION_SD**2
        gram = gram - gram[:, motion] @ np.linalg.solve(held, gram[motion])
        known = gram[:size, :size] + np.eye(size) / _FREE_SD**2
        half = dtrtri(cholesky(known, lower=True, check_finite=False), lower=1)[0]
        covariance = half.T @ half
        values = covariance @ gram[:size, -1]
        numbers = np.array([image.number for image in images], np.int64)
        own = np.flatnonzero(numbers >= 0)
        alone = 1.0 / float(np.median(np.diag(known)))
        return Estimate(numbers[own], values[own], covariance[np.ix_(own, own)], alone) if len(own) else None

    def _gram(self, images: list[_Shown], now: Projected) -> Array:
        """Sums of products of the whitened responses (k), motion terms (6) and series, float64 (k + 7, k + 7)."""
        size, total = len(images), np.zeros((len(images) + 7, len(images) + 7))
        onsets_s = np.array([image.onset_s for image in images])
        for part in dict.fromkeys(part for part, _ in self._volumes):
            volumes = [volume for own, volume in self._volumes if own == part]
            times_s = np.array([volume.t_s for volume in volumes])
            columns = np.empty((len(volumes), size + 7))
            columns[:, :size] = _responses(times_s, images, now)
            columns[:, size:-1] = [volume.motion_mm for volume in volumes]
            columns[:, -1] = [volume.value for volume in volumes]
            steps_s = np.diff(times_s, prepend=times_s[0])
            first = np.zeros(size + 7, np.int64)
            first[:size] = np.searchsorted(times_s, onsets_s - _EARLY_S)
            whiten(columns, now.autocorrelation**steps_s, now.drift_sd**2 * steps_s, first)
            total += columns.T @ columns
        return total

    def to_state(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "volumes": [[part, *astuple(volume)] for part, volume in self._volumes],
            "images": [[*key, *astuple(image)] for key, image in self._images.items()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Iterable[list[Any]]]) -> Series:
        """Continue where :meth:`to_state` left off."""
        made = cls()
        for part, index, t_s, value, motion_mm, *rest in state["volumes"]:
            made._volumes.append((int(part), Projected(int(index), t_s, value, tuple(motion_mm), *rest)))
        for generation, candidate, *image in state["images"]:
            made._images[int(generation), int(candidate)] = _Shown(*image)
        return made


def warm_up() -> None:
    """Compile the kernels, or load them."""
    whiten(np.zeros((2, 1)), np.ones(2), np.zeros(2), np.zeros(1, np.int64))


def _responses(times_s: Array, images: list[_Shown], now: Projected) -> Array:
    """Responses to images at some times, mean over the lags that are possible, float64 (times, images)."""
    made = np.zeros((len(times_s), len(images)))
    apart_s = times_s[:, np.newaxis] - np.array([image.onset_s for image in images])
    shapes = [(image.image_s, image.shown_s) for image in images]
    for image_s, shown_s in dict.fromkeys(shapes):
        own = [k for k, shape in enumerate(shapes) if shape == (image_s, shown_s)]
        reach_s = HRF_LENGTH_S + shown_s + now.lag_s + 2 * now.lag_sd_s + 1.0
        lattice = np.arange(-_EARLY_S, reach_s, _STEP_S)
        lags = [(now.lag_s + away * now.lag_sd_s, weight) for away, weight in _LAGS]
        table = sum(weight * response(lattice - lag_s, shown_s, now.width, now.undershoot) for lag_s, weight in lags)
        part = share_of_peak(shown_s, image_s, now.width, now.undershoot)
        at = np.rint((apart_s[:, own] + _EARLY_S) / _STEP_S).astype(np.int64)
        made[:, own] = np.append(part * np.asarray(table), 0.0)[np.where((at < 0) | (at > len(lattice)), len(lattice), at)]
    return made
