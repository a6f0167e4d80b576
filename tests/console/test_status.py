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
from rtevo.record import LOG, LogWriter
from rtevo.records import EventKind


@pytest.fixture
def interrupted(tmp_path: Path) -> Any:
    """A session of which four of six images were shown, taken up for the first time."""
    with LogWriter(tmp_path / LOG) as log:
        log.append("start", {"tr_s": 1.0})
        for number in range(4):
            key = {"generation": number // 3, "candidate": number % 3}
            log.append("events", {"kind": int(EventKind.ONSET), "t_ns": 0, **key})
            log.append("fitness", {**key, "fitness": float(number)})
        motion = {"index": 99, "flags": 0, "framewise_displacement_mm": 0.25, "closed_ns": 0, "aligned_ns": 20_000_000}
        log.append("aligned", motion)
        log.append("start", {"tr_s": 1.0, "first_volume": 100})
    config = build({"evolution": {"generations": 2, "population": 3}})
    return SimpleNamespace(out=tmp_path, part=1, tr_s=1.0, config=config)


def test_a_session_that_is_taken_up_counts_on(interrupted: Any) -> None:
    with Status(interrupted, Console(file=io.StringIO())) as status:
        shown = {label: value for label, value, _ in status._cells()}
    assert shown["images"] == "4/6"
    assert shown["generation"] == "2/2"
    assert shown["fitness"] == "+1.00 +3.00"
    assert shown["volume"] == "99 (TR 1 s)"
    assert "next image due in" not in shown  # nothing is on the screen yet


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_the_terminal_asks_about_a_waiting_presenter_and_a_wrong_start(interrupted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, int] = {}
    done: list[tuple[str, str]] = []
    ours, theirs = os.openpty()
    printed = io.StringIO()
    with open(theirs, encoding="utf-8") as terminal, Status(interrupted, Console(file=printed, width=200)) as status:
        monkeypatch.setattr("sys.stdin", terminal)
        status._clock = SimpleNamespace(get=lambda word: words.get(word, 0))  # type: ignore[assignment]
        status._operate = lambda action, text: done.append((action, text))
        status._ask()
        words["presenter_waits"] = 1
        for typed in ("", "?\n", "l\n"):
            os.write(ours, typed.encode())
            status._ask()
        words["presenter_waits"] = 0
        status._ask()
        words["start_shift"] = 1
        for typed in ("", "c\n"):
            os.write(ours, typed.encode())
            status._ask()
    os.close(ours)
    assert done == [("admit", "at the terminal"), ("correct", "at the terminal")]
    assert printed.getvalue().count("Another presenter waits.") == 2
