"""What every strategy must do: scores late, missing, revised, in any order; exact resumption; nothing silly at the edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtevo.evolve import STRATEGIES, Evolver, Truncation, TruncationEvolver, create, from_state

POPULATION = 4
names = st.sampled_from(sorted(STRATEGIES))
scores = st.floats(-1e3, 1e3, allow_subnormal=False) | st.just(float("nan"))
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def make(name: str, latent_size: int = 5, seed: int = 0, budget: int | None = 24) -> Evolver:
    return create(name, latent_size, POPULATION, np.random.default_rng(seed), budget=budget, mutation_sd=0.5)


def through_json(evolver: Evolver) -> Evolver:
    return from_state(json.loads(json.dumps(evolver.to_state(), allow_nan=False)))


@quick
@given(names, st.lists(st.lists(scores, min_size=POPULATION, max_size=POPULATION), min_size=1, max_size=6), st.booleans())
def test_resuming_equals_not_stopping(name: str, generations: list[list[float]], with_se: bool) -> None:
    straight = make(name)
    for fitness in generations:
        resumed = through_json(straight)
        latents = straight.ask(POPULATION)
        np.testing.assert_array_equal(resumed.ask(POPULATION), latents)
        ids = np.arange(straight.asked - POPULATION, straight.asked)
        for evolver in (straight, resumed):
            evolver.tell(ids, fitness, np.linspace(0.5, 2, POPULATION) if with_se else None)
        assert resumed.to_state() == straight.to_state()
        through_json(straight)


@quick
@given(names, st.lists(scores, min_size=POPULATION, max_size=POPULATION), st.permutations(range(POPULATION)))
def test_the_order_of_tells_does_not_matter(name: str, fitness: list[float], order: list[int]) -> None:
    at_once, one_by_one = make(name), make(name)
    for evolver in (at_once, one_by_one):
        evolver.ask(POPULATION)
    at_once.tell(range(POPULATION), fitness)
    for i in order:
        one_by_one.tell([i], [fitness[i] + 1.0])  # a first value, replaced
    for i in reversed(order):
        one_by_one.tell([i], [fitness[i]])
    np.testing.assert_array_equal(at_once.ask(POPULATION), one_by_one.ask(POPULATION))


@quick
@given(names, st.integers(1, 7), st.lists(scores, min_size=3 * POPULATION, max_size=3 * POPULATION))
def test_candidates_are_finite_and_different(name: str, latent_size: int, fitness: list[float]) -> None:
    if name in ("cma", "sepcma") and latent_size == 1:
        with pytest.raises(ValueError, match="at least 2"):
            make(name, latent_size)
        return
    evolver = make(name, latent_size)
    for generation in range(3):
        latents = evolver.ask(POPULATION)
        assert latents.dtype == np.float32
        assert latents.shape == (POPULATION, latent_size)
        assert np.isfinite(latents).all()
        if latent_size > 1:
            assert len(np.unique(latents, axis=0)) == POPULATION
        part = slice(generation * POPULATION, (generation + 1) * POPULATION)
        evolver.tell(np.arange(12)[part], fitness[part])


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("fitness", [[1.0] * 4, [0.0, 0.0, 0.0, 5.0], [np.nan] * 4, [np.nan, 1.0, np.nan, np.nan], [np.inf, 1, 2, -np.inf]])
def test_ties_constants_and_gaps_do_no_harm(name: str, fitness: list[float]) -> None:
    evolver = make(name)
    for _ in range(5):
        latents = evolver.ask(POPULATION)
        assert np.isfinite(latents).all()
        assert np.linalg.norm(latents, axis=1).max() < 30
        evolver.tell(np.arange(evolver.asked - POPULATION, evolver.asked), fitness)


@pytest.mark.parametrize("name", ["surrogate", "truncation", "random"])
def test_a_steady_schedule_asks_one_at_a_time_while_scores_are_late(name: str) -> None:
    evolver = make(name, budget=40)
    target = np.ones(5)
    for k in range(40):
        latents = evolver.ask(1)
        assert latents.shape == (1, 5)
        if k >= 3:
            evolver.tell([k - 3], [float(evolver.to_state()["latents"][k - 3] @ target)])
    assert len(evolver.history().ids) == 37


@pytest.mark.parametrize("name", sorted({*STRATEGIES} - {"direct"}))  # which looks at volumes
def test_a_revised_score_counts_and_one_that_is_withdrawn_does_not(name: str) -> None:
    evolver = make(name)
    evolver.ask(POPULATION)
    evolver.tell([0, 1, 2], [1.0, 2.0, 3.0], [0.1, np.nan, 0.3])
    evolver.tell([1], [7.0])
    evolver.tell([2], [np.nan], [0.1])
    known = evolver.history()
    np.testing.assert_array_equal(known.ids, [0, 1])
    np.testing.assert_array_equal(known.fitness, [1, 7])
    np.testing.assert_array_equal(known.fitness_se, [0.1, np.nan])


def test_pictures_count_where_they_turned_out() -> None:
    evolver = make("surrogate")
    evolver.ask(POPULATION)
    evolver.place([1, 3], [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    evolver.tell(range(POPULATION), [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(evolver.history().latents[[1, 3]], [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


@given(st.integers(0, 2**32 - 1), st.lists(scores, min_size=12, max_size=12))
def test_truncation_as_a_strategy_draws_what_the_rule_draws(seed: int, fitness: list[float]) -> None:
    rule = Truncation(POPULATION, 3, 0.4, np.random.default_rng(seed))
    strategy = TruncationEvolver(3, POPULATION, 0.4, np.random.default_rng(seed))
    for generation in range(3):
        latents = rule.ask()
        np.testing.assert_array_equal(strategy.ask(POPULATION), latents)
        part = slice(generation * POPULATION, (generation + 1) * POPULATION)
        rule.tell(latents, fitness[part])
        strategy.tell(np.arange(12)[part], fitness[part])


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_is_told_is_checked(name: str) -> None:
    evolver = make(name)
    evolver.ask(POPULATION)
    with pytest.raises(ValueError, match=r"ids: expected numbers from 0 to 3, got \[4\]"):
        evolver.tell([0, 4], [1.0, 2.0])
    with pytest.raises(ValueError, match="ids: expected each one once"):
        evolver.tell([0, 0], [1.0, 2.0])
    with pytest.raises(ValueError, match="ids: expected whole numbers"):
        evolver.tell([0.5], [1.0])
    with pytest.raises(ValueError, match=r"fitness: expected shape \(2,\)"):
        evolver.tell([0, 1], [1.0])
    with pytest.raises(ValueError, match=r"fitness_se: expected shape \(2,\)"):
        evolver.tell([0, 1], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"latents: expected shape \(1, 5\)"):
        evolver.place([0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"finite numbers, got others for ids \[0\]"):
        evolver.place([0], [[np.nan] * 5])
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        evolver.ask(0)
    evolver.tell([], [])
    assert len(evolver.history().ids) == 0


def test_wrong_states_and_names_are_refused() -> None:
    state = make("surrogate").to_state()
    with pytest.raises(ValueError, match="expected a strategy out of surrogate, direct, truncation"):
        from_state({**state, "strategy": "magic"})
    with pytest.raises(ValueError, match="expected an entry 'memory'"):
        from_state({key: value for key, value in state.items() if key != "memory"})
    with pytest.raises(ValueError, match="as many latents as scores"):
        from_state({**state, "fitness": [1.0]})
    with pytest.raises(ValueError, match="expected strategy 'truncation', got 'surrogate'"):
        STRATEGIES["truncation"].from_state(state)
    with pytest.raises(ValueError, match=r"strategy: expected one of surrogate, .*, got 'magic'"):
        make("magic")
    with pytest.raises(ValueError, match="latent_size: expected at least 1"):
        make("random", latent_size=0)


@pytest.mark.parametrize("name", ["cma", "sepcma"])
def test_cma_goes_on_from_whatever_scores_have_come(name: str) -> None:
    evolver = make(name)
    evolver.ask(6)
    evolver.tell([0, 2, 5], [1.0, 2.0, 3.0])
    three = evolver.to_state()
    evolver.ask(3)
    assert three["memory"] == evolver.to_state()["memory"] == {"used": []}
    evolver.tell([7], [0.5])
    evolver.ask(1)
    assert evolver.to_state()["memory"] == {"used": [[[0, 2, 5, 7], [1.0, 2.0, 3.0, 0.5], 9]]}
    np.testing.assert_array_equal(through_json(evolver).ask(4), evolver.ask(4))


def test_truncation_is_steered_by_late_scores() -> None:
    evolver = make("truncation")
    for k in range(60):
        evolver.ask(1)
        if k >= 6:
            evolver.tell([k - 6], [float(evolver.to_state()["latents"][k - 6][0])])
    assert np.mean([row[0] for row in evolver.to_state()["latents"][-10:]]) > 2
