"""Today's reference: the mean of a run's first volumes, without those before steady state and those where the head lay elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels.mask import brain_mask
from rtevo.records import HEAD_RADIUS_MM

__all__ = ["FEWEST", "FirstVolumes"]

Volume = NDArray[np.float32]

STEADY_S = 6.0  # so long a stretch of steady volumes makes a reference,
FEWEST = 3  # and at least this many
STEADY_SHARE = 0.02  # the first volumes' signal may differ so far from that of the later ones; before steady state it lies 5 to 100 % above
STILL_MM = 1.0  # and the head may lie so far from where it mostly does
PATIENCE = 4  # times the wanted volumes: then those that there are must do


@dataclass
class FirstVolumes:
    """The first volumes of a run, aligned to each other, until enough are steady.

    Parameters
    ----------
    tr_s : float
        Repetition time, s.
    wanted_s : float
        How much of steady signal is wanted, s.
    """

    tr_s: float
    wanted_s: float = STEADY_S
    _volumes: list[Volume] = field(default_factory=list)
    _levels: list[float] = field(default_factory=list)
    _motions: list[NDArray[np.float64]] = field(default_factory=list)
    _mask: NDArray[np.bool_] | None = None

    def add(self, aligned: Volume, motion: NDArray[np.float64], affine: NDArray[np.float64]) -> None:
        """Add a volume, aligned to one of the run's.

        Parameters
        ----------
        aligned : ndarray, float32 (X, Y, Z)
        motion : ndarray, float64 (6,)
            mm and rad.
        affine : ndarray, float64 (4, 4)
            Voxel to RAS+ mm.
        """
        if self._mask is None:
            self._mask = brain_mask(aligned, affine)
        inside = self._mask if self._mask.any() else np.ones(aligned.shape, bool)
        self._volumes.append(aligned)
        self._levels.append(float(np.nan_to_num(aligned)[inside].mean(dtype=np.float64)))
        self._motions.append(np.asarray(motion, np.float64))

    def good(self) -> list[Volume]:
        """Return the volumes in steady state where the head lay where it mostly does, as many as there are."""
        if not self._volumes:
            return []
        levels, motions = np.array(self._levels), np.array(self._motions)
        usual = float(np.median(levels[-FEWEST:]))
        off = np.abs(levels - usual) > STEADY_SHARE * abs(usual)
        early = len(levels) if off.all() else int(np.argmin(off))
        if early == len(levels):
            return []
        away = np.abs(motions - np.median(motions[early:], axis=0))
        still = away[:, :3].sum(axis=1) + HEAD_RADIUS_MM * away[:, 3:].sum(axis=1) < STILL_MM
        return [volume for k, volume in enumerate(self._volumes) if k >= early and still[k]]

    def steady(self) -> tuple[Volume, ...]:
        """Return the volumes that make the reference; none while they are too few.

        A run that never comes to rest is not waited for without end: see `PATIENCE`.
        """
        wanted = max(FEWEST, math.ceil(self.wanted_s / self.tr_s - 1e-6))
        if len(self._volumes) < wanted:
            return ()
        chosen = self.good()
        if len(chosen) < wanted and len(self._volumes) >= PATIENCE * wanted:
            chosen = chosen if len(chosen) >= FEWEST else self._volumes
        elif len(chosen) < wanted:
            return ()
        return tuple(chosen[-wanted:])
