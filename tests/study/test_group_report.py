"""The group report: what it says of a study that is known through and through, and what it keeps to itself while that is sealed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rtevo import records
from rtevo.config import build, dump
from rtevo.errors import DataError
from rtevo.record import LogWriter, RecordedSession, Recorder
from rtevo.records import EventKind
from rtevo.study.analysis import Analysis
from rtevo.study.checklist import ITEMS, checklist
from rtevo.study.group import Group, gather_group
from rtevo.study.report import _participants, write

SECOND_NS = 1_000_000_000
GENERATIONS, POPULATION = 4, 3
NOISE = 0.05  # of a score, at most; a slope's is as large at most


@dataclass(frozen=True)
class Run:
    participant: str
    visit: str
    run: int
    kind: str
    folder: Path
    status: str = "completed"
    counts: bool = True
    excluded: str = ""


@dataclass(frozen=True)
class Study:
    """What the report asks of a study, with its arms in plain sight of the test."""

    runs: list[Run]
    allocation: dict[str, str]
    blocks: dict[str, str]
    unsealed: bool = True
    probes: bool = True
    shift: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def participants(self) -> list[str]:
        return list(self.allocation)

    def arms(self) -> dict[str, str]:
        assert self.unsealed, "the report asked for sealed arms"
        return self.allocation

    def pairs(self) -> dict[str, str]:
        return self.blocks

    def table(self) -> pd.DataFrame:
        frames = []
        for run in self.runs:
            if (run.folder / "record.jsonl").exists():
                trials = RecordedSession(run.folder).trials.rename(columns={"score_se": "se"})  # fitness too, which tells the sham arm
                frames.append(trials.assign(participant=run.participant, visit=run.visit, run=run.run, counts=run.counts))
        whole = pd.concat(frames, ignore_index=True)
        return whole if self.probes else whole[whole["probe"].isna()]


def slot(dtype: np.dtype[np.void], **fields: object) -> np.void:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record[()]


def record(out: Path, rise: float, start: float, displacement_mm: float, condition: str) -> Path:
    """Write a run's folder: twelve images whose scores rise by so much, with a little noise, one probe a generation, six volumes."""
    noise = np.random.default_rng(int(start))
    out.mkdir(parents=True)
    (out / "session.toml").write_text(dump(build({})), encoding="utf-8")
    begun = {"rtevo": "9.9", "tr_s": 2.0, "shape": [4, 3, 2], "affine": np.eye(4).tolist(), "source": "simulate", "seed": 7, "speed": 1.0}
    with LogWriter(out / "record.jsonl") as log:
        log.append("start", {**begun, "condition": "blinded", "provenance": {"processor": "abacus", "packages": {"numpy": "7.7"}}})
    recorder = Recorder(out)
    recorder.take("events", slot(records.event_dtype(), kind=EventKind.TRIGGER, t_ns=10 * SECOND_NS))
    for index in range(6):
        recorder.take("aligned", slot(records.aligned_dtype(), index=index, framewise_displacement_mm=displacement_mm, tsnr=50.0))
    number = 0
    for generation in range(GENERATIONS):
        for candidate in range(POPULATION + 1):
            probe = candidate - POPULATION
            score = start + (0.5 if probe == 0 else rise * (generation * POPULATION + candidate) / (GENERATIONS * POPULATION - 1))
            score += NOISE * noise.uniform(-1, 1) * (probe < 0)
            own = {"generation": generation, "candidate": candidate}
            recorder.take("latents", slot(records.latent_dtype(3, 2), **own, probe=min(probe, 0)))
            pixels = np.full((8, 8, 3), 20 * candidate + 40 * generation)
            recorder.take("images", slot(records.image_dtype(8, 8, 2), **own, painted_ns=1, pixels=pixels))
            at = int((16 + 4 * number) * SECOND_NS)
            recorder.take("events", slot(records.event_dtype(), **own, kind=EventKind.ONSET, t_ns=at))
            recorder.take("events", slot(records.event_dtype(), **own, kind=EventKind.OFFSET, t_ns=at + 3 * SECOND_NS))
            recorder.take("scores", slot(records.score_dtype(), **own, scored_ns=at, score=score, score_se=0.5))
            number += 1
    recorder.log.append("end", {"status": "completed", "condition": condition})
    recorder.log.close()
    return out


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Six pairs; the brain arm rises by 2 more. One pair's run moved too much; one participant has a second run, one a localizer."""
    folder = tmp_path_factory.mktemp("study")
    participants = [f"{k:02d}" for k in range(1, 13)]
    arms = {who: "brain" if k % 4 in (0, 3) else "sham" for k, who in enumerate(participants)}
    runs = []
    for k, who in enumerate(participants):
        brain = arms[who] == "brain"
        out = record(folder / f"sub-{who}_run-1", 0.1 * k + 2 * brain, 5.0 * k, 0.1 + 0.2 * brain + 0.01 * k, arms[who])
        runs.append(Run(who, "1", 1, "loop", out))
    runs[1] = replace(runs[1], counts=False, excluded="mean framewise displacement 0.81 mm, allowed 0.5 mm")
    second = record(folder / "sub-01_run-2", 1.0, 40.0, 0.1, "brain")
    more = [Run("01", "1", 2, "loop", second), Run("02", "1", 2, "localizer", folder / "none")]
    more += [Run("03", "2", 1, "loop", folder / "none", "interrupted", False)]
    return Study([*runs, *more], arms, {who: f"pair {k // 2}" for k, who in enumerate(participants)})


