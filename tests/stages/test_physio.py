"""Samples from a device to the ring, and from the ring to a volume's terms."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.errors import ConfigError
from rtevo.export.physio import recordings
from rtevo.physio import Sensor
from rtevo.physio.sources import Chunk
from rtevo.record import RecordedSession, Recorder
from rtevo.records import EventKind, RunClock, event_dtype, physiology_dtype
from rtevo.session.physio import PhysioTerms
from rtevo.session.sensors import devices_of, physio_sizes
from rtevo.shm import Reader, Ring, RingTimeout
from rtevo.simulate.body import Body
from rtevo.stages.physio import _anchor, _Reader

RATE_HZ = 50.0


@pytest.fixture
def ring() -> Iterator[Ring]:
    with Ring.create(f"/rtevo-test-physio-{os.getpid()}", physiology_dtype(), 256, [Reader("decode")], writer=True) as made:
        yield made


def messages(ring: Ring) -> list[Any]:
    """All slots that wait."""
    with Ring.attach(ring.name, reader="decode") as end:
        found = []
        try:
            while True:
                with end.read(timeout_s=0) as slot:
                    found.append(slot.copy())
        except RingTimeout:
            return found


def context(tmp_path: Path, **keys: Any) -> Any:
    """A session that measures pulse and respiration by rows in a file, with the scanner's pulses in the third column."""
    file = tmp_path / "device.txt"
    physio = {"cardiac": f"file:{file}", "respiration": f"file:{file}#2", "trigger": f"file:{file}#3", "rate_hz": RATE_HZ} | keys
    config = build({"session": {"speed": 1.0}, "physio": physio})
    words = {"triggered": 1, "started_ns": 0, "trigger_ns": 0, "trigger_error_ns": 500_000}
    clock = SimpleNamespace(lock_step=False, session_ns=lambda ns: ns, get=lambda word: words[word], words=words)
    plan = SimpleNamespace(tr_s=2.0, runtime=tmp_path)
    return SimpleNamespace(config=config, plan=plan, clock=clock, log=logging.getLogger("rtevo"))


