"""Runs that count themselves: which number the next has, and where it is recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rtevo.config import Config, build
from rtevo.errors import ConfigError
from rtevo.run import _forget, _plan, main, parser
from rtevo.session.counting import counted, default_folder, said

QUICK = "[generator]\nsteps = 1\n[simulation]\nvoxel_mm = [10.0, 10.0, 10.0]\n[session]\nspeed = 0\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def session(**keys: str | int) -> Config:
    return build({"session": {"participant": "02", **keys}})


def record(*names: str) -> None:
    for name in names:
        (Path("sessions") / name).mkdir(parents=True)


@pytest.mark.usefixtures("here")
def test_the_first_run_has_the_files_number() -> None:
    assert counted(session()).session.run == 1
    assert counted(session(run=4)).session.run == 4
    assert said(session(run=4)) == "participant 02, session 01, run 4: sessions/sub-02_ses-01_run-04"


@pytest.mark.usefixtures("here")
def test_the_next_run_is_one_more_than_the_last_also_where_one_is_missing() -> None:
    record("sub-02_ses-01_run-01", "sub-02_ses-01_run-03")
    config = counted(session())
    assert config.session.run == 4
    assert said(config) == "participant 02, session 01, run 4: sessions/sub-02_ses-01_run-04; existing runs: 1, 3"
    assert counted(session(run=9)).session.run == 9


@pytest.mark.usefixtures("here")
def test_others_runs_do_not_count() -> None:
    others = ("sub-01_ses-01_run-07", "sub-02_ses-02_run-07", "sub-02_ses-01_run-07-rerun-1", "xsub-02_ses-01_run-07", "2026-01-31-7")
    record(*others, "sub-02_ses-01_run-", "sub-02_ses-01_run-x", "sub-02_ses-01_run-٣")
    assert counted(session()).session.run == 1


@pytest.mark.usefixtures("here")
def test_after_run_99_comes_run_100() -> None:
    record("sub-02_ses-01_run-99")
    config = counted(session())
    assert default_folder(config) == Path("sessions/sub-02_ses-01_run-100")
    record("sub-02_ses-01_run-100")
    assert counted(session()).session.run == 101


@pytest.mark.usefixtures("here")
def test_a_number_that_is_asked_for_is_taken_or_refused() -> None:
    record("sub-02_ses-01_run-02")
    assert counted(session(run=1), fixed=True).session.run == 1
    with pytest.raises(ConfigError, match=r"--run 2: expected a run that does not exist yet, found .*_run-02; without --run it is 3"):
        counted(session(run=2), fixed=True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("tables", [{"session": {"participant": "sim"}}, {"session": {"participant": "02"}, "record": {"out": "mine"}}])
def test_a_folder_that_is_named_and_the_simulated_participants_are_not_counted(tables: dict[str, dict[str, str]]) -> None:
    record("sub-sim_ses-01_run-01", "sub-02_ses-01_run-01")
    config = build(tables)
    assert counted(config, fixed=True) == config
    assert default_folder(config) is None
    assert said(config) == ""


def test_a_file_in_the_place_of_the_folder_holds_no_run(here: Path) -> None:
    (here / "sessions").touch()
    assert counted(session()).session.run == 1


def test_sessions_of_one_file_are_run_1_and_run_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "quick.toml").write_text(QUICK)
    options = parser().parse_args(["quick.toml", "--participant", "02", "--session", "b"])
    for number in (1, 2):
        plan = _plan(options)
        shutil.rmtree(plan.runtime)
        assert plan.out == here / f"sessions/sub-02_ses-b_run-0{number}"
        assert plan.config.session.run == number
        assert f"rtevo: participant 02, session b, run {number}: sessions/sub-02_ses-b_run-0{number}" in capsys.readouterr().err
    _forget(plan)  # a session that never began leaves its number to the next
    assert counted(session(session="b")).session.run == 2


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_a_run_that_is_there_is_refused_before_anything_starts(more: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("sub-02_ses-01_run-01")
    assert main(["--participant", "02", "--run", "1", *more]) == (1 if more else 2)
    printed = capsys.readouterr()
    assert "--run 1: expected a run that does not exist yet" in printed.out + printed.err
    assert [path.name for path in (here / "sessions").iterdir()] == ["sub-02_ses-01_run-01"]


@pytest.mark.usefixtures("here")
def test_a_label_that_is_none_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--participant", "sub-02"]) == 2
    assert "[session] participant: expected letters a to z and digits, got 'sub-02'; did you mean '02'?" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_localizers_count_by_themselves() -> None:
    record("sub-02_ses-01_run-01", "sub-02_ses-01_task-localizer_run-01", "sub-02_ses-01_task-localizer_run-02")
    config = counted(session(task="localizer"))
    assert said(config) == (
        "participant 02, session 01, localizer run 3: sessions/sub-02_ses-01_task-localizer_run-03; existing runs: 1, 2"
    )
    assert counted(session()).session.run == 2
