"""Command line of the report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rtevo.command import Parser, command
from rtevo.errors import DataError
from rtevo.record import RecordedSession
from rtevo.report import exposure_page, gather, page, pages, save


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    p = Parser(
        prog="python -m rtevo.report",
        description="Write one page about a run: pictures by generation with their scores, fitness against controls, single responses, "
        "motion and quality, latencies against deadlines, gaps, cost of the rings, methods with references, provenance. A blinded "
        "session's condition and scores are hidden until it has ended.",
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the session's folder")
    p.add_argument(
        "--control", type=Path, action="append", default=[], metavar="OUT", help="a session to compare with (sham, yoked, random)"
    )
    p.add_argument(
        "--to",
        type=Path,
        action="append",
        metavar="FILE",
        help="file to write; may be repeated: .html (self-contained), .pdf (pages), .png or .svg (a file each page: NAME, NAME-2, ...); "
        "default: OUT/report.html and OUT/report.pdf",
    )
    p.add_argument(
        "--exposure",
        action="store_true",
        help="write instead the participant's exposure, for an ethics board (OUT/exposure.html, .tsv): every picture that was on the "
        "screen, for how long, with its verdicts; pictures refused or taken away, by whom and why",
    )
    options = p.parse_args(arguments)

    def work() -> None:
        if options.exposure:
            target = options.out / "exposure.html"
            target.write_text(exposure_page(RecordedSession(options.out)), encoding="utf-8")
            print(target)
            return
        session, controls = gather(options.out), [gather(out) for out in options.control]
        for target in options.to or [options.out / "report.html", options.out / "report.pdf"]:
            if target.suffix == ".html":
                target.write_text(page(session, controls), encoding="utf-8")
                print(target)
            else:
                try:
                    print("\n".join(map(str, save(target, pages(session, controls)))))
                except ValueError as error:  # no such kind of file
                    raise DataError(f"--to {target}: {error}") from None

    return command(work)


if __name__ == "__main__":
    sys.exit(main())
