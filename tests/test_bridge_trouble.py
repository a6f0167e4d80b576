"""Problems of the link, each handled and reported: strangers, floods, wrong keys, restarts, clocks that are set."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from presenter.headless import _Participant
from presenter.link import Link, LinkLost
from presenter.selftest import self_test
from rtevo import wire
from rtevo.bridge import Bridge, ClockOffset, Predecessor, PresenterEvent, make_keys
from rtevo.bridge.bridge import SILENT_S, SLOW_S
from rtevo.bridge.door import RATE_PER_S, REPEAT_S
from rtevo.records import NOTES, EventKind
from rtevo.simulate import FaultyNetwork, ParticipantLink
from rtevo.wire import SELF_TEST, PresentationSettings
from tests.support.link import LIMIT_S, stranger, until

SECOND = 1_000_000_000

LOOPBACK = "tcp://127.0.0.1:0"


def pixels(value: int) -> np.ndarray:
    return np.full((8, 6, 3), value, np.uint8)


class Ears:
    """Polls a bridge and keeps what it said."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge, self.events = bridge, list[PresenterEvent]()

    def __call__(self) -> None:
        self.events += self.bridge.poll(0.002)

    def told(self, text: str) -> int:
        return sum(text in event.text for event in self.events if event.kind in NOTES)

    def of(self, kind: EventKind) -> list[PresenterEvent]:
        return [event for event in self.events if event.kind == kind]


# --- strangers -------------------------------------------------------------------------------------------------------------------------


def test_a_flood_is_dropped_told_once_and_holds_up_nobody() -> None:
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, stranger(bridge.endpoint) as dealer, Link(bridge.endpoint) as link:
        ears = Ears(bridge)
        until(lambda: bridge.connected, ears)
        garbage = [b"x" * 1000]
        for k in range(4 * RATE_PER_S):
            dealer.send_multipart(garbage)
            if k % 1000 == 0:
                ears()
        number = link.send(wire.Event(int(EventKind.FIXATION), 1))
        until(lambda: link.acknowledged(number) and ears.told("flood") > 0, ears)
        assert ears.told("flood") == 1
        assert ears.told("unreadable") == 1


def test_a_presenter_beyond_its_rate_loses_nothing() -> None:
    count = RATE_PER_S + 200
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, Link(bridge.endpoint) as link:
        ears = Ears(bridge)
        until(lambda: bridge.connected, ears)
        for k in range(count):
            link.send(wire.Event(int(EventKind.FIXATION), k, 0, k))
        until(lambda: link.acknowledged(count), ears)
        assert [event.candidate for event in ears.of(EventKind.FIXATION)] == list(range(count))


def test_too_many_frames_and_too_much_in_one_are_refused() -> None:
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, stranger(bridge.endpoint) as dealer, Link(bridge.endpoint) as link:
        ears = Ears(bridge)
        dealer.send_multipart([b"x"] * 10_000)
        until(lambda: ears.told("unreadable") == 1, ears)
        dealer.send(b"x" * (wire.MAX_HEADER_BYTES + 1))  # the connection is closed for it
        number = link.send(wire.Event(int(EventKind.FIXATION), 1))
        until(lambda: link.acknowledged(number), ears)


def test_wrong_keys_are_told_on_both_sides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_keys(tmp_path / "here", ["presenter"])
    make_keys(tmp_path / "there", ["presenter"])
    ours = wire.KeyFile.read(tmp_path / "here/presenter.json", "presenter")
    theirs = wire.KeyFile.read(tmp_path / "there/presenter.json", "presenter")
    unlisted = wire.KeyFile("presenter", theirs.public, theirs.secret, server=ours.server)
    with Bridge(LOOPBACK, PresentationSettings(), keys=tmp_path / "here") as bridge:
        ears = Ears(bridge)
        with Link(bridge.endpoint, unlisted, connect_s=0.5) as link:
            until(lambda: link._failure is not None and ears.told("not listed") > 0, ears)
            with pytest.raises(LinkLost, match="key is not listed there"):
                link.welcome()
        for other in (theirs, None):  # another support computer's key; no key at all
            before = ears.told("connection was refused")
            bridge._door._told.clear()
            with Link(bridge.endpoint, other, connect_s=0.5) as link:
                until(lambda link=link, n=before: link._failure is not None and ears.told("connection was refused") > n, ears)  # type: ignore[misc]
                with pytest.raises(LinkLost, match=r"another support computer|hangs up|needs --key FILE"):
                    link.welcome()
        assert not bridge.connected


