"""Which sensors there are, and what terms are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

__all__ = ["LONG_TR_S", "ORDER", "SENSORS", "Sensor", "sizes"]

ORDER = 2
"""Harmonics of either phase."""
LONG_TR_S = 1.2
"""From this repetition time on phases are taken at two moments of a volume."""


class Sensor(IntEnum):
    """The measured signals."""

    CARDIAC = 0
    RESPIRATORY = 1
    TRIGGER = 2  # the scanner's pulses, beside the others


SENSORS = {Sensor.CARDIAC: "pulse", Sensor.RESPIRATORY: "respiration", Sensor.TRIGGER: "trigger"}


def sizes(terms: Sequence[str], sensors: Sequence[Sensor], tr_s: float) -> tuple[int, ...]:
    """Return the number of columns of each group: cardiac and respiratory phases, and each of the slow terms.

    Parameters
    ----------
    terms : sequence of str
        retroicor, rvt, hrv.
    sensors : sequence of Sensor
        That there are.
    tr_s : float
        Repetition time, s.
    """
    of_phase = 2 * ORDER * (1 if tr_s < LONG_TR_S else 2)
    found = [of_phase for each in (Sensor.CARDIAC, Sensor.RESPIRATORY) if each in sensors and "retroicor" in terms]
    return (*found, *(1 for name, of in (("rvt", Sensor.RESPIRATORY), ("hrv", Sensor.CARDIAC)) if name in terms and of in sensors))
