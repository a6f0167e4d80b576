"""The pages: links lead somewhere, commands are commands, pages say whom they are for, and each word is the glossary's."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtevo.errors
from rtevo.__main__ import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [*(REPOSITORY / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG", "examples/README")), *DOCS]
BY_TASK = [page for page in DOCS if re.match(r"how-to-|first-session|a-real-experiment|card|index", page.name)]
LONGEST = 80  # words of a paragraph of the pages by task
MOST_WORDS = 700  # of the README, table and commands included
OF_THE_SYSTEM = {".", "cd", "cp", "dask", "datalad", "eval", "git", "jupyter", "mkdir", "pip", "pipx", "rm", "ssh"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCK = {page: FENCE.findall(page.read_text(encoding="utf-8")) for page in PAGES}


def name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if "://" in link or target.startswith("mailto:"):
            continue
        made = path.name == "reference-messages.md"  # of which headings are made
        if not path.exists() or (anchor and path.suffix == ".md" and not made and anchor not in anchors(path)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", [*DOCS, REPOSITORY / "examples/README.md"], ids=name)
def test_a_page_says_at_its_top_whom_it_is_for_and_what_one_has_at_its_end(page: Path) -> None:
    top = page.read_text(encoding="utf-8").split("\n## ")[0]
    found = re.search(r"^\*For [^*]*\*$", top, re.MULTILINE)
    assert found, f"{name(page)}: expected a paragraph below its title: *For WHOM. Afterwards you ...*"
    assert "Afterwards " in found.group()


@pytest.mark.parametrize("page", [*BY_TASK, REPOSITORY / "README.md"], ids=name)
def test_paragraphs_are_short(page: Path) -> None:
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-|>]|\d+\.) )", prose(page))
    assert [paragraph for paragraph in paragraphs if len(paragraph.split()) > LONGEST] == []


def test_the_readme_is_short() -> None:
    assert len(re.sub(r"[|`]|\(\S+\)", " ", (REPOSITORY / "README.md").read_text(encoding="utf-8")).split()) <= MOST_WORDS


# --- commands -----------------------------------------------------------------------------------------------------------------------------


class Parsed(Exception):  # noqa: N818
    """A command line was read without a mistake."""


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read their arguments, and do nothing."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> None:
        parse(self, *arguments, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of a page's blocks."""
    for language, text in BLOCK[page]:
        for line in re.sub(r'"\n(.*?)\n"', '"CODE"', text, flags=re.DOTALL).splitlines() if language == "sh" else ():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def part_of(words: list[str]) -> ModuleType:
    """The command line of `python -m MODULE`."""
    module = words[2] if words[2] in ("rtevo.run", "rtevo.init", "rtevo.completion") else f"{words[2]}.__main__"
    return importlib.import_module(module)


def is_known(words: list[str]) -> bool:
    """Whether a command is one: ours with its arguments, one of the system, or a script of the project with its options."""
    if words[0] == "rtevo" or (words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("rtevo", "presenter")):
        if len(words) == 1:
            return True
        with pytest.raises((Parsed, SystemExit)) as left:
            main(words[1:]) if words[0] == "rtevo" else part_of(words).main(words[3:])
        return left.type is Parsed or left.value.code == 0  # --version
    if words[0] == "make":
        return all(re.search(rf"^{re.escape(target)}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE) for target in words[1:])
    if words[0].endswith("python") and words[1] != "-m":
        return words[1] == "-c" or (REPOSITORY / words[1]).is_file()
    if words[0].endswith("python"):
        path = REPOSITORY / words[2].replace(".", "/")
        return words[2] in ("pip", "venv", "pytest") or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    return words[0] in OF_THE_SYSTEM or words[0].startswith(".release/")


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize("page", [page for page in PAGES if any(language == "sh" for language, _ in BLOCK[page])], ids=name)
def test_every_command_of_a_page_can_be_typed(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [(shlex.join(words), capsys.readouterr().err) for words in commands(page) if not is_known(words)]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_that_are_named_in_a_sentence_are_commands(page: Path) -> None:
    named = re.findall(r"`rtevo ([a-z][\w.-]*)[^`]*`", prose(page))
    assert set(named) - {*COMMANDS, "session.toml"} == set()  # which was a command once


# --- what is made of the sources ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of `build/` can be imported."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "build"))


@pytest.mark.usefixtures("build")
def test_what_pages_ask_for_can_be_made() -> None:
    reference = importlib.import_module("reference")
    asked = {mark for page in DOCS for mark in reference.MARK.findall(page.read_text(encoding="utf-8"))}
    assert asked == set(reference.MADE)
    for mark in sorted(asked - {"errors", "alarms", "commands"}):  # which take longer
        assert len(reference.MADE[mark]().splitlines()) > 10


@pytest.mark.usefixtures("build")
def test_messages_are_found_in_the_sources() -> None:
    sentences = importlib.import_module("reference").sentences()
    assert any("overwrites nothing" in text for text in sentences["DataError"]["init"])
    assert set(sentences) >= {"ConfigError", "DataError", "DecoderError", "ModelError", "StudyError"}


def test_every_class_of_errors_says_what_to_do() -> None:
    assert {kind.__name__ for kind in rtevo.errors.REMEDIES} == {name for name in rtevo.errors.__all__ if name.endswith("Error")}


@pytest.mark.usefixtures("build")
def test_every_diagram_has_been_drawn() -> None:
    wanted = importlib.import_module("diagrams").wanted()
    assert [path for path in wanted if not (REPOSITORY / "docs" / path).exists()] == [], "python build/diagrams.py"
    assert {f"diagrams/{path.name}" for path in (REPOSITORY / "docs" / "diagrams").glob("*.svg")} == set(wanted)


# --- words --------------------------------------------------------------------------------------------------------------------------------


def unwanted() -> dict[str, str]:
    """Words that are not used, and what is said instead: a table of the glossary."""
    text = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| (?!not\b|-)([^|]+?) \| ([^|]+?) \|$", text.split("## Words that are not used")[1], re.MULTILINE))


@pytest.mark.parametrize("page", [*DOCS, REPOSITORY / "README.md", REPOSITORY / "examples/README.md"], ids=name)
def test_a_page_uses_the_words_of_the_glossary(page: Path) -> None:
    text = prose(page).split("## Words that are not used")[0]
    found = {word: better for word, better in unwanted().items() if re.search(rf"\b{re.escape(word)}s?\b", text, re.IGNORECASE)}
    assert found == {}
