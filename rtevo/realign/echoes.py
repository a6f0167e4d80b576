"""Several echoes of each volume combined into one, weighted by T2*.

Each echo weighs in proportion to the contrast that it has to changes of T2*: TE exp(-TE / T2*), in every voxel.

Source: S. Posse et al. (1999), Enhancement of BOLD-contrast sensitivity by single-shot multi-echo functional MR imaging, Magn. Reson.
Med. 42:87-97, doi:10.1002/(SICI)1522-2594(199907)42:1<87::AID-MRM13>3.0.CO;2-O.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FITTED", "Echoes", "echo_weights", "first_echo", "fit_t2star"]

Volume = NDArray[np.float32]

FITTED = 8  # volumes to whose mean T2* is fitted
SHORTEST_S, LONGEST_S = 0.005, 0.2  # of T2* in a head at 1.5 to 7 T


def first_echo(volume: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the first echo of a volume, (X, Y, Z) of (echoes, X, Y, Z), without a copy; a volume of one echo is that."""
    return volume[0] if volume.ndim == 4 else volume


def fit_t2star(echoes: ArrayLike, te_s: Sequence[float]) -> Volume:
    """Fit T2* to the signal of several echoes, voxel by voxel.

    A line through the logarithms, each weighted by the square of its signal: their noise is the inverse of it.

    Parameters
    ----------
    echoes : array_like, (echoes, X, Y, Z)
        Signal; where it is not above 0 an echo counts for nothing.
    te_s : sequence of float
        Echo times, s.

    Returns
    -------
    ndarray, float32 (X, Y, Z)
        T2* in s, from `SHORTEST_S` to `LONGEST_S`.
    """
    signal = np.maximum(np.asarray(echoes, np.float64), 0.0)
    times = np.asarray(te_s, np.float64)[:, None, None, None]
    weight = signal**2
    logs = np.log(np.where(signal > 0, signal, 1.0))
    total = np.maximum(weight.sum(axis=0), np.finfo(float).tiny)
    time, log = (weight * times).sum(axis=0) / total, (weight * logs).sum(axis=0) / total
    spread = (weight * (times - time) ** 2).sum(axis=0)
    fall = -(weight * (times - time) * (logs - log)).sum(axis=0)
    rate = np.where(spread > 0, fall / np.where(spread > 0, spread, 1.0), 0.0)
    return np.asarray(1.0 / np.clip(rate, 1.0 / LONGEST_S, 1.0 / SHORTEST_S), np.float32)


def echo_weights(t2star_s: ArrayLike, te_s: Sequence[float]) -> Volume:
    """Return how much each echo weighs, float32 (echoes, X, Y, Z): their sum is 1 in every voxel.

    Parameters
    ----------
    t2star_s : array_like, (X, Y, Z)
        T2* in s, above 0.
    te_s : sequence of float
        Echo times, s.
    """
    times = np.asarray(te_s, np.float64)[:, None, None, None]
    weights = times * np.exp(-times / np.asarray(t2star_s, np.float64))
    return np.asarray(weights / weights.sum(axis=0), np.float32)


class Echoes:
    """Combines the aligned echoes of one volume after the other.

    T2* is fitted to the mean of the first `FITTED` volumes, anew with each of them, and stays then; a map that is given stays from the
    beginning. What the scanner's steady state does to the first volumes leaves T2* as it is.

    Parameters
    ----------
    te_s : sequence of float
        Echo times, s.
    t2star_s : ndarray, float32 (X, Y, Z), optional
        T2* on the grid of the aligned volumes, s; None: fitted.
    """

    def __init__(self, te_s: Sequence[float], t2star_s: Volume | None = None) -> None:
        self._te_s, self._given = tuple(te_s), t2star_s is not None
        self._weights = None if t2star_s is None else echo_weights(t2star_s, self._te_s)
        self._sum: NDArray[np.float64] | None = None
        self._taken = 0

    def combine(self, echoes: Volume) -> Volume:
        """Combine the echoes of a volume.

        Parameters
        ----------
        echoes : ndarray, float32 (echoes, X, Y, Z)
            Aligned.

        Returns
        -------
        ndarray, float32 (X, Y, Z)
        """
        if not self._given and self._taken < FITTED:
            self._sum = echoes.astype(np.float64) if self._sum is None else self._sum + echoes
            self._taken += 1
            self._weights = echo_weights(fit_t2star(self._sum, self._te_s), self._te_s)
        assert self._weights is not None
        combined: Volume = echoes[0] * self._weights[0]
        for echo, weight in zip(echoes[1:], self._weights[1:], strict=True):
            combined += echo * weight
        return combined

    def begin_again(self) -> None:
        """Forget the volumes so far: those that follow are aligned to another one."""
        self._taken, self._sum = 0, None
