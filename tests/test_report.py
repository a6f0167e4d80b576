"""The page about a run is drawn from its folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtevo import report


def test_a_folder_without_a_session_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 1
    assert "expected the folder of a session" in capsys.readouterr().err
