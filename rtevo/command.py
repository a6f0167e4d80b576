"""Shared by all command lines: how errors are printed, and the exit statuses.

0: done. 1: done, and the answer is no; or a running session failed. 2: not done, because of a mistake in the command or its input; nothing
is left behind. 130: interrupted. Every error is a sentence on stderr that begins with ``rtevo:``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from rtevo.errors import ConfigError, RtevoError, full_disk

__all__ = ["ASKED", "FAILED", "INTERRUPTED", "MISTAKE", "Parser", "command", "finite", "say", "typed_as"]

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
ASKED = "_ARGCOMPLETE"  # set by a shell that completes a command (argcomplete's protocol): the number of the command's first word
MODULE = "python -m rtevo."  # first words of each part's command line
_typed: ContextVar[str] = ContextVar("typed", default=MODULE)


@contextlib.contextmanager
def typed_as(prefix: str) -> Iterator[None]:
    """Make parsers created meanwhile print `typed` and the part's name, instead of ``python -m rtevo.``."""
    before = _typed.set(prefix)
    try:
        yield
    finally:
        _typed.reset(before)


class Parser(argparse.ArgumentParser):
    """A command line's parser that prints errors like all other parts.

    Parameters
    ----------
    prog : str, optional
        ``python -m rtevo.PART``; usage and messages show what was typed (:func:`typed_as`).
    rest
        As in argparse.
    """

    def __init__(self, prog: str | None = None, **rest: Any) -> None:
        if prog is not None and prog.startswith(MODULE):
            prog = _typed.get() + prog.removeprefix(MODULE)
        super().__init__(prog=prog, **rest)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the command line; if a shell asks for completions, print them and exit."""
        if ASKED in os.environ:
            from argcomplete import autocomplete

            autocomplete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        say(f"{message} (see {self.prog} --help)")
        sys.exit(MISTAKE)


def finite(text: str) -> float:
    """Read a number from the command line."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number


def say(text: object) -> None:
    """Print an error."""
    for line in str(text).splitlines() if isinstance(text, ConfigError) else [str(text)]:
        print(f"rtevo: {line}", file=sys.stderr)


def command(work: Callable[[], int | None]) -> int:
    """Do a command's work, and return its exit status, whatever happens.

    Parameters
    ----------
    work : callable
        Returns the exit status, None for 0.
    """
    with contextlib.suppress(AttributeError, ValueError):  # file names are not always text
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = work() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RtevoError as error:
        say(error)
        return MISTAKE
    except OSError as error:
        say(full_disk(error) or (f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error))
        return MISTAKE
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    return status
