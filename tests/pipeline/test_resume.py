"""Interrupted sessions are resumed in their own folder: no record is lost, none is there twice."""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.decode import Decoder
from rtevo.errors import RtevoError
from rtevo.latent import LatentSpace
from rtevo.past.decoding import Again
from rtevo.past.evolution import go_through, measured
from rtevo.past.resume import of_next_run, resume
from rtevo.record import LOG, LogWriter, RecordedSession, earlier, hold, volume_path
from rtevo.run import main
from rtevo.session.course import make_course
from rtevo.session.decoding import Decoding
from rtevo.session.placing import Hints
from rtevo.session.plan import Plan
from tests.support.killed import KINDS, check, play, session_file

from .conftest import Running, Warm

pytestmark = pytest.mark.slow
USES_COMPLETED = pytest.mark.xdist_group("completed")  # one session for all
RUN = [sys.executable, "-m", "rtevo.run"]


@pytest.mark.parametrize("kind", [0, 1, 5])
def test_a_session_that_is_killed_at_a_random_moment_loses_and_doubles_nothing(
    tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kill each; bench.soak_resume does the same a hundred times."""
    monkeypatch.setattr("tests.support.killed.START_S", 4.0)  # everything is imported already
    outcome = play(0, KINDS[kind], 1, np.random.default_rng([7, kind]), tmp_path, lambda words, log: Warm(words, tmp_path, log))
    assert outcome.problems == []
    assert outcome.records_lost == 0
    assert len(outcome.kills) == 1


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small session."""
    out = tmp_path_factory.mktemp("completed") / "out"
    options = ("--generations", "1", "--population", "3", "--condition", "ratings")
    assert Warm([str(session_file(out.parent, {})), "--out", str(out), *options], out.parent, out.parent / "printed").wait(200) == 0
    return out


@pytest.fixture
def cut(completed: Path, tmp_path: Path) -> Callable[[float, bytes], Path]:
    """Return a function that gives a copy of the session whose log ends after a share of its records, with a piece of the next one."""

    def make(share: float, piece: bytes = b"") -> Path:
        out = tmp_path / "cut"
        shutil.copytree(completed, out)
        lines = (out / LOG).read_bytes().splitlines(keepends=True)
        (out / LOG).write_bytes(b"".join(lines[: round(share * len(lines))]) + piece)
        return out

    return make


@USES_COMPLETED
def test_a_power_cut_within_a_record_loses_that_record(cut: Callable[..., Path]) -> None:
    out = cut(0.6, b'deadbeef {"seq": 9')
    before = (out / LOG).read_bytes().removesuffix(b'deadbeef {"seq": 9')
    process = Warm(["--resume", str(out)], out.parent)
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    assert "the last record was incomplete and is dropped (18 bytes)" in printed
    assert (out / LOG).read_bytes().startswith(before)
    assert check(out) == []
    recorded = RecordedSession(out)
    assert [part.start.decoder_state for part in recorded.parts] == ["new", "kept"]
    assert recorded.status == "completed"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that expects a command line to be refused, and gives what it printed."""

    def run(*options: Any) -> str:
        assert main([str(o) for o in options]) == 2
        return capsys.readouterr().err

    return run


@USES_COMPLETED
def test_what_cannot_be_resumed_is_refused_with_the_reason(
    completed: Path, cut: Callable[..., Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "the session is complete" in refused("--resume", completed)
    assert "found no record.jsonl: start a new session" in refused("--resume", tmp_path)
    assert "expected no other option or file" in refused("--resume", completed, "--seed", 3)
    assert "expected together with --resume" in refused("--rebaseline")
    out = cut(0.5)
    with hold(out), LogWriter(out / LOG):
        assert "the session is still running" in refused("--resume", out)
    whole = (out / "session.toml").read_text()
    (out / "session.toml").write_text(whole.replace("fwhm_mm = 4.0", "fwhm_mm = 5.0"))
    (out / "decoder" / "decoder.json").write_text("{}")
    assert "the session file OUT/session.toml and the decoder changed since the session began" in refused("--resume", out)
    shutil.copytree(completed / "decoder", out / "decoder", dirs_exist_ok=True)
    (out / "session.toml").write_text(whole)
    volume_path(out, 1).unlink()
    assert "volumes are missing (first:" in refused("--resume", out)
    (out / LOG).write_bytes(b"")
    assert "nothing was recorded before the interruption" in refused("--resume", out)


def test_a_series_that_was_named_by_its_number_is_not_taken_for_the_next_run(tmp_path: Path) -> None:
    watched = {"source": "watch", "tr_s": 1.0, "folder": str(tmp_path)}
    for series, next_one in (("2", ""), ("1.3.12.2", ""), ("bold", "bold"), ("2 runs", "2 runs")):
        config = build({"acquisition": {**watched, "series": series}, "decoder": {"folder": str(tmp_path)}})
        found, words = of_next_run(config)
        assert found.acquisition.series == next_one
        assert (f"series {series} was the interrupted run's" in words) == (not next_one)
    recorded = build({"acquisition": {"source": "replay", "folder": str(tmp_path), "series": "2"}})
    assert of_next_run(recorded) == (recorded, "")  # it is delivered once more


def test_a_session_that_was_stopped_can_go_on(tmp_path: Path, running: Callable[..., tuple[Running, Path]]) -> None:
    process, out = running("--generations", "1", "--population", "2", "--speed", "4")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    done = subprocess.run([*RUN, "--resume", str(out), "--rebaseline"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert check(out) == []
    assert [p["status"] for p in json.loads((out / "summary.json").read_text())["parts"]] == ["stopped", "completed"]


HARMFUL: list[Any] = [None, True, -1, 10**18, 2**63, 1e308, math.nan, "", "../../x", "\0", [], {}, [[1]], {"a": 1}, -0.5, 99999]


def spoilt(records: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """One or a few values of a log changed to what does harm, and now and then its order."""
    records = copy.deepcopy(records)
    for _ in range(int(rng.integers(1, 4))):
        record = records[int(rng.integers(len(records)))]
        name = list(record)[int(rng.integers(len(record)))]
        record[name] = HARMFUL[int(rng.integers(len(HARMFUL)))]
    if rng.random() < 0.2:
        records = [records[k] for k in rng.permutation(len(records))]
    return [{**record, "seq": number} for number, record in enumerate(records)]


@USES_COMPLETED
def test_a_log_that_was_made_to_do_harm_is_taken_up_or_refused_with_the_reason(cut: Callable[..., Path]) -> None:
    """Its checksums are right; what resume, evolution and the decoder make of it is a session or an error of rtevo's."""
    out, rng = cut(0.6), np.random.default_rng(0)
    records = [json.loads(line.split(b" ", 1)[1]) for line in (out / LOG).read_bytes().splitlines()]
    taken_up = 0
    for _ in range(40):
        lines = [json.dumps(record).encode() for record in spoilt(records, rng)]
        (out / LOG).write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines))
        with suppress(RtevoError):
            plan, _ = resume(out)
            shutil.rmtree(plan.runtime)
            log, decoder = earlier(out, plan.part), Decoder.load(plan.decoder)
            taken_up += 1
            make = partial(_decoding, plan, decoder)
            assert sum(1 for _ in Again(out, log, make, kept=True)) < len(records)
            with suppress(ValueError):  # of another course: said by the stage
                space = LatentSpace.load(plan.latent_space)
                go_through(make_course(plan.config, plan.condition, space), log, measured(log, plan.condition))
    assert taken_up > 0


def _decoding(plan: Plan, decoder: Decoder, first: int, decide: Any) -> Decoding:
    return Decoding(plan.config, decoder, plan.tr_s, first, decide, Hints())
