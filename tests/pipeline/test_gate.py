"""Whole sessions in which pictures are marked at random as not to be seen: none of them ever is."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtevo.record import FitnessRecord, ImageRecord, RecordedSession, RefusedRecord, hidden_truth, image_path, refused_path
from rtevo.records import EventKind, Given
from rtevo.run import main
from tests.support import filters

from .conftest import Finished, Running, command, quickly

pytestmark = pytest.mark.slow
GATED = """
[evolution]
generations = 2
population = 6

[safety]
filters = ["marked-at-random"]
keep_away = 0.1
deadline_s = 3.0
"""


def pixels(path: Path) -> bytes:
    with Image.open(path) as opened:
        return np.asarray(opened).tobytes()


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Return a function that runs a session with the filter installed, in which it fails in a given way."""
    filters.install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{Path(__file__).parents[2]}")

    monkeypatch.setenv("RTEVO_TEST_FILTER", str(tmp_path / "way"))
    (tmp_path / "way").touch()
    (tmp_path / "gated.toml").write_text(GATED)

    def run(*options: str, way: str = "") -> Finished:
        (tmp_path / "way").write_text(way)
        out = tmp_path / "out"
        words = command(out, *quickly(("gated.toml", *options), tmp_path))
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        return Finished(out, done.returncode, done.stdout + done.stderr)

    return run


def check_nothing_marked_was_seen(out: Path) -> None:
    session = RecordedSession(out)
    marked = {short(pixels(refused_path(out, r.generation, r.candidate, r.attempt))) for r in session.records(RefusedRecord)}
    seen = set(hidden_truth(out))
    assert marked
    assert not marked & seen
    for record in session.records(ImageRecord):
        if not record.refused:
            assert not filters.is_marked(pixels(image_path(out, record.generation, record.candidate)))


def test_the_cadence_holds_though_pictures_are_refused_and_the_filter_hangs_dies_and_raises(
    gated: Callable[..., Finished], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = gated("--speed", "max", way="hang die raise")
    assert done.returncode == 0, done.printed
    check_nothing_marked_was_seen(done.out)
    session = RecordedSession(done.out)
    assert done.summary["images"]["shown"] == 12  # in place of what was refused others were asked for
    np.testing.assert_array_equal(np.diff(session.trials["onset"].dropna()), 4.0)
    refused = session.records(RefusedRecord)
    twice = [r for r in session.records(ImageRecord) if r.refused]
    assert len(refused) > len(twice)
    given = [(r.generation, r.candidate) for r in session.records(FitnessRecord) if r.given_up == Given.REFUSED]
    assert given == [(r.generation, r.candidate) for r in twice]
    found = [r.verdict[-1] for r in refused if r.verdict]
    assert any(finding["reason"] == "it is marked (1, limit 0.5)" for finding in found)
    failed = [finding for finding in found if finding["value"] is None]
    assert failed  # refused because nobody could say
    assert all("is not shown" in finding["reason"] for finding in failed)
    assert any("gate: filter marked-at-random" in text for text in done.summary["warnings"])
    table = session.trials
    assert table["refused"].sum() == len(refused)
    assert table["onset"].isna().sum() == len(twice)
    # the same again, computed from what is kept
    assert main(["--rerun", str(done.out), "--out", str(tmp_path / "again")]) == 0
    printed = capsys.readouterr().out
    assert "scores: identical" in printed
    assert "latents requested: identical" in printed


def test_nothing_marked_is_seen_though_the_generator_is_killed_while_marked_pictures_wait(
    gated: Callable[..., Finished], running: Callable[..., tuple[Running, Path]], tmp_path: Path
) -> None:
    process, out = running("gated.toml", "--population", "3", "--speed", "8", warm=False)
    while not RecordedSession(out).records(RefusedRecord):
        time.sleep(0.02)
    pid = re.search(r"stage generate is process (\d+)", (out / "session.log").read_text())
    assert pid is not None
    os.kill(int(pid[1]), signal.SIGKILL)
    _, printed = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "stage 'generate' failed: was killed by signal 9 (SIGKILL)" in printed
    subprocess.run([sys.executable, "-m", "rtevo.run", "--resume", str(out), "--rebaseline"], check=True, timeout=200)
    check_nothing_marked_was_seen(out)
    first, second = RecordedSession(out).parts
    assert first.end.status == "failed"
    assert sum(len(part.events(EventKind.ONSET)) for part in (first, second)) == 6
