"""The person in the scanner is the session's participant: another name or day stops the session before its first volume is used."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.uid import generate_uid

from rtevo.config import build
from rtevo.errors import ConfigError, DataError
from rtevo.ingest import FolderSource
from rtevo.session.identity import misnamed
from rtevo.stages.ingest import _Publisher
from tests.ingest.conftest import SLICES, Made

DAY = datetime.datetime(2026, 1, 2, 10, 15)


def settings(**keys: Any) -> Any:
    return build({"acquisition": keys}).acquisition


@pytest.mark.parametrize(
    ("keys", "found", "said"),
    [
        ({}, ("S09", "20250101"), ""),
        ({"patient_id": "S07", "study_date": "today"}, ("S07", "20260102"), ""),
        ({"patient_id": "*07"}, ("FACES_S07", ""), ""),
        ({"patient_id": "S07"}, ("S08", "20260102"), "PatientID: expected 'S07' ([acquisition] patient_id), found 'S08'"),
        ({"study_date": "today"}, ("", "20260101"), "study date: expected '20260102' ([acquisition] study_date), found '20260101'"),
        ({"study_date": "20260103"}, ("", "20260102"), "study date: expected '20260103'"),
        ({"patient_id": "S07", "study_date": "today"}, ("", ""), ""),
        ({"patient_id": "S07", "anonymous": "refuse"}, ("", ""), "PatientID: expected 'S07', found none in the headers"),
    ],
)
def test_headers_are_compared_with_what_the_session_expects(keys: dict[str, Any], found: tuple[str, str], said: str) -> None:
    problem = misnamed(settings(**keys), *found, DAY)
    assert said in problem
    assert bool(said) == bool(problem)


def test_a_visit_may_go_on_after_midnight() -> None:
    night = DAY.replace(hour=0)
    assert misnamed(settings(study_date="today"), "", "20260101", night) == ""
    assert "found '20251231'" in misnamed(settings(study_date="today"), "", "20251231", night)
    assert "found 'S08'" in misnamed(settings(study_date="today", patient_id="S07"), "S08", "20260101", night)


def test_a_study_date_is_today_or_eight_digits() -> None:
    with pytest.raises(ConfigError, match=r"\[acquisition\] study_date: expected today, or eight digits, got 'yesterday'"):
        settings(study_date="yesterday")


def source(folder: Path, patient_id: str) -> FolderSource:
    """Return a source of one volume of a participant."""
    made = Made()
    for index in range(SLICES):
        dataset = made.slice(0, index)
        dataset.PatientID, dataset.SOPInstanceUID = patient_id, generate_uid(entropy_srcs=[patient_id, str(index)])
        dataset.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    return FolderSource(folder, patience_s=1.0)


def test_a_volume_of_another_participant_does_not_go_on(tmp_path: Path) -> None:
    scanner = source(tmp_path, "S08")
    volumes = scanner.poll() + scanner.finish()
    assert (scanner.run.series.patient_id, scanner.run.series.study_date) == ("S08", "20260102")
    assert "S08" not in repr(scanner.run.series)
    assert "S08" not in str(scanner.sidecar(volumes[0]))
    config = build({"acquisition": {"patient_id": "S07"}})
    plan = SimpleNamespace(capacity=1 << 20, first_volume=0, tr_s=2.0)
    context = SimpleNamespace(log=logging.getLogger("rtevo"), clock=None, plan=plan, config=config)
    with pytest.raises(DataError, match="PatientID: expected 'S07'"):
        _Publisher(context, None).publish(volumes[0], scanner)  # type: ignore[arg-type]  # no ring: nothing may get into it
