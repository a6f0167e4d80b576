"""Names of keys, as PsychoPy's keyboards deliver them."""

from __future__ import annotations

import difflib
import string

__all__ = ["KEY_NAMES", "key_mistake", "key_suggestion", "plain_key"]

_SIGNS = {
    " ": "space", "-": "minus", "=": "equal", ",": "comma", ".": "period", "/": "slash", ";": "semicolon", "'": "apostrophe",
    "[": "bracketleft", "]": "bracketright", "\\": "backslash", "`": "quoteleft", "\n": "return", "\t": "tab", "<": "less",
    "!": "1", "@": "2", "#": "3", "$": "4", "%": "5", "^": "6", "&": "7", "*": "8", "(": "9", ")": "0",
    "_": "minus", "+": "equal", ":": "semicolon", '"': "apostrophe", "{": "bracketleft", "}": "bracketright", "|": "backslash",
    "~": "quoteleft", ">": "period", "?": "slash",
}  # fmt: skip
"""Keys that type punctuation on a US keyboard; with Shift the key is the same."""

_ALIASES = {
    "enter": "return", "esc": "escape", "spacebar": "space", "blank": "space", "ctrl": "lctrl", "control": "lctrl", "shift": "lshift",
    "alt": "lalt", "pgup": "pageup", "pgdn": "pagedown", "page_up": "pageup", "page_down": "pagedown", "del": "delete", "ins": "insert",
    "arrowleft": "left", "arrowright": "right", "arrowup": "up", "arrowdown": "down", "equals": "equal", "equal_sign": "equal",
    "dash": "minus", "hyphen": "minus", "dot": "period", "quote": "apostrophe", "backtick": "quoteleft", "grave": "quoteleft",
    "kp_enter": "num_enter", "kp_add": "num_add", "plus": "equal",
}  # fmt: skip

KEY_NAMES = frozenset(
    [
        *string.ascii_lowercase, *string.digits, *(f"f{k}" for k in range(1, 20)), *_SIGNS.values(),
        "escape", "backspace", "tab", "return", "capslock", "scrolllock", "numlock", "pause", "insert", "delete", "home", "end", "pageup",
        "pagedown", "left", "right", "up", "down", "menu", "lshift", "rshift", "lctrl", "rctrl", "lalt", "ralt", "loption", "roption",
        "lcommand", "rcommand", "lwindows", "rwindows", "lmeta", "rmeta", "function", "pound", "num_add", "num_subtract", "num_multiply",
        "num_divide", "num_decimal", "num_enter", "num_equal",
    ]
)  # fmt: skip
"""Every name that one of PsychoPy's keyboards (Psychtoolbox or pyglet; Windows, macOS or Linux) delivers."""


def plain_key(name: str) -> str:
    """Return the one name of a key that keyboards name differently: the number pad's digits are digits, `enter` is `return`."""
    if name.startswith("num_") and len(name) == 5 and name[4].isdigit():
        return name[4:]
    return {"enter": "return", "grave": "quoteleft"}.get(name, name)


def key_suggestion(name: str, known: frozenset[str] = KEY_NAMES) -> str:
    """Return the name that was probably meant; empty if none is near."""
    word = name.strip().lower() or name[:1]
    tail = word[-1:]
    pad = word[:-1].rstrip("_ ") in ("num", "kp", "numpad", "keypad", "digit", "key")
    for meant in (word, _SIGNS.get(word, ""), _ALIASES.get(word, ""), tail if pad and tail.isdigit() else ""):
        if meant in known:
            return meant
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.7)), "")


def key_mistake(name: str, known: frozenset[str] = KEY_NAMES) -> str:
    """Return a sentence if no key has this name, with the nearest name; empty if a key has it.

    Parameters
    ----------
    name : str
        As in the session file.
    known : frozenset of str
        Names that can be delivered.
    """
    if name in known:
        return ""
    meant = key_suggestion(name, known)
    return f"expected the name of a key, got {name!r}, which is no key's name" + (f"; did you mean {meant!r}?" if meant else "")
