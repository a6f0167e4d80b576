"""Another day: the head lies elsewhere, the slices lie elsewhere, voxels have another size, or somebody else has come.

``[simulation] today`` says in what today differs from the day of the localizer. Both days then sample one and the same head, drawn once
on a fine grid of its own (:func:`sampled`), so that what they share is the head and not the voxels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.errors import ConfigError
from rtevo.records import Grid
from rtevo.simulate.head import Head, rotation_matrix, scan_grid

__all__ = ["MASTER", "Today", "sampled"]

MASTER = Grid((76, 88, 68), np.array([[2.5, 0, 0, -93.75], [0, 2.5, 0, -126.25], [0, 0, 2.5, -76.25], [0, 0, 0, 1]]))
"""The head's own grid: the whole head, 190 x 220 x 170 mm."""
ORIENTATIONS = {  # of the slices: columns of the rotation from the axial slab's axes to these
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "coronal": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
}
THICKNESS_MM = {"axial": 115.5, "coronal": 180.0, "sagittal": 150.0}  # field of view along the slices
IN_PLANE_MM = 240.0
_NUMBERS = {"shift": (3, 100.0), "turn": (3, 180.0), "slab": (3, 150.0), "voxel": (3, 10.0)}  # how many, and how large at most


@dataclass(frozen=True)
class Today:
    """In what today differs from the localizer's day.

    Parameters
    ----------
    shift_mm, turn_deg : tuple of float, (3,)
        Of the head in the scanner, RAS+; it turns about the scanner's origin, as :func:`rtevo.simulate.head.rotation_matrix` has it.
    slab_mm : tuple of float, (3,)
        Shift of the slices.
    voxel_mm : tuple of float, (3,) or None
        None: as on the localizer's day.
    slices : str
        axial, coronal or sagittal.
    person : int or None
        Seed of the head of who has come; None: of the participant.
    """

    shift_mm: tuple[float, ...] = (0.0, 0.0, 0.0)
    turn_deg: tuple[float, ...] = (0.0, 0.0, 0.0)
    slab_mm: tuple[float, ...] = (0.0, 0.0, 0.0)
    voxel_mm: tuple[float, ...] | None = None
    slices: str = "axial"
    person: int | None = field(default=None)

    @classmethod
    def parse(cls, text: str) -> Today:
        """Read ``shift=12 -8 5, turn=4 -3 6, slab=0 10 -6, voxel=2.5 2.5 3, slices=sagittal, person=2``, any of them.

        Raises
        ------
        ConfigError
            With every mistake.
        """
        found: dict[str, Any] = {}
        mistakes = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, value = (word.strip() for word in part.partition("="))
            try:
                found.update(_read(name, value))
            except ValueError as mistake:
                mistakes.append(f"today: {part!r}: expected {mistake}")
        if mistakes:
            raise ConfigError(mistakes)
        return cls(**found)

    @property
    def pose(self) -> NDArray[np.float64]:
        """Where the head lies: the head's place in the localizer to its place today, RAS+ mm, float64 (4, 4)."""
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_matrix(*np.deg2rad(self.turn_deg))
        matrix[:3, 3] = self.shift_mm
        return matrix

    def grid(self, voxel_mm: tuple[float, float, float]) -> Grid:
        """Where volumes are sampled today, given the voxels of the localizer."""
        across = [float(v) for v in self.voxel_mm or voxel_mm]
        extents = (IN_PLANE_MM, IN_PLANE_MM, THICKNESS_MM[self.slices])
        shape = [math.ceil(extent / size - 1e-6) for extent, size in zip(extents, across, strict=True)]
        slab = scan_grid((shape[0], shape[1], shape[2]), (across[0], across[1], across[2]))
        turn = np.eye(4)
        turn[:3, :3] = np.array(ORIENTATIONS[self.slices], float).T
        centre = slab.affine @ [*((np.array(shape) - 1) / 2), 1.0]
        about = np.eye(4)
        about[:3, 3] = centre[:3]
        move = np.eye(4)
        move[:3, 3] = self.slab_mm
        return Grid(slab.shape, move @ about @ turn @ np.linalg.inv(about) @ slab.affine)


def _read(name: str, value: str) -> dict[str, Any]:
    """Read one part of the text; ValueError with what was expected."""
    if name in _NUMBERS:
        count, most = _NUMBERS[name]
        try:
            numbers = tuple(float(v) for v in value.split())
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(math.isfinite(v) and abs(v) <= most for v in numbers):
            raise ValueError(f"{count} numbers of up to {most:g}")
        if name == "voxel" and min(numbers) < 1.5:
            raise ValueError("voxels of 1.5 to 10 mm")
        return {{"shift": "shift_mm", "turn": "turn_deg", "slab": "slab_mm", "voxel": "voxel_mm"}[name]: numbers}
    if name == "slices":
        if value not in ORIENTATIONS:
            raise ValueError("axial, coronal or sagittal")
        return {name: value}
    if name == "person":
        if not value.isdecimal():
            raise ValueError("a whole number")
        return {name: int(value)}
    raise ValueError(f"one of {', '.join([*_NUMBERS, 'slices', 'person'])}")


def sampled(head: Head, grid: Grid, pose: NDArray[np.float64]) -> Head:
    """Sample a head on another grid, at another place.

    Parameters
    ----------
    head : Head
        On a fine grid, of which it fills no more than the middle.
    grid : Grid
        Where to sample it.
    pose : ndarray, float64 (4, 4)
        Where the head lies: its own world to the scanner's, RAS+ mm.

    Returns
    -------
    Head
    """
    voxels = np.linalg.inv(head.grid.affine) @ np.linalg.inv(pose) @ grid.affine
    across = np.linalg.norm(voxels[:3, :3], axis=0)  # of the new voxels, in voxels of the fine grid
    turned = np.abs(voxels[:3, :3]) / across
    sigma = np.sqrt(np.maximum((turned * across).max(axis=1) ** 2 - 1.0, 0.0)) / math.sqrt(8 * math.log(2))  # what a larger voxel averages

    def at(values: NDArray[np.float32], order: int) -> NDArray[np.float32]:
        soft = ndimage.gaussian_filter(values, sigma) if sigma.any() else values
        moved = ndimage.affine_transform(soft, voxels[:3, :3], voxels[:3, 3], grid.shape, order=order, mode="constant")
        return np.asarray(moved, np.float32)

    brain = at(head.brain.astype(np.float32), 1) > 0.5
    signal = np.maximum(at(head.signal, 3), 0)
    return Head(grid, signal, at(head.grey, 1), brain, at(head.gains, 1), at(head.visual, 1), tuple(at(area, 1) for area in head.areas))
