"""White matter, cerebrospinal fluid and the whole head as nuisance terms of each volume, from nothing that comes later.

Of a compartment the term is its mean, relative to a baseline and in units of its spread there. ``acompcor`` (Y. Behzadi et al. 2007,
doi:10.1016/j.neuroimage.2007.04.042) has the first principal components of the voxels of white matter and fluid, instead of their mean.
Mean, spread and components are those of the run's first volumes and then stay, so that a term means the same from its first volume on:
until the baseline is over the terms are not known. Each kind is a group of its own in the filters, which choose by the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.errors import DecoderError
from rtevo.kernels.mask import brain_mask
from rtevo.kernels.smooth import smooth
from rtevo.records import Grid

__all__ = ["KINDS", "Compartments", "Kind", "compartments_of", "placed_mask"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind = Literal["white_matter", "csf", "acompcor", "global"]
KINDS: tuple[Kind, ...] = ("white_matter", "csf", "acompcor", "global")
COMPONENTS = 5
"""Of ``acompcor``."""
BASELINE_S, FEWEST = 40.0, 20
"""Length of the baseline: seconds, and volumes at least."""
LEVEL_S = 30.0
"""A term is relative to its level, which follows it with this time constant: slow drift is the filter's own."""
FEWEST_VOXELS = 20
"""Of a compartment."""
MOST_VOXELS = 4000
"""That components are taken from; every second, third, ... of more."""
_DEEP_MM, _FIELD_FWHM_MM = 10.0, 40.0  # from the head's edge inwards; smoothing that leaves the coil's field of a volume
_FLUID, _WHITE = 95.0, (10.0, 45.0)  # percentiles of the deep voxels' brightness without the coil's field


def compartments_of(reference: NDArray[Any], grid: Grid) -> dict[str, Mask]:
    """Guess white matter and fluid from the brightness of an EPI volume, where nobody has given masks.

    Deep in the head fluid (the ventricles) is brightest in a T2*-weighted volume, and white matter is darker than grey. That is a guess:
    masks from an anatomical segmentation are better.

    Parameters
    ----------
    reference : ndarray (X, Y, Z)
    grid : Grid

    Returns
    -------
    dict of str to ndarray, bool (X, Y, Z)
        ``white_matter``, ``csf``, and ``global``, the whole head; empty masks where the head is too small to have a depth.
    """
    size_mm = grid.voxel_size_mm
    head = brain_mask(reference, grid.affine)
    inside = head.astype(np.float32)
    field = smooth(np.where(head, reference, 0).astype(np.float32), size_mm, _FIELD_FWHM_MM)
    field /= np.maximum(smooth(inside, size_mm, _FIELD_FWHM_MM), 1e-3)
    brightness = np.divide(reference, field, out=np.zeros(head.shape, np.float32), where=head & (field > 0))
    deep = ndimage.distance_transform_edt(head, sampling=size_mm) > _DEEP_MM
    if not deep.any():
        return {"white_matter": deep, "csf": deep.copy(), "global": head}
    low, high, fluid = np.percentile(brightness[deep], [*_WHITE, _FLUID])
    white = ndimage.binary_erosion(deep & (brightness > low) & (brightness < high))
    return {"white_matter": white, "csf": deep & (brightness > fluid), "global": head}


def placed_mask(mask: NDArray[Any], affine: Array, place: Array, grid: Grid) -> Mask:
    """Return a mask on today's grid: voxels whose middle lies in it.

    Parameters
    ----------
    mask : ndarray (X, Y, Z)
        Probabilities or 0 and 1, on any grid of the decoder's world.
    affine : ndarray, float64 (4, 4)
        Its voxels to the decoder's world.
    place : ndarray, float64 (4, 4)
        The decoder's world to today's.
    grid : Grid
        Today's.
    """
    back = np.linalg.inv(place @ affine) @ grid.affine
    found = ndimage.affine_transform(mask.astype(np.float32), back[:3, :3], back[:3, 3], grid.shape, order=1, mode="constant")
    return np.asarray(found > 0.5)


