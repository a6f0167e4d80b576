"""Real heads, where their files are here: another volume of the run on a coronal grid, half of it cut off, and another person's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.ingest import FolderSource, describe
from rtevo.kernels.mask import brain_mask
from rtevo.kernels.rigid import matrix_from_params
from rtevo.place import Verdict, place
from rtevo.records import Grid

CLOSE_MM = 0.5  # a sixth of a voxel, with half of the head gone
Run = tuple[list[NDArray[np.float32]], Grid]


def run(folder: Path) -> Run:
    source = FolderSource(folder, patience_s=0.0)
    volumes = [v.data for v in (*source.poll(), *source.finish()) if v.data is not None]
    return volumes, describe(folder).grid


def on_coronal_slices(volume: NDArray[np.float32], grid: Grid, matrix: NDArray[np.float64]) -> tuple[NDArray[np.float32], Grid]:
    at = np.eye(4)
    at[:3, :3] = matrix_from_params([0, 0, 0, 0.1, 0.05, -0.1])[:3, :3] @ np.eye(3)[:, [0, 2, 1]] * [-3.1, 3.1, 3.4]
    centre = matrix @ grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1]
    at[:3, 3] = centre[:3] - at[:3, :3] @ [32, 26, 31]
    index = np.linalg.inv(matrix @ grid.affine) @ at
    found = ndimage.affine_transform(volume.astype(np.float64), index[:3, :3], index[:3, 3], output_shape=(65, 53, 63), order=3)
    return np.maximum(found, 0).astype(np.float32), Grid((65, 53, 63), at)


def test_a_real_head_is_found_from_half_of_it_and_another_is_never_good(scanner_data: Callable[[str], Path]) -> None:
    (volumes, grid), (others, others_grid) = (run(scanner_data(name)) for name in ("siemens-mosaic", "siemens-xa30-enhanced"))
    matrix = matrix_from_params([20.0, -15.0, 25.0, -0.3, 0.2, 0.15])
    today, today_grid = on_coronal_slices(volumes[1], grid, matrix)  # 0.06 mm from volume 0, as realignment says
    half = Grid((40, *today_grid.shape[1:]), today_grid.affine)
    points = grid.affine[:3, :3] @ np.argwhere(brain_mask(volumes[0], grid.affine)).T + grid.affine[:3, 3:]
    for volume, at in ((today, today_grid), (np.ascontiguousarray(today[:40]), half)):
        found = place(volumes[0], grid, volume, at)
        change = found.matrix - matrix
        assert np.linalg.norm(change[:3, :3] @ points + change[:3, 3:], axis=0).mean() < CLOSE_MM
        assert found.verdict != Verdict.BAD
    assert place(others[0], others_grid, today, today_grid).verdict != Verdict.GOOD
    assert place(volumes[0], grid, others[0], others_grid).verdict != Verdict.GOOD
