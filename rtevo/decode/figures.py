"""One page about a decoder: its mask, its weights, the quality of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.decode.carry import reorder, same_voxels
from rtevo.decode.folder import Decoder
from rtevo.decode.train import Performance
from rtevo.records import Grid

__all__ = ["draw_map", "draw_page", "draw_selected"]

_SLICES = 12
ENDS = ("PA", "LR", "LR")  # of sagittal, coronal and axial planes in RAS+ order, from left to right


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
    decoder = _in_ras(decoder)
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
    axes[1].set(xlabel="volume", ylabel="mm", title="motion (rotations at 50 mm)")
    axes[2].set(xlabel="volume", ylabel="mm", title="framewise displacement")
    value = "not measurable" if np.isnan(found.value) else f"{found.value:.2f} (p = {found.p_value:.3f}, {found.blocks} blocks)"
    figure.suptitle(f"decoder '{decoder.name}'    held-out performance: {value}")
    figure.savefig(path, dpi=100)


def draw_map(path: Path, reference: NDArray[np.float32], grid: Grid, values: NDArray[np.float64], title: str) -> None:
    """Draw a map's outline (a fifth of its largest weight; red: for, blue: against) on a reference, in three planes through its middle.

    Planes are seen in RAS+ order, with left and right named.

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
    from matplotlib.lines import Line2D

    order = same_voxels(grid, _ras(grid))
    assert order is not None
    reference, values, grid = order(reference), order(values), order.grid(grid)
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
        _name_sides(axis, ENDS[k])
        axis.set_axis_off()
    lines = [Line2D([], [], color=color) for color in ("tab:red", "tab:blue")]
    figure.legend(lines, ["for", "against"], loc="outside lower center", ncols=2, fontsize=9, title="a fifth of the largest weight")
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
    picture = None
    for axis, z in zip(axes, levels, strict=False):
        axis.imshow(decoder.reference[:, :, z].T, cmap="gray", origin="lower", vmin=0, vmax=max(high, 1e-30))
        if overlay is None:
            axis.contour(decoder.mask[:, :, z].T, levels=[0.5], colors="tab:orange", linewidths=0.8)
        else:
            shown = np.ma.masked_where(np.abs(overlay[:, :, z]) < 0.15, overlay[:, :, z])
            picture = axis.imshow(shown.T, cmap="coolwarm", origin="lower", vmin=-0.7, vmax=0.7, alpha=0.8)
        axis.set_title(f"z = {z}", fontsize=8)
        _name_sides(axis, ENDS[2])
    for axis in axes:
        axis.set_axis_off()
    if picture is not None:
        part.colorbar(picture, ax=list(axes), shrink=0.7, label="share of the largest weight")
    part.suptitle(title)


def _ras(grid: Grid) -> Grid:
    """The same voxels stored in RAS+ order, as nearly as their axes are."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    turn = io_orientation(grid.affine)
    shape = np.zeros(3, int)
    shape[turn[:, 0].astype(int)] = grid.shape
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), grid.affine @ inv_ornt_aff(turn, grid.shape))


def _in_ras(decoder: Decoder) -> Decoder:
    """A decoder stored in RAS+ order, so that pictures of it have left at the left."""
    return reorder(decoder, _ras(decoder.grid)) or decoder


def _name_sides(axis: Any, ends: str) -> None:
    """Name the left and the right end of a plane."""
    for x, text in zip((0.03, 0.97), ends, strict=True):
        axis.text(x, 0.5, text, color="yellow", ha="center", va="center", weight="bold", transform=axis.transAxes)


def draw_selected(
    path: Path,
    decoder: Decoder,
    tsnr: NDArray[np.float64],
    motion_mm: Sequence[NDArray[np.float64]],
    found: Performance,
    curve: Sequence[tuple[int, float]],
    voxels: int,
    weak: bool,
) -> None:
    """Draw the page of a map on selected voxels: three planes through its strongest place, and how well it does over the number of voxels.

    Parameters
    ----------
    path : Path
        ``.png`` or ``.pdf``.
    decoder : Decoder
    tsnr, motion_mm, found
        As in :func:`draw_page`.
    curve : sequence of (int, float)
        Number of voxels and held-out agreement of volumes.
    voxels : int
        Chosen number.
    weak : bool
        Parts of blocks were held out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(5, 4))
    _planes(parts[0], decoder)
    axes = parts[1].subplots(1, 4)
    counts, values = np.array([count for count, _ in curve]), np.array([value for _, value in curve])
    axes[0].semilogx(counts, values, "o-", color="0.3")
    axes[0].axvline(voxels, color="tab:red", linestyle=":", label=f"chosen: {voxels}")
    axes[0].set(xlabel="voxels", ylabel="correlation with predicted responses", title="held-out volumes" + (" (weak)" if weak else ""))
    axes[0].legend(fontsize=8)
    _decisions(axes[1], found)
    axes[1].set(xlabel="own (1) or other (-1)", ylabel="held-out score (noise sd)")
    axes[2].hist(tsnr, bins=60, color="0.4")
    axes[2].set(xlabel="tSNR", ylabel="voxels", title=f"median tSNR {np.median(tsnr):.0f}")
    for motion in motion_mm:
        axes[3].plot(motion - motion[np.isfinite(motion).all(axis=1)][0], linewidth=0.8)
    axes[3].set(xlabel="volume", ylabel="mm", title="motion (rotations at 50 mm)")
    value = "not measurable" if np.isnan(found.value) else f"{found.value:.2f}" + (" (weak: see decoder.json)" if weak else "")
    figure.suptitle(f"decoder '{decoder.name}'    held-out performance: {value}")
    figure.savefig(path, dpi=80)


def _planes(part: Any, decoder: Decoder) -> None:
    """Three planes of the reference, seen in RAS+ order with left and right named, with the map and its legend over them."""
    from nibabel.orientations import apply_orientation, io_orientation

    turn = io_orientation(decoder.grid.affine)
    reference, weights = (np.asarray(apply_orientation(each, turn)) for each in (decoder.reference, decoder.weights))
    size_mm = np.zeros(3)
    size_mm[turn[:, 0].astype(int)] = decoder.grid.voxel_size_mm
    high = max(float(np.percentile(reference, 99.5)), 1e-30)
    limit = max(float(np.percentile(np.abs(weights[weights != 0]), 98)), 1e-30)
    smooth = ndimage.gaussian_filter(np.abs(weights), 1.0)
    middle = np.unravel_index(int(smooth.argmax()), smooth.shape)
    axes = part.subplots(1, 3)
    picture = None
    for k, (axis, name, ends) in enumerate(zip(axes, ("sagittal", "coronal", "axial"), ENDS, strict=True)):
        across, up = (size_mm[n] for n in range(3) if n != k)
        axis.imshow(np.take(reference, middle[k], k).T, cmap="gray", origin="lower", vmin=0, vmax=high, aspect=up / across)
        plane = np.take(weights, middle[k], k).T
        shown = np.ma.masked_where(plane == 0, plane)
        picture = axis.imshow(shown, cmap="coolwarm", origin="lower", vmin=-limit, vmax=limit, alpha=0.85, aspect=up / across)
        _name_sides(axis, ends)
        axis.set_title(f"{name}, through the map's peak", fontsize=9)
        axis.set_axis_off()
    part.colorbar(picture, ax=list(axes), shrink=0.7, label="weight (red: for, blue: against)")
    part.suptitle(f"map '{decoder.name}', {int((weights != 0).sum())} voxels, on the reference")
