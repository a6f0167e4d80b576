"""The pages of the reference that follow from the sources: session file, tables, log, messages, commands.

A page in ``docs/`` names what is to be put in with a comment, ``<!-- made of: trials -->``; :func:`filled` puts it in. Nothing is copied by
hand.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

__all__ = ["MADE", "filled", "sentences"]

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- made of: ([\w-]+) -->")
SLOTS = {  # kinds of records that hold a ring's slot: the function of rtevo.records that says what the fields mean
    "volumes": "volume_dtype",
    "aligned": "aligned_dtype",
    "placements": "placement_dtype",
    "scores": "score_dtype",
    "fitness": "fitness_dtype",
    "latents": "latent_dtype",
    "images": "image_dtype",
    "refused": "image_dtype",
    "events": "event_dtype",
    "message": "message_dtype",
}
NOT_FOR_USERS = ("ValueError", "TypeError", "KeyError", "OSError", "SystemExit")  # mistakes of a program, and of the system
RINGS = ("RingInUse", "RingMissing", "RingMismatch", "RingOverrun", "RingPermission", "RingSpace", "RingUnsupported", "OwnerLost")
_PLACE = re.compile(r"`?\{[^{}]*\}`?")


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |"]
    lines.append("|" + "---|" * lines[0].count(" | ") + "---|")
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


# --- session file and tables --------------------------------------------------------------------------------------------------------------


def session_file() -> str:
    """Return every key of the session file, a table for each section."""
    import tomlkit

    from rtevo.config.file import SECTIONS

    found = []
    for name, kind in SECTIONS.items():
        rows = []
        for spec in fields(kind):
            default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
            notes = [spec.metadata["rule"], spec.metadata["once"] and f"called {spec.metadata['once']} before 0.2"]
            words = spec.metadata["text"] + "".join(f" ({note})" for note in notes if note)
            rows.append((f"`{spec.name}`", f"`{tomlkit.item(default).as_string()}`", words))
        found.append(f"## [{name}]\n\n{(kind.__doc__ or '').strip()}\n\n{table(('key', 'default', 'meaning'), rows)}")
    return "\n\n".join(found)


def _columns(columns: Mapping[str, tuple[str, str]]) -> str:
    return table(("column", "type", "meaning, unit"), ((f"`{name}`", kind, words) for name, (kind, words) in columns.items()))


def trials() -> str:
    """Return the columns of ``trials.tsv``."""
    from rtevo.record.tables import TRIALS

    return _columns(TRIALS)


def motion() -> str:
    """Return the columns of ``motion.tsv``."""
    from rtevo.record.tables import MOTION

    return _columns(MOTION)


def localizer_events() -> str:
    """Return the columns of a localizer's ``events.tsv``."""
    from rtevo.record import EVENTS

    return _columns(EVENTS)


def files() -> str:
    """Return the files of a run's folder."""
    from rtevo.record.files import FILES

    return table(("file", "what it holds"), ((f"`{name}`", words) for name, words in FILES.items()))


def summary() -> str:
    """Return the keys of ``summary.json``."""
    from rtevo.record.files import SUMMARY

    return table(("key", "what it holds"), ((f"`{name}`", words) for name, words in SUMMARY.items()))


# --- the log ------------------------------------------------------------------------------------------------------------------------------


def _slot_words(function: str) -> dict[str, str]:
    """Return what stands beside each field of a ring's slot."""
    import rtevo.records

    source = inspect.getsource(getattr(rtevo.records, function))
    return {name: words for name, words in re.findall(r'\("(\w+)".*?\),  # (.*)$', source, re.MULTILINE)}


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """Return a numpydoc's summary, and what it says of each parameter."""
    head, _, rest = text.partition("Parameters\n")
    words: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines()[1:]:
        if found := re.match(r"([\w, ]+) : (.*)", line):
            names = [name.strip() for name in found.group(1).split(",")]
            words.update(dict.fromkeys(names, ""))
        elif line.startswith("    "):
            words.update({name: f"{words[name]} {line.strip()}".strip() for name in names})
    return head.strip().splitlines()[0], words


def log() -> str:
    """Return the kinds of records that a log holds, with their fields."""
    from rtevo.record.kinds import KINDS, NAMES, Notice, Record

    found = []
    kinds: list[type[Record]] = list(dict.fromkeys([*KINDS.values(), Notice]))
    for kind in kinds:
        name = kind.TYPE or "warning, alarm, operator, failed"
        head, words = _documented(inspect.getdoc(kind) or "")
        slot = SLOTS.get(kind.TYPE or "message")
        words = {**(_slot_words(slot) if slot else {}), **words}
        head = re.sub(r":? see `.*?`", "", head).strip()
        rows = ((f"`{field}`", words.get(field, "")) for field in NAMES[kind])
        found.append(f"### {name}\n\n{head}\n\n{table(('field', 'meaning'), rows)}")
    return "\n\n".join(found)


def events() -> str:
    """Return the kinds of events of the stimulus PC."""
    from rtevo import records

    source = inspect.getsource(records.EventKind)
    rows = re.findall(r"^    (\w+) = (\d+)  # (.*)$", source, re.MULTILINE)
    return table(("number", "kind", "meaning"), ((number, f"`{name}`", words) for name, number, words in rows))


# --- messages -----------------------------------------------------------------------------------------------------------------------------


