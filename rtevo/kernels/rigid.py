"""Rigid-body motion as six parameters and as a matrix.

A motion moves world point p to ``R (p - centre) + centre + (trans_x, trans_y, trans_z)`` with ``R = Rz(rot_z) Ry(rot_y) Rx(rot_x)``,
right-handed turns about the RAS+ axes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels._compile import helper

__all__ = ["matrix_from_params", "params_from_matrix", "rotation"]


@helper
def rotation(rot_x, rot_y, rot_z):  # type: ignore[no-untyped-def]
    """Rotation matrix ``Rz Ry Rx``: float64 (3, 3)."""
    cx, cy, cz = math.cos(rot_x), math.cos(rot_y), math.cos(rot_z)
    sx, sy, sz = math.sin(rot_x), math.sin(rot_y), math.sin(rot_z)
    matrix = np.empty((3, 3))
    matrix[0, 0], matrix[0, 1], matrix[0, 2] = cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx
    matrix[1, 0], matrix[1, 1], matrix[1, 2] = sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx
    matrix[2, 0], matrix[2, 1], matrix[2, 2] = -sy, cy * sx, cy * cx
    return matrix


def matrix_from_params(params: ArrayLike, centre: ArrayLike = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    """Matrix of a motion.

    Parameters
    ----------
    params : array_like, (6,)
        trans_x, trans_y, trans_z (mm), rot_x, rot_y, rot_z (rad).
    centre : array_like, (3,)
        World point about which the rotation turns, mm.

    Returns
    -------
    ndarray, float64 (4, 4)
    """
    p = np.asarray(params, np.float64)
    c = np.asarray(centre, np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.py_func(*p[3:])
    matrix[:3, 3] = c + p[:3] - matrix[:3, :3] @ c
    return matrix


def params_from_matrix(matrix: NDArray[np.float64], centre: ArrayLike = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    """Parameters of a rigid matrix: the inverse of :func:`matrix_from_params` for rot_y within +/- pi / 2.

    Returns
    -------
    ndarray, float64 (6,)
    """
    m = np.asarray(matrix, np.float64)
    c = np.asarray(centre, np.float64)
    rot_y = math.atan2(-m[2, 0], math.hypot(m[2, 1], m[2, 2]))
    rot_x, rot_z = math.atan2(m[2, 1], m[2, 2]), math.atan2(m[1, 0], m[0, 0])
    return np.array([*(m[:3, 3] + m[:3, :3] @ c - c), rot_x, rot_y, rot_z])
