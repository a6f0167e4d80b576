"""``python -m rtevo.record OUT``: make a session's tables again from its log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rtevo.command import Parser, command, say
from rtevo.record import LOG, RecordedSession, skip_damaged


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    p = Parser(
        prog="python -m rtevo.record",
        description="Make trials.tsv, motion.tsv, latents.npz and summary.json of a session again, from its log (record.jsonl) alone.",
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the session's folder")
    p.add_argument(
        "--skip-damaged",
        action="store_true",
        help="go on without lines of the log that are damaged or missing, and say what is lost; the log as it was is kept beside it",
    )
    options = p.parse_args(arguments)
    return command(lambda: _work(options))


def _work(options: argparse.Namespace) -> None:
    """Make the tables, and say what there is."""
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
