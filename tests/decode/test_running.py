"""The running fit against the same fit to the stored volumes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtevo.decode import RunningFit

RECURSION = 1e-7  # relative; sums kept in float64, differences of squares lose about half of the digits when little is left


def batch(terms: np.ndarray, values: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return the residuals of ridge regression with a free constant, from the stored volumes."""
    x, y = terms - terms.mean(axis=0), values - values.mean(axis=0)
    stacked = np.vstack([x, np.diag(np.sqrt(penalty))])
    b = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((len(penalty), y.shape[1]))]), rcond=None)[0]
    return y - x @ b


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 5), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_equals_the_batch_fit(volumes: int, p: int, voxels: int, ridge: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    terms, values = rng.standard_normal((volumes, p)), 1000 + 10 * rng.standard_normal((volumes, voxels))
    penalty = ridge * rng.uniform(0.5, 2, p)
    fit = RunningFit(voxels, penalty)
    for x, y in zip(terms, values, strict=True):
        fit.add(x, y)
    expected = batch(terms, values, penalty)
    scale = np.abs(values - values[0]).max() + 1e-12
    for i in range(volumes):
        np.testing.assert_allclose(fit.residual(terms[i], values[i]), expected[i], atol=RECURSION * scale)
    np.testing.assert_allclose(fit.sd(), expected.std(axis=0), rtol=RECURSION, atol=1e-4 * scale if ridge < 1 else RECURSION * scale)


@given(st.integers(0, 2**32 - 1))
def test_without_a_ridge_it_is_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    terms, values = rng.standard_normal((40, 7)), rng.standard_normal((40, 6))
    fit = RunningFit(6, np.zeros(7))
    for x, y in zip(terms, values, strict=True):
        fit.add(x, y)
    design = np.column_stack([np.ones(40), terms])
    expected = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    np.testing.assert_allclose(fit.residual(terms[-1], values[-1]), expected[-1], atol=RECURSION)
    np.testing.assert_allclose(fit.sd(), expected.std(axis=0), rtol=RECURSION)


def test_order_of_volumes_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    terms, values = rng.standard_normal((30, 3)), 500 + rng.standard_normal((30, 4))
    fits = [RunningFit(4, np.ones(3)), RunningFit(4, np.ones(3))]
    for fit, order in zip(fits, (np.arange(30), rng.permutation(30)), strict=True):
        for i in order:
            fit.add(terms[i], values[i])
    np.testing.assert_allclose(fits[0].sd(), fits[1].sd(), rtol=RECURSION)
    np.testing.assert_allclose(fits[0].residual(terms[3], values[3]), fits[1].residual(terms[3], values[3]), atol=RECURSION)


def test_the_mean_of_residuals_is_the_residual_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    terms, values = rng.standard_normal((20, 2)), rng.standard_normal((20, 3))
    fit = RunningFit(3, np.ones(2))
    for x, y in zip(terms, values, strict=True):
        fit.add(x, y)
    each = np.mean([fit.residual(terms[i], values[i]) for i in (3, 4, 5)], axis=0)
    np.testing.assert_allclose(fit.residual(terms[3:6].mean(axis=0), values[3:6].mean(axis=0)), each, atol=1e-12)


def test_a_ridge_leaves_the_first_volumes_their_signal() -> None:
    rng = np.random.default_rng(2)
    terms, values = 0.1 * rng.standard_normal((6, 7)), rng.standard_normal((6, 500))
    plain, light = RunningFit(500, np.zeros(7)), RunningFit(500, np.ones(7))
    for x, y in zip(terms, values, strict=True):
        plain.add(x, y)
        light.add(x, y)
    assert not plain.sd().any()  # six volumes, eight terms: everything is explained
    assert light.sd().mean() > 0.8 * values.std(axis=0).mean()


def test_what_does_not_vary_has_no_sd() -> None:
    fit = RunningFit(2, np.ones(1))
    assert not fit.sd().any()
    for i in range(5):
        fit.add(np.array([float(i % 2)]), np.array([1234.5678, float(i)]))
    assert fit.sd()[0] == 0
    assert fit.sd()[1] > 0


@pytest.mark.parametrize("volumes", [1000])
def test_no_digits_are_lost_in_a_long_run(volumes: int) -> None:
    rng = np.random.default_rng(3)
    seconds = np.arange(volumes) * 0.867 / 60
    terms = np.column_stack([seconds, np.cumsum(0.01 * rng.standard_normal((volumes, 6)), axis=0)])
    values = 30_000 + 100 * np.outer(seconds, [1, -1]) + 5 * rng.standard_normal((volumes, 2))
    fit = RunningFit(2, np.ones(7))
    for x, y in zip(terms, values, strict=True):
        fit.add(x, y)
    np.testing.assert_allclose(fit.sd(), batch(terms, values, np.ones(7)).std(axis=0), rtol=RECURSION)
