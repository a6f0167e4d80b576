"""The line in the terminal, from made-up logs."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rtevo.config import build
from rtevo.console import Status
from rtevo.record import LOG, LogWriter, record_of
from rtevo.records import Decision, EventKind


@pytest.fixture
def interrupted(tmp_path: Path) -> Any:
    """A session of which four of six images were shown, taken up for the first time."""
    with LogWriter(tmp_path / LOG) as log:
        log.append("start", {"tr_s": 1.0})
        for number in range(4):
            key = {"generation": number // 3, "candidate": number % 3}
            log.append("images", {**key, "evolved_ns": 0, "painted_ns": 1})
            log.append("events", {"kind": int(EventKind.ONSET), "t_ns": 0, **key})
            log.append("fitness", {**key, "fitness": float(number)})
        motion = {"index": 99, "flags": 0, "framewise_displacement_mm": 0.25, "closed_ns": 0, "aligned_ns": 20_000_000}
        log.append("aligned", motion)
        log.append("start", {"tr_s": 1.0, "first_volume": 100})
    config = build({"evolution": {"generations": 2, "population": 3}})
    return SimpleNamespace(out=tmp_path, part=1, tr_s=1.0, config=config, token="")


def test_a_session_that_is_taken_up_counts_on(interrupted: Any) -> None:
    with Status(interrupted, Console(file=io.StringIO())) as status:
        shown = {label: value for label, value, _ in status._cells()}
    assert shown["images"] == "4/6"
    assert shown["generation"] == "2/2"
    assert shown["fitness"] == "+1.00 +3.00"
    assert shown["volume"] == "99 (TR 1 s)"
    assert "next image due in" not in shown  # nothing is on the screen yet


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_narrow_terminal_gets_more_lines_and_no_cell_is_cut(interrupted: Any, width: int) -> None:
    with Status(interrupted, Console(file=io.StringIO(), width=width)) as status:
        lines = status._render().plain.split("\n")
        cells = [f"{label} {value}" for label, value, _ in status._cells()]
    assert "  ".join(lines) == "  ".join(cells)
    assert max(map(len, lines)) <= width


@pytest.fixture
def asked(interrupted: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A terminal: its shared words, a function that lets it ask after something was typed, what was done, what was printed."""
    if not hasattr(os, "openpty"):
        pytest.skip("no pseudo-terminals here")
    words: dict[str, int] = {}
    done: list[str] = []
    ours, theirs = os.openpty()
    printed = io.StringIO()
    with open(theirs, encoding="utf-8") as terminal, Status(interrupted, Console(file=printed, width=200)) as status:
        monkeypatch.setattr("sys.stdin", terminal)
        status._clock = SimpleNamespace(get=lambda word: words.get(word, 0))  # type: ignore[assignment]
        status._operate = lambda action, text: done.append(action)

        def ask(*typed: str) -> None:
            for line in typed or ("",):
                os.write(ours, line.encode())
                status._ask()

        yield words, ask, done, printed
    os.close(ours)


def test_the_terminal_asks_about_a_waiting_presenter_and_a_wrong_start(asked: Any) -> None:
    words, ask, done, printed = asked
    ask()
    words["presenter_waits"] = 1
    ask("", "?\n", "l\n")
    words["presenter_waits"] = 0
    ask()
    words["start_shift"] = 1
    ask("", "c\n")
    assert done == ["admit", "correct"]
    assert printed.getvalue().count("Another presenter waits.") == 2


def test_the_terminal_asks_once_about_an_alarm_and_any_answer_says_that_it_was_seen(asked: Any) -> None:
    words, ask, done, printed = asked
    words["alarm"] = 1
    ask("", "", "k\n")
    assert done == ["seen"]
    words["seen"] = 1
    ask()
    assert printed.getvalue().count("Type k and Enter when you have seen it.") == 1
    words |= {"alarm": 2, "held": 1}
    ask("", "g\n")
    assert done == ["seen", "seen", "go_on"]
    assert printed.getvalue().count("Type g (go on showing images)") == 1


def test_one_key_takes_the_image_away_whatever_is_asked(asked: Any) -> None:
    words, ask, done, _ = asked
    ask("t\n")
    words["presenter_waits"] = 1
    ask("", "T\n")
    assert done == ["away", "away"]


def test_no_text_from_outside_ends_the_log_or_moves_the_cursor(interrupted: Any) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    with Status(interrupted, Console(file=screen)) as status:
        status.log("WARNING", "ingest: caf\udce9\x1b[2J.dcm: not DICOM\nsecond line")
    kept = (interrupted.out / "session.log").read_bytes().decode("utf-8")
    assert r"caf\udce9\x1b[2J.dcm" in kept
    assert "\x1b" not in kept


def test_one_key_shows_the_address_with_its_token_again(asked: Any, interrupted: Any) -> None:
    _, ask, done, printed = asked
    ask("b\n")
    assert "token=" not in printed.getvalue()
    interrupted.token, interrupted.config = "secret", build({"console": {"port": 8080}})
    ask("b\n")
    assert "http://127.0.0.1:8080/?token=secret" in printed.getvalue()
    assert done == []


def said(interrupted: Any, words: dict[str, int], *records: dict[str, Any]) -> str:
    """What the terminal's line says of the session first."""
    with Status(interrupted, Console(file=io.StringIO())) as status:
        for record in records:
            status.view.take(record_of(record))
        status._clock = SimpleNamespace(get=lambda word: words.get(word, 0), now_s=lambda: 3.0)  # type: ignore[assignment]
        label, value, _ = status._cells()[0]
    assert label == "session"
    return value


def test_the_line_says_who_is_waited_for_from_the_first_moment_to_the_last(interrupted: Any) -> None:
    ready = {"type": "events", "kind": int(EventKind.READY), "text": "presenter ready: headless"}
    trigger = {"type": "events", "kind": int(EventKind.TRIGGER), "t_ns": 10**9}
    volume = {"type": "aligned", "index": 100, "clock_ns": 2 * 10**9}
    placed = {"type": "placements", "decision": int(Decision.ACCEPTED), "verdict": "good"}
    late = {"type": "events", "kind": int(EventKind.FIXATION), "t_ns": 3 * 10**9}
    going = {"started_ns": 1}
    assert said(interrupted, {}) == "getting ready"
    assert said(interrupted, {"waiting": 1}) == "waits for Start (at the console)"
    assert said(interrupted, going) == "waits for the presenter"
    assert said(interrupted, going, ready) == "waits for the scanner's trigger"
    assert said(interrupted, going, ready, trigger) == "waits for the first volume"
    assert said(interrupted, going, ready, trigger, volume) == "waits for steady volumes, to place the decoder"
    assert said(interrupted, going, ready, trigger, volume, placed) == "running"
    assert said(interrupted, going, ready, trigger, volume, placed, late) == "waits for the next image to be painted"
    assert said(interrupted, going | {"pause": 1}, ready, trigger, volume, placed) == "pauses after this image"
    assert said(interrupted, going | {"held": 1}, ready, trigger, volume, placed) == "waits for you: images are held"
    assert said(interrupted, going | {"end": 1}, ready, trigger, volume, placed) == "waits for the last scores"
    interrupted.config = build({"simulation": {"participant": "tcp://127.0.0.1:5556"}})
    assert said(interrupted, going) == "waits for the presenter at tcp://127.0.0.1:5555"