class Compartments:
    """Nuisance terms of the volumes of a run, as they come.

    Parameters
    ----------
    kinds : sequence of {"white_matter", "csf", "acompcor", "global"}
    masks : mapping of str to ndarray, bool (X, Y, Z)
        Of ``white_matter``, ``csf`` and ``global``, as far as the kinds need them.
    weighed : ndarray, bool (X, Y, Z)
        Voxels that the decoder weighs: they are left out of white matter and fluid.
    tr_s : float
        Repetition time, seconds.

    Attributes
    ----------
    sizes : tuple of int
        Terms of each kind.

    Raises
    ------
    DecoderError
        A compartment has too few voxels.
    """

    def __init__(self, kinds: Sequence[str], masks: Mapping[str, Mask], weighed: Mask, tr_s: float) -> None:
        self.sizes = tuple(COMPONENTS if kind == "acompcor" else 1 for kind in kinds)
        self._parts = [self._voxels(kind, masks, weighed) for kind in kinds]
        self._components = [kind == "acompcor" for kind in kinds]
        self._needed = max(round(BASELINE_S / tr_s), FEWEST)
        self._follows = -np.expm1(-tr_s / LEVEL_S)
        self.interrupt()

    def interrupt(self) -> None:
        """A new run follows: it has a baseline of its own."""
        self._first: list[list[NDArray[np.float32]]] = []
        self._readouts: list[_Readout] = []
        self._level = np.zeros(sum(self.sizes))

    def terms(self, volume: NDArray[np.float32]) -> Array:
        """Return the terms of an aligned volume that is not smoothed, float64 (sum of sizes,); NaN where they are not known (yet)."""
        flat = volume.ravel()
        values = [
            flat[part] if several else flat[part].mean(keepdims=True) for part, several in zip(self._parts, self._components, strict=True)
        ]
        if self._readouts:
            found = np.concatenate([readout(each) for readout, each in zip(self._readouts, values, strict=True)])
            if np.isfinite(found).all():
                self._level += self._follows * (found - self._level)
            return found - self._level
        if all(np.isfinite(each).all() for each in values):
            self._first.append(values)
        if len(self._first) >= self._needed:
            self._readouts = [
                _Readout(np.array(each, np.float64), size) for each, size in zip(zip(*self._first, strict=True), self.sizes, strict=True)
            ]
            self._first = []
        return np.full(sum(self.sizes), np.nan)

    @staticmethod
    def _voxels(kind: str, masks: Mapping[str, Mask], weighed: Mask) -> NDArray[np.int64]:
        """Voxels of a kind, as places in a flat volume."""
        if kind == "global":
            mask = masks["global"]
        else:
            mask = masks["white_matter"] | masks["csf"] if kind == "acompcor" else masks[kind]
            mask = mask & ~weighed if (mask & ~weighed).sum() >= FEWEST_VOXELS else mask
        found = np.flatnonzero(mask)
        if len(found) < FEWEST_VOXELS:
            raise DecoderError(
                f"[decoder] nuisance: {kind}: expected at least {FEWEST_VOXELS} voxels, found {len(found)}: give masks of white matter and "
                "fluid in the decoder's space ([decoder] white_matter_mask, csf_mask), or leave it out"
            )
        return found[:: -(-len(found) // MOST_VOXELS)] if kind == "acompcor" else found


class _Readout:
    """What of some voxels is a term: directions in which the baseline's volumes vary most, in units of their spread there."""

    def __init__(self, values: Array, count: int) -> None:
        n = len(values)
        trend = np.column_stack([np.ones(n), np.linspace(-1, 1, n)])
        fit = np.linalg.lstsq(trend, values, rcond=None)[0]
        left = values - trend @ fit
        sd = np.sqrt((left**2).sum(axis=0) / (n - 2))
        per_sd = np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-6 * np.abs(fit[0]))
        left *= per_sd
        variances, vectors = np.linalg.eigh(left @ left.T)  # volumes are fewer than voxels
        lengths = np.sqrt(np.maximum(variances[::-1][:count], 0.0))
        usable = lengths > 1e-6 * np.sqrt(n)
        directions = np.zeros((left.shape[1], count))
        chosen = left.T @ vectors[:, ::-1][:, :count] * np.divide(1.0, lengths, out=np.zeros_like(lengths), where=usable)
        directions[:, : chosen.shape[1]] = chosen * np.where(chosen.sum(axis=0) < 0, -1.0, 1.0)
        spread = np.ones(count)
        spread[: len(lengths)] = np.where(usable, lengths / np.sqrt(n - 2), 1.0)
        self._origin, self._weights = fit[0] + fit[1], per_sd[:, np.newaxis] * directions / spread

    def __call__(self, values: NDArray[np.float32]) -> Array:
        return np.asarray((values - self._origin) @ self._weights, np.float64)
