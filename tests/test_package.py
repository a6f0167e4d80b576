"""What is installed is all of the program: each package, and each file that it reads."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import tomllib

import rtevo

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
NOT_READ = {".pyc"}


def test_every_module_is_installed() -> None:
    assert SETTINGS["packages"]["find"] == {"include": ["presenter", "rtevo", "rtevo.*"], "namespaces": False}
    folders = {path.parent for top in ("rtevo", "presenter") for path in (REPOSITORY / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_file_that_is_no_module_is_installed() -> None:
    patterns = [f"{package.replace('.', '/')}/{pattern}" for package, each in SETTINGS["package-data"].items() for pattern in each]
    files = [path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "rtevo").rglob("*") if path.is_file()]
    others = [path for path in files if not path.endswith((".py", *NOT_READ))]
    assert [path for path in others if not any(fnmatch(path, pattern) for pattern in patterns)] == []


def test_what_is_cited_is_this_version() -> None:
    assert f"\nversion: {rtevo.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
