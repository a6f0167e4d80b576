"""Step tuning: what is chosen, and the command on a narrow model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.tune import Trial, choose, main, parse
from rtevo.config import load
from tests.support.random_model import write_model


def trial(steps: int, p99_ms: float, similarity: float = 0.9, px: int = 768) -> Trial:
    return Trial("compiled", "ddim", steps, px, p99_ms - 1, p99_ms, p99_ms + 1, similarity)


def test_the_most_steps_that_hold_the_cadence() -> None:
    slow, most, twin, few = trial(50, 3300), trial(30, 3100, 0.95), trial(30, 2000, 0.96), trial(10, 500, 0.99)
    assert choose([slow, most, twin, few], cadence_s=4, margin=0.2) == twin  # of equally many steps the nearer picture
    assert choose([slow, most, twin, few], cadence_s=4.2, margin=0.2) == slow
    assert choose([slow, few, trial(60, 900, px=512)], cadence_s=4, margin=0.2) == few  # the larger picture first
    assert choose([slow], cadence_s=4, margin=0.2) is None


def test_of_several_models_the_one_that_hears_best() -> None:
    deaf, keen = (replace(trial(steps, 900), model=name, heard=heard) for steps, name, heard in ((30, "a", 0.1), (4, "b", 0.3)))
    assert choose([deaf, keen, replace(keen, steps=2, heard=0.9)], cadence_s=4, margin=0.2) == keen  # each by its own choice


def test_models_are_named_with_their_guidance(tmp_path: Path) -> None:
    odd = tmp_path / "model@2"
    odd.mkdir()
    assert parse([str(odd), "turbo@1"]).models == [(odd, 3.0), (Path("turbo"), 1.0)]


@pytest.mark.parametrize(("option", "value"), [("--cadence", "0"), ("--margin", "1"), ("--repeats", "0"), ("--steps", "0")])
def test_nonsense_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["model", option, value])
    assert f"{option}: expected" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")
def test_tuning_leaves_a_section_that_a_session_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model", "large", narrow=16, px=64, half=False)
    quick = ["--steps", "1", "2", "--schedulers", "ddim", "dpm++2m", "--repeats", "2", "--pictures", "2", "--reference", "4"]
    command = [str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--device", "cpu", "--cadence", "1000", *quick]
    assert main([*command, "--backends", "tensorrt", "compiled"]) == 0
    out, err = capsys.readouterr()
    assert "tensorrt: cannot be used: " in err
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert [(t["scheduler"], t["steps"]) for t in found["trials"]] == [("ddim", 1), ("ddim", 2), ("dpm++2m", 1), ("dpm++2m", 2)]
    assert all(0 < t["p50_ms"] <= t["p99_ms"] <= t["max_ms"] and -1 <= t["similarity"] <= 1 for t in found["trials"])
    assert found["chosen"]["steps"] == 2
    assert (tmp_path / "out" / "tune.png").stat().st_size > 10_000
    assert "| chosen |" in out
    session = tmp_path / "session.toml"
    session.write_text('[evolution]\npca = "session.toml"\n' + (tmp_path / "out" / "generator.toml").read_text())
    config = load(session).generator
    assert (config.backend, config.scheduler, config.steps) == ("compiled", found["chosen"]["scheduler"], 2)
    assert main([*command, "--backends", "eager", "--cadence", "1e-6"]) == 1
    assert "nothing holds one image every 1e-06 s" in capsys.readouterr().err
