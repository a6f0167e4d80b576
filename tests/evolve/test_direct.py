"""Evolution from the series itself: exact against dense matrices, causal, and with controls that gain nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.decode.hrf import response
from rtevo.evolve import Course, CourseSettings, Direct, Feedback, Sham, Yoked, create, from_state
from rtevo.evolve.preference import pooled
from rtevo.evolve.series import Series
from rtevo.kernels.whiten import whiten
from rtevo.records import Projected

Array = NDArray[np.float64]
START = (
    1e-3  # the dense matrices' start of the drift has a variance of 1e6, and is as good as unknown: shares of an error's standard deviation
)
TR_S, IMAGE_S, RHO, DRIFT_SD = 1.5, 1.0, 0.4, 0.05


def covariance_of_noise(times_s: Array, start_variance: float = 1e6) -> Array:
    """The naive way: an autoregression and a walk from an unknown start."""
    apart = np.abs(times_s[:, np.newaxis] - times_s)
    walked = np.minimum(times_s[:, np.newaxis], times_s) - times_s[0]
    return np.asarray(RHO**apart + DRIFT_SD**2 * walked + start_variance, np.float64)


def projected(index: int, value: float, motion_mm: Sequence[float] = (0.0,) * 6) -> Projected:
    return Projected(index, (index + 0.5) * TR_S, value, tuple(motion_mm), RHO, DRIFT_SD, 0.0, 0.0, 1.0)


def test_whitened_columns_have_the_inner_products_of_the_inverse_covariance() -> None:
    rng = np.random.default_rng(0)
    times_s = np.cumsum(rng.choice([1.5, 3.0, 4.5], 40))  # some are missing
    columns = rng.standard_normal((40, 3))
    columns[:12, 1] = 0.0
    steps_s = np.diff(times_s, prepend=times_s[0])
    own = columns.copy()
    whiten(own, RHO**steps_s, DRIFT_SD**2 * steps_s, np.array([0, 12, 0]))
    inverse = np.linalg.inv(covariance_of_noise(times_s))
    np.testing.assert_allclose(own.T @ own, columns.T @ inverse @ columns, rtol=1e-4, atol=1e-4)  # the start's variance is finite there


def dense(volumes: Sequence[Projected], onsets_s: Array) -> tuple[Array, Array]:
    """Amplitudes and their errors' covariance by whole matrices."""
    times_s = np.array([volume.t_s for volume in volumes])
    x = response(times_s[:, np.newaxis] - onsets_s, IMAGE_S)
    motion = np.array([volume.motion_mm for volume in volumes])
    noise = np.linalg.inv(covariance_of_noise(times_s) + 9.0 * motion @ motion.T)
    covariance = np.linalg.inv(x.T @ noise @ x + np.eye(len(onsets_s)) / 400.0)
    return covariance @ x.T @ noise @ [volume.value for volume in volumes], covariance


def test_amplitudes_are_those_of_dense_matrices_however_close_images_are() -> None:
    rng, series = np.random.default_rng(1), Series()
    onsets_s = 4.0 + 1.3 * np.arange(25)
    volumes = [projected(i, float(rng.standard_normal()), 0.1 * rng.standard_normal(6)) for i in range(30) if i not in (7, 8, 19)]
    for number, onset_s in enumerate(onsets_s):
        series.add_image((0, number), number, float(onset_s), IMAGE_S)
    for volume in volumes:
        series.add_volume(0, volume)
    found = series.estimate()
    assert found is not None
    values, covariance = dense(volumes, onsets_s)
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((found.values - values) / sd).max() < START
    np.testing.assert_allclose(found.covariance / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=START)
    assert Series.from_state(json.loads(json.dumps(series.to_state()))).estimate().values.tolist() == found.values.tolist()  # type: ignore[union-attr]


def test_a_part_of_a_response_counts_and_parts_of_a_session_have_levels_of_their_own() -> None:
    series, rng = Series(), np.random.default_rng(2)
    series.add_image((0, 0), 0, 2.0, IMAGE_S)
    series.add_image((0, 1), 1, 40.0, IMAGE_S)
    amplitude, errors = 3.0, []
    for index in range(40):
        part, t_s = int(index >= 20), (index + 0.5) * TR_S
        value = amplitude * float(response(np.array(t_s - (40.0 if part else 2.0)), IMAGE_S)) + 100.0 * part
        series.add_volume(part, projected(index, value + 1e-3 * float(rng.standard_normal())))
        if (found := series.estimate()) is not None:
            errors.append(float(found.covariance[0, 0]))
    assert np.diff(errors).max() < 1e-6  # rounding
    assert errors[0] > 5 * errors[-1]  # two seconds of a response say little
    assert found is not None
    np.testing.assert_allclose(found.values, amplitude, atol=0.05)
    series.taken((0, 1), 40.0 + IMAGE_S / 2)  # half as long: its amplitude is that of a whole one
    cut = series.estimate()
    assert cut is not None
    assert cut.values[1] == pytest.approx(2 * amplitude, rel=0.05)
    series.belongs((0, 1), -1)
    assert series.estimate().numbers.tolist() == [0]  # type: ignore[union-attr]


