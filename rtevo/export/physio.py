"""Pulse and respiration of a run as BIDS has them: evenly spaced samples, and when the first was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.physio import Sensor
from rtevo.record import Part, PhysiologyRecord, RecordedSession

__all__ = ["RECORDINGS", "Recording", "recordings"]

Array = NDArray[np.float64]
RECORDINGS = {Sensor.CARDIAC: "cardiac", Sensor.RESPIRATORY: "respiratory", Sensor.TRIGGER: "trigger"}
"""Names of recordings and of their columns."""
_LONGEST_S = 24 * 3600.0  # a log that holds more is no session's


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples of one sensor.

    Parameters
    ----------
    name : str
    values : ndarray, float64 (samples,)
        NaN where samples were lost.
    rate_hz : float
    start_s : float
        From the first volume to the first sample.
    error_s : float
        Bound of that.
    anchored : bool
        By the scanner's pulses; else the bound holds for a device that sends at once what it has measured.
    """

    name: str
    values: Array
    rate_hz: float
    start_s: float
    error_s: float
    anchored: bool

    def sidecar(self) -> dict[str, Any]:
        """What BIDS wants to know of it."""
        known = "the scanner's pulses on a channel of the same device" if self.anchored else "when they came, if the device has no delay"
        return {
            "SamplingFrequency": self.rate_hz,
            "StartTime": round(self.start_s, 6),
            "Columns": [self.name],
            self.name: {"Description": f"Samples as the device sent them; their times are known by {known}, within {self.error_s:.4f} s."},
        }


def recordings(session: RecordedSession) -> Iterator[Recording]:
    """Go through what was recorded of each sensor, in s from the session's first volume; before the trigger of a run nothing is known."""
    for sensor, name in RECORDINGS.items():
        pieces = [piece for part in session.parts for piece in _pieces(part, sensor)]
        if pieces:
            last = pieces[-1][2]
            step_s = last.step_ns / 1e9
            start_s, end_s = pieces[0][0], pieces[-1][0] + len(pieces[-1][1]) * step_s
            if not 0 < end_s - start_s < _LONGEST_S:
                continue
            values = np.full(math.ceil((end_s - start_s) / step_s) + 1, np.nan)
            for begins_s, own, _ in pieces:
                at = round((begins_s - start_s) / step_s)
                values[max(at, 0) : at + len(own)] = own[max(-at, 0) : max(len(values) - at, 0)]
            known = np.flatnonzero(np.isfinite(values))
            yield Recording(name, values[: known[-1] + 1], 1.0 / step_s, start_s, last.error_ns / 1e9, bool(last.anchored))


def _pieces(part: Part, sensor: Sensor) -> Iterator[tuple[float, Array, PhysiologyRecord]]:
    """Go through the blocks of a sensor in a part, with the times that its series' last block says."""
    clock = part.clock
    own = [r for r in part.records(PhysiologyRecord) if r.sensor == sensor and len(r.values) and r.step_ns > 0]
    newest = {r.segment: r for r in own}
    for record in own if clock.trigger_ns is not None else ():
        last = newest[record.segment]
        begins_s = clock.seconds(last.t_ns) + (record.number - last.number) * last.step_ns / 1e9
        if begins_s >= clock.begins_s or part.start.first_volume == 0:
            yield begins_s, record.values.astype(np.float64), last
