"""One TOML session file -> frozen dataclasses, all mistakes reported together.

Every key has a default, so that an empty file is a valid (simulated) session. :func:`example` writes the commented example file from
the same table that :func:`load` checks against, so that the two cannot drift apart. ``keys``: what a key is; ``sections``: the keys;
``rules``: what must go together; ``file``: reading and writing.
"""

from rtevo.config.file import absolute, build, choices, dump, example, load, overrides_of, recorded, section
from rtevo.config.keys import suggested_label
from rtevo.config.rules import is_localizer, presentation_settings, presenter_is_outside
from rtevo.config.sections import Config, Console, Generator, Localizer

__all__ = [
    "Config",
    "Console",
    "Generator",
    "Localizer",
    "absolute",
    "build",
    "choices",
    "dump",
    "example",
    "is_localizer",
    "load",
    "overrides_of",
    "presentation_settings",
    "presenter_is_outside",
    "recorded",
    "section",
    "suggested_label",
]
