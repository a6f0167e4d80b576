"""The command `rtevo`: every part's own command line behind one name, in one style."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from rtevo import __version__
from rtevo.__main__ import COMMANDS, WAY, main
from rtevo.command import Parser, typed_as

REPOSITORY = Path(__file__).resolve().parents[1]
SUBCOMMANDS = {
    "bridge": ("keys", "test"),
    "decode": ("fit", "score", "place", "import"),
    "evolve": ("plan", "blind"),
    "gate": ("calibrate",),
    "generate": ("get", "check"),
    "latent": ("fit", "import"),
    "study": ("new", "status", "next", "override", "export", "unseal", "report", "plan"),
}
CALLS = [*COMMANDS, *(f"{name} {sub}" for name, subs in SUBCOMMANDS.items() for sub in subs)]


def helped(arguments: list[str], capsys: pytest.CaptureFixture[str], typed: str = "rtevo") -> str:
    """What `--help` of a command prints."""
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"], typed)
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("call", CALLS)
def test_help_names_what_was_typed(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = call.split()
    assert helped(words, capsys).startswith(f"usage: rtevo {call} ")
    assert helped(words, capsys, "python -m rtevo").startswith(f"usage: python -m rtevo {call} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_a_sentence_and_status_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--no-such-option"])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert re.fullmatch(rf"rtevo: .* \(see rtevo {name} --help\)\n", said.err)
    assert said.out == ""


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_commands_list_their_subcommands_in_one_style(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped([name], capsys)
    assert text.startswith(f"usage: rtevo {name} [-h] COMMAND ...\n")
    assert tuple(re.findall(r"^    (\w+)", text, re.MULTILINE)) == SUBCOMMANDS[name]


def test_every_part_that_has_a_command_line_is_a_command() -> None:
    parts = {path.parent.name for path in (REPOSITORY / "rtevo").glob("*/__main__.py")}
    lines = {path.stem for path in (REPOSITORY / "rtevo").glob("*.py") if "sys.exit(main(" in path.read_text(encoding="utf-8")}
    assert set(COMMANDS) == (parts | lines) - {"__main__"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("rtevo de", {"decode"}),
        ("rtevo decode ", {"-h", "--help", *SUBCOMMANDS["decode"]}),
        ("rtevo decode fit --met", {"--method"}),
        ("rtevo run --schedule st", {"steady"}),
        ("rtevo completion ", {"-h", "--help", "bash", "zsh", "fish"}),
    ],
)
def test_a_shell_completes_what_is_typed(typed: str, offered: set[str], tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    subprocess.run([sys.executable, "-m", "rtevo"], check=True, env={**os.environ, **asked}, cwd=REPOSITORY)
    assert {word.strip() for word in answer.read_text().split("\v")} == offered


def test_completion_is_a_script_that_the_shell_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, check=True)


def test_a_parts_exit_status_and_words_are_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", str(tmp_path)]) == 2
    assert "expected the log of a session" in capsys.readouterr().err
    assert main(["run", "--example"]) == 0
    assert capsys.readouterr().out == (REPOSITORY / "session.example.toml").read_text(encoding="utf-8")


def test_alone_it_shows_the_way_of_an_experiment_in_eleven_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert all(line.startswith("rtevo ") for line in lines)


@pytest.mark.parametrize("step", [step for step, _ in WAY])
def test_the_way_names_only_what_there_is(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = shlex.split(step)
    if name in SUBCOMMANDS:
        assert rest[0] in SUBCOMMANDS[name]
    text = helped([name, *rest[: name in SUBCOMMANDS]], capsys)
    assert [option for option in rest if option.startswith("--") and not re.search(rf"{option}\b", text)] == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("decod", "expected a command, got 'decod'; did you mean decode?"),
        ("xyz", f"expected a command, got 'xyz'; known: {', '.join(COMMANDS)}"),
        ("session.toml", "expected a command, got 'session.toml'; for a session: rtevo run session.toml"),
        ("--speed", "expected a command before --speed; for a session: rtevo run --speed ..."),
    ],
)
def test_what_is_no_command_is_said_with_what_may_have_been_meant(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([typed])
    assert left.value.code == 2
    assert capsys.readouterr().err == f"rtevo: {said} (see rtevo --help)\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"rtevo {__version__}\n"


def test_help_imports_no_part() -> None:
    code = (
        "import sys; from rtevo.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in ('numpy', 'rtevo')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    assert said.splitlines()[-1] == str(["rtevo", "rtevo.__main__", "rtevo.command", "rtevo.errors"])


def test_a_process_of_its_own_reads_its_own_arguments() -> None:
    call = [sys.executable, "-m", "rtevo", "run", "--json"]
    found = subprocess.run(call, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (found.returncode, found.stderr) == (2, "rtevo: --json: expected only with --check\n")


def test_the_installed_command_is_this_one() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"rtevo": "rtevo.__main__:main"}


def test_a_module_by_itself_is_called_by_its_name_again_afterwards() -> None:
    with typed_as("rtevo "):
        assert Parser(prog="python -m rtevo.decode").prog == "rtevo decode"
    assert Parser(prog="python -m rtevo.decode").prog == "python -m rtevo.decode"
    assert Parser(prog="bench").prog == "bench"
