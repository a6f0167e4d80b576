"""Power by simulated studies: the same digits wherever they run, and whichever workers are lost."""

from __future__ import annotations

import argparse
import math
import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rtevo.evolve.jobs import add_options, run_all
from rtevo.study.power import ARMS, Cell, Found, Member, Need, cells, enough, main, play_member

SMALL = Member(0, "brain", 0, seed=3, runs=2, generations=3, population=5, size=6, cnr=1.0)
MEMBERS = [replace(SMALL, study=study, arm=arm, place=place) for study in range(2) for place in range(4) for arm in ARMS]


def test_a_participant_depends_on_their_own_seed_alone() -> None:
    one = play_member(SMALL)
    assert one == play_member(SMALL)
    others = [play_member(replace(SMALL, **other)) for other in ({"arm": "sham"}, {"place": 1}, {"study": 1}, {"seed": 4})]
    assert len({found.own_cnr for found in [one, *others]}) == 5


def test_fewer_runs_are_the_first_ones() -> None:
    three = play_member(replace(SMALL, runs=3, dropout=0.0))
    assert (three.ended, len(three.summaries)) == (3, 3)
    assert play_member(replace(SMALL, runs=1, dropout=0.0)).summaries == three.summaries[:1]


def test_who_drops_out_counts_with_what_they_have_ended() -> None:
    found = [play_member(replace(SMALL, place=place, runs=3, dropout=0.6)) for place in range(12)]
    assert {one.ended for one in found} >= {0, 1}
    for one in found:
        assert all(math.isnan(value) == (one.ended == 0) for value in one.summaries)
        assert one.ended == 0 or set(one.summaries[one.ended - 1 :]) == {one.summaries[one.ended - 1]}


def test_participants_differ_in_contrast_lag_and_preference() -> None:
    found = [play_member(replace(SMALL, place=place, runs=1, cnr_spread=0.5, lag_spread_s=2.0, dropout=0.0)) for place in range(40)]
    assert np.std([math.log(one.own_cnr) for one in found]) == pytest.approx(0.5, abs=0.2)
    assert np.std([one.own_lag_s for one in found]) == pytest.approx(2.0, abs=0.7)
    alike = play_member(replace(SMALL, cnr_spread=0.0, lag_spread_s=0.0))
    assert (alike.own_cnr, alike.own_lag_s) == (1.0, 12.0)


def test_brain_feedback_gains_and_sham_does_not() -> None:
    easy = replace(SMALL, runs=1, generations=8, size=10, cnr=2.0, cnr_spread=0.0, dropout=0.0)
    brain, sham = (np.array([play_member(replace(easy, arm=arm, place=place)).truths[0] for place in range(12)]) for arm in ARMS)
    assert brain.mean() > 1
    assert abs(sham.mean()) < 3 * sham.std(ddof=1) / math.sqrt(12)


def test_a_map_that_measures_something_else_too_gains_less() -> None:
    easy = replace(SMALL, runs=1, generations=8, size=10, cnr=2.0, dropout=0.0)
    perfect, poor = (np.mean([play_member(replace(easy, quality=r, place=k)).truths[0] for k in range(12)]) for r in (1.0, 0.3))
    assert poor < 0.7 * perfect


def test_power_is_the_share_of_studies_that_find_it() -> None:
    found = {
        (study, arm, place): Found((float(arm == "brain") + 0.01 * place, 0.0), (0.0, 0.0), 2, 1.0, 12.0)
        for study in range(4)
        for arm in ARMS
        for place in range(8)
    }
    found |= {(3, arm, place): Found((math.nan, math.nan), (math.nan, math.nan), 0, 1.0, 12.0) for arm in ARMS for place in range(8)}
    result = cells(found, [4, 8], 2, 0.05, 0)
    assert [(c.participants, c.runs, c.detected) for c in result] == [(4, 1, 0), (4, 2, 0), (8, 1, 3), (8, 2, 0)]
    assert result[2].power == 0.75
    assert result[2].se == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert result[2].effect == pytest.approx(1.0)


