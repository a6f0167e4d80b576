"""A simulated head: tissues in an oblique slab of voxels, the voxels that respond to pictures, and how the head moves.

The head is drawn in world millimetres (RAS+, the origin near the anterior commissure) from soft-edged surfaces, so that a voxel
that a boundary cuts holds a mixture of both tissues. It is no atlas: it has what realignment and decoding need, namely contrast
between grey matter, white matter and fluid, folds, ventricles, a dark skull inside a faint scalp, coil shading and signal loss above the
air-filled sinuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from rtevo.records import Grid

__all__ = ["Head", "HeadMotion", "motion_matrix", "rotation_matrix", "scan_grid"]

Field = NDArray[np.float32]

INTENSITY = {"bone": 60.0, "scalp": 430.0, "muscle": 260.0, "fluid": 1300.0, "grey": 980.0, "white": 720.0, "eye": 1150.0}
AREA_BLOBS = 3  # of a category's area
_EDGE_MM = 0.7  # softness of a boundary: its partial-volume ramp is about 3 mm wide


def scan_grid(shape: tuple[int, int, int] = (80, 80, 35), voxel_size_mm: tuple[float, float, float] = (3.0, 3.0, 3.3)) -> Grid:
    """Return the grid of an oblique axial slab around the brain, columns running to the left as Siemens scanners store them.

    Parameters
    ----------
    shape : tuple of int, (3,)
        Voxels along X, Y, Z.
    voxel_size_mm : tuple of float, (3,)
        Voxel edges in millimetres.

    Returns
    -------
    Grid
        Slices tilted by 14 degrees, with a small roll and yaw.
    """
    roll, yaw = np.deg2rad([1.6, -2.1])
    tilt = np.deg2rad(14.0)
    rotation = rotation_matrix(tilt, roll, yaw)
    linear = rotation @ np.diag([-voxel_size_mm[0], voxel_size_mm[1], voxel_size_mm[2]])
    centre_mm = np.array([0.8, -14.0, 9.0])
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = centre_mm - linear @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


@dataclass(frozen=True, eq=False)
class Head:
    """One participant's head in the scanner, and where it responds.

    Parameters
    ----------
    grid : Grid
        Where it is sampled.
    signal : ndarray, float32 (X, Y, Z)
        Noiseless image at rest, arbitrary scanner units (0 to about 1500).
    grey : ndarray, float32 (X, Y, Z)
        Fraction of grey matter, 0..1.
    brain : ndarray, bool (X, Y, Z)
        Brain tissue and the fluid inside it.
    gains : ndarray, float32 (X, Y, Z)
        The hidden voxels: how strongly, and with which sign, the signal follows the preference; the strongest blob peaks at 1; 0 elsewhere.
    visual : ndarray, float32 (X, Y, Z)
        How strongly the signal follows any picture, liked or not, 0..1.
    areas : tuple of ndarray, float32 (X, Y, Z)
        Of categories that have voxels of their own: how strongly the signal follows each, 0..1.
    """

    grid: Grid
    signal: Field
    grey: Field
    brain: NDArray[np.bool_]
    gains: Field
    visual: Field
    areas: tuple[Field, ...] = ()

    @classmethod
    def build(cls, grid: Grid, rng: np.random.Generator, blobs: int = 7, areas: Sequence[np.random.Generator] = ()) -> Head:
        """Draw a head; another generator state gives another person.

        Parameters
        ----------
        grid : Grid
            Where to sample it.
        rng : numpy.random.Generator
            Shapes, folds and hidden voxels come from here.
        blobs : int
            Number of hidden blobs, 5 to 8 mm in radius.
        areas : sequence of numpy.random.Generator
            Each draws an area of its own.

        Raises
        ------
        ValueError
            If the grid misses the back of the brain.
        """
        points = _world(grid)
        signal, grey, brain = _draw(points, grid, rng)
        gains = _blobs(points, grey, brain, rng, blobs)
        visual = np.zeros(grid.shape, np.float32)
        for side in (-1.0, 1.0):
            visual += _ball(points, (side * 11.0, -84.0, 4.0), 17.0)
        visual = np.clip(visual, 0, 1) * np.clip(1.5 * grey, 0, 1)
        own = tuple(np.abs(_blobs(points, grey, brain, each, AREA_BLOBS)) for each in areas)
        return cls(grid, signal, grey, brain, gains, visual.astype(np.float32), own)


@dataclass(frozen=True, eq=False)
class HeadMotion:
    """Slow, smooth head motion in world space, known at any time: a sum of sinusoids with random phases.

    Breathing-paced nodding is included. The head lies a little off its place in the localizer run from the start.

    Parameters
    ----------
    start : ndarray, float64 (6,)
        Displacement at time zero: mm for the first three, radians for the others.
    amplitudes : ndarray, float64 (6, n)
        Of every sinusoid, mm and radians.
    rates, phases : ndarray, float64 (6, n)
        Angular frequency in radians per second, and radians.
    """

    start: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    rates: NDArray[np.float64]
    phases: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, size_mm: float, size_rad: float) -> HeadMotion:
        """Draw one run's motion: `size_mm` and `size_rad` are about its standard deviations over a long run."""
        n = 6
        size = np.repeat([size_mm, size_rad], 3)
        periods_s = np.exp(rng.uniform(np.log(25.0), np.log(400.0), (6, n)))
        weights = periods_s**0.5 * rng.uniform(0.5, 1.0, (6, n))
        weights *= np.sqrt(2) / np.sqrt((weights**2).sum(axis=1, keepdims=True))
        weights *= size[:, None] * rng.uniform(0.5, 1.2, (6, 1))
        breath = np.zeros((6, 1))
        breath[2:4, 0] = 0.15 * size[2:4]  # up and down, nodding
        periods_s = np.hstack([periods_s, np.full((6, 1), rng.uniform(3.2, 4.6))])
        phases = rng.uniform(0, 2 * np.pi, (6, n + 1))
        return cls(size * rng.uniform(-1.5, 1.5, 6), np.hstack([weights, breath]), 2 * np.pi / periods_s, phases)

    def at(self, t_s: float) -> NDArray[np.float64]:
        """Return the displacement from the head's place in the localizer run.

        Parameters
        ----------
        t_s : float
            Seconds from the start of the first volume.

        Returns
        -------
        ndarray, float64 (6,)
            trans_x..z in mm and rot_x..z in rad, RAS+ (see :func:`motion_matrix`).
        """
        moved = (self.amplitudes * (np.sin(self.rates * t_s + self.phases) - np.sin(self.phases))).sum(axis=1)
        return np.asarray(self.start + moved, np.float64)


