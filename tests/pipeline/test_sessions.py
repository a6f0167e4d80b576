"""The closed loop from the first volume to the last picture, in lock-step: no sleeps, the same every time."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from rtevo.export.__main__ import main as export
from rtevo.record import LOG, AlignedRecord, LogWriter, RecordedSession, ScoreRecord, VolumeRecord, image_path, read_log
from rtevo.record.__main__ import main as record_command
from rtevo.records import EventKind
from rtevo.report.__main__ import main as report
from rtevo.session.course import scramble
from tests.support.long_session import WARM, measure, run_session

from .conftest import Warm

pytestmark = pytest.mark.slow
IN_LONG = pytest.mark.xdist_group("long")  # one session for all
SMALL = ("--speed", "max", "--generations", "2", "--population", "3")
CONTROLS = """
[evolution]
strategy = "truncation"
schedule = "generational"
generations = 2
population = 3
probe_every = 3
norm_limits = [0.9, 1.0]
avoid = "avoid.npy"
avoid_distance = 0.5
"""


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def published(out: Path) -> dict[tuple[int, int], list[ScoreRecord]]:
    """Return all that was ever said of each image, in order."""
    said: dict[tuple[int, int], list[ScoreRecord]] = {}
    for record in RecordedSession(out).records(ScoreRecord):
        said.setdefault((record.generation, record.candidate), []).append(record)
    return said


def test_a_session_runs_leaves_everything_and_repeats_itself_on_any_number_of_devices(
    session: Callable[..., object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("session") / "two.toml"
    file.write_text('[generator]\ndevices = ["cpu", "cpu"]\n')
    first, second = session(*SMALL, name="first", warm=False), session(str(file), *SMALL, name="second")
    assert (first.returncode, second.returncode) == (0, 0), first.printed + second.printed
    pictures = sorted((first.out / "images").rglob("*.png"))
    assert len({picture.read_bytes() for picture in pictures}) == 6
    for picture in pictures:
        assert picture.read_bytes() == (second.out / picture.relative_to(first.out)).read_bytes()
    assert first.summary["warnings"] == second.summary["warnings"] == []
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
    assert [float(t["onset"]) for t in first.table("trials.tsv")] == [6.0, 10.0, 14.0, 18.0, 22.0, 26.0]  # steady: no pause
    assert [g["shown"] for g in summary["generations"]] == [3, 3]
    assert all(math.isfinite(g["mean_fitness"]) and math.isfinite(g["mean_true_response"]) for g in summary["generations"])
    assert {name: d["n"] > 0 for name, d in summary["latencies_ms"].items()} == dict.fromkeys(summary["latencies_ms"], True)
    assert summary["warnings"] == []

    trials = first.table("trials.tsv")
    assert [t["duration"] for t in trials] == ["3.0"] * 6
    assert all(int(t["volumes_used"]) >= 4 and float(t["score_se"]) > 0 for t in trials)
    said = published(first.out)
    assert [int(t["volumes_used"]) for t in trials] == [said[key][-1].volumes_used for key in sorted(said)]
    for t in trials:  # evolution took the latest that there was when it went on
        scores = said[int(t["generation"]), int(t["candidate"])]
        assert float(t["fitness"]) in [s.score for s in scores]
        assert float(t["score"]) == scores[-1].score
        assert [s.revision for s in scores] == list(range(len(scores)))
    for trial in trials:
        assert size(image_path(first.out, int(trial["generation"]), int(trial["candidate"]))) == (64, 64)
    assert {p.name for p in first.out.iterdir()} >= {"session.toml", "session.log", "provenance.json", "record.jsonl", "decoder"}
    alone = first.out.parent / "alone"
    alone.mkdir()
    shutil.copy(first.out / "record.jsonl", alone)
    assert record_command([str(alone)]) == 0
    for name in ("trials.tsv", "motion.tsv", "summary.json", "latents.npz"):
        assert (alone / name).read_bytes() == (first.out / name).read_bytes(), name
    log = read_log(alone / "record.jsonl")
    assert [r.seq for r in log] == list(range(len(log)))
    for ring in ("volumes", "aligned", "scores", "fitness", "latents", "images", "events"):  # each on the session clock
        clock = [r.clock_ns for r in log if r.type == ring]
        assert clock == sorted(clock), ring
        assert clock[-1] > 0, ring
    assert report([str(first.out), "--to", str(alone / "whole.html")]) == 0
    whole = (alone / "whole.html").read_text(encoding="utf-8")
    assert whole.count("data:image/png") >= len(trials)  # some of them again, where they are known to be preferred
    assert "not recorded" not in whole
    shutil.copytree(first.out / "images", alone / "images")
    for name in ("evolution.json", "latent_space.npz"):
        shutil.copy(first.out / name, alone)
    assert report([str(alone), "--to", str(alone / "alone.html")]) == 0  # from log, pictures, and where evolution stood
    own = (alone / "alone.html").read_text(encoding="utf-8").replace("Session alone", f"Session {first.out.name}")
    assert own.replace("session alone", f"session {first.out.name}") == whole


def test_ratings_drive_evolution_in_the_ratings_condition(session: Callable[..., object]) -> None:
    done = session(*SMALL, "--condition", "ratings", quick=False)
    assert done.returncode == 0, done.printed
    trials, truth = done.table("trials.tsv"), done.table("hidden_truth.tsv")
    assert [t["rating"] for t in trials] == [t["rating"] + ".0" if t["rating"] != "n/a" else "n/a" for t in truth]
    assert [t["fitness"] for t in trials] == [t["rating"] for t in trials]
    assert sum(t["rating"] != "n/a" for t in trials) >= 3
    assert all(0 < float(t["response_time"]) <= 5 for t in trials if t["rating"] != "n/a")


Memory = dict[str, list[tuple[int, float]]]  # of each process, MB, by monotonic time
LONG = """
[session]
condition = "sham"
seed = 4
speed = 0.0
[evolution]
generations = 2
population = 3
[generator]
steps = 4
[presentation]
baseline_s = 180.0
[simulation]
voxel_mm = [6.0, 6.0, 6.6]
"""


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Memory]:
    """A sham session with many volumes before its images, and the memory of its processes."""
    return run_session(tmp_path_factory.mktemp("long"), LONG)


@IN_LONG
def test_memory_stays_the_same_however_many_volumes_come(long: tuple[Path, Memory]) -> None:
    """A short version of bench.bench_long: a process that keeps a quarter of each volume is found."""
    out, samples = long
    measured = measure(out, samples)
    growth_mb = {name: own["growth_mb"] for name, own in measured["memory_mb"].items()}
    assert set(growth_mb) == {"supervisor", "ingest", "decode", "evolve", "generate", "bridge", "record", "scanner", "presenter"}
    assert measured["volumes"] > 240
    volume_mb = 4 * math.prod(RecordedSession(out).grid.shape) / 2**20
    limit_mb = (measured["volumes"] - WARM) * volume_mb / 4
    assert {name: mb for name, mb in growth_mb.items() if mb > limit_mb} == {}


@IN_LONG
def test_sham_gives_each_picture_anothers_score(long: tuple[Path, Memory]) -> None:
    out, _ = long
    said = published(out)
    with (out / "trials.tsv").open(newline="", encoding="utf-8") as file:
        trials = list(csv.DictReader(file, delimiter="\t"))
    theirs = {float(t["fitness"]): {key for key in said if float(t["fitness"]) in [s.score for s in said[key]]} for t in trials}
    assert set().union(*theirs.values()) == set(said)  # every image's score went to somebody
    assert any(theirs[float(t["fitness"])] != {(int(t["generation"]), int(t["candidate"]))} for t in trials)


@pytest.mark.parametrize(
    ("series", "volumes", "speed"),
    [("siemens-mosaic", 10, "4"), ("siemens-xa30-enhanced", 20, "max"), ("philips-slices", 30, "max")],
)
def test_recorded_series_are_replayed_to_their_end(
    session: Callable[..., object], scanner_data: Callable[[str], Path], series: str, volumes: int, speed: str, tmp_path: Path
) -> None:
    folder = scanner_data(series) / "dicom"
    if series == "philips-slices":
        folder = first_volumes(folder, volumes, tmp_path / "dicom")
    done = session("--replay", str(folder), "--speed", speed, "--generations", "2", "--population", "3")
    assert done.returncode == 0, done.printed
    assert done.summary["volumes"] == {"received": volumes, "aligned": volumes, "lost": 0, "unaligned": 0, "late": 0}
    assert [row["volume"] for row in done.table("motion.tsv")] == [str(k) for k in range(volumes)]
    assert done.summary["images"]["shown"] >= 2
    if series == "philips-slices":
        assert_valid_bids(done.out, done.out.parent / "bids", "Philips")
    if series == "siemens-xa30-enhanced":
        assert_goes_on(done.out)


def first_volumes(folder: Path, count: int, into: Path) -> Path:
    """Copy the slices of a Philips run's first volumes; returns where they are."""
    into.mkdir()
    for file in folder.iterdir():
        if dcmread(file, specific_tags=["TemporalPositionIdentifier"]).TemporalPositionIdentifier <= count:
            shutil.copy2(file, into)
    return into


