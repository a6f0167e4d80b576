"""Pulse and respiration: where they come from, when they were measured, and what they explain of a volume.

`beats`, `breath` and `regressors` are pure functions of samples; `sources` and `text` read them; `clock` finds their times. What is
imported from here is light; the others need SciPy.
"""

from rtevo.physio.terms import SENSORS, Sensor, sizes

__all__ = ["SENSORS", "Sensor", "sizes"]
