"""A whole session with a simulated pulse and respiration, in lock-step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rtevo.export import export
from rtevo.record import AlignedRecord, Notice, PhysiologyRecord, RecordedSession
from rtevo.report.gather import gather
from rtevo.report.methods import methods
from rtevo.run import main
from tests.support.killed import session_file

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("physio")]  # one session for all


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("session") / "out"
    file = session_file(out.parent, {})
    text = file.read_text(encoding="utf-8").replace("[simulation]", "[simulation]\nphysiology_percent = 1.5", 1)
    file.write_text(text + '\n[physio]\ncardiac = "simulated"\nrespiration = "simulated"\n', encoding="utf-8")
    assert Warm([str(file), "--out", str(out), "--generations", "2"], out.parent, out.parent / "printed").wait(200) == 0
    return out


def test_every_volume_has_the_terms_of_its_pulse_and_respiration(session: Path) -> None:
    recorded = RecordedSession(session)
    volumes = recorded.records(AlignedRecord)
    terms = np.array([r.physio for r in volumes])
    assert terms.shape == (len(volumes), 18)  # phases at two moments of a volume of 2 s
    np.testing.assert_allclose(terms[:, 0] ** 2 + terms[:, 4] ** 2, 4.0)  # sine and cosine of the heart's phase
    assert all(40 < (r.heart_rate or 0) < 110 for r in volumes)
    last_s = max(r.t_ns + len(r.values) * r.step_ns for r in recorded.records(PhysiologyRecord)) / 1e9
    assert last_s > recorded.start.tr_s * len(volumes)
    assert not [notice for notice in recorded.records(Notice) if "pulse" in notice.text]


def test_computed_again_it_is_the_same_to_the_last_bit(session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rerun", str(session), "--out", str(tmp_path / "again")]) == 0
    assert "scores: identical" in capsys.readouterr().out
    assert (tmp_path / "again" / "trials.tsv").read_bytes() == (session / "trials.tsv").read_bytes()


def test_it_is_exported_and_named_in_the_methods(session: Path, tmp_path: Path) -> None:
    bold = export(session, tmp_path / "bids")
    for name in ("cardiac", "respiratory"):
        stem = bold.name.replace("_bold.nii.gz", f"_recording-{name}_physio")
        assert (bold.parent / f"{stem}.tsv.gz").exists()
        sidecar = json.loads((bold.parent / f"{stem}.json").read_text())
        assert (sidecar["SamplingFrequency"], sidecar["StartTime"], sidecar["Columns"]) == (50.0, -30.0, [name])
    paragraphs, references = methods(gather(session))
    text = " ".join(words for _, words in paragraphs)
    assert "respiratory phases with their first harmonics" in text
    assert any("RETROICOR" in each for each in references)
