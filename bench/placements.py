"""Known placements: a decoder's reference and another day's volume of the same head, whose rigid transform is known.

Real heads: the reference is the mean of some volumes of a run, aligned to each other; today's is *another* volume of that run, its motion
composed, sampled on a grid of other voxel size and orientation, cut, changed in contrast, and given Rician noise of its own. Simulated
heads are drawn on a fine grid, and sampled twice.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.kernels.mask import brain_mask
from rtevo.kernels.rigid import matrix_from_params
from rtevo.realign import Realigner
from rtevo.records import Grid

__all__ = ["HEADS", "REAL", "Case", "Source", "make_case", "mean_error", "other_person", "source"]

Array = NDArray[np.float64]
REAL = ("philips-slices", "siemens-xa30-enhanced", "siemens-mosaic", "ge-slices")
HEADS = (*REAL, *(f"simulated {n}" for n in range(4)))
REFERENCE_VOLUMES = 5
MOST_VOLUMES = 24
MOST_RESIDUAL, LEAST_CORRELATION = 0.02, 0.98  # of volumes that a run's first volume shows to be whole
ORIENTATIONS = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # world axis along each voxel axis
TSNR = (25.0, 80.0)  # of one volume at 3 mm: mean signal over the noise's standard deviation
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, eq=False)
class Source:
    """One head: the reference, and volumes that were not part of it.

    Parameters
    ----------
    name : str
    reference : ndarray, float32 (X, Y, Z)
    grid : Grid
    volumes : list of ndarray, float32 (x, y, z)
        On `volumes_grid`.
    motions : list of ndarray, float64 (4, 4)
        Reference world to the world of each volume.
    volumes_grid : Grid
    """

    name: str
    reference: NDArray[np.float32]
    grid: Grid
    volumes: list[NDArray[np.float32]]
    motions: list[Array]
    volumes_grid: Grid


@dataclass(frozen=True, eq=False)
class Case:
    """One known placement.

    Parameters
    ----------
    reference, today : ndarray, float32
        NaN, or solid zeros, where nothing is known.
    grid, today_grid : Grid
    matrix : ndarray, float64 (4, 4)
        The truth: decoder's world to today's world.
    brain : ndarray, bool
        On `grid`: where errors are measured.
    about : dict
        What was done: head, orientation, voxel_mm, shift_mm, turn_deg, coverage, contrast, ...
    """

    reference: NDArray[np.float32]
    grid: Grid
    today: NDArray[np.float32]
    today_grid: Grid
    matrix: Array
    brain: NDArray[np.bool_]
    about: dict[str, Any] = field(default_factory=dict)


# --- heads


def _archive(name: str) -> tuple[NDArray[np.float32], Array]:
    from rtevo.ingest import FolderSource, describe

    archive = Path(os.environ.get("RTEVO_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / f"{name}.tar.xz"
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        info, files = describe(Path(folder)), FolderSource(Path(folder), patience_s=0.0)
        found = [v.data for v in (*files.poll(), *files.finish()) if v.data is not None][:MOST_VOLUMES]
    return np.stack(found).astype(np.float32), info.grid.affine


def _real(name: str) -> Source:
    """Read a run; volumes that the head moved in while they were taken (half of those of ge-slices) are no truth, and are left out."""
    volumes, affine = _archive(name)
    grid = Grid(volumes.shape[1:], affine)
    with Realigner(volumes[0], affine) as realigner:
        found = [realigner.align(v) for v in volumes]
        found = [(m, a.copy()) for m, a in found]
    still = [n for n, (m, _) in enumerate(found) if m.converged and m.residual < MOST_RESIDUAL and m.correlation > LEAST_CORRELATION]
    taken = still[::2][:REFERENCE_VOLUMES]
    reference = np.maximum(np.mean([found[n][1] for n in taken], axis=0), 0).astype(np.float32)
    rest = [n for n in still if n not in taken]
    with Realigner(reference, affine) as realigner:
        motions = [realigner.estimate(volumes[n]) for n in rest]
    return Source(name, reference, grid, [volumes[n] for n in rest], [m.matrix for m in motions], grid)


def _fine_head(seed: int) -> tuple[NDArray[np.float32], Grid]:
    """Draw a simulated head, 1.8 mm."""
    from rtevo.simulate.head import Head

    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    shape = (112, 132, 112)
    affine[:3, 3] = np.array([0.0, -14.0, 2.0]) - 0.9 * (np.array(shape) - 1)
    grid = Grid(shape, affine)
    return Head.build(grid, np.random.default_rng(7000 + seed)).signal, grid


def _simulated(name: str) -> Source:
    seed = int(name.split()[1])
    rng = np.random.default_rng(seed)
    fine, grid = _fine_head(seed)
    size = rng.choice([2.0, 2.5, 3.0, 3.5], 3)
    size[1] = size[0]
    extent = np.array([190.0, 220.0, rng.uniform(110, 150)])
    at = _box(np.array([0.0, -14.0, 10.0]), matrix_from_params([0, 0, 0, rng.uniform(-0.3, 0.1), 0.03, -0.04])[:3, :3], size, extent)
    reference = np.nan_to_num(sampled(fine, grid, at, np.eye(4)))
    sigma = reference[reference > 0.3 * reference.max()].mean() / 150
    return Source(name, _rician(reference, sigma, rng), at, [fine], [np.eye(4)], grid)


@lru_cache(maxsize=32)
def source(name: str) -> Source:
    """Read or draw a head; raises FileNotFoundError where a real one's archive is missing."""
    return _real(name) if name in REAL else _simulated(name)


