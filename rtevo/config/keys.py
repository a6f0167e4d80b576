"""What one key of a session file is: its default, its comment, the rule that its value must follow, and whether it is a path."""

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
MOST_IMAGES = 100_000  # of a session; nobody looks at more
LONGEST_LABEL = 64  # characters: labels become names of files


def key(
    default: Any, text: str, rule: str = "", check: Check | None = None, choices: tuple[str, ...] = (), path: str = "", once: str = ""
) -> Any:
    """Describe one key.

    Parameters
    ----------
    default
    text : str
        Its comment in the example file.
    rule : str
        What its value must follow, in words.
    check : callable, optional
        Whether a value does.
    choices : tuple of str
        All values there are.
    path : str
        What has to be at the path that its value is: "file", "folder", "file or folder", or "new" (nothing yet). Empty: no path.
    once : str
        Name that the key had in earlier versions, as SECTION.KEY where it was in another section; files with it are read.
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
    """Give the BIDS label (ASCII letters and digits) that is nearest to a text; may be empty."""
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
