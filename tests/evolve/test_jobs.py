"""Simulated runs: the same wherever they run, kept as they come; and what is planned with them."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.errors import ConfigError
from rtevo.evolve import create, jobs, plan
from rtevo.evolve.__main__ import main
from rtevo.evolve.jobs import add_options, client, run_cases
from rtevo.evolve.rehearse import OBJECTIVES, Case, Outcome, _Run, mixed, play, standardised

CASES = [
    Case(strategy, "cosine", 3, 4, 0.5, seed, schedule, size=6)
    for strategy in ("surrogate", "truncation", "cma")
    for schedule in ("steady", "generational")
    for seed in range(2)
]


@pytest.fixture
def two_workers() -> Iterator[Any]:
    """Return a Dask cluster of two processes."""
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, while it starts and stops
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=40) as cluster:
            yield cluster


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives(two_workers: Any) -> None:
    with client(options("--scheduler", two_workers.scheduler_address)) as where:
        assert len(where.scheduler_info(n_workers=-1)["workers"]) == 2
        assert run_cases(CASES, where) == run_cases(CASES)


@pytest.mark.slow
def test_two_processes_give_what_one_gives_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # as where it is not installed
    with client(options("--jobs", "2")) as where:
        assert run_cases(CASES, where) == run_cases(CASES)
    with pytest.raises(ConfigError, match="distributed is not installed: pip install"), client(options("--scheduler", "tcp://127.0.0.1:1")):
        pass


def test_outcomes_are_kept_and_not_run_again(tmp_path: Path) -> None:
    keep, played = tmp_path / "keep.jsonl", []

    def count(case: Case) -> Outcome:
        played.append(case)
        if len(played) == 4:
            raise KeyboardInterrupt
        return play(case)

    with pytest.raises(KeyboardInterrupt):
        run_cases(CASES, keep=keep, play_case=count)
    assert len(keep.read_text().splitlines()) == 3
    keep.write_text(keep.read_text() + '{"strategy": "surr')  # cut short
    seen: list[tuple[int, int]] = []
    outcomes = run_cases(CASES, keep=keep, play_case=count, on_progress=lambda done, total: seen.append((done, total)))
    assert len(played) == 4 + len(CASES) - 3
    assert seen[0] == (4, len(CASES))
    assert seen[-1] == (len(CASES), len(CASES))
    assert outcomes == run_cases(CASES)
    assert [json.loads(line)["seed"] for line in keep.read_text().splitlines()] == [case.seed for case in CASES]
    keep.write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1: expected an outcome"):
        run_cases(CASES, keep=keep)


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(jobs, "ANSWER_S", 0.5)
    with pytest.raises(ConfigError, match="no Dask scheduler answers"), client(options("--scheduler", "tcp://127.0.0.1:1")):
        pass


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objectives_are_scaled_and_can_be_climbed(name: str) -> None:
    raw = OBJECTIVES[name](20, np.random.default_rng(0))
    fitness = standardised(raw, 20, np.random.default_rng(1))
    values = fitness(np.random.default_rng(2).standard_normal((4000, 20)))
    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.1
    gains = [play(Case("surrogate", name, 12, 10, 0.5, seed, size=20)).gain for seed in range(3)]
    assert np.mean(gains) > 0.5  # the one dimension of the valley that matters leaves no more than about 0.8


def test_the_clock_of_a_run() -> None:
    case = Case("random", "cosine", 3, 5, 1.0, 0, "generational", size=5)
    assert play(case).scan_s == 3 * 5 * 4 + 2 * (12 - 4)  # waits for the last score of all generations but the last
    assert play(replace(case, schedule="steady")).scan_s == 3 * 5 * 4
    assert play(replace(case, late=1.0)).scan_s == 3 * 5 * 4 + 2 * (42 - 4)
    lost = play(replace(case, strategy="surrogate", missing=1.0))
    assert lost == play(replace(case, strategy="surrogate", missing=1.0))
    assert abs(lost.gain) < 2


def test_runs_that_go_on_gain_more_than_the_first_whatever_their_offset_and_unit() -> None:
    case = Case("surrogate", "cosine", 7, 5, 1.0, 0, "steady", size=30)
    first, second, other = (
        np.array([play(replace(each, seed=seed)).gain for seed in range(3)])
        for each in (case, replace(case, runs=2), replace(case, runs=2, offset=6.0, scale=3.0))
    )
    assert second.mean() > first.mean() + 0.2
    np.testing.assert_allclose(other, second, atol=0.05)
    probed = replace(case, runs=2, offset=6.0, scale=3.0, probe_every=6, drift=1.0, informed=True)
    assert play(probed).gain > 1
    assert play(probed).scan_s == (35 + 7) * 4


def test_a_plan_ranks_what_fits_into_the_scan() -> None:
    scan = plan.Scan(minutes=2, cnr=2.0, size=5)
    found = plan.choices(scan, ["surrogate", "truncation"], ["steady", "generational"])
    assert {(c.population, c.generations) for c in found if c.schedule == "steady"} == {(5, 6), (10, 3)}
    assert {(c.population, c.generations) for c in found if c.schedule == "generational"} == {(5, 4), (10, 2)}
    assert {c.mutation_sd for c in found if c.strategy == "truncation"} == set(plan.MUTATION_SDS)
    cases = plan.cases(scan, found[0], ["cosine", "ridge"], seeds=2)
    assert [(c.objective, c.seed, c.noise) for c in cases] == [("cosine", 0, 0.5), ("ridge", 0, 0.5), ("cosine", 1, 0.5), ("ridge", 1, 0.5)]
    outcomes = [[Outcome(k + j, 0, 0) for j in range(4)] for k in range(len(found))]
    ranked = plan.rank(found, outcomes, 2)
    assert ranked[0].gain == len(found) - 1 + 1.5
    assert ranked[0].se == pytest.approx(1.0)
    assert asdict(ranked[0])["population"] == found[-1].population
    with pytest.raises(ValueError, match="minutes: expected enough for two generations"):
        plan.choices(plan.Scan(0.5, 1.0), ["surrogate"], ["steady"])


@pytest.mark.parametrize(("wrong", "message"), [({"cnr": 0.0}, "cnr"), ({"minutes": math.inf}, "minutes"), ({"size": 1}, "size")])
def test_what_is_planned_for_is_checked(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.Scan(**{"minutes": 10.0, "cnr": 1.0, **wrong})  # type: ignore[arg-type]


def test_the_command_says_what_to_write_into_the_session_file(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--minutes", "2", "--cnr", "1", "--size", "4", "--seeds", "1", "--jobs", "0", "--objectives", "cosine"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "[evolution]\nstrategy = " in printed
    assert "CNR 1, 4 dimensions" in printed
    assert main([*arguments[:2], "-1", *arguments[3:]]) == 2
    assert "--minutes: expected > 0" in capsys.readouterr().err


# --- how good the map is -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("quality", [0.3, 0.8])
def test_what_a_map_measures_correlates_with_the_truth_as_it_is_said_to(name: str, quality: float) -> None:
    raw, other = (OBJECTIVES[name](12, np.random.default_rng([3, stream])) for stream in (0, 4))
    one = standardised(raw, 12, np.random.default_rng(0))
    values = mixed(one, other, quality, np.random.default_rng(1).standard_normal((4000, 12)))
    sample = np.random.default_rng(2).standard_normal((4000, 12))
    assert np.corrcoef(values(sample), one(sample))[0, 1] == pytest.approx(quality, abs=0.06)  # 4000 images: 0.015
    assert values(sample).std() == pytest.approx(1, abs=0.1)


def test_a_perfect_map_gives_what_it_gave_and_kept_outcomes_are_those() -> None:
    case = Case("surrogate", "cosine", 3, 5, 1.0, 0, size=6)
    assert case == replace(case, quality=1.0)
    assert play(replace(case, quality=0.4)) != play(case)


def delivered(case: Case, r: float) -> float:
    """Gain where voxels answer to directions of their own; the truth is a pattern over them, and the map another, r between them."""
    rng = np.random.default_rng([case.seed, 50])
    directions = np.linalg.qr(rng.standard_normal((case.size, case.size)))[0]
    truth = rng.standard_normal(case.size)
    truth /= np.linalg.norm(truth)
    away = rng.standard_normal(case.size)
    away -= (away @ truth) * truth
    weights = r * truth + math.sqrt(1 - r**2) * away / np.linalg.norm(away)

    def responses(pattern: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.asarray(x @ directions.T @ pattern)

    evolver = create(case.strategy, case.size, case.population, np.random.default_rng([case.seed, 2]), mutation_sd=case.mutation_sd)
    return _Run(case, evolver, responses(truth), responses(weights)).play().gain


@pytest.mark.parametrize("r", [0.3, 0.7])
def test_a_plan_promises_what_a_map_of_that_quality_delivers(r: float) -> None:
    scan = plan.Scan(minutes=4, cnr=1.0, size=20, quality=r)
    choice = next(c for c in plan.choices(scan, ["surrogate"], ["steady"]) if c.population == 10)
    cases = plan.cases(scan, choice, ["cosine"], 10)
    promised = np.array([play(case).gain for case in cases])
    found = np.array([delivered(case, r) for case in cases])
    perfect = np.mean([play(replace(case, quality=1.0)).gain for case in cases])
    error = math.hypot(*(each.std(ddof=1) / math.sqrt(len(each)) for each in (promised, found)))
    assert abs(promised.mean() - found.mean()) < 2.5 * error
    assert promised.mean() < 0.9 * perfect
