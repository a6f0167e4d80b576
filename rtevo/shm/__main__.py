"""``python -m rtevo.shm``: list the rings of this machine; ``python -m rtevo.shm clean``: remove those of dead sessions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rtevo.command import Parser, command
from rtevo.shm.segment import Entry, clean, list_segments
from rtevo.shm.statistics import ReaderStatistics, collect

__all__ = ["main"]


def _condition(entry: Entry) -> str:
    if entry.segment is None:
        return "unreadable"
    if entry.foreign:
        return "foreign"
    if entry.owner_alive:
        return "live"
    return "orphaned" if entry.attached else "stale"


def _report(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {"name": entry.name, "condition": _condition(entry)}
    if entry.segment is None:
        return found | {"problem": str(entry.problem)}
    statistics = collect(entry.segment)
    return found | {"mebibytes": round(entry.segment.layout.size / 2**20, 1)} | asdict(statistics)


def _reader_line(reader: dict[str, Any]) -> str:
    each = ReaderStatistics(**reader)
    who = f"process {each.pid}{'' if each.alive else ' (dead)'}" if each.pid else "not attached"
    mean_us = each.wake_up_ns / max(1, each.waits) / 1e3
    return (
        f"    {'critical' if each.critical else 'observer'} '{each.name}': {who}; {each.consumed} consumed, {each.lag} behind, "
        f"{each.overruns} lost; {each.waits} waits, woken after {mean_us:.0f} us (worst {each.wake_up_max_ns / 1e3:.0f})"
    )


def _text(report: dict[str, Any]) -> str:
    if "problem" in report:
        return f"{report['name']}  {report['condition']}: {report['problem']}"
    writer = f"process {report['writer_pid']}{'' if report['writer_alive'] else ' (dead)'}" if report["writer_pid"] else "none"
    owner = f"process {report['owner_pid']}{'' if report['condition'] in ('live', 'foreign') else ' (dead)'}"
    lines = [
        f"{report['name']}  {report['condition']}, {report['state']}: owner {owner}; "
        f"{report['slots']} slots of {report['slot_bytes']} bytes ({report['mebibytes']} MiB)",
        f"    writer {writer}: {report['published']} published, {report['depth']} of {report['slots']} slots held, "
        f"waited {report['waits']} times",
    ]
    return "\n".join(lines + [_reader_line(each) for each in report["readers"]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    Returns
    -------
    int
        Exit status: 0.
    """
    parser = Parser(
        prog="python -m rtevo.shm",
        description="Shared-memory rings of this machine. live: its owner runs; orphaned: the owner is dead and members still run (they "
        "notice within a second); stale: all are dead; foreign: made in another PID namespace (container).",
    )
    parser.add_argument("action", nargs="?", choices=("list", "clean"), default="list", help="clean removes stale rings and nothing else")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.action == "clean":
            removed = clean()
            lines = json.dumps(removed) if options.json else "\n".join([f"removed {name}" for name in removed] or ["nothing to remove"])
        else:
            reports = [_report(entry) for entry in list_segments()]
            lines = json.dumps(reports, indent=2) if options.json else "\n".join([_text(each) for each in reports] or ["no rings"])
        print(lines)

    return command(work)


if __name__ == "__main__":
    sys.exit(main())
