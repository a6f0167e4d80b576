"""The closed loop from the first volume to the last picture, in lock-step: no sleeps, the same every time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtevo import report
from rtevo.record import image_path

pytestmark = pytest.mark.slow
SMALL = ("--speed", "max", "--generations", "2", "--population", "3")


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def test_a_session_runs_leaves_everything_and_repeats_itself(session: Callable[..., object]) -> None:
    first, second = session(*SMALL, name="first"), session(*SMALL, name="second")
    assert (first.returncode, second.returncode) == (0, 0), first.printed + second.printed
    for name in ("trials.tsv", "motion.tsv", "hidden_truth.tsv"):
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes(), name
    for left, right in zip(np.load(first.out / "latents.npz").values(), np.load(second.out / "latents.npz").values(), strict=True):
        np.testing.assert_array_equal(left, right)

    summary = first.summary
    assert summary["status"] == "completed"
    assert summary["volumes"]["received"] == summary["volumes"]["aligned"] == len(first.table("motion.tsv"))
    assert summary["volumes"]["lost"] == summary["volumes"]["unaligned"] == 0
    assert summary["images"]["painted"] == summary["images"]["shown"] == 6
    assert summary["images"]["cadence_s"] == {"n": 4, "min": 4.0, "p50": 4.0, "max": 4.0}
    assert [g["shown"] for g in summary["generations"]] == [3, 3]
    assert all(math.isfinite(g["mean_fitness"]) and math.isfinite(g["mean_true_response"]) for g in summary["generations"])
    assert {name: d["n"] > 0 for name, d in summary["latencies_ms"].items()} == dict.fromkeys(summary["latencies_ms"], True)
    assert summary["warnings"] == []

    trials = first.table("trials.tsv")
    assert [t["duration"] for t in trials] == ["3.0"] * 6
    assert all(t["volumes_used"] == "3" for t in trials)
    assert all(t["fitness"] == t["score"] for t in trials)
    for trial in trials:
        assert size(image_path(first.out, int(trial["generation"]), int(trial["candidate"]))) == (64, 64)
    assert {p.name for p in first.out.iterdir()} >= {"session.toml", "session.log", "provenance.json", "record.jsonl", "decoder"}
    assert report.main([str(first.out)]) == 0
    assert size(first.out / "report.png") == (1320, 880)


def test_ratings_drive_evolution_in_the_ratings_condition(session: Callable[..., object]) -> None:
    done = session(*SMALL, "--condition", "ratings")
    assert done.returncode == 0, done.printed
    trials, truth = done.table("trials.tsv"), done.table("hidden_truth.tsv")
    assert [t["rating"] for t in trials] == [t["rating"] + ".0" if t["rating"] != "n/a" else "n/a" for t in truth]
    assert [t["fitness"] for t in trials] == [t["rating"] for t in trials]
    assert sum(t["rating"] != "n/a" for t in trials) >= 3
    assert all(0 < float(t["response_time"]) <= 5 for t in trials if t["rating"] != "n/a")


def test_sham_gives_each_picture_anothers_score(session: Callable[..., object]) -> None:
    done = session(*SMALL, "--condition", "sham", "--seed", "4")
    assert done.returncode == 0, done.printed
    trials = done.table("trials.tsv")
    for generation in "01":
        own = [t for t in trials if t["generation"] == generation]
        assert sorted(t["fitness"] for t in own) == sorted(t["score"] for t in own)
    assert any(t["fitness"] != t["score"] for t in trials)


@pytest.mark.parametrize(
    ("series", "volumes", "speed"),
    [("siemens-mosaic", 10, "max"), ("siemens-mosaic", 10, "4"), ("siemens-xa30-enhanced", 20, "max"), ("philips-slices", 78, "max")],
)
def test_recorded_series_are_replayed_to_their_end(
    session: Callable[..., object], scanner_data: Callable[[str], object], series: str, volumes: int, speed: str
) -> None:
    done = session("--replay", f"{scanner_data(series)}/dicom", "--speed", speed, "--generations", "2", "--population", "3")
    assert done.returncode == 0, done.printed
    assert done.summary["volumes"] == {"received": volumes, "aligned": volumes, "lost": 0, "unaligned": 0}
    assert [row["volume"] for row in done.table("motion.tsv")] == [str(k) for k in range(volumes)]
    assert done.summary["images"]["shown"] >= 2


def test_post_encodings_and_saved_volumes(session: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("session") / "session.toml"
    file.write_text("[evolution]\nuse_post_encodings = true\n[record]\nsave_volumes = true\n[presentation]\nbaseline_s = 0.0\n")
    done = session(str(file), *SMALL)
    assert done.returncode == 0, done.printed
    assert len(list((done.out / "aligned").glob("*.nii.gz"))) == done.summary["volumes"]["aligned"]
