"""The presenter's command line, and what it needs to be installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from presenter.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]


def test_other_computers_need_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--connect", "tcp://192.0.2.1:5555", "--headless"]) == 1
    assert "a link to another computer needs --key FILE" in capsys.readouterr().err


def test_a_missing_key_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--connect", "tcp://127.0.0.1:5555", "--headless", "--key", str(tmp_path / "none.json")]) == 1
    assert "none.json: expected a key file" in capsys.readouterr().err


def test_an_endpoint_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--connect", "tcp://127.0.0.1:port", "--headless"]) == 1
    assert "expected tcp://HOST:PORT" in capsys.readouterr().err


def test_a_participant_needs_a_headless_presenter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--connect", "tcp://127.0.0.1:5555", "--participant", "ipc:///tmp/nobody"])
    assert "--participant needs --headless" in capsys.readouterr().err


def test_headless_needs_little() -> None:
    script = (
        "import sys, presenter.run; "
        "print(sorted(m for m in sys.modules if m in ('numpy', 'psychopy', 'PIL') or m.startswith('rtevo.') and m.count('.') == 1))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "['rtevo.wire']"


def test_the_stimulus_pc_may_have_python_3_10() -> None:
    newer = {"tomllib", "asyncio.TaskGroup", "enum.StrEnum", "typing.Self", "typing.override", "datetime.UTC", "itertools.batched"}
    for file in [*(REPOSITORY / "presenter").glob("*.py"), *(REPOSITORY / "rtevo/wire").glob("*.py")]:
        tree = ast.parse(file.read_text(), feature_version=(3, 10))
        imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported |= {f"{node.module}.{a.name}" for node in froms for a in node.names}
        assert not imported & newer, file


def test_what_is_installed_alone_is_there_and_enough() -> None:
    """The wheel of ``pip install ./presenter`` holds these folders and asks for these packages."""
    project = tomllib.loads((REPOSITORY / "presenter/pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert sorted(included.values()) == ["presenter", "rtevo/wire"]
    assert all((REPOSITORY / "presenter" / source / "__init__.py").exists() for source in included)
    needed = {re.match(r"\w+", line)[0] for line in project["project"]["dependencies"]}  # type: ignore[index]
    assert needed == {"msgpack", "numpy", "pyzmq"}


def test_imports_of_rtevo_and_psychopy() -> None:
    for file in (REPOSITORY / "presenter").glob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        assert all(name.startswith("rtevo.wire") for name in imported if name.split(".")[0] == "rtevo"), file
        uses = file.name in ("screen.py", "stimuli.py", "keys.py", "pins.py")
        assert uses or not any(name.split(".")[0] == "psychopy" for name in imported), file
