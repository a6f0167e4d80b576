"""What the volumes alone say: against dense matrices, and through to the covariance that evolution makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.decode import Deconvolver, Grid
from rtevo.decode.grid import ALONE
from rtevo.decode.hrf import response
from rtevo.decode.likelihood import Free
from rtevo.evolve.together import Link, Together

TR_S, IMAGES = 1.0, 7
SAME = 1e-4  # relative: the drift's start has a variance of 1e6, which costs digits in both ways of computing
POINT = Grid((1.0, 3.0), (0.3,), (0.05,), (0.0,), (0.4,), (1.1,), (ALONE, (0.8, 15.0)))


def test_estimates_and_their_covariance_are_those_of_generalised_least_squares() -> None:
    rng = np.random.default_rng(2)
    onsets, times = 4.0 + 3.0 * np.arange(IMAGES), (np.arange(34) + 0.5) * TR_S
    series = 2 * rng.standard_normal(len(times))
    main, free, shown = Deconvolver(TR_S, 0, POINT), Free(TR_S, 0, POINT), 0
    for t_s, value in zip(times, series, strict=True):
        while shown < IMAGES and onsets[shown] <= t_s:
            for each in (main, free):
                each.add_image((0, shown), onsets[shown], 3.0)
            shown += 1
        main.add_volume(t_s, value, [])
        free.follow(main)
        free.add_volume(t_s, value, [])
    noise = 0.3 ** np.abs(times[:, np.newaxis] - times) + 0.05**2 * np.minimum.outer(times - times[0], times - times[0]) + 1e6
    shapes = np.array([response(times - onset - 0.4, 3.0, 1.1) for onset in onsets]).T
    whole = noise + 400.0 * shapes @ shapes.T
    expected = 400.0 * shapes.T @ np.linalg.solve(whole, series)
    posterior = 400.0 * np.eye(IMAGES) - 400.0**2 * shapes.T @ np.linalg.solve(whole, shapes)
    quadratic = series @ np.linalg.solve(whole, series) - series[0] ** 2 / whole[0, 0]
    posterior *= (2 + quadratic) / (2 + len(times) - 1)
    found, together = free.measured(), Together()
    for k in range(IMAGES):
        each = found[0, k]
        assert len(each.neighbours) == k
        link = Link.of(onsets[k], each.value, each.se, [*each.neighbours, *[0.0] * (8 - k)])
        assert link is not None
        together.add(0, (0, k), k, link)
    again = Together.from_state(together.to_state()).of(np.arange(IMAGES), np.zeros(IMAGES), np.full(IMAGES, np.nan))
    assert again is not None
    np.testing.assert_allclose(again[0], expected, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(again[1], posterior, rtol=SAME, atol=SAME * posterior.max())


def test_images_without_a_score_are_no_neighbours() -> None:
    free = Free(TR_S, 0, POINT)
    for k in range(4):
        free.add_image((0, k), 2.0 + k, 3.0)
    for t in range(16):
        free.add_volume(t + 3.5, float(np.sin(t)), [])
    assert set(free.measured(lambda key: key[1] != 1)) == {(0, 0), (0, 2), (0, 3)}
    assert len(free.measured(lambda key: key[1] != 1)[0, 3].neighbours) == 2
    assert free.measured(lambda key: False) == {}


@pytest.mark.parametrize("value", [(np.nan, 1.0), (1.0, 0.0), (1.0, np.nan)])
def test_what_is_not_known_makes_no_link(value: tuple[float, float]) -> None:
    assert Link.of(0.0, *value, [0.5]) is None
    assert Link.of(0.0, 1.0, 1.0, [np.inf, 0.0]) is None


def test_what_is_not_linked_keeps_its_own_error_and_runs_are_apart() -> None:
    together = Together()
    together.add(0, (0, 0), 0, Link(5.0, 1.0, 2.0, ()))
    together.add(0, (0, 1), -1, Link(9.0, 7.0, 1.0, (0.5,)))  # a probe
    together.add(0, (0, 2), 1, Link(13.0, 2.0, 1.0, (0.5, 0.25)))
    together.add(3, (0, 0), 3, Link(5.0, 4.0, 3.0, (9.0,)))  # the first of its run: nothing comes before it
    found = together.of(np.array([0, 1, 2, 3]), np.array([0.0, 0.0, 6.0, 0.0]), np.array([1.0, 1.0, 0.5, np.nan]))
    assert found is not None
    np.testing.assert_allclose(found[0], [1.0, 2.0, 6.0, 4.0])
    cov = np.zeros((4, 4))
    cov[0, 0], cov[0, 1], cov[2, 2], cov[3, 3] = 4.0, 0.5 * 0.5 * 4 + 0.25 * 4, 0.25, 9.0
    cov[1, 0] = cov[0, 1]
    cov[1, 1] = 1 + 0.5**2 * 1 + (0.5 * 0.5 + 0.25) ** 2 * 4
    np.testing.assert_allclose(found[1], cov)
    assert together.of(np.array([7]), np.zeros(1), np.zeros(1)) is None
