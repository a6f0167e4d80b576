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


MOST_LINES, MOST_IN_A_FUNCTION = 500, 60  # of a module; of a function, its docstring left out
LONG_MODULES = {  # and why
    "rtevo/bridge/bridge": "the one state machine of the link: what a message means depends on all of it",
    "rtevo/records": "a list: every shape, dtype and unit that crosses a process",
    "rtevo/record/kinds": "a list: the log's schema",
    "rtevo/ingest/assembly": "one part's numbers decide about all volumes that are not passed on: numbering and building are one state",
}
LONG_FUNCTIONS = {
    "rtevo/run.parser": "a list: every option of the command line and what it says of itself",
}


def functions_of(path: Path) -> dict[str, int]:
    """Lines of each function of a file, its docstring left out."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            name = f"{relative(path)}.{node.name}"
            found[name] = max(found.get(name, 0), node.end_lineno - node.lineno + 1 - docstring)
    return found


def test_exceptions_to_500_lines_a_module_and_60_a_function_are_listed_with_a_reason() -> None:
    modules = {relative(p) for p in SOURCES if len(p.read_text(encoding="utf-8").splitlines()) > MOST_LINES}
    functions = {name for p in SOURCES for name, lines in functions_of(p).items() if lines > MOST_IN_A_FUNCTION}
    assert modules == set(LONG_MODULES)
    assert functions == set(LONG_FUNCTIONS)