def test_samples_reach_the_ring_and_the_scanners_pulse_says_when_they_were_measured(
    tmp_path: Path, ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    here = context(tmp_path)
    (device,) = devices_of(here.config, tmp_path)
    assert device.sensors == (Sensor.CARDIAC, Sensor.RESPIRATORY, Sensor.TRIGGER)
    reader = _Reader(here, device, ring)
    rows = [f"{k % 7} {k} {5 * (k >= 400)}\n" for k in range(1000)]
    (tmp_path / "device.txt").write_text("".join(rows))
    reader._handed_s = np.inf  # samples are held until the device is closed
    reader.look()
    assert reader._clock is not None
    here.clock.words["trigger_ns"] = round(1e9 * (reader._clock.time_s(400) - 0.3))  # the device is late by so much
    with caplog.at_level(logging.INFO, "rtevo"):
        assert _anchor(here, [reader])
    assert "by the scanner's pulses" in caplog.text
    reader.close()
    found = messages(ring)
    pulses = [slot for slot in found if slot["sensor"] == Sensor.RESPIRATORY]
    values = np.concatenate([slot["values"][: slot["count"]] for slot in pulses])
    np.testing.assert_array_equal(values, np.arange(1000))
    last = pulses[-1]
    trigger_s = here.clock.words["trigger_ns"] / 1e9
    at_s = (last["t_ns"] + (400 - last["number"]) * last["step_ns"]) / 1e9
    assert last["anchored"] == 1
    assert abs(at_s - trigger_s) < last["error_ns"] / 1e9 < 0.02


def test_a_device_that_is_not_there_is_named_once_and_looked_for_again(
    tmp_path: Path, ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    here = context(tmp_path)
    (tmp_path / "device.txt").mkdir()
    reader = _Reader(here, devices_of(here.config, tmp_path)[0], ring)
    for _ in range(2):
        reader._again_s = 0.0
        reader.look()
    assert len(caplog.records) == 1
    assert "device.txt" in caplog.text
    (tmp_path / "device.txt").rmdir()
    (tmp_path / "device.txt").write_text("1 2 3\n")
    reader._again_s = 0.0
    with caplog.at_level(logging.INFO, "rtevo"):
        reader.look()
    assert "is there again" in caplog.text
    reader.close()


def slots(body: Body, sensor: Sensor, from_s: float, until_s: float) -> Iterator[Any]:
    """Slots of the ring, of a session whose trigger comes at 5 s."""
    t = np.arange(from_s, until_s, 1 / RATE_HZ)
    values = body.pulse(t) if sensor == Sensor.CARDIAC else body.belt(t)
    for begin in range(0, len(t), 256):
        slot = np.zeros(1, physiology_dtype())[0]
        part = values[begin : begin + 256]
        slot["sensor"], slot["number"], slot["count"] = sensor, round(from_s * RATE_HZ) + begin, len(part)
        slot["t_ns"], slot["step_ns"], slot["values"][: len(part)] = round(1e9 * (t[begin] + 5.0)), 1e9 / RATE_HZ, part
        yield slot


def test_a_loss_is_said_once_and_so_is_that_it_is_over(tmp_path: Path) -> None:
    body, here = Body(np.random.default_rng(5), 120), context(tmp_path, trigger="")
    terms, run = PhysioTerms(here.config, 2.0), RunClock(2.0).triggered(5 * 10**9)
    assert sum(physio_sizes(here.config, 2.0)) == 18
    terms.acquired(json.dumps({"SliceTiming": [0.0, 1.0, 0.5, 1.5]}).encode())
    terms.placed(np.ones((2, 2, 4)))
    for index in range(40):
        for sensor in (Sensor.CARDIAC, Sensor.RESPIRATORY):
            for slot in slots(body, sensor, 2.0 * index, 2.0 * (index + 1)):
                if sensor == Sensor.CARDIAC and 15 <= index < 20:
                    slot["values"] = 7.0
                terms.take(slot)
        state = terms.volume(run.starts_s(index))
        if index not in (*range(6), 15, 16, *range(20, 25)):  # when it begins to be lost, and while it comes back
            assert state.terms[:8].any() == (not 15 <= index < 20), index
    assert [warns for warns, _ in terms.news] == [True, False]
    assert terms.news[0][1].startswith("the pulse ")
    assert not terms.volume(float("nan")).terms.any()  # before the trigger


def test_in_lock_step_terms_do_not_depend_on_the_blocks_in_which_samples_come(tmp_path: Path) -> None:
    body, here = Body(np.random.default_rng(5), 60), context(tmp_path, trigger="")
    everything = [next(slots(body, sensor, k / RATE_HZ, (k + 0.5) / RATE_HZ)) for k in range(1500) for sensor in Sensor if sensor < 2]
    found = []
    for ahead_s in (0.0, 3.3):
        terms, waiting = PhysioTerms(here.config, 2.0, held=True), list(everything)
        for index in range(12):
            ends_s = 5.0 + 2.0 * (index + 1)
            while waiting and waiting[0]["t_ns"] <= 1e9 * (ends_s + ahead_s * (index % 2)):
                terms.take(waiting.pop(0))
            assert terms.covers(ends_s - 0.05)
            terms.release(ends_s - 0.05)
            found.append(terms.volume(ends_s - 2.0).terms)
    assert np.any(found[-1])
    np.testing.assert_array_equal(found[:12], found[12:])


def test_a_device_that_sends_at_another_rate_than_is_said_is_named(tmp_path: Path, ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    here = context(tmp_path)
    reader = _Reader(here, devices_of(here.config, tmp_path)[0], ring)
    (tmp_path / "device.txt").write_text("1 2 3\n")
    reader.look()
    for k in range(40):
        reader._take(Chunk(np.zeros((100, 3)), 1000.0 + 0.2 * k, 0.0))  # 500 a second
    (said, *_) = [each.getMessage() for each in caplog.records]
    assert "500 samples a second came, expected 50: set [physio] rate_hz" in said
    assert len(caplog.records) == 6  # the first, the second, the fourth, ... of 40
    reader.close()


def test_what_was_recorded_is_exported_evenly_with_its_gaps(tmp_path: Path) -> None:
    body, begun = Body(np.random.default_rng(5), 60), {"schema": 1, "part": 0, "first_volume": 0, "tr_s": 2.0}
    recorder = Recorder(tmp_path)
    with recorder.log:
        recorder.log.append("start", begun)
        event = np.zeros(1, event_dtype())[0]
        event["kind"], event["t_ns"] = EventKind.TRIGGER, 5 * 10**9
        recorder.take("events", event)
        for from_s, until_s in ((-10.0, 12.0), (15.0, 40.0)):
            for slot in slots(body, Sensor.CARDIAC, from_s, until_s):
                recorder.take("physiology", slot)
    (found,) = recordings(RecordedSession(tmp_path))
    t = -10.0 + np.arange(len(found.values)) / RATE_HZ
    lost = (t > 12 - 0.01) & (t < 15 - 0.01)
    np.testing.assert_array_equal(np.isnan(found.values), lost)
    np.testing.assert_allclose(found.values[~lost], body.pulse(t[~lost]), atol=1e-6)
    sidecar = found.sidecar()
    assert (sidecar["StartTime"], sidecar["SamplingFrequency"], sidecar["Columns"]) == (-10.0, RATE_HZ, ["cardiac"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"physio": {"cardiac": "simulated"}}, "physiology_percent"),
        ({"physio": {"cardiac": "file:x"}}, "rate_hz"),
        ({"physio": {"cardiac": "lsl:x"}, "session": {"speed": 2.0}}, "speed"),
        ({"physio": {"trigger": "lsl:x"}}, "one of these with trigger"),
        ({"physio": {"cardiac": "x"}}, "serial:PORT@BAUD"),
        ({"physio": {"terms": ["retroicor", "ecg"]}}, "rvt"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(settings)
