"""Command line of evolution: keys of blinded studies (``blind``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtevo.errors import ConfigError, RtevoError
from rtevo.stages.evolution import CONDITIONS, scramble

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser."""
    p = argparse.ArgumentParser(prog="python -m rtevo.evolve", description="Plan a study's evolution.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    b = commands.add_parser(
        "blind",
        help="draw which participant gets which condition, into a key that the operator's sessions read",
        description="Draw conditions in blocks: every block of participants has each condition once, in random order. The key's "
        "codes cannot be read by accident; they are no secret from someone who wants to know.",
    )
    b.add_argument("--participants", nargs="+", required=True, metavar="LABEL")
    b.add_argument("--sessions", nargs="+", default=["01"], metavar="LABEL", help="sessions of each participant (default 01)")
    b.add_argument("--conditions", nargs="+", default=["brain", "sham"], choices=CONDITIONS, help="default: brain sham")
    b.add_argument("--seed", type=int, required=True, metavar="N", help="keep it secret: it says everything")
    b.add_argument("--out", type=Path, required=True, metavar="FILE", help="the key to write, must not exist yet")
    return p


def blind(options: argparse.Namespace) -> None:
    """Write a blinding key."""
    rng = np.random.default_rng(options.seed)
    lines, block = ["participant\tsession\tcode"], list[str]()
    for participant in options.participants:
        for session in options.sessions:
            if not block:
                block = [options.conditions[k] for k in rng.permutation(len(options.conditions))]
            lines.append(f"{participant}\t{session}\t{scramble(block.pop(), participant, session)}")
    try:
        with options.out.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as problem:
        raise ConfigError(f"--out {options.out}: expected a new file in an existing folder: {problem.strerror}") from None
    print(f'{options.out}: {len(lines) - 1} sessions; set condition = "blinded" and [evolution] blinding_key in their session files')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    options = parser().parse_args(arguments)
    try:
        blind(options)
    except RtevoError as error:
        print(f"rtevo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
