"""A whole session with nuisance terms of its volumes: recorded, interrupted and taken up, computed again."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from rtevo.record import LOG, RecordedSession, ScoreRecord
from rtevo.records import EventKind
from rtevo.run import main

from .conftest import Finished, Warm

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
[presentation]
washout_s = 5.0
[generator]
steps = 4
[simulation]
voxel_mm = [6.0, 6.0, 6.6]
"""


def test_a_session_with_nuisance_terms_is_recorded_taken_up_and_computed_again(session: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "session.toml").write_text(SESSION)
    done = session("session.toml", quick=False)
    assert done.returncode == 0, done.printed
    said = [record.nuisance for record in RecordedSession(done.out).records(ScoreRecord)]
    assert {len(each or ()) for each in said} == {2}
    assert math.isnan((said[0] or [0.0])[0])
    assert all(0 <= number <= 1 for number in said[-1] or [-1.0])

    log = done.out / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    onsets = RecordedSession(done.out).events(EventKind.ONSET)
    log.write_bytes(b"".join(lines[: onsets[len(onsets) // 2].seq + 1]))
    assert Warm(["--resume", str(done.out)], tmp_path, tmp_path / "printed").wait(400) == 0
    assert sum(row["score"] != "n/a" for row in done.table("trials.tsv")) > 8
    assert main(["--rerun", str(done.out), "--out", str(tmp_path / "again")]) == 0
    for name in ("trials.tsv", "motion.tsv", "latents.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (done.out / name).read_bytes(), name
