"""Several runs in one model: what a run's offset, unit, noise and drift are changes nothing of the preference that is found."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from rtevo.evolve import STRATEGIES, Course, CourseSettings, Evolver, Sham, Surrogate, create, from_state
from rtevo.evolve.model import SIGNAL_TO_NOISE, Linear, features, one_thread
from rtevo.evolve.runs import Scores, _Evidence, fit_effects, fit_pooled
from rtevo.evolve.together import Errors, Link, Pool

DENSE = 1e-6  # relative, of matrices with condition numbers of some thousands
PROBES = np.random.default_rng(9).standard_normal((2, 8))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def make_scores(seed: int, scales: tuple[float, ...] = (1, 3), offsets: tuple[float, ...] = (0, 9), gathered: float = 0.0) -> Scores:
    """Make 30 scores a run of a direction in 12 dimensions; those after the first run `gathered` (0 to 1) at the best image."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(12) / math.sqrt(12)
    latents, values, runs = [], [], np.repeat(np.arange(len(scales)), 30)
    for run, (scale, offset) in enumerate(zip(scales, offsets, strict=True)):
        near = gathered if run else 0.0
        own = (1 - near) * rng.standard_normal((30, 12)) + near * direction * math.sqrt(12)
        latents.append(own)
        values.append(offset + scale * (own @ direction + 0.7 * rng.standard_normal(30)))
    return Scores(np.concatenate(latents), np.concatenate(values), np.eye(len(runs)), Pool(runs, np.ones(len(runs))), False)


def chain(
    evolver: Evolver, change: tuple[float, float] = (0.0, 1.0), *, informed: bool = False, runs: int = 2, probe_every: int = 4
) -> Evolver:
    """Run an evolver for runs of 12 candidates, from state to state; `change` is the offset and scale of all after the first."""
    rng, direction = np.random.default_rng(3), np.random.default_rng(4).standard_normal(8) / math.sqrt(8)
    for run in range(runs):
        evolver = from_state(json.loads(json.dumps(evolver.to_state())))
        course = Course(evolver, CourseSettings(3, 4, "generational", probe_every=probe_every), probes=PROBES)
        offset, scale = change if run else (0.0, 1.0)
        while asked := course.due():
            for request in asked:
                score = float(request.latent @ direction) + 0.5 * rng.standard_normal()
                course.show()
                course.score(request.generation, request.candidate, offset + scale * score, 0.5 * scale if informed else math.nan)
    return evolver


def test_the_search_follows_the_evidence_s_own_gradient() -> None:
    evidence = _Evidence(make_scores(0, (1, 3, 0.5), (0, 5, 1)))
    at = np.random.default_rng(1).normal(0, 0.4, 6)
    moved = [(evidence(at + step)[0] - evidence(at - step)[0]) / 2e-5 for step in 1e-5 * np.eye(6)]
    np.testing.assert_allclose(evidence(at)[1], moved, rtol=1e-5, atol=1e-5)


def test_runs_with_errors_that_go_together_equal_a_dense_regression_with_a_mean_of_each_run() -> None:
    scores = make_scores(1, (1, 1, 1), (0, 9, -4))
    n, run = len(scores.values), scores.pool.run
    apart = np.abs(np.arange(n)[:, np.newaxis] - np.arange(n))
    covariance = np.where(run[:, np.newaxis] == run, 0.5 * np.exp(-apart / 5), 0.0) + 0.3 * np.eye(n)
    errors = Errors(covariance, pool=scores.pool)
    model = Linear(scores.latents, scores.values, np.ones(n), errors)
    x, means = features(scores.latents), (run[:, np.newaxis] == np.arange(3)).astype(float)
    space = np.linalg.svd(means.T)[2][3:].T  # what no mean changes
    for k, ratio in enumerate(SIGNAL_TO_NOISE):
        whole = space.T @ (errors.covariance + ratio * x @ x.T) @ space
        alone = space.T @ errors.covariance @ space
        y = space.T @ scores.values
        expected = -0.5 * np.linalg.slogdet(whole)[1] + 0.5 * np.linalg.slogdet(alone)[1]
        expected -= 0.5 * (n - 3) * math.log(y @ np.linalg.solve(whole, y))
        assert model.log_evidence[k] == pytest.approx(expected, rel=DENSE, abs=1e-5)


@pytest.mark.parametrize("informed", [False, True])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_is_asked_for_does_not_depend_on_a_run_s_offset_and_unit(strategy: str, informed: bool) -> None:
    asked = [
        chain(create(strategy, 8, 4, np.random.default_rng(0)), change, informed=informed).to_state()["latents"]
        for change in ((0.0, 1.0), (-40.0, 1.0), (40.0, 3.0), (5.0, 0.3))
    ]
    for other in asked[1:]:
        np.testing.assert_allclose(other, asked[0], rtol=0, atol=0.02)  # of a length of 2.8


