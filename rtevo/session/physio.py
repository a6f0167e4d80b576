"""From samples of pulse and respiration to the terms of a volume: what a session's settings, rings and clocks have to do with it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.config import Config
from rtevo.physio import SENSORS, Sensor
from rtevo.physio.regressors import Physiology, State, moments
from rtevo.physio.trace import Trouble
from rtevo.records import RunClock
from rtevo.session.sensors import sensors_of
from rtevo.shm import RingClosed, RingTimeout, WriterLost

if TYPE_CHECKING:
    from rtevo.decode import Decoder
    from rtevo.session.context import Context

__all__ = ["Heard", "PhysioTerms"]

Array = NDArray[np.float64]
WAIT_S = 0.1  # how often the shared words are looked at while samples are waited for
SLACK_S = 0.05  # before a volume's end, until which samples are waited for and used in lock-step


@dataclass
class _Block:
    """Samples that have come and are not used yet."""

    segment: int
    number: int
    values: Array
    t_ns: int
    step_ns: float

    @property
    def last_ns(self) -> float:
        """When the last of them was measured."""
        return self.t_ns + (len(self.values) - 1) * self.step_ns

    def cut(self, count: int) -> _Block:
        """Take away the first ones, and return them."""
        first = replace(self, values=self.values[:count])
        self.number, self.values, self.t_ns = self.number + count, self.values[count:], self.t_ns + round(count * self.step_ns)
        return first


class PhysioTerms:
    """Takes samples as they come and returns the terms of each volume.

    Parameters
    ----------
    config : Config
    tr_s : float
        Repetition time, s.
    held : bool
        Samples are held until :meth:`release`, so that terms do not depend on how many have come.

    Attributes
    ----------
    news : list of (bool, str)
        What is to be said since somebody emptied this, and whether it is a warning.
    """

    def __init__(self, config: Config, tr_s: float, held: bool = False) -> None:
        self._sensors, self._tr_s, self._holds = sensors_of(config), tr_s, held
        self._held: dict[Sensor, list[_Block]] = {sensor: [] for sensor in self._sensors}
        self._came_ns = dict.fromkeys(self._sensors, math.nan)
        self._physiology = Physiology(config.physio.terms, self._sensors, tr_s)
        self._slice_s = np.array([tr_s / 2])
        self._energy = np.ones(1)
        self._lost = dict.fromkeys(self._sensors, False)
        self._losses = dict.fromkeys(self._sensors, 0)
        self.news: list[tuple[bool, str]] = []

    def take(self, slot: Any) -> None:
        """Take a slot of the ring ``physiology``."""
        sensor, values = Sensor(int(slot["sensor"])), np.array(slot["values"][: slot["count"]], np.float64)
        if sensor not in self._sensors:
            return
        block = _Block(int(slot["segment"]), int(slot["number"]), values, int(slot["t_ns"]), float(slot["step_ns"]))
        self._came_ns[sensor] = block.last_ns
        if self._holds:
            self._held[sensor].append(block)
        else:
            self._use(sensor, block)

    def _use(self, sensor: Sensor, block: _Block) -> None:
        self._physiology.add(sensor, block.segment, block.number, block.values, block.t_ns / 1e9, block.step_ns / 1e9)

    def release(self, until_s: float) -> None:
        """Use the samples until a session time, s; in whatever blocks they came, each series at once."""
        for sensor, blocks in self._held.items():
            ready: list[_Block] = []
            while blocks and (count := math.floor((1e9 * until_s - blocks[0].t_ns) / blocks[0].step_ns) + 1) > 0:
                block = blocks.pop(0) if count >= len(blocks[0].values) else blocks[0].cut(count)
                if ready and ready[-1].segment == block.segment:
                    ready[-1].values = np.concatenate([ready[-1].values, block.values])
                else:
                    ready.append(block)
            for block in ready:
                self._use(sensor, block)

    def acquired(self, acquisition: bytes) -> None:
        """Take what the headers of the run's first volume say of its slices' times; without it slices are taken to be measured evenly."""
        found = json.loads(acquisition).get("SliceTiming", []) if acquisition else []
        times = np.array([each for each in found if isinstance(each, (int, float))], np.float64)
        if len(times) and len(times) == len(found) and np.isfinite(times).all() and 0 <= times.min() <= times.max() <= self._tr_s:
            self._slice_s = times

    def placed(self, weights: ArrayLike) -> None:
        """Take the map as it lies on today's grid, (X, Y, Z): slices in which it has much count for much."""
        self._energy = (np.asarray(weights, np.float64) ** 2).sum(axis=(0, 1))

    def covers(self, t_s: float) -> bool:
        """Whether all sensors have been heard until a session time, s."""
        return all(came_ns >= 1e9 * t_s for came_ns in self._came_ns.values())

    def volume(self, begins_s: float) -> State:
        """Return what is known at the end of a volume that began at a session time, s; NaN: not known when."""
        if math.isnan(begins_s):
            nothing = np.zeros(sum(self._physiology.sizes))
            return State(nothing, math.nan, math.nan, (Trouble.SHORT, Trouble.SHORT))
        slices = len(self._energy)
        even = (np.arange(slices) + 0.5) * self._tr_s / slices
        at = moments(self._tr_s, self._slice_s if len(self._slice_s) == slices else even, self._energy)
        state = self._physiology.at(begins_s + at, begins_s + self._tr_s)
        for sensor in self._sensors:
            self._tell(sensor, state.trouble[0 if sensor == Sensor.CARDIAC else 1])
        return state

    def _tell(self, sensor: Sensor, trouble: Trouble) -> None:
        """Say that a sensor is lost, or has come back: the first time, the second, the fourth, and so on."""
        lost, name = trouble not in (Trouble.NONE, Trouble.SHORT), SENSORS[sensor]
        if lost and not self._lost[sensor]:
            self._losses[sensor] += 1
            if self._losses[sensor].bit_count() == 1:
                self.news.append((True, f"the {name} {trouble.words}: it is left out until it is back (see to the sensor)"))
        elif self._lost[sensor] and trouble == Trouble.NONE and self._losses[sensor].bit_count() == 1:
            self.news.append((False, f"the {name} is back"))
        self._lost[sensor] = lost or (self._lost[sensor] and trouble != Trouble.NONE)


