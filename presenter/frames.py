"""What the times between flips say of a screen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

__all__ = ["FASTEST_HZ", "frame_of", "measure_frame"]

FASTEST_HZ = 500.0  # flips that come faster wait for no screen
SPREAD = 0.3  # of a frame: middle eight tenths of the gaps of a screen that is waited for lie so close together
TRIES = 4  # a computer that is busy for a moment is measured again


def frame_of(gaps_ns: Sequence[int]) -> int | None:
    """Give the time between frames; None where the flips do not wait for a screen, or nothing can be said.

    Parameters
    ----------
    gaps_ns : sequence of int
        Times between flips that follow each other, ns.

    Returns
    -------
    int or None
        Mean of the gaps that are one frame, ns.
    """
    typical = statistics.median(gaps_ns)
    tenths = statistics.quantiles(gaps_ns, n=10)
    if tenths[-1] - tenths[0] >= SPREAD * typical or typical <= 1e9 / FASTEST_HZ:
        return None
    return round(statistics.fmean(gap for gap in gaps_ns if 0.5 * typical < gap < 1.5 * typical))


def measure_frame(flips: Callable[[], Sequence[int]], tries: int = TRIES) -> int | None:
    """Measure the time between frames, again where the first times were disturbed.

    Parameters
    ----------
    flips : callable
        Flips some frames and gives the times between them, ns.
    tries : int
    """
    return next((frame for _ in range(tries) if (frame := frame_of(flips())) is not None), None)
