"""Another computer's clock, mapped to this one's with an error bound."""

from __future__ import annotations

from collections import deque

__all__ = ["ClockOffset"]

DRIFT_PPM = 100.0  # two computers' clocks never run further apart than this (usual crystals: 50 ppm each)
KEEP_SAMPLES = 256


class ClockOffset:
    """Maps another computer's clock to this one's by round-trips.

    Each round-trip bounds the offset: this clock's reading at the moment of the other's `arrived_ns` .. `sent_ns` lies between our
    sending and our receiving, so the offset is known to half of the time that the messages travelled. The sample with the smallest bound
    is used, where a bound grows with age by the greatest drift that two clocks may have (minimum-delay filter, as in NTP's clock filter,
    RFC 5905 section 10).

    Parameters
    ----------
    drift_ppm : float
        Greatest difference in rate, parts per million.
    """

    def __init__(self, drift_ppm: float = DRIFT_PPM) -> None:
        self._drift = drift_ppm * 1e-6
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=KEEP_SAMPLES)  # here_ns, offset_ns (here - there), bound_ns

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sent_ns: int, there_arrived_ns: int, there_sent_ns: int, received_ns: int) -> None:
        """Take one round-trip: our sending, their arrival and answer (their clock), our receiving; ns."""
        travelled = (received_ns - sent_ns) - (there_sent_ns - there_arrived_ns)
        if travelled < 0 or there_sent_ns < there_arrived_ns:
            return  # not a round-trip of two running clocks
        offset = ((sent_ns - there_arrived_ns) + (received_ns - there_sent_ns)) // 2
        self._samples.append((received_ns, offset, travelled // 2 + 1))

    def map(self, there_ns: int) -> tuple[int, int]:
        """Give the moment `there_ns` of the other clock on this one, and the bound of its error; ns.

        Raises
        ------
        ValueError
            Before the first sample.
        """
        if not self._samples:
            raise ValueError("ClockOffset: expected at least one round-trip before the first mapping")
        error, offset = min((bound + round(abs(there_ns + offset - at) * self._drift), offset) for at, offset, bound in self._samples)
        return there_ns + offset, error
