"""What a run's decoder has learnt of noise and responses, as plain arrays by name, for the next run of the visit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Learnt", "checked", "of_part", "prefixed"]

Learnt = dict[str, NDArray[np.generic]]
"""Arrays by name; a part of a whole has its own name before a dot."""
_WIDE = ("drift_sd", "reach_s")  # may hold infinity: what is shared reaches over all images


def prefixed(part: str, learnt: Learnt) -> Learnt:
    """Return a part's arrays under its name."""
    return {f"{part}.{name}": array for name, array in learnt.items()}


def of_part(part: str, learnt: Learnt) -> Learnt:
    """Return the arrays of a part by its own names."""
    return {name.removeprefix(f"{part}."): array for name, array in learnt.items() if name.startswith(f"{part}.")}


def checked(learnt: Learnt, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, NDArray[np.float64]]:
    """Return arrays as float64, after a look at each.

    Parameters
    ----------
    learnt : dict of str to ndarray
    shapes : mapping of str to tuple
        Of each; None: any length.

    Raises
    ------
    ValueError
        One is missing, has another shape, or holds what is no number.
    """
    found = {}
    for name, shape in shapes.items():
        array = learnt.get(name)
        if array is None or array.dtype.kind not in "biuf":
            raise ValueError(f"{name}: expected numbers, found {'nothing' if array is None else array.dtype}")
        fits = array.ndim == len(shape) and all(wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True))
        if not fits or np.isnan(array).any() or (name not in _WIDE and not np.isfinite(array).all()):
            raise ValueError(f"{name}: expected finite numbers of shape {shape}, found {array.dtype} of shape {array.shape}")
        found[name] = np.array(array, np.float64)
    return found
