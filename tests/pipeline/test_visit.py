"""Several runs in one visit: each continues where the last one ended, and can be recomputed from its own folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.errors import ConfigError
from rtevo.record import RecordedSession
from rtevo.records import EventKind
from rtevo.run import main
from rtevo.session.plan import Plan, Visit
from rtevo.session.takeover import STATE, before_of
from rtevo.stops import Stops
from rtevo.visit import Succession, _Between

from .conftest import Warm, command, quickly

LIMIT_S = 200.0
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # of a terminal: colours, the cursor


# --- what follows, without a session -----------------------------------------------------------------------------------------------------


def plan(out: Path, attended: bool, **acquisition: str) -> Plan:
    config = build({"record": {"out": str(out)}, "acquisition": {"tr_s": 1.0, **acquisition}})
    return Plan("x", config, "brain", out, out, out, 1, 1.0, out, None, 8, (4, 4), attended=attended)


def test_the_next_run_goes_on_from_the_last_and_the_same_again_begins_where_that_began(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "a-2"
    following = Succession(plan(first, attended=True), 0)
    for folder in (first, second):
        (folder / STATE).mkdir(parents=True)
    config = following(first, {}, "next")
    assert config is not None
    assert (config.evolution.continue_from, config.decoder.continue_from) == (str(first), str(first))
    assert (config.session.run, config.record.out) == (2, str(tmp_path / "a-3"))  # a-2 is there: nothing is overwritten
    again = following(second, {}, "again")
    assert again is not None
    assert (again.evolution, again.decoder) == (config.evolution, config.decoder)
    assert again.session.run == 3
    assert following(second, {}, "end") is None


def test_a_series_that_was_asked_for_is_that_of_the_first_run_and_of_no_other(tmp_path: Path) -> None:
    watched = {"source": "watch", "folder": str(tmp_path), "series": "7"}
    for choice in ("next", "again"):
        first = plan(tmp_path / "a", attended=True)
        config = replace(first.config, acquisition=replace(first.config.acquisition, **watched))
        following = Succession(replace(first, config=config), 0)(tmp_path / "a", {}, choice)
        assert following is not None
        assert following.acquisition.series == ""  # its volumes are there already, and would be taken for the run's
    named = replace(config, acquisition=replace(config.acquisition, series="bold*"))
    following = Succession(replace(first, config=named), 0)(tmp_path / "a", {}, "again")
    assert following is not None
    assert following.acquisition.series == "bold*"


def test_where_nobody_attends_as_many_runs_follow_as_were_asked_for(tmp_path: Path) -> None:
    following = Succession(plan(tmp_path / "a", attended=False), 3)
    config = following(tmp_path / "a", {}, "next")
    assert config is not None
    assert config.decoder.continue_from == ""  # it has left no state
    assert following(tmp_path / "a-2", {}, "next") is not None
    assert following(tmp_path / "a-3", {}, "next") is None


def test_a_signal_while_the_tables_of_a_run_are_written_ends_a_visit_that_nobody_attends(tmp_path: Path) -> None:
    chosen = []

    def following(out: Path, summary: dict[str, Any], choice: str) -> None:
        chosen.append(choice)

    with Stops() as stops:
        stops.listener = lambda: None
        between = _Between(replace(plan(tmp_path / "a", attended=False), visit=Visit()), stops, following)
        for _ in range(2):
            assert between._prepared(None, None, {"status": "completed"}) is None  # type: ignore[arg-type]
            stops.take(signal.SIGTERM)
    assert chosen == ["next", "end"]


def test_a_number_of_runs_is_needed_where_nobody_can_say_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "x"), "--visit"]) == 2
    assert "--visit: expected the number of runs, because nobody is at the console or the terminal" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_runs_of_a_localizer_are_started_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "localizer.toml"
    file.write_text('[session]\ntask = "localizer"\n', encoding="utf-8")
    assert main([str(file), "--out", str(tmp_path / "x"), "--visit", "2"]) == 2
    assert "--visit: expected a session in which images evolve, got a localizer" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# --- two runs that follow each other -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The folders of two runs, and what was printed."""
    folder = tmp_path_factory.mktemp("visit")
    options = quickly(("--visit", "2", "--speed", "max", "--generations", "1", "--population", "4"), folder)
    process = Warm(command(folder / "out", *options)[3:], folder)
    _, printed = process.communicate()
    assert process.wait(LIMIT_S) == 0, printed
    return folder / "out", folder / "out-2", printed


