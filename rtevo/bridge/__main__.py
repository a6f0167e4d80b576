"""Command line of the link: ``python -m rtevo.bridge keys DIR`` and ``python -m rtevo.bridge test [SESSION.toml]``."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rtevo.bridge.bridge import Bridge
from rtevo.bridge.keys import make_keys, say_keys
from rtevo.command import Parser, command
from rtevo.records import NOTES, EventKind
from rtevo.wire import SELF_TEST


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = Parser(prog="python -m rtevo.bridge", description="The link to the stimulus PC.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    keys = commands.add_parser("keys", help="make the keys of this computer and of a presenter")
    keys.add_argument("folder", type=Path, metavar="DIR", help="folder for the keys; only you can read it")
    keys.add_argument("--client", action="append", metavar="NAME", help="a presenter to admit (default: presenter)")
    test = commands.add_parser("test", help="answer `python -m presenter --selftest` on the stimulus PC; no session, Ctrl-C ends it")
    test.add_argument("session", nargs="?", type=Path, metavar="SESSION.toml", help="its [bridge] and [presentation] are used")
    return parser


def answer_self_test(session: Path | None) -> int:
    """Answer one self-test of the stimulus PC, and print the measurements made here."""
    from rtevo.config import load, presentation_settings

    config = load(session)
    keys = Path(config.bridge.keys) if config.bridge.keys else None
    errors_ns: list[int] = []
    with Bridge(config.bridge.bind, presentation_settings(config), keys=keys, lost_s=config.bridge.lost_s, session=SELF_TEST) as link:
        print(f"answering at {link.endpoint}; start on the stimulus PC: python -m presenter --selftest --connect tcp://... (Ctrl-C ends)")
        while True:
            for event in link.poll(0.1):
                if event.kind in NOTES:
                    print(f"bridge: {event.text}")
                elif event.kind == EventKind.PULSE:
                    errors_ns.append(event.error_ns)
                elif event.kind == EventKind.END:
                    offset_ns, _ = link.clock.now()
                    known = f"{statistics.median(errors_ns) / 1e6:.3f} ms (at most {max(errors_ns) / 1e6:.3f})" if errors_ns else "-"
                    print(f"{len(errors_ns)} events arrived, their times known to {known}")
                    print(f"stimulus PC's clock: offset {offset_ns / 1e9:.6f} s, drift {link.clock.drift_ppm:+.2f} ppm")
                    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = parser().parse_args(argv)

    def work() -> int:
        if options.command == "test":
            return answer_self_test(options.session)
        say_keys(options.folder, make_keys(options.folder, options.client or ["presenter"]))
        return 0

    return command(work)


if __name__ == "__main__":
    raise SystemExit(main())
