"""Several echoes of a simulated volume: what T2* makes of its signal and its responses at each echo time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtevo.records import Grid

__all__ = ["ECHO_S", "echo_times_s", "echoes_of", "relaxation_per_s"]

Field = NDArray[np.float32]

ECHO_S = 0.030  # of a volume of one echo
FIRST_S, STEP_S = 0.012, 0.017  # of several
TISSUE_S, NEAR_AIR_S = 0.045, 0.020  # T2*
AIR_MM, REACH_MM = (0.0, 45.0, -14.0), 22.0  # above the sinuses: where in the head, RAS+, and how far its field reaches


def echo_times_s(echoes: int) -> tuple[float, ...]:
    """Return the times of a number of echoes, s; none of one, whose time is that of every volume."""
    return tuple(round(FIRST_S + k * STEP_S, 4) for k in range(echoes)) if echoes > 1 else ()


def relaxation_per_s(grid: Grid) -> Field:
    """Return 1 / T2* of a head at rest, float32 (X, Y, Z), per s: it falls off fast near air."""
    index = np.indices(grid.shape, np.float64).reshape(3, -1)
    world = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    away2 = ((world - np.array(AIR_MM)[:, None]) ** 2).sum(axis=0) / REACH_MM**2
    return np.asarray(1 / TISSUE_S + (1 / NEAR_AIR_S - 1 / TISSUE_S) * np.exp(-away2 / 2), np.float32).reshape(grid.shape)


def echoes_of(still: Field, response: Field, relaxation: Field, times_s: tuple[float, ...]) -> list[Field]:
    """Return the echoes of a volume whose signal and responses are known at `ECHO_S`.

    A response is a change of T2*: it grows with the echo time.

    Parameters
    ----------
    still, response : ndarray, float32 (X, Y, Z)
    relaxation : ndarray, float32 (X, Y, Z)
        1 / T2*, per s, where the head lies now.
    times_s : tuple of float
    """
    return [
        np.asarray((still + response * np.float32(te / ECHO_S)) * np.exp(-relaxation * np.float32(te - ECHO_S)), np.float32)
        for te in times_s
    ]
