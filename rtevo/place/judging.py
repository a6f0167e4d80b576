"""What is to be thought of a placement: its expected error and a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.place.placing import Found
from rtevo.place.volumes import Seen
from rtevo.records import Grid

__all__ = ["Evidence", "expected_error_mm", "verdict_of"]

Array = NDArray[np.float64]

ERROR_SCALE, ERROR_FLOOR = 1.5, 0.03  # calibrated on known placements: see docs/placement.md
GOOD_CORRELATION, LEAST_CORRELATION = 0.6, 0.35
GOOD_ERROR_MM, MOST_ERROR_MM = 1.0, 4.0
GOOD_KEPT, LEAST_KEPT = 0.8, 0.5
GOOD_OVERLAP, LEAST_OVERLAP = 0.5, 0.25
RIVAL = 0.9


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a verdict rests on; see :class:`rtevo.place.Placement` for the first four."""

    correlation: float
    overlap: float
    weight_kept: float
    expected_error_mm: float
    rival: float
    backwards: bool
    matrix: Array
    grid: Grid
    today_grid: Grid


def expected_error_mm(found: Found, ours: Seen, theirs: Seen) -> float:
    """Expect an error from the scatter of the data's blocks (the sandwich estimator: P. J. Huber, 1967), calibrated; mean over the head."""
    fit, points = found.fit, ours.points
    scale = np.sqrt(np.maximum(np.diag(fit.hessian), 1e-12))
    bread = np.linalg.pinv(fit.hessian / np.outer(scale, scale), hermitian=True) / np.outer(scale, scale)
    middle = fit.blocks - fit.blocks.mean(axis=0)
    covariance = bread @ (middle.T @ middle) @ bread
    offset = points[:, :: max(points.shape[1] // 500, 1)] - found.pair.centre[:, None]
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(6))
    moved = np.stack([np.cross(np.broadcast_to(root[3:, n], offset.T.shape), offset.T) + root[:3, n] for n in range(6)])
    error = float(np.sqrt((moved**2).sum(axis=(0, 2))).mean()) * 0.92
    return float(np.hypot(ERROR_SCALE * error, ERROR_FLOOR * float(max(ours.grid.voxel_size_mm.max(), theirs.grid.voxel_size_mm.max()))))


def verdict_of(e: Evidence) -> tuple[str, list[str]]:
    """Return good, doubtful or bad, and sentences."""
    bad, doubtful = _against(e)
    word = "bad" if bad else "doubtful" if doubtful else "good"
    return word, [*bad, *doubtful, *_notes(e)]


def _against(e: Evidence) -> tuple[list[str], list[str]]:
    bad, doubtful = [], []
    if e.backwards:
        bad.append("The transform was given backwards: its inverse fits much better. Give the one from the decoder's world to today's.")
    for value, good, least, what, remedy in (
        (e.correlation, GOOD_CORRELATION, LEAST_CORRELATION, "correlation of both volumes", "check that this is the decoder's participant"),
        (e.overlap, GOOD_OVERLAP, LEAST_OVERLAP, "share of the decoder's head in the field of view", "move the slices"),
        (e.weight_kept, GOOD_KEPT, LEAST_KEPT, "share of the decoder's weight in the field of view", "move the slices over the map"),
    ):
        sentence = f"The {what} is {value:.2f}, expected at least {good}: {remedy}."
        if value < least:
            bad.append(sentence)
        elif value < good:
            doubtful.append(sentence)
    if e.expected_error_mm > MOST_ERROR_MM:
        bad.append(f"The placement may err by {e.expected_error_mm:.1f} mm: try other volumes.")
    elif e.expected_error_mm > GOOD_ERROR_MM:
        doubtful.append(f"The placement may err by {e.expected_error_mm:.1f} mm, expected at most {GOOD_ERROR_MM:.0f}: look at the edges.")
    if e.rival > RIVAL:
        doubtful.append("Another placement fits nearly as well: look at the edges.")
    return bad, doubtful


def _notes(e: Evidence) -> list[str]:
    ours, theirs = e.grid.voxel_size_mm, e.today_grid.voxel_size_mm
    if np.abs(np.sort(ours) - np.sort(theirs)).max() > 0.1:
        a, b = (" x ".join(f"{s:.2g}" for s in v) for v in (theirs, ours))
        return [f"Today's voxels are {a} mm, the decoder's {b} mm."]
    return []
