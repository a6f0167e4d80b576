"""A decoder on today's grid.

A score is a linear functional of the volume: the sum over the voxels of f = weights / noise_sd, times the volume. Volumes of another day
lie on another grid, in a head that lies elsewhere. f is a density over the head, so it is carried to today's grid once, and each volume is
interpolated as often as on the decoder's own grid, once, when it is aligned to today's reference:

1. f is interpolated by cubic B-splines from the decoder's voxels, on a lattice fine enough for either grid; beyond the mask it goes on as
   its nearest voxel, so that the mask's edge is no edge of f.
2. The lattice is collected into today's voxels by the adjoint of their own interpolation: where they are larger, nothing aliases; where
   they are smaller, all take part. A constant keeps its value.
3. Inside the carried mask (voxels of which more than half lies in the decoder's) and today's field of view (less a voxel at each face,
   into which the head moves), weights = f noise_sd. What lies outside has no weight and no noise, and the projection centres and
   normalises without it.

The noise is carried too, and scaled by today's signal over the decoder's. That is a prior; with today's first volumes it is drawn to what
they show. The weights are f times whatever the noise is then, so that f itself stays as it was trained.

Voxels that are the decoder's in another order (axes swapped or flipped) need no placement: its arrays are reordered, exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from rtevo.decode.folder import Decoder
from rtevo.decode.sampling import collect, sample
from rtevo.errors import DecoderError, GeometryError
from rtevo.kernels._compile import cache_lock
from rtevo.kernels.average import average_linear
from rtevo.kernels.smooth import smooth
from rtevo.records import Grid

if TYPE_CHECKING:
    from rtevo.place import Placement

__all__ = ["Order", "carry", "reorder", "same_voxels", "together", "warm_up"]

Array = NDArray[np.float64]
MARGIN = 1
"""Number of voxels at each face of today's field of view that are not decoded: the head's motion moves them out of it."""
FEWEST_VOLUMES = 3
"""Number of volumes from which on today's noise is estimated."""
FWHM_MM = 4.0
"""Smoothing if neither the decoder nor the session defines it."""
_SPACING = 0.6  # points of the lattice lie closer than this part of the decoder's smallest voxel edge
_BEYOND = 4  # today's voxels around the mask that f goes on for: further than its collection reaches
_PRIOR_VOLUMES = 10.0  # volumes' worth of evidence that the carried noise is, as in rtevo.decode.separate


@dataclass(frozen=True)
class Order:
    """How the same voxels are stored in another order.

    Parameters
    ----------
    axes : tuple of int, (3,)
        Which of the first grid's axes each axis of the second is.
    flips : tuple of bool, (3,)
        Whether it runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array (X, Y, Z) of the first grid as the second has it: the same numbers."""
        turned = array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return np.ascontiguousarray(turned)

    def grid(self, grid: Grid) -> Grid:
        """Return the first grid in the second's order."""
        back = np.zeros((4, 4))
        back[3, 3] = 1.0
        for axis, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            back[old, axis] = -1.0 if flip else 1.0
            back[old, 3] = grid.shape[old] - 1 if flip else 0.0
        return Grid((grid.shape[self.axes[0]], grid.shape[self.axes[1]], grid.shape[self.axes[2]]), grid.affine @ back)


def same_voxels(grid: Grid, other: Grid) -> Order | None:
    """Return the order in which the second grid holds the voxels of the first; None if their voxels differ.

    Parameters
    ----------
    grid, other : Grid
        They hold the same voxels where, in some order of axes and directions, :meth:`rtevo.records.Grid.difference` finds none.
    """
    turn = np.linalg.solve(grid.affine[:3, :3], other.affine[:3, :3])
    axes = np.abs(turn).argmax(axis=0)
    if sorted(axes) != [0, 1, 2]:
        return None
    first, second, third = (int(axis) for axis in axes)
    flipped = [bool(turn[axis, k] < 0) for k, axis in enumerate((first, second, third))]
    order = Order((first, second, third), (flipped[0], flipped[1], flipped[2]))
    return None if order.grid(grid).difference(other) else order


