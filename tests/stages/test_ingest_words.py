"""What the ingest stage tells the operator of what its source finds wrong."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from rtevo.stages.ingest import _Teller


def test_a_refused_peer_is_an_error_and_everything_else_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    source: Any = SimpleNamespace(told="", tr_s=None, problems=["a file is cut", "refused SCANNER"], alarms={"refused SCANNER"})
    teller = _Teller(SimpleNamespace(log=logging.getLogger("rtevo.test"), plan=SimpleNamespace(tr_s=2.0)), source)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="rtevo.test"):
        teller.tell()
        teller.tell()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "ingest: a file is cut"),
        ("ERROR", "ingest: refused SCANNER"),
    ]
