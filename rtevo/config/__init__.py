"""One TOML session file -> frozen dataclasses, all mistakes reported together.

Every key has a default, so that an empty file is a valid (simulated) session. :func:`example` writes the commented example file from
the same table that :func:`load` checks against, so that the two cannot drift apart.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
from collections.abc import Mapping
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomllib

from rtevo.config.sections import (
    LABEL_RULE,
    LONGEST_LABEL,
    MOST_IMAGES,
    Acquisition,
    Config,
    Console,
    Generator,
    suggested_label,
)
from rtevo.errors import ConfigError
from rtevo.wire import PresentationSettings, WireError, is_loopback

__all__ = [
    "Config",
    "Console",
    "Generator",
    "absolute",
    "build",
    "dump",
    "example",
    "load",
    "overrides_of",
    "presentation_settings",
    "presenter_is_outside",
    "suggested_label",
]


def presenter_is_outside(config: Config) -> bool:
    """Whether the presenter is started by somebody else: on the stimulus PC, or in a rehearsal across two computers."""
    return config.acquisition.source == "watch" or bool(config.simulation.participant)


_SECTIONS: dict[str, type] = {name: kind for name, kind in get_type_hints(Config).items() if name in {f.name for f in fields(Config)}}


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _convert(value: Any, kind: Any) -> Any:
    """Give `value` as the type of its key, or raise TypeError with what was expected."""
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
    """Check one value; on a mistake, note it and give the default."""
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


def build(tables: Mapping[str, Any], origin: str = "options", base: Path | None = None) -> Config:
    """Make a configuration from nested tables.

    Parameters
    ----------
    tables : mapping of section name to mapping of key to value
    origin : str
        Name of the file, for messages.
    base : Path, optional
        Folder that relative paths are taken from; the current one if None.

    Raises
    ------
    ConfigError
        With every mistake found: unknown sections and keys, types, rules, missing folders.
    """
    mistakes: list[str] = []
    sections: dict[str, Any] = {}
    for name in tables:
        if name not in _SECTIONS:
            mistakes.append(f"{origin} [{name}]: unknown section{_hint(name, list(_SECTIONS))}")
    for name, kind in _SECTIONS.items():
        table = tables.get(name, {})
        if not isinstance(table, Mapping):
            mistakes.append(f"{origin} [{name}]: expected a section, got {table!r}")
            table = {}
        types, specs = get_type_hints(kind), {f.name: f for f in fields(kind)}
        values = {}
        for key, value in table.items():
            where = f"{origin} [{name}] {key}"
            if key not in specs:
                mistakes.append(f"{where}: unknown key{_hint(key, list(specs))}")
            else:
                values[key] = _value(where, specs[key], types[key], value, mistakes)
        sections[name] = kind(**values)
    config = Config(**sections)
    mistakes += _together(config, origin, base or Path())
    if mistakes:
        raise ConfigError(mistakes)
    return config


def _together(config: Config, origin: str, base: Path) -> list[str]:
    """Find the mistakes that only show when several keys are seen together, and paths that do not exist."""
    found: list[str] = []
    source, acquisition = config.acquisition.source, config.acquisition
    if not acquisition.folder and (source == "replay" or (source == "watch" and acquisition.delivery == "folder")):
        found.append(f"{origin} [acquisition] folder: expected a folder for source {source!r}, got none")
    if source == "replay" and acquisition.delivery == "push":
        found.append(f"{origin} [acquisition] delivery: expected folder or dicom for source 'replay', got 'push'")
    if source == "watch":
        if acquisition.tr_s == 0:
            found.append(f"{origin} [acquisition] tr_s: expected > 0 seconds for source 'watch', got 0")
        if not config.decoder.folder:
            found.append(f"{origin} [decoder] folder: expected a decoder folder for source 'watch', got none")
        if config.session.speed != 1:
            found.append(f"{origin} [session] speed: expected 1 for source 'watch', got {config.session.speed:g}")
        found += _peers(acquisition, origin)
        if config.simulation.faults:
            found.append(f"{origin} [simulation] faults: expected none for source 'watch', got {config.simulation.faults!r}")
    if config.generator.unclip_model_path and not config.evolution.pca:
        found.append(f"{origin} [evolution] pca: expected the latent space of [generator] unclip_model_path, got none")
    if config.session.condition == "physiology" and (not config.bridge.osc or config.session.speed != 1):
        found.append(f"{origin} [bridge] osc: expected an address for condition 'physiology', and speed 1, got {config.bridge.osc!r}")
    participant = config.simulation.participant
    if participant and not is_loopback(participant) and not config.bridge.keys:
        found.append(f"{origin} [bridge] keys: expected a folder of keys for [simulation] participant {participant!r}, got none")
    try:
        presentation_settings(config)
    except WireError as error:
        found += [f"{origin} [presentation]{mistake.removeprefix('presentation')}" for mistake in error.mistakes]
    if config.generator.px and not config.generator.unclip_model_path:
        found.append(f"{origin} [generator] px: expected 0 for the built-in model, got {config.generator.px}")
    for key in ("participant", "session"):
        if len(label := getattr(config.session, key)) > LONGEST_LABEL:
            found.append(f"{origin} [session] {key}: expected at most {LONGEST_LABEL} characters, got {len(label)}")
    found += _evolution(config, origin)
    for (section, key), kind in _PATHS.items():
        value = getattr(getattr(config, section), key)
        path = base / value
        later = (section, key) == ("acquisition", "folder") and (source == "simulate" or acquisition.delivery != "folder")
        if not kind or later or not _is_path(section, key, value):
            continue
        if not _there(path, kind):
            found.append(f"{origin} [{section}] {key}: expected an existing {kind}, got {value!r}")
    return found


def _there(path: Path, kind: str) -> bool:
    """Whether there is a file or folder of that name."""
    try:
        return (path.is_file() and "file" in kind) or (path.is_dir() and "folder" in kind)
    except OSError:  # the name is too long
        return False


def _evolution(config: Config, origin: str) -> list[str]:
    """Find what does not go together in [evolution]."""
    found, evolution, condition = [], config.evolution, config.session.condition
    for wanted, key in (("yoked", "yoked_to"), ("blinded", "blinding_key")):
        if condition == wanted and not getattr(evolution, key):
            found.append(f"{origin} [evolution] {key}: expected a file for condition {wanted!r}, got none")
    if evolution.stop_gain and evolution.strategy != "surrogate":
        found.append(f"{origin} [evolution] stop_gain: expected 0 for strategy {evolution.strategy!r}, got {evolution.stop_gain:g}")
    if (images := evolution.generations * evolution.population) > MOST_IMAGES:
        found.append(f"{origin} [evolution] generations, population: expected at most {MOST_IMAGES:,} images, got {images:,}")
    if evolution.strategy in ("cma", "sepcma") and min(evolution.population, evolution.latent_size) < 2:
        found.append(f"{origin} [evolution] strategy: {evolution.strategy!r} expects population and latent_size >= 2")
    return found


def presentation_settings(config: Config) -> PresentationSettings:
    """Give what the presenter is told of a session.

    Raises
    ------
    WireError
        With every mistake found.
    """
    told = asdict(config.presentation)
    del told["washout_jitter_s"]
    session, order = config.session, told.pop("rating_order")
    second = (session.run + sum(session.participant.encode())) % 2 == 1
    told["ratings_reversed"] = order == "descending" or (order == "counterbalanced" and second)
    if session.condition != "ratings":
        told["rating_window_s"] = 0.0
    return PresentationSettings(**told, speed=session.speed)


def _peers(acquisition: Acquisition, origin: str) -> list[str]:
    """Who may send from the network has to be said."""
    if acquisition.delivery == "folder":
        return []
    if not acquisition.peers and not ipaddress.ip_address(acquisition.address).is_loopback:
        return [f"{origin} [acquisition] peers: expected at least one where address is {acquisition.address!r}, got none"]
    if acquisition.delivery == "push" and (named := [peer for peer in acquisition.peers if not peer.startswith("@")]):
        return [f"{origin} [acquisition] peers: expected @ADDRESS for delivery 'push', got {named[0]!r}"]
    return []


_PATHS = {  # keys that hold a path, and what has to be there
    ("acquisition", "folder"): "folder",
    ("decoder", "folder"): "folder",
    ("decoder", "placement"): "file",
    ("decoder", "scout"): "file or folder",
    ("generator", "unclip_model_path"): "folder",
    ("generator", "tiny_vae"): "folder",
    ("generator", "engines"): "folder",
    ("evolution", "pca"): "file",
    ("evolution", "avoid"): "file",
    ("evolution", "yoked_to"): "file or folder",
    ("evolution", "blinding_key"): "file",
    ("evolution", "blinding_secret"): "file",
    ("evolution", "resume"): "file or folder",
    ("bridge", "keys"): "folder",
    ("record", "out"): "",
}


def _is_path(section: str, key: str, value: str) -> bool:
    """Whether the value of a key that may hold a path is one."""
    if section == "decoder" and key == "placement":
        return value != "auto"
    return bool(value) and not (key == "scout" and value.isdecimal())


def load(path: Path | None, overrides: Mapping[tuple[str, str], Any] | None = None) -> Config:
    """Read a session file and lay the command line's options over it.

    Parameters
    ----------
    path : Path or None
        TOML file; None for an all-default session. Relative paths in it are taken from its folder.
    overrides : mapping of (section, key) to value, optional
        Relative paths in it are taken from the current folder.

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