def motion_matrix(params: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Turn motion parameters into the world-space matrix that takes a point of the head at rest to where it is now.

    Parameters
    ----------
    params : ndarray, float64 (6,)
        Translations (mm) and rotations (rad), RAS+. Realignment reports the same parameters, with the head at rest as its reference.
    grid : Grid
        The rotation is about its centre.

    Returns
    -------
    ndarray, float64 (4, 4)
        ``p -> R (p - centre) + centre + translation``, with ``R = Rz @ Ry @ Rx``.
    """
    centre = (grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1])[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(*params[3:])
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + params[:3]
    return matrix


def rotation_matrix(x: float, y: float, z: float) -> NDArray[np.float64]:
    """Rotation ``Rz @ Ry @ Rx``, float64 (3, 3); right-handed turns about the axes in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x, np.float64)


def _world(grid: Grid) -> Field:
    """World millimetres of every voxel, float32 (3, X, Y, Z)."""
    voxels = np.indices(grid.shape, dtype=np.float32)
    linear = grid.affine[:3, :3].astype(np.float32)
    moved = np.tensordot(linear, voxels, axes=1) + grid.affine[:3, 3].astype(np.float32)[:, None, None, None]
    return np.asarray(moved, np.float32)


def _distance(points: Field, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    """Approximate distance in mm to an ellipsoid's surface, negative inside, float32 (X, Y, Z)."""
    p = points - np.array(centre, np.float32)[:, None, None, None]
    r = np.array(radii, np.float32)[:, None, None, None]
    k0 = np.sqrt(((p / r) ** 2).sum(axis=0))
    k1 = np.sqrt(((p / r**2) ** 2).sum(axis=0))
    return np.asarray(k0 * (k0 - 1) / np.maximum(k1, 1e-6), np.float32)


def _both_sides(points: Field, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    """Like :func:`_distance`, to the nearer of an ellipsoid and its mirror image across the midline."""
    mirrored = np.concatenate([np.abs(points[:1]), points[1:]])
    return _distance(mirrored, centre, radii)


def _inside(distance: Field, edge_mm: float = _EDGE_MM) -> Field:
    """Fraction of a voxel that lies inside a surface, float32."""
    return np.asarray(special.expit(-distance / edge_mm), np.float32)


def _ball(points: Field, centre: tuple[float, float, float], radius_mm: float) -> Field:
    """Smooth bump: 1 at the centre, one half at `radius_mm`, float32 (X, Y, Z)."""
    distance2 = ((points - np.array(centre, np.float32)[:, None, None, None]) ** 2).sum(axis=0)
    return np.asarray(np.exp2(-distance2 / np.float32(radius_mm**2)), np.float32)


def _random_field(grid: Grid, rng: np.random.Generator, sigma_mm: float) -> Field:
    """Smooth Gaussian random field with unit variance, float32 (X, Y, Z)."""
    field = ndimage.gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), sigma_mm / grid.voxel_size_mm, mode="wrap")
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _cerebrum(points: Field) -> Field:
    """Distance in mm to the outline of cerebrum and temporal lobes, float32 (X, Y, Z): narrower in front, flatter below."""
    x, y, z = points
    shaped = np.stack([x / (1 - 0.14 * np.clip((y + 17) / 90, -0.6, 1.1)), y, np.where(z > 0, z, z * 1.65)])
    outline = _distance(shaped, (0.0, -17.0, 0.0), (67.0, 87.0, 74.0))
    return np.minimum(outline, _both_sides(points, (42.0, -8.0, -27.0), (21.0, 42.0, 18.0)))


