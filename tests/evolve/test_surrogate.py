"""The surrogate: its models against plain linear algebra, and that it beats selecting parents."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtevo.evolve import Surrogate, TruncationEvolver
from rtevo.evolve.base import Evolver
from rtevo.evolve.model import SIGNAL_TO_NOISE, Curved, Linear, radial, relative_precision, unit, without_outliers

DENSE = 1e-6  # relative, of matrices with condition numbers of some thousands


def data(seed: int, n: int = 30, d: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((n, d))
    precision = rng.uniform(0.3, 3, n)
    return latents, latents @ rng.standard_normal(d) + rng.standard_normal(n), precision / precision.mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(1, 9))
def test_linear_evidence_and_mean_equal_a_dense_gaussian_process(seed: int, n: int, d: int) -> None:
    latents, fitness, precision = data(seed, n, d)
    model = Linear(latents, fitness, precision)
    features = np.column_stack([latents / math.sqrt(d), radial(latents)])
    root = np.sqrt(precision)
    space = np.linalg.qr(np.column_stack([root, np.eye(n)[:, : n - 1]]))[0][:, 1:]  # orthogonal to the constant
    y = space.T @ (root * fitness)
    means = []
    for k, ratio in enumerate(SIGNAL_TO_NOISE):
        cov = np.eye(n - 1) + ratio * space.T @ (root[:, None] * features @ features.T * root) @ space
        squares = y @ np.linalg.solve(cov, y)
        expected = -0.5 * np.linalg.slogdet(cov)[1] - 0.5 * (n - 1) * np.log(squares)
        assert model.log_evidence[k] == pytest.approx(expected, rel=DENSE, abs=1e-5)
        means.append(ratio * features.T @ (root * (space @ np.linalg.solve(cov, y))))
    expected_mean = model.weights @ np.array(means)
    np.testing.assert_allclose(model.mean().direction[0], expected_mean[:d] / math.sqrt(d), rtol=DENSE, atol=1e-7)


def test_surprise_is_the_distance_from_what_all_other_scores_predict() -> None:
    latents, fitness, precision = data(4)
    model = Linear(latents, fitness, precision)
    ratio, d = SIGNAL_TO_NOISE[int(np.argmax(model.weights))], latents.shape[1]
    features = np.column_stack([latents / math.sqrt(d), radial(latents)])
    cov = ratio * features @ features.T + 1e6 + np.diag(1 / precision)  # a mean that nothing is known of
    expected = []
    for i in range(len(fitness)):
        others = np.arange(len(fitness)) != i
        told = np.linalg.solve(cov[np.ix_(others, others)], cov[others, i])
        expected.append((fitness[i] - told @ fitness[others]) / np.sqrt(cov[i, i] - told @ cov[others, i]))
    np.testing.assert_allclose(model.surprise(precision), expected, rtol=1e-3, atol=1e-4)


def test_an_incredible_score_counts_less_and_the_others_as_before() -> None:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((60, 40))
    precision = relative_precision(rng.uniform(0.5, 2.0, 60))
    fitness = latents[:, 0] + rng.standard_normal(60) / np.sqrt(precision)
    np.testing.assert_array_equal(without_outliers(latents, fitness, precision)[1], precision)
    wild = fitness.copy()
    wild[[3, 17]] += [60, -40]
    model, lowered = without_outliers(latents, wild, precision)
    left = lowered / precision
    assert left[[3, 17]].max() < 0.05
    assert np.sort(left)[2] > 0.3
    models = (Linear(latents, fitness, precision), model, Linear(latents, wild, precision))
    clean, found, fooled = (m.mean().direction[0] / np.linalg.norm(m.mean().direction[0]) for m in models)
    assert found @ clean > 0.9
    assert fooled @ clean < 0.8
    np.testing.assert_array_equal(without_outliers(latents, np.ones(60), precision)[1], precision)


def test_draws_of_the_linear_model_have_its_mean_and_spread() -> None:
    latents, fitness, precision = data(3)
    model = Linear(latents, fitness, precision)
    rng = np.random.default_rng(0)
    draws = model.draw(20_000, 1.0, rng).direction
    np.testing.assert_allclose(draws.mean(axis=0), model.mean().direction[0], atol=0.05)
    near = model.draw(20_000, 0.5, rng).direction
    assert near.std(axis=0) == pytest.approx(draws.std(axis=0) / 2, rel=0.05)
    assert np.ptp(model.draw(5, 0.0, rng).direction, axis=0).max() == 0


def test_curved_evidence_equals_a_dense_gaussian_process() -> None:
    latents, fitness, precision = data(5)
    linear = Linear(latents, fitness, precision)
    model = Curved(latents, fitness, precision, linear, np.ones(6))
    n, d = latents.shape
    centred = fitness - (precision * fitness).sum() / precision.sum()
    best = -np.inf
    for ratio in SIGNAL_TO_NOISE:
        cov = np.exp(latents @ latents.T / d) - 1 + np.outer(radial(latents), radial(latents)) + 100
        cov = ratio * cov + np.diag(1 / precision)
        value = -0.5 * np.linalg.slogdet(cov)[1] - 0.5 * (n - 1) * np.log(centred @ np.linalg.solve(cov, centred))
        best = max(best, value + 0.5 * np.log(ratio * 100 * n) - 0.5 * np.log(precision).sum())
    assert model.advantage <= best - linear.log_evidence.max() + 1e-6  # it looks only around the linear model's best


def test_the_curved_model_sees_a_bend_and_leaves_a_plane_alone() -> None:
    rng = np.random.default_rng(0)
    direction = np.eye(20)[0] * math.sqrt(20)
    latents = 0.6 * direction + 0.8 * rng.standard_normal((120, 20))
    bend = 3 * np.exp(-((latents[:, 1] - 1) ** 2)) * latents[:, 0]
    for fitness, bent in ((latents[:, 1], False), (bend, True)):
        noisy = fitness + 0.1 * rng.standard_normal(120)
        linear = Linear(latents, noisy, np.ones(120))
        assert (Curved(latents, noisy, np.ones(120), linear, direction).advantage > 3) == bent


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_ascent_ends_at_a_maximum_where_the_gradient_points_inwards(spread: float) -> None:
    """A peak at the equator of one dimension: at either pole the fitness falls inwards too, and further out it falls ever more."""
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((150, 20))
    latents[:40, 0] *= 3
    fitness = -(latents[:, 0] ** 2) + 0.3 * rng.standard_normal(150)
    linear = Linear(latents, fitness, np.ones(150))
    model = Curved(latents, fitness, np.ones(150), linear, linear.mean().direction[0])
    assert model.advantage > 3
    found = model.ascend(rng.standard_normal((10, 20)), lambda slopes: math.sqrt(20) * unit(slopes), spread, rng).direction
    assert np.abs(found[:, 0] / np.linalg.norm(found, axis=1) * math.sqrt(20)).max() < 1.5


def test_precisions_from_standard_errors() -> None:
    np.testing.assert_array_equal(relative_precision(np.array([np.nan, np.nan])), 1)
    np.testing.assert_array_equal(relative_precision(np.array([0.0, 0.0, np.nan])), 1)
    weights = relative_precision(np.array([1.0, 2.0, np.nan, 1.5]))
    assert weights.mean() == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx(4)
    assert weights[2] == pytest.approx(weights[3])
    assert relative_precision(np.array([1.0, 1e9, 1.0])).min() > 0  # none is thrown away for an error that is absurd


def climb(evolver: Evolver, seed: int, noise: float, generations: int, population: int, wild: float = 0.0) -> float:
    """Return the last generation's true fitness, in standard deviations of random images: cosine with a target.

    A share of the scores is off by 50.
    """
    rng = np.random.default_rng([seed, 1])
    size = evolver.latent_size
    target = rng.standard_normal(size)
    target /= np.linalg.norm(target)
    for _ in range(generations):
        latents = evolver.ask(population).astype(float)
        truth = math.sqrt(size) * (latents @ target) / np.linalg.norm(latents, axis=1)
        scores = truth + noise * rng.standard_normal(population)
        if wild:
            scores += 50 * (rng.random(population) < wild) * rng.choice([-1, 1], population)
        evolver.tell(np.arange(evolver.asked - population, evolver.asked), scores)
    return float(truth.mean())


@pytest.mark.parametrize(("noise", "at_least"), [(0.5, 4.5), (3.0, 1.0)])
def test_it_climbs_twice_as_far_as_truncation(noise: float, at_least: float) -> None:
    ours = [climb(Surrogate(100, 80, np.random.default_rng(s)), s, noise, 4, 20) for s in range(6)]
    theirs = [climb(TruncationEvolver(100, 20, 0.3**0.5, np.random.default_rng(s)), s, noise, 4, 20) for s in range(6)]
    assert np.mean(ours) > at_least
    assert np.mean(ours) > 1.7 * np.mean(theirs)


def test_wild_scores_do_not_lead_it_astray() -> None:
    gains = [[climb(Surrogate(100, 120, np.random.default_rng(s)), s, 1.0, 6, 20, wild) for s in range(4)] for wild in (0.0, 0.03)]
    assert np.mean(gains[1]) > 0.75 * np.mean(gains[0])


def test_in_one_dimension_every_candidate_has_a_length() -> None:
    """Of two points a draw's gradient may lead from each to the other."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        latents = rng.standard_normal((12, 1))
        fitness = np.exp(latents[:, 0] ** 2) * np.sign(latents[:, 0])
        model = Curved(latents, fitness, np.ones(12), Linear(latents, fitness, np.ones(12)), np.ones(1))
        found = model.ascend(rng.choice([-1.0, 1.0], (4, 1)), unit, 0.6, rng).direction
        assert np.abs(found).min() > 0


