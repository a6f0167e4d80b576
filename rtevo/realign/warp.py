"""Distortion along phase encoding undone: displacement maps that FSL, ANTs or SDCFlows have made, on the grid of a run.

A map says for each point of the undistorted head where in the scanner's picture its signal lies. It stays with the head: a volume is
sampled at its motion's place of each voxel, moved by that voxel's displacement along the scanner's axes. That the field itself changes
when the head turns in it is left out.

Source: P. Jezzard, R. S. Balaban (1995), Correction for geometric distortion in echo planar images from B0 field variations, Magn.
Reson. Med. 34:65-73, doi:10.1002/mrm.1910340111. Signs are those of BIDS and SDCFlows (Esteban et al. 2022,
doi:10.31219/osf.io/gy8nt): a field of f Hz moves signal f times the read-out time voxels along ``PhaseEncodingDirection``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from rtevo.errors import DataError
from rtevo.records import Grid

__all__ = ["Encoding", "Warp", "load_map", "map_on", "read_warp"]

MOST_MM = 60.0  # of a displacement; more is another unit than was said


@dataclass(frozen=True)
class Encoding:
    """The encoding of a run's pictures.

    Parameters
    ----------
    direction : str
        Of phase encoding, as BIDS says it: i, i-, j, j-, k or k-, of the run's grid.
    readout_s : float
        Total read-out time (FSL's definition), s.
    """

    direction: str
    readout_s: float

    @classmethod
    def of(cls, acquisition: Mapping[str, Any], direction: str = "", readout_s: float = 0.0, unit: str = "Hz") -> Encoding:
        """Return the encoding of the headers, except for settings; for a map in voxels only the axis is needed.

        Raises
        ------
        DataError
            Headers do not say it, and it is not given.
        """
        shifts = unit == "voxels"
        axis = acquisition.get("PhaseEncodingAxis", "") if shifts else ""
        direction = direction or str(acquisition.get("PhaseEncodingDirection", axis))
        readout_s = readout_s or float(acquisition.get("TotalReadoutTime", 0.0))
        if not direction or not (readout_s > 0 or shifts):
            what = "phase_encoding" if not direction else "readout_s"
            raise DataError(f"[acquisition] distortion: the scanner's headers lack information on phase encoding: set {what}")
        return cls(direction, readout_s)


@dataclass(frozen=True, eq=False)
class Warp:
    """Where the signal of each voxel lies in the scanner's picture.

    Parameters
    ----------
    shift : ndarray, float32 (X, Y, Z, 3)
        Displacement, voxels of the run's grid along its axes.
    gain : ndarray, float32 (X, Y, Z)
        By how much signal was spread (above 1) or piled up (below 1): the determinant of the displacement's Jacobian, 0 where it folds.
    """

    shift: NDArray[np.float32]
    gain: NDArray[np.float32]

    @classmethod
    def of(cls, shift: ArrayLike) -> Warp:
        """Make one of a displacement, (X, Y, Z, 3) in voxels."""
        field = np.asarray(shift, np.float64)
        jacobian = np.eye(3) + np.stack(
            [np.stack([np.gradient(part, axis=k) for k in range(3)], axis=-1) for part in np.moveaxis(field, -1, 0)], axis=-2
        )
        gain = np.maximum(np.linalg.det(jacobian), 0.0)
        return cls(np.ascontiguousarray(field, np.float32), np.ascontiguousarray(gain, np.float32))


def map_on(data: ArrayLike, affine: ArrayLike, grid: Grid) -> NDArray[np.float64]:
    """Sample a map on a grid, linearly; beyond its edges it keeps its last value.

    Parameters
    ----------
    data : array_like, (X, Y, Z)
        NaN and infinity count as 0.
    affine : array_like, (4, 4)
        Of the map, voxel to RAS+ mm.
    grid : Grid

    Returns
    -------
    ndarray, float64 (X, Y, Z)
    """
    voxels = np.linalg.inv(np.asarray(affine, np.float64)) @ grid.affine
    index = np.indices(grid.shape, np.float64).reshape(3, -1)
    places = voxels[:3, :3] @ index + voxels[:3, 3:]
    clean = np.nan_to_num(np.asarray(data, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return np.asarray(map_coordinates(clean, places, order=1, mode="nearest")).reshape(grid.shape)


def read_warp(path: Path, unit: str, grid: Grid, encoding: Encoding | None) -> Warp:
    """Read a map of the distortion and bring it to a run's grid.

    Parameters
    ----------
    path : Path
        NIfTI, in the scanner's space of today.
    unit : str
        ``mm``: a displacement field of ITK and ANTs (five dimensions, LPS+). Of a map of one number a voxel: ``Hz`` (a field, as SDCFlows
        and topup have it), ``rad/s`` (as fugue has it) or ``voxels`` (a shift along the grid's axis of phase encoding).
    grid : Grid
        Of the run.
    encoding : Encoding, optional
        Needed where the map has one number a voxel; of a shift in voxels only the axis counts.

    Raises
    ------
    DataError
        The file is no such map.
    """
    data, affine = load_map(path, unit)
    if unit == "mm":
        lps = [map_on(data[..., 0, axis], affine, grid) for axis in range(3)]
        shift = np.stack([-lps[0], -lps[1], lps[2]], axis=-1) @ np.linalg.inv(grid.affine[:3, :3]).T
    else:
        assert encoding is not None
        shift = np.zeros((*grid.shape, 3))
        shift[..., "ijk".index(encoding.direction[0])] = _voxels(map_on(data, affine, grid), unit, encoding)
    most_mm = float(np.linalg.norm(shift @ grid.affine[:3, :3].T, axis=-1).max())
    if most_mm > MOST_MM:
        raise DataError(f"{path}: expected displacements of at most {MOST_MM:g} mm, found {most_mm:.0f} mm: is it in {unit}?")
    return Warp.of(shift)


def _voxels(values: NDArray[np.float64], unit: str, encoding: Encoding) -> NDArray[np.float64]:
    """Turn a map into a shift in voxels along the axis of phase encoding."""
    if unit == "voxels":
        return values
    hertz = values / (2 * math.pi) if unit == "rad/s" else values
    return hertz * encoding.readout_s * (-1 if encoding.direction.endswith("-") else 1)


def load_map(path: Path, unit: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a map, (X, Y, Z), or of displacements in ``mm`` (X, Y, Z, 1, 3), and its affine.

    Raises
    ------
    DataError
        The file is no such map.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        data = np.asarray(image.dataobj, np.float64)
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        raise DataError(f"{path}: expected a NIfTI image, found something else ({error})") from None
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    fits = data.ndim == 5 and data.shape[3:] == (1, 3) if unit == "mm" else data.ndim == 3
    if not fits:
        wanted = "a displacement field (X, Y, Z, 1, 3) for mm" if unit == "mm" else f"a map (X, Y, Z) for {unit}"
        raise DataError(f"{path}: expected {wanted}, found shape {data.shape}")
    affine = np.asarray(image.affine, np.float64)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0):
        raise DataError(f"{path}: expected an affine from voxels to mm, found {affine[:3].tolist()}")
    return data, affine
