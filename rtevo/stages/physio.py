"""Sensors -> ``physiology``: samples of pulse and respiration, with their times."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError, LinkError
from rtevo.records import SAMPLES
from rtevo.session.context import Context
from rtevo.session.sensors import Device, devices_of

if TYPE_CHECKING:
    from rtevo.physio.sources import Chunk, Source

LOOK_S = 0.02  # between two looks at the sensors
GATHER_S = 0.2  # samples are handed on together
AGAIN_S = 5.0  # until a device that was not there is looked for again
RATE_OFF = 0.02  # relative: what the clock of the samples can follow
EDGES = 256  # of the scanner's pulses that are kept


class _Reader:
    """One device while a session runs."""

    def __init__(self, context: Context, device: Device, out: Any) -> None:
        from rtevo.physio import Sensor
        from rtevo.physio.clock import SampleClock

        self.context, self.device, self._out = context, device, out
        self._source: Source | None = None
        self._clock: SampleClock | None = None
        self._make_clock, self._trigger = SampleClock, Sensor.TRIGGER
        self._again_s, self._failed, self._said = -math.inf, False, False
        self._held: list[NDArray[np.float64]] = []
        self._first, self._segment, self._handed_s = 0, -1, 0.0
        self._came, self._began_s, self._off = 0, math.nan, 0  # samples since a series began, when, and series that ended too early
        self._edges: list[int] = []  # samples at which a pulse of the scanner began, in the series that goes on
        self._low, self._high, self._last = math.inf, -math.inf, math.inf

    def look(self) -> None:
        """Read what has come, and hand it on."""
        try:
            for chunk in self._poll():
                self._take(chunk)
        except (OSError, LinkError, DataError, ValueError) as problem:
            self._lose(problem)
        self._hand_on()

    def _poll(self) -> list[Chunk]:
        from rtevo.physio.sources import open_source

        if self._source is None:
            if time.monotonic() < self._again_s:
                return []
            device = self.device
            self._source = open_source(device.kind, device.place, device.channels, device.rate_hz, device.simulated)
            self._clock = self._clock or self._make_clock(self._source.rate_hz)
        found = self._source.poll()
        if found and self._failed:
            self._failed = False
            self.context.log.info("physio: %s is there again", self.device)
        return found

    def _lose(self, problem: Exception) -> None:
        """The device is not there: it is looked for again."""
        self._again_s = time.monotonic() + AGAIN_S
        self._let_go()
        if not self._failed:
            self._failed = True
            self.context.log.warning("physio: %s: %s; it is tried again every %g s", self.device, problem, AGAIN_S)

    def _take(self, chunk: Chunk) -> None:
        """Take samples that have come."""
        assert self._source is not None
        assert self._clock is not None
        first = self._clock.add(len(chunk.values), chunk.stamp_s, self._source.exact, chunk.error_s)
        if self._clock.segment != self._segment:
            self._judge_rate(self._came + len(chunk.values), chunk.stamp_s - self._began_s)
            self._came, self._began_s = 0, chunk.stamp_s
            self._first, self._segment, self._edges, self._held = first, self._clock.segment, [], []
        else:
            self._came += len(chunk.values)
        self._held.append(chunk.values)
        if self._trigger in self.device.sensors:
            self._find_edges(chunk.values[:, self.device.sensors.index(self._trigger)], first)

    def _judge_rate(self, came: int, took_s: float) -> None:
        """Warn if a series ended that was not as fast as the device says: the first time, the second, the fourth, and so on."""
        assert self._source is not None
        came_hz = came / took_s if took_s > 0 else math.nan
        if abs(came_hz / self._source.rate_hz - 1) > RATE_OFF:
            self._off += 1
            if self._off.bit_count() == 1:
                text = "physio: %s: %.4g samples a second came, expected %g: set [physio] rate_hz, or see whether the device loses samples"
                self.context.log.warning(text, self.device, came_hz, self._source.rate_hz)

    def _find_edges(self, values: NDArray[np.float64], first: int) -> None:
        """Find where the scanner's pulses begin."""
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        if self._high > self._low:
            half = (self._low + self._high) / 2
            high = np.concatenate([[self._last], values]) > half
            self._edges = [*self._edges, *(first + np.flatnonzero(high[1:] & ~high[:-1])).tolist()][-EDGES:]
        self._last = float(values[-1])

    def delay_s(self, trigger_s: float) -> float:
        """Return by how much the device's times are too late, from its pulse that is nearest to the trigger, s; NaN: not known (yet)."""
        if self._clock is None or not self._edges:
            return math.nan
        late = [self._clock.time_s(edge) - trigger_s for edge in self._edges]
        return min(late, key=abs)

    def anchor(self, delay_s: float, error_s: float) -> None:
        """Take a delay off all times from now on."""
        if self._clock is not None:
            self._clock.anchor(delay_s, error_s)

    def _hand_on(self, everything: bool = False) -> None:
        """Publish what is held."""
        now_s = time.monotonic()
        exact = self._source is not None and self._source.exact
        if not self._held or not (everything or exact or now_s > self._handed_s + GATHER_S):
            return
        assert self._clock is not None
        values, self._held, self._handed_s = np.concatenate(self._held), [], now_s
        clock, session = self._clock, self.context.clock
        for begin in range(0, len(values), SAMPLES):
            number = self._first + begin
            t_ns = round(1e9 * clock.time_s(number))
            for column, sensor in enumerate(self.device.sensors):
                part = values[begin : begin + SAMPLES, column]
                with self._out.reserve(timeout_s=None) as slot:
                    slot["sensor"], slot["segment"], slot["number"], slot["count"] = sensor, self._segment, number, len(part)
                    slot["t_ns"] = t_ns if exact else session.session_ns(t_ns)
                    slot["step_ns"], slot["error_ns"] = 1e9 * clock.step_s, round(1e9 * clock.error_s)
                    slot["anchored"], slot["values"][: len(part)] = clock.anchored, part
        self._first += len(values)
        if not self._said and self._first > 10 * clock.rate_hz:
            self._said = True
            self.say()

    def say(self) -> None:
        """Say how well times are known."""
        if self._clock is None:
            return
        how = "by the scanner's pulses" if self._clock.anchored else "if it sends at once what it has measured"
        text = "physio: %s: %.4g samples a second; their times are known within %.0f ms, %s"
        self.context.log.info(text, self.device, self._clock.rate_hz, 1e3 * self._clock.error_s, how)

    def close(self) -> None:
        """Publish what is left, and let go of the device."""
        self._hand_on(everything=True)
        self._let_go()

    def _let_go(self) -> None:
        """Close the device; one that has gone may not let itself be closed."""
        if self._source is not None:
            with suppress(OSError, RuntimeError):
                self._source.close()
            self._source = None


def _anchor(context: Context, readers: list[_Reader]) -> bool:
    """Find the delay of the device that has the scanner's pulses, once the trigger has been; of files, each is a channel of one device."""
    if not context.clock.get("triggered"):
        return False
    trigger_s = (context.clock.get("started_ns") + context.clock.get("trigger_ns")) / 1e9  # at speed 1
    for reader in readers:
        delay_s = reader.delay_s(trigger_s)
        if abs(delay_s) < context.plan.tr_s / 2:
            for other in readers:
                if other is reader or other.device.kind == reader.device.kind == "file":
                    other.anchor(delay_s, context.clock.get("trigger_error_ns") / 1e9)
                    other.say()
            return True
    return False


def run(context: Context) -> None:
    """Sensors -> ``physiology``."""
    out = context.writer("physiology")
    readers = [_Reader(context, device, out) for device in devices_of(context.config, context.plan.runtime)]
    context.ready()
    anchored, over = not context.config.physio.trigger, False
    while not over:
        over = bool(context.clock.get("drain") or context.clock.get("abort"))
        for reader in readers:
            reader.look()
        anchored = anchored or _anchor(context, readers)
        if not over:
            time.sleep(LOOK_S)
    for reader in readers:
        reader.close()
    out.close_writing()
