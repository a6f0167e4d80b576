"""One picture of a placement, for the operator to compare the decoder's head with today's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels.place import sample_linear
from rtevo.kernels.smooth import smooth
from rtevo.place.placement import Placement, Verdict
from rtevo.place.volumes import Seen
from rtevo.records import Grid

__all__ = ["draw_placement"]

Array = NDArray[np.float64]

SPACING_MM = 1.0  # of the picture
MARGIN_MM = 18.0  # around today's head
EDGE_FWHM_MM = 5.0  # smoothing before edge detection
OUTLINE, INNER = 0.55, (0.85, 1.2)  # signal, relative to the surroundings, that edges follow
SHADING_MM, LEAST_SURROUNDINGS = 40.0, 0.4
MAP_FWHM_MM = 4.0
MAP_SHARE = 0.2  # of the largest weight: threshold of the map
ORANGE, BLUE, GREY = "#E69F00", "#56B4E9", "0.55"  # M. Okabe, K. Ito: distinguishable for the colour-blind
FRAMES = {Verdict.GOOD: "#009E73", Verdict.DOUBTFUL: "#E69F00", Verdict.BAD: "#D55E00"}
WORDS = {Verdict.GOOD: "GOOD: the session continues", Verdict.DOUBTFUL: "DOUBTFUL: please decide", Verdict.BAD: "BAD: cannot be used"}
PLANES = (("sagittal", 0, "back", "front"), ("coronal", 1, "L", "R"), ("axial", 2, "L", "R"))


def _onto(volume: NDArray[np.float32], known: NDArray[np.bool_], grid: Grid, matrix: Array, at: Grid) -> tuple[Any, Any]:
    """Sample a volume, moved by `matrix`, on the picture's grid; return values, and the fraction of each that is known."""
    index = np.linalg.inv(matrix @ grid.affine) @ at.affine
    out, share = np.empty(at.shape, np.float32), np.empty(at.shape, np.float32)
    part = known.astype(np.float32)
    sample_linear(np.ascontiguousarray(volume * part), part, index, out, share)
    return out, share


def _picture_grid(points: Array) -> Grid:
    """Return the picture's grid around points of the world, float64 (3, n)."""
    low, high = points.min(axis=1) - MARGIN_MM, points.max(axis=1) + MARGIN_MM
    shape = np.ceil((high - low) / SPACING_MM).astype(int) + 1
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = low
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def draw_placement(
    path: Path,
    placement: Placement,
    reference: ArrayLike,
    grid: Grid,
    today: ArrayLike,
    today_grid: Grid,
    *,
    weight: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Draw the decoder's reference and map over today's volume, in three planes, with figures and verdict.

    Grey: today's volume; orange: edges of the decoder's reference, placed; blue: outline of the decoder's map. Left is left: the picture's
    L and R are the participant's, whatever the scanner's convention.

    Parameters
    ----------
    path : Path
        PNG, PDF or SVG by its suffix.
    placement : Placement
    reference, today : array_like, (X, Y, Z)
        On `grid` and `today_grid`.
    weight : array_like, (X, Y, Z), optional
        The decoder's weights or mask, on `grid`.
    title : str
        Participant and session, before the verdict.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ours, theirs = Seen(reference, grid), Seen(today, today_grid)
    figure = Figure(figsize=(13, 6.2), facecolor="black")
    FigureCanvasAgg(figure)
    words = f"{title}:  {WORDS[placement.verdict]}" if title else WORDS[placement.verdict]
    figure.suptitle(words, color=FRAMES[placement.verdict], fontsize=17, weight="bold")
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.84, bottom=0.25, wspace=0.06)
    if theirs.problem or ours.problem:
        for ax in axes:
            ax.set_axis_off()
    else:
        _draw_planes(axes, placement.matrix, ours, theirs, weight)
    _draw_words(figure, placement, weight is not None)
    figure.savefig(path, dpi=110, facecolor="black")


