"""A study from its file to its export, as an operator runs it: killed within a run and between runs, and no arm anywhere before the end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import rtevo
from rtevo.errors import StudyError
from rtevo.record import LOG, RecordedSession
from rtevo.study import Study, load
from rtevo.study.__main__ import main
from rtevo.study.ledger import LEDGER, entries

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("study"), pytest.mark.timeout(1500)]  # one study for all
SESSION = """
[session]
speed = 0.0
[acquisition]
tr_s = 2.0
[evolution]
generations = 2
population = 2
[presentation]
baseline_s = 3.0
[generator]
steps = 4
[simulation]
voxel_mm = [6.0, 6.0, 6.6]
"""
STUDY = """
[study]
name = "two"
participants = ["01", "02"]
arms = ["brain", "sham"]
probe_every = 3
[files]
loop = "session.toml"
[[visits]]
label = "1"
runs = ["loop"]
[identity]
patient_id = "simulated"
anonymous = "refuse"
"""
ARMS = re.compile(rb"\b(brain|sham|yoked|random)\b", re.IGNORECASE)
MOMENTS_S = 0.01  # between two looks at a log
LONGEST_S = 1200.0  # that a session of some seconds may take where others use the computer


@dataclass
class Told:
    """What a study said while it was sealed, and how it was left."""

    folder: Path
    printed: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def do(self, name: str, *arguments: str) -> str:
        """Run a command that starts no session."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            self.status[name] = main([*arguments])
        self.printed[name] = out.getvalue()
        return out.getvalue()

    def next(self, name: str, *arguments: str, until: str = "") -> None:
        """Start what comes next; kill it once its log holds a text."""
        printed = self.folder / f"{name}.printed"
        process = Warm(["next", *arguments, "--study", str(self.folder)], self.folder, printed, "rtevo.study.__main__")
        log = self.folder / "sub-01" / "ses-1" / "run-01" / LOG
        while until and process.poll() is None and not (log.exists() and until in log.read_text(errors="replace")):
            time.sleep(MOMENTS_S)
        if until:
            process.kill()
        self.status[name], self.printed[name] = process.wait(LONGEST_S), printed.read_text()
        printed.unlink()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("study")
    (folder / "session.toml").write_text(SESSION)
    (folder / "study.toml").write_text(STUDY)
    made = Told(folder)
    where = ("--study", str(folder))
    made.do("new", "new", str(folder))
    made.next("killed", "01", until='"sealed"')
    made.do("after the kill", "status", *where)
    made.do("undecided", "next", "01", *where)
    made.next("resumed", "01", "--resume")
    made.next("second", "02")
    lines = (folder / LEDGER).read_text().splitlines(keepends=True)
    (folder / LEDGER).write_text("".join(lines[:-1]))  # killed after the run had ended, before the ledger had it
    made.do("between", "status", *where)
    made.do("settled", "next", "02", *where)
    made.do("at the end", "status", *where)
    made.files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    made.printed["table"] = load(folder).table().to_csv()
    return made


def test_a_killed_run_waits_for_a_decision_and_goes_on(told: Told) -> None:
    assert told.status["killed"] != 0
    assert "sub-01/ses-1/run-01: begun, does not count: it was interrupted, or still runs" in told.printed["after the kill"]
    assert told.status["undecided"] == 2
    assert (
        "choose what to do (--resume: continue it where it stopped; --again: repeat it; --on: continue without it)"
        in told.printed["undecided"]
    )
    assert told.status["resumed"] == 0, told.printed["resumed"]
    assert "run 1 of 1 (loop): completed, counts" in told.printed["resumed"]
    assert len(RecordedSession(told.folder / "sub-01/ses-1/run-01").parts) == 2
    own = [entry.kind for entry in entries(told.folder) if entry["folder"] == "sub-01/ses-1/run-01"]
    assert own == ["began", "resumed", "ended"]


