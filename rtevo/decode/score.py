"""What decoding gives for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtevo.records import NEIGHBOURS

__all__ = ["Score", "spearman_brown"]


@dataclass(frozen=True)
class Score:
    """The response to one image.

    Parameters
    ----------
    key : tuple of int, (2,)
        Generation and candidate.
    onset_s : float
        From the first volume.
    score : float
        Response along the weight map, in units of one voxel's noise (deconvolve), or its correlation with the map, -1 to 1 (peak); NaN
        where it could not be measured.
    score_se : float
        Standard error, NaN where the method gives none.
    volumes_used : int
        Volumes that saw the response: at least half of its peak (deconvolve), or those of the window (peak).
    last_volume_index : int
        The last one that the score rests on, -1 where there was none.
    revision : int
        0 = first value; later values replace it.
    maps : tuple of (float, float)
        Score and standard error of each map of an objective, in its order; empty where there is one map.
    lag_s, lag_sd_s, width, width_sd : float
        What was known of the response then: its lag against the canonical one and its width as a multiple of it, with standard deviations;
        NaN where the method learns nothing of it.
    measured, measured_se : float
        The response as the volumes alone have it, not drawn to other images', and what its error has of its own; NaN where it is not known.
    neighbours : tuple of float
        How the error of `measured` follows from those of the scored images before it, the nearest first.
    nuisance : tuple of float
        Probability that each group of nuisance terms is there, as far as known then, see :meth:`rtevo.decode.scorer.Scorer.there`; empty
        where there are none.
    """

    key: tuple[int, int]
    onset_s: float
    score: float
    score_se: float
    volumes_used: int
    last_volume_index: int
    revision: int = 0
    maps: tuple[tuple[float, float], ...] = ()
    lag_s: float = math.nan
    lag_sd_s: float = math.nan
    width: float = math.nan
    width_sd: float = math.nan
    measured: float = math.nan
    measured_se: float = math.nan
    neighbours: tuple[float, ...] = ()
    nuisance: tuple[float, ...] = ()

    def padded(self) -> list[float]:
        """`neighbours` as a slot of the ring ``scores`` holds them."""
        return [*self.neighbours, *[0.0] * (NEIGHBOURS - len(self.neighbours))]


def spearman_brown(r: float) -> float:
    """Reliability of the whole from the correlation of its halves (C. Spearman 1910; W. Brown 1910); a negative correlation stays."""
    return 2 * r / (1 + r) if r > 0 else r
