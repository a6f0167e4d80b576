"""Motion, scores and events as streams of the Lab Streaming Layer, read back through it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rtevo.config import build
from rtevo.errors import ConfigError
from rtevo.record import AlignedRecord, EventRecord, ScoreRecord, Start
from rtevo.records import EventKind
from rtevo.session.checks import check_live
from rtevo.stages.live import MOTION, SCORES, Streams, of_last_part

LIMIT_S = 30.0


@pytest.fixture
def pylsl() -> ModuleType:
    return pytest.importorskip("pylsl")


class Clock:
    """Session time that stands."""

    def now_ns(self) -> int:
        return 5_000_000_000


def context(name: str, **sections: Any) -> Any:
    return SimpleNamespace(plan=SimpleNamespace(name=name), clock=Clock(), config=build({"record": {"lsl": True}, **sections}))


@pytest.fixture
def opened(pylsl: ModuleType) -> Iterator[Any]:
    """Return a function that opens the inlet of one of a session's streams."""
    inlets = []

    def inlet(stream: str, name: str) -> Any:
        found = pylsl.resolve_byprop("source_id", f"rtevo-{stream}-{name}", timeout=10)
        if not found:
            pytest.skip("streams cannot be found here: the network lets no multicast through")
        inlets.append(pylsl.StreamInlet(found[0], recover=False))
        inlets[-1].open_stream(timeout=LIMIT_S)
        return inlets[-1]

    yield inlet
    for each in inlets:
        each.close_stream()


def test_every_record_comes_once_with_its_time_and_its_units(pylsl: ModuleType, opened: Any) -> None:
    streams = Streams(context("live"))
    motion, scores, events = (opened(name, "live") for name in ("motion", "scores", "events"))
    info = motion.info(timeout=LIMIT_S)
    assert info.get_channel_labels() == list(MOTION)
    assert info.get_channel_units()[3:9] == ["mm"] * 3 + ["rad"] * 3
    now_ns, before = time.monotonic_ns(), pylsl.local_clock()
    streams.push(
        [
            AlignedRecord(index=3, acquired_s=6.0, motion=[0.1, 0.2, 0.3, 0.01, 0.02, 0.03], aligned_ns=now_ns - 2_000_000_000),
            EventRecord(kind=EventKind.ONSET, generation=0, candidate=1, t_ns=4_000_000_000),
            EventRecord(kind=EventKind.NOTE, text="of no use to others"),
            ScoreRecord(generation=0, candidate=1, score=1.5, score_se=0.5, onset_s=4.0, scored_ns=now_ns),
        ]
    )
    sample, stamp = motion.pull_sample(timeout=LIMIT_S)
    assert sample[:9] == [3, 0, 6.0, 0.1, 0.2, 0.3, 0.01, 0.02, 0.03]
    assert stamp == pytest.approx(before - 2.0, abs=0.5)
    sample, _ = scores.pull_sample(timeout=LIMIT_S)
    assert dict(zip(SCORES, sample, strict=True))["score"] == 1.5
    sample, stamp = events.pull_sample(timeout=LIMIT_S)
    assert json.loads(sample[0]) == {"event": "onset", "generation": 0, "candidate": 1, "text": ""}
    assert stamp == pytest.approx(before - 1.0, abs=0.5)
    assert events.pull_sample(timeout=0.0) == (None, None)


BLIND = {"session": {"condition": "blinded"}, "evolution": {"blinding_key": __file__}}


@pytest.mark.parametrize("sections", [{"safety": {"approval": "veto"}, "console": {"port": 8080}}, BLIND])
def test_where_nobody_may_see_scores_there_is_no_stream_of_them(sections: dict[str, Any], pylsl: ModuleType) -> None:
    streams = Streams(context("hidden", **sections))
    streams.push([ScoreRecord(score=1.5)])
    assert not pylsl.resolve_byprop("source_id", "rtevo-scores-hidden", timeout=0.5)


def test_a_session_that_goes_on_sends_nothing_again() -> None:
    before, now = AlignedRecord(index=1), AlignedRecord(index=2)
    assert of_last_part([Start(), before, Start(part=1), now])[1:] == [now]


def test_without_pylsl_it_is_said_before_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pylsl", None)
    with pytest.raises(ConfigError, match=r"\[record\] lsl: .*pip install 'rtevo\[lsl\]'"):
        check_live(build({"record": {"lsl": True}}))
    check_live(build({}))
