"""``python -m rtevo.run --check``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rtevo import preflight
from rtevo.errors import ConfigError, DataError
from rtevo.preflight.findings import Check, Finding, Known
from rtevo.run import main


def test_every_mistake_of_a_session_file_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = tmp_path / "session.toml"
    session.write_text("[session]\nseed = -1\n[presentation]\nimage_s = 0\n[decoders]\n")
    assert main(["--check", "--json", str(session)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "fail"
    assert [each["verdict"] for each in found["findings"]] == ["fail"] * 3
    assert all(each["check"] == "session file" for each in found["findings"])


@pytest.mark.slow
def test_a_simulated_session_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = tmp_path / "session.toml"
    session.write_text("[generator]\nsteps = 1\n[session]\nspeed = 0\n")
    assert main(["--check", "--json", str(session)]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {each["check"]: each for each in found["findings"]}
    wanted = {
        "session file",
        "leftovers",
        "volumes",
        "delivery",
        "decoder",
        "sample volume",
        "kernels",
        "realignment",
        "model",
        "evolution",
    }
    stimulus = {"presenter", "presenter's clock", "presenter's gate"}
    assert set(rows) == wanted | stimulus | {"gate", "disk space", "disk speed", "shared memory", "painting"}
    assert rows["painting"]["figures"]["each_s"] > 0
    assert rows["presenter"]["figures"]["refresh_hz"] == pytest.approx(60, abs=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["session.toml"]  # nothing is left


def good(known: Known) -> Iterator[Finding]:
    known.tr_s = 2.0
    yield Finding("good", "pass", "well")


def broken(known: Known) -> Iterator[Finding]:
    yield Finding("first half", "warn", "so so", "see to it")
    raise ConfigError(["this", "that"])


def unreadable(known: Known) -> Iterator[Finding]:
    raise DataError("nothing there")
    yield


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *checks: monkeypatch.setattr(preflight, "CHECKS", checks)


def test_an_error_of_one_check_keeps_no_other_from_being_made(checks: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    checks(
        Check("unreadable", unreadable, to_do="look"),
        Check("needy", good, ("tr_s",)),
        Check("broken", broken),
        Check("good", good),
        Check("content", good, ("tr_s",)),
    )
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert "not checked: this needs the repetition time" in printed
    assert "-> correct the session file" in printed
    assert "3 pass, 2 warn, 3 fail" in printed


def test_warnings_let_a_session_start(checks: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    checks(Check("needy", good, ("decoder",)))
    assert main(["--check"]) == 0
    assert "1 pass, 1 warn, 0 fail" in capsys.readouterr().out


def test_what_was_found_is_shown_when_a_check_ends_and_not_after_the_last(
    checks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def looks(known: Known) -> Iterator[Finding]:
        seen.append(capsys.readouterr().out)
        yield Finding("looks", "pass", "well")

    checks(Check("good", good), Check("looks", looks))
    assert main(["--check"]) == 0
    assert seen[0].splitlines()[-1].split() == ["pass", "good", "well"]
    assert "looks" not in seen[0]
    assert capsys.readouterr().out.split()[:3] == ["pass", "looks", "well"]
