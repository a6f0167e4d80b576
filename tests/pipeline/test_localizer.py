"""From known pictures to a decoder to sessions: the whole way of an experiment, as the docs have it, and what each step leaves."""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rtevo.decode import Decoder
from rtevo.decode.folder import maps_in
from rtevo.errors import DataError
from rtevo.past.rerun import rerun
from rtevo.past.resume import resume
from rtevo.record import LOG, EventRecord, ImageRecord, RecordedSession
from rtevo.record.training import localizer_in, run_of, shown_in
from rtevo.records import EventKind
from rtevo.report.__main__ import main as report

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("localizer")]
SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "the-whole-way.sh"
MOST_COMMANDS = 15
CADENCE_ERROR_S = 1e-9  # in lock-step an image appears when it is due


@dataclass
class Way:
    """What the script has left."""

    here: Path
    commands: list[str]
    printed: list[str]

    @property
    def localizer(self) -> Path:
        return self.here / "sessions" / "sub-01_ses-01_task-localizer_run-01"

    @property
    def session(self) -> RecordedSession:
        return RecordedSession(self.localizer)


def commands() -> list[str]:
    lines = [line.strip() for line in SCRIPT.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "set "))]


def done(line: str, here: Path) -> str:
    """Do one line of the script, a command of ours where all modules are imported already; returns what it printed."""
    name, *rest = shlex.split(line)
    if name != "rtevo":
        return subprocess.run(["sh", "-c", line], cwd=here, check=True, capture_output=True, text=True).stdout
    process = Warm(rest, here, module="rtevo.__main__")
    _, printed = process.communicate()
    assert process.wait(0) == 0, f"{line}\n{printed}"
    return printed


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    here = tmp_path_factory.mktemp("way")
    return Way(here, commands(), [done(line, here) for line in commands()])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_whole_way_is_fewer_than_15_commands_and_each_one_follows_from_those_before(way: Way) -> None:
    assert len(way.commands) < MOST_COMMANDS
    words = [line.split()[1] for line in way.commands if line.startswith("rtevo ")]
    assert list(dict.fromkeys(words)) == ["init", "localizer", "decode", "latent", "run", "export"]
    assert words.count("run") == 3  # a check, and two runs
    for number in (1, 2):
        run = RecordedSession(way.here / "sessions" / f"sub-01_ses-01_run-{number:02d}")
        assert run.status == "completed"
        assert run.decoder_folder == way.here / "decoder"
        assert run.decoder.name == "animal"
        assert Path(run.settings["evolution"]["pca"]) == way.here / "latent.npz"
        assert run.summary["placements"][0]["verdict"] == "good"  # the localizer's head is today's, and its participant
        assert len(run.trials["score"].dropna()) == 6
    found = {path.name for path in (way.here / "bids" / "sub-01" / "ses-01" / "func").glob("*_bold.nii.gz")}
    assert found == {f"sub-01_ses-01_task-{task}_bold.nii.gz" for task in ("localizer_run-01", "rtevo_run-01", "rtevo_run-02")}


def test_it_says_its_length_before_it_starts(way: Way) -> None:
    said = way.printed[way.commands.index("rtevo localizer session.toml --speed max")]
    assert "localizer: 4 categories (animal, face, flag, food), 16 blocks of 6 pictures, one-back, 8 targets; 3 min 51 s" in " ".join(
        said.split()
    )
    assert way.session.summary["volumes"]["received"] == pytest.approx(231 / 2.0, abs=2)


def test_pictures_appear_as_the_schedule_has_them(way: Way) -> None:
    session = way.session
    planned = session.start.trials or []
    events = session.events_table
    due_s = 6.0 + np.cumsum([0.0, *(trial["image_s"] + trial["washout_s"] for trial in planned[:-1])])
    np.testing.assert_allclose(events["onset"], due_s, atol=CADENCE_ERROR_S)
    np.testing.assert_allclose(events["duration"], 0.8, atol=CADENCE_ERROR_S)
    assert list(events["stim_file"]) == [f"{trial['category']}/{trial['file']}" for trial in planned]
    shown = {(r.generation, r.candidate): r.sha256 for r in session.records(ImageRecord)}
    kept = {name: set[str]() for name in events["stim_file"]}
    for row in events.to_dict("records"):
        kept[row["stim_file"]].add(shown[row["block"], row["position"]])
    assert all(len(digests) == 1 for digests in kept.values())  # the same pixels every time
    assert session.summary["localizer"]["largest_duration_error_ms"] < 1e-3


