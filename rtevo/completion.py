"""``rtevo completion bash``: print the shell code that completes rtevo's commands, options and file names."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rtevo.command import Parser, command

__all__ = ["main"]

SHELLS = ("bash", "zsh", "fish")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    p = Parser(
        prog="python -m rtevo.completion",
        description="Print the shell code that completes rtevo's commands, options and file names.",
        epilog='For bash and zsh: eval "$(rtevo completion bash)", for example in ~/.bashrc; for fish: rtevo completion fish | source',
    )
    p.add_argument("shell", choices=SHELLS)
    options = p.parse_args(arguments)
    return command(lambda: _print(options.shell))


def _print(shell: str) -> None:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["rtevo"], shell=shell))


if __name__ == "__main__":
    sys.exit(main())
