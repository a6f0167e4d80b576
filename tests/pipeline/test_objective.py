"""Whole sessions that maximise an objective over several maps: recorded, taken up, computed again, on another day."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rtevo.config import build
from rtevo.decode import load_decoder, write_decoder
from rtevo.record import LOG, RecordedSession, ScoreRecord
from rtevo.records import EventKind
from rtevo.run import main
from rtevo.session.simulation import simulation
from rtevo.simulate import make_decoder

from .conftest import Finished, Warm

pytestmark = [pytest.mark.slow]

TR_S = 0.867
SESSION = """
[session]
participant = "07"
speed = 0
condition = "{condition}"
[decoder]
folder = "maps"
objective = "{objective}"
[evolution]
generations = 2
population = 3
[generator]
steps = 4
[simulation]
voxel_mm = [6.0, 6.0, 6.6]
today = "{today}"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a session file, beside a folder of three maps of the simulated participant."""

    def file(objective: str, condition: str = "brain", today: str = "", name: str = "session.toml") -> str:
        made = make_decoder(simulation(build({"simulation": {"voxel_mm": [6.0, 6.0, 6.6], "today": today}}), TR_S))
        rng = np.random.default_rng(0)
        own = {"liking": {"unit": 1.0}, "noise": {"unit": 1.0}, "other": {"unit": 2.0}}
        for map_name, weights in zip(own, (made.weights, *rng.standard_normal((2, *made.grid.shape))), strict=True):
            arrays = (made.reference, made.mask, weights, made.grid.affine)
            write_decoder(tmp_path / "maps", map_name, *arrays, {**made.settings, "tr_s": TR_S}, made.noise_sd, own)
        (tmp_path / name).write_text(SESSION.format(objective=objective, condition=condition, today=today))
        return name

    return file


def same(a: Path, b: Path, *names: str) -> None:
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_session_of_a_difference_is_recorded_taken_up_and_computed_again(
    session: Callable[..., Finished], write: Callable[..., str], tmp_path: Path
) -> None:
    done = session(write("liking - 0.5 * noise - keep(other)", "sham"), quick=False)
    assert done.returncode == 0, done.printed
    rows = done.table("trials.tsv")
    names = [f"score_{name}{end}" for name in ("liking", "noise", "other") for end in ("", "_se")]
    columns = list(rows[0])
    assert columns[columns.index("score_liking") : columns.index("x0")] == names
    assert len(rows) == 6
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("score", "score_se", *names))
    records = RecordedSession(done.out).records(ScoreRecord)
    assert all(list(r.maps or {}) == ["liking", "noise", "other"] for r in records)
    page = tmp_path / "page.html"
    from rtevo.report.__main__ import main as report

    assert report([str(done.out), "--to", str(page)]) == 0
    assert "liking - 0.5 * noise - keep(other)" in page.read_text(encoding="utf-8")

    assert main(["--rerun", str(done.out), "--out", str(tmp_path / "again")]) == 0
    same(tmp_path / "again", done.out, "trials.tsv", "motion.tsv", "latents.npz")
    other = write("liking", "sham", name="liking.toml")
    assert main(["--rerun", str(done.out), str(tmp_path / other), "--out", str(tmp_path / "other")]) == 0
    changed = json.loads((tmp_path / "other" / "rerun.json").read_text())["changed"]
    assert changed == ["[decoder] objective: 'liking - 0.5 * noise - keep(other)' -> 'liking'"]
    assert "score_noise" not in (tmp_path / "other" / "trials.tsv").read_text().splitlines()[0]

    log = done.out / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    onsets = RecordedSession(done.out).events(EventKind.ONSET)
    log.write_bytes(b"".join(lines[: onsets[len(onsets) // 2].seq + 1]))
    assert Warm(["--resume", str(done.out)], tmp_path, tmp_path / "printed").wait(200) == 0
    rows = done.table("trials.tsv")
    assert [row["score_noise"] == "n/a" for row in rows] == [row["score"] == "n/a" for row in rows]
    assert sum(row["score_noise"] != "n/a" for row in rows) > 3
    assert main(["--rerun", str(done.out), "--out", str(tmp_path / "resumed")]) == 0
    same(tmp_path / "resumed", done.out, "trials.tsv", "motion.tsv", "latents.npz")


def test_on_another_day_all_maps_are_carried(session: Callable[..., Finished], write: Callable[..., str], tmp_path: Path) -> None:
    today = "shift=14 -9 6, turn=5 -4 8, slab=-6 4 3, voxel=5 5 5.5"
    done = session(write("liking - 0.5 * noise", today=today), quick=False)
    assert done.returncode == 0, done.printed
    placed = sorted(path.name for path in (done.out / "placement" / "part-00" / "decoder").glob("*_img.nii.gz"))
    assert placed == ["liking_img.nii.gz", "mask_img.nii.gz", "noise_img.nii.gz", "ref_img.nii.gz"]
    assert sum(row["score_noise"] != "n/a" for row in done.table("trials.tsv")) == 6
    assert main(["--rerun", str(done.out), "--out", str(tmp_path / "again")]) == 0
    same(tmp_path / "again", done.out, "trials.tsv", "motion.tsv", "latents.npz")


def test_a_map_that_is_not_there_is_said_before_anything_starts(session: Callable[..., Finished], write: Callable[..., str]) -> None:
    done = session(write("linking - noise"), quick=False)
    assert done.returncode != 0
    assert "unknown map 'linking': expected one of liking, noise, other; did you mean 'liking'?" in " ".join(done.printed.split())
    assert not done.out.exists()


def test_maps_of_another_reference_are_placed_on_the_first(tmp_path: Path) -> None:
    for seed, name in enumerate(("monday", "tuesday"), 1):
        made = make_decoder(simulation(build({"session": {"seed": seed}, "simulation": {"voxel_mm": [6.0, 6.0, 6.6]}}), TR_S))
        arrays = (made.reference, made.mask, made.weights, made.grid.affine)
        write_decoder(tmp_path / name, f"liking-{name}", *arrays, {**made.settings, "unit": 1.0}, made.noise_sd)
    found = load_decoder(tmp_path / "monday", None, "liking-monday + liking-tuesday", (tmp_path / "tuesday",))
    first, second = found.maps
    assert second.grid.difference(first.grid) == ""
    assert np.array_equal(first.reference, second.reference)
    both = first.mask & second.mask
    assert np.corrcoef(first.weights[both], second.weights[both])[0, 1] > 0.5  # two localizers, each with its own noise
    assert second.settings["placed"]["placement"]["verdict"] == "good"
