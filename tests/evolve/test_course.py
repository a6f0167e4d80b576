"""The course of a session: who is asked for when, what evolution is told, probes, controls, the end."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtevo.evolve import Course, CourseSettings, Feedback, RandomEvolver, Request, Sham, Surrogate, Told, Yoked


def course(feedback: Feedback | None = None, **changed: object) -> Course:
    chosen = {"generations": 3, "population": 4, "schedule": "steady", **changed}
    return Course(RandomEvolver(2, np.random.default_rng(0)), CourseSettings(**chosen), feedback, probes=np.eye(2))  # type: ignore[arg-type]


def run(one: Course) -> list[Request]:
    """Show every image, score it at once; give the images in the order in which they were asked for."""
    asked: list[Request] = []
    shown = 0
    while True:
        asked += one.due()
        if shown == len(asked):
            return asked
        one.show()
        one.score(asked[shown].generation, asked[shown].candidate, 1.0)
        shown += 1


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["steady", "generational"]), st.just(0) | st.integers(2, 6), st.integers(1, 8))
def test_every_candidate_is_asked_for_once_and_probes_come_at_their_rate(
    generations: int, population: int, schedule: str, every: int, ahead: int
) -> None:
    how = CourseSettings(generations, population, schedule, ahead, every)
    one = Course(RandomEvolver(2, np.random.default_rng(0)), how, probes=np.eye(2))
    asked = run(one)
    keys = [(r.generation, r.candidate) for r in asked]
    assert len(set(keys)) == len(keys) == how.images
    assert [key for key in keys if key[1] < population] == [(g, c) for g in range(generations) for c in range(population)]
    probes = [place + 1 for place, r in enumerate(asked) if r.probe >= 0]
    assert probes == (list(range(every, len(asked) + 1, every)) if every else [])
    assert [r.probe for r in asked if r.probe >= 0] == [k % 2 for k in range(len(probes))]
    assert all(np.array_equal(r.latent, np.eye(2)[r.probe]) for r in asked if r.probe >= 0)
    for generation in range(generations):
        own = sorted(candidate for g, candidate in keys if g == generation)
        assert own == list(range(len(own)))
    assert one.finished
    assert one.missing == 0
    assert len(one.evolver.history().ids) == generations * population


def test_steady_is_always_the_same_number_ahead_and_generational_waits() -> None:
    steady = course(ahead=3)
    assert [(r.generation, r.candidate) for r in steady.due()] == [(0, 0), (0, 1), (0, 2)]
    assert steady.due() == []
    steady.show()
    assert [(r.generation, r.candidate) for r in steady.due()] == [(0, 3)]
    assert steady.look_further_ahead()
    assert [(r.generation, r.candidate) for r in steady.due()] == [(1, 0)]
    waits = course(schedule="generational")
    assert len(waits.due()) == 4
    for candidate in range(3):
        waits.show()
        waits.score(0, candidate, 1.0)
        assert waits.due() == []
    assert waits.missing == 1
    assert not waits.look_further_ahead()
    assert [(t.candidate, math.isnan(t.fitness)) for t in waits.give_up()] == [(3, True)]
    assert len(waits.due()) == 4


def test_probes_and_strangers_tell_evolution_nothing_and_late_scores_do() -> None:
    one = course(probe_every=2, schedule="generational")
    one.due()
    assert one.score(0, 4, 9.0) == []
    assert one.score(5, 0, 9.0) == []
    assert one.score(0, 1, 3.0, 0.5) == [Told(0, 1, 3.0, 0.5)]
    one.give_up()
    assert one.score(0, 2, 2.0)[0].fitness == 2.0
    assert one.score(0, 1, 4.0)[0].fitness == 4.0
    np.testing.assert_array_equal(one.evolver.history().fitness, [4.0, 2.0])


def test_what_is_refused_is_replaced_and_what_is_taken_away_has_no_score() -> None:
    one = course(generations=1)
    assert [(r.generation, r.candidate) for r in one.due()] == [(0, 0), (0, 1)]
    assert [t.candidate for t in one.refuse(0, 0)] == [0]
    assert one.refuse(0, 0) == []
    assert [(r.generation, r.candidate) for r in one.due()] == [(0, 2)]  # as many ahead as before
    one.show()
    assert math.isnan(one.refuse(0, 1, shown=True)[0].fitness)  # it was on the screen: nothing comes in its place
    assert one.score(0, 1, 5.0) == []
    assert [(r.generation, r.candidate) for r in one.due()] == [(0, 3)]
    one.show()
    assert [(r.generation, r.candidate) for r in one.due()] == [(1, 0)]  # in place of the first
    one.show()
    one.show()
    assert one.due() == []
    for key in ((0, 2), (0, 3), (1, 0)):
        one.score(*key, 1.0)
    assert (one.finished, one.missing, one.all_shown) == (True, 0, True)
    assert len(one.evolver.history().ids) == 3


def test_everything_may_be_refused_and_the_course_ends() -> None:
    for schedule in ("steady", "generational"):
        one = course(schedule=schedule, probe_every=3)
        asked: list[Request] = []
        while wanted := one.due():
            asked += wanted
            for request in wanted:
                one.refuse(request.generation, request.candidate)
        assert one.finished
        assert one.missing == 0
        assert sum(r.probe < 0 for r in asked) == (24 if schedule == "steady" else 12)


def test_a_refused_candidate_of_a_yoked_session_is_told_nothing() -> None:
    one = course(Yoked([1.0, 2.0, 3.0, 4.0]))
    one.due()
    assert math.isnan(one.refuse(0, 0)[0].fitness)
    assert one.score(0, 1, 9.0)[0].fitness == 2.0  # the partner's scores stay with what was asked


def test_a_course_goes_on_where_an_earlier_one_ended() -> None:
    first = course()
    run(first)
    second = Course(first.evolver, CourseSettings(2, 4))
    assert len(run(second)) == 8
    assert second.evolver.asked == 20
    assert second.score(0, 0, 5.0) == [Told(0, 0, 5.0, math.nan)] or second.evolver.history().fitness[12] == 5.0


def test_it_ends_by_time_and_by_expected_gain() -> None:
    one = course(stop_s=60)
    assert len(one.due(59)) == 2
    one.show()
    assert one.due(60) == []
    assert one.finished
    rng = np.random.default_rng(0)
    ends = {}
    for limit in (0.3, 0.0):
        many = Course(Surrogate(4, None, np.random.default_rng(0)), CourseSettings(30, 5, schedule="generational", stop_gain=limit))
        while requests := many.due():
            for r in requests:
                many.show()
                many.score(r.generation, r.candidate, float(r.latent[0] + 0.3 * rng.standard_normal()))
        ends[limit] = many.generation
    assert 1 <= ends[0.3] < 10
    assert ends[0.0] == 29


def test_what_is_asked_for_may_be_adjusted_and_evolution_knows() -> None:
    one = Course(RandomEvolver(2, np.random.default_rng(0)), CourseSettings(1, 3), adjust=lambda latents: latents * 0 + 2)
    for r in one.due():
        np.testing.assert_array_equal(r.latent, 2)
        one.score(r.generation, r.candidate, 0.0)
    one.place(0, 0, np.array([7.0, 8.0]))
    one.place(0, 9, np.array([7.0, 8.0]))
    np.testing.assert_array_equal(one.evolver.history().latents, [[7, 8], [2, 2]])


values = st.floats(-5, 5) | st.just(math.nan)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), values), max_size=30), st.integers(0, 99))
def test_sham_is_a_permutation_at_any_time(tells: list[tuple[int, float]], seed: int) -> None:
    feedback, own, told = Sham(np.random.default_rng(seed)), {}, {}
    for candidate, score in tells:
        if not math.isnan(score) or candidate in own:
            own[candidate] = score
        for holder, fitness, _ in feedback.take(candidate, score, 1.0):
            told[holder] = fitness
        known = {c: f for c, f in told.items() if c in own}
        np.testing.assert_array_equal(np.sort(list(known.values())), np.sort(list(own.values())))


def test_sham_has_no_favourites() -> None:
    rng = np.random.default_rng(0)
    best = Counter()
    for _ in range(3000):
        feedback, told = Sham(rng), {}
        for candidate, score in enumerate([1.0, math.nan, 2.0, 5.0]):
            told.update({holder: fitness for holder, fitness, _ in feedback.take(candidate, score, math.nan)})
        best[max((c for c in told if not math.isnan(told[c])), key=lambda c: told[c])] += 1
    assert set(best) == {0, 2, 3}
    assert all(abs(n - 1000) < 120 for n in best.values())


def test_yoked_gives_the_recording_whatever_this_brain_says() -> None:
    one = course(Yoked([1.0, math.nan, 3.0]))
    one.due()
    assert [t.fitness for k in (0, 1) for t in one.score(0, k, 9.0)] == [1.0, pytest.approx(math.nan, nan_ok=True)]
    assert math.isnan(Yoked([1.0]).take(4, 2.0, 1.0)[0][1])
    with pytest.raises(ValueError, match="recorded: expected scores"):
        Yoked([math.nan])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generations": 0}, "generations and population"),
        ({"schedule": "sometimes"}, "schedule: expected one of steady, generational"),
        ({"ahead": 0}, "ahead: expected 1 to 8"),
        ({"probe_every": 1}, "probe_every: expected 0 or at least 2"),
    ],
)
def test_settings_are_checked(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        course(**changed)


def test_probes_need_latents() -> None:
    with pytest.raises(ValueError, match="probes: expected at least one latent"):
        Course(RandomEvolver(2, np.random.default_rng(0)), CourseSettings(1, 2, probe_every=3))
