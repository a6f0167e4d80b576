"""Series with slow drift and autocorrelated noise, turned into ones with independent noise: the innovations of a Kalman filter.

The noise of a measurement is a first-order autoregression of variance 1 and a random walk from an unknown start (R. E. Kalman 1960,
doi:10.1115/1.3662552). The filter is linear, so regressors go through it as the series does, and what is left can be fitted by least
squares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels._compile import kernel

__all__ = ["whiten"]

Array = NDArray[np.float64]


@kernel
def whiten(columns: Array, decay: Array, walk: Array, first: NDArray[np.int64]) -> None:
    """Replace each column by its innovations, in units of their standard deviation, in place.

    Parameters
    ----------
    columns : ndarray, float64 (n, m)
        Series and regressors, a row for each measurement.
    decay, walk : ndarray, float64 (n,)
        Correlation of the autoregression with the measurement before; what the variance of the walk has grown by since.
    first : ndarray, int64 (m,)
        Row before which a column is 0. Row 0 sets the walk's start and becomes 0.
    """
    n, m = columns.shape
    noise, walked = np.zeros(m), columns[0].copy()
    columns[0] = 0.0
    a, b, c = 1.0, -1.0, 1.0  # covariance of the two: what one is more, the other is less
    for t in range(1, n):
        a, b, c = 1.0 + (a - 1.0) * decay[t] ** 2, b * decay[t], c + walk[t]
        to_noise, to_walk = a + b, b + c
        variance = to_noise + to_walk
        scale = 1.0 / np.sqrt(variance)
        for k in range(m):
            noise[k] *= decay[t]
            if t >= first[k]:
                apart = columns[t, k] - noise[k] - walked[k]
                noise[k] += to_noise / variance * apart
                walked[k] += to_walk / variance * apart
                columns[t, k] = apart * scale
        a -= to_noise * to_noise / variance
        b -= to_noise * to_walk / variance
        c -= to_walk * to_walk / variance
