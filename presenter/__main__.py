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
    """Say what can be asked."""
    parser = argparse.ArgumentParser(
        prog="python -m presenter",
        description="Show the images of an rtevo session on this computer. Durations, keys, texts and screen come from the session.",
    )
    parser.add_argument("--connect", metavar="tcp://HOST:PORT", help="where the support computer's bridge listens")
    parser.add_argument("--key", type=Path, metavar="FILE", help="this presenter's key file; needed unless HOST is 127.0.0.1")
    parser.add_argument("--window", action="store_true", help="a window, even where the session asks for the full screen")
    parser.add_argument("--headless", action="store_true", help="no screen: for simulation and tests")
    parser.add_argument("--participant", metavar="ENDPOINT", help="with --headless: a simulated participant that looks and presses keys")
    parser.add_argument("--once", action="store_true", help="leave after one session, instead of waiting for the next (Escape leaves too)")
    parser.add_argument("--screens", action="store_true", help="no session: list this computer's screens and show each one's number on it")
    parser.add_argument(
        "--selftest",
        action="store_true",
        help="no session: try the keys, measure refresh rate, jitter, upload time and triggers here, and with --connect the round trip to "
        "the support computer, where `python -m rtevo.bridge test` must run",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="with --selftest: also write the report there, as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Present one session; 0 when it ended as it should (Escape included), 1 otherwise. Self-test: 0 when there is nothing to see to."""
    options = parser().parse_args(argv)
    if options.participant and not options.headless:
        parser().error("--participant needs --headless")
    if options.connect is None and not (options.selftest or options.screens):
        parser().error("--connect is needed: where does the support computer's bridge listen?")
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