class Heard:
    """The ring ``physiology`` as decoding hears it: what has come by the time of a volume.

    Parameters
    ----------
    context : Context
    """

    def __init__(self, context: Context) -> None:
        self._context, self._tr_s = context, context.plan.tr_s
        self.ring, self.terms = context.reader("physiology"), PhysioTerms(context.config, context.plan.tr_s, context.clock.lock_step)
        self._decoder: Decoder | None = None

    def volume(self, slot: Any, run: RunClock, decoder: Decoder | None) -> State:
        """Return what is known at a volume; in lock-step, where time stands still meanwhile, once all until its end has been heard.

        Parameters
        ----------
        slot : numpy.void
            Of ``volumes``.
        run : RunClock
        decoder : Decoder or None
            As it lies today, where it is known.
        """
        if acquisition := slot["acquisition"]:
            self.terms.acquired(bytes(acquisition))
        if decoder is not None and decoder is not self._decoder:
            self._decoder = decoder
            self.terms.placed(np.where(decoder.mask, decoder.weights, 0.0))
        begins_s = run.starts_s(int(slot["index"]))
        until_s = begins_s + self._tr_s - SLACK_S
        self._listen(until_s)
        if not math.isnan(until_s):
            self.terms.release(until_s)
        state = self.terms.volume(begins_s)
        for warns, text in self.terms.news:
            (self._context.log.warning if warns else self._context.log.info)("physio: %s", text)
        self.terms.news.clear()
        return state

    def _listen(self, until_s: float) -> None:
        """Take what is there."""
        clock = self._context.clock
        while True:
            waits = clock.lock_step and not (math.isnan(until_s) or self.terms.covers(until_s) or clock.get("abort"))
            try:
                with self.ring.read(timeout_s=WAIT_S if waits else 0) as slot:
                    self.terms.take(slot)
            except RingTimeout:
                if not waits:
                    return
            except (RingClosed, WriterLost):
                return
