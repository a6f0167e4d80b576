"""A recorded session computed again: the same to the last bit with its own settings, compared with what was recorded with others."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtevo.config import load
from rtevo.evolve.together import Link
from rtevo.record import LOG, LogWriter, RecordedSession, ScoreRecord, evolution_of, read_log
from rtevo.records import EventKind
from rtevo.run import main
from rtevo.session.checks import check_space
from rtevo.session.course import make_course, state_of
from tests.support.killed import session_file

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rerun")]  # one session for all


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small session that was interrupted and resumed."""
    out = tmp_path_factory.mktemp("session") / "out"
    file = session_file(out.parent, {"probe_every": 3, "condition": "sham"})
    assert Warm([str(file), "--out", str(out), "--generations", "3"], out.parent, out.parent / "printed").wait(200) == 0
    lines = (out / LOG).read_bytes().splitlines(keepends=True)
    onsets = RecordedSession(out).events(EventKind.ONSET)
    (out / LOG).write_bytes(b"".join(lines[: onsets[len(onsets) // 2].seq + 1]))  # not where warnings about time move it to
    assert Warm(["--resume", str(out)], out.parent, out.parent / "printed").wait(200) == 0
    return out


def test_with_the_same_settings_everything_is_the_same_to_the_last_bit(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["--rerun", str(session), "--out", str(again)]) == 0
    printed = capsys.readouterr().out
    for name in ("trials.tsv", "motion.tsv", "latents.npz"):
        assert (again / name).read_bytes() == (session / name).read_bytes(), name
    assert "changed: nothing" in printed
    assert "scores: identical" in printed
    asked = np.load(again / "rerun.npz")
    recorded = np.load(session / "latents.npz")
    order = np.lexsort((recorded["candidate"], recorded["generation"]))
    again_order = np.lexsort((asked["candidate"], asked["generation"]))
    assert asked["latents"][again_order].tobytes() == recorded["latents"][order].tobytes()
    scores = [
        [(r.generation, r.candidate, r.revision, r.score) for r in RecordedSession(out).records(ScoreRecord)] for out in (session, again)
    ]
    assert sorted(map(repr, scores[0])) == sorted(map(repr, scores[1]))


def test_decoding_takes_events_and_volumes_as_it_did_in_whatever_order_they_were_recorded(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(session, other)
    log = read_log(other / LOG)
    onset = RecordedSession(session).events(EventKind.ONSET)[2]
    after = next(k for k in range(onset.seq, len(log)) if isinstance(log[k], ScoreRecord)) + 1
    (other / LOG).unlink()
    with LogWriter(other / LOG) as new:
        for each in [*log[: onset.seq], *log[onset.seq + 1 : after], onset, *log[after:]]:
            new.append(each.type, each.fields(), each.clock_ns)
    assert main(["--rerun", str(other), "--out", str(tmp_path / "again")]) == 0
    assert "scores: identical" in capsys.readouterr().out


def test_with_other_settings_what_would_have_been_is_compared(session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.toml").write_text('[decoder]\nmethod = "peak"\n')
    again = tmp_path / "again"
    options = [str(tmp_path / "other.toml"), "--condition", "brain", "--strategy", "truncation", "--out", str(again)]
    assert main(["--rerun", str(session), *options]) == 0
    result = json.loads((again / "rerun.json").read_text())
    assert {line.partition(":")[0] for line in result["changed"]} == {"[session] condition", "[decoder] method", "[evolution] strategy"}
    assert result["scores_identical"] is False
    assert result["latents_identical"] is False
    assert -1 <= result["rank_correlation"] <= 1
    with (again / "rerun.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == result["images"] == 9
    assert all(abs(float(row["score"])) <= 1 for row in rows if row["score"] != "n/a")  # correlations now
    with Image.open(again / "rerun.png") as picture:
        assert picture.size == (1320, 506)
    trials = [(session / "trials.tsv").read_text().splitlines(), (again / "trials.tsv").read_text().splitlines()]
    assert len(trials[0]) == len(trials[1])


def test_what_cannot_be_computed_again_is_refused_with_the_reason(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        assert main(["--rerun", str(session), "--out", str(tmp_path / "again"), *options]) == 2
        assert not (tmp_path / "again").exists()
        return capsys.readouterr().err

    assert "[evolution] population: expected 3 as in the session that is computed again, got 4" in refused("--population", "4")
    assert "expected a folder that does not exist yet" in refused("--out", str(tmp_path))
    assert main(["--rerun", str(tmp_path)]) == 2
    assert "session.toml" in capsys.readouterr().err


def test_a_session_that_went_on_from_earlier_runs_is_taken_up_and_computed_again_to_the_last_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, before = session_file(tmp_path, {"probe_every": 3}), tmp_path / "out", ""
    for number in range(2):
        config = load(file)
        config = replace(config, evolution=replace(config.evolution, continue_from=before))
        space = check_space(config, 64)
        course, rng = make_course(config, "brain", space), np.random.default_rng(number)
        while asked := course.due():
            for request in asked:
                course.show()
                score = 10 * number + float(rng.standard_normal())
                course.score(request.generation, request.candidate, score, 1.0, Link.of(0.0, score, 1.0, ()))
        before = str(tmp_path / f"{number}.json")
        Path(before).write_text(json.dumps(state_of(course, space)), encoding="utf-8")
    arguments = [str(file), "--out", str(out), "--evolution-from", before]
    assert Warm(arguments, tmp_path, tmp_path / "printed").wait(200) == 0, (tmp_path / "printed").read_text()
    runs = evolution_of(out)["evolver"]["runs"]
    assert len(runs) == 3
    lines = (out / LOG).read_bytes().splitlines(keepends=True)
    onsets = RecordedSession(out).events(EventKind.ONSET)
    (out / LOG).write_bytes(b"".join(lines[: onsets[len(onsets) // 2].seq + 1]))
    assert Warm(["--resume", str(out)], tmp_path, tmp_path / "printed").wait(200) == 0
    assert evolution_of(out)["evolver"]["runs"] == runs
    assert main(["--rerun", str(out), "--out", str(tmp_path / "again")]) == 0
    assert "scores: identical" in capsys.readouterr().out
    assert (tmp_path / "again" / "latents.npz").read_bytes() == (out / "latents.npz").read_bytes()
    asked, recorded = np.load(tmp_path / "again" / "rerun.npz"), np.load(out / "latents.npz")
    order, again = (np.lexsort((each["candidate"], each["generation"])) for each in (recorded, asked))
    assert asked["latents"][again].tobytes() == recorded["latents"][order].tobytes()