def reorder(decoder: Decoder, grid: Grid) -> Decoder | None:
    """Return a decoder in the order in which `grid` holds its voxels: itself where that is its own, None where they are others."""
    if not decoder.grid.difference(grid):
        return decoder
    order = same_voxels(decoder.grid, grid)
    if order is None:
        return None
    if decoder.maps:
        return together(decoder, [found for each in decoder.maps if (found := reorder(each, grid)) is not None])
    noise = None if decoder.noise_sd is None else order(decoder.noise_sd)
    return replace(
        decoder,
        grid=order.grid(decoder.grid),
        reference=order(decoder.reference),
        mask=order(decoder.mask),
        weights=order(decoder.weights),
        noise_sd=noise,
    )


def carry(
    decoder: Decoder,
    placement: Placement,
    today: ArrayLike,
    today_grid: Grid,
    *,
    volumes: Sequence[ArrayLike] = (),
    fwhm_mm: float | None = None,
    moved: bool = False,
) -> Decoder:
    """Carry a decoder to today's grid.

    Parameters
    ----------
    decoder : Decoder
    placement : Placement
        Where the decoder's head lies today: its `matrix` takes the decoder's world to today's.
    today : array-like, float (X, Y, Z)
        Today's reference, to which today's volumes are aligned.
    today_grid : Grid
        Of today's volumes.
    volumes : sequence of array-like, (X, Y, Z)
        Today's first volumes, aligned to today's reference; from `FEWEST_VOLUMES` on today's noise is estimated from them.
    fwhm_mm : float, optional
        Smoothing of today's session, mm. Default: the decoder's, else `FWHM_MM`.
    moved : bool
        Carry it on its own grid too: volumes are aligned to `today`, because the head lies too far from the decoder's reference.

    Returns
    -------
    Decoder
        On today's grid, with today's reference, and all its maps; its settings say in ``placed`` where it comes from. The decoder itself
        where today's grid is its own, and the decoder reordered where it has the same voxels: then volumes go to the decoder's reference.

    Raises
    ------
    GeometryError
        Today's reference has another shape than today's grid.
    DecoderError
        Fewer than two voxels of the decoder's mask, no signal or no noise lie in today's field of view.
    """
    same = None if moved else reorder(decoder, today_grid)
    if same is not None:
        return same
    if decoder.maps:
        rest: dict[str, Any] = {"volumes": volumes, "fwhm_mm": fwhm_mm, "moved": moved}
        return together(decoder, [carry(each, placement, today, today_grid, **rest) for each in decoder.maps])
    reference = np.nan_to_num(np.asarray(today, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if reference.shape != today_grid.shape:
        raise GeometryError(f"today's reference: expected the shape of today's grid, {today_grid.shape}, found {reference.shape}")
    lattice = _Lattice(decoder, np.asarray(placement.matrix, np.float64), today_grid)
    sd = np.zeros(decoder.grid.shape) if decoder.noise_sd is None else decoder.noise_sd.astype(np.float64)
    counts = decoder.mask if decoder.noise_sd is None else sd > 0
    inside, counting, spread, level = lattice.means(decoder.mask, counts, sd, np.where(decoder.mask, decoder.reference, 0))
    mask = inside > 0.5
    if mask.sum() < 2:
        found = f"found {int(mask.sum())} voxels there"
        raise DecoderError(f"decoder '{decoder.name}': expected its mask inside today's field of view, {found}")
    noise: Array | None = None
    if decoder.noise_sd is None:
        weights = np.where(mask, lattice.density(decoder.weights, decoder.mask), 0.0)
    else:
        counted = mask & (counting > 0.5 * inside)
        if not counted.any():
            raise DecoderError(f"decoder '{decoder.name}', noise_sd: expected noise in today's field of view, found none")
        carried = np.divide(spread, counting, out=np.zeros(mask.shape), where=counted)
        gain = _gain(decoder, np.divide(level, inside, out=np.zeros(mask.shape), where=mask), reference)
        noise, scale = _todays_noise(carried, gain, volumes, today_grid, _fwhm(decoder, fwhm_mm))
        density = lattice.density(np.divide(decoder.weights, sd, out=np.zeros(sd.shape), where=counts), counts)
        weights = np.where(counted, density * noise / scale, 0.0)
    settings = {**decoder.settings, "placed": _about(decoder, placement, mask)}
    return Decoder(today_grid, reference, mask, weights.astype(np.float32), decoder.name, settings, _single(noise))


def together(decoder: Decoder, maps: Sequence[Decoder]) -> Decoder:
    """Return a decoder of several maps with these in place of its own: on one grid and reference, in the same order."""
    mask = np.any([each.mask for each in maps], axis=0)
    weights = np.sum([np.abs(each.weights) / np.abs(each.weights).max() for each in maps], axis=0)
    if np.ptp(weights[mask]) == 0:  # it only says where the maps weigh
        weights = np.where(mask, maps[0].weights, 0)
    one = maps[0]
    settings = {name: value for name, value in one.settings.items() if name not in ("category", "unit")}  # of that map alone
    return Decoder(one.grid, one.reference, mask, weights, decoder.name, settings, None, decoder.goal, tuple(maps))


class _Lattice:
    """Points in today's voxels around the decoder's mask, and the decoder's arrays sampled there and collected."""

    def __init__(self, decoder: Decoder, matrix: Array, today: Grid) -> None:
        self._decoder, self._today = decoder, today
        self._to_voxel = np.linalg.inv(decoder.grid.affine) @ np.linalg.inv(matrix) @ today.affine  # today's voxel to the decoder's
        self._first, self._size = self._box()
        smallest = float(decoder.grid.voxel_size_mm.min())
        parts = [max(math.ceil(size / (_SPACING * smallest) - 1e-6), 1) for size in today.voxel_size_mm]
        self._fine = (parts[0], parts[1], parts[2])
        self._coarse = (min(parts[0], 2), min(parts[1], 2), min(parts[2], 2))

    def _box(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First voxel and size of the part of today's grid that the mask may reach."""
        found = np.argwhere(self._decoder.mask)
        low, high = found.min(axis=0) - 1.0, found.max(axis=0) + 1.0
        corners = np.array([[*np.where(which, high, low), 1.0] for which in np.ndindex(2, 2, 2)])
        reached = (corners @ np.linalg.inv(self._to_voxel).T)[:, :3]
        limit = np.array(self._today.shape)
        first = np.clip(np.floor(reached.min(axis=0)).astype(np.int64) - _BEYOND, 0, limit - 1)
        last = np.clip(np.ceil(reached.max(axis=0)).astype(np.int64) + _BEYOND, 0, limit - 1)
        return first, last - first + 1

    def _points(self, parts: tuple[int, int, int]) -> tuple[Array, tuple[int, int, int]]:
        """Matrix from the points of a lattice to the decoder's voxels, and the lattice's shape."""
        place = np.eye(4)
        place[:3, :3] = np.diag(1.0 / np.array(parts))
        place[:3, 3] = self._first + 0.5 / np.array(parts) - 0.5
        x, y, z = (int(n) for n in self._size * parts)
        return self._to_voxel @ place, (x, y, z)

    def density(self, values: NDArray[Any], where: NDArray[np.bool_]) -> Array:
        """Carry a map that is known in some voxels, float64 (X, Y, Z) of today."""
        reach = self._today.voxel_size_mm.max() / self._decoder.grid.voxel_size_mm
        beyond = np.ceil((_BEYOND + 2) * reach * math.sqrt(3)).astype(int)
        filled, shift = _continued(values, where, beyond, self._decoder.grid), np.eye(4)
        shift[:3, 3] = beyond
        matrix, shape = self._points(self._fine)
        return self._placed(collect(sample(filled, shift @ matrix, shape), self._fine))

    def means(self, *fields: NDArray[Any]) -> list[Array]:
        """Average fields over each of today's voxels, linear in between; 0 in the margin of the field of view, float64 (X, Y, Z) each."""
        x, y, z = (int(n) for n in self._size)
        out = np.zeros((x, y, z, len(fields)), np.float32)
        stacked = np.ascontiguousarray(np.stack([np.asarray(field, np.float32) for field in fields], axis=-1))
        average_linear(stacked, self._points((1, 1, 1))[0], self._coarse, out)
        inner = np.zeros(self._today.shape)
        inner[tuple(slice(MARGIN, n - MARGIN) for n in self._today.shape)] = 1.0
        return [inner * self._placed(np.asarray(out[..., k], np.float64)) for k in range(len(fields))]

    def _placed(self, part: Array) -> Array:
        """Return an array of today's grid with a part of it filled in."""
        whole = np.zeros(self._today.shape)
        whole[tuple(slice(first, first + n) for first, n in zip(self._first, self._size, strict=True))] = part
        return whole


def _continued(values: NDArray[Any], where: NDArray[np.bool_], beyond: NDArray[np.int64], grid: Grid) -> NDArray[np.float32]:
    """Pad a map by a number of voxels at each side, and continue it as its nearest known voxel."""
    room = [(int(n), int(n)) for n in beyond]
    known = np.pad(where, room)
    nearest = distance_transform_edt(~known, sampling=grid.voxel_size_mm, return_distances=False, return_indices=True)
    return np.asarray(np.pad(np.asarray(values, np.float32), room)[tuple(nearest)], np.float32)


def _gain(decoder: Decoder, before: Array, today: NDArray[np.float32]) -> float:
    """Signal of today's reference over the decoder's, the median over the voxels where it is known."""
    both = (before > 0) & (today > 0)
    if not both.any():
        raise DecoderError(f"decoder '{decoder.name}': expected signal where its mask lies in today's reference, found none")
    return float(np.median(today[both] / before[both]))


def _todays_noise(carried: Array, gain: float, volumes: Sequence[ArrayLike], grid: Grid, fwhm_mm: float) -> tuple[Array, float]:
    """Noise today, and how much larger it is than the carried noise: a prior scaled by the signal, drawn to what volumes show."""
    counted = carried > 0
    if len(volumes) < FEWEST_VOLUMES or not counted.any():
        return carried * gain, gain
    values = np.array([smooth(np.nan_to_num(np.asarray(v, np.float32)), grid.voxel_size_mm, fwhm_mm)[counted] for v in volumes], np.float64)
    own, freedom = values.var(axis=0, ddof=1), len(values) - 1
    prior = carried[counted] ** 2
    middle = (1.0 - 2.0 / (9.0 * freedom)) ** 3  # median of chi-squared over its degrees of freedom (Wilson & Hilferty 1931)
    scale = float(np.median(own / prior)) / middle
    if not scale > 0:
        return carried * gain, gain
    noise = np.zeros(carried.shape)
    noise[counted] = np.sqrt((freedom * own + _PRIOR_VOLUMES * scale * prior) / (freedom + _PRIOR_VOLUMES))
    return noise, math.sqrt(scale)


def warm_up() -> None:
    """Compile the kernels that carrying needs, or load them from the cache; see :mod:`rtevo.kernels._compile`."""
    with cache_lock():
        out = np.zeros((2, 2, 2, 4), np.float32)
        average_linear(np.zeros((4, 4, 4, 4), np.float32), np.eye(4), (1, 1, 1), out)
        sample(np.zeros((6, 6, 6), np.float32), np.eye(4), (6, 6, 6))


def _fwhm(decoder: Decoder, fwhm_mm: float | None) -> float:
    stored = decoder.settings.get("fwhm_mm", FWHM_MM)
    return float(fwhm_mm) if fwhm_mm is not None else float(stored) if isinstance(stored, (int, float)) else FWHM_MM


def _single(noise: Array | None) -> NDArray[np.float32] | None:
    return None if noise is None else noise.astype(np.float32)


def _about(decoder: Decoder, placement: Placement, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the carried decoder's settings on its origin."""
    weights = hashlib.sha256(np.ascontiguousarray(decoder.weights).tobytes()).hexdigest()
    return {
        "map": decoder.name,
        "weights_sha256": weights,
        "shape": list(decoder.grid.shape),
        "affine": decoder.grid.affine.tolist(),
        "voxels": int(decoder.mask.sum()),
        "voxels_today": int(mask.sum()),
        "placement": placement.as_dict(),
    }
