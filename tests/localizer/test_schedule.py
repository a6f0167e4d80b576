"""Which picture comes when: balanced, seeded, never twice but where it is meant to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtevo.config import Localizer
from rtevo.errors import ConfigError
from rtevo.localizer import TAIL_S, Picture, Trial, adjacent, balanced, length_s, make_schedule
from rtevo.record.fitting import fits

BLOCKS = Localizer(image_s=0.5, blank_s=0.25, rest_s=9.0, block_images=6, repetitions=4, targets=0.2)
EVENTS = replace(BLOCKS, design="events", gap_s=(2.0, 4.0))
CATEGORIES = ("body", "face", "place", "word")


def pictures(each: int = 8, names: tuple[str, ...] = CATEGORIES) -> dict[str, list[Picture]]:
    return {name: [Picture(name, Path(f"/x/{name}/{k:02d}.png"), f"{name}{k}", (4, 4)) for k in range(each)] for name in names}


def schedule(settings: Localizer, seed: int = 1, each: int = 8) -> tuple[Trial, ...]:
    return make_schedule(settings, pictures(each), np.random.default_rng(seed))


def blocks(trials: tuple[Trial, ...]) -> list[list[Trial]]:
    return [list(own) for _, own in groupby(trials, key=lambda trial: trial.block)]


@given(categories=st.integers(2, 7), times=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_category_is_in_every_position_equally_often(categories: int, times: int, seed: int) -> None:
    order = balanced(categories, times * categories, np.random.default_rng(seed))
    places = Counter((place, category) for row in order for place, category in enumerate(row))
    assert set(places.values()) == {times}
    assert len(places) == categories**2


@given(categories=st.integers(2, 7), seed=st.integers(0, 99))
def test_within_rounds_each_category_follows_each_other_equally_often(categories: int, seed: int) -> None:
    order = balanced(categories, 2 * categories, np.random.default_rng(seed))
    assert set(Counter(pair for row in order for pair in pairwise(row)).values()) == {2}


@given(categories=st.integers(3, 7), rounds=st.integers(1, 9), seed=st.integers(0, 20))
def test_no_category_follows_itself_where_there_are_three(categories: int, rounds: int, seed: int) -> None:
    order = balanced(categories, rounds, np.random.default_rng(seed))
    assert [sorted(row) for row in order] == [list(range(categories))] * rounds
    assert adjacent(order) == 0
    places = Counter((place, category) for row in order for place, category in enumerate(row))
    assert max(places.values()) <= -(-rounds // categories)  # as equal as the number of rounds allows


@pytest.mark.parametrize("settings", [BLOCKS, EVENTS], ids=["blocks", "events"])
def test_the_same_seed_is_the_same_schedule(settings: Localizer) -> None:
    assert schedule(settings, 3) == schedule(settings, 3)
    assert schedule(settings, 3) != schedule(settings, 4)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_of_one_category_and_their_pictures_differ_but_for_repeats(seed: int) -> None:
    for own in blocks(schedule(BLOCKS, seed)):
        assert len(own) == 6
        assert len({trial.category for trial in own}) == 1
        assert [trial.place for trial in own] == list(range(6))
        assert not own[0].target
        for before, trial in pairwise(own):
            assert (trial.file == before.file) == trial.target
            assert not (before.target and trial.target)
        assert len({trial.file for trial in own}) == 6 - sum(trial.target for trial in own)
        assert [trial.washout_s for trial in own[:-1]] == [0.25] * 5
        assert own[-1].washout_s in (9.0, TAIL_S)


@pytest.mark.parametrize("task", ["one-back", "detection"])
@pytest.mark.parametrize("settings", [BLOCKS, EVENTS], ids=["blocks", "events"])
def test_categories_have_equally_many_targets(settings: Localizer, task: str) -> None:
    trials = schedule(replace(settings, task=task))
    counts = Counter(trial.category for trial in trials if trial.target)
    assert counts == dict.fromkeys(CATEGORIES, round(0.2 * 6 * 4))


def test_single_pictures_come_in_rounds_with_gaps_between_them_and_repeats_at_once() -> None:
    trials = schedule(EVENTS)
    assert all(2.0 <= trial.washout_s <= 4.0 for trial in trials[:-1])
    firsts = [trial for trial in trials if not trial.target]
    assert Counter(trial.category for trial in firsts) == dict.fromkeys(CATEGORIES, 24)
    for before, trial in pairwise(trials):
        assert (trial.name == before.name) == trial.target


def test_no_picture_comes_again_before_all_of_its_category_have_come() -> None:
    for settings in (BLOCKS, EVENTS):
        own = [trial.file for trial in schedule(settings, each=7) if trial.category == "face" and not trial.target]
        uses = Counter(own)
        assert max(uses.values()) - min(uses.values()) <= 1


def test_without_a_task_there_are_no_targets() -> None:
    assert not any(trial.target for trial in schedule(replace(BLOCKS, task="none")))


def test_the_length_counts_everything_from_the_first_volume_to_the_last_response() -> None:
    trials = schedule(BLOCKS)
    inside_s = 16 * (6 * 0.5 + 5 * 0.25)
    assert length_s(trials, 6.0) == pytest.approx(6.0 + inside_s + 15 * 9.0 + TAIL_S)


@pytest.mark.parametrize(("settings", "each", "needed"), [(BLOCKS, 5, 6), (EVENTS, 1, 2)])
def test_too_few_pictures_are_named_with_what_to_do(settings: Localizer, each: int, needed: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected at least {needed} pictures in each category.*body {each}, face {each}.*add pictures"):
        schedule(settings, each=each)


def test_a_log_whose_schedule_is_none_counts_as_damaged() -> None:
    good = [trial.fields() for trial in schedule(BLOCKS)]
    assert fits({"type": "start", "trials": good})
    assert fits({"type": "start"})
    for bad in ("x", [1], [{}], [{**good[0], "block": "0"}], [{**good[0], "target": 1}]):
        assert not fits({"type": "start", "trials": bad})
