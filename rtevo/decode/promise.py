"""Quality of a decoder's scores, from the held-out blocks in its folder.

The quality of a map is the correlation r of its scores with what was shown, over the blocks that its fit had not seen (R. A. Fisher 1921
for the interval). It is of category blocks, averaged over many volumes: what their noise takes away is small, and what a map knows of finer
differences than those between the categories it does not say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.decode.folder import SETTINGS, Decoder, maps_in, own_settings
from rtevo.errors import DecoderError
from rtevo.objective import parse_objective

__all__ = ["MapQuality", "map_quality"]

_FEWEST = 4  # blocks


@dataclass(frozen=True)
class MapQuality:
    """Quality of a map, or of an objective over several.

    Parameters
    ----------
    r : float
        Correlation of held-out scores with what was shown.
    low, high : float
        Its 95% interval.
    blocks : int
        Held out (parts of blocks where `weak`).
    weak : bool
        Parts of blocks were held out, which share slow noise: r is too high.
    """

    r: float
    low: float
    high: float
    blocks: int
    weak: bool

    def __str__(self) -> str:
        weak = "WEAK: parts of blocks share slow noise; " if self.weak else ""
        return f"r = {self.r:.2f} ({weak}95% interval {self.low:.2f} to {self.high:.2f}, {self.blocks} held-out blocks)"


def map_quality(folder: Path, objective: str = "") -> MapQuality:
    """Return the quality of a decoder folder's map, or of an objective over its maps.

    Parameters
    ----------
    folder : Path
    objective : str
        A weighted sum of maps, see :mod:`rtevo.objective`; empty: the only map.

    Raises
    ------
    DecoderError
        The folder has no results of held-out blocks, or none of this map.
    """
    maps = list(own_settings(folder) or maps_in(folder)) if folder.is_dir() else []
    try:
        goal = parse_objective(objective).over(maps) if objective else None
    except ValueError as problem:
        raise DecoderError(f"{folder}: objective {problem}") from None
    if goal is not None and not goal.is_linear:
        raise DecoderError(f"{folder}: objective {objective!r}: expected a weighted sum of maps: the folder rates no others")
    decoder = Decoder.load(folder, goal.maps[0] if goal is not None else None)
    stored = decoder.settings.get("performance")
    found: dict[str, Any] = stored if isinstance(stored, dict) else {}
    try:
        rows, labels = np.array(found["decisions"], np.float64), np.array(found.get("labels", ()), np.float64)
        if len(maps) > 1:
            weights = np.zeros(len(maps))
            for name, weight in zip((goal.maps if goal else (decoder.name,)), (goal.linear if goal else (1.0,)), strict=True):
                weights[maps.index(name)] = weight
            scores, shown = rows @ weights, weights[labels.astype(np.int64)]
        else:
            shown, scores = rows.T
            scores = scores * (goal.linear[0] if goal else 1.0)
            shown = shown * (goal.linear[0] if goal else 1.0)
    except (KeyError, ValueError, TypeError, IndexError):
        raise DecoderError(f"{folder / SETTINGS}: expected the map's results on held-out blocks (written by `fit`), found none") from None
    known = np.isfinite(scores)
    scores, shown = scores[known], shown[known]
    if len(scores) < _FEWEST or not (np.ptp(scores) > 0 and np.ptp(shown) > 0):
        raise DecoderError(f"{folder / SETTINGS}: expected at least {_FEWEST} held-out blocks of both sides, found {len(scores)}")
    r = float(np.corrcoef(scores, shown)[0, 1])
    z, error = math.atanh(min(max(r, -0.999999), 0.999999)), 1.96 / math.sqrt(max(len(scores) - 3, 1))
    return MapQuality(r, math.tanh(z - error), math.tanh(z + error), len(scores), bool(found.get("weak", False)))
