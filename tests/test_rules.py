"""Rules that hold in every source: who may know the log's lines, what turns session time into seconds, what decides nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = [p for top in ("rtevo", "presenter", "build", "bench", "tests") for p in sorted((REPOSITORY / top).rglob("*.py"))]
PROGRAMS = [p for p in SOURCES if p.relative_to(REPOSITORY).parts[0] in ("rtevo", "presenter")]
TABLES = ("trials.tsv", "motion.tsv")
READERS = {"DictReader", "reader", "read_csv", "read_table", "loadtxt", "genfromtxt"}
WORDS = {"text", "note", "notes", "reason", "words", "mistake", "error", "problem"}  # what holds sentences for people is called so
ASKED_OF_WORDS = {"startswith", "endswith", "find", "index", "count", "match", "search", "fullmatch"}
ABOUT_WORDS = {
    "rtevo/record/log.py: note.text.startswith": "logs of 0.1 hold kinds of notes in their words only: put right where they are read",
    "rtevo/record/log.py: 'has taken over' in note.text": "the same",
    "rtevo/record/log.py: 'started anew' in note.text": "the same",
    "rtevo/run.py: text == 'max'": "an option's value",
    "rtevo/place/transforms.py: 'nxforms' in text": "the text of a file, whose format it tells",
}


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(source(path))


def is_type_key(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == "type"


def test_only_the_logs_module_knows_that_a_line_has_a_type() -> None:
    others = [path for path in SOURCES if '"type"]' in source(path) and not relative(path).startswith("rtevo/record/")]
    assert {relative(path) for path in others if any(map(is_type_key, ast.walk(tree(path))))} == set()


def test_no_table_of_ours_is_read_back() -> None:
    """Nobody who reads tables names ours: they are written, and copied."""
    for path in (path for path in PROGRAMS if any(name in source(path) for name in TABLES)):
        code = tree(path)
        readers = {n.attr for n in ast.walk(code) if isinstance(n, ast.Attribute)} & READERS
        named = {n.value for n in ast.walk(code) if isinstance(n, ast.Constant)} & set(TABLES)
        assert not (readers and named), f"{relative(path)} reads {named} by {readers}"


def subtractions(code: ast.AST) -> Iterator[str]:
    for node in ast.walk(code):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and "trigger_ns" in ast.unparse(node.right):
            yield ast.unparse(node)


def test_one_function_turns_session_time_into_seconds() -> None:
    found = {relative(path): list(subtractions(tree(path))) for path in PROGRAMS if "trigger_ns" in source(path)}
    assert {name: own for name, own in found.items() if own} == {"rtevo/records.py": ["int(t_ns) - self.trigger_ns"]}


def name_of(node: ast.AST) -> str:
    """Name of what is asked: of ``str(error)`` the error, of ``event.text`` the text."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args:
        return name_of(node.args[0])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("lower", "strip", "casefold", "upper"):
        return name_of(node.func.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def holds_words(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != ""


def decisions_on_words(code: ast.AST) -> Iterator[str]:
    """Comparisons of a message's or an error's words with words."""
    for node in ast.walk(code):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(holds_words, sides)) and any(name_of(side) in WORDS for side in sides):
                yield ast.unparse(node)
        asked = node.func if isinstance(node, ast.Call) else None
        if isinstance(asked, ast.Attribute) and asked.attr in ASKED_OF_WORDS and name_of(asked.value) in WORDS:
            yield ast.unparse(asked)


def test_nothing_is_decided_by_the_words_of_a_message() -> None:
    found = {f"{relative(path)}: {decision}" for path in PROGRAMS for decision in decisions_on_words(tree(path))}
    assert found == set(ABOUT_WORDS)


def test_the_rule_about_words_finds_what_it_is_about() -> None:
    for code in ("'busy' in str(error)", "event.text.startswith('presenter ready')", "text == 'gone'", "'x' not in note.text.lower()"):
        assert list(decisions_on_words(ast.parse(code))), code
    for code in ("isinstance(error, BusyError)", "event.kind == EventKind.READY", "reason == RESTART", "text == ''", "name == 'x'"):
        assert not list(decisions_on_words(ast.parse(code))), code
