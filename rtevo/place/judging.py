"""Judgement of a placement: its expected error, and a verdict with reasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.place.placing import Found
from rtevo.place.volumes import Seen
from rtevo.records import Grid

__all__ = ["Evidence", "expected_error_mm", "verdict_of"]

Array = NDArray[np.float64]

# Calibrated and chosen on known placements that are not among the reported ones: docs/placement.md
ERROR_SCALE, ERROR_FLOOR = 2.0, 0.01  # of the sandwich's figure; of the largest voxel edge
GOOD_CORRELATION, LEAST_CORRELATION = 0.70, 0.30
GOOD_ERROR_MM, MOST_ERROR_MM = 1.0, 5.0
USUAL_ERROR_MM, MORE_PER_MM, MOST_NEEDED = 0.35, 0.4, 0.95  # error above which a higher correlation is needed, its slope, and its maximum
GOOD_SHARE, LEAST_SHARE = 0.55, 0.40  # of the decoder's head, and of its weight, in today's field of view
LESS_SHARE = 0.8  # of the weight: below it, a note without consequences
RIVAL = 0.93
LOOK = "check that the edges of the decoder's reference follow today's brain"
_MEASURES = (
    ("correlation", GOOD_CORRELATION, LEAST_CORRELATION, "The correlation of the decoder's reference with today's volume",
     f"check that this is the decoder's participant, and {LOOK}"),
    ("overlap", GOOD_SHARE, LEAST_SHARE, "The share of the decoder's head that lies in today's field of view",
     "move the slices, or use more slices, so that they cover the decoder's reference"),
    ("weight_kept", GOOD_SHARE, LEAST_SHARE, "The share of the decoder's weight that lies in today's field of view",
     "move the slices over the decoder's map"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evidence:
    """The basis of a verdict; see :class:`rtevo.place.Placement` for the first four."""

    correlation: float
    overlap: float
    weight_kept: float
    expected_error_mm: float
    rival: float
    backwards: bool
    posture: str
    grid: Grid
    today_grid: Grid


def expected_error_mm(found: Found, ours: Seen, theirs: Seen) -> float:
    """Return the expected error, mean over the head, from the scatter of the blocks (sandwich estimator: P. J. Huber, 1967), calibrated."""
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
    """Return good, doubtful or bad, with sentences."""
    bad, doubtful = _against(e)
    word = "bad" if bad else "doubtful" if doubtful else "good"
    return word, [*bad, *doubtful, *_notes(e)]


def _against(e: Evidence) -> tuple[list[str], list[str]]:
    """Return the reasons that make a placement bad, and those that make it doubtful."""
    bad: list[str] = []
    doubtful: list[str] = []
    if e.backwards:
        bad.append("The transform was given backwards: its inverse fits. Use the transform from the decoder's world to today's.")
    if e.posture:
        remedy = "check the participant's position as entered at the scanner, and the volume's orientation"
        bad.append(f"Today's head fits {e.posture}: {remedy}.")
    for value, good, least, what, remedy in _MEASURES:
        found = getattr(e, value)
        if value == "correlation":  # at the same correlation, another head's blocks disagree more than those of the same head
            good = min(good + MORE_PER_MM * max(e.expected_error_mm - USUAL_ERROR_MM, 0.0), MOST_NEEDED)
        sentence = f"{what} is {found:.2f}, expected at least {good:.2f}: {remedy}."
        if found < good:
            (bad if found < least else doubtful).append(sentence)
    if e.expected_error_mm > GOOD_ERROR_MM and e.correlation >= LEAST_CORRELATION:
        remedy = f"{LOOK}, or try other volumes"
        sentence = f"The placement may err by {e.expected_error_mm:.1f} mm, expected at most {GOOD_ERROR_MM:.1f} mm: {remedy}."
        (bad if e.expected_error_mm > MOST_ERROR_MM else doubtful).append(sentence)
    if e.rival > RIVAL and not bad:
        doubtful.append(f"Another placement fits nearly as well: {LOOK}.")
    return bad, doubtful


def _notes(e: Evidence) -> list[str]:
    """Return differences that do not affect the verdict."""
    notes = []
    if GOOD_SHARE <= e.weight_kept < LESS_SHARE:
        notes.append(f"{1 - e.weight_kept:.0%} of the decoder's weight lies outside today's field of view and is left out.")
    ours, theirs = e.grid.voxel_size_mm, e.today_grid.voxel_size_mm
    if np.abs(np.sort(ours) - np.sort(theirs)).max() > 0.1:
        a, b = (" x ".join(f"{s:.2g}" for s in v) for v in (theirs, ours))
        notes.append(f"Today's voxels are {a} mm, the decoder's {b} mm.")
    return notes
