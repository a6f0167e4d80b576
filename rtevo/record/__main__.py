"""``python -m rtevo.record OUT``: rebuild a session's tables from its log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rtevo.command import Parser, command, say
from rtevo.record import LOG, RecordedSession, skip_damaged


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    p = Parser(
        prog="python -m rtevo.record",
        description="Rebuild trials.tsv, motion.tsv, latents.npz and summary.json of a session from its log (record.jsonl) alone.",
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the session's folder")
    p.add_argument(
        "--skip-damaged",
        action="store_true",
        help="continue without damaged or missing lines of the log, and print what is lost; the original log is kept beside it",
    )
    options = p.parse_args(arguments)
    return command(lambda: _work(options))


def _work(options: argparse.Namespace) -> None:
    """Make the tables, and print a summary of the log."""
    if options.skip_damaged:
        for text in skip_damaged(options.out / LOG):
            say(text)
    session = RecordedSession(options.out)
    summary = session.save()
    images, volumes = summary["images"], summary["volumes"]
    print(
        f"{options.out}: {len(session.log)} records in {len(session.parts)} part(s), {volumes['received']} volumes, "
        f"{images['shown']} images shown, status {summary.get('status', 'unfinished')}"
    )


if __name__ == "__main__":
    sys.exit(main())