@pytest.fixture(scope="module")
def group(study: Study) -> Group:
    return gather_group(study, Analysis(summary="slope"))


class Text(HTMLParser):
    """The words of a page, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.loads = "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and not value.startswith(("data:", "#"))]

    def handle_data(self, data: str) -> None:
        self.words += f" {' '.join(data.split())}"


def written(group: Group, out: Path) -> tuple[Text, dict[str, pd.DataFrame]]:
    paths = write(group, "cats", out)
    return Text(paths[0].read_text(encoding="utf-8")), {path.stem: pd.read_csv(path, dtype={"participant": str}) for path in paths[1:]}


def test_the_effect_is_that_of_the_pairs_that_are_whole(group: Group) -> None:
    (only,) = group.effects
    assert (only.treated, only.control) == ("brain", "sham")
    assert only.effect.alone == ("01",)
    assert (only.effect.treated, only.effect.control, only.effect.allocations) == (5, 5, 32)
    later = np.mean([0.1, -0.1, 0.1, -0.1, 0.1])  # pair by pair: who comes later rises by 0.1 more
    assert only.effect.estimate == pytest.approx(2 + later, abs=NOISE)
    assert only.effect.p == only.adjusted_p == 2 / 32
    assert only.mixed is not None
    assert only.mixed.low < 2 < only.mixed.high


def test_runs_are_put_on_one_zero_by_their_probes(group: Group) -> None:
    assert group.course.anchored
    first = group.participants.loc["01"]
    assert (first["runs"], first["images"]) == (2, 24)
    own = group.course.images.query("participant == '01'")["level"]
    rise = np.r_[2 * np.linspace(0, 1, 12), np.linspace(0, 1, 12)]
    np.testing.assert_allclose(own, rise - rise[:8].mean(), atol=2.01 * NOISE)  # and single precision


def test_motion_is_compared_too(group: Group) -> None:
    displacement, spikes = group.motion
    assert displacement.effect.estimate == pytest.approx(0.2, abs=0.01)
    assert spikes.effect.estimate == 0
    assert displacement.mixed is None


def test_page_and_tables_hold_what_was_found(group: Group, tmp_path: Path) -> None:
    text, tables = written(group, tmp_path / "report")
    assert not text.loads
    for words in (
        "cats",
        "12 loops that count, 2 runs left out",
        "brain − sham",
        "0.0625 (32)",
        "mean framewise displacement 0.81 mm, allowed 0.5 mm",
        "left in the other arm: 01",
    ):
        assert words in text.words
    assert "no loop that counts" in text.words  # of participant 02
    assert set(tables) == {"participants", "trajectories", "images", "exclusions", "checklist", "arms", "effects"}
    assert tables["effects"]["estimate"].iloc[0] == pytest.approx(group.effects[0].effect.estimate)
    assert tables["exclusions"]["participant"].tolist() == ["02", "03", "02"]
    assert len(tables["images"]) == 12 * 12
    assert sorted(tables["participants"]["arm"]) == ["brain"] * 6 + ["sham"] * 6
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count('<figure class="picture"') == 11 * 2 * 3


def test_the_same_study_gives_the_same_report(group: Group, study: Study, tmp_path: Path) -> None:
    one, other = (write(g, "cats", tmp_path / name) for name, g in (("a", group), ("b", gather_group(study, Analysis(summary="slope")))))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_sealed_study_shows_everybody_together_and_no_arm(study: Study, tmp_path: Path) -> None:
    sealed = gather_group(replace(study, unsealed=False), Analysis(summary="slope"))
    text, tables = written(sealed, tmp_path)
    assert "The allocation is sealed" in text.words
    assert [row[2:4] for row in _participants(sealed)] == [[str(p.runs), str(p.images)] for p in sealed.participants.itertuples()]
    assert "all participants" in text.words
    assert not {"arms", "effects"} & set(tables)
    for path in tmp_path.iterdir():
        words = text.words if path.suffix == ".html" else path.read_text(encoding="utf-8")
        assert "sham" not in words, path.name
    assert not {"arm", "block", "fitness"} & {column for table in tables.values() for column in table}
    assert "mean framewise displacement 0.81 mm" in text.words  # what is decided before unsealing


def test_without_probes_the_report_says_that_gain_across_runs_is_not_identified(study: Study, tmp_path: Path) -> None:
    sealed = replace(study, probes=False, unsealed=False)
    text, _ = written(gather_group(sealed, Analysis(summary="slope")), tmp_path)
    assert "Absolute gain across runs is not identified" in text.words
    assert "the runs of 01" in text.words


def test_too_few_participants_are_said_to_be(study: Study, tmp_path: Path) -> None:
    few = {who: study.allocation[who] for who in list(study.allocation)[2:6]}
    small = replace(study, runs=[run for run in study.runs if run.participant in few], allocation=few)
    text, _ = written(gather_group(small, Analysis()), tmp_path)
    assert "4 allocations cannot reject at 0.05" in text.words
    assert "−∞ to ∞" in text.words


def test_the_checklist_is_filled_in_as_far_as_records_know(group: Group, tmp_path: Path) -> None:
    _, tables = written(group, tmp_path)
    found = tables["checklist"].fillna("").set_index("number")
    assert list(found.index) == list(ITEMS)
    assert "brain (6 participants), sham (6 participants)" in found.loc["2a", "answer"]
    assert "abacus" in found.loc["4e", "answer"]
    assert "numpy 7.7" in found.loc["4e", "answer"]
    assert "[" not in found.loc["3d", "answer"] + found.loc["4a", "answer"]  # references without a list
    assert "framewise displacement" in found.loc["3e", "answer"]
    assert "p = 0.0625" in found.loc["5c", "answer"]
    assert found.loc["3b", "missing"] == found.loc["6a", "missing"] == "not known to rtevo: fill in"
    assert {item.number for item in checklist(group, None) if not item.answer} >= {"3d", "4a", "4b", "4c", "4e"}


def test_what_cannot_be_reported_is_said(study: Study) -> None:
    with pytest.raises(DataError, match="at least one loop that counts"):
        gather_group(replace(study, runs=[run for run in study.runs if not run.counts]), Analysis())
    with pytest.raises(DataError, match=r"treated: expected one of the study's arms \(brain, sham\), got 'yoked'"):
        gather_group(study, Analysis(treated="yoked"))
