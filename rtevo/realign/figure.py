"""One picture of a run's motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.realign.measures import framewise_displacement

__all__ = ["draw_motion"]

NAMES = ("x", "y", "z")
HIGH_MM = 0.5  # framewise displacement above which Power et al. 2012 left volumes out


def draw_motion(path: Path, params: NDArray[np.float64], tr_s: float, title: str) -> None:
    """Draw translations, rotations and framewise displacement over time.

    Parameters
    ----------
    path : Path
        PNG, PDF or SVG by its suffix.
    params : ndarray, float64 (n, 6)
        mm and rad; NaN rows are marked as volumes without motion.
    tr_s : float
        Repetition time, s; NaN draws over volumes.
    title : str
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = np.isfinite(tr_s)
    at = np.arange(len(params)) * (tr_s if known else 1.0)
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    shift, turn, step = figure.subplots(3, 1, sharex=True)
    for axes, values, label in ((shift, params[:, :3], "translation (mm)"), (turn, np.rad2deg(params[:, 3:]), "rotation (degrees)")):
        for name, line in zip(NAMES, values.T, strict=True):
            axes.plot(at, line, label=name, linewidth=1.2)
        axes.set_ylabel(label)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.legend(loc="upper left", ncols=3, frameon=False)
    displacement = framewise_displacement(params)
    step.fill_between(at, 0, np.nan_to_num(displacement), color="0.35", step="mid", linewidth=0)
    top = max(float(np.nanmax(displacement, initial=0.0)) * 1.15, 0.1)
    if top > HIGH_MM:
        step.axhline(HIGH_MM, color="tab:red", linewidth=0.8, linestyle="--", label=f"{HIGH_MM} mm")
        step.legend(loc="upper left", frameon=False)
    step.set_ylim(0, top)
    step.set_ylabel("framewise\ndisplacement (mm)")
    step.set_xlabel("time (s)" if known else "volume")
    lost = at[~np.isfinite(params).all(axis=1)]
    for axes in (shift, turn, step):
        for t in lost:
            axes.axvline(t, color="tab:orange", alpha=0.6, linewidth=1.0)
        axes.spines[["top", "right"]].set_visible(False)
    middle = f", mean framewise displacement {np.nanmean(displacement[1:]):.3f} mm" if np.isfinite(displacement[1:]).any() else ""
    without = f", {len(lost)} without motion (orange)" if len(lost) else ""
    figure.suptitle(f"{title}: {len(params)} volumes{middle}{without}")
    figure.savefig(path, dpi=110)
