"""A session has one presenter; what becomes of a second one, and of the first when its link is cut."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from presenter.link import Link, LinkLost, Replaced
from presenter.place import Place
from rtevo import wire
from rtevo.bridge import Bridge, Predecessor, PresenterEvent
from rtevo.bridge.bridge import SILENT_S
from rtevo.errors import LinkError
from rtevo.records import NOTES, EventKind
from rtevo.session.clock import Clock
from rtevo.simulate import FaultyNetwork
from rtevo.stages.bridge import _at_the_door as at_the_door
from rtevo.wire import PresentationSettings

SECOND = 1_000_000_000
LIMIT_S = 60.0  # a test that takes longer hangs
LOOPBACK = "tcp://127.0.0.1:0"


class Control:
    """A bridge whose clock can be moved on, and what it said."""

    def __init__(self, stack: ExitStack, **options: Any) -> None:
        self._stack, self._ahead_ns, self.events = stack, 0, list[PresenterEvent]()
        settings = options.pop("settings", PresentationSettings())
        endpoint = options.pop("endpoint", LOOPBACK)
        self.bridge = stack.enter_context(Bridge(endpoint, settings, mono_ns=self.now_ns, **options))

    def now_ns(self) -> int:
        return time.monotonic_ns() + self._ahead_ns

    def work(self) -> None:
        self.events += self.bridge.poll(0.002)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"never happened; so far {[event.text for event in self.events]}"
            self.work()

    def later(self, seconds: float) -> None:
        """Advance time, with the waiting presenters' hellos in between."""
        for _ in range(round(seconds)):
            self._ahead_ns += SECOND
            until_ns = time.monotonic_ns() + SECOND // 20
            while time.monotonic_ns() < until_ns:
                self.work()

    def told(self, text: str) -> int:
        return sum(text in event.text for event in self.events if event.kind in NOTES)

    def link(self, name: str, **options: Any) -> Link:
        endpoint = options.pop("endpoint", self.bridge.endpoint)
        return self._stack.enter_context(Link(endpoint, place=Place(name), **options))


@pytest.fixture
def make() -> Iterator[Callable[..., Control]]:
    with ExitStack() as stack:
        yield lambda **options: Control(stack, **options)


def test_a_waiting_presenter_does_not_take_a_session_whose_link_is_cut(
    make: Callable[..., Control], caplog: pytest.LogCaptureFixture
) -> None:
    """The first one's link is out for longer than the bridge is patient; a forgotten computer has been waiting all the while."""
    control = make()
    with FaultyNetwork(control.bridge.endpoint) as wires, caplog.at_level(logging.WARNING, "presenter"):
        first = control.link("scanner", endpoint=wires.endpoint)
        control.until(lambda: first.welcomed() is not None)
        second = control.link("office")
        control.until(lambda: control.bridge.waiting == (1, "office (headless)"))
        assert control.told("another presenter waits: office (headless); the session stays with scanner (headless)") == 1
        wires.pull()
        control.until(lambda: not control.bridge.connected)
        control.later(2 * SILENT_S)
        control.bridge.send_image(0, 0, np.zeros((2, 2, 3), np.uint8), verdict="given")
        control.work()
        assert second.welcomed() is None
        wires.plug()
        control.until(lambda: control.bridge.connected)
        number = first.send(wire.Event(int(EventKind.FIXATION), 1))
        control.until(lambda: first.acknowledged(number))
        assert [type(message) for message, _ in first.take()] == [wire.Image]
        assert control.told("restarted") == control.told("taken over") == 0
    said = [record.getMessage() for record in caplog.records]
    assert any("refuses for now: another presenter is connected (scanner (headless))" in words for words in said)
    assert not any("no answer from" in words for words in said if control.bridge.endpoint in words)  # the network is not to blame


