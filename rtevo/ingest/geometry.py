"""From slices in a scanner's coordinates to a volume on an RAS+ grid.

The arrangement in memory is dcm2niix's: the first axis runs along the picture's columns, the second against its rows (a picture's
row 0 is at its top; flipping it makes the axis point to the patient's front in a transverse scan), the third along the normal of the
slices, except in Siemens mosaics, whose slices stay in the order of the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import GeometryError
from rtevo.records import Grid

__all__ = ["normal_of", "slice_order", "stack", "volume_grid"]

EVEN_SPACING = 0.02  # of the distance between slices: how far a slice may lie from where even spacing puts it


def normal_of(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cross product of the directions of a picture's rows and columns, float64 (3,) (numpy's takes ten times as long)."""
    (a, b, c), (d, e, f) = orientation.tolist()
    return np.array([b * f - c * e, c * d - a * f, a * e - b * d])


def slice_order(positions: NDArray[np.float64], orientation: NDArray[np.float64]) -> NDArray[np.intp]:
    """Order of slices along their normal.

    Parameters
    ----------
    positions : ndarray, float64 (n, 3)
        Of each slice's first pixel, LPS+ mm.
    orientation : ndarray, float64 (2, 3)
        Directions of growing column and row index.

    Returns
    -------
    ndarray, int (n,)
    """
    return np.argsort(positions @ normal_of(orientation), kind="stable")


def volume_grid(
    positions: NDArray[np.float64], orientation: NDArray[np.float64], spacing_mm: Sequence[float], picture: tuple[int, int]
) -> Grid:
    """The grid on which stacked slices lie.

    Parameters
    ----------
    positions : ndarray, float64 (n, 3)
        Of each slice's first pixel, LPS+ mm, in the order of the third axis.
    orientation : ndarray, float64 (2, 3)
        Directions of growing column and row index, LPS+.
    spacing_mm : sequence of float, (3,)
        Between columns, rows, and slices; the last is used only where there is a single slice.
    picture : tuple of int
        Rows and columns.

    Returns
    -------
    Grid

    Raises
    ------
    GeometryError
        If the slices are not evenly spaced, or have no extent.
    """
    rows, columns = picture
    slices = len(positions)
    if slices > 1:
        step = (positions[-1] - positions[0]) / (slices - 1)
        distance = float(np.linalg.norm(step))
        off = np.linalg.norm(positions - (positions[0] + np.arange(slices)[:, None] * step), axis=1)
        if distance == 0 or off.max() > max(EVEN_SPACING * distance, 1e-3):
            raise GeometryError(
                f"expected evenly spaced slices, found slice {int(off.argmax()) + 1} of {slices} {off.max():.2f} mm from its place "
                f"at a mean distance of {distance:.2f} mm"
            )
    else:
        step = normal_of(orientation) * (spacing_mm[2] or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = orientation[0] * spacing_mm[0]
    affine[:3, 1] = -orientation[1] * spacing_mm[1]  # against the rows
    affine[:3, 2] = step
    affine[:3, 3] = positions[0] - affine[:3, 1] * (rows - 1)
    affine[:2] *= -1  # LPS+ to RAS+
    affine += 0.0  # no negative zeros
    try:
        return Grid((columns, rows, slices), affine)
    except ValueError as error:
        raise GeometryError(str(error)) from error


def stack(pictures: NDArray[Any], slopes: NDArray[np.float64], intercepts: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turn the slices of a volume into its data.

    Parameters
    ----------
    pictures : ndarray, (n, rows, columns)
        Stored values, in the order of the third axis.
    slopes, intercepts : ndarray, float64 (n,)
        Value = stored value x slope + intercept.

    Returns
    -------
    ndarray, float32 (X, Y, Z)
        C-contiguous.
    """
    slices, rows, columns = pictures.shape
    data = np.empty((columns, rows, slices), np.float32)
    view = data.transpose(2, 1, 0)[:, ::-1, :]
    if (slopes == slopes[0]).all():
        np.multiply(pictures, np.float32(slopes[0]), out=view, casting="unsafe")
    else:
        np.multiply(pictures, slopes.astype(np.float32)[:, None, None], out=view, casting="unsafe")
    if intercepts.any():
        view += intercepts.astype(np.float32)[:, None, None]
    return data
