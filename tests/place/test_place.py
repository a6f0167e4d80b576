"""Placements of simulated heads whose truth is known, what must never be called good, and what the operator reads and sees."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.kernels.mask import brain_mask
from rtevo.kernels.rigid import matrix_from_params
from rtevo.place import Placement, Verdict, draw_placement, inside, judge, place
from rtevo.records import Grid
from rtevo.simulate.head import Head

Array = NDArray[np.float64]
FINE_MM = 2.2
CENTRE = np.array([0.0, -14.0, 8.0])
CLOSE_MM = 0.3  # half of it is what noise and the fine grid's interpolation leave; a voxel is ten times as large
TODAYS_CENTRE = np.array([14.0, -36.0, 17.0])
NOISE = 15.0  # of a signal of about 850
MOVED = matrix_from_params([14.0, -22.0, 9.0, 0.35, -0.12, 0.2], CENTRE)


def box(shape: tuple[int, int, int], size: tuple[float, float, float], turn: Array, centre: Array = CENTRE) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(size)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


@lru_cache(maxsize=2)
def drawn(person: int) -> tuple[NDArray[np.float32], Grid]:
    grid = box((92, 108, 92), (FINE_MM,) * 3, np.eye(3))
    return Head.build(grid, np.random.default_rng(person)).signal, grid


def scanned(person: int, at: Grid, matrix: Array, seed: int) -> NDArray[np.float32]:
    signal, grid = drawn(person)
    index = np.linalg.inv(matrix @ grid.affine) @ at.affine
    soft = ndimage.gaussian_filter(signal, np.sqrt(np.maximum((at.voxel_size_mm / FINE_MM) ** 2 - 1, 0) / 12).mean())
    where = np.tensordot(index[:3, :3], np.indices(at.shape), 1) + index[:3, 3].reshape(3, 1, 1, 1)
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=(2, *at.shape))
    return np.hypot(np.maximum(ndimage.map_coordinates(soft, where, order=3, mode="constant"), 0) + noise[0], noise[1]).astype(np.float32)


DECODERS = box((56, 64, 34), (3.4, 3.4, 3.6), np.eye(3))


@lru_cache(maxsize=1)
def reference() -> NDArray[np.float32]:
    return scanned(3, DECODERS, np.eye(4), 1)


def brain_points() -> Array:
    return DECODERS.affine[:3, :3] @ np.argwhere(reference() > 400).T + DECODERS.affine[:3, 3:]


def error_mm(found: Array, truth: Array) -> float:
    change = found - truth
    return float(np.linalg.norm(change[:3, :3] @ brain_points() + change[:3, 3:], axis=0).mean())


def turned(order: tuple[int, int, int], oblique: float) -> Array:
    return np.asarray(matrix_from_params([0, 0, 0, oblique, -oblique, 0.5 * oblique])[:3, :3] @ np.eye(3)[:, list(order)])


TODAYS = {
    "axial": box((60, 64, 38), (3.2, 3.2, 3.6), turned((0, 1, 2), 0.05), TODAYS_CENTRE),
    "coronal, left to the right": box((52, 48, 62), (-3.8, 3.8, 3.2), turned((0, 2, 1), 0.1), TODAYS_CENTRE),
    "sagittal, oblique": box((70, 60, 50), (3.0, 3.0, 3.5), turned((1, 2, 0), 0.3), TODAYS_CENTRE),
}


@lru_cache(maxsize=1)
def known() -> tuple[NDArray[np.float32], Grid, Placement]:
    grid = TODAYS["axial"]
    today = scanned(3, grid, MOVED, 2)
    return today, grid, place(reference(), DECODERS, today, grid)


@pytest.mark.parametrize("orientation", TODAYS)
def test_a_moved_head_is_found_on_any_grid(orientation: str) -> None:
    grid = TODAYS[orientation]
    today = scanned(3, grid, MOVED, 2)
    found = place(reference(), DECODERS, today, grid)
    assert error_mm(found.matrix, MOVED) < CLOSE_MM
    assert found.verdict == Verdict.GOOD
    assert 0.7 < found.correlation <= 1
    assert 0.9 < found.overlap <= 1
    assert found.weight_kept == found.overlap
    assert error_mm(found.matrix, MOVED) < 2 * found.expected_error_mm + 0.05 < 1.0


@pytest.mark.parametrize("whose", ["today", "reference"])
def test_half_a_head_is_found(whose: str) -> None:
    today, grid, _ = known()
    ours, ours_grid = reference(), DECODERS
    if whose == "today":
        today, grid = np.ascontiguousarray(today[:36]), Grid((36, *grid.shape[1:]), grid.affine)
    else:
        ours, ours_grid = np.ascontiguousarray(ours[:, :34]), Grid((DECODERS.shape[0], 34, DECODERS.shape[2]), DECODERS.affine)
    found = place(ours, ours_grid, today, grid)
    assert error_mm(found.matrix, MOVED) < 2 * CLOSE_MM
    assert found.verdict != Verdict.BAD
    assert (found.overlap < 0.75) == (whose == "today")


def test_other_contrast_shading_and_a_head_cut_out_by_software_do_not_matter() -> None:
    today, grid, _ = known()
    shaded = (today / 800) ** 1.5 * np.linspace(0.5, 2.0, grid.shape[0])[:, None, None]
    shaded[:, :, :12] = 0
    found = place(reference(), DECODERS, shaded, grid)
    assert error_mm(found.matrix, MOVED) < 2 * CLOSE_MM
    assert found.overlap < 0.95
    with_nan = np.where(shaded == 0, np.nan, shaded)
    np.testing.assert_allclose(place(reference(), DECODERS, with_nan, grid).matrix, found.matrix, atol=1e-6)


def test_a_reference_stripped_of_its_skull_is_placed_as_well() -> None:
    today, grid, _ = known()
    stripped = np.where(brain_mask(reference(), DECODERS.affine), reference(), 0)
    found = place(stripped, DECODERS, today, grid)
    assert error_mm(found.matrix, MOVED) < CLOSE_MM
    assert found.verdict == Verdict.GOOD


def test_the_same_input_gives_the_same_bits() -> None:
    today, grid, found = known()
    again = place(reference(), DECODERS, today, grid)
    assert np.array_equal(again.matrix, found.matrix)
    assert again.as_dict() == found.as_dict()


def test_a_given_transform_is_measured_alike_and_one_given_backwards_is_named() -> None:
    today, grid, found = known()
    same = judge(found.matrix, reference(), DECODERS, today, grid)
    assert same.verdict == Verdict.GOOD
    assert same.correlation == pytest.approx(found.correlation, abs=0.01)
    back = judge(np.linalg.inv(found.matrix), reference(), DECODERS, today, grid)
    assert back.verdict == Verdict.BAD
    assert "given backwards" in back.reasons[0]


def test_the_decoders_own_grid_is_good_where_nothing_moved() -> None:
    again = scanned(3, DECODERS, np.eye(4), 5)
    found = judge(np.eye(4), reference(), DECODERS, again, DECODERS)
    assert found.verdict == Verdict.GOOD
    assert found.overlap == found.weight_kept == 1.0
    assert not found.reasons


@pytest.mark.parametrize("person", [4, 5])
def test_another_head_is_never_good(person: int) -> None:
    found = place(reference(), DECODERS, scanned(person, TODAYS["axial"], MOVED, 2), TODAYS["axial"])
    assert found.verdict != Verdict.GOOD
    assert any("participant" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("flip", "words"),
    [((1, -1, -1), "upside down and on its face"), ((-1, -1, 1), "on its face"), ((-1, 1, 1), "left and right")],
)
def test_a_head_that_lies_as_none_can_is_bad_and_named(flip: tuple[int, int, int], words: str) -> None:
    today, grid, _ = known()
    found = place(reference(), DECODERS, today, Grid(grid.shape, np.diag([*flip, 1.0]) @ grid.affine))
    assert found.verdict == Verdict.BAD
    assert words in found.reasons[0]


def test_slices_that_miss_the_map_are_bad_and_say_what_to_do() -> None:
    today, grid, _ = known()
    weight = np.where(np.indices(DECODERS.shape)[1] < 15, reference(), 0)  # the back of the head
    ahead = Grid((grid.shape[0], grid.shape[1] - 26, grid.shape[2]), grid.affine @ _shift(1, 26))
    found = place(reference(), DECODERS, today[:, 26:], ahead, weight=-weight)
    assert found.weight_kept < 0.3
    assert found.verdict == Verdict.BAD
    assert any("move the slices" in reason for reason in found.reasons)


def _shift(axis: int, voxels: int) -> Array:
    matrix = np.eye(4)
    matrix[axis, 3] = voxels
    return matrix


NOTHING = {
    "constant": np.full((20, 20, 10), 7.0),
    "not finite": np.full((20, 20, 10), np.nan),
    "noise": np.random.default_rng(0).rayleigh(10, (40, 40, 20)),
    "tiny": np.random.default_rng(0).normal(100, 30, (8, 8, 4)),
    "one slice": np.random.default_rng(0).normal(100, 30, (40, 40, 1)),
    "negative": -np.random.default_rng(0).rayleigh(10, (20, 20, 10)),
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_shows_no_head_is_bad_in_plain_words_and_finite_figures(what: str) -> None:
    volume = NOTHING[what]
    grid = Grid(volume.shape, np.diag([3.0, 3.0, 3.0, 1.0]))
    for found in (place(reference(), DECODERS, volume, grid), judge(np.eye(4), reference(), DECODERS, volume, grid)):
        assert found.verdict == Verdict.BAD
        assert found.reasons
        assert all(reason.endswith(".") for reason in found.reasons)
        figures = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert list(figures) == ["matrix", "correlation", "overlap", "weight_kept", "expected_error_mm", "verdict", "reasons"]


def test_shapes_and_matrices_that_do_not_fit_are_refused() -> None:
    today, grid, _ = known()
    with pytest.raises(ValueError, match="expected shape"):
        place(reference(), DECODERS, today[1:], grid)
    with pytest.raises(ValueError, match="weight: expected shape"):
        place(reference(), DECODERS, today, grid, weight=today)
    with pytest.raises(ValueError, match="scaling, shear or a mirror image"):
        judge(np.diag([1.1, 1, 1, 1]), reference(), DECODERS, today, grid)
    with pytest.raises(ValueError, match="finite 4 x 4"):
        judge(np.full((4, 4), np.nan), reference(), DECODERS, today, grid)


def test_inside_counts_whole_voxels_to_their_faces() -> None:
    grid = Grid((5, 5, 5), np.diag([2.0, 2.0, 2.0, 1.0]))
    shift = matrix_from_params([3.0, 0, 0, 0, 0, 0])
    assert inside(np.eye(4), grid, grid).all()
    assert inside(shift, grid, grid)[:, 2, 2].sum() == 4
    assert inside(shift, grid, grid, margin_voxels=0.0)[:, 2, 2].sum() == 3
    assert inside(shift, grid, grid, margin_voxels=-1.0)[:, 2, 2].sum() == 2


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_a_picture_is_drawn(kind: str, tmp_path: Path) -> None:
    today, grid, found = known()
    if kind == "bad":
        today = np.zeros_like(today)
        found = place(reference(), DECODERS, today, grid)
    path = tmp_path / "placement.png"
    draw_placement(path, found, reference(), DECODERS, today, grid, weight=reference(), title="sub-01")
    assert path.stat().st_size > 10_000
