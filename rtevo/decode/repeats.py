"""Voxels whose responses repeat: the same categories, the same profile of responses, in every run.

A voxel's profile is its response to each category less the mean of all, from a general linear model of one run; its reliability is the
correlation of the profiles of two runs, the mean over pairs of runs (L. Tarhan, T. Konkle 2020, doi:10.1016/j.neuroimage.2019.116350). Of
two categories, or a number, a profile has one direction only: reliability is then 1 where it is the same in both runs, and -1 where not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Repeats", "reliability"]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
LEAST_VOXELS = 100
"""Number of the most reliable voxels that are kept in any case."""
_SPARE = 3  # volumes of a run beyond its categories, for its responses to be estimated


@dataclass(frozen=True, eq=False)
class Repeats:
    """Which voxels may be chosen.

    Parameters
    ----------
    run : ndarray, int (n,)
        Of each volume.
    least : float
        Reliability that a voxel must have, -1 to 1.
    """

    run: NDArray[np.int64]
    least: float

    def kept(self, values: NDArray[np.float32], train: Flags, design: Array) -> Flags:
        """Return the voxels whose responses repeat on some volumes; at least :data:`LEAST_VOXELS`, bool (voxels,).

        Parameters
        ----------
        values : ndarray, float32 (voxels, n)
        train : ndarray, bool (n,)
            Volumes that may be used.
        design : ndarray, float64 (n, K)
            Predicted response to each category.
        """
        found = reliability(values, self._parts(train, design), design)
        kept = found >= self.least
        if kept.sum() < min(LEAST_VOXELS, len(kept)):
            kept = np.zeros(len(kept), bool)
            kept[np.argsort(-found, kind="stable")[:LEAST_VOXELS]] = True
        return kept

    def _parts(self, train: Flags, design: Array) -> list[Flags]:
        """Volumes of each run that shows all categories; where fewer than two do, of the two halves of each run's volumes, together."""
        parts = [part for number in np.unique(self.run) if _shows(part := train & (self.run == number), design)]
        if len(parts) > 1:
            return parts
        halves = np.zeros((2, len(train)), bool)
        for number in np.unique(self.run):
            first, second = np.array_split(np.flatnonzero(train & (self.run == number)), 2)
            halves[0, first], halves[1, second] = True, True
        return [half for half in halves if _shows(half, design)]


def _shows(part: Flags, design: Array) -> bool:
    """Whether the responses to all categories can be estimated on some volumes."""
    x = design[part]
    return len(x) > design.shape[1] + _SPARE and bool((np.ptp(x, axis=0) > 0).all())


def reliability(values: NDArray[np.float32], parts: Sequence[Flags], design: Array) -> Array:
    """Return each voxel's reliability, float64 (voxels,); 0 for all where there are fewer than two parts.

    Parameters
    ----------
    values : ndarray, float32 (voxels, n)
    parts : sequence of ndarray, bool (n,)
        The volumes of each run.
    design : ndarray, float64 (n, K)
    """
    profiles = []
    for part in parts:
        x = design[part] - design[part].mean(axis=0)
        found = (values[:, part] @ np.linalg.pinv(x).T.astype(np.float32)).astype(np.float64)
        found = found - found.mean(axis=1, keepdims=True) if found.shape[1] > 1 else found
        profiles.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30))
    pairs = [np.einsum("vk,vk->v", a, b) for a, b in itertools.combinations(profiles, 2)]
    return np.asarray(np.mean(pairs, axis=0), np.float64) if pairs else np.zeros(len(values))
