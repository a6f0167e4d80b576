"""Noise that several maps share: they see the same volumes, so the errors of their scores are correlated.

The covariance is that of what is left of the maps' projections when everything that the volumes show of images, motion and drift is taken
out of them by least squares, one amplitude an image, as in the analysis of a recorded run. It is drawn to what independent noise of the
voxels would give (the overlap of the maps), as if that were ten volumes' worth of evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.folder import Decoder
from rtevo.decode.hrf import response
from rtevo.decode.learnt import Learnt, checked

__all__ = ["SharedNoise", "unit_map"]

Array = NDArray[np.float64]
KEPT = 400  # volumes that it is estimated from, at most
EVERY = 10  # volumes, after which it is estimated anew
FEWEST = 20  # degrees of freedom; with fewer all images share one amplitude
PERIOD_S = 100.0  # of the fastest drift that is taken out
PRIOR_VOLUMES = 10.0


def unit_map(decoder: Decoder) -> tuple[Array, Array]:
    """Return a map as it is projected on, centred and of length 1, and the voxels' noise (1 where it is not known); float64 (voxels,) each.

    Voxels are those of the decoder's mask; weights are 0 where a voxel does not count.
    """
    weights = decoder.weights[decoder.mask].astype(np.float64)
    sd = np.ones(len(weights)) if decoder.noise_sd is None else decoder.noise_sd[decoder.mask].astype(np.float64)
    counts = sd > 0
    centred = np.where(counts, weights - (weights[counts].mean() if counts.any() else 0.0), 0.0)
    return centred / max(float(np.sqrt((centred**2).sum())), 1e-30), sd


class SharedNoise:
    """Covariance of the noise of maps' projections, from volumes and onsets as they come.

    Parameters
    ----------
    maps : sequence of Decoder
        K of them, on one grid.
    tr_s, duration_s : float
        Repetition time; how long an image is shown, seconds.
    """

    def __init__(self, maps: Sequence[Decoder], tr_s: float, duration_s: float) -> None:
        made = [unit_map(one) for one in maps]
        units = np.array([float(one.settings.get("unit", 1.0)) for one in maps])
        self._factors = [np.divide(m, sd * unit, out=np.zeros_like(m), where=sd > 0) for (m, sd), unit in zip(made, units, strict=True)]
        whole = np.zeros((len(maps), *maps[0].mask.shape))
        for place, one, (m, _) in zip(whole, maps, made, strict=True):
            place[one.mask] = m
        flat = whole.reshape(len(maps), -1)
        self._overlap: Array = flat @ flat.T
        self._tr_s, self._duration_s = tr_s, duration_s
        self._left: Array = np.zeros((len(maps), len(maps)))  # of earlier runs: sum of squares and products, and degrees of freedom
        self._freedom, self._since = 0, 0
        self._found: Array | None = None
        self._clear()

    def _clear(self) -> None:
        self._onsets: list[float] = []
        self._rows: list[tuple[float, Array, Array]] = []

    def add_onset(self, onset_s: float) -> None:
        """Add an image that was shown."""
        self._onsets.append(onset_s)

    def add_volume(self, index: int, values: Sequence[NDArray[np.float32]], motion_mm: Array) -> None:
        """Add a volume: the voxels of each map's mask, smoothed, and its motion, float64 (6,)."""
        projected = np.array([float((f * v).sum()) for f, v in zip(self._factors, values, strict=True)])
        self._rows = [*self._rows[-KEPT + 1 :], ((index + 0.5) * self._tr_s, projected, motion_mm)]
        self._since += 1

    def interrupt(self) -> None:
        """Begin a new run of the scanner."""
        left, freedom = self._residuals()
        self._left, self._freedom = self._left + left, self._freedom + freedom
        self._clear()
        self._found = None

    def learnt(self) -> Learnt:
        """What earlier runs have left, for :meth:`take_over`: after :meth:`interrupt`."""
        return {"left": self._left, "freedom": np.array(self._freedom)}

    def take_over(self, learnt: Learnt) -> None:
        """Begin with what earlier runs have left.

        Raises
        ------
        ValueError
            It is not of as many maps.
        """
        found = checked(learnt, {"left": self._left.shape, "freedom": ()})
        self._left, self._freedom = found["left"], int(found["freedom"])

    def covariance(self) -> Array:
        """Return the covariance of the noise, float64 (K, K), in the units of the scores; only its ratios mean something."""
        if self._found is None or self._since >= EVERY:
            left, freedom = self._residuals()
            left, freedom = left + self._left, freedom + self._freedom
            sd = np.sqrt(np.diag(left) / freedom) if freedom and (np.diag(left) > 0).all() else np.ones(len(left))
            prior = self._overlap * np.outer(sd, sd)
            self._found, self._since = (left + PRIOR_VOLUMES * prior) / (freedom + PRIOR_VOLUMES), 0
        return self._found

    def _residuals(self) -> tuple[Array, int]:
        """Squares and products of what is left in this run, summed over volumes, and its degrees of freedom."""
        series = np.array([row[1] for row in self._rows]).reshape(len(self._rows), len(self._factors))
        n = len(series)
        if n < FEWEST:
            return np.zeros_like(self._left), 0
        t_s = np.array([row[0] for row in self._rows])
        motion = np.array([row[2] for row in self._rows])
        order = 2 + int(2 * (t_s[-1] - t_s[0]) / PERIOD_S)
        drift = np.cos(np.pi * np.outer((t_s - t_s[0]) / max(t_s[-1] - t_s[0], 1e-9), np.arange(order)))
        single = np.array([response(t_s - onset, self._duration_s) for onset in self._onsets]).reshape(-1, n).T
        single = single[:, single.max(axis=0) > 0.5] if single.size else np.zeros((n, 0))
        nuisance = np.column_stack([drift, motion[:, np.ptp(motion, axis=0) > 0]])
        if n - nuisance.shape[1] - single.shape[1] < FEWEST:
            single = single.sum(axis=1, keepdims=True)
        design = np.column_stack([nuisance, single])
        freedom = n - design.shape[1]
        if freedom < 1:
            return np.zeros_like(self._left), 0
        orthogonal = np.linalg.qr(design)[0]
        rest = series - series.mean(axis=0)
        rest = rest - orthogonal @ (orthogonal.T @ rest)
        return rest.T @ rest, freedom
