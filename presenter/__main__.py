"""Command line of the stimulus PC: ``python -m presenter --connect tcp://HOST:5555 --key FILE``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from presenter.display import DisplayError
from presenter.link import LinkLost
from presenter.run import present
from presenter.screens import show_screens
from presenter.selftest import self_test
from rtevo.wire import WireError


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m presenter",
        description="Show the images of an rtevo session on this computer. The session sets durations, keys, texts and screen.",
    )
    parser.add_argument("--connect", metavar="tcp://HOST:PORT", help="address of the support computer's bridge")
    parser.add_argument("--key", type=Path, metavar="FILE", help="this presenter's key file; needed unless HOST is 127.0.0.1")
    parser.add_argument("--window", action="store_true", help="a window, even if the session asks for the full screen")
    parser.add_argument("--headless", action="store_true", help="no screen: for simulation and tests")
    parser.add_argument(
        "--participant", metavar="ENDPOINT", help="with --headless: a simulated participant that sees images and presses keys"
    )
    parser.add_argument("--once", action="store_true", help="exit after one session, instead of waiting for the next (Escape exits too)")
    parser.add_argument("--screens", action="store_true", help="no session: list this computer's screens, and show its number on each")
    parser.add_argument(
        "--selftest",
        action="store_true",
        help="no session: test the keys, measure refresh rate, jitter, upload time and triggers here, and with --connect the round trip to "
        "the support computer, on which `python -m rtevo.bridge test` must run",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="with --selftest: also write the report to this file, as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Present sessions; return 0 if the last one ended normally (also by Escape), else 1. Self-test: 0 if it found no problem."""
    options = parser().parse_args(argv)
    if options.participant and not options.headless:
        parser().error("--participant needs --headless")
    if options.connect is None and not (options.selftest or options.screens):
        parser().error("--connect is needed: the address of the support computer's bridge, tcp://HOST:PORT")
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("presenter").setLevel(logging.INFO)
    try:
        if options.screens:
            show_screens()
            return 0
        if options.selftest:
            told = {"key": options.key, "headless": options.headless, "window": options.window, "report_file": options.report}
            return 1 if self_test(options.connect, **told)["to_do"] else 0
        stay = not (options.once or options.headless)
        told = {"key": options.key, "headless": options.headless, "window": options.window}
        reason = present(options.connect, **told, participant=options.participant, stay=stay)
    except (LinkLost, DisplayError, WireError) as error:
        sys.stderr.write(f"presenter: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("presenter: interrupted\n")
        return 1
    sys.stderr.write(f"presenter: ended ({reason})\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
