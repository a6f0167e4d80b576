"""Where a head lies today: the search and what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.place.descent import Fit, Pair
from rtevo.place.search import candidates, turns
from rtevo.place.volumes import Seen

__all__ = ["Found", "Scale", "find", "look"]

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
FIRST, SECOND, THIRD = 10, 3, 2  # candidates that go on to the middle, the near and the fine level
APART_MM = 12.0  # placements that lie closer over the head are one
LIMIT = 5.0  # robust standard deviations from which on a residual counts for nothing


@dataclass(frozen=True, eq=False)
class Found:
    """The best placement, and what speaks for it.

    Parameters
    ----------
    fit : Fit
        At the fine level.
    rival : float
        Score of the best placement that lies elsewhere, over that of the best; 0 where there is none.
    pair : Pair
        The fine level.
    """

    fit: Fit
    rival: float
    pair: Pair


def _distance(a: Array, b: Array, points: Array) -> float:
    """Mean distance over points between where two placements take them, mm."""
    change = a - b
    return float(np.linalg.norm(change[:3, :3] @ points + change[:3, 3:], axis=0).mean())


def _distinct(fits: Sequence[Fit], points: Array, most: int) -> list[Fit]:
    """Return the best of each place, best first."""
    kept: list[Fit] = []
    for fit in sorted(fits, key=lambda f: -f.score):
        if all(_distance(fit.matrix, other.matrix, points) > APART_MM for other in kept):
            kept.append(fit)
        if len(kept) == most:
            break
    return kept


def _pair(reference: Seen, today: Seen, scale: Scale, centre: Array) -> Pair:
    return Pair(
        reference.level(scale.spacing_mm, scale.fwhm_mm), today.level(scale.spacing_mm, scale.fwhm_mm), centre, scale.window_mm
    )


def fine_pair(reference: Seen, today: Seen, centre: Array) -> Pair:
    """Make the level at which a placement is measured: as fine as both volumes are."""
    variance = max(reference.variance_mm2().max(), today.variance_mm2().max())
    fwhm = float(np.clip(np.sqrt(variance) * 2.355, LEAST_FWHM_MM, MOST_FWHM_MM))
    return Pair(reference.level(FINE_MM, fwhm, FINE_REACH_MM), today.smoothed(fwhm), centre, max(FINE_WINDOW_MM, 2 * fwhm))


def look(reference: Seen, today: Seen, matrix: Array) -> Found:
    """Measure a given placement."""
    centre = reference.points.mean(axis=1)
    pair = fine_pair(reference, today, centre)
    return Found(pair.measure(matrix, LIMIT), 0.0, pair)


def find(reference: Seen, today: Seen, starts: Sequence[ArrayLike]) -> Found:
    """Search everywhere, then descend.

    Parameters
    ----------
    starts : sequence of array_like, (4, 4)
        Placements to begin with besides the search's own.
    """
    points = reference.points
    points = points[:, :: max(points.shape[1] // 500, 1)]
    centre, todays = reference.points.mean(axis=1), today.points.mean(axis=1)
    levels = [s.level(COARSE.spacing_mm, COARSE.fwhm_mm) for s in (reference, today)]
    coarse = candidates(levels[0], levels[1], centre, todays, COARSE.window_mm, turns())
    begun = [np.asarray(s, np.float64) for s in starts] + [matrix for _, matrix in coarse[:FIRST]]
    middle = _pair(reference, today, MIDDLE, centre)
    fits = _distinct([middle.descend(m, 10, 0.3) for m in begun], points, SECOND)
    near = _pair(reference, today, NEAR, centre)
    fits = _distinct([near.descend(f.matrix, 10, 0.1) for f in fits], points, SECOND)
    close = _pair(reference, today, CLOSE, centre)
    fit = close.descend(fits[0].matrix, 6, 0.1)
    pair = fine_pair(reference, today, centre)
    fit = pair.settle(pair.descend(fit.matrix, 2, 0.05), LIMIT)
    rival = fits[1].score / max(fits[0].score, 1e-6) if len(fits) > 1 else 0.0
    return Found(fit, max(rival, 0.0), pair)
