"""Another computer's clock, mapped to this one's with an error bound."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["ClockOffset"]

DRIFT_PPM = 500.0  # largest difference in rate: crystals differ by some 50 ppm, and ntpd corrects a clock by at most 500
WANDER_PPM = 1.0  # a crystal's rate stays within this of its mean over a few minutes (temperature)
KEEP_SAMPLES = 256
FIRST_SPAN_NS = 2_000_000_000  # a shorter series does not bound the drift


@dataclass(frozen=True)
class _Sample:
    """A round-trip: at `there_ns` of the other clock, this clock read `there_ns + offset_ns`, within `bound_ns`."""

    there_ns: int
    offset_ns: int
    bound_ns: int


class ClockOffset:
    """Maps another computer's clock to this one's by round-trips.

    Each round-trip bounds the offset: this clock's reading at the moment of the other's `arrived_ns` .. `sent_ns` lies between our
    sending and our receiving, so the offset is known to half of the messages' travel time. The best samples of the oldest and of the
    newest third of the series bound the drift. A moment is mapped from the sample whose bound, plus the uncertainty of the drift in
    between, is smallest there (minimum-delay filter, as in NTP's clock filter, RFC 5905 section 10; the drift as in Cristian 1989,
    doi:10.1007/BF01784024). All bounds are hard while both clocks run evenly. If a new sample contradicts the older ones, the other clock
    was set or is being corrected, and the series begins again.

    Parameters
    ----------
    drift_ppm : float
        Greatest difference in rate, parts per million.

    Attributes
    ----------
    jumps : int
        How often the series began again.
    """

    def __init__(self, drift_ppm: float = DRIFT_PPM) -> None:
        self._greatest = drift_ppm * 1e-6
        self._samples: deque[_Sample] = deque(maxlen=KEEP_SAMPLES)
        self._drift, self._drift_error = 0.0, self._greatest
        self.jumps = 0

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sent_ns: int, there_arrived_ns: int, there_sent_ns: int, received_ns: int) -> None:
        """Add one round-trip: our sending, their arrival and answer (their clock), our receiving; ns."""
        travelled = (received_ns - sent_ns) - (there_sent_ns - there_arrived_ns)
        if travelled < 0 or there_sent_ns < there_arrived_ns:
            return  # not a round-trip of two running clocks
        offset = ((sent_ns - there_arrived_ns) + (received_ns - there_sent_ns)) // 2
        sample = _Sample((there_arrived_ns + there_sent_ns) // 2, offset, travelled // 2 + 1)
        if self._samples:
            expected, error = self._at(sample.there_ns)
            if abs(offset - expected) > error + sample.bound_ns:
                self._samples.clear()
                self.jumps += 1
        self._samples.append(sample)
        self._estimate_drift()

    def _estimate_drift(self) -> None:
        """Bound the drift by the best samples of the oldest and of the newest third of the series."""
        samples = list(self._samples)
        self._drift, self._drift_error = 0.0, self._greatest
        if samples[-1].there_ns - samples[0].there_ns < FIRST_SPAN_NS:
            return
        third = -(-len(samples) // 3)
        old, new = (min(part, key=lambda s: s.bound_ns) for part in (samples[:third], samples[-third:]))
        span = new.there_ns - old.there_ns
        error = (old.bound_ns + new.bound_ns) / span + WANDER_PPM * 1e-6 if span > 0 else self._greatest
        if error < self._greatest:
            self._drift, self._drift_error = (new.offset_ns - old.offset_ns) / span, error

    @property
    def drift_ppm(self) -> float:
        """Estimate of how much faster this clock runs than the other, parts per million."""
        return self._drift * 1e6

    def _at(self, there_ns: int) -> tuple[int, int]:
        """Return offset and bound at a moment of the other clock."""
        bound, best = min(
            ((s.bound_ns + abs(there_ns - s.there_ns) * self._drift_error, s) for s in self._samples), key=lambda found: found[0]
        )
        return best.offset_ns + round(self._drift * (there_ns - best.there_ns)), round(bound) + 1

    @property
    def newest_ns(self) -> int:
        """Offset (this clock less the other) of the last sample alone, ns."""
        return self._samples[-1].offset_ns

    def now(self) -> tuple[int, int]:
        """Return the offset (this clock less the other) at the last sample, and its bound; ns."""
        return self._at(self._samples[-1].there_ns)

    def map(self, there_ns: int) -> tuple[int, int]:
        """Return the moment `there_ns` of the other clock on this clock, and the bound of its error; ns.

        Raises
        ------
        ValueError
            There is no sample yet.
        """
        if not self._samples:
            raise ValueError("ClockOffset: expected at least one round-trip before the first mapping")
        offset, error = self._at(there_ns)
        return there_ns + offset, error
