"""Search for a head without initial values: all shifts at once, for many turns.

For each turn, today's volume is turned about its head's centre and correlated with the reference at every shift by Fourier transforms, for
each shift over the overlap of both fields of view (masked registration: D. Padfield, 2012, IEEE Trans. Image Process. 21:2706-2718,
doi:10.1109/TIP.2011.2181402; here of locally normalised images, whose means vanish).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import maximum_filter
from scipy.spatial.transform import Rotation

from rtevo.kernels.place import normalise, products, sample_linear
from rtevo.kernels.smooth import smooth
from rtevo.place.volumes import Level, Volume

__all__ = ["candidates", "turns"]

Array = NDArray[np.float64]

FLOOR, SLOPE = 0.08, 0.03
STEP_DEG = 26.0  # between neighbouring turns
MOST_DEG = 70.0  # of a turn
LEAST_OVERLAP = 0.25  # of either head's detail
SHARE_POWER = 0.5
PEAKS = 3  # shifts kept of each turn


@lru_cache(maxsize=4)
def turns(step_deg: float = STEP_DEG, most_deg: float = MOST_DEG) -> Array:
    """Return turns that cover all up to `most_deg`, float64 (n, 3, 3): the identity first."""
    n = int(np.ceil(most_deg / step_deg))
    lattice = np.array([[i, j, k] for i in range(-n, n + 1) for j in range(-n, n + 1) for k in range(-n, n + 1)], np.float64)
    lattice = np.concatenate([lattice, lattice + 0.5]) * step_deg * 1.26  # body-centred cubic: the best covering of space
    size = np.linalg.norm(lattice, axis=1)
    kept = lattice[size <= most_deg]
    order = np.lexsort((kept[:, 2], kept[:, 1], kept[:, 0], np.round(np.linalg.norm(kept, axis=1), 6)))
    return np.asarray(Rotation.from_rotvec(np.deg2rad(kept[order])).as_matrix())


def _normalised(level: Level, window_mm: float) -> tuple[Volume, Volume]:
    """Locally normalise the known part of a level; return image and weight, both float32 (X, Y, Z)."""
    size = (level.spacing_mm,) * 3
    first, second, out = (np.empty_like(level.data) for _ in range(3))
    products(level.data, level.known, first, second)
    normalise(
        level.data, smooth(level.known, size, window_mm), smooth(first, size, window_mm), smooth(second, size, window_mm), FLOOR, SLOPE, out
    )
    weight = level.known * level.near
    return out * (weight > 0), weight


def candidates(
    reference: Level, today: Level, centre: Array, todays_centre: Array, window_mm: float, rotations: Array
) -> list[tuple[float, Array]]:
    """Return the best placements at a coarse level: score and matrix (reference's world to today's world), best first."""
    u, a = _normalised(reference, window_mm)
    v, b = _normalised(today, window_mm)
    h = reference.spacing_mm
    reach = _reach(today, todays_centre)
    side = 2 * int(np.ceil(reach / h)) + 1
    shape = [fft.next_fast_len(n + side - 1, real=True) for n in u.shape]
    spectra = [fft.rfftn(x, shape) for x in (u, u * u * (a > 0), a)]
    energy_u, energy_v = float((u * u).sum()), float((v * v).sum())
    if not energy_u * energy_v > 0:
        return []
    out, weight = np.empty((side,) * 3, np.float32), np.empty((side,) * 3, np.float32)
    found: list[tuple[float, Array]] = []
    for rotation in rotations:
        lattice = np.eye(4)  # voxel of the turned grid to today's world
        lattice[:3, :3] = rotation * h
        lattice[:3, 3] = todays_centre - rotation @ np.full(3, h * (side - 1) / 2)
        sample_linear(v, b, np.linalg.inv(today.grid.affine) @ lattice, out, weight)
        score = _scores(spectra, out, weight, shape, energy_u, energy_v)
        found += [(s, _matrix(at, rotation, reference, todays_centre, side)) for s, at in _peaks(score, shape, u.shape, side)]
    return sorted(found, key=lambda item: -item[0])


def _reach(level: Level, centre: Array) -> float:
    """Return the distance from the centre within which today's image lies, mm."""
    at = np.argwhere(level.near * level.known > 0) * level.spacing_mm + level.grid.affine[:3, 3] - centre
    return float(np.linalg.norm(at, axis=1).max(initial=level.spacing_mm))


def _scores(spectra: Sequence[NDArray[np.complex64]], v: Volume, b: Volume, shape: list[int], energy_u: float, energy_v: float) -> Volume:
    """Return the correlation at every shift, reduced for small overlaps: float32 of `shape`."""
    b = np.where(b > 0.5, b, np.float32(0))
    v = v * (b > 0)
    one, square, mask = (np.conj(fft.rfftn(x, shape)) for x in (v, v * v, b))
    cross = fft.irfftn(spectra[0] * one, shape)
    of_u = np.maximum(fft.irfftn(spectra[1] * mask, shape), 0)
    of_v = np.maximum(fft.irfftn(spectra[2] * square, shape), 0)
    share_u, share_v = of_u / energy_u, of_v / energy_v
    share = np.maximum(share_u, share_v)
    score = cross / np.sqrt(np.maximum(of_u * of_v, 1e-6 * energy_u * energy_v)) * np.minimum(share, 1) ** SHARE_POWER
    score[(share < 2 * LEAST_OVERLAP) | (np.minimum(share_u, share_v) < LEAST_OVERLAP / 2)] = -1
    return np.asarray(score, np.float32)


def _peaks(score: Volume, shape: list[int], ours: tuple[int, ...], side: int) -> list[tuple[float, Array]]:
    """Return the highest local maxima and their shifts, in voxels, refined by parabolas."""
    top = np.flatnonzero((score == maximum_filter(score, size=3, mode="wrap")).ravel() & (score.ravel() > 0))
    top = top[np.argsort(-score.ravel()[top], kind="stable")][:PEAKS]
    found = []
    for flat in top:
        at = np.array(np.unravel_index(flat, score.shape))
        fine = at.astype(np.float64)
        for axis in range(3):
            ends = [score[tuple((at + d * (np.arange(3) == axis)) % shape)] for d in (-1, 0, 1)]
            bend = ends[0] - 2 * ends[1] + ends[2]
            if bend < 0 and ends[0] > 0 and ends[2] > 0:
                fine[axis] += np.clip(0.5 * (ends[0] - ends[2]) / bend, -0.5, 0.5)
        wrapped = np.where(fine >= np.array(ours) - 0.5, fine - shape, fine)
        found.append((float(score.ravel()[flat]), wrapped))
    return found


def _matrix(shift: Array, rotation: Array, reference: Level, todays_centre: Array, side: int) -> Array:
    """Return the placement with voxel (0, 0, 0) of the turned grid at voxel `shift` of the reference's."""
    h = reference.spacing_mm
    corner = reference.grid.affine[:3, 3] + h * shift  # reference's world, of the turned grid's first voxel
    middle = corner + h * (side - 1) / 2  # today's centre
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = todays_centre - rotation @ middle
    return matrix
