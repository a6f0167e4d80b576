"""Separate the overlapping responses to images in one noisy time series, as it comes, with honest standard errors.

The series is taken to be the sum of

- a response to each image, of the shape of :func:`rtevo.decode.hrf.response`, some time later or earlier, with an amplitude ``mu + e``:
  `mu` common to all images, ``e`` from N(0, amplitude_sd^2); or of several functions (:func:`rtevo.decode.hrf.basis`), alike;
- a drift, a random walk from an unknown start, or fixed functions of time;
- motion: a linear function of the motion terms, with coefficients from N(0, motion_sd^2);
- noise, a first-order autoregression.

With the parameters known (all in units of the noise's standard deviation) this is a linear Gaussian model, and the Kalman filter
gives the exact mean and covariance of all amplitudes given the volumes so far (R. E. Kalman 1960, doi:10.1115/1.3662552). They
are not known, so one filter runs for each point of a grid of parameters; the filters are weighted by the probability of the data so far
under each, the noise variance being integrated out (Bayesian model averaging: J. A. Hoeting et al. 1999, doi:10.1214/ss/1009212519).
So shrinkage, whitening, the response's delay and nuisance terms follow the data: where contrast is low an amplitude is drawn towards
the mean, where it is high overlap is resolved as by least squares, and drift and motion are taken out as far as there is evidence for
them, together with the responses and not before, so that they cannot eat them.

A volume that the ones before make as improbable as a number six standard deviations off, whatever the parameters that are still possible,
is an artefact and left out as if it were missing. Where the next is as far off to the same side, that one counts: the level has changed.

An image leaves the filters when its response has passed. From then on its amplitude changes only as the common mean and the weights of
the parameters do. The cost of a volume depends on the number of images whose responses overlap, not on the length of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfc

from rtevo.decode.hrf import HRF_LENGTH_S, Shape, basis, response

__all__ = ["Amplitude", "Deconvolver", "Grid"]

Array = NDArray[np.float64]
_START_VARIANCE = 1e6  # of the drift's start, in noise variances: as good as unknown
_MEAN_VARIANCE = 30.0**2  # of the common amplitude
_SPREAD = 2.0  # scale of the prior of the amplitudes' spread
_TERM_SD = 3.0  # of the coefficients of fixed functions of time
_NOISE, _DRIFT, _MEAN = 0, 1, 2  # places in the state: noise, drift, mu, then coefficients of motion and time, then images
_PRIOR_VOLUMES = 2.0  # volumes' worth of evidence that the noise variance is 1
_INCREDIBLE, _SURE = 6.0, 20  # standard deviations from what is predicted, after so many volumes; real responses to blocks reach 5


@dataclass(frozen=True)
class Grid:
    """Values that the unknown parameters may have; every combination is tried.

    Parameters
    ----------
    amplitude_sd : tuple of float
        Spread of the images' amplitudes, in noise standard deviations, > 0, in equal ratios. Beforehand it is half-Cauchy with scale 2
        (A. Gelman 2006, doi:10.1214/06-BA117A). Not nearer to 0: short runs would often be taken to have no spread at all, and errors be
        given far too small.
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

    amplitude_sd: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    autocorrelation: tuple[float, ...] = (0.1, 0.4, 0.7)
    drift_sd: tuple[float, ...] = (0.005, 0.02, 0.08)
    motion_sd: tuple[float, ...] = (0.0, 3.0)
    lag_s: tuple[float, ...] = (-1.2, 0.0, 1.2)
    lag_mean_s: float = 0.0
    lag_prior_s: float = 0.8

    def points(self) -> Array:
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
class _Image:
    """An image whose response has not passed yet."""

    key: tuple[int, int]
    onset_s: float
    duration_s: float
    volumes: int = 0


@dataclass(frozen=True)
class _Snapshot:
    """Amplitudes of images, (points, images), under each point of the grid, and how they depend on the common mean."""

    value: Array
    variance: Array
    slope: Array
    mu: Array
    mu_variance: Array


