"""The simulated head: tissues, hidden voxels, motion."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.simulate.head import Head, HeadMotion, motion_matrix, rotation_matrix, scan_grid

GRID = scan_grid()


@pytest.fixture(scope="module")
def head() -> Head:
    return Head.build(GRID, np.random.default_rng(3))


def test_grid_is_oblique_with_the_voxels_asked_for() -> None:
    assert GRID.shape == (80, 80, 35)
    np.testing.assert_allclose(GRID.voxel_size_mm, (3, 3, 3.3))
    axes = GRID.affine[:3, :3] / GRID.voxel_size_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.count_nonzero(np.abs(axes) > 0.02) > 3  # no axis-parallel slab


def test_tissues_have_their_places_and_intensities(head: Head) -> None:
    litres = head.brain.sum() * np.prod(GRID.voxel_size_mm) / 1e6
    assert 1.1 < litres < 1.8
    assert 1000 < head.signal.max() < 1500
    white = head.signal[head.brain & (head.grey < 0.02) & (head.signal < 900)]
    assert np.median(white) < np.median(head.signal[head.grey > 0.9]) < head.signal.max()
    corner = head.signal[:5, :5, :]
    assert corner.max() < 5  # air
    assert 0.1 < (head.grey > 0.5).sum() / head.brain.sum() < 0.7


def test_hidden_voxels_are_a_few_blobs_of_grey_matter(head: Head) -> None:
    hidden = np.abs(head.gains) > 0.05
    assert 100 < hidden.sum() < 3000
    assert np.abs(head.gains).max() == pytest.approx(1)
    assert head.gains.min() < 0 < head.gains.max()
    assert head.brain[hidden].all()
    assert np.median(head.grey[hidden]) > 0.3


def test_the_same_generator_gives_the_same_head_and_another_gives_another(head: Head) -> None:
    again, other = Head.build(GRID, np.random.default_rng(3)), Head.build(GRID, np.random.default_rng(4))
    np.testing.assert_array_equal(again.signal, head.signal)
    np.testing.assert_array_equal(again.gains, head.gains)
    assert np.abs(other.signal - head.signal).max() > 100
    assert not np.array_equal(other.gains != 0, head.gains != 0)


def test_a_grid_that_misses_the_brain_is_refused() -> None:
    with pytest.raises(ValueError, match="no grey matter"):
        Head.build(scan_grid((8, 8, 8), (1.0, 1.0, 1.0)), np.random.default_rng(0))


def test_motion_is_smooth_and_of_the_size_asked_for() -> None:
    runs = np.array([[HeadMotion.draw(np.random.default_rng(s), 0.3, 0.005).at(t) for t in np.arange(0, 300, 0.867)] for s in range(30)])
    spread = runs.std(axis=1).mean(axis=0)
    assert (spread[:3] > 0.1).all()
    assert (spread[:3] < 0.5).all()
    np.testing.assert_allclose(spread[3:].mean() / spread[:3].mean(), 0.005 / 0.3, rtol=0.5)
    steps = np.abs(np.diff(runs, axis=1))[..., :3]
    assert steps.max() < 0.3
    still = HeadMotion.draw(np.random.default_rng(1), 0, 0)
    assert not still.at(50.0).any()


def test_motion_matrix_turns_about_the_middle_of_the_grid() -> None:
    middle = GRID.affine @ [39.5, 39.5, 17, 1]
    shifted = middle + np.array([1, 2, 3, 0])
    np.testing.assert_allclose(motion_matrix(np.array([1, 2, 3, 0.1, 0.2, 0.3]), GRID) @ middle, shifted)
    np.testing.assert_allclose(rotation_matrix(0, 0, np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(rotation_matrix(np.pi / 2, 0, np.pi / 2) @ [0, 1, 0], [0, 0, 1], atol=1e-15)  # x first