@pytest.mark.parametrize("gathered", [0.0, 0.6])
def test_a_run_s_unit_is_found_with_its_error_though_evolution_has_gathered_its_images(gathered: float) -> None:
    found = [fit_effects(make_scores(seed, gathered=gathered), errors=True) for seed in range(24)]
    off = np.array([math.log(each.scale[1] / 3) for each in found])
    sd = np.array([each.log_scale_sd[1] for each in found])
    assert abs(off.mean()) < 3 * off.std() / math.sqrt(len(off)) + 0.05
    assert 0.5 < (off / sd).std() < 1.6
    assert off.std() < 0.45
    if gathered:  # while standardising within runs would make them alike
        spreads = [make_scores(seed, gathered=gathered).values[30:].std() / make_scores(seed).values[:30].std() for seed in range(24)]
        assert np.median(spreads) < 0.85 * 3


def test_a_random_image_s_offset_is_found_with_its_error() -> None:
    off = []
    for seed in range(24):
        scores = make_scores(seed, offsets=(2, 11))
        offset, sd = fit_pooled(scores).offsets(fit_effects(scores, errors=True))
        assert (offset[0], sd[0]) == (0, 0)
        off.append((offset[1] - 9) / sd[1])
    assert abs(np.mean(off)) < 0.7
    assert 0.5 < np.std(off) < 1.6


def test_a_slow_drift_within_runs_does_little_harm() -> None:
    found = {}
    for drift in (0.0, 4.0):
        own = []
        for seed in range(8):
            evolver = Surrogate(12, None, np.random.default_rng(seed))
            rng, direction = np.random.default_rng([seed, 1]), np.eye(12)[0]
            for _ in range(2):
                evolver.begin()
                latents = evolver.ask(30).astype(float)
                scores = latents @ direction + rng.standard_normal(30) + drift * np.linspace(0, 1, 30) * np.sign(latents[:5].sum())
                evolver.tell(np.arange(evolver.asked - 30, evolver.asked), scores)
            mean = fit_pooled(Scores.of(evolver)).linear.mean().direction[0]
            own.append(mean[0] / np.linalg.norm(mean))
        found[drift] = float(np.mean(own))
    assert found[4.0] > 0.93 * found[0.0]


def test_with_one_run_nothing_changes_whatever_its_probes_say() -> None:
    asked = []
    for factor in (1.0, 100.0):
        evolver = create("surrogate", 8, 4, np.random.default_rng(0))
        course = Course(evolver, CourseSettings(5, 4, "generational", probe_every=4), probes=PROBES)
        while wanted := course.due():
            for request in wanted:
                course.show()
                course.score(request.generation, request.candidate, float(request.latent[0]) * (factor if request.probe >= 0 else 1.0))
        evolver.begin()  # another one has begun, and has no score
        asked.append([*evolver.to_state()["latents"], *evolver.ask(3).tolist()])
        assert evolver.runs == 2
    assert asked[0] == asked[1]


def test_probes_anchor_two_runs_and_without_them_none_are_anchored() -> None:
    apart = {}
    for probe_every in (0, 4):
        evolver = chain(create("surrogate", 8, 4, np.random.default_rng(0)), (7.0, 1.0), informed=True, probe_every=probe_every)
        anchor = evolver.anchor(0, 1)
        _, offset, sd = evolver.run_effects()
        apart[probe_every] = sd[1]
        assert abs(offset[1] - 7) < 3 * sd[1]
        assert anchor.anchored == (probe_every > 0)
        if probe_every:
            assert anchor.images == 2
            assert abs(anchor.difference - 7) < 3 * anchor.difference_se
            assert anchor.difference_se == pytest.approx(0.5 / math.sqrt(2))  # two images, each twice in each run
    assert apart[4] < apart[0]
    assert math.isnan(evolver.anchor(0, 5).difference)


def test_probes_that_are_withdrawn_or_not_the_participant_s_own_anchor_nothing() -> None:
    for feedback in (None, Sham(np.random.default_rng(0))):
        evolver = create("surrogate", 8, 4, np.random.default_rng(0))
        course = Course(evolver, CourseSettings(2, 4, "generational", probe_every=4), feedback, PROBES)
        probe = next(request for request in course.due() if request.probe >= 0)
        course.score(0, probe.candidate, 1.5, 0.2)
        assert evolver.to_state()["probes"]["scores"] == ([[0, 0, 4, 0, 3, 1.5, 0.2]] if feedback is None else [])
        assert from_state(evolver.to_state()).to_state() == evolver.to_state()
        course.score(0, probe.candidate, math.nan)
        assert evolver.to_state()["probes"]["scores"] == []
        course = Course(evolver, CourseSettings(2, 4, "generational", probe_every=4), feedback, PROBES)
        course.due()
        course.refuse(0, probe.candidate, shown=True)
        course.score(0, probe.candidate, 1.6, 0.2)
        assert evolver.to_state()["probes"]["scores"] == []


