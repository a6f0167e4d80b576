"""A study as one BIDS data set with derivatives: all runs with volumes, the participants, what counts, and each picture once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rtevo import export
from rtevo.errors import DataError
from rtevo.outside import read_regular
from rtevo.record import frame, write_table
from rtevo.study.allocation import KEY
from rtevo.study.file import FILE
from rtevo.study.ledger import LEDGER
from rtevo.study.loading import Study

__all__ = ["export_study", "validated"]

_PEOPLE = {
    "group": {"Description": "What drove evolution in the participant's loops (the arm that was drawn)."},
    "pair": {"Description": "Block in which the arm was drawn: arms are exchangeable within blocks."},
}
_SCANS = {
    "kind": {"Description": "Kind of the run in the study file."},
    "planned": {"Description": "Number of the run in the visit's plan; repetitions share it."},
    "status": {"Description": "How the run ended."},
    "counts": {"Description": "Whether the run counts by the rules that the study file fixed beforehand."},
    "excluded": {"Description": "Why it does not count."},
}
_SOURCE = "sourcedata/study"
_STIMULUS = re.compile(r"sub-[^\t\n]*\.png")
MOST_PICTURE = 1 << 28  # bytes
Row = dict[str, Any]


def export_study(study: Study, bids: Path) -> list[str]:
    """Write a study as BIDS.

    Parameters
    ----------
    study : Study
    bids : Path
        New or empty folder.

    Returns
    -------
    list of str
        A sentence for each run that is not exported, with the reason. A fit is in the derivatives of the runs that used it.

    Raises
    ------
    DataError
        The folder is not empty, or no run can be exported.
    """
    if bids.exists() and any(bids.iterdir()):
        raise DataError(f"{bids}: expected a new or empty folder, because a study is exported as a whole; found files")
    left, rows = list[str](), dict[Path, list[Row]]()
    for run in study.runs:
        if run.kind == "fit":
            continue
        try:
            bold = export.export(run.folder, bids)
        except DataError as error:
            left.append(f"{run.folder}: not exported: {error}")
            continue
        row = {name: getattr(run, name) or None for name in ("kind", "planned", "status", "excluded")}
        rows.setdefault(bold.parents[1], []).append({"filename": f"func/{bold.name}", **row, "counts": str(run.counts).lower()})
    if not rows:
        raise DataError(f"{study.folder}: expected a run with volumes, found none yet")
    for session, own in rows.items():
        _write(session / f"{session.parent.name}_{session.name}_scans.tsv", ["filename", *_SCANS], own)
    _describe(bids / "scans.json", _SCANS)
    _once(bids)
    _people(study, bids)
    for name in (FILE, LEDGER, *((KEY,) if study.unsealed else ())):
        (bids / _SOURCE).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(study.folder / name, bids / _SOURCE / name)
    return left


def _people(study: Study, bids: Path) -> None:
    """Write what the study knows of each participant: the arm, if it is unsealed."""
    path = bids / "participants.tsv"
    there = [line.partition("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    known = _PEOPLE if study.unsealed else {"pair": _PEOPLE["pair"]}
    arms, pairs = study.arms() if study.unsealed else {}, study.pairs()
    rows = [{"participant_id": who, "group": arms.get(who[4:]), "pair": pairs.get(who[4:])} for who in there]
    _write(path, ["participant_id", *known], rows)
    _describe(path.with_suffix(".json"), known)


def _write(path: Path, columns: list[str], rows: list[Row]) -> None:
    write_table(frame(rows, dict.fromkeys(columns, "object")), path)


def _describe(path: Path, columns: dict[str, dict[str, str]]) -> None:
    path.write_text(json.dumps(columns, indent=2) + "\n", encoding="utf-8")


def _once(bids: Path) -> None:
    """Store each picture once, under its digest, whichever runs showed it."""
    stimuli, names = bids / "stimuli", dict[str, str]()
    for picture in sorted(stimuli.rglob("*.png")):
        name = f"{hashlib.sha256(read_regular(picture, MOST_PICTURE)).hexdigest()[:32]}.png"
        names[str(picture.relative_to(stimuli))] = name
        picture.replace(stimuli / name)
    for folder in stimuli.glob("sub-*"):
        shutil.rmtree(folder)
    for events in bids.glob("sub-*/ses-*/func/*_events.tsv"):
        text = events.read_text(encoding="utf-8")
        events.write_text(_STIMULUS.sub(lambda found: names.get(found[0], found[0]), text), encoding="utf-8")


def validated(bids: Path) -> str:
    """Run the BIDS validator, if installed, on a data set and its derivatives; return a sentence about the result.

    Raises
    ------
    DataError
        The validator found errors.
    """
    if importlib.util.find_spec("bids_validator_deno") is None:
        return "not validated: pip install bids-validator-deno, then `bids-validator-deno BIDS_DIR`"
    for folder in (bids, bids / "derivatives" / "rtevo"):
        command = [sys.executable, "-c", "import bids_validator_deno as v; v.cli()", "--ignoreWarnings", str(folder)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        if checked.returncode:
            raise DataError(f"{folder}: the BIDS validator found errors:\n{checked.stdout}{checked.stderr}")
    return "the BIDS validator found no error"
