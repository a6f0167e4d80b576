"""The link as a whole: a bridge, a headless presenter and a scripted participant over loopback, in lock-step and in real time."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from presenter.link import Link, LinkLost
from presenter.run import present
from rtevo import wire
from rtevo.bridge import Bridge, ClockOffset, Lobby, Predecessor, PresenterEvent, make_keys
from rtevo.bridge.__main__ import main as keys_main
from rtevo.bridge.bridge import SILENT_S
from rtevo.errors import LinkError
from rtevo.records import NOTES, EventKind
from rtevo.simulate import FaultyNetwork
from rtevo.wire import PresentationSettings
from tests.support.link import LIMIT_S, stranger, until

SECOND = 1_000_000_000

LOOPBACK = "tcp://127.0.0.1:0"


def pixels(value: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


class Presenter:
    """A headless presenter in a thread of its own."""

    def __init__(self, endpoint: str, participant: str | None = None, key: Path | None = None) -> None:
        self.reason: str | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(endpoint, participant, key))
        self._thread.start()

    def _run(self, endpoint: str, participant: str | None, key: Path | None) -> None:
        try:
            self.reason = present(endpoint, key=key, headless=True, participant=participant)
        except Exception as error:
            self.error = error

    def join(self) -> str | None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.reason


class Participant:
    """Looks at once; presses the keys that `react` asks for when something is shown."""

    def __init__(self, react: Callable[[wire.Shown], list[tuple[int, str]]]) -> None:
        self._react = react
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(LOOPBACK)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.shown: list[tuple[str, int, int]] = []  # kind, time, first pixel
        self.keys: list[tuple[int, str]] = []  # to press, by time
        self.waits = False
        self._peer = b""

    def serve(self) -> None:
        while self._socket.poll(0):
            self._peer, *frames = self._socket.recv_multipart()
            message, view = wire.decode(frames)
            if isinstance(message, wire.Shown):
                self.shown.append((message.kind, message.t_ns, view[0] if view else -1))
                self.keys = sorted(self.keys + self._react(message))
                self._send(wire.Seen(message.t_ns))
            elif isinstance(message, wire.Pressed):
                self.waits = False

    def press(self, t_ns: int = 0) -> None:
        self.waits = True
        self._send(wire.Key(self.keys.pop(0)[1], t_ns))

    def _send(self, message: wire.Message) -> None:
        self._socket.send_multipart([self._peer, *wire.encode(message)])

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


def at_trigger_and_rating(shown: wire.Shown) -> list[tuple[int, str]]:
    """Scanner's trigger 2 s after the waiting text; an answer 1.25 s after the rating window opens, every second time none."""
    if shown.kind == "text":
        return [(shown.t_ns + 2 * SECOND, "5")]
    if shown.kind == "rating" and (shown.t_ns // SECOND) % 2 == 0:
        return [(shown.t_ns + SECOND * 5 // 4, "3")]
    return []


@contextlib.contextmanager
def lock_step(
    settings: PresentationSettings, react: Callable[[wire.Shown], list[tuple[int, str]]] = at_trigger_and_rating
) -> Iterator[tuple[Bridge, Participant, Presenter]]:
    participant = Participant(react)
    try:
        with Bridge(LOOPBACK, settings) as bridge:
            presenter = Presenter(bridge.endpoint, participant.endpoint)
            yield bridge, participant, presenter
        presenter.join()
    finally:
        participant.close()


def conduct(bridge: Bridge, participant: Participant, actions: list[tuple[int, Callable[[], None]]]) -> list[PresenterEvent]:
    """Move time to what comes next whenever everything is at rest, until the end; `actions` happen at their times."""
    actions, events, now = sorted(actions, key=lambda action: action[0]), [], 0
    deadline = time.monotonic() + LIMIT_S
    while not (events and events[-1].kind == EventKind.END):
        assert time.monotonic() < deadline, "the lock-step stands still"
        events += bridge.poll(0.001)
        participant.serve()
        if participant.waits or bridge.idle_until_ns is None:
            continue
        now, what = min(
            (bridge.idle_until_ns, 0),
            (participant.keys[0][0] if participant.keys else wire.FOREVER_NS, 1),
            (actions[0][0] if actions else wire.FOREVER_NS, 2),
        )
        assert now < wire.FOREVER_NS, "everybody waits for somebody else"
        if what == 1:
            participant.press(now)
        else:
            bridge.tick(now)
        if what == 2:
            actions.pop(0)[1]()
    return events


def session(settings: PresentationSettings) -> tuple[list[PresenterEvent], list[tuple[str, int, int]]]:
    """Six images, the fourth and later ones late, then the end."""
    with lock_step(settings) as (bridge, participant, presenter):
        actions: list[tuple[int, Callable[[], None]]] = [
            ((1 if k < 3 else 40 + 2 * k) * SECOND, lambda k=k: bridge.send_image(k // 3, k % 3, pixels(10 * k), verdict="given"))  # type: ignore[misc]
            for k in range(6)
        ]
        events = conduct(bridge, participant, [*actions, (100 * SECOND, lambda: bridge.end("enough"))])
        participant.serve()
        assert bridge.poll(0) == []
        assert presenter.join() == "enough"
        return events, participant.shown


def test_lock_step_session_is_exact_and_repeats_itself() -> None:
    settings = PresentationSettings(speed=0, baseline_s=6)
    events, shown = session(settings)
    assert [e.kind for e in events if e.kind in NOTES] == [EventKind.READY]
    onsets = [e for e in events if e.kind == EventKind.ONSET]
    assert [(e.generation, e.candidate) for e in onsets] == [(k // 3, k % 3) for k in range(6)]
    assert [e.mono_ns / SECOND for e in onsets] == [8, 12, 16, 46, 50, 54]
    assert [e.mono_ns / SECOND for e in events if e.kind == EventKind.OFFSET] == [11, 15, 19, 49, 53, 57]
    assert [e.mono_ns / SECOND for e in events if e.kind == EventKind.FIXATION] == [20, 58]
    assert {e.error_ns for e in events} == {0}
    assert [s for s in shown if s[0] == "image"] == [("image", e.mono_ns, 10 * k) for k, e in enumerate(onsets)]
    assert shown[0][0] == "text"
    assert shown[-1] == ("text", 100 * SECOND, -1)
    assert events[-1].text == "enough"
    assert repr(session(settings)) == repr((events, shown))  # NaN is not equal to itself


@pytest.mark.slow
def test_of_a_thousand_pictures_no_marked_one_is_ever_on_the_screen() -> None:
    """Marked: without a verdict, with other pixels than were judged, or taken out before they are due; their first pixel is 200 or more."""
    rng = np.random.default_rng(7)
    with lock_step(PresentationSettings(speed=0)) as (bridge, participant, presenter):
        kinds = rng.choice(["passed", "none", "other", "out"], 1000, p=[0.7, 0.1, 0.1, 0.1]).tolist()
        value = {k: int(rng.integers(0, 200) if kind == "passed" else rng.integers(200, 256)) for k, kind in enumerate(kinds)}

        def send(k: int) -> None:
            verdict = "" if kinds[k] == "none" else wire.PASSED
            judged = pixels(0) if kinds[k] == "other" else pixels(value[k])
            if kinds[k] == "out" and k % 2:  # before it comes, or while it waits
                bridge.take_away(0, k)
            bridge.send_image(0, k, pixels(value[k]), verdict=verdict, sha256=wire.digest(judged))
            if kinds[k] == "out":
                bridge.take_away(0, k)

        # all of them are there before the trigger, 2 s after the waiting text
        actions: list[tuple[int, Callable[[], None]]] = [(SECOND, lambda k=k: send(k)) for k in range(1000)]  # type: ignore[misc]
        shown = kinds.count("passed")
        events = conduct(bridge, participant, [*actions, ((4 * shown + 20) * SECOND, lambda: bridge.end("enough"))])
        assert presenter.join() == "enough"
    assert [v for kind, _, v in participant.shown if kind == "image"] == [value[k] for k in range(1000) if kinds[k] == "passed"]
    told = {kind: [e.candidate for e in events if e.kind == kind] for kind in (EventKind.REFUSED, EventKind.TAKEN)}
    assert told[EventKind.REFUSED] == [k for k in range(1000) if kinds[k] in ("none", "other")]
    assert told[EventKind.TAKEN] == [k for k in range(1000) if kinds[k] == "out"]


def test_what_the_operator_takes_out_is_not_shown_though_another_bridge_had_sent_it() -> None:
    """The bridge is killed between sending pictures and the operator's press; the presenter still holds them."""
    first = Bridge(LOOPBACK, PresentationSettings(), session="s")
    endpoint, taken = first.endpoint, []
    with Link(endpoint) as link:
        until(lambda: first.connected, lambda: first.poll(0.002))
        for k in range(3):
            first.send_image(0, k, pixels(k), verdict="given")
        until(lambda: len(taken) == 3, lambda: (first.poll(0.002), taken.extend(m for m, _ in link.take())))
        first._peer = None  # killed: it says no goodbye
        first.close()
        with Bridge(endpoint, PresentationSettings(), session="s", predecessor=Predecessor(0, started=True)) as second:
            assert second.take_away(0, 2)
            until(
                lambda: any(isinstance(m, wire.Away) for m in taken), lambda: (second.poll(0.002), taken.extend(m for m, _ in link.take()))
            )
    assert [(m.generation, m.candidate) for m in taken if isinstance(m, wire.Away)] == [(0, 2)]


def test_what_was_taken_away_stays_away_from_a_presenter_that_is_started_anew() -> None:
    now = [time.monotonic_ns()]
    with Bridge(LOOPBACK, PresentationSettings(), mono_ns=lambda: now[0]) as bridge:
        events: list[PresenterEvent] = []

        def work() -> None:
            events.extend(bridge.poll(0.002))

        with Link(bridge.endpoint) as first:
            until(lambda: bridge.connected, work)
            for k in range(2):
                bridge.send_image(0, k, pixels(k), verdict="given")
            until(lambda: len(first.take()) > 0, work)
        bridge.take_away(0, 0)  # the presenter has gone meanwhile
        with Link(bridge.endpoint) as second:
            for _ in range(8):  # silence first
                now[0] += SECOND
                work()
            taken: list[wire.Numbered] = []
            until(lambda: any(isinstance(m, wire.Image) for m in taken), lambda: (work(), taken.extend(m for m, _ in second.take())))
            until(lambda: any(e.kind == EventKind.TAKEN for e in events), work)
    assert [(m.generation, m.candidate) for m in taken if isinstance(m, wire.Image)] == [(0, 1)]
    assert [(e.generation, e.candidate, e.text) for e in events if e.kind == EventKind.TAKEN] == [(0, 0, "operator")]


def test_a_pause_lets_the_trial_finish_and_is_told_once() -> None:
    """Asked for in the second image, repeated at every turn of the bridge's loop, until 40 s."""
    with lock_step(PresentationSettings(speed=0, baseline_s=6)) as (bridge, participant, presenter):
        actions: list[tuple[int, Callable[[], None]]] = [
            (SECOND, lambda k=k: bridge.send_image(0, k, pixels(k), verdict="given"))  # type: ignore[misc]
            for k in range(3)
        ]
        actions += [((13 + k) * SECOND, lambda: bridge.pause(True)) for k in range(3)]
        actions += [((40 + k) * SECOND, lambda: bridge.pause(False)) for k in range(3)]
        events = conduct(bridge, participant, [*actions, (60 * SECOND, lambda: bridge.end("enough"))])
        assert presenter.join() == "enough"
    times = {kind: [e.mono_ns / SECOND for e in events if e.kind == kind] for kind in (EventKind.ONSET, EventKind.PAUSE, EventKind.GO_ON)}
    assert times == {EventKind.ONSET: [8, 12, 40], EventKind.PAUSE: [16], EventKind.GO_ON: [40]}


def test_a_presenter_started_anew_in_a_pause_holds_before_its_next_image() -> None:
    now = [time.monotonic_ns()]
    with Bridge(LOOPBACK, PresentationSettings(), mono_ns=lambda: now[0]) as bridge:

        def work() -> None:
            bridge.poll(0.002)

        bridge.send_image(0, 0, pixels(1), verdict="given")
        with Link(bridge.endpoint) as first:
            until(lambda: bridge.connected, work)
            bridge.pause(True)
            until(lambda: bool(first.take()), work)
        with Link(bridge.endpoint) as second:
            for _ in range(8):  # silence first
                now[0] += SECOND
                work()
            taken: list[wire.Numbered] = []
            until(lambda: len(taken) == 2, lambda: (work(), taken.extend(m for m, _ in second.take())))
            assert [type(m) for m in taken] == [wire.Pause, wire.Image]


def test_lock_step_ratings() -> None:
    events, _ = session(PresentationSettings(speed=0, rating_window_s=5))
    rated = [e for e in events if e.kind == EventKind.RATING]
    onsets = [e.mono_ns / SECOND for e in events if e.kind == EventKind.ONSET]
    assert len(rated) == len(onsets) == 6
    answered = [e for e in rated if not math.isnan(e.value)]
    assert 0 < len(answered) < 6
    assert {(e.value, e.response_time_s) for e in answered} == {(2.0, 1.25)}
    assert all(math.isnan(e.response_time_s) for e in rated if math.isnan(e.value))
    assert onsets[:3] == [2.0, 2 + 3 + 5 + 1, 11 + 3 + (1.25 if not math.isnan(rated[1].value) else 5) + 1]


@pytest.mark.parametrize("at_ns", [SECOND, 3 * SECOND, 6 * SECOND, 9 * SECOND, 30 * SECOND])
def test_escape_ends_a_session(at_ns: int) -> None:
    def react(shown: wire.Shown) -> list[tuple[int, str]]:
        return [(2 * SECOND, "5"), (at_ns, "escape")] if shown.kind == "text" else []

    with lock_step(PresentationSettings(speed=0, rating_window_s=2, baseline_s=2), react) as (bridge, participant, presenter):
        events = conduct(bridge, participant, [(k, lambda k=k: bridge.send_image(0, k, pixels(k), verdict="given")) for k in range(2)])  # type: ignore[misc]
        assert (events[-1].text, events[-1].mono_ns) == ("escape", at_ns)
        assert presenter.reason is None or presenter.reason == "escape"
        assert not bridge.connected
        assert bridge.idle_until_ns == wire.FOREVER_NS


@pytest.mark.slow
def test_real_time_at_speed_scales_durations() -> None:
    participant = Participant(lambda shown: [(0, "5")] if shown.kind == "text" and not participant.shown[1:] else [])
    settings = PresentationSettings(speed=10, end_s=0.1)
    try:
        with Bridge(LOOPBACK, settings) as bridge:
            presenter = Presenter(bridge.endpoint, participant.endpoint)
            for k in range(3):
                bridge.send_image(0, k, pixels(k), verdict="given")
            before, events, asked = time.monotonic_ns(), [], False
            while not (events and events[-1].kind == EventKind.END):
                assert time.monotonic_ns() - before < LIMIT_S * SECOND
                events += bridge.poll(0.005)
                participant.serve()
                if participant.keys and bridge.ready:
                    participant.press()
                if not asked and sum(e.kind == EventKind.OFFSET for e in events) == 3:
                    bridge.end("enough")
                    asked = True
            assert bridge.in_flight == 0
            after = time.monotonic_ns()
        assert presenter.join() == "enough"
    finally:
        participant.close()
    onsets = [e.mono_ns for e in events if e.kind == EventKind.ONSET]
    offsets = [e.mono_ns for e in events if e.kind == EventKind.OFFSET]
    assert before <= onsets[0] <= offsets[-1] <= after
    assert all(off - on > 0.25 * SECOND for on, off in zip(onsets, offsets, strict=True))  # 3 s ten times faster, never cut short
    assert all(0 < e.error_ns < SECOND for e in events if e.kind == EventKind.ONSET)
    frame_ns = round(1e9 / 60 / 10)
    assert all(e % frame_ns == 0 for e in (t for kind, t, _ in participant.shown if kind == "image"))


# --- a link that fails ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_or_doubled_when_the_cable_is_pulled() -> None:
    events: list[PresenterEvent] = []
    numbers: list[int] = []
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, FaultyNetwork(bridge.endpoint) as wires, Link(wires.endpoint) as link:

        def work() -> None:
            events.extend(bridge.poll(0.002))
            numbers.extend(message.candidate for message, _ in link.take() if isinstance(message, wire.Image))

        until(lambda: bridge.connected, work)
        for k in range(60):
            bridge.send_image(0, k, pixels(k, 64, 64), verdict="given")
            link.send(wire.Event(int(EventKind.FIXATION), 1000 + k, 0, k))
            if k % 20 == 10:
                wires.pull()
            if k % 20 == 15:
                wires.plug()
            work()
        until(lambda: bridge.in_flight == 0 and link.acknowledged(link.last), work)
    assert numbers == list(range(60))
    assert [e.candidate for e in events if e.kind == EventKind.FIXATION] == list(range(60))


def test_silence_is_reported_and_then_an_error() -> None:
    events: list[PresenterEvent] = []
    now = [time.monotonic_ns()]
    with Bridge(LOOPBACK, PresentationSettings(), lost_s=30.0, mono_ns=lambda: now[0]) as bridge, FaultyNetwork(bridge.endpoint) as wires:
        with Link(wires.endpoint) as link:
            until(lambda: bridge.connected, lambda: events.extend(bridge.poll(0.002)))
            link.send(wire.Event(int(EventKind.FIXATION), 1))
            until(lambda: any(e.kind == EventKind.FIXATION for e in events), lambda: events.extend(bridge.poll(0.002)))
        for _ in range(5):  # the presenter is gone: pings go unanswered
            now[0] += round(SILENT_S * SECOND)
            events += bridge.poll(0)
        assert not bridge.connected
        assert any("silent for" in e.text for e in events if e.kind in NOTES)
        now[0] += 31 * SECOND
        with pytest.raises(LinkError, match=r"presenter lost: it has not answered at tcp://.* for \d+ s \(limit: 30 s\)"):
            bridge.poll(0)


def test_a_presenter_started_anew_goes_on_with_the_images_not_yet_shown() -> None:
    now = [time.monotonic_ns()]
    events: list[PresenterEvent] = []
    with Bridge(LOOPBACK, PresentationSettings(), mono_ns=lambda: now[0]) as bridge:

        def work() -> None:
            events.extend(bridge.poll(0.002))

        for k in range(3):
            bridge.send_image(1, k, pixels(k), verdict="given")
        with Link(bridge.endpoint) as first:
            until(lambda: first.wake.poll(0) != 0, work)
            first.send(wire.Event(int(EventKind.TRIGGER), 5))
            first.send(wire.Event(int(EventKind.ONSET), 6, 1, 0))
            until(lambda: first.acknowledged(2), work)
        assert not any("restarted" in e.text for e in events)
        with Link(bridge.endpoint) as second:
            for _ in range(4):  # silence first
                now[0] += SECOND
                work()
            until(lambda: second._welcome is not None, work)
            assert second.welcome().started
            taken: list[int] = []
            until(lambda: len(taken) == 2, lambda: (work(), taken.extend(m.candidate for m, _ in second.take())))  # type: ignore[union-attr]
            assert taken == [1, 2]
            assert any("was restarted" in e.text for e in events)


def test_a_second_presenter_waits_while_the_first_answers() -> None:
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, Link(bridge.endpoint) as first:
        until(lambda: first._welcome is not None, lambda: bridge.poll(0.002))
        with Link(bridge.endpoint) as second:
            for _ in range(50):
                bridge.poll(0.02)
                if second._heard_ns != second._began_ns:
                    break
            assert second._welcome is None
            assert first.take() == []


def test_a_new_bridge_of_the_same_session_goes_on_where_the_old_one_was() -> None:
    first = Bridge(LOOPBACK, PresentationSettings(), session="s")
    endpoint = first.endpoint
    with Link(endpoint) as link:
        first.send_image(0, 0, pixels(1), verdict="given")
        until(lambda: first.connected and first.in_flight == 0, lambda: first.poll(0.002))
        link.send(wire.Event(int(EventKind.TRIGGER), 5))
        found: list[PresenterEvent] = []
        until(lambda: bool(found), lambda: found.extend(first.poll(0.002)))
        assert len(link.take()) == 1
        first._peer = None  # as if killed: no goodbye, and the trigger has not been acknowledged
        first.close()
        with Bridge(endpoint, PresentationSettings(), session="s") as second:
            events: list[PresenterEvent] = []
            until(lambda: any(e.kind == EventKind.TRIGGER for e in events), lambda: events.extend(second.poll(0.01)))
            second.send_image(0, 1, pixels(2), verdict="given")
            taken: list[wire.Numbered] = []
            until(lambda: len(taken) == 2, lambda: (second.poll(0.002), taken.extend(m for m, _ in link.take())))
            assert [m.on for m in taken if isinstance(m, wire.Pause)] == [False]  # the old one may have asked for a pause
            assert [m.candidate for m in taken if isinstance(m, wire.Image)] == [1]


def test_a_broken_off_session_tells_the_presenter() -> None:
    with Bridge(LOOPBACK, PresentationSettings()) as bridge:
        presenter = Presenter(bridge.endpoint)
        until(lambda: bridge.ready, lambda: bridge.poll(0.002))
    with pytest.raises(LinkLost, match="broken off"):
        presenter.join()


def test_end_without_any_presenter_still_ends() -> None:
    with Bridge(LOOPBACK, PresentationSettings()) as bridge:
        bridge.end("stopped")
        assert [(e.kind, e.text) for e in bridge.poll(0)] == [(EventKind.END, "no presenter came")]


# --- strangers --------------------------------------------------------------------------------------------------------------------------


def test_garbage_is_noted_and_does_no_harm() -> None:
    events: list[PresenterEvent] = []
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, stranger(bridge.endpoint) as dealer, Link(bridge.endpoint) as link:
        for k in range(100):
            dealer.send_multipart([os.urandom(20)] * (k % 4 + 1))
        until(lambda: any("unreadable" in e.text for e in events), lambda: events.extend(bridge.poll(0.002)))
        until(lambda: bridge.connected, lambda: events.extend(bridge.poll(0.002)))
        assert sum("unreadable" in e.text for e in events) == 1
        assert link.take() == []


def test_other_protocol_version_is_told_on_both_sides() -> None:
    events: list[PresenterEvent] = []
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, stranger(bridge.endpoint) as dealer:
        dealer.send(msgpack.packb([wire.messages.MAGIC, wire.PROTOCOL + 1, "Hello", {}]))
        until(lambda: dealer.poll(0) != 0, lambda: events.extend(bridge.poll(0.002)))
        refused, _ = wire.decode(dealer.recv_multipart())
        assert isinstance(refused, wire.Refused)
        assert "same version of rtevo" in refused.reason
        assert any(f"protocol {wire.PROTOCOL + 1}" in e.text for e in events)


def test_presenter_says_that_the_bridge_speaks_another_version() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(LOOPBACK)
    try:
        with Link(router.getsockopt_string(zmq.LAST_ENDPOINT)) as link:
            identity, _ = router.recv_multipart()
            router.send_multipart([identity, msgpack.packb([wire.messages.MAGIC, wire.PROTOCOL + 1, "Refused", {}])])
            with pytest.raises(LinkLost, match=f"speaks protocol {wire.PROTOCOL + 1}"):
                link.welcome()
    finally:
        router.close(linger=0)
        context.term()


def test_plain_text_stays_on_loopback(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="needs keys"):
        Bridge("tcp://*:0", PresentationSettings())
    with pytest.raises(LinkLost, match="--key FILE"):
        Link("tcp://192.0.2.1:5555")
    with pytest.raises(LinkError, match="No such file"):
        Bridge(LOOPBACK, PresentationSettings(), keys=tmp_path / "none.json")
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, pytest.raises(LinkError, match=r"cannot listen at .*in use"):
        Bridge(bridge.endpoint, PresentationSettings())


def test_keys_admit_listed_presenters_only(tmp_path: Path) -> None:
    assert keys_main(["keys", str(tmp_path / "here")]) == 0
    make_keys(tmp_path / "other", ["presenter"])
    own, other = tmp_path / "here/presenter.json", tmp_path / "other/presenter.json"
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    listed = wire.KeyFile.read(own, "presenter")
    unlisted = wire.KeyFile.read(other, "presenter")
    unlisted = wire.KeyFile("presenter", unlisted.public, unlisted.secret, server=listed.server)
    events: list[PresenterEvent] = []
    with Bridge(LOOPBACK, PresentationSettings(), keys=tmp_path / "here") as bridge:
        with Link(bridge.endpoint, unlisted) as link:
            until(lambda: any("not listed" in e.text for e in events), lambda: events.extend(bridge.poll(0.005)))
            assert link._welcome is None
        with Link(bridge.endpoint) as plain, Link(bridge.endpoint, listed) as link:
            until(lambda: bridge.connected, lambda: events.extend(bridge.poll(0.005)))
            bridge.send_image(0, 0, pixels(7), verdict="given")
            until(lambda: link.wake.poll(0) != 0, lambda: bridge.poll(0.005))
            [(_, view)] = link.take()
            assert view is not None
            assert set(view) == {7}
            assert plain._welcome is None


def test_keys_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_keys(tmp_path, ["presenter"])
    before = (tmp_path / "presenter.json").read_text()
    assert keys_main(["keys", str(tmp_path)]) == 2
    assert "presenter 'presenter' has keys already" in capsys.readouterr().err
    assert keys_main(["keys", str(tmp_path), "--client", "second"]) == 0
    assert (tmp_path / "presenter.json").read_text() == before
    admitted = dict(wire.KeyFile.read(tmp_path / "support.json", "support").clients)
    assert set(admitted) == {"presenter", "second"}


# --- clocks -----------------------------------------------------------------------------------------------------------------------------


@given(
    offset_ns=st.integers(-(10**15), 10**15),
    drift_ppm=st.floats(-99, 99),
    delays=st.lists(st.tuples(st.integers(0, 50_000_000), st.integers(0, 50_000_000)), min_size=1, max_size=30),
    later_s=st.floats(0, 60),
)
def test_clock_error_stays_within_its_bound(offset_ns: int, drift_ppm: float, delays: list[tuple[int, int]], later_s: float) -> None:
    def there(here_ns: int) -> int:
        return here_ns + offset_ns + round(here_ns * drift_ppm * 1e-6)

    clock, now = ClockOffset(), 10 * SECOND
    for out, back in delays:
        clock.add(now, there(now + out), there(now + out + 1000), now + out + 1000 + back)
        now += SECOND
    moment = now + round(later_s * SECOND)
    mapped, bound = clock.map(there(moment))
    assert abs(mapped - moment) <= bound + 2
    best = min(out + back for out, back in delays)
    assert bound <= best // 2 + 3 + (now + later_s * SECOND + 50_000_000) * 500e-6 + abs(drift_ppm)


def test_clock_needs_a_sample_and_ignores_nonsense() -> None:
    clock = ClockOffset()
    clock.add(100, 50, 40, 200)
    clock.add(100, 10, 500, 200)
    with pytest.raises(ValueError, match="at least one round-trip"):
        clock.map(1)


def test_between_two_runs_the_presenter_shows_its_text_and_what_is_scanned_meanwhile_begins_nothing() -> None:
    between = False

    def scanning(shown: wire.Shown) -> list[tuple[int, str]]:
        return [(0, "5")] * 3 if between else []

    settings, participant = PresentationSettings(end_text="The end."), Participant(scanning)

    def look() -> None:
        participant.serve()
        if participant.keys and not participant.waits:
            participant.press()

    try:
        with Bridge(LOOPBACK, settings, session="a") as link:
            endpoint, presenter = link.endpoint, Presenter(link.endpoint, participant.endpoint)
            until(lambda: link.ready, lambda: link.poll(0.01))
            link.end(wire.NEXT)
            until(lambda: any(event.kind == EventKind.END for event in link.poll(0.01)))
        until(lambda: len(participant.shown) == 2, participant.serve)  # waiting text, end text
        before, between = 2, True
        with Lobby(endpoint, settings, "Soon more.") as lobby:
            until(lambda: lobby.there and len(participant.shown) > before, lambda: (lobby.serve(), look()))
            until(lambda: not (participant.keys or participant.waits), lambda: (lobby.serve(), look()))
            lobby.leave(wire.RESTART, wait=False)
        between = False
        look()
        assert {kind for kind, _, _ in participant.shown[before:]} == {"text"}
        with Bridge(endpoint, settings, session="b") as link:
            until(lambda: link.ready, lambda: link.poll(0.01))
            link.end(wire.NEXT)
            until(lambda: any(event.kind == EventKind.END for event in link.poll(0.01)))
        with Lobby(endpoint, settings, "Soon more.") as lobby:
            lobby.leave("finished", wait=True)  # nobody has looked whether the presenter is there again
        assert presenter.join() == "finished"
    finally:
        participant.close()
