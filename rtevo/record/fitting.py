"""A line of the log as a record: the check of its fields' types, whoever wrote it, and the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from rtevo.record.kinds import KINDS, NAMES, Notice, Other, Record, floats

__all__ = ["fits", "record_of"]

ARRAYS = ("latent", "embedding", "values")
COUNTED, MOST = ("index", "first_volume", "generation", "candidate"), 1_000_000  # numbers up to which others are counted: a week of volumes
_OF_TYPE: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}
_OF_TYPE |= {f"{name} | None": (*types, type(None)) for name, types in _OF_TYPE.items()}
_TYPES = {
    kind: {f.name: _OF_TYPE[f.type] for f in fields(kind) if isinstance(f.type, str) and f.type in _OF_TYPE}
    for kind in {*KINDS.values(), Other}
}
_HELD = {kind: tuple(f.name for f in fields(kind) if f.name in ARRAYS) for kind in {*KINDS.values(), Other}}
_NEEDED = {
    kind: frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING and f.name != "level")
    for kind in {*KINDS.values(), Other}
}


_TRIAL: dict[str, tuple[type, ...]] = {
    "block": (int,), "place": (int,), "category": (str,), "file": (str,), "image_s": (float, int), "washout_s": (float, int),
    "target": (bool,),
}  # fmt: skip


def _is_schedule(trials: Any) -> bool:
    """Return whether this can be a localizer's schedule: every trial has the required fields."""
    if not isinstance(trials, list):
        return trials is None
    return all(isinstance(trial, dict) and all(type(trial.get(name)) in types for name, types in _TRIAL.items()) for trial in trials)


def fits(found: Mapping[str, Any]) -> bool:
    """Return whether a line's JSON object can be a record: its fields have the types of their kind, and at most 64 bits."""
    name = found.get("type", "")
    if not isinstance(name, str):
        return False
    kind = KINDS.get(name, Other)
    for key, types in _TYPES[kind].items():
        value = found.get(key, types)
        if value is types:
            continue
        if type(value) not in types or (type(value) is int and not -(1 << 63) <= value < 1 << 63):
            return False
        if key in COUNTED and isinstance(value, int) and abs(value) > MOST:
            return False
    if not _is_schedule(found.get("trials")):
        return False
    try:
        for array in _HELD[kind]:
            floats(found.get(array, ""))
    except (TypeError, ValueError):
        return False
    return _NEEDED[kind] <= found.keys()


_KNOWN = {kind: frozenset(names) | {"seq", "clock_ns"} for kind, names in NAMES.items()}


def record_of(found: Mapping[str, Any]) -> Record:
    """Return the record of a line's JSON object.

    Parameters
    ----------
    found : mapping
        With the record's ``type``.
    """
    values = dict(found)
    name = values.pop("type", "")
    kind = KINDS.get(name, Other)
    known, arrays = _KNOWN[kind], _HELD[kind]
    if not known.issuperset(values):
        values["more"] = {key: values.pop(key) for key in list(values) if key not in known}
    for array in arrays:
        if isinstance(values.get(array), str):
            values[array] = floats(values[array])
    if kind is Notice:
        values["level"] = name
    elif kind is Other:
        values["name"] = name
    return kind(**values)
