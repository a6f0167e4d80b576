"""Events and targets: what BIDS tables may hold, and clear refusals."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from rtevo.decode.events import Event, blocks, parse_target, predicted, read_events
from rtevo.decode.hrf import response
from rtevo.errors import DataError

TABLE = "onset\tduration\ttrial_type\tfear\n12\t1\tface\t3\n2.5\tn/a\thouse\t1\n20\t0\tface\tn/a\n30\t2\tnon-face object\t2\n"


@pytest.fixture
def events(tmp_path: Path) -> list[Event]:
    (tmp_path / "events.tsv").write_text(TABLE)
    return read_events(tmp_path / "events.tsv", 60.0)


def test_a_table_is_read_in_order(events: list[Event]) -> None:
    assert [(event.onset_s, event.duration_s, event.trial_type) for event in events] == [
        (2.5, 0.1, "house"),
        (12.0, 1.0, "face"),
        (20.0, 0.1, "face"),
        (30.0, 2.0, "non-face object"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected tab-separated columns onset and duration, found no rows"),
        ("onset,duration\n1,2\n", "found onset,duration"),
        ("onset\tduration\nsoon\t1\n", "line 2: expected onset to be a number of seconds, found 'soon'"),
        ("onset\tduration\n1\t1\n2\t-1\n", "line 3: expected duration to be a number of seconds, found '-1'"),
        ("onset\tduration\n61\t1\n", "expected at least one event within the run, found none.*line 2: has its onset after the run's end"),
        ("onset\tduration\nn/a\t1\n", "line 2: has no onset"),
        ("onset\tduration\n1\t1\n61\t1\n70\t1\n", "the events of a run of 60 s, found 2 of 3 onsets after its end: check that the file"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "events.tsv").write_text(text)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_events(tmp_path / "events.tsv", 60.0)


@pytest.mark.parametrize(
    ("rows", "kept", "told"),
    [
        ("n/a\tn/a\tbutton\n1\t1\tface\n", [(1, "face")], ["line 2: has no onset"]),
        ("\t\tbutton\n1\t1\tface\n", [(1, "face")], ["line 2: has no onset"]),
        ("N/A\t1\tface\n1\t1\tface\n", [(1, "face")], ["line 2: has no onset"]),
        ("1\t1\tn/a\n2\t1\tNaN\n3\t1\t\n4\t1\tface\n", [(1, ""), (2, ""), (3, ""), (4, "face")], []),
        ("1\t1\tface\n60\t1\tface\n", [(1, "face")], ["line 3: has its onset after the run's end at 60 s"]),
        ("1\t1\tface\n\t\t\n", [(1, "face")], []),
        ("1\t1\tface\n\t\t\t\t\n", [(1, "face")], []),
        (" \t \t\n1\t1\tface\n", [(1, "face")], []),
        ("-3\t1\tface\n", [(-3, "face")], []),
        ("1\t1\tface\n" * 9 + "90\t1\tface\n" * 9, [(1, "face")] * 9, ["line"] * 5 + ["4 more lines"]),
    ],
)
def test_rows_that_say_nothing_are_left_out(tmp_path: Path, rows: str, kept: list[tuple[float, str]], told: list[str]) -> None:
    (tmp_path / "events.tsv").write_text(f"onset\tduration\ttrial_type\n{rows}")
    problems: list[str] = []
    assert [(event.onset_s, event.trial_type) for event in read_events(tmp_path / "events.tsv", 60.0, problems)] == kept
    assert len(problems) == len(told)
    for problem, words in zip(problems, told, strict=True):
        assert words in problem


def test_no_kind_is_not_all_others(tmp_path: Path) -> None:
    (tmp_path / "events.tsv").write_text("onset\tduration\ttrial_type\n1\t1\tface\n2\t1\tn/a\n3\t1\thouse\n")
    target = parse_target("face", read_events(tmp_path / "events.tsv"))
    np.testing.assert_array_equal(target.coefficients, [1, math.nan, -1])


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_events(tmp_path / "none.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="expected a BIDS events table"):
        read_events(tmp_path / "binary.tsv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("face", [-1, 1, 1, -1]),
        ("face - house", [-1, 1, 1, math.nan]),
        ("house - face + non-face object", [1, -1, -1, 1]),
        ("non-face object", [-1, -1, -1, 1]),
        ("face + house - non-face object", [1, 1, 1, -1]),
        ("fear", [-1, 1, math.nan, 0]),
    ],
)
def test_targets(events: list[Event], text: str, expected: list[float]) -> None:
    target = parse_target(text, events)
    np.testing.assert_allclose(target.coefficients, expected)
    assert target.categorical == (text != "fear")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat", r"found no 'cat' \(kinds face, house, non-face object; columns fear\)"),
        ("face - cat", "found no 'cat'"),
        ("face - face", "each kind on one side, found 'face' on both"),
        ("face + house + non-face object", "events of another kind to contrast with, but all events are"),
    ],
)
def test_impossible_targets_are_refused(events: list[Event], text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_target(text, events)


def test_impossible_columns_are_refused() -> None:
    same = [Event(1.0, 1.0, "", {"fear": "2"}), Event(2.0, 1.0, "", {"fear": "2"})]
    with pytest.raises(DataError, match="at least two different numbers in the column, found 1"):
        parse_target("fear", same)
    words = [Event(1.0, 1.0, "", {"fear": "much"}), Event(2.0, 1.0, "", {"fear": "2"})]
    with pytest.raises(DataError, match=r"expected a numeric column, found 'much' at 1 s"):
        parse_target("fear", words)


def test_predicted_responses_add_up(events: list[Event]) -> None:
    times = np.arange(0, 60, 0.5)
    expected = 2 * response(times - 12, 1.0) - response(times - 30, 2.0)
    np.testing.assert_allclose(predicted(times, events, [math.nan, 2, 0, -1]), expected)


def test_neighbours_of_one_kind_are_a_block() -> None:
    kinds = [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (9, "b"), (10, "c")]
    events = [Event(float(onset), 1.0, kind, {}) for onset, kind in kinds]
    assert blocks(events, [1, 1, -1, -1, -1, math.nan]) == [[0, 1], [2, 3], [4]]
    assert blocks(events, [0.1, 0.2, 0.3, 0.3, 0.5, 0.6]) == [[0], [1], [2, 3], [4], [5]]


@pytest.mark.parametrize("name", ["onsetna", "typena", "afterend", "tabline"])
def test_tables_that_others_have(name: str) -> None:
    source = Path(os.environ.get("RTEVO_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "field" / "events"
    path = source / f"{name}.tsv"
    if not path.exists():
        pytest.skip(f"no such table: {path} is not there (set RTEVO_TEST_DATA)")
    problems: list[str] = []
    found = read_events(path, 300.0, problems)
    assert len({event.trial_type for event in found if event.trial_type}) == 2
    assert len(problems) == (1 if name in ("onsetna", "afterend") else 0)
    signs = parse_target("face", found).coefficients
    assert all(math.isnan(sign) == (event.trial_type == "") for sign, event in zip(signs, found, strict=True))
