"""Reading, checking and writing of session files; see :mod:`rtevo.config`."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomlkit
import tomllib

from rtevo.config.keys import LABEL_RULE, LONGEST_LABEL, suggested_label
from rtevo.config.rules import is_path, paths, together
from rtevo.config.sections import Config
from rtevo.errors import ConfigError, DataError
from rtevo.outside import shown

__all__ = ["absolute", "build", "choices", "dump", "example", "load", "overrides_of", "recorded", "section"]

MOST_RUNS = 1_000_000
SECTIONS: dict[str, type] = {name: kind for name, kind in get_type_hints(Config).items() if name in {f.name for f in fields(Config)}}


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _convert(value: Any, kind: Any) -> Any:
    """Return `value` as the type of its key, or raise TypeError with the expected type."""
    if any(isinstance(number, int) and abs(number) >= 1 << 63 for number in (value if isinstance(value, (list, tuple)) else [value])):
        raise TypeError("a number of at most 19 digits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind == tuple[float, ...]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
            return tuple(float(v) for v in value)
        raise TypeError("a list of numbers")
    if kind == tuple[int, ...]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            return tuple(value)
        raise TypeError("a list of whole numbers")
    if kind == tuple[str, ...]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise TypeError("a list of texts")
    if isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    raise TypeError({float: "a number", int: "a whole number", str: "a text", bool: "true or false"}[kind])


def _value(where: str, spec: Field[Any], kind: Any, value: Any, mistakes: list[str]) -> Any:
    """Return one checked value; for a mistake, record it and return the default."""
    rule, check = spec.metadata["rule"], spec.metadata["check"]
    try:
        value = _convert(value, kind)
    except TypeError as expected:
        mistakes.append(f"{where}: expected {expected}, got {value!r}")
        return spec.default
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers) or (check is not None and not check(value)):
        near = suggested_label(value) if rule == LABEL_RULE else ""
        mistakes.append(f"{where}: expected {rule or 'a number'}, got {value!r}" + (f"; did you mean {near!r}?" if near else ""))
        return spec.default
    return value


def _renamed(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables with today's names and sections for keys that had others in earlier versions; unknown keys are unchanged."""
    now = {_once(name, spec): (name, spec.name) for name, kind in SECTIONS.items() for spec in fields(kind) if spec.metadata["once"]}
    found = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tables.items()}
    for name, table in tables.items():
        for key, value in table.items() if isinstance(table, Mapping) else ():
            section, new = now.get((name, key), (name, key))
            own = found.setdefault(section, {})
            if (section, new) != (name, key) and isinstance(own, dict) and new not in own:
                own[new] = value
                del found[name][key]
    return found


def _once(section: str, spec: Field[Any]) -> tuple[str, str]:
    """Return section and name that a key had in earlier versions."""
    before, _, name = str(spec.metadata["once"]).rpartition(".")
    return before or section, name


def recorded(tables: Mapping[str, Any], origin: str) -> dict[str, dict[str, Any]]:
    """Return a recorded session's tables with today's names, after a check of the values that become file names.

    Other values are unchanged, even if today's rules are stricter, so that a session of an earlier version can still be read.

    Raises
    ------
    DataError
        A section is not a table, or participant, session or run would lead to another folder.
    """
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise DataError(f"{origin}: [{name}]: expected a section, got {shown(repr(table))}")
    found = _renamed(tables)
    session = found.get("session", {})
    for name in ("participant", "session"):
        value = session.get(name, "x")
        if not isinstance(value, str) or not value.isalnum() or len(value) > LONGEST_LABEL:
            raise DataError(f"{origin}: [session] {name}: expected {LABEL_RULE}, at most {LONGEST_LABEL}, got {shown(repr(value))}")
    number = session.get("run", 1)
    if not isinstance(number, int) or not 0 <= number < MOST_RUNS:
        raise DataError(f"{origin}: [session] run: expected a number below {MOST_RUNS}, got {shown(repr(number))}")
    named = found.get("decoder", {}).get("name", "")
    if not isinstance(named, str) or os.path.basename(named) != named:
        raise DataError(f"{origin}: [decoder] name: expected the name of a map, got {shown(repr(named))}")
    return found


def build(tables: Mapping[str, Any], origin: str = "options", base: Path | None = None) -> Config:
    """Return a configuration from nested tables.

    Parameters
    ----------
    tables : mapping of section name to mapping of key to value
    origin : str
        Name of the file, for messages.
    base : Path, optional
        Folder of relative paths; None: the current one.

    Raises
    ------
    ConfigError
        With all mistakes: unknown sections and keys, types, rules, missing folders.
    """
    mistakes: list[str] = []
    sections: dict[str, Any] = {}
    tables = _renamed(tables)
    for name in tables:
        if name not in SECTIONS:
            mistakes.append(f"{origin} [{name}]: unknown section{_hint(name, list(SECTIONS))}")
    for name, kind in SECTIONS.items():
        sections[name] = section(kind, tables.get(name, {}), f"{origin} [{name}]", mistakes)
    config = Config(**sections)
    mistakes += together(config, origin, base or Path())
    if mistakes:
        raise ConfigError(mistakes)
    return config