def session(feedback: Feedback, seed: int = 0, images: int = 40, size: int = 6) -> tuple[Direct, Array, list[Projected]]:
    """Images every 1.2 s, a direction of six, strong responses; returns strategy, the images' true fitness, and the volumes."""
    rng = np.random.default_rng([seed, 9])
    evolver = create("direct", size, 5, np.random.default_rng(seed))
    assert isinstance(evolver, Direct)
    course = Course(evolver, CourseSettings(images // 5, 5, "steady", 2, probe_every=6), feedback, np.zeros((1, size)))
    goal, waiting, volumes, truth = np.eye(size)[0], list(course.due()), [], []
    values = rng.standard_normal(int(images * 1.5 / TR_S) + 8)
    times_s = (np.arange(len(values)) + 0.5) * TR_S
    onset_s = 4.0
    for index in range(len(values)):
        while waiting and onset_s < (index + 1) * TR_S:
            request = waiting.pop(0)
            values += 3.0 * (1.0 + float(request.latent @ goal)) * response(times_s - onset_s, IMAGE_S)
            truth += [float(request.latent @ goal)] if request.probe < 0 else []
            course.show()
            course.appeared(request.generation, request.candidate, onset_s, IMAGE_S)
            waiting += course.due(onset_s)
            onset_s += 1.2
        volumes.append(projected(index, float(values[index])))
        course.volume(0, volumes[-1])
    return evolver, np.array(truth), volumes


def test_a_saved_state_goes_on_from_the_series() -> None:
    evolver, _, _ = session(Feedback())
    assert evolver.expected_gain(5) >= 0.0
    assert evolver.history().ids.tolist() == list(range(40))  # no probe among them
    state = json.loads(json.dumps(evolver.to_state(), allow_nan=False))
    np.testing.assert_array_equal(from_state(state).ask(2), evolver.ask(2))


def test_another_run_goes_on_from_what_the_first_has_found_at_whatever_level_its_volumes_lie() -> None:
    first, goal = session(Feedback())[0], np.eye(6)[0]
    evolver = from_state(json.loads(json.dumps(first.to_state())))
    course = Course(evolver, CourseSettings(2, 5, "steady", 2))
    asked = []
    for index in range(12):
        for request in course.due():
            asked.append(request.latent)
        course.show()
        course.appeared(0, index, 4.0 + index * TR_S, IMAGE_S) if index < 5 else course.appeared(1, index - 5, 4.0 + index * TR_S, IMAGE_S)
        course.volume(0, projected(index, 500.0 + index % 2))
    assert evolver.runs == 2
    several = pooled(evolver)  # each run has an offset of its own, and so says what may be gained
    assert several is not None
    assert evolver.expected_gain(5) == several.linear.expected_gain(5, np.random.default_rng(evolver.asked))
    assert float(np.mean(asked[:3] @ goal)) > 1.5
    assert np.isfinite(asked).all()


def test_a_preference_is_found_from_images_too_close_for_scores_and_sham_and_yoked_find_none() -> None:
    gains: dict[str, list[float]] = {"brain": [], "sham": [], "yoked": []}
    for seed in range(3):
        _, truth, volumes = session(Feedback(), seed)
        gains["brain"].append(truth[-5:].mean())
        gains["sham"].append(session(Sham(*np.random.default_rng(seed).spawn(2)), seed)[1][-5:].mean())
        gains["yoked"].append(session(Yoked([0.0], {v.index: v for v in volumes}), seed + 100)[1][-5:].mean())
    assert np.mean(gains["brain"]) > 2.0  # of 3.4 that there are
    for control in ("sham", "yoked"):  # a direction anywhere: 0 with a standard error of 0.7
        assert abs(np.mean(gains[control])) < 1.5


def test_sham_permutes_responses_among_the_images_so_far_uniformly() -> None:
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(600):
        sham, holds = Sham(np.random.default_rng(0), np.random.default_rng(seed)), dict[int, int]()
        for candidate in range(3):
            holds.update(sham.attribute(candidate))
        found[tuple(holds[candidate] for candidate in range(3))] += 1
    assert set(found) == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
    assert min(found.values()) > 60  # 100 expected, standard deviation 9


def test_yoked_takes_the_partners_volume_of_the_same_number_and_none_that_was_left_out() -> None:
    own, partner = projected(3, 1.0), projected(3, 7.0)
    assert Yoked([0.0], {3: partner}).volume(own) == partner
    assert Yoked([0.0], {4: partner}).volume(own) is None
