"""Command line of the export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rtevo.command import Parser, command
from rtevo.export import export

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    p = Parser(prog="python -m rtevo.export", description="Write a run as BIDS: raw data, events, stimuli, derivatives.")
    p.add_argument("out", type=Path, metavar="OUT", help="the session's folder")
    p.add_argument("bids", type=Path, metavar="BIDS_DIR", help="new or empty folder, or a BIDS data set to which the run is added")
    options = p.parse_args(arguments)
    return command(lambda: print(export(options.out, options.bids)))


if __name__ == "__main__":
    sys.exit(main())