def other_person(kind: str, seed: int) -> Source:
    """Draw a person who is in nobody's set: a simulated head scaled unevenly, or a real one warped smoothly."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    if kind.startswith("simulated"):
        base = _simulated(f"simulated {100 + seed}")
        stretch = np.diag([*rng.uniform(0.92, 1.08, 3), 1.0])
        grid, fine = Grid(base.grid.shape, stretch @ base.grid.affine), Grid(base.volumes_grid.shape, stretch @ base.volumes_grid.affine)
        return Source(f"{kind} {seed}", base.reference, grid, base.volumes, base.motions, fine)
    base = source(kind)
    warp = rng.uniform(2.5, 5.0)
    moved = [_warped(v, base.grid, np.stack([warp * _smooth_field(base.grid, rng, 22.0) for _ in range(3)])) for v in base.volumes[:1]]
    return Source(f"{kind} warped {seed}", base.reference, base.grid, moved, base.motions[:1], base.grid)


# --- sampling


def _points(grid: Grid) -> Array:
    """World points of all voxels, float64 (3, n)."""
    return grid.affine[:3, :3] @ np.indices(grid.shape).reshape(3, -1) + grid.affine[:3, 3:]


def _box(centre: Array, axes: Array, size: Array, extent: Array) -> Grid:
    """Return a grid around a centre."""
    shape = np.maximum(np.rint(extent / size), 4).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * size
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), affine)


def sampled(volume: NDArray[np.float32], grid: Grid, at: Grid, matrix: Array) -> NDArray[np.float32]:
    """Sample a volume whose head was moved by `matrix` at another grid: voxels average over their edges; NaN outside.

    Parameters
    ----------
    matrix : ndarray, float64 (4, 4)
        World of `grid` to world of `at`.
    """
    index = np.linalg.inv(matrix @ grid.affine) @ at.affine
    cut = np.linalg.norm(index[:3, :3], axis=1)  # about what one step of `at` is along each axis of the volume
    soft = ndimage.gaussian_filter(volume.astype(np.float64), np.sqrt(np.maximum(cut**2 - 1, 0) / 12), mode="nearest")
    where = (index[:3, :3] @ np.indices(at.shape).reshape(3, -1) + index[:3, 3:]).reshape(3, *at.shape)
    found = ndimage.map_coordinates(soft, where, order=3, mode="nearest")
    last = np.array(grid.shape).reshape(3, 1, 1, 1) - 0.5
    found[((where < -0.5) | (where > last)).any(axis=0)] = np.nan
    return found.astype(np.float32)


def _smooth_field(grid: Grid, rng: np.random.Generator, sigma_mm: float) -> Array:
    """Return a smooth random field of unit deviation."""
    found = ndimage.gaussian_filter(rng.normal(size=grid.shape), sigma_mm / grid.voxel_size_mm, mode="wrap")
    return np.asarray((found - found.mean()) / found.std())


def _warped(volume: NDArray[np.float32], grid: Grid, shift_mm: Array) -> NDArray[np.float32]:
    """Displace what a volume shows, mm along the world's axes."""
    voxels = np.indices(grid.shape) + np.tensordot(np.linalg.inv(grid.affine[:3, :3]), shift_mm, 1)
    return ndimage.map_coordinates(volume.astype(np.float64), voxels, order=3, mode="nearest").astype(np.float32)


