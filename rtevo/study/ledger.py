"""The ledger of a study: ``study.jsonl``, an append-only, checksummed log like that of a run (:mod:`rtevo.record.log`).

Records have a kind, fields and a time: ``drawn`` (the sealed study file, and the draws), ``began`` and ``resumed`` (a run), ``ended`` (its
status, with the figures that decide whether it counts), ``passed_over`` (the operator continued without a counting run), ``override`` (who
permitted what, and why), ``unsealed``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtevo.errors import BusyError, StudyError
from rtevo.record import LogWriter, read_log

__all__ = ["LEDGER", "Attempt", "Entry", "Slot", "append", "attempts_of", "entries", "now"]

LEDGER = "study.jsonl"
TRIES, PAUSE_S = 200, 0.05  # for another process that writes to the ledger, which takes milliseconds
Slot = tuple[str, str, int]  # participant, visit, number of the run in the visit's plan


@dataclass(frozen=True)
class Entry:
    """A record of the ledger.

    Parameters
    ----------
    kind : str
    fields : mapping
    """

    kind: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields.get(name, "")


@dataclass
class Attempt:
    """One attempt at a planned run.

    Parameters
    ----------
    participant, visit : str
    planned : int
        Number of the run in the visit's plan.
    run : int
        Its own number in the visit: a repetition has a new number.
    kind : str
    folder : str
        Path below the study's folder.
    status : str
        ``begun`` until its end is known; then as in the run's summary, or ``not begun``.
    counts : bool
    excluded : str
        Why it does not count.
    figures : mapping of str to float or None
    """

    participant: str
    visit: str
    planned: int
    run: int
    kind: str
    folder: str
    status: str = "begun"
    counts: bool = False
    excluded: str = ""
    figures: Mapping[str, float | None] | None = None

    @property
    def slot(self) -> Slot:
        """The planned run of this attempt."""
        return self.participant, self.visit, self.planned


def now() -> str:
    """Return date and time, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def append(study: Path, kind: str, /, **fields: Any) -> None:
    """Add a record, and sync it to the disk.

    Raises
    ------
    DataError
        The ledger is damaged; or another process writes to it and does not finish.
    """
    for left in reversed(range(TRIES)):
        try:
            with LogWriter(study / LEDGER) as log:
                log.append(kind, {"at": now(), **fields})
            return
        except BusyError:
            if not left:
                raise
            time.sleep(PAUSE_S)


def entries(study: Path) -> list[Entry]:
    """Read the ledger.

    Raises
    ------
    StudyError
        There is no ledger.
    DataError
        The ledger is damaged.
    """
    path = study / LEDGER
    if not path.exists():
        raise StudyError(
            f"{path}: expected the ledger of a study, found no such file: draw and seal a study with `rtevo study new {study}`"
        )
    return [Entry(record.type, record.fields()) for record in read_log(path)]


def attempts_of(ledger: Iterable[Entry]) -> list[Attempt]:
    """Return all attempts, in order, with their present state; of several attempts that meet the rules, the last one counts."""
    found: dict[str, Attempt] = {}
    for entry in ledger:
        attempt = found.get(entry["folder"])
        if entry.kind == "began":
            names = ("participant", "visit", "planned", "run", "kind", "folder")
            found[entry["folder"]] = Attempt(**{name: entry[name] for name in names})
        elif entry.kind == "resumed" and attempt is not None:
            attempt.status, attempt.counts, attempt.excluded = "begun", False, ""
        elif entry.kind == "ended" and attempt is not None:
            attempt.status, attempt.counts, attempt.excluded = entry["status"], bool(entry["counts"]), entry["excluded"]
            attempt.figures = entry.fields.get("figures")
        elif entry.kind == "override" and entry["what"] == "counts" and attempt is not None:
            attempt.counts, attempt.excluded = True, ""
    last = {attempt.slot: attempt for attempt in found.values() if attempt.counts}
    for attempt in found.values():
        if attempt.counts and last[attempt.slot] is not attempt:
            attempt.counts, attempt.excluded = False, f"it was repeated: {last[attempt.slot].folder}"
    return list(found.values())
