"""Separate the overlapping responses to images in one noisy time series, as it comes, with honest standard errors.

The series is taken to be the sum of

- a response to each image, of the shape of :func:`rtevo.decode.hrf.response`, some time later or earlier, with an amplitude ``mu + e``:
  `mu` common to all images, ``e`` from N(0, amplitude_sd^2);
- a drift, a random walk from an unknown start;
- motion: a linear function of the motion terms, with coefficients from N(0, motion_sd^2);
- noise, a first-order autoregression.

With the parameters known (all in units of the noise's standard deviation) this is a linear Gaussian model, and the Kalman filter
gives the exact mean and covariance of all amplitudes given the volumes so far (R. E. Kalman 1960, doi:10.1115/1.3662552). They
are not known, so one filter runs for each point of a grid of parameters; the filters are weighted by the probability of the data so far
under each, the noise variance being integrated out (Bayesian model averaging: J. A. Hoeting et al. 1999, doi:10.1214/ss/1009212519).
So shrinkage, whitening, the response's delay and nuisance terms follow the data: where contrast is low an amplitude is drawn towards
the mean, where it is high overlap is resolved as by least squares, and drift and motion are taken out as far as there is evidence for
them, together with the responses and not before, so that they cannot eat them.

An image leaves the filters when its response has passed. From then on its amplitude changes only as the common mean and the weights of
the parameters do. The cost of a volume depends on the number of images whose responses overlap, not on the length of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.decode.hrf import HRF_LENGTH_S, response

__all__ = ["Amplitude", "Deconvolver", "Grid"]

_START_VARIANCE = 1e6  # of the drift's start, in noise variances: as good as unknown
_MEAN_VARIANCE = 30.0**2  # of the common amplitude
_NOISE, _DRIFT, _MEAN, _FIRST = 0, 1, 2, 3  # places in the state: noise, drift, mu, then motion coefficients, then images
_PRIOR_VOLUMES = 2.0  # volumes' worth of evidence that the noise variance is 1


@dataclass(frozen=True)
class Grid:
    """Values that the unknown parameters may have; every combination is tried.

    Parameters
    ----------
    amplitude_sd : tuple of float
        Spread of the images' amplitudes, in noise standard deviations, > 0.
    autocorrelation : tuple of float
        Correlation of the noise of successive volumes, 0 <= r < 1.
    drift_sd : tuple of float
        Spread of the drift after one second, in noise standard deviations; it grows with the square root of time.
    motion_sd : tuple of float
        Effect of a millimetre of motion, in noise standard deviations.
    lag_s : tuple of float
        Delay of the response against the canonical one, seconds.
    lag_mean_s, lag_prior_s : float
        Expected lag and its spread, seconds: the canonical one, or a participant's own known from a training run.
    """

    amplitude_sd: tuple[float, ...] = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
    autocorrelation: tuple[float, ...] = (0.1, 0.4, 0.7)
    drift_sd: tuple[float, ...] = (0.005, 0.02, 0.08)
    motion_sd: tuple[float, ...] = (0.0, 3.0)
    lag_s: tuple[float, ...] = (-1.2, 0.0, 1.2)
    lag_mean_s: float = 0.0
    lag_prior_s: float = 0.8

    def points(self) -> NDArray[np.float64]:
        """Return all combinations, float64 (5, n), in the order of the fields."""
        axes = (self.amplitude_sd, self.autocorrelation, self.drift_sd, self.motion_sd, self.lag_s)
        return np.array(np.meshgrid(*axes, indexing="ij"), np.float64).reshape(5, -1)


@dataclass(frozen=True)
class Amplitude:
    """Response to one image.

    Parameters
    ----------
    value : float
        Posterior mean of its peak, in units of the series.
    se : float
        Posterior standard deviation.
    volumes : int
        Volumes that saw at least half of the response's peak.
    """

    value: float
    se: float
    volumes: int


@dataclass
class _Image:
    """An image whose response has not passed yet."""

    key: tuple[int, int]
    onset_s: float
    duration_s: float
    volumes: int = 0


@dataclass(frozen=True)
class _Past:
    """What is kept of an image: its amplitude under each parameter, and how that depends on the common mean."""

    value: NDArray[np.float64]
    variance: NDArray[np.float64]
    slope: NDArray[np.float64]
    mu: NDArray[np.float64]
    mu_variance: NDArray[np.float64]
    volumes: int


class Deconvolver:
    """Amplitudes of the responses to images in one series, from what has been seen of it so far.

    Parameters
    ----------
    tr_s : float
        Repetition time, seconds: what `autocorrelation` refers to.
    motion_terms : int
        Number of motion terms that come with each volume.
    grid : Grid
        Parameters to consider.
    """

    def __init__(self, tr_s: float, motion_terms: int = 6, grid: Grid | None = None) -> None:
        grid = grid or Grid()
        self._amplitude_sd, self._rho, self._drift_sd, motion_sd, lag_s = grid.points()
        self._lags_s, self._lag = np.unique(lag_s, return_inverse=True)
        self._log_prior = -0.5 * ((lag_s - grid.lag_mean_s) / grid.lag_prior_s) ** 2
        self._tr_s, self._motion = float(tr_s), motion_terms
        points, size = len(lag_s), _FIRST + motion_terms
        self._mean = np.zeros((points, size))
        self._cov = np.zeros((points, size, size))
        self._cov[:, _NOISE, _NOISE] = 1.0
        self._cov[:, _DRIFT, _DRIFT] = _START_VARIANCE
        self._cov[:, _MEAN, _MEAN] = _MEAN_VARIANCE
        for k in range(_FIRST, size):
            self._cov[:, k, k] = motion_sd**2
        self._images: list[_Image] = []
        self._past: dict[tuple[int, int], _Past] = {}
        self._t_s = -math.inf
        self.volumes = 0
        self._log_det = np.zeros(points)
        self._squares = np.zeros(points)

    def add_image(self, key: tuple[int, int], onset_s: float, duration_s: float) -> None:
        """Add an image, before the first volume that its response reaches.

        Parameters
        ----------
        key : tuple of int
            Names it.
        onset_s, duration_s : float
            When and how long it was shown, seconds on the volumes' time scale.
        """
        size = self._mean.shape[1]
        self._mean = np.pad(self._mean, ((0, 0), (0, 1)))
        self._cov = np.pad(self._cov, ((0, 0), (0, 1), (0, 1)))
        self._cov[:, size, size] = self._amplitude_sd**2
        self._images.append(_Image(key, float(onset_s), float(duration_s)))

    def add_volume(self, t_s: float, value: float, motion: ArrayLike) -> None:
        """Add one volume. Volumes that are missing are simply not added.

        Parameters
        ----------
        t_s : float
            The middle of its acquisition, later than that of the last one.
        value : float
            The series.
        motion : array-like of float, (motion_terms,)
            Motion terms, mm.

        Raises
        ------
        ValueError
            The volume is not later than the last one.
        """
        if t_s <= self._t_s:
            raise ValueError(f"volume at {t_s} s: expected one later than the last, at {self._t_s} s")
        if self.volumes:
            self._advance(t_s - self._t_s)
        self._t_s = t_s
        self._retire()
        h = self._design(np.asarray(motion, np.float64))
        gain = np.einsum("gij,gj->gi", self._cov, h)
        variance = np.einsum("gi,gi->g", gain, h)
        surprise = value - np.einsum("gi,gi->g", self._mean, h)
        if self.volumes:  # the first sets the start of the drift and says nothing of the rest
            self._log_det += np.log(variance)
            self._squares += surprise**2 / variance
        self.volumes += 1
        scaled = gain / variance[:, np.newaxis]
        self._mean += scaled * surprise[:, np.newaxis]
        self._cov -= scaled[:, :, np.newaxis] * gain[:, np.newaxis, :]

    def amplitudes(self, past: bool = True) -> dict[tuple[int, int], Amplitude]:
        """Amplitudes of the images so far, given all volumes so far.

        Parameters
        ----------
        past : bool
            Also of images whose response has passed.
        """
        weights, noise = self.weights(), self._noise_variance()
        mu, mu_variance = self._mean[:, _MEAN], self._cov[:, _MEAN, _MEAN]
        found: dict[tuple[int, int], Amplitude] = {}
        for key, then in self._past.items() if past else ():
            value = then.value + then.slope * (mu - then.mu)
            variance = then.variance + then.slope**2 * (mu_variance - then.mu_variance)
            found[key] = _average(value, variance * noise, weights, then.volumes)
        for place, image in enumerate(self._images):
            now = self._snapshot(place)
            found[image.key] = _average(now.value, now.variance * noise, weights, image.volumes)
        return found

    def weights(self) -> NDArray[np.float64]:
        """Posterior probability of each point of the grid."""
        shape = (_PRIOR_VOLUMES + max(self.volumes - 1, 0)) / 2
        log = self._log_prior - 0.5 * self._log_det - shape * np.log(_PRIOR_VOLUMES + self._squares)
        weights = np.exp(log - log.max())
        return np.asarray(weights / weights.sum(), np.float64)

    def _noise_variance(self) -> NDArray[np.float64]:
        """Posterior mean of the noise variance at each point."""
        return (_PRIOR_VOLUMES + self._squares) / (_PRIOR_VOLUMES + max(self.volumes - 1, 0))

    def _design(self, motion: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each part of the state adds to the present volume, float64 (points, state); counts the images that it sees."""
        h = np.empty_like(self._mean)
        h[:, [_NOISE, _DRIFT]] = 1.0
        h[:, _MEAN] = 0.0
        h[:, _FIRST : _FIRST + self._motion] = motion
        for place, image in enumerate(self._images):
            shape = response(self._t_s - image.onset_s - self._lags_s, image.duration_s)
            image.volumes += bool(np.median(shape) >= 0.5)
            h[:, _FIRST + self._motion + place] = shape[self._lag]
            h[:, _MEAN] += shape[self._lag]
        return h

    def _advance(self, step_s: float) -> None:
        """Let the noise decay and the drift walk for a while."""
        rho = self._rho ** (step_s / self._tr_s)
        self._mean[:, _NOISE] *= rho
        self._cov[:, _NOISE, :] *= rho[:, np.newaxis]
        self._cov[:, :, _NOISE] *= rho[:, np.newaxis]
        self._cov[:, _NOISE, _NOISE] += 1.0 - rho**2
        self._cov[:, _DRIFT, _DRIFT] += self._drift_sd**2 * step_s

    def _retire(self) -> None:
        """Take the images whose responses have passed out of the state."""
        gone = [
            place
            for place, image in enumerate(self._images)
            if self._t_s - image.onset_s - self._lags_s.max() >= HRF_LENGTH_S + image.duration_s
        ]
        for place in gone:
            self._past[self._images[place].key] = self._snapshot(place)
        if gone:
            rows = [_FIRST + self._motion + place for place in gone]
            self._mean = np.delete(self._mean, rows, axis=1)
            self._cov = np.delete(np.delete(self._cov, rows, axis=1), rows, axis=2)
            self._images = [image for place, image in enumerate(self._images) if place not in gone]

    def _snapshot(self, place: int) -> _Past:
        """Amplitude of an image in the state at each point of the grid."""
        i = _FIRST + self._motion + place
        mu_variance = self._cov[:, _MEAN, _MEAN].copy()
        common = mu_variance + self._cov[:, _MEAN, i]
        return _Past(
            value=self._mean[:, _MEAN] + self._mean[:, i],
            variance=common + self._cov[:, _MEAN, i] + self._cov[:, i, i],
            slope=common / mu_variance,
            mu=self._mean[:, _MEAN].copy(),
            mu_variance=mu_variance,
            volumes=self._images[place].volumes,
        )


def _average(value: NDArray[np.float64], variance: NDArray[np.float64], weights: NDArray[np.float64], volumes: int) -> Amplitude:
    """Mean and spread of a mixture."""
    mean = float((weights * value).sum())
    return Amplitude(mean, math.sqrt(max(float((weights * (variance + (value - mean) ** 2)).sum()), 0.0)), volumes)