def test_a_key_that_is_not_needed_is_told_on_both_sides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_keys(tmp_path, ["presenter"])
    with Bridge(LOOPBACK, PresentationSettings()) as bridge:
        ears = Ears(bridge)
        with Link(bridge.endpoint, wire.KeyFile.read(tmp_path / "presenter.json", "presenter")):
            until(lambda: ears.told("the sender encrypts, but this session has no [bridge] keys") > 0, ears)
            until(lambda: "no encrypted bridge listens there" in caplog.text, ears)  # at once, not with the next regular mention


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "ipc"])
def test_a_simulated_participants_link_is_encrypted_where_there_are_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bind: str
) -> None:
    """Also on one computer: with keys on one side only both say so."""
    make_keys(tmp_path, ["presenter"])
    support, key = tmp_path / "support.json", wire.KeyFile.read(tmp_path / "presenter.json", "presenter")
    bind = f"ipc://{tmp_path}/eyes" if bind == "ipc" else bind
    for ours, theirs in ((support, key), (None, None), (support, None), (None, key)):
        caplog.clear()
        with ParticipantLink(bind, ours) as link, contextlib.closing(_Participant(link.endpoint, theirs)) as screen:
            screen.tell(wire.Shown("fixation", 0))
            same = (ours is None) == (theirs is None)

            def look(link: ParticipantLink = link, screen: _Participant = screen) -> None:
                link.poll(0.01)
                link.receive()
                screen.hear()

            if same:
                until(lambda link=link: link.connected, look)  # type: ignore[misc]
            else:
                until(lambda: {r.name for r in caplog.records} == {"rtevo", "presenter"}, look)
                assert "a presenter was refused at" in caplog.text
                assert "--key FILE" in caplog.text if theirs is None else "it does not encrypt" in caplog.text
            assert link.connected == same
            assert bool(caplog.records) != same


def test_the_same_trouble_is_not_told_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rtevo.bridge.door.time.monotonic", lambda: now[0])
    with Bridge(LOOPBACK, PresentationSettings()) as bridge:
        for _ in range(5):
            bridge._door.tell("trouble")
        now[0] += REPEAT_S
        bridge._door.tell("trouble")
        assert [event.text for event in bridge.poll(0)] == ["trouble", "trouble"]


def test_a_self_test_and_a_session_do_not_take_each_other() -> None:
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, Link(bridge.endpoint, display=SELF_TEST) as link:
        ears = Ears(bridge)
        until(lambda: link._failure is not None, ears)
        with pytest.raises(LinkLost, match="a session is waiting here"):
            link.welcome()
        assert not bridge.connected
    with Bridge(LOOPBACK, PresentationSettings(), session=SELF_TEST) as bridge, Link(bridge.endpoint) as link:
        ears = Ears(bridge)
        until(lambda: link._failure is not None, ears)
        with pytest.raises(LinkLost, match="start the session"):
            link.welcome()


# --- restarts --------------------------------------------------------------------------------------------------------------------------


def killed(bridge: Bridge) -> str:
    """End a bridge as if it had been killed: without a word."""
    bridge._peer = None
    bridge.close()
    return bridge.endpoint