@pytest.mark.slow
@pytest.mark.xdist_group("visit")
def test_the_second_run_of_a_visit_takes_over_what_the_first_has_learnt(visit: tuple[Path, Path, str]) -> None:
    one, two, printed = visit
    first, second = RecordedSession(one), RecordedSession(two)
    assert (first.summary["status"], second.summary["status"]) == ("completed", "completed"), printed
    assert (first.start.follows, second.start.follows) == ("", str(one))
    assert second.start.repeats is None
    assert (first.start.decoder_state, second.start.decoder_state) == ("new", "taken over")
    assert (first.config.session.run, second.config.session.run) == (1, 2)
    assert [event.text for event in first.events(EventKind.END)] == ["next"]
    assert (two / "evolution-before.json").read_bytes() == (one / "evolution.json").read_bytes()
    told = [len(json.loads((out / "evolution.json").read_text())["evolver"]["told"]) for out in (one, two)]
    assert told[1] > told[0]
    assert not np.array_equal(first.latents, second.latents)
    (placement,) = second.summary["placements"]
    assert placement["verdict"] == "good"
    stays = re.findall(r"stage (\w+) is still process", (two / "session.log").read_text())
    assert sorted(stays) == ["decode", "generate"]  # the model was not loaded again
    assert "generate: loading" not in (two / "session.log").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("visit")
def test_each_run_of_a_visit_is_computed_again_from_its_own_folder(visit: tuple[Path, Path, str], tmp_path: Path) -> None:
    one, two, _ = visit
    moved = tmp_path / "moved"
    shutil.copytree(two, moved / two.name)
    hidden = one.with_name("away"), two.with_name("away-2")
    one.rename(hidden[0])  # the second needs nothing of the first
    two.rename(hidden[1])  # and its own copies are found wherever it lies
    try:
        assert main(["--rerun", str(moved / two.name), "--out", str(tmp_path / "again")]) == 0
        assert RecordedSession(moved / two.name).config.decoder.continue_from == str(moved / two.name / "decoder-before")
    finally:
        hidden[0].rename(one)
        hidden[1].rename(two)
    found = json.loads((tmp_path / "again" / "rerun.json").read_text())
    assert found["scores_identical"]
    assert found["latents_identical"]
    assert (tmp_path / "again" / "motion.tsv").read_bytes() == (two / "motion.tsv").read_bytes()


@pytest.mark.slow
@pytest.mark.xdist_group("visit")
def test_a_state_of_another_decoder_or_other_settings_is_refused_with_what_differs(visit: tuple[Path, Path, str]) -> None:
    _, two, _ = visit
    recorded = RecordedSession(two)
    config, decoder, tr_s = recorded.config, recorded.decoder, recorded.start.tr_s
    before = before_of(config, decoder, tr_s)
    assert before is not None
    np.testing.assert_array_equal(before.place, np.eye(4))  # on the decoder's own grid
    with pytest.raises(ConfigError, match="hrf 'canonical', not 'fir'"):
        before_of(replace(config, decoder=replace(config.decoder, hrf="fir")), decoder, tr_s)
    with pytest.raises(ConfigError, match="found decoder '"):
        before_of(config, replace(decoder, weights=-decoder.weights), tr_s)
    with pytest.raises(ConfigError, match="expected the state of a run of a visit"):
        before_of(replace(config, decoder=replace(config.decoder, continue_from=str(two / "images"))), decoder, tr_s)


# --- the operator's choice at the terminal -----------------------------------------------------------------------------------------------


class Terminal:
    """Somebody who reads what is printed, and answers."""

    def __init__(self, options: tuple[str, ...], out: Path, folder: Path) -> None:
        self.mine, its = os.openpty()
        self.printed = ""
        self._from = 0  # what was printed before has been read
        self.process = Warm(command(out, *quickly(options, folder))[3:], folder, Path(os.ttyname(its)))
        self._its: int | None = its

    def read(self, words: str) -> None:
        """Read on until these words come, after those of the last time."""
        while words not in " ".join(CODES.sub("", self.printed[self._from :]).split()):
            self.printed += os.read(self.mine, 4096).decode(errors="replace")
            self._let_go()
        self._from = len(self.printed)

    def answer(self, words: str, answer: str) -> None:
        self.read(words)
        os.write(self.mine, f"{answer}\n".encode())

    def finish(self) -> int:
        """Read to the end, and return the exit status."""
        with suppress(OSError):  # the terminal's other end is closed
            while text := os.read(self.mine, 4096):
                self.printed += text.decode(errors="replace")
        return self.process.wait(LIMIT_S)

    def _let_go(self) -> None:
        """The session has opened its end: this one's copy would hide that it has ended."""
        if self._its is not None:
            os.close(self._its)
            self._its = None

    def close(self) -> None:
        self._let_go()
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        os.close(self.mine)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    started = Terminal(("--visit", "--speed", "8", "--generations", "1", "--population", "2"), tmp_path / "out", tmp_path)
    yield started
    started.close()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_then_the_visit_ends_at_the_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.read("presenter ready")
    terminal.process.send_signal(signal.SIGINT)
    terminal.answer("r (resume run", "n")  # that is not offered
    terminal.answer("r (resume run", "r")
    terminal.answer("n (next run", "e")
    assert terminal.finish() == 0, terminal.printed
    first, second = RecordedSession(tmp_path / "out").parts
    assert first.end is not None
    assert second.end is not None
    assert (first.end.status, second.end.status) == ("stopped", "completed")
    assert second.start.decoder_state == "kept"
    assert len(second.events(EventKind.ONSET)) == 2
    assert not (tmp_path / "out-2").exists()
