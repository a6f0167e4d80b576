"""Keys of pulse and respiration."""

from __future__ import annotations

from dataclasses import dataclass

from rtevo.config.keys import at_least, key

__all__ = ["TERMS", "Physio", "is_sensor"]

TERMS = ("retroicor", "rvt", "hrv")
KINDS = ("lsl", "serial", "file")
WHERE = "lsl:STREAM#CHANNEL, serial:PORT@BAUD#COLUMN, file:PATH#COLUMN, simulated, or empty"


def is_sensor(text: str) -> bool:
    """Whether this says where a sensor's samples come from: see :class:`rtevo.physio.sources.Address`."""
    kind, _, rest = text.partition(":")
    place, _, channel = rest.partition("#")
    if text in ("", "simulated"):
        return True
    if kind not in KINDS or not place or (kind != "lsl" and channel and not (channel.isdecimal() and int(channel) > 0)):
        return False
    return kind != "serial" or place.rpartition("@")[2].isdecimal()


@dataclass(frozen=True)
class Physio:
    """Pulse and respiration, whose part in the signal is taken out with motion and drift: docs/physio.md."""

    cardiac: str = key(
        "",
        "source of the pulse: lsl:STREAM#CHANNEL (its label or number), serial:PORT@BAUD#COLUMN (rows of numbers), "
        "file:PATH#COLUMN (a file that is being written: such rows, or a Siemens .puls), simulated; empty = not measured",
        WHERE,
        is_sensor,
    )
    respiration: str = key("", "source of the respiration, likewise (a Siemens .resp)", WHERE, is_sensor)
    trigger: str = key(
        "",
        "channel of the same device with the scanner's pulses, likewise (a Siemens .ext), from which the samples' times are found",
        WHERE,
        is_sensor,
    )
    rate_hz: float = key(0.0, "samples per second of a serial line or a file; 0 = from LSL", *at_least(0))
    terms: tuple[str, ...] = key(
        TERMS,
        "terms made from them (not peak): retroicor (cardiac and respiratory phases), rvt (respiration volume per time), hrv (heart rate)",
        "a list of retroicor, rvt, hrv",
        lambda x: set(x) <= set(TERMS),
    )

    @property
    def measured(self) -> bool:
        """Whether there is a sensor."""
        return bool(self.cardiac or self.respiration)
