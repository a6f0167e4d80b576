"""Mistakes at the command line: one clear sentence each, exit status 2, nothing left behind; the same for every command."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rtevo.command import Parser, command
from rtevo.config import build
from rtevo.errors import ConfigError, DataError
from rtevo.session import checks

LONG = "x" * 300
WATCH = '[acquisition]\nsource = "watch"\ntr_s = 2.0\nfolder = "nowhere"\n[decoder]\nfolder = "here"\n'
FILES = {
    "inf.toml": "[presentation]\nbaseline_s = inf\n",
    "list.toml": "[evolution]\nnorm_limits = [0.5, inf]\n",
    "pca.toml": '[evolution]\npca = "picture.png"\n',
    "watch.toml": WATCH,
    "label.toml": f'[session]\nparticipant = "{LONG}"\n',
}
MISTAKES: dict[str, tuple[str, list[str], str]] = {  # what it is: module, arguments, sentence
    "json without check": ("rtevo.run", ["--json"], "--json: expected only with --check"),
    "sample without check": ("rtevo.run", ["--sample", "x"], "--sample: expected only with --check"),
    "wait without check": ("rtevo.run", ["--wait", "3"], "--wait: expected only with --check"),
    "no end of waiting": ("rtevo.run", ["--check", "--wait", "inf"], "argument --wait: expected a number, got 'inf' (see"),
    "no such option": ("rtevo.run", ["--nothing"], "unrecognized arguments: --nothing (see python -m rtevo.run --help)"),
    "infinite number": ("rtevo.run", ["inf.toml"], "inf.toml [presentation] baseline_s: expected >= 0, got inf"),
    "infinite in a list": ("rtevo.run", ["list.toml"], "list.toml [evolution] norm_limits: expected"),
    "no end of generations": (
        "rtevo.run",
        ["--generations", "1000000000"],
        "options [evolution] generations, population: expected at most 100,000 images, got 5,000,000,000",
    ),
    "long folder": ("rtevo.run", ["--out", f"a/b/{LONG}"], f"[record] out: 'a/b/{LONG}' cannot be made: File name too long"),
    "long decoder": ("rtevo.run", ["--decoder", LONG], "options [decoder] folder: expected an existing folder, got"),
    "long file": ("rtevo.run", [LONG], f"{LONG}: cannot be read: File name too long"),
    "long label": ("rtevo.run", ["label.toml"], "label.toml [session] participant: expected at most 64 characters, got 300"),
    "picture as a space": ("rtevo.run", ["pca.toml"], "expected an .npz file of plain arrays, found something else"),
    "missing watched folder": ("rtevo.run", ["watch.toml"], "watch.toml [acquisition] folder: expected an existing folder, got"),
    "long session": ("rtevo.run", ["--resume", LONG], "File name too long"),
    "client elsewhere": ("rtevo.bridge.__main__", ["keys", "keys", "--client", "../x"], "expected a name of at most 64 letters"),
    "no log": ("rtevo.record.__main__", ["here"], "expected the log of a session, found no such file"),
    "unreadable log": ("rtevo.record.__main__", ["odd"], "record.jsonl: Is a directory"),
    "no session": ("rtevo.report.__main__", ["here"], "here: expected the folder of a session"),
    "nothing to export": ("rtevo.export.__main__", ["here", "bids"], "expected the log of a session, found no such file"),
    "infinite minutes": ("rtevo.evolve.__main__", ["plan", "--minutes", "inf"], "argument --minutes: expected a number, got 'inf'"),
    "picture as a model": ("rtevo.latent.__main__", ["import", "picture.png", "--out", "new.npz"], "picture.png: refused"),
    "no run": ("rtevo.realign.__main__", ["nothing.nii", "--out", "aligned"], "nothing.nii"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files to make mistakes with."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "odd" / "record.jsonl").mkdir(parents=True)
    return tmp_path


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(mistake: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, arguments, sentence = MISTAKES[mistake]
    before = listing(place)
    try:
        status = importlib.import_module(module).main(arguments)
    except SystemExit as left:
        status = left.code
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line]
    assert status == 2
    assert sentence in said.err
    assert [line for line in lines if not line.startswith("rtevo: ")] == []
    assert len(lines) <= 2  # where there are two mistakes, or it is said what is being read
    assert said.out == ""
    assert listing(place) == before


def test_one_slice_is_no_sample(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtevo.ingest.FolderSource.poll", lambda self: [])
    with pytest.raises(DataError, match="expected all files of at least one volume of the series, found none"):
        checks.first_volume(place / "here", "1.2.3")


def test_every_command_says_its_mistakes_in_the_same_way() -> None:
    folder = Path(checks.__file__).parents[1]
    for path in [*folder.glob("*/__main__.py"), folder / "run.py", folder / "init.py"]:
        text = path.read_text(encoding="utf-8")
        assert "argparse.ArgumentParser(" not in text, path
        assert re.search(r"\bcommand\(", text), path
        assert 'stderr.write(f"{error}' not in text, path


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (DataError("wrong"), 2, ["rtevo: wrong"]),
        (ConfigError(["one", "two"]), 2, ["rtevo: one", "rtevo: two"]),
        (FileNotFoundError(2, "No such file or directory", "a.nii"), 2, ["rtevo: a.nii: No such file or directory"]),
        (OSError(28, "No space left on device", "a.nii"), 2, ["rtevo: the disk is full (a.nii): make room there"]),
        (KeyboardInterrupt(), 130, ["rtevo: interrupted"]),
    ],
)
def test_whatever_happens_has_its_sentence_and_its_status(
    raised: BaseException, status: int, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise raised

    assert command(work) == status
    assert capsys.readouterr().err.splitlines() == said


def test_nobody_who_reads_on_is_no_mistake() -> None:
    code = "import sys; from rtevo.command import command; sys.exit(command(lambda: [print('x' * 99) for _ in range(9999)] and None))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_parser_says_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        Parser(prog="python -m rtevo.x").parse_args(["--odd"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "rtevo: unrecognized arguments: --odd (see python -m rtevo.x --help)\n"


def test_a_session_may_be_long_and_no_longer() -> None:
    build({"evolution": {"generations": 20_000}})
    with pytest.raises(ConfigError, match="at most 100,000 images"):
        build({"evolution": {"generations": 20_001}})