@pytest.mark.parametrize("dealt_with", [True, False])
def test_an_event_of_a_killed_bridge_is_there_once(dealt_with: bool) -> None:
    """The first bridge dies after it has returned an event and before the presenter knows: the next bridge learns what was done."""
    first = Bridge(LOOPBACK, PresentationSettings(), session="s")
    with Link(first.endpoint) as link:
        ears = Ears(first)
        until(lambda: first.connected, ears)
        number = link.send(wire.Event(int(EventKind.TRIGGER), 5))
        link.send(wire.Event(int(EventKind.ONSET), 6, 0, 0))
        until(lambda: len(ears.of(EventKind.ONSET)) == 1, lambda: ears.events.extend(first.poll(0.002)))
        assert not link.acknowledged(number + 1)
        [trigger], [onset] = ears.of(EventKind.TRIGGER), ears.of(EventKind.ONSET)
        endpoint = killed(first)
        predecessor = Predecessor(onset.sequence if dealt_with else trigger.sequence, started=True)
        with Bridge(endpoint, PresentationSettings(), session="s", predecessor=predecessor) as second:
            heard = Ears(second)
            until(lambda: link.acknowledged(link.last), heard)
            assert not heard.of(EventKind.TRIGGER)
            assert len(heard.of(EventKind.ONSET)) == (0 if dealt_with else 1)
            assert heard.told("has connected to the new bridge") == 1


@pytest.mark.parametrize("came", [True, False])
def test_an_image_that_was_under_way_when_the_bridge_was_killed_comes_once(came: bool) -> None:
    first = Bridge(LOOPBACK, PresentationSettings(), session="s")
    taken: list[int] = []
    with Link(first.endpoint) as link:

        def take() -> None:
            taken.extend(message.candidate for message, _ in link.take() if isinstance(message, wire.Image))

        until(lambda: first.connected, lambda: first.poll(0.002))
        first.send_image(0, 0, pixels(1), verdict="given")
        until(lambda: first.in_flight == 0, lambda: first.poll(0.002))
        if came:
            first.send_image(0, 1, pixels(2), verdict="given")
            until(lambda: taken == [0, 1], take)
        endpoint = killed(first)
        with Bridge(endpoint, PresentationSettings(), session="s", predecessor=Predecessor(0, started=True)) as second:
            second.send_image(0, 1, pixels(2), verdict="given")  # its ring has it still
            until(lambda: second.connected and second.in_flight == 0, lambda: second.poll(0.002))
            second.send_image(0, 2, pixels(3), verdict="given")
            until(lambda: taken[-1:] == [2], lambda: (second.poll(0.002), take()))
    assert taken == [0, 1, 2]


def test_a_new_bridge_gives_up_when_the_presenter_does_not_return() -> None:
    now = [0]
    with Bridge(
        LOOPBACK, PresentationSettings(), session="s", predecessor=Predecessor(0, True), lost_s=30, mono_ns=lambda: now[0]
    ) as bridge:
        bridge.end("stopped")
        assert bridge.poll(0) == []  # it may come back: no END yet
        now[0] = 31 * SECOND
        with pytest.raises(Exception, match="presenter lost"):
            bridge.poll(0)


def test_a_trial_in_which_the_presenter_died_is_closed() -> None:
    ahead = [0]

    def now() -> int:
        return time.monotonic_ns() + ahead[0]

    with Bridge(LOOPBACK, PresentationSettings(rating_window_s=5), mono_ns=now) as bridge:
        ears = Ears(bridge)
        with Link(bridge.endpoint) as first:
            until(lambda: len(bridge.clock) > 0, ears)
            first.send(wire.Event(int(EventKind.ONSET), time.perf_counter_ns(), 2, 3))
            until(lambda: first.acknowledged(1), ears)
        died = now()
        with Link(bridge.endpoint) as second:
            for _ in range(4):  # silence first
                ahead[0] += round(SILENT_S / 3 * SECOND)
                ears()
            until(lambda: second._welcome is not None, ears)
            ears()
        [offset], [rating] = ears.of(EventKind.OFFSET), ears.of(EventKind.RATING)
        for event in (offset, rating):
            assert (event.generation, event.candidate) == (2, 3)
            assert math.isnan(event.value)
            assert event.mono_ns - event.error_ns <= died  # it may have gone at once, or only just now
            assert event.mono_ns + event.error_ns >= died + SILENT_S * SECOND
        assert ears.told("was restarted") == 1


