"""Pulse and respiration: where they come from, when they were measured, and what they explain of a volume.

`beats`, `breath` and `regressors` are pure functions of samples; `sources` reads them; `clock` finds their times.
"""

from rtevo.physio.regressors import SENSORS, TERMS, Physiology, Sensor, State, moments, sizes
from rtevo.physio.trace import Trouble

__all__ = ["SENSORS", "TERMS", "Physiology", "Sensor", "State", "Trouble", "moments", "sizes"]
