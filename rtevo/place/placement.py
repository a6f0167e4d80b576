"""A placement: the transform, its figures, and sentences for the operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels._compile import cache_lock
from rtevo.place.judging import LEAST_CORRELATION, Evidence, expected_error_mm, verdict_of
from rtevo.place.placing import SURE_CORRELATION, Found, compare, find, look
from rtevo.place.volumes import Seen
from rtevo.records import Grid

__all__ = ["Placement", "Verdict", "inside", "judge", "place", "warm_up"]

Array = NDArray[np.float64]

MOST_ERROR_MM = 100.0  # expected error without information
LEAST_SCORE = 0.35  # smallest score of an inverse that fits
BACKWARDS = 1.15  # score of the inverse relative to the matrix's, from which on the matrix counts as inverted


class Verdict(StrEnum):
    """Whether a placement can be used."""

    GOOD = "good"
    DOUBTFUL = "doubtful"  # the operator decides
    BAD = "bad"


@dataclass(frozen=True, eq=False)
class Placement:
    """The position of today's head relative to the decoder's.

    Parameters
    ----------
    matrix : ndarray, float64 (4, 4)
        Decoder's world to today's world, RAS+ mm: the point p of the decoder's reference is at ``matrix @ p`` today.
    correlation : float
        Correlation of both volumes after placement, each relative to its surroundings.
    overlap : float
        Share of the decoder's reference head inside today's field of view.
    weight_kept : float
        Share of the decoder's weight inside today's field of view.
    expected_error_mm : float
        Expected mean error over the brain, mm.
    verdict : Verdict
    reasons : tuple of str
        Sentences for the operator.
    """

    matrix: Array
    correlation: float
    overlap: float
    weight_kept: float
    expected_error_mm: float
    verdict: Verdict
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "matrix": [[float(x) for x in row] for row in self.matrix],
            "correlation": self.correlation,
            "overlap": self.overlap,
            "weight_kept": self.weight_kept,
            "expected_error_mm": self.expected_error_mm,
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
        }


def inside(matrix: ArrayLike, grid: Grid, today_grid: Grid, margin_voxels: float = 0.5) -> NDArray[np.bool_]:
    """Return which voxels of one grid lie in the field of view of another.

    Parameters
    ----------
    matrix : array_like, (4, 4)
        World of `grid` to world of `today_grid`, RAS+ mm.
    margin_voxels : float
        Margin beyond the edge voxels' centres: 0.5 reaches to the faces, 0 to the centres.

    Returns
    -------
    ndarray, bool (X, Y, Z)
    """
    index = np.linalg.inv(today_grid.affine) @ np.asarray(matrix, np.float64) @ grid.affine
    found = np.ones(grid.shape, np.bool_)
    steps = [np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(grid.shape)]
    for row, n in zip(index[:3], today_grid.shape, strict=True):
        at = row[0] * steps[0] + row[1] * steps[1] + row[2] * steps[2] + row[3]
        found &= (at >= -margin_voxels) & (at <= n - 1 + margin_voxels)
    return found


def place(
    reference: ArrayLike,
    grid: Grid,
    today: ArrayLike,
    today_grid: Grid,
    *,
    weight: ArrayLike | None = None,
    starts: Sequence[ArrayLike] = (),
) -> Placement:
    """Find the decoder's head in today's volume.

    Parameters
    ----------
    reference : array_like, (X, Y, Z)
        The decoder's reference, on `grid`. NaN, and solid zeros that cut through the head, count as outside the field of view.
    grid, today_grid : Grid
    today : array_like, (x, y, z)
        Today's volume, on `today_grid`; as `reference`.
    weight : array_like, (X, Y, Z), optional
        Weight of each voxel of the decoder (the sign does not matter), or its mask. Default: the head.
    starts : sequence of array_like, (4, 4)
        Initial placements, in addition to the scanner's coordinates and a search of all shifts and turns.

    Returns
    -------
    Placement
        With the verdict `bad` if no placement was found; the matrix is then the best candidate, or the identity.

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    ours, theirs = Seen(reference, grid), Seen(today, today_grid)
    size = _weight(weight, ours)
    if problem := _problem(ours, theirs):
        return _refused(problem)
    return _placement(find(ours, theirs, [np.eye(4), *starts]), ours, theirs, size)