def test_the_fewest_that_are_enough_are_named_with_their_error() -> None:
    found = [Cell(n, 1, 100, k, 1.0) for n, k in ((6, 40), (8, 75), (10, 84), (12, 95))] + [Cell(n, 2, 100, 10, 1.0) for n in (6, 12)]
    assert enough(found, 0.8) == [Need(1, 10, 8, 12), Need(2, None, None, None)]


# --- on several machines ---------------------------------------------------------------------------------------------------------------


def options(*arguments: str) -> argparse.Namespace:
    p = argparse.ArgumentParser()
    add_options(p)
    return p.parse_args(arguments)


@pytest.fixture
def two_workers() -> Iterator[Any]:
    """Return the client of a local cluster of two processes, whose scheduler gives up what a lost worker had at once."""
    distributed = pytest.importorskip("distributed")
    import dask

    with warnings.catch_warnings(), dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        warnings.simplefilter("ignore")  # of the library, while it starts and stops
        local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 40}
        with distributed.LocalCluster(**local) as cluster, distributed.Client(cluster) as where:
            yield where


@pytest.mark.slow
def test_losing_a_worker_loses_nothing_and_changes_no_digit(two_workers: Any, tmp_path: Path) -> None:
    keep, killed = tmp_path / "participants.jsonl", []

    def kill_one(done: int, total: int) -> None:
        """Kill a worker after the first outcome, so that its other jobs are lost."""
        if not killed:
            killed.append(next(iter(processes.values())))
            os.kill(killed[0], signal.SIGKILL)

    processes = two_workers.run(os.getpid)
    found = run_all(MEMBERS, play_member, Member, Found, two_workers, keep, kill_one)
    assert killed
    alone = [play_member(member) for member in MEMBERS]
    np.testing.assert_equal([asdict(one) for one in found], [asdict(one) for one in alone])
    again = run_all(MEMBERS, play_member, Member, Found, keep=keep, on_progress=lambda done, total: pytest.fail("was run again"))
    np.testing.assert_equal([asdict(one) for one in again], [asdict(one) for one in alone])


# --- the command -----------------------------------------------------------------------------------------------------------------------

COMMAND = ["--minutes", "2", "--cnr", "1", "--size", "5", "--population", "5", "--participants", "4", "2", "--runs", "2", "--studies", "3"]


def test_the_command_writes_table_and_figure_and_says_what_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan"
    assert main([*COMMAND, "--jobs", "0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 runs a participant: 4 participants an arm are not enough for 80% power" in printed
    table = pd.read_csv(out / "power.csv")
    assert table[["participants", "runs"]].to_numpy().tolist() == [[2, 1], [2, 2], [4, 1], [4, 2]]
    assert (table["power"] == 0).all()  # four pairs have sixteen allocations: p is 0.125 at least
    assert (out / "power.png").stat().st_size > 10_000
    kept = (out / "participants.jsonl").read_text().splitlines()
    assert len(kept) == 3 * 2 * 4
    (out / "participants.jsonl").write_text("\n".join(kept[:10]) + "\n" + kept[10][:30])  # killed while it wrote
    assert main([*COMMAND, "--jobs", "0", "--out", str(out)]) == 0
    assert (out / "participants.jsonl").read_text().splitlines() == kept
    assert capsys.readouterr().out == printed


def test_all_mistakes_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan"
    assert main(["--minutes", "0", "--cnr", "-1", "--dropout", "1", "--participants", "1", "--runs", "0", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    for name in ("minutes", "cnr", "dropout", "participants", "runs"):
        assert f"rtevo: --{name}: expected" in said
    assert main(["--minutes", "1", "--cnr", "1", "--out", str(out)]) == 2
    assert "three generations" in capsys.readouterr().err
    assert not out.exists()
