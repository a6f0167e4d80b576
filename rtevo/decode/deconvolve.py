"""Separate the overlapping responses to images in one noisy time series, as it comes, with honest standard errors.

The series is taken to be the sum of

- a response to each image, of the shape of :func:`rtevo.decode.hrf.response`, some time later or earlier, with an amplitude ``mu + e``:
  `mu` common to all images, ``e`` from N(0, amplitude_sd^2); or of several functions (:func:`rtevo.decode.hrf.basis`), alike;
- a drift, a random walk from an unknown start, or fixed functions of time;
- motion: a linear function of the motion terms, with coefficients from N(0, motion_sd^2);
- groups of other nuisance terms (:mod:`rtevo.decode.groups`), each there or not;
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
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfc

from rtevo.decode.amplitudes import Amplitude, Image, Snapshot, averaged
from rtevo.decode.grid import Grid, Response
from rtevo.decode.groups import Groups, divided
from rtevo.decode.hrf import HRF_LENGTH_S, Shape, basis, response, share_of_peak
from rtevo.decode.learnt import Learnt, checked
from rtevo.kernels.kalman import compact, correct, predict

__all__ = ["Amplitude", "Deconvolver", "Grid", "warm_up"]

Array = NDArray[np.float64]
_START_VARIANCE = 1e6  # of the drift's start, in noise variances: as good as unknown
_MEAN_VARIANCE = 30.0**2  # of the common amplitude
_TERM_SD = 3.0  # of the coefficients of fixed functions of time
_NOISE, _DRIFT, _MEAN = 0, 1, 2  # places in the state: noise, drift, mu, what is shared, coefficients of motion and time, then images
_PRIOR_VOLUMES = 2.0  # volumes' worth of evidence that the noise variance is 1
_INCREDIBLE, _SURE = 6.0, 20  # standard deviations from the prediction, after this many volumes; real responses to blocks reach 5
_FEWEST, _IMPOSSIBLE = 10, 12.0  # after this many volumes points less probable than the best by this logarithm are dropped
_MOST = 2_000_000  # numbers in the covariances of all points that are kept from then on: what a volume costs
_SPARE = 0.9  # of the points may stay, for dropping the others to be worth it
_ROOM = 12  # images for which room is made at once
_ROWS = 64  # images whose response has passed, for which room is made at first
_LEARNT = ("kept", "which", "kinds", "amplitude_sd", "rho", "drift_sd", "share", "reach_s", "log_prior", "log_det", "squares")
_OF_POINTS = ("_absent", *(f"_{name}" for name in _LEARNT if name != "kinds"))
SHORTEST_S = 0.05  # seconds that an image counts as shown at least
_READ = 0.98  # estimates are made from the most probable points that hold this share


class Deconvolver:
    """Amplitudes of the responses to images in one series, from what has been seen of it so far.

    Parameters
    ----------
    tr_s : float
        Repetition time, seconds: what `autocorrelation` refers to.
    motion_terms, time_terms : int
        Number of motion terms, and then of functions of time, that come with each volume. With the latter the drift does not walk.
    nuisance_terms : sequence of int
        Sizes of groups of other nuisance terms, which come after those. Terms have a standard deviation of about 1, or are all 0 in volumes
        of which they are not known; whether a group is there is chosen by the evidence.
    grid : Grid
        Parameters to consider.
    shape : {"canonical", "derivatives", "fir"}
        See :func:`rtevo.decode.hrf.basis`. Only the canonical response is tried at several lags and widths.
    """

    def __init__(
        self,
        tr_s: float,
        motion_terms: int = 6,
        grid: Grid | None = None,
        *,
        time_terms: int = 0,
        shape: Shape = "canonical",
        nuisance_terms: Sequence[int] = (),
    ) -> None:
        grid = grid or Grid()
        if shape != "canonical":
            grid = grid.fixed()
        if time_terms:
            grid = replace(grid, drift_sd=(0.0,))
        self._shape, self._basis, self._undershoot = shape, basis(shape), grid.undershoot
        self.grid, self._tr_s, self._width = grid, float(tr_s), len(self._basis.readout)
        points = grid.points()
        self._all, self._kept = points.shape[1], np.arange(points.shape[1])
        self._kinds, which = np.unique(points[4:6].T, axis=0, return_inverse=True)  # lag and width
        self._which = np.asarray(which, np.int64).ravel()
        self._amplitude_sd, self._rho, self._drift_sd, motion_sd, _, _, self._share, self._reach_s = points
        self._log_prior = grid.log_prior()
        w, after = self._width, _MEAN + 2 * self._width
        self._groups = Groups(after + motion_terms + time_terms, nuisance_terms)
        self._shared, self._terms = slice(_MEAN + w, after), slice(after, self._groups.stop)
        self._absent = np.zeros(self._all, np.int64)  # absent groups, a bit each
        self._size = size = self._terms.stop
        room = size + _ROOM * w
        self._mean = np.zeros((self._all, room))
        self._cov = np.zeros((self._all, room, room))
        self._cov[:, _NOISE, _NOISE] = 1.0
        self._cov[:, _DRIFT, _DRIFT] = _START_VARIANCE
        self._cov[:, _MEAN : _MEAN + w, _MEAN : _MEAN + w] = _MEAN_VARIANCE * self._basis.prior
        self._cov[:, self._shared, self._shared] = self._prior(self._share)
        for k in range(self._terms.start, size):
            self._cov[:, k, k] = motion_sd**2 if k < self._terms.start + motion_terms else _TERM_SD**2
        self._groups.begin(self._mean, self._cov, self._absent)
        self._voxels: Array | None = None
        self._images: list[Image] = []
        self._past: dict[tuple[int, int], int] = {}  # images whose response has passed, and the volumes that saw them
        self._gone = Snapshot(*np.zeros((5, _ROWS, self._all)))  # theirs, an image a row
        self._t_s, self._onset_s = -math.inf, -math.inf
        self.volumes = 0
        self._starts = 0  # runs so far: the first volume of each only sets its level
        self._fresh = True
        self._left_out = 0.0  # sign of the last volume's surprise, where it was left out
        self._log_det, self._squares = np.zeros((2, self._all))

    def add_image(self, key: tuple[int, int], onset_s: float, duration_s: float) -> None:
        """Add an image, before the first volume that its response reaches; in the order of their onsets.

        Parameters
        ----------
        key : tuple of int
            Names it.
        onset_s, duration_s : float
            When and how long it was shown, seconds on the volumes' time scale.
        """
        at, more = self._place(), self._width
        s, own = self._shared, slice(at, at + more)
        decay = np.exp(-max(onset_s - self._onset_s, 0.0) / self._reach_s)  # 0 before the first image
        self._onset_s = max(onset_s, self._onset_s)
        self._mean[:, s] *= decay[:, np.newaxis]
        self._cov[:, s, :] *= decay[:, np.newaxis, np.newaxis]
        self._cov[:, :, s] *= decay[:, np.newaxis, np.newaxis]
        self._cov[:, s, s] += self._prior(self._share * (1.0 - decay**2))
        self._mean[:, own] = self._mean[:, s]
        self._cov[:, own, :] = self._cov[:, s, :]
        self._cov[:, :, own] = self._cov[:, :, s]
        self._cov[:, own, own] = self._cov[:, s, s] + self._prior(1.0 - self._share)
        if self._voxels is not None:
            self._voxels[s] *= decay[self._best()]
            self._voxels[own] = self._voxels[s]
        self._images.append(Image(key, float(onset_s), float(duration_s), at))

    def shown_for(self, key: tuple[int, int], shown_s: float) -> None:
        """Record that an image was taken away before its time: its amplitude remains that of the whole one, of which a part was seen.

        Parameters
        ----------
        key : tuple of int
            Of an image that was added; one whose response has passed stays as it is.
        shown_s : float
            How long it was shown, seconds.
        """
        for image in self._images:
            if image.key == key:
                image.shown_s = min(max(float(shown_s), SHORTEST_S), image.duration_s)

    def _place(self) -> int:
        """A place in the state for an image: one that has been left, or a new one."""
        taken = {image.at for image in self._images}
        at = next(at for at in range(self._terms.stop, self._size + self._width, self._width) if at not in taken)
        if at + self._width > self._size:
            self._size = at + self._width
        if self._size > self._mean.shape[1]:
            more, used = _ROOM * self._width, self._mean.shape[1]
            mean, cov = np.zeros((len(self._mean), used + more)), np.zeros((len(self._mean), used + more, used + more))
            mean[:, :used], cov[:, :used, :used] = self._mean, self._cov
            self._mean, self._cov = mean, cov
            if self._voxels is not None:
                self._voxels = np.pad(self._voxels, ((0, more), (0, 0)))
        return at

    def _prior(self, share: Array) -> Array:
        """Covariance of a share of the amplitudes' variance at each point, (points, width, width)."""
        return np.asarray((share * self._amplitude_sd**2)[:, np.newaxis, np.newaxis] * self._basis.prior, np.float64)

    def add_volume(self, t_s: float, value: float, terms: ArrayLike, voxels: Array | None = None) -> bool:
        """Add one volume; return whether it counts or is incredible. Missing volumes are simply not added.

        Parameters
        ----------
        t_s : float
            The middle of its acquisition, later than that of the last one.
        value : float
            The series.
        terms : array-like of float, (motion_terms + time_terms + sum of nuisance_terms,)
            Motion terms, mm, functions of time, and the groups.
        voxels : ndarray, float64 (voxels,), optional
            More series, taken apart with the gains of the point of the grid that is the most probable now; see :meth:`pattern`.

        Raises
        ------
        ValueError
            The volume is not later than the last one.
        """
        if t_s <= self._t_s:
            raise ValueError(f"volume at {t_s} s: expected one later than the last, at {self._t_s} s")
        step_s = 0.0 if self._fresh else t_s - self._t_s
        self._t_s = t_s
        self._retire()
        designs = self._designs(np.asarray(terms, np.float64))
        points, decay = len(self._mean), self._rho ** (step_s / self._tr_s)
        gain, expected, variance = np.empty_like(self._mean), np.empty(points), np.empty(points)
        if self._voxels is not None:
            self._voxels[_NOISE] *= decay[self._best()]
        walk = self._drift_sd**2 * step_s
        predict(self._mean, self._cov, designs, self._which, decay, walk, self._size, gain, expected, variance)
        surprise = value - expected
        if self._fresh:  # the first sets the start of the drift and says nothing of the rest
            self._starts += 1
        else:
            squares = surprise**2 / variance
            if self.volumes - self._starts >= _SURE and self._incredible(squares):
                side = float(np.sign(self._weights() @ surprise))
                if side != self._left_out:
                    self._left_out = side
                    return False
            self._log_det += np.log(variance)
            self._squares += squares
        self._fresh = False
        self._left_out = 0.0
        self.volumes += 1
        lag_s = float(self._weights() @ self._kinds[self._which, 0])
        for image in self._images:
            image.volumes += bool(response(t_s - image.onset_s - lag_s, image.duration_s) >= 0.5)
        if voxels is not None:
            best = self._best()
            h, size = designs[self._which[best]], self._size
            if self._voxels is None:
                self._voxels = np.zeros((self._mean.shape[1], len(voxels)))
            apart = voxels - h[:size] @ self._voxels[:size]
            self._voxels[:size] += np.multiply.outer(gain[best, :size] / variance[best], apart)
        correct(self._mean, self._cov, gain, variance, surprise, self._size)
        for number in self._groups.due(designs[0]):
            self._divide(number)
        self._forget()
        return True

    def interrupt(self) -> None:
        """Begin a new run of unknown level: noise and drift start anew, all images' responses have passed."""
        self._retire(everything=True)
        if self._voxels is not None:
            self._voxels[[_NOISE, _DRIFT]] = 0.0
            self._voxels[self._groups.start : self._groups.stop] = 0.0
        for place, variance in ((_NOISE, 1.0), (_DRIFT, _START_VARIANCE)):
            self._mean[:, place] = 0.0
            self._cov[:, place, :] = self._cov[:, :, place] = 0.0
            self._cov[:, place, place] = variance
        self._groups.begin(self._mean, self._cov, self._absent)
        self._fresh = True

    def learnt(self) -> Learnt:
        """Return all estimates except those of single images, for :meth:`take_over`: after :meth:`interrupt`."""
        used, voxels = self._terms.stop, np.zeros((0, 0)) if self._voxels is None else self._voxels[: self._terms.stop]
        counts = np.array([self.volumes, self._starts])
        own = {"mean": self._mean[:, :used], "cov": self._cov[:, :used, :used], "voxels": voxels, "counts": counts}
        if self._groups.places:
            own |= {"absent": self._absent, "shown": self._groups.shown}
        return own | {name: getattr(self, f"_{name}") for name in _LEARNT}

    def take_over(self, learnt: Learnt) -> None:
        """Begin a run with the values learnt in an earlier one, before any volume; images and their times start anew.

        Raises
        ------
        ValueError
            The values are of other filters.
        """
        used, points = self._terms.stop, len(learnt.get("kept", ()))
        shapes = {"mean": (points, used), "cov": (points, used, used), "counts": (2,), "kinds": (None, 2), "voxels": (None, None)}
        shapes |= {"absent": (points,), "shown": self._groups.shown.shape} if self._groups.places else {}
        found = checked(learnt, shapes | {name: (points,) for name in _LEARNT if name != "kinds"})
        kept, which = found["kept"].astype(np.int64), found["which"].astype(np.int64)
        if not points or kept.min() < 0 or kept.max() >= self._all or which.min() < 0 or which.max() >= len(found["kinds"]):
            raise ValueError("parameters that these filters do not have")
        for name in _LEARNT:
            setattr(self, f"_{name}", found[name])
        self._kept, self._which, self._absent = kept, which, found.get("absent", np.zeros(points)).astype(np.int64)
        self._groups.shown = found.get("shown", self._groups.shown).astype(np.int64)
        room = used + _ROOM * self._width
        self._mean, self._cov, self._size = np.zeros((points, room)), np.zeros((points, room, room)), used
        self._mean[:, :used], self._cov[:, :used, :used] = found["mean"], found["cov"]
        self._gone = Snapshot(*np.zeros((5, _ROWS, points)))
        if len(found["voxels"]) == used:
            self._voxels = np.zeros((room, found["voxels"].shape[1]))
            self._voxels[:used] = found["voxels"]
        self.volumes, self._starts = map(int, found["counts"])

    def amplitudes(self, past: int | None = None) -> dict[tuple[int, int], Amplitude]:
        """Amplitudes of the images so far, given all volumes so far.

        Parameters
        ----------
        past : int, optional
            Number of the latest images with a passed response that are included; default: all.
        """
        points, weights = self._probable()
        noise = self._noise_variance()[points]
        now = self._snapshot(points)
        shift = now.mu - weights @ now.mu  # shift of all images alike at each point of the grid
        first = 0 if past is None else max(len(self._past) - past, 0)
        then = self._gone.rows(slice(first, len(self._past)), points)
        value = then.value + then.slope * (now.mu - then.mu)
        apart = then.variance - then.slope**2 * then.mu_variance
        shared = then.slope**2 * now.mu_variance
        passed = islice(self._past.items(), first, None)
        found = averaged(passed, value, apart * noise, shared * noise, weights, shift)
        shared = now.slope.T**2 * now.mu_variance
        here = [(image.key, image.volumes) for image in self._images]
        return found | averaged(here, now.value.T, (now.variance.T - shared) * noise, shared * noise, weights, shift)

    def pattern(self, key: tuple[int, int]) -> Array | None:
        """Amplitudes of an image in each of the voxels' series, float64 (voxels,); None where its response has passed.

        That is what the Kalman filter gives for each of them, all having the parameters of the one series that the filter sees; exact
        while the most probable point of the grid stays the same.
        """
        for image in self._images:
            if image.key == key and self._voxels is not None:
                both = self._voxels[_MEAN : _MEAN + self._width] + self._voxels[image.at : image.at + self._width]
                return np.asarray(self._basis.readout @ both, np.float64)
        return None

    def response(self) -> Response:
        """Estimate of the response's lag and width."""
        grid = self.grid
        weights, (lag_s, width) = self._weights(), self._kinds[self._which].T
        all_lags_s = tuple(sorted(set(grid.lag_s)))
        outer = np.isin(lag_s, (all_lags_s[0], all_lags_s[-1])) & (len(all_lags_s) > 1)
        mean_lag_s, mean_width = float(weights @ lag_s), float(weights @ width)
        return Response(
            mean_lag_s, math.sqrt(float(weights @ (lag_s - mean_lag_s) ** 2)), mean_width,
            math.sqrt(float(weights @ (width - mean_width) ** 2)), grid.lag_mean_s, grid.lag_prior_s, grid.width_mean,
            grid.width_mean * grid.width_prior, float(weights[outer].sum()), all_lags_s,
        )  # fmt: skip

    def noise(self) -> tuple[float, float]:
        """Expected noise: its autocorrelation over a second, and the drift's spread after one, noise standard deviations."""
        weights = self._weights()
        return float(weights @ self._rho) ** (1.0 / self._tr_s), math.sqrt(float(weights @ self._drift_sd**2))

    def weights(self) -> Array:
        """Posterior probability of each point of the grid; 0 where it has been dropped."""
        return np.asarray(self.weights_by_groups().sum(axis=0), np.float64)

    def weights_by_groups(self) -> Array:
        """The same for each set of absent groups (a bit each), float64 (2^groups, points)."""
        weights = np.zeros((2 ** len(self._groups.places), self._all))
        weights[self._absent, self._kept] = self._weights()
        return weights

    def there(self) -> list[float]:
        """Probability that each group of nuisance terms is there; NaN where too few volumes have shown it."""
        return self._groups.there(self._weights(), self._absent)

    def _log_weights(self) -> Array:
        """Logarithm of the posterior probability of the points that are left, but for a constant."""
        shape = (_PRIOR_VOLUMES + self.volumes - self._starts) / 2
        return np.asarray(self._log_prior - 0.5 * self._log_det - shape * np.log(_PRIOR_VOLUMES + self._squares), np.float64)

    def _weights(self) -> Array:
        """Posterior probability of the points that are left."""
        log = self._log_weights()
        weights = np.exp(log - log.max())
        return np.asarray(weights / weights.sum(), np.float64)

    def _best(self) -> int:
        """The most probable point of those that are left."""
        return int(np.argmax(self._log_weights()))

    def _probable(self) -> tuple[NDArray[np.int64], Array]:
        """Points used for the estimates, and their probabilities."""
        weights = self._weights()
        order = np.argsort(-weights, kind="stable")
        points = np.sort(order[: int(np.searchsorted(np.cumsum(weights[order]), _READ)) + 1])
        return points, weights[points] / weights[points].sum()

    def _forget(self) -> None:
        """Drop points that have become impossible, and the least probable where there are more than may be."""
        if self.volumes - self._starts < _FEWEST:
            return
        log = self._log_weights()
        likely = log >= log.max() - _IMPOSSIBLE
        most = max(_MOST // self._size**2, 1)
        if likely.sum() > most:
            likely &= log >= np.sort(log)[-most]
        if likely.sum() > _SPARE * len(log):  # copying has a price, too
            return
        for name in _OF_POINTS:
            setattr(self, name, getattr(self, name)[likely])
        kept = np.flatnonzero(likely)
        compact(self._mean, self._cov, kept, self._size)
        self._mean, self._cov = self._mean[: len(kept)], self._cov[: len(kept)]
        self._gone = self._gone.rows(slice(None), likely)
        kinds, self._which = np.unique(self._which, return_inverse=True)
        self._kinds = self._kinds[kinds]

    def _divide(self, number: int) -> None:
        """Add filters without a group of nuisance terms to those with it."""
        half, group, sd = len(self._mean), self._groups.places[number], self._groups.sd[number]
        self._mean, self._cov, squares, log_det = divided(self._mean, self._cov, self._size, group, sd)
        self._gone = self._gone.rows(slice(None), np.tile(np.arange(half), 2))
        for name in _OF_POINTS:
            setattr(self, name, np.concatenate([getattr(self, name)] * 2))
        self._absent[half:] |= 1 << number
        self._squares[half:] += squares
        self._log_det[half:] += log_det

    def _incredible(self, squares: Array) -> bool:
        """Whether a volume, this many noise variances (squared, at each point) from its prediction, is as improbable as an artefact."""
        tail = self._weights() @ erfc(np.sqrt(0.5 * squares / self._noise_variance()))
        return bool(tail < erfc(_INCREDIBLE / math.sqrt(2)))

    def _noise_variance(self) -> Array:
        """Posterior mean of the noise variance at each point."""
        return np.asarray((_PRIOR_VOLUMES + self._squares) / (_PRIOR_VOLUMES + self.volumes - self._starts), np.float64)

    def _designs(self, terms: Array) -> Array:
        """What each part of the state adds to the present volume, float64 (kinds of response, state)."""
        h = np.zeros((len(self._kinds), self._mean.shape[1]))
        h[:, [_NOISE, _DRIFT]] = 1.0
        h[:, self._terms] = terms
        for image, values in zip(self._images, self._responses(), strict=True):
            h[:, image.at : image.at + self._width] = values
            h[:, _MEAN : _MEAN + self._width] += values
        return h

    def _responses(self) -> Array:
        """Each kind of response to each image in the present volume, float64 (images, kinds, width)."""
        times_s = self._t_s - np.array([image.onset_s for image in self._images])
        durations_s = np.array([image.duration_s for image in self._images])
        shown_s = np.array([image.shown_s for image in self._images])
        shown_s = np.where(np.isnan(shown_s), durations_s, shown_s)
        values = np.empty((len(times_s), len(self._kinds), self._width))
        for duration_s, seen_s in dict.fromkeys(zip(durations_s.tolist(), shown_s.tolist(), strict=True)):
            rows = (durations_s == duration_s) & (shown_s == seen_s)
            if self._shape != "canonical":
                part = share_of_peak(seen_s, duration_s)
                values[rows] = part * self._basis.values(times_s[rows, np.newaxis], seen_s)
                continue
            for width in np.unique(self._kinds[:, 1]):
                own = self._kinds[:, 1] == width
                late_s = times_s[rows, np.newaxis] - self._kinds[own, 0]
                part = share_of_peak(seen_s, duration_s, float(width), self._undershoot)
                values[np.ix_(rows, own, [0])] = part * response(late_s, seen_s, float(width), self._undershoot)[..., np.newaxis]
        return values

    def _retire(self, everything: bool = False) -> None:
        """Remove the images whose responses have passed, or all, from the state."""
        last_s = float(self._kinds[:, 0].max()) + HRF_LENGTH_S
        gone = [k for k, image in enumerate(self._images) if everything or self._t_s >= image.onset_s + last_s + image.duration_s]
        if not gone:
            return
        now = self._snapshot(np.arange(len(self._mean)))
        for k in gone:
            row = len(self._past)
            if row == len(self._gone.value):
                self._gone = self._gone.longer()
            self._gone.put(row, now, k)
            self._past[self._images[k].key] = self._images[k].volumes
        self._images = [image for k, image in enumerate(self._images) if k not in gone]
        self._size = max([self._terms.stop, *(image.at + self._width for image in self._images)])

    def _snapshot(self, points: NDArray[np.int64]) -> Snapshot:
        """Amplitudes of the images in the state at some points of the grid."""
        r, w = self._basis.readout, self._width
        at = np.array([image.at for image in self._images], np.int64)[:, np.newaxis] + np.arange(w)
        mu = np.arange(_MEAN, _MEAN + w)
        mean, cov, g = self._mean, self._cov, points[:, np.newaxis, np.newaxis]
        own = cov[g[..., np.newaxis], at[:, :, np.newaxis], at[:, np.newaxis, :]] @ r @ r
        with_mu = cov[g[..., np.newaxis], mu[:, np.newaxis], at[:, np.newaxis, :]] @ r @ r
        mu_variance = cov[g, mu[:, np.newaxis], mu] @ r @ r
        mu_value = mean[points][:, mu] @ r
        value = mean[points][:, at] @ r + mu_value[:, np.newaxis]
        covariance = with_mu + mu_variance[:, np.newaxis]
        slope = covariance / mu_variance[:, np.newaxis]
        return Snapshot(value, own + with_mu + covariance, slope, mu_value, mu_variance)


def warm_up() -> None:
    """Compile the kernels, or load them, on a series of nothing."""
    filters = Deconvolver(1.0, 0, Grid().fixed())
    for t_s in (0.0, 1.0):
        filters.add_volume(t_s, 0.0, [])
    compact(filters._mean, filters._cov, np.arange(1), filters._size)