def _text(node: ast.AST) -> str:
    """Return a sentence of the sources: what is filled in while the program runs becomes ``{name}``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        names = re.findall(r"[A-Za-z_]\w*", ast.unparse(node.value))
        return "{" + (names[-1].strip("_") if names else "...") + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        left, right = _text(node.left), _text(node.right)
        return left if isinstance(node.op, ast.Mod) else f"{left or '{...}'}{right or '{...}'}" if left or right else ""
    return ""


def _sources(*tops: str) -> Iterator[tuple[str, ast.Module]]:
    for top in tops:
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if re.search(r"raise |log\.warning|News\(|alarms", text):  # the others have nothing to say
                yield path.relative_to(REPOSITORY).as_posix(), ast.parse(text)


def _is_sentence(text: str) -> bool:
    return len(re.sub(_PLACE, "", text).split()) >= 3


def sentences() -> dict[str, dict[str, list[str]]]:
    """Return what can be said to a user where something cannot be done: sentences by exception class and by part of the program."""
    found: dict[str, dict[str, list[str]]] = {}
    for path, tree in _sources("rtevo", "presenter"):
        part = path.split("/")[1].removesuffix(".py") if path.startswith("rtevo/") else "presenter"
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                kind = ast.unparse(node.exc.func).split(".")[-1]
                texts = [_text(each) for each in node.exc.args]
                if kind.endswith(("Error", *RINGS)) and kind not in NOT_FOR_USERS:
                    found.setdefault(kind, {}).setdefault(part, []).extend(text for text in texts if _is_sentence(text))
    return {kind: {part: sorted(set(said)) for part, said in parts.items() if said} for kind, parts in found.items()}


def _listed(texts: Iterable[str]) -> str:
    return "\n".join("- " + re.sub(_PLACE, lambda m: f"*{m.group().strip('`{}')}*", cell(text)).replace("<", "&lt;") for text in texts)


def errors() -> str:
    """Return every class of errors, what to do, and the sentences that it can say."""
    import rtevo.errors

    said, found = sentences(), []
    for name in (name for name in rtevo.errors.__all__ if name.endswith("Error")):
        kind = getattr(rtevo.errors, name)
        head = (inspect.getdoc(kind) or "").partition("\n")[0]
        found.append(f"### {name}\n\n{head}\n\n**What to do:** {rtevo.errors.REMEDIES[kind]}")
        found += _by_part(said.pop(name, {}))
    for name, parts in sorted(said.items()):  # classes of one part of the program, each under one of those above
        found += [f"### {name}", *_by_part(parts)]
    return "\n\n".join(found)


def _by_part(parts: Mapping[str, list[str]]) -> list[str]:
    return [f"**{part}**\n\n{_listed(texts)}" for part, texts in parts.items()]


def alarms() -> str:
    """Return what the console and the terminal say while a session runs: alarms first, then warnings of each part."""
    shown: list[str] = []
    warned: dict[str, list[str]] = {}
    for path, tree in _sources("rtevo"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and path in ("rtevo/console/view.py", "rtevo/session/silence.py"):
                shown += _in_function(node) if re.search(r"alarms|_words|take", node.name) else []
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("log.warning") and node.args:
                text = re.sub(r"%\+?[\d.]*[sdfg]", "{...}", _text(node.args[0]))
                if _is_sentence(text):
                    warned.setdefault(path.split("/")[1].removesuffix(".py"), []).append(text)
    lists = [f"### Warnings: {part}\n\n{_listed(sorted(set(texts)))}" for part, texts in sorted(warned.items())]
    return "\n\n".join([f"### Alarms\n\n{_listed(dict.fromkeys(shown))}", *lists])


def _in_function(function: ast.FunctionDef) -> list[str]:
    """Return the longest texts of a function: of nested ones the outer."""
    found: list[str] = []

    def walk(node: ast.AST) -> None:
        text = _text(node)
        if _is_sentence(text):
            found.extend([text] if text[0] not in ",[" else [])
            return
        for child in ast.iter_child_nodes(node):
            walk(child)

    for statement in function.body:
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            walk(statement)
    return found


# --- commands -----------------------------------------------------------------------------------------------------------------------------


def _help(*words: str) -> str:
    from rtevo.__main__ import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


def commands() -> str:
    """Return the help of every command."""
    from rtevo.__main__ import COMMANDS

    before, found = os.environ.get("COLUMNS"), []
    os.environ["COLUMNS"] = "110"  # argparse has no other way to be told how wide its help may be
    try:
        for name in COMMANDS:
            texts = {name: _help(name)}
            if " COMMAND ..." in texts[name]:
                texts |= {f"{name} {sub}": _help(name, sub) for sub in re.findall(r"^    (\w+)  ", texts[name], re.MULTILINE)}
            found += [f"{'###' if ' ' in call else '##'} rtevo {call}\n\n```text\n{text.rstrip()}\n```" for call, text in texts.items()]
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return "\n\n".join(found)


MADE: dict[str, Callable[[], str]] = {
    "session-file": session_file,
    "trials": trials,
    "motion": motion,
    "localizer-events": localizer_events,
    "files": files,
    "summary": summary,
    "log": log,
    "events": events,
    "errors": errors,
    "alarms": alarms,
    "commands": commands,
}
"""What a page can ask for."""


def filled(markdown: str) -> str:
    """Return a page with what its comments ask for."""

    def made(mark: re.Match[str]) -> str:
        if mark.group(1) not in MADE:
            raise ValueError(f"{mark.group()}: expected one of {', '.join(MADE)}")
        return MADE[mark.group(1)]()

    return MARK.sub(made, markdown)
