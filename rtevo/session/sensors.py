"""Which sensors a session has, and which devices they are channels of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtevo.config import Config
from rtevo.physio import SENSORS, Sensor, sizes
from rtevo.physio.sources import Address

__all__ = ["SIMULATED_SENSORS", "Device", "devices_of", "physio_sizes", "sensors_of"]

SIMULATED_SENSORS = "sensors.txt"
"""What a simulated participant's sensors see, in the session's runtime folder."""


@dataclass(frozen=True)
class Device:
    """What some sensors are channels of.

    Parameters
    ----------
    kind, place : str
        See :class:`rtevo.physio.sources.Address`.
    sensors : tuple of Sensor
    channels : tuple of str
        Of each.
    rate_hz : float
        0: as it says itself.
    simulated : Path
        What a simulated participant's sensors write.
    """

    kind: str
    place: str
    sensors: tuple[Sensor, ...]
    channels: tuple[str, ...]
    rate_hz: float
    simulated: Path

    def __str__(self) -> str:
        what = " and ".join(SENSORS[each] for each in self.sensors)
        return f"{what} ({self.kind}{':' if self.place else ''}{self.place})"


def devices_of(config: Config, runtime: Path) -> list[Device]:
    """Return the devices of a session."""
    settings = config.physio
    wanted = {Sensor.CARDIAC: settings.cardiac, Sensor.RESPIRATORY: settings.respiration, Sensor.TRIGGER: settings.trigger}
    found: dict[tuple[str, str], list[tuple[Sensor, str]]] = {}
    for sensor, text in wanted.items():
        if text:
            address = Address.of(text)
            channel = str(1 + sensor) if address.kind == "simulated" else address.channel
            found.setdefault((address.kind, address.place), []).append((sensor, channel))
    rate_hz, simulated = settings.rate_hz, runtime / SIMULATED_SENSORS
    return [
        Device(kind, place, tuple(sensor for sensor, _ in own), tuple(channel for _, channel in own), rate_hz, simulated)
        for (kind, place), own in found.items()
    ]


def sensors_of(config: Config) -> tuple[Sensor, ...]:
    """Return the sensors that a session has."""
    settings = config.physio
    return tuple(each for each, where in ((Sensor.CARDIAC, settings.cardiac), (Sensor.RESPIRATORY, settings.respiration)) if where)


def physio_sizes(config: Config, tr_s: float) -> tuple[int, ...]:
    """Return the sizes of the groups of terms that a session makes of pulse and respiration; empty where there are none."""
    return sizes(config.physio.terms, sensors_of(config), tr_s)
