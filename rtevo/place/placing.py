"""Placing a head: the search and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels.smooth import FWHM_PER_SIGMA
from rtevo.place.descent import Fit, Pair
from rtevo.place.search import candidates, turns
from rtevo.place.volumes import Seen, coarser

__all__ = ["Found", "Scale", "compare", "find", "look"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """One level of the search.

    Parameters
    ----------
    spacing_mm, fwhm_mm, window_mm : float
        Grid, resolution, and the FWHM of the neighbourhoods of local normalisation.
    """

    spacing_mm: float
    fwhm_mm: float
    window_mm: float


COARSE, MIDDLE, NEAR = Scale(12, 16, 44), Scale(8, 12, 34), Scale(5, 8, 26)
CLOSE = Scale(3.5, 6.0, 16.0)
FINE_MM, FINE_WINDOW_MM, FINE_REACH_MM = 2.5, 10.0, 9.0
LEAST_FWHM_MM, MOST_FWHM_MM = 4.0, 9.0
FIRST, SECOND = 10, 3  # numbers of candidates for the middle level, and for the near and fine ones
APART_MM = 12.0  # placements that differ by less over the head are the same
SURE_CORRELATION = 0.7  # below, other postures are tried
POSTURE_DEG, POSTURE_SHARE, POSTURE_GAIN, POSTURE_CORRELATION = 30.0, 0.9, 1.2, 0.6
POSTURES_TRIED = 3
POSTURES = {
    "upside down": np.diag([-1.0, 1.0, -1.0]),
    "on its face": np.diag([-1.0, -1.0, 1.0]),
    "upside down and on its face": np.diag([1.0, -1.0, -1.0]),
    "with left and right exchanged": np.diag([-1.0, 1.0, 1.0]),
}
LIMIT = 5.0  # robust standard deviations from which on a residual has no weight


@dataclass(frozen=True, eq=False)
class Found:
    """The best placement, and its evidence.

    Parameters
    ----------
    fit : Fit
        Evaluation at the fine level.
    rival : float
        Score of the best placement elsewhere, relative to the best; 0: none.
    pair : Pair
        The fine level.
    posture : str
        An impossible posture in which the head fits much better; empty: none.
    """

    fit: Fit
    rival: float
    pair: Pair
    posture: str = ""


def _distance(a: Array, b: Array, points: Array) -> float:
    """Return the mean distance between the images of points under two placements, mm."""
    change = a - b
    return float(np.linalg.norm(change[:3, :3] @ points + change[:3, 3:], axis=0).mean())


def _distinct(fits: Sequence[Fit], points: Array, most: int) -> list[Fit]:
    """Return the best placement of each place, best first."""
    kept: list[Fit] = []
    for fit in sorted(fits, key=lambda f: -f.score):
        if all(_distance(fit.matrix, other.matrix, points) > APART_MM for other in kept):
            kept.append(fit)
        if len(kept) == most:
            break
    return kept


def _pair(reference: Seen, today: Seen, scale: Scale, centre: Array) -> Pair:
    return Pair(reference.level(scale.spacing_mm, scale.fwhm_mm), today.level(scale.spacing_mm, scale.fwhm_mm), centre, scale.window_mm)


def fine_pair(reference: Seen, today: Seen, centre: Array) -> Pair:
    """Return the level for measuring a placement: as fine as both volumes permit."""
    variance = max(reference.variance_mm2().max(), today.variance_mm2().max())
    fwhm = float(np.clip(np.sqrt(variance) * FWHM_PER_SIGMA, LEAST_FWHM_MM, MOST_FWHM_MM))
    return Pair(reference.level(FINE_MM, fwhm, FINE_REACH_MM), today.smoothed(fwhm), centre, max(FINE_WINDOW_MM, 2 * fwhm))


def look(reference: Seen, today: Seen, matrix: Array) -> Found:
    """Measure a given placement."""
    pair = fine_pair(reference, today, reference.points.mean(axis=1))
    return Found(pair.measure(matrix, LIMIT), 0.0, pair)


def compare(reference: Seen, today: Seen, matrices: Sequence[Array]) -> list[Fit]:
    """Measure several placements at a resolution of 8 mm: quick, and tolerant of a few millimetres."""
    pair = _pair(reference, today, NEAR, reference.points.mean(axis=1))
    return [pair.evaluate(m) for m in matrices]


class Search:
    """Finds the placement of one volume in another.

    Parameters
    ----------
    reference, today : Seen
    """

    def __init__(self, reference: Seen, today: Seen) -> None:
        points = reference.points
        self.points = points[:, :: max(points.shape[1] // 500, 1)]
        self.centre, self.todays = points.mean(axis=1), today.points.mean(axis=1)
        bases = [s.level(CLOSE.spacing_mm, CLOSE.fwhm_mm, rough=True) for s in (reference, today)]
        self.coarse = [coarser(base, CLOSE.fwhm_mm, COARSE.spacing_mm, COARSE.fwhm_mm) for base in bases]
        pairs = []
        for scale in (MIDDLE, NEAR):
            ours, theirs = (coarser(base, CLOSE.fwhm_mm, scale.spacing_mm, scale.fwhm_mm) for base in bases)
            pairs.append(Pair(ours, theirs, self.centre, scale.window_mm))
        self.middle, self.near = pairs
        self.close = Pair(bases[0], bases[1], self.centre, CLOSE.window_mm)
        self.fine = fine_pair(reference, today, self.centre)

    def among(self, coarse: Sequence[Array]) -> list[Fit]:
        """Descend from placements: the best of each place, best first, at the near level."""
        fits = _distinct([self.middle.descend(m, 10, 0.3) for m in coarse], self.points, SECOND)
        return _distinct([self.near.descend(f.matrix, 10, 0.1) for f in fits], self.points, SECOND)

    def candidates(self, rotations: Array) -> list[tuple[float, Array]]:
        """Evaluate all shifts for some turns."""
        return candidates(self.coarse[0], self.coarse[1], self.centre, self.todays, COARSE.window_mm, rotations)

    def settle(self, matrix: Array) -> Fit:
        """Descend to the fine level."""
        fit = self.close.descend(matrix, 6, 0.1)
        return self.fine.settle(self.fine.descend(fit.matrix, 2, 0.05), LIMIT)

    def posture(self, best: Fit, fine: Fit) -> str:
        """Return the impossible posture in which the head fits much better; empty: none."""
        few = turns(most_deg=POSTURE_DEG)
        coarse = [(*item, words) for words, change in POSTURES.items() for item in self.candidates(few @ change)[:2]]
        coarse.sort(key=lambda item: -item[0])
        fits = self.among([matrix for _, matrix, _ in coarse[:POSTURES_TRIED]])
        if not fits or fits[0].score < POSTURE_SHARE * best.score:
            return ""
        found = self.settle(fits[0].matrix)
        if found.correlation < max(POSTURE_GAIN * fine.correlation, POSTURE_CORRELATION):
            return ""
        turned = [float(np.trace(found.matrix[:3, :3] @ change.T)) for change in POSTURES.values()]
        return list(POSTURES)[int(np.argmax(turned))]


def find(reference: Seen, today: Seen, starts: Sequence[ArrayLike]) -> Found:
    """Search everywhere, then descend.

    Parameters
    ----------
    starts : sequence of array_like, (4, 4)
        Initial placements in addition to the search's own.
    """
    search = Search(reference, today)
    begun = [np.asarray(s, np.float64) for s in starts]
    fits = search.among([*begun, *(matrix for _, matrix in search.candidates(turns())[:FIRST])])
    fit = search.settle(fits[0].matrix)
    rival = max(fits[1].score / max(fits[0].score, 1e-6), 0.0) if len(fits) > 1 else 0.0
    posture = search.posture(fits[0], fit) if fit.correlation < SURE_CORRELATION else ""
    return Found(fit, rival, search.fine, posture)