def section(kind: type, table: Any, where: str, mistakes: list[str]) -> Any:
    """Return one section from its table.

    Parameters
    ----------
    kind : type
        Frozen dataclass whose fields are keys (`rtevo.config.keys.key`).
    table : mapping of key to value
    where : str
        File and section, for messages.
    mistakes : list of str
        Mistakes are added to it; the key then has its default.
    """
    if not isinstance(table, Mapping):
        mistakes.append(f"{where}: expected a section, got {table!r}")
        table = {}
    types, specs = get_type_hints(kind), {f.name: f for f in fields(kind)}
    values = {}
    for key, value in table.items():
        if key not in specs:
            mistakes.append(f"{where} {key}: unknown key{_hint(key, list(specs))}")
        else:
            values[key] = _value(f"{where} {key}", specs[key], types[key], value, mistakes)
    return kind(**values)


def load(path: Path | None, overrides: Mapping[tuple[str, str], Any] | None = None) -> Config:
    """Read a session file, and apply the command line's options.

    Parameters
    ----------
    path : Path or None
        TOML file; None for an all-default session. Its relative paths start from its folder.
    overrides : mapping of (section, key) to value, optional
        Options; their relative paths start from the current folder.

    Raises
    ------
    ConfigError
        With every mistake found.
    """
    tables = {} if path is None else _read(path)
    for (section, key), value in (overrides or {}).items():
        table = tables.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = value
    return build(tables, origin=path.name if path else "options")


def overrides_of(path: Path, checked: bool = True) -> dict[tuple[str, str], Any]:
    """Return the keys that a session file sets, as overrides for another file.

    Parameters
    ----------
    path : Path
    checked : bool
        Check that it is a whole session file; False: it is a part of one, and unknown sections are left out.

    Raises
    ------
    ConfigError
        With all mistakes in the file.
    """
    tables = _read(path)
    if checked:
        build(tables, origin=path.name)
    return {(name, key): value for name, own in tables.items() if isinstance(own, dict) for key, value in own.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # also bad Unicode, and arrays that are too deep
        raise ConfigError(f"{path}: not valid TOML: {shown(error)}") from None
    tables = _renamed(tables)
    for name, table in tables.items():
        if name not in SECTIONS or not isinstance(table, dict):
            continue
        for spec in fields(SECTIONS[name]):
            value = table.get(spec.name)
            if is_path(spec, value):
                table[spec.name] = str(path.parent / Path(str(value)).expanduser())
            elif isinstance(value, list) and spec.metadata["path"]:
                table[spec.name] = [str(path.parent / Path(each).expanduser()) if is_path(spec, each) else each for each in value]
    return tables


def absolute(config: Config) -> Config:
    """Return the same configuration with absolute paths."""
    changed: dict[str, dict[str, Any]] = {}
    for section, spec, value in paths(config):
        found, own = str(Path(value).resolve()), changed.setdefault(section, {})
        own[spec.name] = (*own.get(spec.name, ()), found) if isinstance(spec.default, tuple) else found
    return replace(config, **{section: replace(getattr(config, section), **values) for section, values in changed.items()})


def dump(config: Config, like: str = "") -> str:
    """Write a configuration as TOML that :func:`load` reads back to an equal one.

    Parameters
    ----------
    config : Config
    like : str
        A session file whose comments and order are kept.
    """
    wanted = {name: {key: list(v) if isinstance(v, tuple) else v for key, v in table.items()} for name, table in asdict(config).items()}
    try:
        document = tomlkit.parse(like)
        for name, values in wanted.items():
            if name not in document:
                document.add(tomlkit.nl())
                document.add(name, tomlkit.table())
            table: Any = document[name]
            for spec in fields(SECTIONS[name]):
                before, once = _once(name, spec)
                if before in document:
                    document[before].pop(once, None)
            missing = {key: value for key, value in values.items() if key not in table}
            if table and missing:
                table.add(tomlkit.comment("not in the file: defaults, and options"))
            for key, value in values.items():
                if key in missing or table[key] != value:
                    table[key] = value
        text = tomlkit.dumps(document).lstrip("\n")
        if tomllib.loads(text) == wanted:
            return text
    except (ValueError, TypeError, KeyError, AttributeError):  # a file of unusual form loses its comments, not its values
        pass
    return dump(config)


def example() -> str:
    """Return the commented example session file."""
    lines = ["# An rtevo session. Every key is optional and shown with its default; unknown keys are errors."]
    lines += ["# Paths are relative to this file."]
    for name, kind in SECTIONS.items():
        lines += ["", f"[{name}]  # {(kind.__doc__ or '').rstrip('.')}"]
        for spec in fields(kind):
            notes = [spec.metadata["rule"], spec.metadata["once"] and f"called {spec.metadata['once']} before 0.2"]
            value = list(spec.default) if isinstance(spec.default, tuple) else spec.default
            lines.append(f"# {spec.metadata['text']}" + "".join(f" ({note})" for note in notes if note))
            lines.append(f"{spec.name} = {tomlkit.item(value).as_string()}")
    return "\n".join(lines) + "\n"


def choices(section: str, key: str) -> tuple[str, ...]:
    """Return all possible values of a key."""
    return next(spec.metadata["choices"] for spec in fields(SECTIONS[section]) if spec.name == key)
