"""Groups of nuisance terms in the filters, and whether each is there at all, by the evidence.

A filter begins with every group there: coefficients from N(0, sd^2). That holds the answer for coefficients of zero too: given the noise,
the evidence for that is the evidence so far times the posterior density of zero over its prior density (the Savage-Dickey ratio: J. M.
Dickey 1971, doi:10.1214/aoms/1177693507), and the state is the one conditioned on zero. So nothing runs twice from the start: a filter is
divided in two once its group has been seen long enough, exactly as if both had run from the first volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels.kalman import correct

__all__ = ["JUDGED", "Groups", "divided"]

Array = NDArray[np.float64]
JUDGED = 20
"""Volumes that show a group, after which the filters are divided into those with it and those without it."""


class Groups:
    """Where groups of nuisance terms lie in the state of filters, and how long each has been seen.

    Parameters
    ----------
    start : int
        Place of the first term.
    sizes : sequence of int
        Terms of each group.

    Attributes
    ----------
    places : list of slice
    sd : list of float
        Of the coefficients' prior in each group, in noise standard deviations: together they explain as much as the noise does.
    shown : ndarray, int64 (groups,)
        Volumes that showed each; -1: the filters have been divided.
    start, stop : int
        Places of the first term, and after the last.
    """

    def __init__(self, start: int, sizes: Sequence[int]) -> None:
        self.places = [slice(*ends) for ends in pairwise(np.cumsum([start, *sizes]).tolist())]
        self.sd = [1.0 / math.sqrt(max(size, 1)) for size in sizes]
        self.shown = np.zeros(len(sizes), np.int64)
        self.start, self.stop = start, start + sum(sizes)

    def begin(self, mean: Array, cov: Array, absent: NDArray[np.int64]) -> None:
        """Forget what is known of the coefficients; those of groups that are `absent` (a bit each) stay 0; in place."""
        for k, (group, sd) in enumerate(zip(self.places, self.sd, strict=True)):
            mean[:, group] = 0.0
            cov[:, group, :] = cov[:, :, group] = 0.0
            for place in range(group.start, group.stop):
                cov[:, place, place] = np.where(absent >> k & 1, 0.0, sd**2)
        self.shown = np.minimum(self.shown, 0)

    def due(self, design: Array) -> list[int]:
        """Count a volume, float64 (state,); return the groups for which the filters are to be divided now.

        One at a time: several at once would make too many filters for a moment. The others follow with the next volumes.
        """
        found: list[int] = []
        for k, group in enumerate(self.places):
            if self.shown[k] >= 0 and design[group].any():
                self.shown[k] += 1
                if self.shown[k] >= JUDGED and not found:
                    self.shown[k] = -1
                    found.append(k)
        return found

    def judged(self) -> int:
        """Return the groups for which the filters have been divided, a bit each."""
        return sum(1 << k for k, shown in enumerate(self.shown) if shown < 0)

    def there(self, weights: Array, absent: NDArray[np.int64]) -> list[float]:
        """Probability that each is there, given that of each filter; NaN where too few volumes have shown it."""
        return [1.0 - float(weights @ (absent >> k & 1)) if shown < 0 else math.nan for k, shown in enumerate(self.shown)]


def divided(mean: Array, cov: Array, size: int, group: slice, sd: float) -> tuple[Array, Array, Array, Array]:
    """Add to filters what they would be if the coefficients of a group had been zero from the start.

    Parameters
    ----------
    mean, cov : ndarray, float64 (n, capacity) and (n, capacity, capacity)
        States, in units of the noise.
    size : int
        Places of the state that are in use.
    group : slice
        Places of the coefficients.
    sd : float
        Of their prior.

    Returns
    -------
    mean, cov : ndarray, float64 (2n, capacity) and (2n, capacity, capacity)
        Those with the group, and then those without it, in the same order.
    squares, log_det : ndarray, float64 (n,)
        What the sum of the squared surprises over their variances, and the sum of the logarithms of these, are larger by without it.
    """
    n, used = len(mean), slice(size)
    means, covs = np.zeros((2 * n, *mean.shape[1:])), np.zeros((2 * n, *cov.shape[1:]))
    means[:n], covs[:n] = mean, cov
    mean, cov = mean[:, used].copy(), cov[:, used, used].copy()
    squares, log_det = np.zeros(n), np.zeros(n)
    for place in range(group.start, group.stop):  # each is measured to be zero, without an error
        gain, surprise = cov[:, :, place].copy(), -mean[:, place]
        variance = gain[:, place].copy()
        correct(mean, cov, gain, variance, surprise, size)
        squares += surprise**2 / variance
        log_det += np.log(variance / sd**2)
    mean[:, group] = 0.0
    cov[:, group, :] = cov[:, :, group] = 0.0
    means[n:, used], covs[n:, used, used] = mean, cov
    return means, covs, squares, log_det
