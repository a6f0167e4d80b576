"""Kalman filters of many models of one series at once (R. E. Kalman 1960, doi:10.1115/1.3662552).

Every model has a state of the same size; place 0 is a first-order autoregression, place 1 a random walk, the rest does not change between
measurements. A measurement is a sum over the state, with weights that many models share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels._compile import kernel

__all__ = ["compact", "correct", "predict"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@kernel
def predict(
    mean: Array,
    cov: Array,
    designs: Array,
    which: Index,
    decay: Array,
    walk: Array,
    size: int,
    gain: Array,
    expected: Array,
    variance: Array,
) -> None:
    """Advance all models to the next measurement, in place, and say what each expects of it.

    Parameters
    ----------
    mean : ndarray, float64 (models, capacity)
    cov : ndarray, float64 (models, capacity, capacity)
    designs : ndarray, float64 (kinds, capacity)
        Weights of the state in the measurement.
    which : ndarray, int64 (models,)
        Kind of each model.
    decay, walk : ndarray, float64 (models,)
        Factor of place 0, whose variance stays 1, and what the variance of place 1 grows by.
    size : int
        Places of the state that are in use.
    gain : ndarray, float64 (models, capacity)
        Takes the covariance of the state with the measurement.
    expected, variance : ndarray, float64 (models,)
        Take mean and variance of the measurement.
    """
    for m in range(len(mean)):
        p, h, g, a = cov[m], designs[which[m]], gain[m], decay[m]
        mean[m, 0] *= a
        for j in range(size):
            p[0, j] *= a
            p[j, 0] *= a
        p[0, 0] += 1.0 - a * a
        p[1, 1] += walk[m]
        total, value = 0.0, 0.0
        for i in range(size):
            row, s = p[i], 0.0
            for j in range(size):
                s += row[j] * h[j]
            g[i] = s
            total += s * h[i]
            value += mean[m, i] * h[i]
        expected[m], variance[m] = value, total


@kernel
def correct(mean: Array, cov: Array, gain: Array, variance: Array, surprise: Array, size: int) -> None:
    """Update all models with the measurement, in place.

    Parameters
    ----------
    mean, cov, gain, variance, size
        Of :func:`predict`.
    surprise : ndarray, float64 (models,)
        The measurement less what was expected.
    """
    for m in range(len(mean)):
        p, g, inverse = cov[m], gain[m], 1.0 / variance[m]
        step = surprise[m] * inverse
        for i in range(size):
            mean[m, i] += g[i] * step
            own, row = g[i] * inverse, p[i]
            for j in range(size):
                row[j] -= own * g[j]


@kernel
def compact(mean: Array, cov: Array, kept: Index, size: int) -> None:
    """Move the models that are kept to the front, in place.

    Parameters
    ----------
    mean, cov, size
        Of :func:`predict`.
    kept : ndarray, int64 (n,)
        Which, in rising order.
    """
    for to in range(len(kept)):
        m = kept[to]
        if m != to:
            for i in range(size):
                mean[to, i] = mean[m, i]
                for j in range(size):
                    cov[to, i, j] = cov[m, i, j]
