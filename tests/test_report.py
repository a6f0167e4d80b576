"""The page about a run is drawn from its folder alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.table import Table

from rtevo import report


def test_a_folder_without_a_session_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 1
    assert "expected the folder of a session" in capsys.readouterr().err


READER: dict[str, Any] = {
    "name": "decode", "messages": 4, "overhead_p50_ns": 20_000, "overhead_p99_ns": 31_000, "waits": 2,
    "wake_up_ns": 300_000, "wake_up_max_ns": 200_000, "overruns": 0,
}  # fmt: skip
RING: dict[str, Any] = {
    "published": 4, "slot_bytes": 896_032, "overhead_p50_ns": 10_000, "overhead_p99_ns": 1_200_000, "waits": 1,
    "readers": [
        READER,
        READER | {"name": "record", "overhead_p50_ns": 8_000, "waits": 0, "wake_up_ns": 0, "wake_up_max_ns": 0, "overruns": 3},
    ],
}  # fmt: skip


def test_the_cost_of_handing_messages_over_is_listed_by_ring() -> None:
    unused = copy.deepcopy(RING) | {"published": 0}
    unused["readers"][0]["messages"] = unused["readers"][1]["messages"] = 0
    figure = Figure()
    report._rings(figure, {"volumes": RING, "events": unused})
    (table,) = [each for ax in figure.axes for each in ax.tables]
    assert isinstance(table, Table)
    rows = [[table[row, column].get_text().get_text() for column in range(9)] for row in (1, 2)]
    assert rows[0] == ["volumes", "4", "896", "10 / 1,200", "20 / 31 (decode)", "150 (2 waits)", "200 (decode)", "1", "3"]
    assert rows[1] == ["events", "0", "896", "-", "-", "-", "-", "1", "3"]
