"""What the decode stage tells the operator."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from rtevo.stages.decode import _Decode


def test_every_artefact_is_noted_and_ever_fewer_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    work = _Decode.__new__(_Decode)
    work.context, work.artefacts = SimpleNamespace(log=logging.getLogger("session")), 0  # type: ignore[assignment]
    with caplog.at_level(logging.INFO, "session"):
        for index in range(100, 109):
            work.artefact(index)
    assert ["volume 10" in r.getMessage() for r in caplog.records] == [True] * 9
    assert [r.levelname == "WARNING" for r in caplog.records] == [True, True, False, True, False, False, False, True, False]
    assert "(8 so far)" in caplog.records[7].getMessage()
