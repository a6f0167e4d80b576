"""The participant's exposure, for an ethics board: every picture that was on the screen, and every one that was kept from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from rtevo.record import EventRecord, ImageRecord, RecordedSession, RefusedRecord, image_path, refused_path, write_table
from rtevo.records import EventKind
from rtevo.report.page import thumbnail

__all__ = ["COLUMNS", "exposure", "exposure_page"]

COLUMNS = {
    "generation": "int64",
    "candidate": "int64",
    "attempt": "Int64",
    "onset": "float64",
    "duration": "float64",
    "what": "string",
    "by": "string",
    "why": "string",
    "sha256": "string",
}
"""Columns of ``exposure.tsv``: s from the session's first volume; ``what``: shown, taken away, refused, or not shown; by whom and why."""
Row = dict[str, Any]


def exposure(session: RecordedSession) -> list[Row]:
    """Return a row for each picture that was painted, in the order of presentation; those that were never shown come last.

    Parameters
    ----------
    session : RecordedSession
    """
    events = [r for r in session.records(EventRecord) if r.kind in (EventKind.TAKEN, EventKind.REFUSED)]
    taken = {(r.generation, r.candidate): r for r in reversed(events)}
    # the last of each, where one was painted again
    painted = {(r.generation, r.candidate): r for r in session.records(ImageRecord) if not r.refused}
    rows = [_refused(session.out, record) for record in session.records(RefusedRecord)]
    for trial in session.rows:
        key = trial["generation"], trial["candidate"]
        record, event, shown = painted.get(key), taken.get(key), trial.get("onset") is not None
        if record is None and not shown:
            continue  # it was requested, and refused or never painted
        what = ("taken away" if shown else "not shown") if event is not None else "shown" if shown else "not shown"
        by = "" if event is None else event.text if event.kind == EventKind.TAKEN else "stimulus PC"
        why = event.text if event is not None and event.kind == EventKind.REFUSED else ""
        own = {"attempt": None, "sha256": "", "findings": ()} if record is None else _judged(record)
        path = image_path(session.out, *key)
        rows.append({"generation": key[0], "candidate": key[1], "what": what, "by": by, "why": why, **own, **_when(trial), "path": path})
    return sorted(rows, key=lambda row: (row.get("onset", math.inf), row["generation"], row["candidate"], row["attempt"] or 0))


def _judged(record: ImageRecord) -> Row:
    return {"attempt": record.attempt, "sha256": record.sha256, "findings": record.verdict or ()}


def _when(row: Mapping[str, Any]) -> Row:
    return {name: row[name] for name in ("onset", "duration") if row.get(name) is not None}


def _refused(out: Path, record: RefusedRecord) -> Row:
    findings = [finding for finding in record.verdict or () if finding.get("refused")]
    return {
        "generation": record.generation,
        "candidate": record.candidate,
        "attempt": record.attempt,
        "what": "refused",
        "by": ", ".join(str(finding.get("name")) for finding in findings),
        "why": "; ".join(str(finding.get("reason")) for finding in findings),
        "sha256": record.sha256,
        "findings": record.verdict or (),
        "path": refused_path(out, record.generation, record.candidate, record.attempt or 0),
    }


def exposure_page(session: RecordedSession) -> str:
    """Write it as one HTML page that loads nothing from anywhere; beside it ``exposure.tsv``."""
    from rtevo.record import frame

    rows = exposure(session)
    write_table(frame([{**row, "by": row["by"] or None, "why": row["why"] or None} for row in rows], COLUMNS), session.out / "exposure.tsv")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "exposure.html").read_text(encoding="utf-8"))
    for row in rows:
        row["data"] = thumbnail(row["path"])
        row["filters"] = [_finding(finding) for finding in row["findings"] if finding.get("name") != "marked"]
    seen = [row for row in rows if row["what"] in ("shown", "taken away")]
    config = session.config
    return template.render(
        name=session.out.name,
        who=f"sub-{config.session.participant} ses-{config.session.session} run-{config.session.run}",
        started=session.start.started or "",
        counts=Counter(row["what"] for row in rows),
        seconds=sum(row.get("duration", 0.0) for row in seen),
        by=Counter(row["by"] for row in rows if row["by"]).most_common(),
        safety=_safety(config.safety),
        seen=seen,
        refused=[row for row in rows if row["what"] == "refused"],
        others=[row for row in rows if row["what"] == "not shown"],
        stops=[event for event in session.records(EventRecord) if event.kind == EventKind.STOP_ASKED],
    )


def _finding(finding: Mapping[str, Any]) -> str:
    value, threshold = finding.get("value"), finding.get("threshold")
    figures = "" if value is None or threshold is None else f" {value:.3g} (limit {threshold:g})"
    return f"{finding.get('name')} {finding.get('version')}{figures}"


def _safety(safety: Any) -> Sequence[tuple[str, str]]:
    """Return the safety settings of the session's file."""
    avoid = f"{safety.avoid}, cosine distance {safety.avoid_distance:g}" if safety.avoid else "none"
    return [
        ("content to avoid", avoid),
        ("safety checker", safety.checker or "none"),
        ("further filters", ", ".join(safety.filters) or "none"),
        ("approval by the operator", safety.approval),
        ("participant can take a picture away", f"key {safety.participant_key}" if safety.participant_key else "no"),
        ("participant can ask to stop", f"key {safety.stop_key}" if safety.stop_key else "no"),
    ]