def test_a_slow_link_and_a_frozen_window_are_told() -> None:
    ahead = [0]
    settings = PresentationSettings(image_s=3, washout_s=1)
    with Bridge(LOOPBACK, settings, mono_ns=lambda: time.monotonic_ns() + ahead[0]) as bridge, Link(bridge.endpoint) as link:
        ears = Ears(bridge)
        until(lambda: bridge.connected, ears)
        link.send(wire.Event(int(EventKind.TRIGGER), 5))
        until(lambda: len(ears.of(EventKind.TRIGGER)) == 1, ears)
        bridge.send_image(0, 0, pixels(1), verdict="given")
        ahead[0] += round((SLOW_S + 0.1) * SECOND)  # before anything of the presenter's has been read
        bridge._look_for_slowness(bridge._mono_ns())
        until(lambda: ears.told("link is slow") == 1, ears)
        until(lambda: bridge.in_flight == 0, ears)
        assert ears.told("frozen") == 0
        for _ in range(40):  # it goes on answering
            ahead[0] += SECOND // 2
            ears()
        until(lambda: ears.told("frozen") == 1, ears)


# --- the clock -------------------------------------------------------------------------------------------------------------------------


def samples(clock: ClockOffset, there: Callable[[int], int], start_s: float, seconds: float, rng: np.random.Generator) -> int:
    """Take a sample every 0.5 s, under way for 0.1 ms and sometimes much longer; gives the time after it."""
    now = round(start_s * SECOND)
    for _ in range(round(2 * seconds)):
        out, back = (round(x) for x in 1e5 + rng.exponential(3e5, 2))
        clock.add(now, there(now + out), there(now + out + 20_000), now + out + 20_000 + back)
        now += SECOND // 2
    return now


@pytest.mark.parametrize("drift_ppm", [-80.0, 0.3, 400.0])
def test_drift_is_estimated_and_narrows_the_bound(drift_ppm: float) -> None:
    clock, rng = ClockOffset(), np.random.default_rng(1)

    def there(here_ns: int) -> int:
        return 12345 + here_ns + round(here_ns * drift_ppm * 1e-6)

    now = samples(clock, there, 0, 60, rng)
    assert clock.drift_ppm == pytest.approx(-drift_ppm / (1 + drift_ppm * 1e-6), abs=15)
    later = now + 10 * SECOND  # nothing has been heard for a while
    mapped, bound = clock.map(there(later))
    assert abs(mapped - later) <= bound < 10 * SECOND * 50e-6
    assert clock.jumps == 0


