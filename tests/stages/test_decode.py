"""What the decode stage reports to the operator, and what it asks."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rtevo.config import build
from rtevo.decode.grid import Response
from rtevo.place import Placement, Verdict
from rtevo.records import Decision
from rtevo.session.placing import Attempt
from rtevo.stages.decode import _Decode, acceptable


def test_every_artefact_is_noted_and_ever_fewer_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    work = _Decode.__new__(_Decode)
    work.context, work.artefacts = SimpleNamespace(log=logging.getLogger("session")), 0  # type: ignore[assignment]
    with caplog.at_level(logging.INFO, "session"):
        for index in range(100, 109):
            work.artefact(index)
    assert ["volume 10" in r.getMessage() for r in caplog.records] == [True] * 9
    assert [r.levelname == "WARNING" for r in caplog.records] == [True, True, False, True, False, False, False, True, False]
    assert "(8 so far)" in caplog.records[7].getMessage()


def test_a_response_at_the_edge_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    work = _Decode.__new__(_Decode)
    work.context, work.at_edge = SimpleNamespace(log=logging.getLogger("session")), False  # type: ignore[assignment]
    for edge in (0.3, 0.8):
        found = Response(3.9, 0.2, 1.0, 0.1, 0.5, 1.8, 1.0, 0.3, edge, (-2.0, 1.0, 4.0))
        work.decoding = SimpleNamespace(response=found)  # type: ignore[assignment]
        work.look_at_response()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "the response comes +3.9 s against the canonical one, at the edge of the -2.0 to 4.0 s" in caplog.text
    assert work.at_edge


def placement(verdict: Verdict) -> Placement:
    return Placement(np.eye(4), 0.9, 1.0, 1.0, 0.1, verdict, ())


def test_only_what_is_doubtful_can_be_accepted_and_only_where_the_session_allows_it() -> None:
    waits, refuses = build({}), build({"decoder": {"doubtful": "refuse"}})
    assert [acceptable(placement(verdict), waits) for verdict in Verdict] == [True, True, False]
    assert [acceptable(placement(verdict), refuses) for verdict in Verdict] == [True, False, False]


@pytest.mark.parametrize(("attended", "expected"), [(True, [0, 0, 0]), (False, [2, 2, 0])])
def test_where_nobody_can_be_asked_the_next_volumes_are_tried(attended: bool, expected: list[int]) -> None:
    work = _Decode.__new__(_Decode)
    work.context = SimpleNamespace(plan=SimpleNamespace(attended=attended))  # type: ignore[assignment]
    made = [Attempt(k, k, False, placement(Verdict.DOUBTFUL), np.zeros((4, 4, 4), np.float32)) for k in range(3)]
    assert [int(work._decide(attempt)) for attempt in made] == expected
    good = replace(made[0], placement=placement(Verdict.GOOD))
    assert work._decide(good) == Decision.ACCEPTED
