"""Nuisance regressors of one volume at a time: motion, drift, spikes.

Nothing here needs to know how long the run will be. The drift's terms are fixed functions of time, or none where the drift is a random
walk (:mod:`rtevo.decode.deconvolve`), which bends as far as the data say. A spike term, a regressor that is 1 at one volume and 0
elsewhere, takes that volume's whole value: fitting it and leaving the volume out are the same fit, so volumes over the limit are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.records import HEAD_RADIUS_MM

__all__ = ["DRIFTS", "DRIFT_SD", "MOTION_SD", "SPIKE_MM", "Drift", "Nuisance", "motion_in_mm", "penalties"]

Array = NDArray[np.float64]
Drift = Literal["walk", "cosine", "polynomial"]
DRIFTS: tuple[Drift, ...] = ("walk", "cosine", "polynomial")
SPIKE_MM = 1.0
"""Framewise displacement from which on a volume is a spike, mm."""
DRIFT_SD, MOTION_SD = 0.1, 1.0
"""Expected drift a minute and effect of a mm of motion, in noise standard deviations, where a training run is denoised voxel by voxel. On
data made from a real localizer run (six kinds of block, decoded volume by volume, causally) these gave 0.86 and 0.88 correct (two kinds
of noise), a running mean 0.72 and 0.84, plain least squares under 0.5; with more, responses began to be eaten."""
_LONGEST_S, _SHORTEST_S = 1024.0, 128.0  # periods of the cosines: SPM's cut-off, and octaves of it
_POLYNOMIAL_S, _ORDER = 600.0, 3


class Nuisance:
    """Regressors of each volume.

    Parameters
    ----------
    tr_s : float
        Repetition time, seconds.
    motion_terms : {6, 24}
        The six parameters; or those, the last volume's, and the squares of both (K. J. Friston et al. 1996, doi:10.1002/mrm.1910350312).
    drift : {"walk", "cosine", "polynomial"}
        No terms; sines and cosines of 128 to 1024 s; Legendre polynomials of order 1 to 3 on 10 minutes.
    spike_mm : float
        Limit of the framewise displacement.
    groups : sequence of int
        Sizes of groups of other terms, which come with the volumes.

    Attributes
    ----------
    motion, drift : int
        Number of terms of either kind.
    groups : tuple of int
    """

    def __init__(
        self, tr_s: float, motion_terms: int = 6, drift: Drift = "walk", spike_mm: float = SPIKE_MM, groups: Sequence[int] = ()
    ) -> None:
        if motion_terms not in (6, 24):
            raise ValueError(f"motion_terms: expected 6 or 24, got {motion_terms}")
        if drift not in DRIFTS:
            raise ValueError(f"drift: expected one of {', '.join(DRIFTS)}, got {drift!r}")
        if not spike_mm > 0:
            raise ValueError(f"spike_mm: expected a number > 0, got {spike_mm}")
        self._tr_s, self._kind, self._spike_mm = tr_s, drift, spike_mm
        if any(size < 1 for size in groups):
            raise ValueError(f"groups: expected sizes >= 1, got {list(groups)}")
        self.motion, self.drift, self.groups = motion_terms, len(self._drift_terms(0.0)), tuple(groups)
        self._last: Array | None = None
        self._before: Array | None = None

    def interrupt(self) -> None:
        """The next volume is another run's first: it did not jump."""
        self._last = self._before = None

    def spike(self, motion_mm: Array) -> bool:
        """Set a volume's motion, (6,) mm; return whether the head jumped since the last volume."""
        self._before, self._last = self._last, motion_mm
        return self._before is not None and float(np.abs(motion_mm - self._before).sum()) > self._spike_mm

    def terms(self, index: int, others: ArrayLike = ()) -> Array:
        """Regressors of the volume whose motion was given last, float64 (motion + drift + groups,); mm, mm^2, and numbers about 1.

        Parameters
        ----------
        index : int
        others : array-like of float, (sum of groups,) or empty
            Terms of the groups, of standard deviation 1; a group with a number that is not finite is not known in this volume, and so are
            all where there are none.
        """
        assert self._last is not None
        motion = self._last
        if self.motion == 24:
            before = motion if self._before is None else self._before
            motion = np.concatenate([motion, before, motion**2, before**2])
        return np.concatenate([motion, self._drift_terms((index + 0.5) * self._tr_s), self._others(np.asarray(others, np.float64))])

    def _others(self, terms: Array) -> Array:
        """The groups' terms, 0 where they are not known."""
        count = sum(self.groups)
        if terms.shape == (0,):
            return np.zeros(count)
        if terms.shape != (count,):
            raise ValueError(f"nuisance terms: expected {count} numbers, got shape {terms.shape}")
        parts = np.split(terms, np.cumsum(self.groups[:-1])) if count else []
        return np.concatenate([np.zeros(0), *[part if np.isfinite(part).all() else np.zeros(len(part)) for part in parts]])

    def _drift_terms(self, t_s: float) -> Array:
        if self._kind == "walk":
            return np.zeros(0)
        if self._kind == "polynomial":
            x = 2 * t_s / _POLYNOMIAL_S - 1
            return np.array([np.polynomial.legendre.legval(x, np.eye(_ORDER + 1)[k]) for k in range(1, _ORDER + 1)])
        octaves = np.arange(round(math.log2(_LONGEST_S / _SHORTEST_S)) + 1)
        angle = 2 * math.pi * t_s / _LONGEST_S * 2.0**octaves
        return np.concatenate([np.sin(angle), np.cos(angle) - 1])


def motion_in_mm(motion: ArrayLike) -> Array:
    """Turn motion parameters (..., 6) in mm and rad into mm, on a sphere of 50 mm."""
    return np.asarray(motion, np.float64) * ([1.0] * 3 + [HEAD_RADIUS_MM] * 3)


def penalties(drift_sd: float, motion_sd: float) -> Array:
    """Ridge penalties of drift and the six motion terms, float64 (7,), from their expected sizes; 0: no such term."""
    return np.maximum(np.array([drift_sd] + [motion_sd] * 6, np.float64), 1e-6) ** -2.0
