"""Checks of messages and settings, and their errors."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["PROTOCOL", "VersionError", "WireError", "fits", "type_mistakes"]

PROTOCOL = 6
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


class WireError(ValueError):
    """A message or a setting breaks the protocol.

    Parameters
    ----------
    mistakes : str or list of str
        The mistakes, one line each.
    """

    def __init__(self, mistakes: str | list[str]) -> None:
        self.mistakes = [mistakes] if isinstance(mistakes, str) else list(mistakes)
        super().__init__("\n".join(self.mistakes))


class VersionError(WireError):
    """The other side speaks another version of the protocol.

    Parameters
    ----------
    found : int
        Version of the other side.
    """

    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__(
            f"the other computer speaks protocol {found}, this computer protocol {PROTOCOL}: install the same version of rtevo on both"
        )


def fits(value: object, kind: str) -> bool:
    """Whether a value is of the type that a field's annotation names."""
    if kind.startswith("tuple["):
        return isinstance(value, tuple) and all(fits(item, kind[6:].split(",")[0]) for item in value)
    if kind == "PresentationSettings":
        return type(value).__name__ == kind  # its fields are checked when it is made
    if isinstance(value, bool) and kind != "bool":
        return False
    if kind == "int" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    return isinstance(value, _TYPES[kind])


def type_mistakes(instance: Any) -> list[str]:
    """Return the fields of a dataclass whose values are not of the annotated type, one line each."""
    name = type(instance).__name__.replace("PresentationSettings", "presentation")
    return [
        f"{name} {field.name}: expected {field.type}, got {getattr(instance, field.name)!r:.80}"
        for field in dataclasses.fields(instance)
        if not fits(getattr(instance, field.name), str(field.type))
    ]
