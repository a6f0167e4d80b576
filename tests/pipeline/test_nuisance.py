"""A whole session with nuisance terms of its volumes: recorded, and computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rtevo.record import RecordedSession, ScoreRecord
from rtevo.run import main

from .conftest import Finished

pytestmark = [pytest.mark.slow]

SESSION = """
[session]
participant = "07"
speed = 0
[acquisition]
tr_s = 2.0
[decoder]
nuisance = ["csf", "acompcor"]
[evolution]
generations = 3
population = 4
[generator]
steps = 4
[simulation]
voxel_mm = [6.0, 6.0, 6.6]
"""


def test_a_session_with_nuisance_terms_is_recorded_and_computed_again(session: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "session.toml").write_text(SESSION)
    done = session("session.toml", quick=False)
    assert done.returncode == 0, done.printed
    said = [record.nuisance for record in RecordedSession(done.out).records(ScoreRecord)]
    assert {len(each or ()) for each in said} == {2}
    assert main(["--rerun", str(done.out), "--out", str(tmp_path / "again")]) == 0
    for name in ("trials.tsv", "motion.tsv", "latents.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (done.out / name).read_bytes(), name
