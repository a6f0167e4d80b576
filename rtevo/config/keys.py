"""Description of one key of a session file: its default, its comment, the rule for its value, and whether it is a path."""

from __future__ import annotations

import ipaddress
import unicodedata
from collections.abc import Callable
from dataclasses import field
from typing import Any

__all__ = [
    "LABEL_RULE",
    "LONGEST_LABEL",
    "MOST_IMAGES",
    "above",
    "at_least",
    "is_address",
    "is_label",
    "is_peer",
    "is_title",
    "key",
    "one_of",
    "suggested_label",
]

Check = Callable[[Any], bool]
MOST_IMAGES = 100_000  # of a session
LONGEST_LABEL = 64  # characters: labels become names of files


def key(
    default: Any, text: str, rule: str = "", check: Check | None = None, choices: tuple[str, ...] = (), path: str = "", once: str = ""
) -> Any:
    """Describe one key.

    Parameters
    ----------
    default
    text : str
        Comment of the key in the example file.
    rule : str
        Rule for the value, in words.
    check : callable, optional
        Returns whether a value follows the rule.
    choices : tuple of str
        All possible values.
    path : str
        Required object at the value's path: "file", "folder", "file or folder", or "new" (nothing yet). Empty: the value is not a path.
    once : str
        Name of the key in earlier versions, as SECTION.KEY if it was in another section; files with it can still be read.
    """
    return field(default=default, metadata={"text": text, "rule": rule, "check": check, "choices": choices, "path": path, "once": once})


def above(limit: float) -> tuple[str, Check]:
    return f"> {limit:g}", lambda x: x > limit


def at_least(limit: float) -> tuple[str, Check]:
    return f">= {limit:g}", lambda x: x >= limit


def one_of(*names: str) -> dict[str, Any]:
    """The rule of a key with few values."""
    return {"rule": "one of " + ", ".join(names), "check": lambda x: x in names, "choices": names}


def is_label(x: str) -> bool:
    return x.isascii() and x.isalnum()


def suggested_label(text: str) -> str:
    """Return the BIDS label (ASCII letters and digits) nearest to a text; may be empty."""
    text = text.removeprefix("sub-").removeprefix("ses-")
    for letter, written in (("ä", "ae"), ("ö", "oe"), ("ü", "ue"), ("ß", "ss"), ("ø", "oe"), ("å", "aa"), ("æ", "ae"), ("ł", "l")):
        text = text.replace(letter, written).replace(letter.upper(), written.capitalize())
    return "".join(c for c in unicodedata.normalize("NFKD", text) if is_label(c))


LABEL_RULE = "letters a to z and digits"


def is_title(x: str) -> bool:
    return 0 < len(x.strip()) <= 16 and x.isascii() and x.isprintable() and "\\" not in x


def is_address(x: str) -> bool:
    try:
        return bool(ipaddress.ip_address(x))
    except ValueError:
        return False


def is_peer(x: str) -> bool:
    title, at, address = x.partition("@")
    return (is_title(title) if title else bool(at)) and (is_address(address) if at else True)
