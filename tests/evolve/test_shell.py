"""Embeddings keep to the shell that the image model has learnt, whatever the latent space's scales are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rtevo.evolve import Shell, Surrogate, from_state
from rtevo.latent import LatentSpace

SIZE = 40
FLOAT32 = 1e-5  # relative: embeddings and candidates are float32


def falling(mean: float = 0.0) -> LatentSpace:
    """A whitened space whose variances fall as 1/k, around a mean of some length."""
    plain = LatentSpace.random(SIZE, 60, seed=0)
    scale = (1 / np.sqrt(np.arange(1, SIZE + 1))).astype(np.float32)
    return LatentSpace(np.full(60, mean / math.sqrt(60), np.float32), plain.components, scale, scale)


def shell_of(space: LatentSpace) -> Shell:
    return Shell.of(space.mean, space.components, space.scale)


def climbed(shell: Shell | None, seed: int = 0, generations: int = 5, first: int = 0) -> Surrogate:
    """A strategy that has been told scores which rise along the first component, and bend."""
    evolver = Surrogate(SIZE, 10 * generations, np.random.default_rng(seed), shell=shell)
    for _ in range(generations):
        latents = evolver.ask(10).astype(float)
        evolver.tell(np.arange(evolver.asked - 10, evolver.asked), latents[:, first] + 0.1 * latents[:, 1] ** 2)
    return evolver


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_excess_is_what_an_embeddings_squared_length_has_above_the_means(mean: float) -> None:
    space, latents = falling(mean), np.random.default_rng(1).standard_normal((20, SIZE))
    embeddings = space.to_embedding(latents).astype(float)
    usual = float((space.scale.astype(float) ** 2).sum())
    np.testing.assert_allclose(shell_of(space).excess(latents) * usual, (embeddings**2).sum(axis=1) - mean**2, atol=1e-4)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_what_is_too_long_is_shortened_onto_the_shell_and_the_rest_stays(mean: float) -> None:
    shell = shell_of(falling(mean))
    latents = np.random.default_rng(2).standard_normal((200, SIZE))
    moved, far = shell.within(latents, 1.1), shell.excess(latents) > shell.most(1.1)
    assert 10 < far.sum() < 190
    np.testing.assert_array_equal(moved[~far], latents[~far])
    np.testing.assert_allclose(shell.excess(moved[far]), shell.most(1.1))
    shares = moved[far] / latents[far]
    np.testing.assert_allclose(shares, shares[:, :1] * np.ones(SIZE))
    assert 0 < shares.min() < shares.max() < 1


def test_candidates_in_a_space_of_falling_variances_are_no_longer_than_pictures_are() -> None:
    space = falling()
    usual = math.sqrt(float((space.scale.astype(float) ** 2).sum()))

    def greatest(evolver: Surrogate) -> float:
        return float(np.linalg.norm(space.to_embedding(evolver.history().latents[-30:]), axis=1).max()) / usual

    high = 1 + 1 / math.sqrt(SIZE)
    assert greatest(climbed(shell_of(space))) <= high * (1 + FLOAT32)
    assert greatest(climbed(None)) > 2.0


def test_where_all_scales_are_alike_a_shell_changes_nothing() -> None:
    shell = shell_of(LatentSpace.random(SIZE, 60, seed=0))
    np.testing.assert_array_equal(shell.weights(), 1.0)
    np.testing.assert_array_equal(climbed(shell).ask(10), climbed(None).ask(10))


def test_a_state_with_a_shell_goes_on_and_one_from_before_shells_has_none() -> None:
    evolver = climbed(shell_of(falling(3.0)))
    state = json.loads(json.dumps(evolver.to_state()))
    resumed = from_state(state)
    np.testing.assert_array_equal(resumed.ask(5), evolver.ask(5))
    assert resumed.to_state() == evolver.to_state()
    old = climbed(None)
    state = json.loads(json.dumps(old.to_state()))
    assert state["memory"] == {}  # as it was
    np.testing.assert_array_equal(from_state(state).ask(5), old.ask(5))


def test_more_is_expected_of_directions_in_which_pictures_differ_more() -> None:
    weights = shell_of(falling()).weights()
    assert (np.diff(weights) < 0).all()
    assert (weights**2).mean() == pytest.approx(1.0)


@pytest.mark.parametrize(("scale", "tilt"), [([1.0, 0.0], [0.0, 0.0]), ([1.0, 2.0], [0.0]), ([1.0, 2.0], [0.0, math.nan])])
def test_a_shell_is_checked(scale: list[float], tilt: list[float]) -> None:
    with pytest.raises(ValueError, match="shell: expected"):
        Shell(np.array(scale), np.array(tilt))
