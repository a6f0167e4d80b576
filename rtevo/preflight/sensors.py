"""Whether pulse and respiration come in, how fast, and whether they move."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from rtevo.errors import DataError, LinkError
from rtevo.physio import SENSORS, Sensor
from rtevo.physio.beats import SLOWEST_HZ
from rtevo.physio.sources import open_source
from rtevo.preflight.findings import Finding, Known
from rtevo.session.sensors import Device, devices_of

__all__ = ["sensors"]

LISTEN_S = 3.0
RATE_OFF = 0.05  # relative; of the rate that is said
NAME = "pulse and respiration"
SEE = "see that the device sends, and that [physio] names it; docs/physio.md"


def sensors(known: Known) -> Iterator[Finding]:
    """Listen to every device for some seconds."""
    for device in devices_of(known.config, Path()):
        if device.kind == "simulated":
            yield Finding(NAME, "pass", "the simulated participant's")
            continue
        known.tell(f"listening to {device} for {LISTEN_S:g} s")
        try:
            yield from _listen(device)
        except (OSError, LinkError, DataError, ValueError) as problem:
            yield Finding(NAME, "fail", f"{device}: {problem}", SEE)


def _listen(device: Device) -> Iterator[Finding]:
    """Take what a device sends for some seconds, and judge each of its channels."""
    found: list[np.ndarray] = []
    with closing(open_source(device.kind, device.place, device.channels, device.rate_hz, device.simulated)) as source:
        source.poll()  # what has waited says nothing of the rate
        began = time.monotonic()
        while time.monotonic() < began + LISTEN_S:
            found += [chunk.values for chunk in source.poll()]
            time.sleep(0.02)
        took_s, rate_hz = time.monotonic() - began, source.rate_hz
    if not found:
        yield Finding(NAME, "fail", f"{device}: nothing came within {LISTEN_S:g} s", SEE)
        return
    values = np.concatenate(found)
    came_hz = len(values) / took_s
    figures: dict[str, float | None] = {"rate_hz": came_hz}
    if abs(came_hz - rate_hz) > RATE_OFF * rate_hz + 2 / LISTEN_S:
        to_do = "set [physio] rate_hz to what the device sends"
        yield Finding(NAME, "warn", f"{device}: {came_hz:.1f} samples a second, expected {rate_hz:g}", to_do, figures)
    else:
        yield Finding(NAME, "pass", f"{device}: {came_hz:.1f} samples a second", "", figures)
    if Sensor.CARDIAC in device.sensors and rate_hz < SLOWEST_HZ:
        slow = f"{device}: {rate_hz:g} samples a second, expected at least {SLOWEST_HZ:g} of a pulse: no beat can be found"
        yield Finding(NAME, "fail", slow, "let the device send faster")
    for column, sensor in enumerate(device.sensors):
        if sensor != Sensor.TRIGGER and np.ptp(values[:, column]) == 0:
            flat = f"{SENSORS[sensor]}: flat, at {values[0, column]:g}"
            yield Finding(NAME, "warn", flat, "see to the sensor on the participant, and to the channel that [physio] names")