def _ventricles(points: Field) -> Field:
    """Distance in mm to the lateral, third and fourth ventricles, float32 (X, Y, Z)."""
    x, y, z = points
    bend = np.stack([np.abs(x) - 8.0 - 0.0035 * (y + 10) ** 2, y, z - 19.0 + 0.007 * (y + 12) ** 2])
    lateral = _distance(bend, (0.0, -14.0, 0.0), (5.2, 38.0, 7.5))
    horns = _both_sides(points, (24.0, -50.0, 8.0), (5.0, 17.0, 8.0))
    third = _distance(points, (0.0, -12.0, 4.0), (2.2, 14.0, 11.0))
    fourth = _distance(points, (0.0, -46.0, -30.0), (6.0, 4.5, 9.0))
    return np.asarray(np.minimum(np.minimum(lateral, horns), np.minimum(third, fourth)), np.float32)


def _deep_grey(points: Field) -> Field:
    """Distance in mm to thalamus, caudate and putamen, float32 (X, Y, Z)."""
    thalamus = _both_sides(points, (12.0, -19.0, 7.0), (8.0, 13.0, 8.0))
    caudate = _both_sides(points, (14.0, 12.0, 9.0), (4.5, 9.0, 9.0))
    putamen = _both_sides(points, (26.0, 3.0, 1.0), (6.0, 15.0, 9.0))
    return np.asarray(np.minimum(thalamus, np.minimum(caudate, putamen)), np.float32)


def _hindbrain(points: Field) -> tuple[Field, Field]:
    """Distances in mm to cerebellum and brainstem, float32 (X, Y, Z) each."""
    x, y, z = points
    cerebellum = _both_sides(points, (20.0, -64.0, -37.0), (31.0, 27.0, 21.0))
    stem_y = -27.0 + 0.3 * (z + 30.0)
    stem = np.maximum(np.hypot(x / 1.15, y + 0.0 - stem_y) - 12.0, z + 8.0)
    return cerebellum, np.asarray(stem, np.float32)


def _cortex(depth: Field, points: Field, grid: Grid, rng: np.random.Generator) -> tuple[Field, Field]:
    """Fold the outer layer: fractions of fluid in the sulci and of white matter below the cortex, float32 (X, Y, Z) each.

    Sulci are the sheets where a smooth random field crosses zero; cortex follows them inwards.
    """
    field = _random_field(grid, rng, 3.9)
    slope = np.sqrt(sum(g**2 for g in np.gradient(field, *map(float, grid.voxel_size_mm))))
    away_mm = np.abs(field) / np.maximum(slope, 0.06)  # distance to the nearest sheet, roughly
    reach = 22.0 + 6.0 * _random_field(grid, rng, 12.0)  # how deep the sulci go
    sulcus = 0.8 * _inside(away_mm - 0.5, 0.5) * _inside(depth - reach, 2.0)
    fissure = _inside(np.abs(points[0]) - 1.0, 0.5) * special.expit((np.abs(points[2] - 12) - 14) / 2.0)  # between the hemispheres
    sulcus = np.maximum(sulcus, fissure)
    buried = np.minimum(depth - 3.2, np.where(depth < reach + 3, away_mm - 3.8, depth))
    return sulcus.astype(np.float32), _inside(-buried, 0.8)


