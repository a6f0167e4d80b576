"""A screen's refresh rate, from the times between flips."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

__all__ = ["FASTEST_HZ", "frame_of", "measure_frame"]

FASTEST_HZ = 500.0  # faster flips do not wait for a screen
SPREAD = 0.3  # of a frame: width of the middle 80% of the gaps, if flips wait for the screen
TRIES = 4  # measurements, in case the computer is busy for a moment


def frame_of(gaps_ns: Sequence[int]) -> int | None:
    """Return the time between frames; None if the flips do not wait for a screen, or the times are inconclusive.

    Parameters
    ----------
    gaps_ns : sequence of int
        Times between successive flips, ns.

    Returns
    -------
    int or None
        Mean of the gaps of one frame, ns.
    """
    typical = statistics.median(gaps_ns)
    tenths = statistics.quantiles(gaps_ns, n=10)
    if tenths[-1] - tenths[0] >= SPREAD * typical or typical <= 1e9 / FASTEST_HZ:
        return None
    return round(statistics.fmean(gap for gap in gaps_ns if 0.5 * typical < gap < 1.5 * typical))


def measure_frame(flips: Callable[[], Sequence[int]], tries: int = TRIES) -> int | None:
    """Measure the time between frames; measure again if the first times were disturbed.

    Parameters
    ----------
    flips : callable
        Flips some frames and returns the times between them, ns.
    tries : int
    """
    return next((frame for _ in range(tries) if (frame := frame_of(flips())) is not None), None)