def test_a_run_that_ended_unknown_to_the_ledger_is_entered_by_the_next_call(told: Told) -> None:
    assert told.status["second"] == 0, told.printed["second"]
    assert "sub-02/ses-1/run-01: begun" in told.printed["between"]
    assert told.printed["settled"] == "rtevo: participant 02 has done all runs of the study\n"
    assert "sub-02/ses-1/run-01: completed, counts" in told.printed["at the end"]


def test_nothing_shows_an_arm_before_the_study_is_unsealed(told: Told) -> None:
    for name, text in told.printed.items():
        assert not ARMS.search(text.encode()), (name, text)
    known = {"study.toml", LEDGER}  # name the arms that there are
    shown = {name: ARMS.findall(data) for name, data in told.files.items() if name not in known}
    assert {name: found for name, found in shown.items() if found} == {}
    assert not any(ARMS.search(name.encode()) for name in told.files)
    assert told.files[LEDGER].count(b"sham") == 1
    sizes = {len(told.files[f"sub-{who}/ses-1/run-01/evolution.json"]) for who in ("01", "02")}
    assert len(sizes) == 1
    for who in ("01", "02"):
        run = f"sub-{who}/ses-1/run-01"
        assert b'"fitness"' not in told.files[f"{run}/{LOG}"].replace(b'"rings"', b"")
        with io.StringIO(told.files[f"{run}/trials.tsv"].decode()) as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert {row["fitness"] for row in rows} == {"n/a"}
        assert json.loads(told.files[f"{run}/summary.json"])["condition"] == "blinded"
        assert "fitness" not in json.loads(told.files[f"{run}/summary.json"])["rings"]


def test_after_it_is_unsealed_the_arms_and_one_valid_data_set_are_there(told: Told, tmp_path: Path) -> None:
    study = rtevo.load(told.folder)
    assert isinstance(study, Study)
    with pytest.raises(StudyError, match="the study is sealed"):
        study.arms()
    sealed = study.table()
    assert not {"arm", "fitness"} & set(sealed)
    where = ("--study", str(told.folder))
    assert "report.html" in told.do("sealed report", "report", *where, "--to", str(tmp_path / "sealed")), told.printed["sealed report"]
    assert not any(b"sham" in path.read_bytes() for path in (tmp_path / "sealed").iterdir())
    said = told.do("unsealed", "unseal", "--by", "N. N.", "--why", "all runs are done", *where)
    study = load(told.folder)
    arms = study.arms()
    assert sorted(arms.values()) == ["brain", "sham"]
    assert said == "".join(f"participant {who}: {arm}\n" for who, arm in arms.items())
    table = study.table()
    assert len(table) == len(sealed) == 12
    assert table["probe"].notna().sum() == 4
    for who, own in table[table["probe"].isna()].groupby("participant"):
        assert set(own["arm"]) == {arms[who]}
        assert (own["fitness"] == own["score"]).all() == (arms[who] == "brain")
        assert sorted(own["fitness"]) == sorted(own["score"])
    assert all(session.summary["condition"] == arms[run.participant] for run, session in study.sessions())
    record = entries(told.folder)[-1]
    assert (record.kind, record["by"], record["why"], record["complete"]) == ("unsealed", "N. N.", "all runs are done", True)

    assert "effects.csv" in told.do("report", "report", *where, "--to", str(tmp_path / "report")), told.printed["report"]
    assert "brain (1 participants), sham (1 participants)" in (tmp_path / "report" / "checklist.csv").read_text()
    assert "the BIDS validator found no error" in told.do("export", "export", str(tmp_path / "bids"), *where), told.printed["export"]
    people = (tmp_path / "bids" / "participants.tsv").read_text().splitlines()
    assert people == ["participant_id\tgroup\tpair", *(f"sub-{who}\t{arm}\tblock-01" for who, arm in arms.items())]
    pictures = [path.name for path in (tmp_path / "bids" / "stimuli").iterdir()]
    assert len(pictures) == len(set(pictures)) == 12 - 2  # of the probes, which all have seen, once
    assert len(list((tmp_path / "bids").glob("sub-*/ses-1/func/*_bold.nii.gz"))) == 2
