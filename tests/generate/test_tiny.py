"""The cache of the tiny pipeline: whole or absent, whoever builds at once, whatever was left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rtevo.errors import ModelError
from rtevo.generate import describe, tiny_pipeline
from rtevo.generate.tiny import TINY_NAME, cache_folder

ModelFolderMaker = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rtevo"


@pytest.fixture
def build(model_folder: ModelFolderMaker) -> Callable[[Path], None]:
    """Stands in for the making of the weights: seconds become milliseconds."""
    model = model_folder()

    def copy(into: Path) -> None:
        for entry in model.iterdir():
            entry.rename(into / entry.name)

    return copy


def test_where_the_cache_is(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.setenv("HOME", str(tmp_path))
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_folder() == tmp_path / ".cache" / "rtevo"


def test_it_is_built_once_and_said_so(cache: Path, build: Callable[[Path], None]) -> None:
    told: list[str] = []
    first = tiny_pipeline(told.append, build)
    assert first == cache / TINY_NAME
    assert len(told) == 1
    assert tiny_pipeline(told.append, never) == first
    assert len(told) == 1
    assert sorted(entry.name for entry in cache.iterdir()) == [TINY_NAME, f"{TINY_NAME}.lock"]


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        tiny_pipeline(build=fail)
    assert [entry.name for entry in cache.iterdir()] == [f"{TINY_NAME}.lock"]


def test_what_a_killed_build_left_is_swept(cache: Path, build: Callable[[Path], None]) -> None:
    left = cache / f"{TINY_NAME}.abc.tmp"
    left.mkdir(parents=True)
    (left / "half").touch()
    tiny_pipeline(build=build)
    assert not left.exists()


def test_a_damaged_one_is_replaced(cache: Path, build: Callable[[Path], None]) -> None:
    damaged = cache / TINY_NAME
    damaged.mkdir(parents=True)
    (damaged / "model_index.json").write_text("{}")
    assert describe(tiny_pipeline(build=build)).embedding_size == 1024


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME to a folder with room"):
        tiny_pipeline(build=never)


BUILDER = """
import shutil, sys
from pathlib import Path
from rtevo.generate import describe, tiny_pipeline
def build(into):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    shutil.copytree(sys.argv[1], into, dirs_exist_ok=True)
print("ready", flush=True)
sys.stdin.readline()
describe(tiny_pipeline(build=build))
"""


def test_processes_that_ask_at_once_build_once(cache: Path, tmp_path: Path, model_folder: ModelFolderMaker) -> None:
    model, log = model_folder(), tmp_path / "log"
    command = [sys.executable, "-c", BUILDER, str(model), str(log)]
    environment = {"XDG_CACHE_HOME": str(cache.parent), "PYTHONPATH": ":".join(sys.path)}
    started = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    assert log.read_text() == "built\n"


def never(into: Path) -> None:
    raise AssertionError(f"built again: {into}")