def _rician(volume: NDArray[Any], sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    noise = rng.normal(scale=sigma, size=(2, *volume.shape))
    return np.hypot(np.maximum(volume, 0) + noise[0], noise[1]).astype(np.float32)


# --- what another day changes


def _distorted(volume: NDArray[np.float32], grid: Grid, brain: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Displace along one axis by a smooth field of 1.5 mm (standard deviation), without its rigid part over the brain."""
    axis = int(rng.integers(3))
    shift = np.zeros((3, *grid.shape))
    shift[axis] = rng.uniform(0.8, 1.6) * _smooth_field(grid, rng, 25.0)
    points = _points(grid).reshape(3, *grid.shape)
    centre = points[:, brain].mean(axis=1)
    offset = points - centre.reshape(3, 1, 1, 1)
    basis = np.zeros((6, 3, *grid.shape))
    for a in range(3):
        basis[a, a] = 1.0
        unit = np.zeros((3, 1, 1, 1))
        unit[a] = 1.0
        basis[3 + a] = np.cross(np.broadcast_to(unit, offset.shape), offset, axis=0)
    design = basis[:, :, brain].reshape(6, -1).T
    fit = np.linalg.lstsq(design, shift[:, brain].ravel(), rcond=None)[0]
    return _warped(volume, grid, shift - np.tensordot(fit, basis, 1))


def _contrast(volume: NDArray[np.float32], brain: NDArray[np.bool_], kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Change the contrast: another echo time (a power), or fluid no longer brighter than tissue."""
    mean = volume[brain].mean()
    relative = np.maximum(volume / mean, 0)
    if kind == "power":
        relative = relative ** rng.uniform(0.6, 1.7)
    elif kind == "fluid":
        bright = np.maximum(relative - 1.05, 0)
        relative = relative - rng.uniform(0.8, 1.6) * np.minimum(bright, 0.5)
    return np.maximum(relative * mean, 0).astype(np.float32)


def _shaded(volume: NDArray[np.float32], grid: Grid, rng: np.random.Generator) -> NDArray[np.float32]:
    """Multiply a receive coil's field: a slope and a bowl, up to a factor of about 3."""
    points = _points(grid)
    offset = (points - points.mean(axis=1, keepdims=True)) / 90.0
    direction = rng.normal(size=3)
    direction *= rng.uniform(0, 0.35) / np.linalg.norm(direction)
    field_ = direction @ offset + rng.uniform(-0.1, 0.5) * (offset**2).sum(axis=0)
    return (volume * np.exp(np.clip(field_, -1.2, 1.2)).reshape(grid.shape)).astype(np.float32)


def _dropout(volume: NDArray[np.float32], grid: Grid, brain: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Lose signal in a ball or two at the brain's surface."""
    points = _points(grid).reshape(3, *grid.shape)
    surface = np.argwhere(brain & ~ndimage.binary_erosion(brain))
    for _ in range(int(rng.integers(1, 3))):
        spot = grid.affine[:3, :3] @ surface[rng.integers(len(surface))] + grid.affine[:3, 3]
        squared = ((points - spot.reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
        volume = volume * (1 - rng.uniform(0.5, 0.95) * np.exp(-squared / (2 * rng.uniform(8, 14) ** 2)))
    return volume.astype(np.float32)


def _fatty(volume: NDArray[np.float32], grid: Grid, brain: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Add a scalp of unsuppressed fat, displaced along one axis, and a background."""
    size = float(grid.voxel_size_mm.mean())
    outer = ndimage.binary_dilation(brain, iterations=max(round(9 / size), 2))
    inner = ndimage.binary_dilation(brain, iterations=max(round(4 / size), 1))
    rim = ndimage.gaussian_filter((outer & ~inner).astype(float), 0.7)
    moved = np.zeros(3)
    moved[rng.integers(2)] = rng.choice([-1, 1]) * rng.uniform(3, 12)
    rim = ndimage.shift(rim, moved / grid.voxel_size_mm, order=1)
    mean = float(volume[brain].mean())
    return (volume + mean * (rng.uniform(0.15, 0.45) * rim + rng.uniform(0, 0.04))).astype(np.float32)


# --- cases


def _turned(rng: np.random.Generator, most_mm: float, most_deg: float, centre: Array) -> tuple[Array, float, float]:
    """Draw a shift and a turn of any direction."""
    shift, axis = rng.normal(size=3), rng.normal(size=3)
    length, angle = most_mm * rng.uniform(), most_deg * rng.uniform()
    matrix = np.eye(4)
    from scipy.spatial.transform import Rotation

    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad(angle) * axis / np.linalg.norm(axis)).as_matrix()
    matrix[:3, 3] = centre + length * shift / np.linalg.norm(shift) - matrix[:3, :3] @ centre
    return matrix, length, angle


def _todays_grid(rng: np.random.Generator, orientation: str, centre: Array, size: Array) -> Grid:
    """Return a grid of an orientation around the head."""
    order = ORIENTATIONS.get(orientation, ORIENTATIONS["axial"])
    axes = np.eye(3)[:, list(order)] * rng.choice([-1, 1], 3)
    angles = rng.uniform(-0.15, 0.15, 3) if orientation != "oblique" else rng.uniform(-0.6, 0.6, 3)
    axes = matrix_from_params([0, 0, 0, *angles])[:3, :3] @ axes
    extent = np.array([230.0, 230.0, rng.uniform(130, 190)])
    extent[2] = 170.0 if orientation == "sagittal" else extent[2]
    return _box(centre + rng.uniform(-6, 6, 3), axes, size, extent)


def _share(case_brain: NDArray[np.bool_], grid: Grid, matrix: Array, at: Grid, known: NDArray[np.bool_]) -> float:
    """Share of a brain whose voxels lie in known voxels of another grid."""
    index = np.linalg.inv(at.affine) @ matrix @ grid.affine
    voxels = np.rint(index[:3, :3] @ np.argwhere(case_brain).T + index[:3, 3:]).astype(int)
    inside = ((voxels >= 0) & (voxels < np.array(at.shape)[:, None])).all(axis=0)
    return float(known[tuple(voxels[:, inside])].sum() / max(voxels.shape[1], 1))


def _cut(shape: tuple[int, ...], axis: int, low: bool, keep: int) -> tuple[slice, ...]:
    whole = [slice(None)] * 3
    whole[axis] = slice(0, keep) if low else slice(shape[axis] - keep, None)
    return tuple(whole)


def _part(volume: NDArray[np.float32], grid: Grid, cut: tuple[slice, ...]) -> tuple[NDArray[np.float32], Grid]:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.indices(n)[0] for s, n in zip(cut, grid.shape, strict=True)]
    part = np.ascontiguousarray(volume[cut])
    return part, Grid(part.shape, affine)


def make_case(name: str | Source, seed: int, *, reference: Source | None = None, coverage: float | None = None) -> Case:
    """Draw a known placement of a head; the same for the same name and seed.

    Parameters
    ----------
    name : str or Source
        Whose volume is today's.
    seed : int
    reference : Source, optional
        Whose reference is the decoder's, where it is another person's: `matrix` then is only where that head would lie.
    coverage : float, optional
        Default: drawn, 0.5 to 1.
    """
    head = source(name) if isinstance(name, str) else name
    decoder = reference or head
    rng = np.random.default_rng([seed, zlib.crc32(f"{head.name} {decoder.name}".encode())])
    n = int(rng.integers(len(head.volumes)))
    brain = brain_mask(decoder.reference, decoder.grid.affine)
    centre = _points(decoder.grid)[:, brain.ravel()].mean(axis=1)
    turn, shift_mm, turn_deg = _turned(rng, 50.0, 45.0, centre)
    matrix = turn @ head.motions[n]
    orientation = str(rng.choice([*ORIENTATIONS, "oblique"]))
    size = rng.uniform(1.8, 4.0, 3)
    size[1] = size[0]
    volume, own = head.volumes[n], head.volumes_grid
    inside = brain_mask(volume, own.affine)
    drawn = {k: bool(rng.random() < p) for k, p in (("distorted", 0.3), ("shaded", 0.5), ("dropout", 0.3), ("fat", 0.3))}
    contrast = str(rng.choice(["same", "power", "fluid"], p=[0.35, 0.45, 0.2]))
    volume = _contrast(volume, inside, contrast, rng)
    if drawn["dropout"]:
        volume = _dropout(volume, own, inside, rng)
    if drawn["fat"]:
        volume = _fatty(volume, own, inside, rng)
    if drawn["shaded"]:
        volume = _shaded(volume, own, rng)
    if drawn["distorted"]:
        volume = _distorted(volume, own, inside, rng)
    target = turn[:3, :3] @ centre + turn[:3, 3]
    at = _todays_grid(rng, orientation, target, size)
    today = sampled(volume, own, at, turn)
    wanted = coverage if coverage is not None else (1.0 if rng.random() < 0.4 else rng.uniform(0.5, 1.0))
    ref, ref_grid = decoder.reference, decoder.grid
    cut_reference = bool(rng.random() < 0.35)
    axis, low = int(rng.integers(3)), bool(rng.integers(2))
    if cut_reference:
        axis = axis if ref_grid.shape[2] > 20 else int(rng.integers(2))
        ref, ref_grid, brain = _cover_reference(ref, ref_grid, brain, wanted, axis, low)
    else:
        today, at = _cover_today(today, at, brain, ref_grid, matrix, wanted, axis, low)
    known = np.isfinite(today)
    cover = min(_share(brain, ref_grid, matrix, at, known), wanted if cut_reference else 1.0)
    mean = float(volume[inside].mean())
    tsnr = rng.uniform(*TSNR) * min(max(float(np.sqrt(np.prod(size) / 27)), 0.5), 1.3)
    today = np.where(known, _rician(np.nan_to_num(today), mean / tsnr, rng), np.nan).astype(np.float32)
    zeros = bool(rng.integers(2))
    if zeros:
        today = np.nan_to_num(today)
    about = {
        "head": head.name, "decoder": decoder.name, "seed": seed, "orientation": orientation,
        "voxel_mm": [round(float(s), 2) for s in size], "shift_mm": round(shift_mm, 1), "turn_deg": round(turn_deg, 1),
        "coverage": round(cover, 3), "cut": "reference" if cut_reference else "today",
        "contrast": contrast, **drawn, "zeros": zeros, "tsnr": round(tsnr, 1),
    }  # fmt: skip
    return Case(ref, ref_grid, today, at, matrix, brain, about)


def _cover_reference(
    ref: NDArray[np.float32], grid: Grid, brain: NDArray[np.bool_], wanted: float, axis: int, low: bool
) -> tuple[NDArray[np.float32], Grid, NDArray[np.bool_]]:
    """Cut the reference along an axis so that it keeps a share of the brain."""
    profile = brain.sum(axis=tuple(a for a in range(3) if a != axis))
    along = np.cumsum(profile if low else profile[::-1]) / brain.sum()
    keep = max(int(np.searchsorted(along, wanted)) + 1, 6) if wanted < 1 else ref.shape[axis]
    cut = _cut(ref.shape, axis, low, min(keep, ref.shape[axis]))
    part, part_grid = _part(ref, grid, cut)
    return part, part_grid, np.ascontiguousarray(brain[cut])


def _cover_today(
    today: NDArray[np.float32], at: Grid, brain: NDArray[np.bool_], grid: Grid, matrix: Array, wanted: float, axis: int, low: bool
) -> tuple[NDArray[np.float32], Grid]:
    """Cut today's volume along an axis so that a share of the reference's brain is left in it."""
    known = np.isfinite(today)
    keep = today.shape[axis]
    while wanted < 1 and keep > 6:
        cut = _cut(today.shape, axis, low, keep - 1)
        rest = np.zeros_like(known)
        rest[cut] = known[cut]
        if _share(brain, grid, matrix, at, rest) < wanted:
            break
        keep -= 1
    return _part(today, at, _cut(today.shape, axis, low, keep))


def mean_error(found: Array, case: Case) -> float:
    """Mean displacement error over the reference's brain, mm."""
    points = case.grid.affine[:3, :3] @ np.argwhere(case.brain).T + case.grid.affine[:3, 3:]
    change = found - case.matrix
    return float(np.linalg.norm(change[:3, :3] @ points + change[:3, 3:], axis=0).mean())