def judge(
    matrix: ArrayLike, reference: ArrayLike, grid: Grid, today: ArrayLike, today_grid: Grid, *, weight: ArrayLike | None = None
) -> Placement:
    """Measure an external placement; if its inverse fits much better, it is inverted, and bad.

    Parameters
    ----------
    matrix : array_like, (4, 4)
        Decoder's world to today's world, RAS+ mm.
    reference, grid, today, today_grid, weight
        As for :func:`place`.

    Raises
    ------
    ValueError
        If shapes do not fit, or the matrix is not finite and rigid.
    """
    given = _rigid(matrix)
    ours, theirs = Seen(reference, grid), Seen(today, today_grid)
    size = _weight(weight, ours)
    if problem := _problem(ours, theirs):
        return _refused(problem, given)
    found = look(ours, theirs, given)
    return _placement(found, ours, theirs, size, found.fit.correlation < SURE_CORRELATION and _backwards(given, ours, theirs))


def _backwards(given: Array, ours: Seen, theirs: Seen) -> bool:
    """Return whether the inverse of a placement fits much better than the placement."""
    if np.allclose(given, np.eye(4), atol=1e-3):
        return False
    there, back = compare(ours, theirs, [given, np.asarray(np.linalg.inv(given), np.float64)])
    return back.score > max(BACKWARDS * there.score, LEAST_SCORE)


def _rigid(matrix: ArrayLike) -> Array:
    given = np.array(matrix, np.float64)
    if given.shape != (4, 4) or not np.isfinite(given).all() or not np.allclose(given[3], [0, 0, 0, 1]):
        raise ValueError(f"judge matrix: expected a finite 4 x 4 matrix whose last row is 0 0 0 1, got {given!r}")
    if not np.allclose(given[:3, :3].T @ given[:3, :3], np.eye(3), atol=0.02) or np.linalg.det(given[:3, :3]) < 0:
        raise ValueError("judge matrix: expected a turn and a shift, found scaling, shear or a mirror image; a rigid transform is needed")
    return given


def _weight(weight: ArrayLike | None, seen: Seen) -> NDArray[np.float32]:
    if weight is None:
        return np.asarray(seen.head, np.float32)
    size = np.abs(np.nan_to_num(np.asarray(weight, np.float32)))
    if size.shape != seen.grid.shape:
        raise ValueError(f"place weight: expected shape {seen.grid.shape} of the decoder's grid, got {size.shape}")
    return size


def _problem(ours: Seen, theirs: Seen) -> str:
    if ours.problem:
        return f"The decoder's reference {ours.problem}: make the decoder again."
    return f"Today's volume {theirs.problem}: check the scanner's export, and try other volumes." if theirs.problem else ""


def _refused(problem: str, matrix: Array | None = None) -> Placement:
    found = np.eye(4) if matrix is None else matrix
    return Placement(found, 0.0, 0.0, 0.0, MOST_ERROR_MM, Verdict.BAD, (problem,))


def _share(weight: NDArray[np.float32], within: NDArray[np.bool_]) -> float:
    total = float(weight.sum(dtype=np.float64))
    return float(weight[within].sum(dtype=np.float64)) / total if total > 0 else 0.0


def _within(matrix: Array, ours: Seen, theirs: Seen) -> NDArray[np.bool_]:
    """Return which voxels of the decoder's grid lie in known parts of today's volume."""
    found = inside(matrix, ours.grid, theirs.grid)
    if not theirs.known.all():
        at = np.argwhere(found)
        index = np.linalg.inv(theirs.grid.affine) @ matrix @ ours.grid.affine
        voxels = np.rint(at @ index[:3, :3].T + index[:3, 3]).astype(int)
        voxels = np.clip(voxels, 0, np.array(theirs.grid.shape) - 1)
        found[tuple(at.T)] = theirs.known[tuple(voxels.T)]
    return found


def _placement(found: Found, ours: Seen, theirs: Seen, weight: NDArray[np.float32], backwards: bool = False) -> Placement:
    within = _within(found.fit.matrix, ours, theirs)
    overlap, kept = _share(np.asarray(ours.head, np.float32), within), _share(weight, within)
    error = MOST_ERROR_MM
    if found.fit.correlation >= LEAST_CORRELATION:  # below, the result is no placement, and its scatter means nothing
        error = min(expected_error_mm(found, ours, theirs), MOST_ERROR_MM)
    evidence = Evidence(found.fit.correlation, overlap, kept, error, found.rival, backwards, found.posture, ours.grid, theirs.grid)
    word, reasons = verdict_of(evidence)
    return Placement(found.fit.matrix, found.fit.correlation, overlap, kept, error, Verdict(word), tuple(reasons))


def warm_up() -> None:
    """Compile the kernels that a placement needs, or load them from the cache; see :mod:`rtevo.kernels._compile`."""
    x, y, z = np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij")
    ball = 100 * np.exp(-(((x - 7) / 4) ** 2 + ((y - 8) / 5) ** 2 + ((z - 7.5) / 4) ** 2))
    grid = Grid((16, 16, 16), np.diag([12.0, 12.0, 12.0, 1.0]))
    with cache_lock():
        place(ball, grid, ball, grid)
