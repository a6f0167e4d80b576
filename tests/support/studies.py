"""Studies without an effect: everything about their participants differs but what the arm does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal

__all__ = ["allotted", "null_scores"]


def null_scores(rng: np.random.Generator, participants: int, images: int = 60) -> NDArray[np.float64]:
    """Return scores, float64 (participants, images): gains and noise that differ, a drift that all share, autocorrelated heavy tails."""
    noise = signal.lfilter([1.0], [1.0, -0.5], rng.standard_t(3, (participants, images)), axis=1)
    spread, gains = rng.lognormal(0, 0.7, (participants, 1)), 0.5 + rng.exponential(1, (participants, 1))
    return np.asarray((gains - 1.5) * np.linspace(0, 1, images) + spread * noise)


def allotted(rng: np.random.Generator, n: int, paired: bool) -> NDArray[np.bool_]:
    """Draw who of two n participants is treated: one of each two in a row, or any n."""
    if paired:
        first = rng.random(n) < 0.5
        return np.column_stack([first, ~first]).ravel()
    return np.asarray(rng.permutation(np.arange(2 * n) < n))
