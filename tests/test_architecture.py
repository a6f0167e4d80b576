"""ARCHITECTURE.md's own table, enforced: who may import whom, and who alone may import what."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `(\w+)` \| [^|]* \| ([\w, ]*) \|$", re.MULTILINE)
ALLOWED = {
    module: set(filter(None, allowed.replace(" ", "").split(",")))
    for module, allowed in ROW.findall((REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8"))
}
ONLY_IN = {
    "torch": {"rtevo/generate", "build", "bench", "tests"},
    "diffusers": {"rtevo/generate", "build", "bench", "tests"},
    "psychopy": {"presenter", "tests"},
    "zmq": {"rtevo/bridge", "rtevo/ingest", "rtevo/simulate", "presenter", "bench", "tests"},
}
MODULES = {p.stem for p in (REPOSITORY / "rtevo").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"}
SOURCES = [p for top in ("rtevo", "presenter", "build", "bench") for p in sorted((REPOSITORY / top).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every dotted name that a file imports, wherever in it, except for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).with_suffix("").as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_modules_import_only_what_the_table_allows(path: Path) -> None:
    top, module, *rest = [*relative(path).split("/")[:3], ""]
    found = {name.split(".")[1] for name in imports(path) if name.startswith("rtevo.")} & MODULES
    found |= {"presenter"} & {name.split(".")[0] for name in imports(path)}
    if top == "presenter":
        assert found <= {"wire", "presenter"}
    elif top == "rtevo" and module != "__init__" and "__main__" not in rest:
        assert found <= ALLOWED[module] | {module}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    for library, places in ONLY_IN.items():
        if any(name == library or name.startswith(library + ".") for name in imports(path)):
            assert any(relative(path) == p or relative(path).startswith(p + "/") for p in places), f"{library} in {relative(path)}"


def test_the_table_covers_every_module() -> None:
    assert set(ALLOWED) == MODULES


def test_no_two_modules_import_each_other() -> None:
    graphlib.TopologicalSorter({module: allowed & MODULES for module, allowed in ALLOWED.items()}).prepare()  # raises CycleError


def test_modules_stay_short() -> None:
    lengths = {relative(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {name: n for name, n in lengths.items() if n > 700} == {}
