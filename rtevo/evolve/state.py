"""Random generators as plain JSON types, so that a saved session resumes with the very next draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["rng_from_state", "rng_to_state"]


def rng_to_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return a generator's state as plain JSON types."""
    plain = _plain(rng.bit_generator.state)
    assert isinstance(plain, dict)
    return plain


def rng_from_state(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a new generator in a state that :func:`rng_to_state` gave.

    Raises
    ------
    ValueError
        NumPy has no such bit generator, or the state does not fit it.
    """
    name = state.get("bit_generator")
    kinds: dict[str, type[np.random.BitGenerator]] = {
        kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
    }
    if name not in kinds:
        raise ValueError(f"state: expected a bit generator out of {sorted(kinds)}, got {name!r}")
    bits = kinds[name]()
    try:
        bits.state = dict(state)
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"state: not a state of {name}: {problem}") from None
    return np.random.Generator(bits)


def _plain(value: object) -> object:
    """Turn NumPy arrays and scalars inside a state into lists and Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