def test_the_run_folder_has_events_motion_and_the_tasks_result(way: Way) -> None:
    events = rows(way.localizer / "events.tsv")
    assert list(events[0])[:4] == ["onset", "duration", "trial_type", "stim_file"]
    assert Counter(row["trial_type"] for row in events) == dict.fromkeys(("animal", "face", "flag", "food"), 24)
    found = way.session.summary["localizer"]
    targets = [row for row in events if row["target"] == "1"]
    assert len(targets) == found["targets"] == 8
    assert sum(row["response"] == "hit" for row in targets) == found["hits"] >= 5  # a participant who is awake
    assert found["hits"] + found["misses"] == 8
    presses = [event for event in way.session.records(EventRecord) if event.kind == EventKind.PRESS]
    assert len(presses) == found["hits"] + found["false_alarms"]
    assert {event.text for event in presses} == {"1"}
    motion = rows(way.localizer / "motion.tsv")
    assert all(math.isfinite(float(row["trans_x"])) for row in motion)
    assert float(motion[-1]["tsnr"]) > 20
    assert not (way.localizer / "latents.npz").exists()


def test_the_decoder_tells_the_categories_apart_that_have_areas(way: Way) -> None:
    folder = way.here / "decoder"
    assert set(maps_in(folder)) == {"animal", "face", "flag", "food"}
    settings = Decoder.load(folder, "animal").settings
    assert settings["performance"]["value"] > 0.7  # AUC of held-out blocks; chance 0.5
    assert settings["participant"] == "01"
    assert list(settings["provenance"]["sha256"]) == [f"sessions/{way.localizer.name}/{LOG}"]


def test_the_export_has_the_events_with_every_picture_that_they_name(way: Way) -> None:
    bids = way.here / "bids"
    stem = "sub-01/ses-01/func/sub-01_ses-01_task-localizer_run-01"
    events = rows(bids / f"{stem}_events.tsv")
    assert len(events) == 96
    assert all((bids / "stimuli" / row["stim_file"]).is_file() for row in events)
    described = json.loads((bids / f"{stem}_events.json").read_text())
    assert set(events[0]) <= set(described)
    assert json.loads((bids / f"{stem}_bold.json").read_text())["TaskName"] == "localizer"


def test_the_report_has_the_task_the_motion_and_the_timing(way: Way, tmp_path: Path) -> None:
    assert report([str(way.localizer), "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for part in ('id="task"', "pictures that were shown twice in a row", 'id="quality"', 'id="timing"', "Pictures by category"):
        assert part in page, part
    assert 'id="fitness"' not in page


def test_a_run_that_was_cut_short_can_be_fitted(way: Way, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(way.localizer, cut)
    lines = (cut / LOG).read_bytes().splitlines(keepends=True)
    (cut / LOG).write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    session = localizer_in(cut)
    run = run_of(session)
    assert 35 < run.count < 100
    assert run.volume(run.count - 1) is not None
    events = shown_in(session, run)
    assert 30 < len(events) < 80
    assert {event.trial_type for event in events} == {"animal", "face", "flag", "food"}
    assert session.status == "unfinished"
    session.save()
    assert len(rows(cut / "events.tsv")) == len(session.events_table)


def test_a_localizer_is_neither_gone_on_with_nor_computed_again(way: Way, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a localizer: run another; `rtevo decode fit` takes several"):
        resume(way.localizer)
    config = way.session.config
    with pytest.raises(DataError, match="found a localizer: `rtevo realign`"):
        rerun(way.localizer, config, config, tmp_path / "again")
    with pytest.raises(DataError, match="found a session in which images evolve"):
        localizer_in(way.here / "sessions" / "sub-01_ses-01_run-01")


def test_single_pictures_with_dots_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    from rtevo.localizer import BUILT_IN, MARK

    for name in ("animal", "flag"):
        shutil.copytree(BUILT_IN / name, tmp_path / "mine" / name)
    (tmp_path / "s.toml").write_text(
        "[session]\nspeed = 0\n[acquisition]\ntr_s = 2.0\n[simulation]\nvoxel_mm = [10.0, 10.0, 10.0]\n"
        '[localizer]\ndesign = "events"\nfolder = "mine"\ntask = "detection"\ntargets = 0.25\nblock_images = 2\nrepetitions = 2\n'
    )
    done("rtevo localizer s.toml --out out", tmp_path)
    session = RecordedSession(tmp_path / "out")
    events = session.events_table
    assert Counter(events["trial_type"]) == {"animal": 4, "flag": 4}
    assert not (tmp_path / "out" / "pictures").exists()  # they are the site's
    found = session.summary["localizer"]
    assert (found["targets"], found["hits"] + found["misses"]) == (2, 2)
    for row in events.to_dict("records"):
        pixels = np.asarray(session.images[row["block"], row["position"]])
        assert (pixels == MARK).all(axis=-1).any() == bool(row["target"])