class Deconvolver:
    """Amplitudes of the responses to images in one series, from what has been seen of it so far.

    Parameters
    ----------
    tr_s : float
        Repetition time, seconds: what `autocorrelation` refers to.
    motion_terms, time_terms : int
        Number of motion terms, and then of functions of time, that come with each volume. With the latter the drift does not walk.
    grid : Grid
        Parameters to consider.
    shape : {"canonical", "derivatives", "fir"}
        See :func:`rtevo.decode.hrf.basis`. Only the canonical response is tried at several lags.
    """

    def __init__(
        self, tr_s: float, motion_terms: int = 6, grid: Grid | None = None, *, time_terms: int = 0, shape: Shape = "canonical"
    ) -> None:
        grid = grid or Grid()
        if shape != "canonical":
            grid = replace(grid, lag_s=(grid.lag_mean_s,))
        if time_terms:
            grid = replace(grid, drift_sd=(0.0,))
        self._basis = basis(shape)
        self._amplitude_sd, self._rho, self._drift_sd, motion_sd, lag_s = grid.points()
        self._lags_s, self._lag = np.unique(lag_s, return_inverse=True)
        cauchy = self._amplitude_sd / (1.0 + (self._amplitude_sd / _SPREAD) ** 2)  # times its spacing on the grid
        self._log_prior = np.log(cauchy) - 0.5 * ((lag_s - grid.lag_mean_s) / grid.lag_prior_s) ** 2
        self._tr_s, self._width = float(tr_s), len(self._basis.readout)
        self._terms = slice(_MEAN + self._width, _MEAN + self._width + motion_terms + time_terms)
        points, size = len(lag_s), self._terms.stop
        self._mean = np.zeros((points, size))
        self._cov = np.zeros((points, size, size))
        self._cov[:, _NOISE, _NOISE] = 1.0
        self._cov[:, _DRIFT, _DRIFT] = _START_VARIANCE
        self._cov[:, _MEAN : self._terms.start, _MEAN : self._terms.start] = _MEAN_VARIANCE * self._basis.prior
        for k in range(self._terms.start, size):
            self._cov[:, k, k] = motion_sd**2 if k < self._terms.start + motion_terms else _TERM_SD**2
        self._voxels: Array | None = None
        self._images: list[_Image] = []
        self._past: dict[tuple[int, int], tuple[_Snapshot, int]] = {}
        self._t_s = -math.inf
        self.volumes = 0
        self._starts = 0  # runs so far: the first volume of each only sets its level
        self._fresh = True
        self._left_out = 0.0  # sign of the last volume's surprise, where it was left out
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
        size, more = self._mean.shape[1], self._width
        self._mean = np.pad(self._mean, ((0, 0), (0, more)))
        self._cov = np.pad(self._cov, ((0, 0), (0, more), (0, more)))
        if self._voxels is not None:
            self._voxels = np.pad(self._voxels, ((0, more), (0, 0)))
        self._cov[:, size:, size:] = (self._amplitude_sd**2)[:, np.newaxis, np.newaxis] * self._basis.prior
        self._images.append(_Image(key, float(onset_s), float(duration_s)))

    def add_volume(self, t_s: float, value: float, terms: ArrayLike, voxels: Array | None = None) -> bool:
        """Add one volume; say whether it counts or is incredible. Volumes that are missing are simply not added.

        Parameters
        ----------
        t_s : float
            The middle of its acquisition, later than that of the last one.
        value : float
            The series.
        terms : array-like of float, (motion_terms + time_terms,)
            Motion terms, mm, and functions of time.
        voxels : ndarray, float64 (voxels,), optional
            More series, taken apart with the gains of the point of the grid that is the most probable now; see :meth:`pattern`.

        Raises
        ------
        ValueError
            The volume is not later than the last one.
        """
        if t_s <= self._t_s:
            raise ValueError(f"volume at {t_s} s: expected one later than the last, at {self._t_s} s")
        if not self._fresh:
            self._advance(t_s - self._t_s)
        self._t_s = t_s
        self._retire()
        h = self._design(np.asarray(terms, np.float64))
        gain = np.einsum("gij,gj->gi", self._cov, h)
        variance = np.einsum("gi,gi->g", gain, h)
        surprise = value - np.einsum("gi,gi->g", self._mean, h)
        if self._fresh:  # the first sets the start of the drift and says nothing of the rest
            self._starts += 1
        else:
            squares = surprise**2 / variance
            if self.volumes - self._starts >= _SURE and self._incredible(squares):
                side = float(np.sign(self.weights() @ surprise))
                if side != self._left_out:
                    self._left_out = side
                    return False
            self._log_det += np.log(variance)
            self._squares += squares
        self._fresh = False
        self._left_out = 0.0
        self.volumes += 1
        for image in self._images:
            image.volumes += bool(np.median(response(t_s - image.onset_s - self._lags_s, image.duration_s)) >= 0.5)
        scaled = gain / variance[:, np.newaxis]
        if voxels is not None:
            best = int(np.argmax(self.weights()))
            if self._voxels is None:
                self._voxels = np.zeros((len(h[best]), len(voxels)))
            self._voxels += np.multiply.outer(scaled[best], voxels - h[best] @ self._voxels)
        self._mean += scaled * surprise[:, np.newaxis]
        self._cov -= scaled[:, :, np.newaxis] * gain[:, np.newaxis, :]
        return True

    def interrupt(self) -> None:
        """A new run follows, whose level is not known: noise and drift start anew, all images' responses have passed."""
        self._retire(everything=True)
        if self._voxels is not None:
            self._voxels[[_NOISE, _DRIFT]] = 0.0
        for place, variance in ((_NOISE, 1.0), (_DRIFT, _START_VARIANCE)):
            self._mean[:, place] = 0.0
            self._cov[:, place, :] = self._cov[:, :, place] = 0.0
            self._cov[:, place, place] = variance
        self._fresh = True

    def amplitudes(self, past: int | None = None) -> dict[tuple[int, int], Amplitude]:
        """Amplitudes of the images so far, given all volumes so far.

        Parameters
        ----------
        past : int, optional
            Also of so many of the latest images whose response has passed; all of them by default.
        """
        weights, noise = self.weights(), self._noise_variance()
        now = self._snapshot()
        shift = now.mu - weights @ now.mu  # what points of the grid say of all images alike
        found: dict[tuple[int, int], Amplitude] = {}
        passed = self._past if past is None else [*islice(reversed(self._past), past)][::-1]
        for key in passed:
            then, volumes = self._past[key]
            value = then.value[:, 0] + then.slope[:, 0] * (now.mu - then.mu)
            apart = then.variance[:, 0] - then.slope[:, 0] ** 2 * then.mu_variance
            shared = then.slope[:, 0] ** 2 * now.mu_variance
            found[key] = _average(value, apart * noise, shared * noise, weights, shift, volumes)
        for k, image in enumerate(self._images):
            shared = now.slope[:, k] ** 2 * now.mu_variance
            apart = now.variance[:, k] - shared
            found[image.key] = _average(now.value[:, k], apart * noise, shared * noise, weights, shift, image.volumes)
        return found

    def pattern(self, key: tuple[int, int]) -> Array | None:
        """Amplitudes of an image in each of the voxels' series, float64 (voxels,); None where its response has passed.

        That is what the Kalman filter gives for each of them, all having the parameters of the one series that the filter sees; exact
        while the most probable point of the grid stays the same.
        """
        for k, image in enumerate(self._images):
            if image.key == key and self._voxels is not None:
                at = self._terms.stop + self._width * k
                both = self._voxels[_MEAN : self._terms.start] + self._voxels[at : at + self._width]
                return np.asarray(self._basis.readout @ both, np.float64)
        return None

    def weights(self) -> Array:
        """Posterior probability of each point of the grid."""
        shape = (_PRIOR_VOLUMES + self.volumes - self._starts) / 2
        log = self._log_prior - 0.5 * self._log_det - shape * np.log(_PRIOR_VOLUMES + self._squares)
        weights = np.exp(log - log.max())
        return np.asarray(weights / weights.sum(), np.float64)

    def _incredible(self, squares: Array) -> bool:
        """Whether a volume, so many noise variances (squared, at each point) from what is predicted, is as improbable as an artefact."""
        tail = self.weights() @ erfc(np.sqrt(0.5 * squares / self._noise_variance()))
        return bool(tail < erfc(_INCREDIBLE / math.sqrt(2)))

    def _noise_variance(self) -> Array:
        """Posterior mean of the noise variance at each point."""
        return np.asarray((_PRIOR_VOLUMES + self._squares) / (_PRIOR_VOLUMES + self.volumes - self._starts), np.float64)

    def _design(self, terms: Array) -> Array:
        """What each part of the state adds to the present volume, float64 (points, state)."""
        h = np.empty_like(self._mean)
        h[:, [_NOISE, _DRIFT]] = 1.0
        h[:, _MEAN : self._terms.start] = 0.0
        h[:, self._terms] = terms
        at = self._terms.stop
        for image in self._images:
            values = self._basis.values(self._t_s - image.onset_s - self._lags_s, image.duration_s)
            h[:, at : at + self._width] = values[self._lag]
            h[:, _MEAN : self._terms.start] += values[self._lag]
            at += self._width
        return h

    def _advance(self, step_s: float) -> None:
        """Let the noise decay and the drift walk for a while."""
        rho = self._rho ** (step_s / self._tr_s)
        if self._voxels is not None:
            self._voxels[_NOISE] *= rho[int(np.argmax(self.weights()))]
        self._mean[:, _NOISE] *= rho
        self._cov[:, _NOISE, :] *= rho[:, np.newaxis]
        self._cov[:, :, _NOISE] *= rho[:, np.newaxis]
        self._cov[:, _NOISE, _NOISE] += 1.0 - rho**2
        self._cov[:, _DRIFT, _DRIFT] += self._drift_sd**2 * step_s

    def _retire(self, everything: bool = False) -> None:
        """Take the images whose responses have passed, or all, out of the state."""
        ends = [image.onset_s + self._lags_s.max() + HRF_LENGTH_S + image.duration_s for image in self._images]
        gone = [place for place, end_s in enumerate(ends) if everything or self._t_s >= end_s]
        if not gone:
            return
        now = self._snapshot()
        for place in gone:
            own = {name: getattr(now, name)[:, place : place + 1].copy() for name in ("value", "variance", "slope")}
            self._past[self._images[place].key] = (replace(now, **own), self._images[place].volumes)
        rows = [self._terms.stop + self._width * place + k for place in gone for k in range(self._width)]
        if self._voxels is not None:
            self._voxels = np.delete(self._voxels, rows, axis=0)
        self._mean = np.delete(self._mean, rows, axis=1)
        self._cov = np.delete(np.delete(self._cov, rows, axis=1), rows, axis=2)
        self._images = [image for place, image in enumerate(self._images) if place not in gone]

    def _snapshot(self) -> _Snapshot:
        """Amplitudes of the images in the state at each point of the grid."""
        number, size = len(self._images), self._mean.shape[1]
        readout = np.zeros((number + 1, size))  # mu, then each image's amplitude
        readout[:, _MEAN : self._terms.start] = self._basis.readout
        for k in range(number):
            at = self._terms.stop + self._width * k
            readout[k + 1, at : at + self._width] = self._basis.readout
        values, cov = self._mean @ readout.T, readout @ self._cov @ readout.T
        variance = np.diagonal(cov, axis1=1, axis2=2)[:, 1:].copy()
        mu_variance = cov[:, 0, 0].copy()
        slope = cov[:, 0, 1:] / mu_variance[:, np.newaxis]
        return _Snapshot(values[:, 1:], variance, slope, values[:, 0].copy(), mu_variance)


def _average(value: Array, apart: Array, shared: Array, weights: Array, shift: Array, volumes: int) -> Amplitude:
    """Mean and spread of a mixture; apart from others, its parts are moved by `shift` against each other."""
    mean = float(weights @ value)
    se = math.sqrt(max(float(weights @ (apart + shared + (value - mean) ** 2)), 0.0))
    return Amplitude(mean, se, math.sqrt(max(float(weights @ (apart + (value - mean - shift) ** 2)), 0.0)), volumes)
