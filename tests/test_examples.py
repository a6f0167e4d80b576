"""What is in `examples/` works with this version: the notebook, the recorded session, session files, the study, the filter."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import tomllib

import rtevo
from rtevo.gate.filters import ENTRY_POINTS
from rtevo.init import SESSIONS
from rtevo.record.files import FILES, SUMMARY
from rtevo.study.file import read

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RUN = EXAMPLES / "recorded-session"
LARGEST = 2_000_000  # bytes of the recorded session: everybody who has the project has it


def test_the_recorded_session_is_small_and_whole() -> None:
    session = rtevo.load(RUN)
    assert (session.status, session.damage, len(session.missing)) == ("completed", "", 0)
    assert len(session.trials) == len(session.images) == 35
    assert sum(path.stat().st_size for path in RUN.rglob("*") if path.is_file()) < LARGEST


def test_every_file_and_every_key_of_a_run_is_in_the_reference() -> None:
    named = {name.split("/")[0] for name in FILES}
    assert {path.name for path in RUN.iterdir()} <= named
    assert set(json.loads((RUN / "summary.json").read_text())) <= set(SUMMARY)


def test_the_notebooks_cells_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(EXAMPLES)
    notebook = json.loads((EXAMPLES / "analysis.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {"__name__": "notebook"}
    with mpl.rc_context({"backend": "agg", "figure.max_open_warning": 0}):
        for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
            exec(compile("".join(cell["source"]), f"analysis.ipynb, cell {number}", "exec"), names)
    said = capsys.readouterr().out
    kept = [line for cell in notebook["cells"] for each in cell.get("outputs", []) for line in "".join(each.get("text", [])).splitlines()]
    assert "volumes: 174, missing: 0" in said
    assert [line.split(";")[0] for line in kept if line.startswith("rise")] == [
        line.split(";")[0] for line in said.splitlines() if line.startswith("rise")
    ]


@pytest.mark.parametrize("vendor", sorted(set(SESSIONS) - {"simulate"}))
def test_the_vendors_session_files_are_those_that_init_writes(vendor: str) -> None:
    assert (EXAMPLES / f"session-{vendor}.toml").read_text(encoding="utf-8") == SESSIONS[vendor]


def test_the_study_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "session.toml").touch()
    (tmp_path / "study.toml").write_bytes((EXAMPLES / "study" / "study.toml").read_bytes())
    study = read(tmp_path / "study.toml")
    assert study.study.arms == ("brain", "sham")
    assert [visit.runs for visit in study.visits] == [("localizer", "localizer", "fit", "loop", "loop")]


def test_the_filter_refuses_red_pictures_and_no_others() -> None:
    folder = EXAMPLES / "filter"
    [(name, where)] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"][ENTRY_POINTS].items()
    module, _, kind = where.partition(":")
    spec = importlib.util.spec_from_file_location(module, folder / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    judge = getattr(loaded, kind)()
    red, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 128, np.uint8)
    red[..., 0] = 255
    assert name == "red"
    assert judge(red) > judge.threshold > judge(grey)