@pytest.mark.parametrize("by_ns", [SECOND, -SECOND, -3600 * SECOND, -SECOND // 10], ids=["ahead", "back", "an hour back", "a little back"])
def test_a_clock_that_is_set_is_noticed_and_estimated_anew(by_ns: int) -> None:
    clock, rng = ClockOffset(), np.random.default_rng(2)
    now = samples(clock, lambda t: t, 0, 30, rng)
    now = samples(clock, lambda t: t + by_ns, now / SECOND, 30, rng)
    assert clock.jumps == 1
    mapped, bound = clock.map(now + by_ns)
    assert abs(mapped - now) <= bound < SECOND // 1000


@pytest.mark.parametrize("by_ns", [SECOND // 2, -3600 * SECOND], ids=["ahead", "an hour back"])
def test_the_operator_is_told_of_a_clock_that_was_set(by_ns: int) -> None:
    ahead = [0]
    with Bridge(LOOPBACK, PresentationSettings()) as bridge:
        ears = Ears(bridge)
        with Link(bridge.endpoint, clock_ns=lambda: time.perf_counter_ns() + ahead[0]):
            until(lambda: len(bridge.clock) > 3, ears)
            ahead[0] = by_ns
            until(lambda: ears.told("clock was set") == 1, ears)


@pytest.mark.slow
def test_a_bad_network_loses_and_doubles_nothing_and_every_time_is_within_its_bound() -> None:
    """A stimulus PC whose clock is off and drifts, behind a network with delays, losses and cuts."""
    rng, zero = np.random.default_rng(3), time.monotonic_ns()

    def there() -> int:
        now = time.monotonic_ns()
        return now + 7 * 86400 * SECOND + round((now - zero) * 60e-6)

    def here(there_ns: int) -> int:
        return zero + round((there_ns - zero - 7 * 86400 * SECOND) / (1 + 60e-6))

    events, images, sent = [], list[int](), list[int]()
    with Bridge(LOOPBACK, PresentationSettings()) as bridge:
        network = FaultyNetwork(bridge.endpoint, delay_s=0.002, jitter_s=0.005, loss=0.02, seed=4)
        with network, Link(network.endpoint, clock_ns=there) as link:
            until(lambda: len(bridge.clock) > 0, lambda: bridge.poll(0.002))
            cuts = {60: 0.1, 120: 0.5, 180: 2.5}  # event: length, s
            back_s = 0.0
            while len(sent) < 240 or not link.acknowledged(link.last) or bridge.in_flight:
                if len(sent) < 240 and rng.random() < 0.5:
                    sent.append(there())
                    link.send(wire.Event(int(EventKind.FIXATION), sent[-1], 0, len(sent) - 1))
                    bridge.send_image(0, len(sent) - 1, pixels(len(sent) % 256), verdict="given")
                    if len(sent) in cuts:
                        network.pull()
                        back_s = time.monotonic() + cuts[len(sent)]
                if back_s and time.monotonic() > back_s:
                    network.plug()
                    back_s = 0.0
                events += [event for event in bridge.poll(0.01) if event.kind == EventKind.FIXATION]
                images += [message.candidate for message, _ in link.take() if isinstance(message, wire.Image)]
                assert time.monotonic_ns() - zero < LIMIT_S * SECOND
    assert [event.candidate for event in events] == list(range(240))
    assert images == list(range(240))
    held = [abs(event.mono_ns - here(there_ns)) <= event.error_ns for event, there_ns in zip(events, sent, strict=True)]
    assert sum(held) >= 0.99 * len(held)
    assert max(event.error_ns for event in events) < SECOND


# --- the self-test ---------------------------------------------------------------------------------------------------------------------


def test_self_test_reports_the_round_trip(tmp_path: Path) -> None:
    import threading

    with Bridge(LOOPBACK, PresentationSettings(), session=SELF_TEST) as bridge:
        lines: list[str] = []
        reports: list[dict[str, object]] = []
        thread = threading.Thread(
            target=lambda: reports.append(
                self_test(bridge.endpoint, headless=True, report_file=tmp_path / "r.json", frames=20, pulses_s=0, say=lines.append)
            )
        )
        thread.start()
        ears = Ears(bridge)
        until(lambda: bool(ears.of(EventKind.END)), ears)
        until(lambda: not thread.is_alive(), ears)
    [report] = reports
    assert report["round_trip"]["n"] == len(ears.of(EventKind.PULSE)) == 200  # type: ignore[index]
    assert report["frames"]["n"] == 20  # type: ignore[index]
    assert not any(line.startswith("link") for line in report["to_do"])  # type: ignore[attr-defined]
    assert any(line.startswith("round_trip") for line in lines)
    assert (tmp_path / "r.json").exists()


def test_a_flood_of_unknown_keys_is_a_few_notes(tmp_path: Path) -> None:
    make_keys(tmp_path, ["presenter"])
    with Bridge(LOOPBACK, PresentationSettings(), keys=tmp_path) as bridge:
        ears, door = Ears(bridge), bridge._door
        for number in range(601):
            door._admitted.callback("*", f"{number:040d}".encode())
            door.look()
            ears()
        assert ears.told("key is not listed") == 5
        assert ears.told("many more presenters whose keys are not listed") == 1
        door.tell("something else")
        ears()
        assert ears.told("something else") == 1


def test_pictures_that_wait_are_bounded_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 * 64 * 3
    monkeypatch.setattr("presenter.link.MOST_HELD", 3 * size)
    with Bridge(LOOPBACK, PresentationSettings()) as bridge, Link(bridge.endpoint) as link:
        ears = Ears(bridge)
        until(lambda: bridge.connected, ears)
        for number in range(6):
            bridge.send_image(0, number, np.full((64, 64, 3), number, np.uint8), verdict="given")
        taken: list[int] = []

        def look() -> None:
            ears()
            taken.extend(message.candidate for message, _ in link.take() if isinstance(message, wire.Image))

        until(lambda: len(taken) == 3, look)
        for _ in range(20):
            look()
        assert taken == [0, 1, 2]
        for _ in range(6):
            link.shown(size)
        until(lambda: len(taken) == 6, look)
        assert taken == [0, 1, 2, 3, 4, 5]
