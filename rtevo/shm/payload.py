"""Arrays of varying shape inside slots of fixed size.

A slot's dtype is fixed, so an array that differs from message to message gets room for the largest one and a field that says which
shape it has this time. Only the bytes in use are written and read.

Examples
--------
>>> slot_dtype = np.dtype([("index", "<i4"), *array_fields("data", "<f4", (96, 96, 64))], align=True)
>>> with ring.reserve() as slot:                   # doctest: +SKIP
...     put_array(slot, "data", volume)
>>> with ring.read() as slot:                      # doctest: +SKIP
...     volume = get_array(slot, "data")           # a view
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rtevo.shm.errors import RingError

__all__ = ["array_fields", "get_array", "put_array"]


def array_fields(name: str, dtype: DTypeLike, largest: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """Fields of a slot for an array of varying shape.

    Parameters
    ----------
    name : str
        Of the field; ``name_shape`` goes with it.
    dtype : dtype-like
        Of the elements.
    largest : tuple of int
        Shape of the largest one; a smaller one has as many dimensions, and no more elements.
    """
    return [(f"{name}_shape", "<u4", (len(largest),)), (name, np.dtype(dtype), (math.prod(largest),))]


def put_array(slot: np.void, name: str, array: NDArray[Any]) -> None:
    """Copy an array into a reserved slot.

    Raises
    ------
    RingError
        It has another number of dimensions than declared, or too many elements.
    """
    shape, room = slot[f"{name}_shape"], slot[name]
    if array.ndim != shape.size or array.size > room.size:
        raise RingError(f"slot field '{name}': expected {shape.size} dimensions and {room.size} elements at most, got shape {array.shape}")
    shape[...] = array.shape
    room[: array.size].reshape(array.shape)[...] = array


def get_array(slot: np.void, name: str) -> NDArray[Any]:
    """View the array in a slot in its own shape; read-only where the slot is.

    Raises
    ------
    RingError
        The shape in the slot does not fit it (an observer may see that in a slot that is being overwritten).
    """
    shape, room = tuple(int(n) for n in slot[f"{name}_shape"]), slot[name]
    if math.prod(shape) > room.size:
        raise RingError(f"slot field '{name}': shape {shape} needs more than its {room.size} elements")
    view: NDArray[Any] = room[: math.prod(shape)].reshape(shape)
    return view
