"""A flood of problems is named as far as somebody can read it, and counted beyond; alarms are all named."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from rtevo.stages import ingest


def test_a_flood_of_problems_is_counted_and_no_alarm_is_lost(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seconds = [0.0]
    monkeypatch.setattr(ingest.time, "monotonic", lambda: seconds[0])
    source = SimpleNamespace(told="", tr_s=None, problems=[f"file {k}: no picture" for k in range(5000)], alarms={"file 4999: no picture"})
    teller = ingest._Teller(SimpleNamespace(log=logging.getLogger("rtevo")), source)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "rtevo"):
        teller.tell()
        assert len(caplog.messages) == ingest.MOST_WORDS + 1
        assert caplog.messages[-1] == "ingest: file 4999: no picture"
        seconds[0] += ingest.MOST_WORDS / ingest.WORDS_A_S
        teller.tell()
    assert caplog.messages[-1] == "ingest: 4799 more problems with received files, too many to list"
