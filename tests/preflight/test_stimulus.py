"""The stimulus PC, with a real headless presenter, and without any."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from presenter.link import Link
from presenter.run import present
from rtevo import wire
from rtevo.bridge import Bridge, make_keys
from rtevo.config import build, presentation_settings
from rtevo.errors import LinkError
from rtevo.preflight import stimulus
from rtevo.preflight.findings import Known
from rtevo.records import EventKind

from .conftest import verdicts

Make = Callable[..., Known]
LIMIT_S = 60.0


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start() -> Iterator[Callable[..., list[Any]]]:
    """Return a function that starts a presenter in a thread, and gives what becomes of it."""
    threads = []

    def run(endpoint: str, **options: Any) -> list[Any]:
        ended: list[Any] = []

        def target() -> None:
            try:
                ended.append(present(endpoint, headless=True, **options))
            except Exception as error:
                ended.append(error)

        threads.append(threading.Thread(target=target))
        threads[-1].start()
        return ended

    yield run
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def outside(port: int, keys: Path | None = None) -> dict[str, Any]:
    return {
        "bridge": {"bind": f"tcp://127.0.0.1:{port}", "keys": str(keys) if keys else ""},
        "simulation": {"participant": "tcp://127.0.0.1:1"},
    }


def test_the_presenter_that_a_rehearsal_brings_itself(known: Make) -> None:
    found = list(stimulus.presenter(known()))
    assert verdicts(found)["presenter"] == "pass"
    assert found[0].figures["refresh_hz"] == pytest.approx(60, abs=0.01)
    assert [each.check for each in found[1:]] == ["presenter's gate", "presenter's clock"]
    assert verdicts(found)["presenter's gate"] == "pass"


def test_a_presenter_that_waits_is_checked_and_waits_on(known: Make, port: int, start: Callable[..., list[Any]], tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["presenter"])
    tables = outside(port, tmp_path / "keys")
    endpoint = f"tcp://127.0.0.1:{port}"
    ended = start(endpoint, key=tmp_path / "keys" / "presenter.json")
    for _ in range(2):  # as often as one likes
        screen, refuses, clock = stimulus.presenter(known(tables, wait_s=LIMIT_S))
        assert (screen.verdict, screen.found) == ("warn", "headless, 60.00 Hz: no screen shows its pictures")
        assert (refuses.verdict, refuses.found) == ("pass", "it refuses a picture without a verdict")
        assert clock.figures["bound_ms"] is not None
        assert not ended
    with Bridge(endpoint, presentation_settings(build(tables)), keys=tmp_path / "keys") as link:  # and now the session
        while not link.ready:
            link.poll(0.05)
        link.end("finished")
        while not any(event.kind == EventKind.END for event in link.poll(0.05)):
            pass
    while not ended:
        pass
    assert ended == ["finished"]


def test_a_check_that_is_broken_off_and_a_session_that_begins_again_leave_it_waiting(port: int, start: Callable[..., list[Any]]) -> None:
    endpoint, settings = f"tcp://127.0.0.1:{port}", presentation_settings(build({}))
    ended = start(endpoint)
    for session, reason in ((wire.CHECK, ""), ("session", wire.RESTART), ("again", "finished")):
        with Bridge(endpoint, settings, session=session) as link:
            while not link.ready:
                link.poll(0.05)
            if reason:
                link.end(reason)
                while not any(event.kind == EventKind.END for event in link.poll(0.05)):
                    pass
    while not ended:
        pass
    assert ended == ["finished"]


def test_nobody_comes(known: Make, port: int) -> None:
    (found,) = stimulus.presenter(known(outside(port), wait_s=0.0))
    assert (found.verdict, "no presenter connected" in found.found) == ("fail", True)
    assert f"--connect tcp://127.0.0.1:{port}" in found.to_do


def test_a_presenter_that_may_not_come_in_is_told_of(known: Make, port: int, start: Callable[..., list[Any]], tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        make_keys(tmp_path / name, ["presenter"])
    ended = start(f"tcp://127.0.0.1:{port}", key=tmp_path / "theirs" / "presenter.json", connect_s=1.5)
    (found,) = stimulus.presenter(known(outside(port, tmp_path / "ours"), wait_s=3.0))
    assert (found.verdict, "seen:" in found.found) == ("fail", True)
    assert not any(isinstance(each, str) for each in ended)


def test_the_address_is_taken(known: Make, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(LinkError, match="cannot listen"):
            list(stimulus.presenter(known(outside(port))))


def test_screens(known: Make) -> None:
    class Shown:
        display = ("psychopy", 60.0)

    assert stimulus._screen(Shown(), True).verdict == "pass"  # type: ignore[arg-type]
    Shown.display = ("psychopy", 30.0)
    assert verdicts([stimulus._screen(Shown(), True)]) == {"presenter": "warn"}  # type: ignore[arg-type]


def test_what_a_presenter_warns_of_or_leaves_for_is_in_the_table(known: Make, port: int) -> None:
    endpoint = f"tcp://127.0.0.1:{port}"

    def stand_in(trouble: str) -> None:
        with Link(endpoint) as link:
            link.welcome()
            if trouble:
                link.leave(trouble)
                return
            link.send(wire.Ready("psychopy", 60.0, ("keys come without Psychtoolbox",)))
            taken: list[wire.Numbered] = []
            while not any(isinstance(message, wire.End) for message in taken):
                taken += [message for message, _ in link.take()]
                if any(isinstance(message, wire.Image) for message in taken):  # an old one, that shows whatever comes
                    link.send(wire.Event(int(EventKind.ONSET), 1, 0, 0))
                    taken.clear()
                link.wake.poll(50)
            link.send(wire.Event(int(EventKind.END), 1, text=wire.CHECK))
            link.flush(LIMIT_S)

    for trouble in ("", "PsychoPy is not installed"):
        thread = threading.Thread(target=stand_in, args=(trouble,))
        thread.start()
        found = list(stimulus.presenter(known(outside(port), wait_s=LIMIT_S)))
        thread.join(LIMIT_S)
        if trouble:
            assert (verdicts(found), trouble in found[0].found) == ({"presenter": "fail"}, True)
        else:
            assert verdicts(found[:3]) == {"presenter": "pass", "presenter's gate": "fail", "presenter's computer": "warn"}


@pytest.mark.parametrize(("bound_ns", "verdict"), [(300_000, "pass"), (9_000_000, "warn"), (-1, "fail")])
def test_clocks(bound_ns: int, verdict: str) -> None:
    assert verdicts([stimulus.clock(10**9, bound_ns)]) == {"presenter's clock": verdict}


def test_skin_conductance(known: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pythonosc")
    from pythonosc.udp_client import SimpleUDPClient

    assert not list(stimulus.conductance(known()))
    tables = {"session": {"condition": "physiology"}, "bridge": {"osc": "127.0.0.1:0"}}
    sent = []

    def tell(text: str) -> None:
        with SimpleUDPClient("127.0.0.1", int(text.rpartition(":")[2])) as client:
            client.send_message("/eda", 2.5)
        sent.append(text)

    assert verdicts(list(stimulus.conductance(known(tables, tell=tell)))) == {"skin conductance": "pass"}
    monkeypatch.setattr(stimulus, "SAMPLES_S", 0.0)
    assert verdicts(list(stimulus.conductance(known(tables)))) == {"skin conductance": "fail"}
    with pytest.raises(LinkError):
        list(stimulus.conductance(known({**tables, "bridge": {"osc": "nowhere"}})))
