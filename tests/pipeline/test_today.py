"""The decoder was made on another day: head and slices lie elsewhere, and voxels have another size."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtevo.export import export
from rtevo.record import AlignedRecord, EventRecord, Notice, PlacementRecord, RecordedSession, of_kind, placement_folder
from rtevo.records import NOTES, Decision, EventKind
from rtevo.report.__main__ import main as report
from rtevo.simulate.today import Today

from .conftest import Finished, command, quickly

TODAY = "shift=14 -9 6, turn=5 -4 8, slab=-6 4 3, voxel=5 5 5.5"
ANOTHER_DAY = f"""
[session]
participant = "07"
speed = 0
[evolution]
generations = 2
population = 3
[simulation]
today = "{TODAY}"
"""


@pytest.fixture
def another_day(session: Callable[..., Finished], tmp_path: Path) -> Finished:
    (tmp_path / "day.toml").write_text(ANOTHER_DAY)
    done = session("day.toml")
    assert done.returncode == 0, done.printed
    return done


@pytest.mark.slow
def test_a_session_of_another_day_runs_is_exported_reported_and_computed_again(
    another_day: Finished, session: Callable[..., Finished], tmp_path: Path
) -> None:
    out, grid = another_day.out, Today.parse(TODAY).grid((6.0, 6.0, 6.6))
    recorded, summary = RecordedSession(out), another_day.summary
    assert recorded.grid is not None
    assert recorded.grid.difference(grid) == ""
    assert summary["shape"] == list(grid.shape)
    (placement,) = summary["placements"]
    assert (placement["own_grid"], placement["verdict"]) == (0, "good")
    pose = Today.parse(TODAY).pose
    centre = np.array([0.0, -17.0, 10.0, 1.0])  # of the brain
    assert np.linalg.norm(((placement["matrix"] - pose) @ centre)[:3]) < 1.0
    assert summary["images"]["shown"] == 6

    placed = next(r for r in recorded.records(PlacementRecord) if r.decision == Decision.ACCEPTED)
    onset = recorded.events(EventKind.ONSET)[0]
    before = [e.kind for e in of_kind(recorded.log[: onset.seq], EventRecord) if e.kind not in NOTES]
    assert onset.seq > placed.seq
    assert before == [EventKind.TRIGGER, EventKind.PAUSE, EventKind.GO_ON]
    rows = another_day.table("motion.tsv")
    assert len(rows) == summary["volumes"]["received"]
    assert all(row["trans_x"] != "n/a" for row in rows)
    assert rows[0]["dvars"] == "n/a"
    assert sum(row["score"] != "n/a" for row in another_day.table("trials.tsv")) == 6
    assert nibabel.load(placement_folder(out, 0) / "decoder" / "mask_img.nii.gz").shape == grid.shape

    again = session("--rerun", str(out), name="again", quick=False)
    assert again.returncode == 0, again.printed
    assert json.loads((again.out / "rerun.json").read_text())["scores_identical"]
    assert (again.out / "motion.tsv").read_bytes() == (out / "motion.tsv").read_bytes()

    bold = export(out, tmp_path / "bids")
    np.testing.assert_allclose(nibabel.load(bold).affine, grid.affine, atol=1e-4)
    assert report([str(out), "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "The decoder had been made on another grid" in page
    assert "data:image/png;base64" in page


@pytest.mark.slow
def test_another_persons_head_gets_no_image(session: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "day.toml").write_text(ANOTHER_DAY.replace('today = "', 'today = "person=9, '))
    done = session("day.toml")
    assert done.returncode == 1
    assert "nobody is at the console or the terminal" in done.printed
    assert "reference" in done.printed or "participant" in done.printed
    (part,) = RecordedSession(done.out).parts
    verdicts = [r.verdict for r in part.records(PlacementRecord) if r.decision != Decision.PENDING]
    assert verdicts
    assert "good" not in verdicts
    assert not part.events(EventKind.ONSET)
    assert done.summary["images"]["shown"] == 0
    assert done.summary["volumes"]["received"] > 6  # nothing is lost of what came


ASKED = """
[session]
participant = "08"
speed = 4
[evolution]
generations = 1
population = 2
[decoder]
folder = "{decoder}"
[simulation]
today = "{today}"
"""


QUESTION = "Look at"  # its beginning, where no line of the terminal is broken: other hints say "and Enter" too


def _answer(terminal: int, printed: list[str], word: str) -> None:
    """Wait for the question about the placement at the terminal, and answer it."""
    seen = "".join(printed).count(QUESTION)
    while "".join(printed).count(QUESTION) == seen:
        printed.append(os.read(terminal, 4096).decode(errors="replace"))
    os.write(terminal, f"{word}\n".encode())


@pytest.mark.slow
def test_the_operator_begins_the_scanners_run_anew_and_then_accepts_at_the_terminal(another_day: Finished, tmp_path: Path) -> None:
    """The decoder is another participant's by name: doubtful."""
    decoder, out = placement_folder(another_day.out, 0) / "decoder", tmp_path / "asked"
    (tmp_path / "asked.toml").write_text(ASKED.format(decoder=decoder, today=TODAY))
    quickly(("asked.toml",), tmp_path)
    mine, its = os.openpty()
    process = subprocess.Popen(command(out, "asked.toml"), stdin=its, stdout=its, stderr=its, cwd=tmp_path)
    os.close(its)
    printed: list[str] = []
    try:
        _answer(mine, printed, "r")
        _answer(mine, printed, "y")
        with suppress(OSError):  # the terminal's other end is closed
            while text := os.read(mine, 4096):
                printed.append(text.decode(errors="replace"))
        assert process.wait(120) == 0, "".join(printed)
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    first, second = RecordedSession(out).parts
    assert [r.action for r in first.records(Notice) if r.level == "operator"] == ["restart"]
    assert (first.end.status, second.end.status) == ("restarted", "completed")
    assert not first.events(EventKind.ONSET)
    assert len(second.events(EventKind.ONSET)) == 2
    assert [r.decision for r in second.records(PlacementRecord)] == [Decision.PENDING, Decision.ACCEPTED]
    assert (placement_folder(out, 1) / "placement-0.png").stat().st_size > 1000
    indices = [r.index for part in (first, second) for r in part.records(AlignedRecord)]
    assert indices == list(range(len(indices)))  # counted through
