"""Each image's response by the volumes alone, for models with a prior of their own.

The scores that :mod:`rtevo.decode.deconvolve` publishes are posterior means: they are drawn to the images' mean and to their neighbours.
A model of the scores that draws them once more would count that prior twice. So the same filters run beside it with amplitudes that are as
good as free, each weighed by what is left of its parameters (noise, drift, motion, response) in the main one. Their estimates are noisy and
their errors go together: with the neighbours', which overlap, and with all those of minutes, which share drift.

The errors' covariance comes image by image, in the order of the onsets: the error of one is a sum over those of the images before it, and
something of its own (the modified Cholesky decomposition: M. Pourahmadi 1999, doi:10.1093/biomet/86.3.677). So it is a covariance whatever
part of it comes late or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.deconvolve import Deconvolver
from rtevo.decode.grid import ALONE, Grid
from rtevo.decode.hrf import Shape
from rtevo.records import NEIGHBOURS

__all__ = ["Free", "Measured"]

Array = NDArray[np.float64]
_KNOWN = 1e-9  # variance of the common mean, which is held at 0
_FREE_SD = 20.0  # of the amplitudes, in noise standard deviations: a hundred times the variance that responses have


@dataclass(frozen=True)
class Measured:
    """An image's response as the volumes alone have it.

    Parameters
    ----------
    value : float
        In units of the series.
    se : float
        Standard deviation of its error, those of the images before it being known.
    neighbours : tuple of float
        How its error follows from those of the images before it, the nearest first.
    """

    value: float
    se: float
    neighbours: tuple[float, ...]


class Free(Deconvolver):
    """Filters with free amplitudes, that follow others.

    Parameters
    ----------
    tr_s, motion_terms, grid, time_terms, shape, nuisance_terms
        Of the :class:`Deconvolver` that is followed.
    """

    def __init__(
        self,
        tr_s: float,
        motion_terms: int,
        grid: Grid,
        *,
        time_terms: int = 0,
        shape: Shape = "canonical",
        nuisance_terms: Sequence[int] = (),
    ) -> None:
        free = replace(grid, amplitude_sd=(_FREE_SD,), shared=(ALONE,))
        super().__init__(tr_s, motion_terms, free, time_terms=time_terms, shape=shape, nuisance_terms=nuisance_terms)
        mean = slice(2, 2 + self._width)
        self._cov[:, mean, mean] = _KNOWN * self._basis.prior
        self._given = np.full((1, self._all), 1.0 / self._all)

    def follow(self, other: Deconvolver) -> None:
        """Copy the parameters' probabilities of `other`, before :meth:`add_volume`."""
        weights = other.weights_by_groups()
        shape = (len(other.grid.amplitude_sd), self._all, len(other.grid.shared))
        self._given = np.array([np.einsum("arn->r", each.reshape(shape)) for each in weights])

    def measured(self, among: Callable[[tuple[int, int]], bool] = lambda key: True) -> dict[tuple[int, int], Measured]:
        """Estimates of the images whose responses have not passed.

        Parameters
        ----------
        among : callable
            Whether an image's estimate is published.
        """
        images = [image for image in self._images if among(image.key)]
        if not images:
            return {}
        points, weights = self._probable()
        at = np.array([image.at for image in images])[:, np.newaxis] + np.arange(self._width)
        r, g = self._basis.readout, points[:, np.newaxis, np.newaxis, np.newaxis, np.newaxis]
        cov = self._cov[g, at[:, np.newaxis, :, np.newaxis], at[np.newaxis, :, np.newaxis, :]] @ r @ r
        values = self._mean[points][:, at] @ r
        mean = weights @ values
        apart = values - mean
        cov = np.einsum("g,gij->ij", weights * self._noise_variance()[points], cov) + np.einsum("g,gi,gj->ij", weights, apart, apart)
        found = {}
        for k, image in enumerate(images):
            before = np.arange(k - 1, max(k - NEIGHBOURS, 0) - 1, -1)
            own = np.linalg.solve(cov[np.ix_(before, before)], cov[before, k]) if len(before) else np.zeros(0)
            left = max(float(cov[k, k] - own @ cov[before, k]), 1e-9 * float(cov[k, k]))
            found[image.key] = Measured(float(mean[k]), left**0.5, tuple(own.tolist()))
        return found

    def _log_weights(self) -> Array:
        given = np.zeros_like(self._given)
        np.add.at(given, np.arange(len(given)) & self._groups.judged(), self._given)  # the other one divides its filters a moment before
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(given[self._absent, self._kept]), np.float64)

    def _incredible(self, squares: Array) -> bool:
        """The other one decides."""
        return False
