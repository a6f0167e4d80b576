"""One page about a decoder: where it looks, what it weighs, how good the run was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.folder import Decoder
from rtevo.decode.train import Performance
from rtevo.records import Grid

__all__ = ["draw_map", "draw_page"]

_SLICES = 12


def draw_page(
    path: Path, decoder: Decoder, tsnr: NDArray[np.float64], motion_mm: Sequence[NDArray[np.float64]], found: Performance
) -> None:
    """Draw the page as a picture.

    Parameters
    ----------
    path : Path
        ``.png`` or ``.pdf``.
    decoder : Decoder
    tsnr : ndarray, float64 (voxels,)
        Temporal signal-to-noise ratio of the mask's voxels.
    motion_mm : sequence of ndarray, float64 (n, 6)
        Of each run; NaN where a volume could not be aligned.
    found : Performance
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 13), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=(4, 4, 3))
    top, middle, bottom = parts
    weights = decoder.weights / max(float(np.abs(decoder.weights).max()), 1e-30)
    levels = _levels(decoder.mask)
    _montage(top, decoder, levels, "mask on the reference", None)
    _montage(middle, decoder, levels, f"weight map '{decoder.name}' (red: for, blue: against)", weights)
    axes = bottom.subplots(1, 4)
    _decisions(axes[3], found)
    axes[0].hist(tsnr, bins=60, color="0.4")
    axes[0].set(xlabel="tSNR", ylabel="voxels", title=f"median tSNR {np.median(tsnr):.0f}")
    for run, motion in enumerate(motion_mm):
        axes[1].plot(motion - motion[np.isfinite(motion).all(axis=1)][0], linewidth=0.8)
        steps = np.abs(np.diff(motion, axis=0)).sum(axis=1)
        axes[2].plot(np.arange(1, len(motion)), steps, linewidth=0.8, label=f"run {run + 1}")
    axes[1].set(xlabel="volume", ylabel="mm", title="motion (rotations on a 50 mm sphere)")
    axes[2].set(xlabel="volume", ylabel="mm", title="framewise displacement")
    value = "not measurable" if np.isnan(found.value) else f"{found.value:.2f} (p = {found.p_value:.3f}, {found.blocks} blocks)"
    figure.suptitle(f"decoder '{decoder.name}'    held-out performance: {value}")
    figure.savefig(path, dpi=100)


def draw_map(path: Path, reference: NDArray[np.float32], grid: Grid, values: NDArray[np.float64], title: str) -> None:
    """Draw a map's outline (a fifth of its largest weight; red: for, blue: against) on a reference, in three planes through its middle.

    Parameters
    ----------
    path : Path
        ``.png`` or ``.pdf``.
    reference, values : ndarray (X, Y, Z)
    grid : Grid
        Of both.
    title : str
    """
    from matplotlib.figure import Figure

    size, high = np.abs(values), float(np.percentile(reference, 99.5))
    middle = [n // 2 for n in grid.shape]
    if size.sum() > 0:
        along = [np.moveaxis(size, k, 0).sum(axis=(1, 2)) for k in range(3)]
        middle = [round(float(share @ np.arange(len(share)) / share.sum())) for share in along]
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    for k, axis in enumerate(figure.subplots(1, 3)):
        across, up = (float(grid.voxel_size_mm[n]) for n in range(3) if n != k)
        axis.imshow(np.take(reference, middle[k], k).T, cmap="gray", origin="lower", vmin=0, vmax=max(high, 1e-30), aspect=up / across)
        plane, level = np.take(values, middle[k], k).T, 0.2 * float(size.max())
        for sign, color in ((1.0, "tab:red"), (-1.0, "tab:blue")):
            if level > 0 and (sign * plane > level).any():
                axis.contour(sign * plane, levels=[level], colors=color, linewidths=1.0)
        axis.set_axis_off()
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def _decisions(axis: Any, found: Performance) -> None:
    """Held-out decision of each block over its value."""
    axis.axhline(0, color="0.8", linewidth=0.8)
    for value, decision in found.decisions:
        axis.plot(value, decision, "o", color="tab:red" if value > 0 else "tab:blue", markersize=5, alpha=0.7)
    axis.set(xlabel="block's value", ylabel="held-out decision", title=f"cross-validation, {found.folds} folds")
    if not found.decisions:
        axis.text(0.5, 0.5, "too few blocks", ha="center", transform=axis.transAxes)


def _levels(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Axial slices that hold the mask."""
    inside = np.flatnonzero(mask.any(axis=(0, 1)))
    return np.unique(np.linspace(inside[0], inside[-1], _SLICES).round().astype(np.int64))


def _montage(part: Any, decoder: Decoder, levels: NDArray[np.int64], title: str, overlay: NDArray[np.float32] | None) -> None:
    """Axial slices of the reference, with the mask's outline or a map over them."""
    axes = part.subplots(2, -(-len(levels) // 2)).ravel()
    high = float(np.percentile(decoder.reference[decoder.mask], 99.5))
    for axis, z in zip(axes, levels, strict=False):
        axis.imshow(decoder.reference[:, :, z].T, cmap="gray", origin="lower", vmin=0, vmax=max(high, 1e-30))
        if overlay is None:
            axis.contour(decoder.mask[:, :, z].T, levels=[0.5], colors="tab:orange", linewidths=0.8)
        else:
            shown = np.ma.masked_where(np.abs(overlay[:, :, z]) < 0.15, overlay[:, :, z])
            axis.imshow(shown.T, cmap="coolwarm", origin="lower", vmin=-0.7, vmax=0.7, alpha=0.8)
        axis.set_title(f"z = {z}", fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    part.suptitle(title)