def test_candidates_stay_on_the_shell() -> None:
    evolver = Surrogate(50, 60, np.random.default_rng(0), norm_limits=(0.8, 1.05))
    rng = np.random.default_rng(1)
    for generation in range(6):
        latents = evolver.ask(10).astype(float)
        length = np.linalg.norm(latents, axis=1) / math.sqrt(50)
        if generation:
            assert length.min() >= 0.8 - 1e-6
            assert length.max() <= 1.05 + 1e-6
        evolver.tell(np.arange(evolver.asked - 10, evolver.asked), 5 * latents[:, 0] - length**2 + rng.standard_normal(10))


@pytest.mark.parametrize("ask", [1, 4, 7])
def test_the_first_images_are_at_right_angles_as_far_as_dimensions_allow(ask: int) -> None:
    evolver = Surrogate(12, None, np.random.default_rng(2))
    latents = np.concatenate([evolver.ask(ask) for _ in range(21 // ask)])[:21].astype(float)
    lengths = np.linalg.norm(latents, axis=1)
    cosines = latents @ latents.T / np.outer(lengths, lengths)
    many = ask * (12 // ask)
    np.testing.assert_allclose(cosines[:many, :many], np.eye(many), atol=1e-5)
    assert np.abs(cosines[12:, 12:] - np.eye(len(latents) - 12)).max() < 0.99
    assert lengths.std() > 0.3  # random lengths stay


def test_draws_lean_to_what_is_known_least_and_differ() -> None:
    rng = np.random.default_rng(0)
    latents = np.column_stack([rng.standard_normal((200, 10)), np.zeros((200, 10))])  # ten directions were never tried
    model = Linear(latents, latents[:, 0] + 0.3 * rng.standard_normal(200), np.ones(200))
    deviations = model.draw(8, 1.0, rng).direction - model.mean().direction
    tried, untried = np.linalg.norm(deviations[:, :10]), np.linalg.norm(deviations[:, 10:])
    assert untried > 10 * tried
    cosines = deviations @ deviations.T / np.outer(*2 * [np.linalg.norm(deviations, axis=1)])
    assert np.abs(cosines - np.eye(8)).max() < 0.1


def test_the_unit_of_fitness_does_not_matter_however_small() -> None:
    asked = []
    for smallness in (1.0, 1e-89):
        evolver = Surrogate(6, None, np.random.default_rng(0))
        for _ in range(3):
            latents = evolver.ask(8).astype(float)
            evolver.tell(np.arange(evolver.asked - 8, evolver.asked), smallness * latents[:, 0])
        asked.append(evolver.ask(8))
    np.testing.assert_allclose(asked[1], asked[0], rtol=1e-3, atol=1e-3)


def test_a_shorter_latent_is_found_where_it_is_better() -> None:
    evolver = Surrogate(30, None, np.random.default_rng(0))
    for _ in range(10):
        latents = evolver.ask(10).astype(float)
        evolver.tell(np.arange(evolver.asked - 10, evolver.asked), -((latents - 0.5) ** 2).sum(axis=1))
    assert np.linalg.norm(evolver.ask(10), axis=1).mean() < 0.75 * math.sqrt(30)


def test_the_last_generation_is_close_together_and_earlier_ones_are_not() -> None:
    evolver = Surrogate(40, 50, np.random.default_rng(0))
    spread = []
    for _ in range(5):
        latents = evolver.ask(10).astype(float)
        directions = latents / np.linalg.norm(latents, axis=1, keepdims=True)
        spread.append(1 - np.linalg.norm(directions.mean(axis=0)))
        evolver.tell(np.arange(evolver.asked - 10, evolver.asked), latents[:, 0])
    assert spread[-1] < 0.06
    assert spread[1] > 0.15


def test_certain_scores_count_more() -> None:
    rng = np.random.default_rng(0)
    target = np.ones(30) / math.sqrt(30)
    gains = {}
    for informed in (True, False):
        gain = []
        for seed in range(8):
            evolver = Surrogate(30, 60, np.random.default_rng(seed))
            latents = evolver.ask(50).astype(float)
            errors = np.where(np.arange(50) % 2, 0.5, 4.0)
            evolver.tell(np.arange(50), latents @ target + errors * rng.standard_normal(50), errors if informed else None)
            gain.append((evolver.ask(10) @ target).mean())
        gains[informed] = np.mean(gain)
    assert gains[True] > gains[False] + 0.3


@pytest.mark.parametrize(
    "options",
    [{"budget": 0}, {"exploration": -0.1}, {"exploration": 1.5}, {"norm_limits": (0.0, 1.0)}, {"norm_limits": (1.2, 1.0)}],
)
def test_parameters_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Surrogate(5, **{"budget": None, **options}, rng=np.random.default_rng(0))  # type: ignore[arg-type]