def test_errors_go_together_within_a_run_and_with_its_probes_and_not_between_runs() -> None:
    evolver = create("surrogate", 8, 4, np.random.default_rng(0))
    for run in range(2):
        course = Course(evolver, CourseSettings(1, 4, "generational", probe_every=4), probes=PROBES)
        for k, request in enumerate(course.due()):
            link = Link(4.0 * k, 10.0 * run + k, 1.0, (0.5,))
            course.score(request.generation, request.candidate, float("nan") if run == 1 and k == 0 else 0.0, 1.0, link)
    scores = Scores.of(evolver)
    order = np.argsort(scores.values, kind="stable")
    assert scores.linked
    np.testing.assert_array_equal(scores.values[order], [0, 1, 2, 3, 4, 11, 12, 13, 14])
    np.testing.assert_array_equal(scores.pool.run[order], [0] * 5 + [1] * 4)
    chained = np.linalg.inv(np.eye(5) - 0.5 * np.eye(5, k=-1))
    along = np.array([0, 1, 2, 2.5, 3])  # the probe comes between candidates
    along = (along - along.mean()) / 50
    expected = chained @ chained.T
    expected += 9 * np.median(np.diag(expected)) * np.outer(along, along)
    np.testing.assert_allclose(scores.covariance[np.ix_(order, order)][:5, :5], expected, rtol=1e-9)
    assert not scores.covariance[np.ix_(order, order)][:5, 5:].any()
    assert np.isfinite(evolver.ask(2)).all()


def test_a_preference_that_has_turned_is_followed_where_scores_are_to_age() -> None:
    towards = {}
    for half_life in (0.0, 15.0):
        evolver = Surrogate(6, None, np.random.default_rng(0), half_life=half_life)
        rng = np.random.default_rng(1)
        for axis in (0, 1):
            latents = evolver.ask(60).astype(float)
            evolver.tell(np.arange(evolver.asked - 60, evolver.asked), latents[:, axis] + 0.5 * rng.standard_normal(60))
        towards[half_life] = evolver.ask(20).mean(axis=0)
        assert from_state(evolver.to_state()).to_state() == evolver.to_state()
    assert towards[15.0][1] > 2 * abs(towards[15.0][0])
    assert towards[0.0][1] < 1.5 * towards[0.0][0]
    with pytest.raises(ValueError, match="half_life: expected at least 0"):
        Surrogate(5, None, np.random.default_rng(0), half_life=-1.0)


def test_wild_scores_do_not_change_what_a_run_s_unit_is() -> None:
    clean = make_scores(5)
    wild = clean.values.copy()
    wild[[35, 48]] += [150, -120]
    direction = []
    for values in (clean.values, wild):
        own = fit_pooled(Scores(clean.latents, values, clean.covariance, clean.pool, False)).linear.mean().direction[0]
        direction.append(own / np.linalg.norm(own))
    assert direction[0] @ direction[1] > 0.9


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("unit", [1.0, 1e-80, 1e60])
@pytest.mark.parametrize("informed", [False, True])
def test_runs_of_one_score_of_equal_ones_or_of_none_do_no_harm(strategy: str, unit: float, informed: bool) -> None:
    evolver = create(strategy, 3, 4, np.random.default_rng(0))
    for fitness in ([1.0], [2.0, 2.0, 2.0], [math.nan, math.nan], [5.0, 1.0, 3.0, 9.0, 2.0], [4.0, 4.0, 4.0, 4.0], [-7.0]):
        evolver.begin()
        latents = evolver.ask(len(fitness))
        assert np.isfinite(latents).all()
        assert np.linalg.norm(latents, axis=1).max() < 30
        errors = np.full(len(fitness), unit if informed else math.nan)
        evolver.tell(np.arange(evolver.asked - len(fitness), evolver.asked), unit * np.array(fitness), errors)
    assert np.isfinite(evolver.ask(2)).all()


def test_a_state_of_before_has_the_runs_that_its_links_name() -> None:
    evolver = chain(create("surrogate", 8, 4, np.random.default_rng(0)))
    state = evolver.to_state()
    assert state["runs"] == [0, 12]
    del state["runs"], state["probes"]
    assert from_state(state).to_state()["runs"] == [0]
    state["links"] = [[first, 0, 0, first, 5.0, 1.5, 0.5, []] for first in (0, 7)]
    assert from_state(state).to_state()["runs"] == [0, 7]
