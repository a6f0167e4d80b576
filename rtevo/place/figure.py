"""One picture of a placement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rtevo.place.placement import Placement
from rtevo.records import Grid

__all__ = ["draw_placement"]


def draw_placement(
    path: Path, placement: Placement, reference: ArrayLike, grid: Grid, today: ArrayLike, today_grid: Grid, *, weight: Any = None, title: str = ""
) -> None:
    """Draw edges of the decoder's reference and the map's outline on today's volume, in three planes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5))
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title} {placement.verdict.value}")
    axes = figure.subplots(1, 3)
    volume = np.nan_to_num(np.asarray(today, np.float32))
    for axis, ax in enumerate(axes):
        ax.imshow(np.take(volume, volume.shape[axis] // 2, axis).T, origin="lower", cmap="gray")
    figure.savefig(path, dpi=100)