def assert_goes_on(out: Path) -> None:
    """Cut a replayed session's log and resume it: the recording comes once more, from its beginning, and is counted on."""
    lines = (out / LOG).read_bytes().splitlines(keepends=True)
    (out / LOG).write_bytes(b"".join(lines[: len(lines) // 2]))
    before = len(RecordedSession(out).records(VolumeRecord))
    resumed = Warm(["--resume", str(out)], out.parent)
    _, printed = resumed.communicate()
    assert resumed.returncode == 0, printed
    recorded = RecordedSession(out)
    for kind in (VolumeRecord, AlignedRecord):
        assert [r.index for r in recorded.records(kind)] == list(range(before + 20))
    shown = [(e.generation, e.candidate) for e in recorded.events(EventKind.ONSET)]
    assert len(shown) == len(set(shown)) == 6
    assert [p["status"] for p in json.loads((out / "summary.json").read_text())["parts"]] == ["interrupted", "completed"]


def test_post_encodings_and_saved_volumes(session: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("session") / "session.toml"
    file.write_text('[evolution]\nuse_post_encodings = true\n[record]\nsave_volumes = "both"\n[presentation]\nbaseline_s = 0.0\n')
    done = session(str(file), *SMALL)
    assert done.returncode == 0, done.printed
    assert len(list((done.out / "aligned").glob("*.nii.gz"))) == done.summary["volumes"]["aligned"]
    assert len(list((done.out / "volumes").glob("*.nii.gz"))) == done.summary["volumes"]["received"]
    assert_valid_bids(done.out, tmp_path_factory.mktemp("bids") / "data", "Siemens")


def assert_valid_bids(out: Path, bids: Path, vendor: str) -> None:
    """Export a session, with a note of the operator's; the data set and its derivatives must pass the validator without an error."""
    with LogWriter(out / LOG) as log:
        log.append("operator", {"action": "mark", "text": "has coughed", "stage": "", "t_ns": 5_000_000_000})
    assert export([str(out), str(bids)]) == 0
    assert "\tmark\tn/a\t" in next(bids.rglob("*_events.tsv")).read_text(encoding="utf-8")
    sidecar = json.loads(next(bids.glob("sub-*/**/*_bold.json")).read_text(encoding="utf-8"))
    assert sidecar["Manufacturer"] == vendor
    assert ("SliceTiming" in sidecar) == (vendor == "Siemens")  # Philips writes no times of slices
    for folder in (bids, bids / "derivatives" / "rtevo"):
        validator = [sys.executable, "-c", "import bids_validator_deno as v; v.cli()", "--ignoreWarnings", str(folder)]
        checked = subprocess.run(validator, capture_output=True, text=True, timeout=120)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_probes_limits_and_resumption(session: Callable[..., object], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "avoid.npy", rng.standard_normal((4, 64)))
    (tmp_path / "session.toml").write_text(CONTROLS)
    done = session(str(tmp_path / "session.toml"), "--speed", "max")
    assert done.returncode == 0, done.printed
    trials = done.table("trials.tsv")
    assert [t["probe"] for t in trials] == ["n/a", "n/a", "0", "n/a", "n/a", "1", "n/a", "n/a", "0"]
    assert [t["candidate"] for t in trials] == ["0", "1", "3", "2", "0", "3", "1", "2", "4"]
    assert [t["fitness"] == "n/a" for t in trials] == [t["probe"] != "n/a" for t in trials]
    assert done.summary["probes"]["n"] == 3
    assert done.summary["generations"][1]["images"] == 3
    with np.load(done.out / "latents.npz") as saved:
        own = saved["candidate"] < 3
        length = np.linalg.norm(saved["latents"][own], axis=1) / math.sqrt(saved["latents"].shape[1])
    assert length.min() > 0.9 - 1e-6
    assert length.max() < 1 + 1e-6

    on = session(str(tmp_path / "session.toml"), "--speed", "max", "--evolution-from", str(done.out), name="on")
    assert on.returncode == 0, on.printed
    assert "truncation" in (on.out / "evolution.json").read_text()
    state = json.loads((on.out / "evolution.json").read_text())["evolver"]
    assert len(state["latents"]) == 12
    wrong = session("--strategy", "cma", "--evolution-from", str(done.out), name="wrong")
    assert wrong.returncode == 2
    assert "expected strategy 'cma' as in this session, found 'truncation'" in wrong.printed


def test_a_blinded_session_is_yoked_and_nobody_sees_it_before_its_end(session: Callable[..., object], tmp_path: Path) -> None:
    with LogWriter(tmp_path / LOG) as log:
        for k in range(6):
            log.append("fitness", {"generation": k // 3, "candidate": k % 3, "fitness": k + 0.5})
    (tmp_path / "trials.tsv").touch()  # a session's table may be named in place of its folder
    (tmp_path / "key.tsv").write_text(f"participant\tsession\tcode\nsim\t01\t{scramble('yoked', 'sim', '01')}\n")
    (tmp_path / "session.toml").write_text(
        '[session]\ncondition = "blinded"\n[evolution]\nyoked_to = "trials.tsv"\nblinding_key = "key.tsv"\n'
    )
    done = session(str(tmp_path / "session.toml"), *SMALL)
    assert done.returncode == 0, done.printed
    assert [t["fitness"] for t in done.table("trials.tsv")] == ["0.5", "1.5", "2.5", "3.5", "4.5", "5.5"]
    assert done.summary["condition"] == "yoked"
    during, _, _ = done.printed.partition("Session completed")
    assert "yoked" not in during
    assert "fitness" not in during
    assert 'condition = "blinded"' in (done.out / "session.toml").read_text()
    (tmp_path / "key.tsv").write_text("participant\tsession\tcode\nsim\t02\tX\n")
    refused = session(str(tmp_path / "session.toml"), *SMALL, name="refused")
    assert refused.returncode == 2
    assert "expected a line for participant 'sim', session '01'" in refused.printed
