"""A volume sampled again by a motion that is known already, as a realigner would have."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels import interpolate
from rtevo.kernels.align import pack_rows
from rtevo.kernels.rigid import matrix_from_params
from rtevo.kernels.warp import warped_rows
from rtevo.realign.warp import Warp

__all__ = ["resliced"]


def resliced(volume: ArrayLike, affine: ArrayLike, params: ArrayLike, warp: Warp | None = None) -> NDArray[np.float32]:
    """Sample a volume on its reference's grid by cubic B-splines.

    Parameters
    ----------
    volume : array_like, (X, Y, Z)
        NaN and infinity count as 0.
    affine : array_like, (4, 4)
        Voxel to RAS+ mm, of the volume and of the reference.
    params : array_like, (6,)
        Motion of the volume, as in :class:`rtevo.realign.Motion`.
    warp : Warp, optional
        Distortion that is undone, on the reference's grid.

    Returns
    -------
    ndarray, float32 (X, Y, Z)
        What :meth:`rtevo.realign.Realigner.reslice` gives.
    """
    data, world = np.nan_to_num(np.asarray(volume, np.float32), nan=0.0, posinf=0.0, neginf=0.0), np.asarray(affine, np.float64)
    shape = (data.shape[0], data.shape[1], data.shape[2])
    centre = world[:3, :3] @ ((np.array(shape) - 1) / 2) + world[:3, 3]
    padded, p = interpolate.padded(shape), interpolate.PAD
    padded[p:-p, p:-p, p:-p] = data
    interpolate.mirror_padding(padded)
    line = np.zeros(shape[2] + 2 * max(interpolate.BLOCK, interpolate.TAPS), np.float32)
    interpolate.prefilter_yz(padded, 0, shape[0], line)
    interpolate.prefilter_x(padded, 0, shape[1] + 2 * p)
    matrix = np.linalg.inv(world) @ matrix_from_params(params, centre) @ world
    rows = pack_rows(np.ones(shape, np.float32))[0]
    out = np.empty(shape, np.float32)
    if warp is None:
        interpolate.reslice_rows(interpolate.as_line(padded), shape, False, matrix, rows, 0, len(rows), line, out)
    else:
        warped_rows(interpolate.as_line(padded), shape, matrix, warp.shift, warp.gain, rows, 0, len(rows), out)
    return out
