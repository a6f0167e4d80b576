"""A study whose decoder is the participant's own: localizer, fit and loop, as an operator starts them, and what becomes of their data."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rtevo.record import RecordedSession
from rtevo.study import load
from rtevo.study.__main__ import main

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("study-localizer"), pytest.mark.timeout(1500)]
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
voxel_mm = [10.0, 10.0, 10.0]
tsnr = 90.0
areas = ["face", "flag", "food"]
[decoder]
name = "animal"
[localizer]
block_images = 3
rest_s = 5.0
repetitions = 2
"""
STUDY = """
[study]
name = "own"
participants = ["01"]
arms = ["brain"]
probe_every = 0
[files]
loop = "session.toml"
localizer = "session.toml"
[[visits]]
label = "1"
runs = ["localizer", "fit"]
[[visits]]
label = "2"
runs = ["loop"]
[fit]
target = "animal"
auc = 0.0
"""
LONGEST_S = 1200.0  # that a run of some seconds may take where others use the computer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    (made / "session.toml").write_text(SESSION)
    (made / "study.toml").write_text(STUDY)
    assert main(["new", str(made)]) == 0
    for kind in ("localizer", "fit", "loop"):
        printed = made / f"{kind}.printed"
        process = Warm(["next", "01", "--study", str(made)], made, printed, "rtevo.study.__main__")
        assert process.wait(LONGEST_S) == 0, printed.read_text()
        assert f"({kind}): completed, counts" in printed.read_text()
    return made


def test_a_loop_uses_the_decoder_that_the_fit_has_made_of_the_localizer(folder: Path) -> None:
    study = load(folder)
    assert [(run.kind, run.folder.name, run.counts) for run in study.runs] == [
        ("localizer", "run-01", True),
        ("fit", "decoder-02", True),
        ("loop", "run-01", True),
    ]
    localizer, fit, loop = study.runs
    assert RecordedSession(localizer.folder).localizer
    session = RecordedSession(loop.folder)
    assert session.decoder_folder == fit.folder
    assert session.decoder.settings["provenance"]["runs"] == [str(localizer.folder)]
    assert set(study.table()["kind"]) == {"loop"}


def test_export_and_report_of_a_study_have_its_localizers(folder: Path, tmp_path: Path) -> None:
    where = ("--study", str(folder))
    assert main(["export", str(tmp_path / "bids"), *where]) == 0
    bold = {path.name for path in (tmp_path / "bids").rglob("func/*_bold.nii.gz") if "derivatives" not in path.parts}
    assert bold == {"sub-01_ses-1_task-localizer_run-01_bold.nii.gz", "sub-01_ses-2_task-rtevo_run-01_bold.nii.gz"}
    for events in (tmp_path / "bids").glob("sub-01/ses-*/func/*_events.tsv"):
        with events.open(newline="", encoding="utf-8") as file:
            names = {row["stim_file"] for row in csv.DictReader(file, delimiter="\t")}
        assert all((tmp_path / "bids" / "stimuli" / name).is_file() for name in names)
    assert main(["report", *where, "--to", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.html").is_file()
