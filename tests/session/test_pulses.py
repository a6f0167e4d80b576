"""Pulses and volumes held against each other."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtevo.bridge import PresenterEvent
from rtevo.records import EventKind, VolumeFlag
from rtevo.session.clock import Clock
from rtevo.session.pulses import Pulses, PulseWatch
from rtevo.stages.bridge import _Start

TR_S = 0.867


def scan(
    pulses: list[float], volumes: int, *, latency_s: float = 0.3, trigger: int = 0, missing: tuple[int, ...] = (), tr_s: float = TR_S
) -> tuple[Pulses, list[str]]:
    """Run a scan whose volume k takes from k to k + 1 TR; the presenter takes pulse number `trigger` for the first."""
    found, told = Pulses(tr_s), []
    zero = pulses[trigger]
    happens = [(t, -1, False) for t in pulses[trigger:]]
    happens += [((k + 1) * TR_S + latency_s, k, k in missing) for k in range(volumes)]
    for t_s, index, lost in sorted(happens):
        told += found.pulse(t_s - zero) if index < 0 else found.volume(index, math.nan if lost else t_s - zero, lost)
    return found, told + found.finish()


def every(n: int, tr_s: float = TR_S) -> list[float]:
    return [k * tr_s for k in range(n)]


@pytest.mark.parametrize("latency_s", [0.0, 0.3, 0.9, 3.0])
@pytest.mark.parametrize("pulses", [every(1), every(200)])
def test_nothing_is_told_where_all_is_well(pulses: list[float], latency_s: float) -> None:
    assert scan(pulses, 200, latency_s=latency_s)[1] == []


@given(st.sets(st.integers(1, 98), max_size=5), st.floats(-0.05, 0.05), st.floats(0, 2))
def test_every_missed_pulse_is_counted(missed: set[int], jitter: float, latency_s: float) -> None:
    if missed >= {1, 2, 3}:
        return  # then it cannot be known that there is one for every volume
    pulses = [t + jitter * TR_S * (-1) ** k for k, t in enumerate(every(100)) if k not in missed]
    found, told = scan(pulses, 100, latency_s=latency_s + 0.1)
    assert found.missed == len(missed)
    assert sum("missed" in line for line in told) == sum(k not in missed and k - 1 in missed for k in range(100))


def test_an_extra_pulse_does_not_count() -> None:
    found, told = scan(sorted([*every(50), 10.3 * TR_S]), 50)
    assert len(told) == 1
    assert "does not count" in told[0]
    assert found.missed == 0


@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("pulses", [1, 60])
def test_a_trigger_that_was_not_the_first_volumes_is_told_at_the_first_volume(late: int, pulses: int) -> None:
    found, told = scan([*every(late), *(t + late * TR_S for t in every(pulses))], 60 + late, trigger=late)
    assert found.shift == late
    assert "volume 0 was whole" in told[0]
    assert sum("was whole" in line for line in told) == 1


def test_a_late_trigger_behind_a_slow_export_is_told_at_the_end() -> None:
    """Volumes that come in a repetition time late hide the shift, but not their number."""
    found, told = scan(every(60), 60, trigger=1, latency_s=1.2)
    assert told == ["1 volumes more than triggers: the first or the last 1 triggers were missed"]
    assert found.shift == 1


def test_a_trigger_of_a_dummy_volume_is_told_at_the_end() -> None:
    dummies = [-2 * TR_S, -TR_S]
    found, told = scan([*dummies, *every(50)], 50, latency_s=0.2)
    assert found.shift == -2
    assert "dummy_triggers" in told[-1]


def test_a_missing_volume_and_a_scanner_whose_volumes_stay_away() -> None:
    _, told = scan(every(20), 20, missing=(7,))
    assert told == ["volume 7 has not come in; its trigger was seen"]
    _, told = scan(every(40), 20)
    assert ["no volume has come in since 19" in line for line in told] == [True, False]


def test_a_repetition_time_that_is_a_little_off_is_no_trouble() -> None:
    assert scan(every(600, TR_S * 1.0005), 598, tr_s=TR_S, latency_s=0.6)[1][:-1] == []


def test_the_operator_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The stage that reads both rings: the trigger was the second volume's, one volume is missing and one trigger was missed."""
    second, speed = 1_000_000_000, 2.0
    words = {"start_shift": 0}
    clock = SimpleNamespace(
        lock_step=False, session_ns=lambda mono_ns: round(mono_ns * speed), get=words.__getitem__, set=words.__setitem__
    )
    config = SimpleNamespace(session=SimpleNamespace(speed=speed))
    plan = SimpleNamespace(tr_s=1.0, first_volume=0)
    context = SimpleNamespace(clock=clock, plan=plan, config=config, log=logging.getLogger("rtevo.test"))
    looks = PulseWatch(context)  # type: ignore[arg-type]
    for k in range(1, 8):
        if k != 4:
            looks.event({"kind": EventKind.TRIGGER if k == 1 else EventKind.PULSE, "t_ns": 10 * second + k * second})
    for k in range(7):
        closed_ns = round((11 + k + 0.2) * second / speed)
        looks.volume({"index": k, "flags": VolumeFlag.MISSING if k == 5 else VolumeFlag.OK, "closed_ns": closed_ns})
    looks.finish()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 3
    for line, text in zip(lines, ("1 triggers were missed before that of volume 4", "volume 0 was whole", "volume 5 has not"), strict=True):
        assert text in line


def test_a_start_that_the_volumes_contradict_can_be_corrected_until_the_first_image(tmp_path: Path) -> None:
    """The trigger was the third volume's. The operator accepts what the volumes say: pulses and volumes agree from then on."""
    second, told = 1_000_000_000, list[str]()
    with Clock.create(tmp_path / "words", 1.0) as clock:
        clock.set("started_ns", 1)  # session time is the monotonic clock's, all but
        log = SimpleNamespace(warning=lambda text, *more: told.append(text % more))
        context = SimpleNamespace(
            clock=clock, plan=SimpleNamespace(tr_s=1.0, first_volume=0), config=SimpleNamespace(session=SimpleNamespace(speed=1.0)), log=log
        )
        looks, start = PulseWatch(context), _Start(context)  # type: ignore[arg-type]
        trigger = PresenterEvent(EventKind.TRIGGER, -1, -1, 12 * second, 5)

        def event(kind: EventKind, t_ns: int) -> None:
            looks.event({"kind": kind, "t_ns": clock.session_ns(t_ns)})

        def volumes(numbers: range) -> None:
            for k in numbers:
                if k > 2:
                    event(EventKind.PULSE, (10 + k) * second)
                looks.volume({"index": k, "flags": VolumeFlag.OK, "closed_ns": round((11 + k + 0.05) * second)})

        start.follow(trigger)
        event(EventKind.TRIGGER, trigger.mono_ns)
        volumes(range(2))
        assert clock.get("start_shift") == 2
        assert start.corrected(0) is None  # nobody has accepted it yet
        clock.set("start_accepted", clock.get("start_shift"))
        corrected = start.corrected(-4)
        assert corrected is not None
        assert (corrected.mono_ns, corrected.sequence, corrected.kind) == (10 * second, -4, EventKind.TRIGGER)
        event(EventKind.TRIGGER, corrected.mono_ns)
        before = len(told)
        volumes(range(2, 9))
        looks.finish()
        assert (clock.get("start_shift"), told[before:]) == (0, [])
        start.follow(PresenterEvent(EventKind.ONSET, 0, 0, 20 * second, 5))
        clock.set("start_accepted", 1)
        assert start.corrected(0) is None
        assert "can no longer be corrected" in told[-1]