def test_the_operator_lets_a_waiting_presenter_in_and_the_first_one_learns_of_it(make: Callable[..., Control]) -> None:
    control = make()
    first = control.link("scanner")
    control.until(lambda: control.bridge.connected)
    control.bridge.send_image(0, 0, np.zeros((2, 2, 3), np.uint8), verdict="given")
    control.until(lambda: first.wake.poll(0) != 0)
    first.take()
    second = control.link("spare")
    control.until(lambda: control.bridge.waiting is not None)
    assert not control.bridge.admit(7)
    waiting = control.bridge.waiting
    assert waiting is not None
    assert control.bridge.admit(waiting[0])
    control.until(lambda: second.welcomed() is not None)
    control.until(lambda: first.wake.poll(0) != 0)
    with pytest.raises(Replaced, match="another presenter has taken this one's place"):
        first.take()
    taken: list[wire.Numbered] = []
    control.until(lambda: bool(taken) or (taken.extend(m for m, _ in second.take()) or False))
    assert isinstance(taken[0], wire.Image)  # not shown yet
    assert control.bridge.waiting is None
    assert control.told("spare (headless) has taken over") == 1


def test_one_that_was_replaced_while_its_link_was_cut_is_not_let_back(make: Callable[..., Control]) -> None:
    control = make()
    with FaultyNetwork(control.bridge.endpoint) as wires:
        first = control.link("scanner", endpoint=wires.endpoint)
        control.until(lambda: first.welcomed() is not None)
        wires.pull()
        control.link("spare")
        control.until(lambda: control.bridge.waiting is not None)
        assert control.bridge.admit(1)
        wires.plug()
        control.until(lambda: first._failure is not None)
    with pytest.raises(Replaced):
        first.take()
    assert control.bridge.connected


def test_a_presenter_started_anew_on_its_own_computer_needs_nobodys_leave(make: Callable[..., Control]) -> None:
    control = make()
    with Link(control.bridge.endpoint, place=Place("scanner")):
        control.until(lambda: control.bridge.connected)
    second = control.link("scanner")
    control.later(2 * SILENT_S)
    control.until(lambda: second.welcomed() is not None)
    assert control.told("a presenter was restarted") == 1


def test_a_second_window_on_the_same_computer_waits_as_long_as_the_first_runs(make: Callable[..., Control]) -> None:
    control = make()
    with FaultyNetwork(control.bridge.endpoint) as wires:
        control.link("scanner", endpoint=wires.endpoint)
        control.until(lambda: control.bridge.connected)
        second = control.link("scanner")
        wires.pull()
        control.until(lambda: not control.bridge.connected)
        control.later(3 * SILENT_S)
        assert second.welcomed() is None
        assert control.bridge.waiting == (1, "scanner (headless)")


def test_a_presenter_that_is_lost_for_good_gives_way_to_one_that_waits(make: Callable[..., Control]) -> None:
    control = make(lost_s=30.0)
    with Link(control.bridge.endpoint, place=Place("scanner")):
        control.until(lambda: control.bridge.connected)
    second = control.link("spare")
    control.until(lambda: control.bridge.waiting is not None)
    control.later(25)
    assert second.welcomed() is None
    control.later(10)
    control.until(lambda: second.welcomed() is not None)
    assert control.told("the presenter is lost") == 1


def test_one_that_is_lost_for_good_ends_the_session_where_nobody_waits(make: Callable[..., Control]) -> None:
    control = make(lost_s=30.0)
    with Link(control.bridge.endpoint, place=Place("scanner")):
        control.until(lambda: control.bridge.connected)
    with pytest.raises(LinkError, match="presenter lost"):
        control.later(40)


