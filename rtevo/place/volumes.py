"""A volume prepared for placement: its known part, its head, and levels on grids of equal spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, binary_erosion, label, maximum_filter, minimum_filter

from rtevo.kernels.mask import brain_mask
from rtevo.kernels.place import sample_linear
from rtevo.kernels.smooth import FWHM_PER_SIGMA, smooth
from rtevo.records import Grid

__all__ = ["Level", "Seen", "coarser", "level_grid"]

Array = NDArray[np.float64]
Volume = NDArray[np.float32]

CUT_SIGNAL, CUT_SHARE = 0.25, 0.05  # a head was cut out if voxels of this signal touch solid zeros along this share of its surface
SOLID_VOXELS = 27  # smallest number of zeros that count as solid
STRIPPED_SHARE = 0.6  # of a head's surface next to solid zeros, if it is skull-stripped
LEAST_VOXELS = 64  # of a head
BOX_VARIANCE = 1 / 12  # of a voxel's edges, in voxels
LINEAR_VARIANCE = 1 / 6  # of linear interpolation, on average
NEAR_SHARE = 0.05  # of a kernel of `REACH_MM` that holds head, for a voxel to count as near
REACH_MM = 14.0  # margin around the head in the levels: its outline and some air


@dataclass(frozen=True, eq=False)
class Level:
    """A volume on a grid of equal spacing along the world's axes.

    Parameters
    ----------
    grid : Grid
    spacing_mm : float
    data, known : ndarray, float32 (X, Y, Z)
        Signal relative to the head's mean, and the known fraction, 0 .. 1.
    near : ndarray, float32 (X, Y, Z)
        1 in the head and within `REACH_MM` around it.
    """

    grid: Grid
    spacing_mm: float
    data: Volume
    known: Volume
    near: Volume


class Seen:
    """A volume, its head and its known part.

    Parameters
    ----------
    volume : array_like, (X, Y, Z)
        NaN and infinity count as outside the field of view, as do solid zeros that cut through a head.
    grid : Grid

    Attributes
    ----------
    data : ndarray, float32 (X, Y, Z)
        Signal relative to the head's mean; 0: unknown.
    known, head : ndarray, bool (X, Y, Z)
    roughly_known : ndarray, bool (X, Y, Z)
        Around a skull-stripped brain this includes air: the outline is not anatomy, but shows the position.
    problem : str
        Why the volume cannot be placed; empty if it can.
    """

    def __init__(self, volume: ArrayLike, grid: Grid) -> None:
        data = np.asarray(volume)
        if data.shape != grid.shape:
            raise ValueError(f"place volume: expected shape {grid.shape} of its grid, got {data.shape}")
        self.grid = grid
        data = data.astype(np.float32)
        self.known: NDArray[np.bool_] = np.isfinite(data)
        self.data: Volume = np.where(self.known, data, np.float32(0))
        self.roughly_known = self.known
        self.head = np.zeros(grid.shape, np.bool_)
        self.problem = self._find_head()

    def _find_head(self) -> str:
        if min(self.grid.shape) < 4:
            return f"has only {min(self.grid.shape)} voxels along one axis, expected at least 4"
        if not self.known.any():
            return "has no finite voxel"
        if not np.ptp(self.data[self.known]) > 0:
            return "is constant"
        self.head = brain_mask(self.data, self.grid.affine) & self.known
        self._leave_out_cuts()
        if self.head.sum() < LEAST_VOXELS:
            return "shows no head"
        mean = float(self.data[self.head].mean())
        if not mean > 0:
            return "shows no head: its signal is not positive"
        self.data /= np.float32(mean)
        return ""

    def _leave_out_cuts(self) -> None:
        """Mark solid zeros next to bright voxels as unknown: see :func:`rtevo.realign.realigner.guiding_mask`."""
        zero = (self.data == 0) & self.known
        if zero.sum() < SOLID_VOXELS or not self.head.any():
            return
        blank = maximum_filter(minimum_filter(zero, size=3), size=3) & zero
        if not blank.any():
            return
        bright = (self.data > CUT_SIGNAL * self.data[self.head].mean()) & binary_dilation(self.head)
        touched = binary_dilation(blank, np.ones((3, 3, 3))) & bright
        surface = (self.head & ~binary_erosion(self.head)).sum()
        if touched.sum() > CUT_SHARE * surface:
            parts, _ = label(blank)
            hit = np.unique(parts[binary_dilation(touched, np.ones((3, 3, 3))) & blank])
            cut = np.isin(parts, hit[hit > 0])
            if touched.sum() > STRIPPED_SHARE * surface:
                self.roughly_known = self.known.copy()
            self.known &= ~cut
            self.head &= self.known

    @property
    def points(self) -> Array:
        """World points of the head's voxels, float64 (3, n)."""
        return np.asarray(self.grid.affine[:3, :3] @ np.argwhere(self.head).T + self.grid.affine[:3, 3:])

    def variance_mm2(self) -> Array:
        """Variance from voxel size and linear interpolation along each axis."""
        return np.asarray((BOX_VARIANCE + LINEAR_VARIANCE) * self.grid.voxel_size_mm**2)

    def smoothed(self, fwhm_mm: float, rough: bool = False) -> Level:
        """Return the volume smoothed to a resolution, whatever its voxels, on its own grid; all voxels count as near."""
        certain = self.roughly_known if rough else self.known
        extra = np.sqrt(np.maximum((fwhm_mm / FWHM_PER_SIGMA) ** 2 - self.variance_mm2(), 0.0)) / self.grid.voxel_size_mm
        size = 1.0 / np.maximum(extra * FWHM_PER_SIGMA, 1e-6)  # a kernel of 1 over these edges has the missing width, for each axis
        known = certain.astype(np.float32)
        soft = smooth(self.data, size, 1.0)
        if not certain.all():
            share = smooth(known, size, 1.0)
            np.divide(soft, share, out=soft, where=certain)
            soft *= known
        else:
            soft /= smooth(known, size, 1.0)
        return Level(self.grid, float(self.grid.voxel_size_mm.min()), soft, known, known)

    def level(self, spacing_mm: float, fwhm_mm: float, reach_mm: float = REACH_MM, rough: bool = False) -> Level:
        """Smooth to a resolution and sample on a grid of equal spacing around the head."""
        fine = self.smoothed(fwhm_mm, rough)
        grid = level_grid(self, spacing_mm, reach_mm)
        data, known, head, rest = (np.empty(grid.shape, np.float32) for _ in range(4))
        matrix = np.linalg.inv(self.grid.affine) @ grid.affine
        sample_linear(fine.data, fine.known, matrix, data, known)
        sample_linear(self.head.astype(np.float32), np.ones_like(fine.known), matrix, head, rest)
        near = smooth(head, (spacing_mm,) * 3, reach_mm) > NEAR_SHARE
        return Level(grid, spacing_mm, data, np.where(known > 0.5, known, 0).astype(np.float32), near.astype(np.float32))