def overrides_of(path: Path) -> dict[tuple[str, str], Any]:
    """Give the keys that a session file sets, as overrides of another one.

    Raises
    ------
    ConfigError
        With every mistake found in it.
    """
    tables = _read(path)
    build(tables, origin=path.name)
    return {(section, key): value for section, own in tables.items() for key, value in own.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for section, key in _PATHS:
        table = tables.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str) and _is_path(section, key, table[key]):
            table[key] = str(path.parent / Path(table[key]).expanduser())
    return tables


def absolute(config: Config) -> Config:
    """Give the same configuration with paths that hold wherever its file lies."""
    sections: dict[str, Any] = {section: {} for section, _ in _PATHS}
    for section, key in _PATHS:
        if _is_path(section, key, value := getattr(getattr(config, section), key)):
            sections[section][key] = str(Path(value).resolve())
    return replace(config, **{section: replace(getattr(config, section), **values) for section, values in sections.items()})


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def dump(config: Config, comments: bool = False) -> str:
    """Write a configuration as TOML that :func:`load` reads back to an equal one."""
    lines: list[str] = []
    for section in fields(config):
        part = getattr(config, section.name)
        lines += ["", f"[{section.name}]" + (f"  # {(type(part).__doc__ or '').rstrip('.')}" if comments else "")]
        for spec in fields(part):
            if comments:
                rule = spec.metadata["rule"]
                lines.append(f"# {spec.metadata['text']}" + (f" ({rule})" if rule else ""))
            lines.append(f"{spec.name} = {_toml(getattr(part, spec.name))}")
    return "\n".join(lines[1:]) + "\n"


def example() -> str:
    """Give the commented example session file."""
    head = "# An rtevo session. Every key is optional and shown with its default; unknown keys are errors.\n"
    return head + "# Paths are relative to this file.\n\n" + dump(Config(), comments=True)
