"""Generalised least squares in the surrogate: the plain model where errors are independent, and better than it where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.evolve import Course, CourseSettings, create
from rtevo.evolve.controls import Sham
from rtevo.evolve.model import Curved, Errors, Linear, unit, without_outliers_together
from rtevo.evolve.together import Link

N, D = 40, 12
SAME = 1e-8  # relative: the same sums in another order


def make_scores(seed: int, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    latents, direction = rng.standard_normal((N, D)), rng.standard_normal(D)
    return latents, latents @ direction / np.sqrt(D) + rng.multivariate_normal(np.zeros(N), covariance), direction


def test_independent_errors_give_the_plain_model() -> None:
    precision = np.random.default_rng(0).uniform(0.3, 2.0, N)
    precision /= precision.mean()
    latents, fitness, _ = make_scores(1, np.eye(N))
    errors, plain = Errors(np.diag(3.0 / precision)), Linear(latents, fitness, precision)
    together = Linear(latents, fitness, np.ones(N), errors)
    np.testing.assert_allclose(together.mean().direction, plain.mean().direction, rtol=SAME)
    np.testing.assert_allclose(together.log_evidence, plain.log_evidence, rtol=SAME)
    np.testing.assert_allclose(together.surprise_together(errors), plain.surprise(precision), rtol=1e-6)
    towards = plain.mean().direction[0]
    curved = [Curved(latents, fitness, precision, plain, towards), Curved(latents, fitness, precision, together, towards, errors)]
    assert curved[1].advantage == pytest.approx(curved[0].advantage, rel=1e-6)
    slopes = [each.ascend(np.ones((1, D)), lambda slopes: 3.0 * unit(slopes), 0.0, np.random.default_rng(0)).direction for each in curved]
    np.testing.assert_allclose(*slopes, rtol=1e-6)


def test_errors_that_go_together_are_seen_through() -> None:
    apart = np.abs(np.arange(N)[:, np.newaxis] - np.arange(N))
    covariance = 9.0 * np.exp(-apart / 30.0) + 0.1 * np.eye(N)  # drift
    found = []
    for seed in range(8):
        latents, fitness, direction = make_scores(seed, covariance)
        for model in (Linear(latents, fitness, np.ones(N)), without_outliers_together(latents, fitness, covariance)[0]):
            own = model.mean().direction[0]
            found.append(own @ direction / np.linalg.norm(own) / np.linalg.norm(direction))
    plain, together = np.array(found).reshape(8, 2).mean(axis=0)
    assert together > 0.85
    assert together > plain + 0.2  # twice the standard error of a difference of eight


def test_a_score_that_the_others_make_incredible_counts_less() -> None:
    latents, fitness, _ = make_scores(3, 0.2 * np.eye(N))
    fitness[7] += 20.0
    _, errors = without_outliers_together(latents, fitness, 0.2 * np.eye(N))
    assert errors.trust[7] < 0.5
    assert np.median(errors.trust) == 1.0


def test_a_course_passes_links_on_and_a_sham_does_not() -> None:
    settings = CourseSettings(2, 4, "steady", 2)
    link = Link(5.0, 1.5, 0.5, ())
    for feedback in (None, Sham(np.random.default_rng(0))):
        evolver = create("surrogate", 5, 4, np.random.default_rng(0))
        course = Course(evolver, settings, feedback)
        course.due()
        course.score(0, 0, 1.0, 0.3, link)
        links = evolver.to_state()["links"]
        assert links == ([[0, 0, 0, 0, 5.0, 1.5, 0.5, []]] if feedback is None else [])
        again = type(evolver).from_state(evolver.to_state())
        assert again.to_state() == evolver.to_state()


def test_a_session_s_state_of_before_is_read() -> None:
    state = create("surrogate", 5, 4, np.random.default_rng(0)).to_state()
    del state["links"]
    assert type(create("surrogate", 5, 4, np.random.default_rng(0))).from_state(state).to_state()["links"] == []