def _draw(points: Field, grid: Grid, rng: np.random.Generator) -> tuple[Field, Field, NDArray[np.bool_]]:
    """Draw the tissues: signal and grey fraction, float32 (X, Y, Z) each, and the brain, bool (X, Y, Z)."""
    size = rng.uniform(0.97, 1.03, 3).astype(np.float32)[:, None, None, None]
    points = points / size
    cerebrum, (cerebellum, stem) = _cerebrum(points), _hindbrain(points)
    outline = np.minimum(cerebrum, np.minimum(cerebellum, stem))
    wide = _smooth_union(outline, cerebrum)
    sulcus, white = _cortex(-cerebrum, points, grid, rng)
    folia = 0.5 + 0.5 * np.sin(np.hypot(points[1] + 45.0, points[2] + 25.0) * 2 * np.pi / 9.0)
    white = np.where(cerebellum < cerebrum, 0.55 * folia * _inside(cerebellum + 5, 1.5), white)
    white = np.maximum(white * (1 - _inside(_deep_grey(points))), _inside(stem))
    fluid = np.maximum(np.where(cerebrum < np.minimum(cerebellum, stem), sulcus, 0), _inside(_ventricles(points), 0.5))
    brain = _inside(outline)

    skull, head = _inside(wide - 3.0), _inside(wide - 14.0 - 0.05 * np.maximum(-points[2] - 20, 0))
    bone = _inside(wide - 9.0)
    signal = INTENSITY["scalp"] * head * (1 - bone) + INTENSITY["bone"] * bone * (1 - skull)
    signal += 0.75 * INTENSITY["fluid"] * skull * (1 - brain)
    grey = brain * (1 - fluid) * (1 - white)
    signal += brain * fluid * INTENSITY["fluid"] + grey * INTENSITY["grey"] + brain * (1 - fluid) * white * INTENSITY["white"]
    eye = _inside(_both_sides(points, (32.0, 62.0, -33.0), (12.0, 12.0, 12.0)))
    signal = signal * (1 - eye) + eye * INTENSITY["eye"]
    signal = signal * _shading(points, grid, rng)
    signal = ndimage.gaussian_filter(signal.astype(np.float32), 0.45)
    return np.asarray(signal, np.float32), grey.astype(np.float32), (brain > 0.5) & (signal > 150)


def _smooth_union(a: Field, b: Field) -> Field:
    """Outline that bridges the gaps between parts, for the skull around them, float32 (X, Y, Z) in mm."""
    return np.asarray(-6.0 * np.logaddexp(-a / 6.0, -b / 6.0) + 6.0 * np.log(2.0), np.float32)


def _shading(points: Field, grid: Grid, rng: np.random.Generator) -> Field:
    """Receive-coil shading and signal loss above the sinuses and the ear canals, float32 (X, Y, Z)."""
    x, y, z = points
    coil = 0.9 + 0.22 * ((x / 90) ** 2 + ((y + 17) / 105) ** 2) + 0.03 * _random_field(grid, rng, 40.0)
    loss = 0.85 * _ball(points, (0.0, 47.0, -24.0), 14.0) + 0.6 * _ball(np.stack([np.abs(x), y, z]), (50.0, -22.0, -38.0), 11.0)
    return np.asarray(coil * (1 - np.minimum(loss, 0.95)), np.float32)


def _blobs(points: Field, grey: Field, brain: NDArray[np.bool_], rng: np.random.Generator, n: int) -> Field:
    """Hidden voxels: `n` blobs in the grey matter of the back half of the brain, at least 12 mm apart, float32 (X, Y, Z)."""
    allowed = np.argwhere(brain & (grey > 0.6) & (points[1] < -30) & (points[2] > -25) & (points[2] < 45))
    gains = np.zeros(grey.shape, np.float32)
    centres: list[NDArray[np.float32]] = []
    if not len(allowed):
        raise ValueError(f"head: no grey matter of the back of the brain lies in the grid of shape {grey.shape}")
    for candidate in rng.permutation(allowed):
        centre = points[:, candidate[0], candidate[1], candidate[2]]
        if all(np.linalg.norm(centre - other) > 12 for other in centres):
            centres.append(centre)
            sign = -1.0 if len(centres) % 4 == 0 else 1.0
            ball = _ball(points, (float(centre[0]), float(centre[1]), float(centre[2])), rng.uniform(5.0, 8.0))
            gains += sign * rng.uniform(0.5, 1.0) * np.where(ball > 0.1, ball, 0)
        if len(centres) == n:
            break
    gains *= np.clip(1.5 * grey, 0, 1) * brain
    return np.asarray(gains / max(float(np.abs(gains).max()), 1e-6), np.float32)
