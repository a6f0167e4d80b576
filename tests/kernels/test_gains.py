"""Fields of gain against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.kernels import gains
from rtevo.kernels.align import pack_rows

SIZE = np.array([9.0, 7.0, 8.0])  # mm


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(3)
    shape = (9, 11, 10)
    reference = 1 + 0.3 * rng.normal(size=shape)
    weight = (rng.random(shape) > 0.3).astype(float)
    weight[:2] = 0
    found = gains.make_gains(reference, weight, SIZE)
    dense = np.einsum("xa,yb,zc->xyzabc", *[k.astype(float) for k in found.knots]).reshape(*shape, -1)[..., found.held]
    return reference, weight, found, dense


def _packed(rows, size, volume):
    out = np.zeros(size, np.float32)
    for x, y, z, n, start in rows:
        out[start : start + n] = volume[x, y, z : z + n]
    return out


def test_splines_add_up_to_one_everywhere(case):
    for knots in case[2].knots:
        np.testing.assert_allclose(knots.sum(axis=1), 1.0, atol=1e-6)


def test_removed_gains_are_invisible(case):
    reference, weight, _, dense = case
    images = np.random.default_rng(4).normal(size=(2, *reference.shape))
    removed = gains.gains_removed(images, reference, weight, SIZE)
    seen = np.einsum("nxyz,xyzk->nk", removed, dense * reference[..., None])
    before = np.einsum("nxyz,xyzk->nk", images * weight, dense * reference[..., None])
    assert np.abs(seen).max() < 0.02 * np.abs(before).max()  # what the ridge leaves


def test_expand_agrees_with_dense(case):
    reference, weight, found, dense = case
    rows, size = pack_rows(weight)
    field = np.zeros(found.shape, np.float32)
    field.reshape(-1)[found.held] = np.random.default_rng(5).normal(size=len(found.held))
    expected = np.zeros(size, np.float32)
    knots_z = np.ascontiguousarray(found.knots[2].T)
    gains.expand(rows, *found.knots[:2], knots_z, field, _packed(rows, size, reference), expected)
    oracle = reference * (1 + dense @ field.reshape(-1)[found.held])
    np.testing.assert_allclose(expected, _packed(rows, size, oracle), atol=1e-5)


def test_refine_finds_a_field_that_is_there_despite_outliers(case):
    reference, weight, found, dense = case
    rows, size = pack_rows(weight)
    truth = 0.1 * np.random.default_rng(6).normal(size=len(found.held))
    residual = weight * reference * (dense @ truth)
    knots_z = np.ascontiguousarray(found.knots[2].T)

    def refined(volume, limit):
        field = np.zeros(found.shape, np.float32)
        gains.refine(
            rows, *found.knots[:2], knots_z, found.held, found.inverse,
            _packed(rows, size, volume), limit, _packed(rows, size, reference), field,
        )  # fmt: skip
        return dense @ field.reshape(-1)[found.held]

    inside = weight > 0
    plain = refined(residual, np.inf)
    assert np.abs(plain - dense @ truth)[inside].max() < 0.01
    spoilt = residual.copy()
    spoilt[5, 5, 5] = weight[5, 5, 5] * 1e3
    np.testing.assert_allclose(refined(spoilt, 1e2)[inside], plain[inside], atol=0.05)
