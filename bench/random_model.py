"""Writes a published architecture with random weights: ``python -m bench.random_model OUT --kind large``.

The model is :mod:`tests.support.random_model`'s: large enough to cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests.support.random_model import KINDS, write_model


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.random_model", description="Write a published architecture with random weights.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--kind", choices=KINDS, default="large", help="which architecture (default: large)")
    parser.add_argument("--narrow", type=int, default=1, metavar="N", help="divide widths by N, for a trial on a CPU")
    parser.add_argument("--px", type=int, default=0, help="side of an image (default: as published)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where weights are drawn")
    options = parser.parse_args(arguments)
    if options.out.exists():
        parser.error(f"OUT: expected a folder that does not exist yet, got {options.out}")
    write_model(options.out, options.kind, options.narrow, options.px, options.device)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
