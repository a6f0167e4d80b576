"""Evolution: the prototype's rule against a naive oracle, its safety where scores tie or miss, and exact resumption."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtevo.evolve import Truncation, rng_from_state, rng_to_state, truncation_weights

SUMMATION = 1e-12  # float64 sums of a few hundred terms in another order

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
fitnesses = st.lists(finite | st.just(float("nan")), min_size=1, max_size=30).map(np.array)


def naive_next_mean(fitness: NDArray[np.float64], latents: NDArray[np.float64]) -> NDArray[np.float64]:
    """Top half by fitness, weighted by fitness above the median: sort, cut, weigh, as published in the prototype."""
    order = sorted(range(len(fitness)), key=lambda i: -fitness[i])
    top = order[: len(fitness) // 2]
    weights = [max(fitness[i] - np.median(fitness), 0.0) for i in top]
    return sum(weight / sum(weights) * latents[i] for weight, i in zip(weights, top, strict=True))


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_mean_is_the_prototypes(population: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    latents, fitness = rng.standard_normal((population, size)), rng.standard_normal(population)
    evolver = Truncation(population, size, 0.3, rng)
    evolver.tell(latents, fitness)
    np.testing.assert_allclose(evolver.mean, naive_next_mean(fitness, latents), rtol=SUMMATION, atol=SUMMATION)


def test_next_generation_is_drawn_around_the_mean_with_the_stated_sd() -> None:
    evolver = Truncation(20_000, 3, np.sqrt(0.04), np.random.default_rng(1))
    latents = evolver.ask()
    assert latents.dtype == np.float32
    assert np.abs(latents.mean(axis=0)).max() < 0.03
    np.testing.assert_allclose(np.cov(latents.T), np.eye(3), atol=0.05)
    evolver.tell(latents, latents[:, 0])
    following = evolver.ask()
    np.testing.assert_allclose(following.mean(axis=0), evolver.mean, atol=0.01)
    np.testing.assert_allclose(np.cov(following.T), 0.04 * np.eye(3), atol=0.002)  # mutation, the variance, is sd squared


@given(fitnesses)
def test_weights_are_a_distribution_over_the_better_half(fitness: NDArray[np.float64]) -> None:
    weights = truncation_weights(fitness)
    measured = np.isfinite(fitness)
    assert (weights >= 0).all()
    assert not weights[~measured].any()
    if not measured.any():
        assert not weights.any()
        return
    assert weights.sum() == pytest.approx(1)
    parents = fitness[weights > 0]
    assert parents.min() >= np.median(fitness[measured])
    if len(np.unique(parents)) > 1 or parents[0] > np.median(fitness[measured]):
        assert len(parents) <= measured.sum() // 2


@given(fitnesses, st.randoms(use_true_random=False))
def test_order_of_candidates_does_not_matter(fitness: NDArray[np.float64], shuffle: object) -> None:
    order = np.random.default_rng(shuffle.randrange(2**32)).permutation(len(fitness))  # type: ignore[attr-defined]
    np.testing.assert_allclose(truncation_weights(fitness[order]), truncation_weights(fitness)[order], rtol=SUMMATION)


@given(st.lists(finite, min_size=1, max_size=20), st.integers(0, 10))
def test_a_missing_fitness_is_as_if_the_candidate_had_not_been(fitness: list[float], missing: int) -> None:
    with_missing = np.array([*fitness, *[np.nan] * missing])
    np.testing.assert_array_equal(truncation_weights(with_missing)[: len(fitness)], truncation_weights(fitness))


@pytest.mark.parametrize(
    ("fitness", "expected"),
    [
        ([2.0, 2.0, 2.0, 2.0], [0.25, 0.25, 0.25, 0.25]),
        ([1.0, 1.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]),
        ([3.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]),
        ([5.0], [1.0]),
        ([1.0, 2.0], [0.0, 1.0]),
        ([4.0, 3.0, 2.0, 1.0], [0.75, 0.25, 0.0, 0.0]),
        ([3.0, 2.0, 1.0], [1.0, 0.0, 0.0]),
        ([np.nan, np.inf, 1.0], [0.0, 0.0, 1.0]),
        ([np.nan, np.nan], [0.0, 0.0]),
        ([], []),
    ],
)
def test_weights_by_hand(fitness: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(truncation_weights(fitness), expected)


def test_without_any_fitness_the_mean_stays() -> None:
    evolver = Truncation(4, 2, 0.1, np.random.default_rng(0))
    first = evolver.ask()
    evolver.tell(first, np.full(4, np.nan))
    assert evolver.mean is None  # the next generation is from N(0, I) again
    evolver.tell(evolver.ask(), [1, 2, 3, 4])
    mean = evolver.mean
    evolver.tell(evolver.ask(), np.full(4, np.nan))
    assert evolver.mean is mean
    assert evolver.generation == 3


def test_fitness_climbs_on_a_simple_objective() -> None:
    evolver = Truncation(20, 10, 0.4, np.random.default_rng(5))
    target = np.ones(10)
    means = []
    for _ in range(12):
        latents = evolver.ask()
        fitness = -((latents - target) ** 2).sum(axis=1)
        means.append(fitness.mean())
        evolver.tell(latents, fitness)
    assert means[-1] > means[0] / 3


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM])
def test_resuming_equals_not_stopping(kind: type[np.random.BitGenerator]) -> None:
    straight = Truncation(6, 5, 0.2, np.random.Generator(kind(7)))
    for generation in range(4):
        resumed = Truncation.from_state(json.loads(json.dumps(straight.to_state())))
        latents = straight.ask()
        np.testing.assert_array_equal(resumed.ask(), latents)
        fitness = np.where(latents[:, 0] > 1, np.nan, latents[:, 1])
        straight.tell(latents, fitness)
        resumed.tell(latents, fitness)
        assert resumed.to_state() == straight.to_state(), generation


def test_saving_does_not_disturb_the_generator() -> None:
    rng = np.random.default_rng(3)
    copy = rng_from_state(json.loads(json.dumps(rng_to_state(rng))))
    np.testing.assert_array_equal(copy.standard_normal(5), rng.standard_normal(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 3, 1.0), "population"), ((3, 0, 1.0), "latent_size"), ((3, 3, -1.0), "mutation_sd"), ((3, 3, np.nan), "mutation_sd")],
)
def test_parameters_are_checked(arguments: tuple[int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Truncation(*arguments, np.random.default_rng(0))


def test_what_is_told_is_checked() -> None:
    evolver = Truncation(3, 2, 0.1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"latents: expected shape \(n, 2\), got \(3, 4\)"):
        evolver.tell(np.zeros((3, 4)), np.zeros(3))
    with pytest.raises(ValueError, match=r"fitness: expected shape \(3,\).*got \(2,\)"):
        evolver.tell(np.zeros((3, 2)), np.zeros(2))
    with pytest.raises(ValueError, match=r"finite numbers, got NaN or inf in rows \[1\]"):
        evolver.tell([[0, 0], [np.nan, 0], [np.nan, 0]], [1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="one dimension"):
        truncation_weights(np.zeros((2, 2)))
    assert evolver.generation == 0


def test_a_wrong_state_is_refused() -> None:
    state = Truncation(3, 2, 0.1, np.random.default_rng(0)).to_state()
    with pytest.raises(ValueError, match="expected strategy 'truncation', got 'cma'"):
        Truncation.from_state({**state, "strategy": "cma"})
    with pytest.raises(ValueError, match="expected an entry 'mean'"):
        Truncation.from_state({key: value for key, value in state.items() if key != "mean"})
    with pytest.raises(ValueError, match="expected a mean of 2 numbers"):
        Truncation.from_state({**state, "mean": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="bit generator"):
        Truncation.from_state({**state, "rng": {"bit_generator": "Dice"}})
    with pytest.raises(ValueError, match="not a state of PCG64"):
        Truncation.from_state({**state, "rng": {"bit_generator": "PCG64"}})