def test_a_bridge_started_anew_keeps_the_session_for_its_presenter(make: Callable[..., Control]) -> None:
    control = make(session="s")
    first = control.link("scanner")
    control.until(lambda: control.bridge.connected)
    second = control.link("office")
    control.until(lambda: control.bridge.waiting is not None)
    endpoint, place, process = control.bridge.endpoint, control.bridge.place, control.bridge.process
    control.bridge._peer = None  # as if killed: without a word
    control.bridge.close()
    anew = make(session="s", endpoint=endpoint, predecessor=Predecessor(0, True, place, process))
    anew.until(lambda: anew.bridge.waiting is not None and anew.bridge.connected)
    assert second.welcomed() is None
    number = first.send(wire.Event(int(EventKind.FIXATION), 1))
    anew.until(lambda: first.acknowledged(number))


def test_a_bridge_started_anew_takes_a_presenter_started_anew_on_the_same_computer(make: Callable[..., Control]) -> None:
    control = make(session="s")
    with Link(control.bridge.endpoint, place=Place("scanner")) as first:
        control.until(lambda: first.welcomed() is not None)
    endpoint, predecessor = control.bridge.endpoint, Predecessor(0, True, control.bridge.place, control.bridge.process)
    control.bridge._peer = None  # as if killed: without a word
    control.bridge.close()
    anew = make(session="s", endpoint=endpoint, predecessor=predecessor)
    office = anew.link("office")
    anew.until(lambda: anew.bridge.waiting is not None)
    second = anew.link("scanner")
    anew.until(lambda: second.welcomed() is not None)
    assert office.welcomed() is None
    assert anew.told("bridge and presenter were both restarted") == 1


def test_a_presenter_that_cannot_present_says_why_and_leaves_its_place(make: Callable[..., Control]) -> None:
    control = make()
    first = control.link("scanner")
    control.until(lambda: control.bridge.connected)
    control.until(lambda: first.leave("[presentation] screen: expected 0 to 0 on this computer, got 3", 0.01))
    assert control.told("the presenter on scanner (headless) cannot present: [presentation] screen: expected 0 to 0") == 1
    assert control.bridge.trouble.startswith("[presentation] screen")
    assert not control.bridge.connected
    control.later(40)  # nobody is missed: the session has not begun
    second = control.link("spare")
    control.until(lambda: second.welcomed() is not None)
    assert control.bridge.trouble == ""


def test_a_presenter_that_cannot_even_begin_says_why(make: Callable[..., Control]) -> None:
    control = make()
    link = control.link("scanner")
    control.until(lambda: link.leave("PsychoPy is not installed in this Python", 0.01))
    assert control.told("cannot present: PsychoPy is not installed") == 1
    assert control.bridge.waiting is None
    with pytest.raises(LinkLost):
        control.until(lambda: link.take() == [1])


def test_a_computer_knows_which_of_its_presenters_have_ended() -> None:
    first, second = Place("here"), Place("here")
    assert first.process != second.process
    assert not Place.has_ended(first.process)
    first.close()
    assert Place.has_ended(first.process)
    assert not Place.has_ended(0)  # there was none
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert not Place.has_ended(other.pid * 1000)
        assert other.stdin is not None
        other.stdin.close()
        other.wait()
        assert Place.has_ended(other.pid * 1000)
    assert Place().name.partition("/")[0]
    second.close()


def test_the_operators_leave_reaches_the_bridge_through_shared_words(make: Callable[..., Control], tmp_path: Path) -> None:
    control = make()
    with Clock.create(tmp_path / "words", 1.0) as clock:

        def until(condition: Callable[[], bool]) -> None:
            control.until(lambda: at_the_door(clock, control.bridge) or condition())

        control.link("scanner")
        until(lambda: control.bridge.connected)
        second = control.link("spare")
        until(lambda: clock.get("presenter_waits") == 1)
        clock.set("presenter_admitted", 7)  # one that has gone meanwhile
        until(lambda: clock.get("presenter_admitted") == 0)
        assert second.welcomed() is None
        clock.set("presenter_admitted", clock.get("presenter_waits"))
        until(lambda: second.welcomed() is not None and clock.get("presenter_waits") == 0)
        assert (clock.get("presenter_place"), clock.get("presenter_process")) == (control.bridge.place, second._place.process)
