"""Short session files for each vendor: they load, hold no more than what has to be set, and name only what there is."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import tomllib

from rtevo import run
from rtevo.__main__ import main
from rtevo.config import Config, build, load
from rtevo.errors import ConfigError
from rtevo.init import NEXT, SESSIONS

SCANNERS = sorted(set(SESSIONS) - {"simulate"})
MOST_LINES = 40  # of a short file: it is seen whole, without scrolling
WIDEST = 140  # characters


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_paths(folder: Path) -> None:
    """Make what the files name, and they do not make themselves."""
    for name in ("export", "decoder", "model", "keys", "avoid"):
        (folder / name).mkdir()
    (folder / "latent.npz").touch()


@pytest.mark.parametrize("vendor", SESSIONS)
def test_the_file_loads(vendor: str, here: Path) -> None:
    make_paths(here)
    assert main(["init", vendor]) == 0
    config = load(here / "session.toml")
    assert config.acquisition.source == ("simulate" if vendor == "simulate" else "watch")


@pytest.mark.parametrize("vendor", SESSIONS)
def test_the_file_loads_with_what_is_commented_out_too(vendor: str, here: Path) -> None:
    make_paths(here)
    file = here / "session.toml"
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", SESSIONS[vendor], flags=re.MULTILINE), encoding="utf-8")
    config = load(file)
    assert (config.acquisition.series == "bold") == (vendor != "simulate")


@pytest.mark.parametrize("vendor", SCANNERS)
def test_check_names_the_paths_that_are_not_there_yet_and_nothing_else(vendor: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", vendor, "mine.toml"])
    capsys.readouterr()
    with pytest.raises(ConfigError) as raised:
        load(here / "mine.toml")
    wanted = [
        *(["mine.toml [acquisition] folder: expected an existing folder, got"] if vendor != "philips" else []),
        "mine.toml [decoder] folder: expected an existing folder, got",
        "mine.toml [evolution] pca: expected an existing file, got",
        "mine.toml [generator] unclip_model_path: expected an existing folder, got",
        "mine.toml [bridge] keys: expected an existing folder, got",
    ]
    assert len(raised.value.mistakes) == len(wanted)
    assert all(mistake.startswith(beginning) for mistake, beginning in zip(raised.value.mistakes, wanted, strict=True))
    assert run.main(["--check", "mine.toml", "--json"]) == 1
    shown = capsys.readouterr().out
    assert all(beginning in shown for beginning in wanted)


@pytest.mark.parametrize("vendor", SCANNERS)
def test_only_what_differs_or_has_to_be_looked_at_is_in_the_file(vendor: str) -> None:
    text = SESSIONS[vendor]
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDEST
    defaults = asdict(Config())
    kept = {("session", "session"), ("acquisition", "port"), ("acquisition", "ae_title"), ("evolution", "population")}
    same = {
        (section, key) for section, table in tomllib.loads(text).items() for key, value in table.items() if value == defaults[section][key]
    }
    assert same <= kept
    assert re.search(r"^tr_s = .* # SET", text, re.MULTILINE)


def test_the_simulated_session_is_a_default_one(here: Path) -> None:
    config = build(tomllib.loads(SESSIONS["simulate"]))
    assert config == Config()  # which sessions are run with in the tests of the pipeline


@pytest.mark.parametrize("vendor", SESSIONS)
def test_nothing_is_overwritten(vendor: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "session.toml").write_text("mine")
    assert main(["init", vendor]) == 2
    assert capsys.readouterr() == (
        "",
        "rtevo: session.toml: expected no such file, because rtevo overwrites nothing: choose another name\n",
    )
    assert (here / "session.toml").read_text() == "mine"


def test_a_link_to_nowhere_is_not_followed(here: Path) -> None:
    (here / "session.toml").symlink_to(here / "elsewhere")
    assert main(["init", "ge"]) == 2
    assert not (here / "elsewhere").exists()


def test_a_folder_that_is_not_there_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "ge", "nowhere/session.toml"]) == 2
    assert capsys.readouterr().err == "rtevo: nowhere/session.toml: No such file or directory\n"


@pytest.mark.parametrize("vendor", SESSIONS)
def test_what_to_do_next_is_said_in_commands_that_there_are(vendor: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", vendor, "mine.toml"]) == 0
    said = capsys.readouterr().out
    assert ("marked SET" in said) == (vendor != "simulate")
    for step, words in NEXT[vendor]:
        assert re.search(rf"^  rtevo {re.escape(step.format(file='mine.toml'))} +{re.escape(words)}$", said, re.MULTILINE)
        name, *rest = shlex.split(step)
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text = capsys.readouterr().out
        assert [option for option in rest if option.startswith("--") and option not in text] == []


@pytest.mark.parametrize("call", sorted({c for text in SESSIONS.values() for c in re.findall(r"`rtevo ([^`]+)`", text)}))
def test_commands_in_the_files_are_commands_that_there_are(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = shlex.split(call)
    subcommand = rest[:1] if name in ("bridge", "decode", "evolve", "generate", "latent") else []
    with pytest.raises(SystemExit) as left:
        main([name, *subcommand, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert [option for option in rest if option.startswith("--") and option not in text] == []