def coarser(base: Level, base_fwhm_mm: float, spacing_mm: float, fwhm_mm: float) -> Level:
    """Return a coarser level made from a level, which is quicker than from the volume."""
    more = float(np.sqrt(max(fwhm_mm**2 - base_fwhm_mm**2, 0.0)))
    size = (base.spacing_mm,) * 3
    share = smooth(base.known, size, more)
    soft = smooth(base.data * base.known, size, more)
    np.divide(soft, share, out=soft, where=base.known > 0)
    soft *= base.known
    shape = np.ceil((np.array(base.grid.shape) - 1) * base.spacing_mm / spacing_mm).astype(int) + 1
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    middle = base.grid.affine[:3, 3] + base.spacing_mm * (np.array(base.grid.shape) - 1) / 2
    affine[:3, 3] = middle - spacing_mm * (shape - 1) / 2
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    data, known, near, rest = (np.empty(grid.shape, np.float32) for _ in range(4))
    matrix = np.linalg.inv(base.grid.affine) @ affine
    sample_linear(soft, base.known, matrix, data, known)
    sample_linear(base.near, np.ones_like(base.known), matrix, near, rest)
    return Level(grid, spacing_mm, data, np.where(known > 0.5, known, 0).astype(np.float32), (near > 0.5).astype(np.float32))


def level_grid(seen: Seen, spacing_mm: float, reach_mm: float = REACH_MM) -> Grid:
    """Return the grid of equal spacing around a head, with a margin of `reach_mm`, inside the field of view."""
    points = seen.points
    corners = np.array([[i, j, k] for i in (-0.5, seen.grid.shape[0] - 0.5) for j in (-0.5, seen.grid.shape[1] - 0.5)
                        for k in (-0.5, seen.grid.shape[2] - 0.5)])  # fmt: skip
    world = corners @ seen.grid.affine[:3, :3].T + seen.grid.affine[:3, 3]
    low = np.maximum(points.min(axis=1) - reach_mm, world.min(axis=0)) - spacing_mm
    high = np.minimum(points.max(axis=1) + reach_mm, world.max(axis=0)) + spacing_mm
    shape = np.maximum(np.ceil((high - low) / spacing_mm).astype(int) + 1, 4)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing_mm * (shape - 1) / 2
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