def _draw_planes(axes: Any, matrix: Array, ours: Seen, theirs: Seen, weight: ArrayLike | None) -> None:
    at = _picture_grid(theirs.points)
    shown, known = _onto(theirs.data, theirs.known, theirs.grid, np.eye(4), at)
    placed, within = _onto(ours.data, ours.known, ours.grid, matrix, at)
    size = np.abs(np.nan_to_num(np.asarray(weight, np.float32))) if weight is not None else None
    mapped = None
    if size is not None:
        mapped = smooth(_onto(size, np.ones(size.shape, np.bool_), ours.grid, matrix, at)[0], (SPACING_MM,) * 3, MAP_FWHM_MM)
    soft = smooth(placed, (SPACING_MM,) * 3, EDGE_FWHM_MM)
    relative = np.asarray(soft / _surroundings(soft), np.float32)
    centre = _middle(matrix, ours, theirs, mapped, at)
    top = float(np.percentile(shown[known > 0.5], 99.5))
    for ax, (name, axis, low, high) in zip(axes, PLANES, strict=True):
        cut = int(centre[axis])
        plane: list[Any] = [None if v is None else np.take(v, cut, axis) for v in (shown, known, relative, within, mapped)]
        _draw_plane(ax, plane, top, float(mapped.max()) if mapped is not None else 0.0)
        place_mm = at.affine[axis, 3] + SPACING_MM * cut
        ax.set_title(f"{name}  {'xyz'[axis]} = {place_mm:.0f} mm", color="0.85", fontsize=11)
        for words, x in ((low, 0.015), (high, 0.985)):
            ax.text(x, 0.5, words, transform=ax.transAxes, color="white", fontsize=15 if len(words) == 1 else 11, weight="bold",
                    ha="left" if x < 0.5 else "right", va="center")  # fmt: skip


def _middle(matrix: Array, ours: Seen, theirs: Seen, mapped: Any, at: Grid) -> NDArray[np.int64]:
    """Return the voxel of the planes: the middle of the map, or of the reference's head, inside the picture."""
    points = matrix[:3, :3] @ ours.points + matrix[:3, 3:]
    world = points.mean(axis=1)
    if mapped is not None and (mapped > 0).any():
        strong = np.argwhere(mapped >= np.percentile(mapped[mapped > 0], 90))
        world = at.affine[:3, 3] + SPACING_MM * np.median(strong, axis=0)
    voxel = np.rint((world - at.affine[:3, 3]) / SPACING_MM).astype(np.int64)
    return np.asarray(np.clip(voxel, 0, np.array(at.shape) - 1), np.int64)


def _surroundings(soft: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean signal of the head around each voxel, sampled coarsely because it is smooth."""
    step = 4
    head = (soft > 0.8 * OUTLINE)[::step, ::step, ::step].astype(np.float32)
    size = (step * SPACING_MM,) * 3
    mean = smooth(soft[::step, ::step, ::step] * head, size, SHADING_MM) / np.maximum(smooth(head, size, SHADING_MM), 1e-3)
    wide = np.kron(mean, np.ones((step,) * 3, np.float32))[tuple(slice(n) for n in soft.shape)]
    return np.maximum(smooth(wide, (SPACING_MM,) * 3, 2.5 * step * SPACING_MM), np.float32(LEAST_SURROUNDINGS))


def _draw_plane(ax: Any, plane: list[Any], top: float, most: float) -> None:
    """Draw one plane: today in grey, its field of view dotted, the reference's edges, the map's outline."""
    shown, known, relative, within, mapped = plane
    ax.imshow(np.where(known > 0.5, shown, 0).T, origin="lower", cmap="gray", vmin=0, vmax=1.15 * top, interpolation="bilinear")
    if (known > 0.5).any() and not (known > 0.5).all():
        ax.contour(known.T, [0.5], colors=GREY, linewidths=0.9, linestyles="dotted")
    seen = np.where(within > 0.5, relative, np.nan)
    for levels, width in ((INNER, 0.8), ((OUTLINE,), 2.0)):
        if (within > 0.5).any() and np.nanmin(seen) < levels[-1] and np.nanmax(seen) > levels[0]:
            ax.contour(seen.T, levels, colors=ORANGE, linewidths=width, linestyles="solid")
    if mapped is not None and mapped.max(initial=0) > MAP_SHARE * most > 0:
        ax.contour(mapped.T, [MAP_SHARE * most], colors=BLUE, linewidths=1.8)
    ax.set_axis_off()


def _draw_words(figure: Any, placement: Placement, mapped: bool) -> None:
    """Write the legend, the figures and the reasons."""
    import textwrap

    figure.text(0.02, 0.205, "grey: today", color="0.85", fontsize=12)
    figure.text(0.115, 0.205, "orange: edges of the decoder's reference", color=ORANGE, fontsize=12)
    figure.text(0.66, 0.205, "dotted: today's field of view", color=GREY, fontsize=12)
    if mapped:
        figure.text(0.40, 0.205, "blue: outline of the decoder's map", color=BLUE, fontsize=12)
    error = f"expected error {placement.expected_error_mm:.2f} mm" if placement.expected_error_mm < 50 else "error not known"
    shares = f"head in view {placement.overlap:.0%}    weight in view {placement.weight_kept:.0%}"
    figure.text(0.02, 0.155, f"correlation {placement.correlation:.2f}    {shares}    {error}", color="white", fontsize=13)
    lines = [line for reason in placement.reasons for line in textwrap.wrap(reason, 165)]
    figure.text(0.02, 0.13, "\n".join(lines[:5]), color="0.8", fontsize=10, va="top")
