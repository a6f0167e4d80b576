"""Echoes combined with weights by T2*, against a signal whose T2* is known."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.realign.echoes import FITTED, LONGEST_S, SHORTEST_S, Echoes, echo_weights, first_echo, fit_t2star

SHAPE = (9, 8, 7)
TE_S = (0.012, 0.029, 0.046)
EXACT = 1e-5  # float32
NOISY = 0.05  # of T2*, with noise of 1% of the signal in the mean of eight volumes
RNG = np.random.default_rng(4)
T2STAR_S = RNG.uniform(0.015, 0.09, SHAPE).astype(np.float32)


def signal(t2star_s=T2STAR_S, level=1000.0):
    return np.stack([level * np.exp(-te / t2star_s) for te in TE_S]).astype(np.float32)


def test_t2star_is_fitted_whatever_the_level_of_the_signal():
    np.testing.assert_allclose(fit_t2star(signal(), TE_S), T2STAR_S, rtol=EXACT)
    np.testing.assert_allclose(fit_t2star(signal(level=0.5), TE_S), T2STAR_S, rtol=EXACT)


def test_where_there_is_no_signal_or_no_decay_t2star_stays_within_limits():
    odd = np.zeros((3, 4, 1, 1), np.float32)
    odd[:, 1, 0, 0] = 5, 6, 7  # grows
    odd[:, 2, 0, 0] = 100, 0, -3
    odd[:, 3, 0, 0] = -1, -2, -3
    found = fit_t2star(odd, TE_S)
    assert np.isfinite(found).all()
    assert (found >= np.float32(SHORTEST_S)).all()
    assert (found <= np.float32(LONGEST_S)).all()


def test_weights_sum_to_one_and_are_those_of_posse():
    weights = echo_weights(T2STAR_S, TE_S)
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=EXACT)
    wanted = np.stack([te * np.exp(-te / T2STAR_S) for te in TE_S])
    np.testing.assert_allclose(weights, wanted / wanted.sum(axis=0), atol=EXACT)


def test_no_other_weights_give_more_contrast_to_noise():
    """With the same noise in all echoes, the change of the combined signal with T2* over its noise is largest with these weights."""
    rate = 1 / T2STAR_S
    change = signal(1 / (rate * 1.01)) - signal()

    def contrast(weights):
        return np.abs((weights * change).sum(axis=0)) / np.sqrt((weights**2).sum(axis=0))

    best = contrast(echo_weights(T2STAR_S, TE_S))
    for other in (*np.eye(3), np.ones(3), *RNG.uniform(0, 1, (20, 3))):
        assert (contrast(other[:, None, None, None]) <= best * (1 + 1e-2)).all()


def test_weights_follow_the_first_volumes_and_stay_then():
    echoes = Echoes(TE_S)
    noisy = [signal() * (1 + 0.01 * RNG.standard_normal((3, *SHAPE))).astype(np.float32) for _ in range(FITTED)]
    combined = [echoes.combine(each) for each in noisy]
    weights = echo_weights(fit_t2star(np.mean(noisy, axis=0), TE_S), TE_S)
    np.testing.assert_allclose(combined[-1], (noisy[-1] * weights).sum(axis=0), rtol=EXACT)
    np.testing.assert_allclose(fit_t2star(np.mean(noisy, axis=0), TE_S), T2STAR_S, rtol=4 * NOISY)
    later = signal(T2STAR_S * 0.5)
    np.testing.assert_allclose(echoes.combine(later), (later * weights).sum(axis=0), rtol=EXACT)
    echoes.begin_again()
    again = echo_weights(T2STAR_S * np.float32(0.5), TE_S)
    np.testing.assert_allclose(echoes.combine(later), (later * again).sum(axis=0), rtol=EXACT)


def test_a_map_that_is_given_stays():
    echoes = Echoes(TE_S, T2STAR_S)
    other = signal(T2STAR_S * 2)
    np.testing.assert_allclose(echoes.combine(other), (other * echo_weights(T2STAR_S, TE_S)).sum(axis=0), rtol=EXACT)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 2, 3, 4)])
def test_the_first_echo_of_a_volume_is_a_view(shape):
    volume = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert first_echo(volume).shape == (2, 3, 4)
    assert np.shares_memory(first_echo(volume), volume)
