"""Maps on selected voxels: against their textbook form, honest where there is nothing, centred, and in units of their own noise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from rtevo.decode.categories import GAP_S, PURGE_S, Categories, categories_of, folds_of, halves_of
from rtevo.decode.events import Event, parse_target, predicted
from rtevo.decode.repeats import LEAST_VOXELS, Repeats, reliability
from rtevo.decode.selection import Recipe, _final, _Held, _solve, _Voxels, pooled, select_maps
from rtevo.errors import DataError

TR_S, VOXELS, TELLING = 2.0, 400, 40
COUNTS = (20, 60, 0)
DENSE = 1e-4  # relative: the same normal equations in another space, from single precision


def make_run(pattern: str, effect: float, seed: int = 0, shared: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[Event]]:
    """Return volumes in which the first voxels tell the kinds apart, their middles, and events; a shared response where asked for."""
    rng = np.random.default_rng(seed)
    events = [Event(8.0 + 20.0 * k, 10.0, kind, {}) for k, kind in enumerate(pattern)]
    times = (np.arange(int((events[-1].onset_s + 30) / TR_S)) + 0.5) * TR_S
    volumes = rng.standard_normal((len(times), VOXELS))
    maps = {kind: np.random.default_rng(ord(kind)).standard_normal(TELLING) for kind in sorted(set(pattern))}
    for event in events:
        volumes[:, :TELLING] += effect * np.outer(predicted(times, [event], [1.0]), maps[event.trial_type])
    common = np.random.default_rng(99).standard_normal(VOXELS)
    volumes += shared * np.outer(predicted(times, events, np.ones(len(events))), common)
    return volumes, times, events


def told_apart(times: np.ndarray, events: list[Event], target: str | None = None) -> tuple[Categories, np.ndarray]:
    targets = None if target is None else [parse_target(target, events)]
    return categories_of([events], times, np.zeros(len(times), int), targets)


def test_maps_are_scikit_learns_ridge_on_the_selected_voxels() -> None:
    volumes, times, events = make_run("abcacb" * 2, 0.8)
    categories, _ = told_apart(times, events)
    empty = _Held(np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    weights, _ = _final(_Voxels(volumes), categories, Recipe(30, 0.1), empty)
    chosen = np.flatnonzero(np.any(weights != 0, axis=0))
    assert len(chosen) == 30
    assert (chosen < TELLING).mean() > 0.7  # by chance 0.1
    used = (volumes - volumes.mean(axis=1, keepdims=True))[:, chosen]
    centred = used - used.mean(axis=0)
    alpha = 0.1 * (centred**2).sum() / len(centred)
    target = categories.design - categories.design.mean(axis=1, keepdims=True)
    expected = Ridge(alpha=alpha, solver="svd").fit(used, target).coef_
    x = categories.design - categories.design.mean(axis=0)
    shared = (np.linalg.pinv(x) @ used).mean(axis=0)
    expected -= np.outer(expected @ shared, shared) / (shared @ shared)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(weights[:, chosen], expected, atol=DENSE)


def test_labels_that_mean_nothing_give_chance() -> None:
    """Selection, penalty and unit are chosen inside the folds: were any not, selected noise would tell the blocks apart."""
    areas, shares = [], []
    for seed in range(12):
        volumes, times, events = make_run("abcbcacab", 0.8, seed)
        labels = np.random.default_rng(seed).permutation([event.trial_type for event in events])
        shuffled = [Event(e.onset_s, e.duration_s, str(kind), {}) for e, kind in zip(events, labels, strict=True)]
        noise = np.random.default_rng(100 + seed).standard_normal(volumes.shape)
        found = select_maps([noise], *told_apart(times, shuffled), counts=COUNTS)
        assert not found.weak
        areas.append(found.auc)
        shares.append(found.accuracy)
    error = np.std(areas, ddof=1) / np.sqrt(len(areas))
    assert abs(np.mean(areas) - 0.5) < 3 * error + 0.01
    assert abs(np.mean(shares) - 1 / 3) < 3 * np.std(shares, ddof=1) / np.sqrt(len(shares)) + 0.01


def test_what_is_there_is_found_and_few_voxels_are_chosen() -> None:
    volumes, times, events = make_run("abcbcacab", 0.8)
    found = select_maps([volumes], *told_apart(times, events), counts=COUNTS, permutations=9, rng=np.random.default_rng(0))
    assert found.auc > 0.95
    assert found.accuracy > 0.8
    assert found.p_value == 0.1
    assert found.recipe.voxels in (20, 60)
    assert [count for count, _ in found.curve] == [20, 60, VOXELS]
    assert found.as_dict()["blocks"] == 9


def test_scores_are_centred_and_in_units_of_their_own_noise() -> None:
    volumes, times, events = make_run("abcbcacab", 0.8, shared=2.0)
    found = select_maps([volumes], *told_apart(times, events), counts=COUNTS)
    again, times, events = make_run("cabbcaacb", 0.8, seed=7, shared=2.0)
    categories, _ = told_apart(times, events)
    scores = (again - again.mean(axis=1, keepdims=True)) @ found.weights.T / found.units
    design = np.column_stack([categories.design, np.ones(len(times))])
    fit = np.linalg.lstsq(design, scores, rcond=None)[0]
    noise = (scores - design @ fit).std(axis=0)
    assert (abs(noise - 1) < 0.35).all()  # another run's noise, from 100 volumes and a unit that is itself an estimate
    means = fit[:-1].mean(axis=0)  # response to all categories alike
    assert (abs(means) < 0.35 * np.diag(fit[:-1])).all()  # 2.5 times as large in the voxels; it is itself estimated from nine blocks
    assert (fit[:-1].argmax(axis=0) == np.arange(3)).all()


def test_one_block_a_category_is_told_apart_by_its_parts_and_said_to_be_weak() -> None:
    volumes, times, events = make_run("abc", 1.0)
    found = select_maps([volumes], *told_apart(times, events), counts=COUNTS, permutations=5, rng=np.random.default_rng(0))
    assert found.weak
    assert "WEAK: no block could be held out" in found.note
    assert np.isnan(found.p_value)
    assert found.auc > 0.7
    categories, _ = told_apart(times, events)
    for fold in halves_of(categories):
        tested = np.any([where for _, where in fold.tested], axis=0)
        gap = np.abs(times[fold.train][:, np.newaxis] - times[tested])
        assert gap.min() >= GAP_S


def test_volumes_that_a_tested_block_reaches_are_not_in_its_fit() -> None:
    _, times, events = make_run("abcbcacab", 0.0)
    categories, _ = told_apart(times, events)
    folds = folds_of(categories, range(9), np.ones(len(times), bool))
    assert sorted(k for fold in folds for k, _ in fold.tested) == list(range(9))
    for fold in folds:
        for k, _ in fold.tested:
            start, end = events[k].onset_s, events[k].onset_s + events[k].duration_s
            train = times[fold.train]
            assert not ((train > start - PURGE_S) & (train < end + PURGE_S)).any()


def test_the_sides_of_a_target_and_a_number_are_told_apart_as_well() -> None:
    volumes, times, events = make_run("abcbcacabb", 0.8)
    found = select_maps([volumes], *told_apart(times, events, "a - b"), counts=COUNTS)
    assert found.auc > 0.9
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 5, 14)
    rated = [Event(8.0 + 14 * k, 3.0, "", {"fear": f"{v:.3f}"}) for k, v in enumerate(values)]
    times = (np.arange(115) + 0.5) * TR_S
    noise = rng.standard_normal((115, VOXELS))
    noise[:, :TELLING] += 0.6 * predicted(times, rated, values - values.mean())[:, np.newaxis]
    found = select_maps([noise], *told_apart(times, rated, "fear"), counts=COUNTS)
    assert found.auc > 0.7
    assert found.weights.shape == (1, VOXELS)


def test_the_smoothing_that_tells_more_is_taken() -> None:
    volumes, times, events = make_run("abcbcacab", 0.8)
    useless = np.random.default_rng(3).standard_normal(volumes.shape)
    assert select_maps([useless, volumes], *told_apart(times, events), counts=COUNTS).recipe.smoothing == 1


def test_kinds_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(DataError, match="expected at least two kinds"):
        told_apart(np.arange(20.0), [Event(1.0, 2.0, "a", {})])
    with pytest.raises(DataError, match="expected volumes that show each category's response"):
        _solve(np.eye(12), np.ones(12, bool), np.zeros((12, 2)), 0.1, False)


def test_pooled_scores_by_hand() -> None:
    scores = np.array([[2.0, 1.0], [0.0, 3.0], [1.5, 0.5]])
    assert pooled(scores, np.array([0, 1, 1])) == (7.0 / 9.0, 2.0 / 3.0)


# --- voxels that repeat ------------------------------------------------------------------------------------------------------------------


def two_runs(effect: float, seed: int = 0, unlike: int = 0) -> tuple[np.ndarray, np.ndarray, list[list[Event]], np.ndarray]:
    """Two runs of one design; in the second, the responses of so many of the telling voxels are others."""
    made = [make_run("abcbcacab", effect, seed + k) for k in range(2)]
    volumes, times, events = made[1]
    if unlike:
        volumes[:, :unlike] = volumes[:, TELLING - unlike : TELLING][:, ::-1]  # the responses of other voxels
    run = np.repeat([0, 1], [len(each) for each, _, _ in made])
    return np.concatenate([made[0][0], volumes]), np.concatenate([made[0][1], times]), [made[0][2], events], run


def test_reliability_is_the_correlation_of_two_runs_profiles() -> None:
    volumes, times, events, run = two_runs(0.8)
    categories, _ = categories_of(events, times, run)
    found = reliability(volumes.T.astype(np.float32), [run == 0, run == 1], categories.design)
    profiles = []
    for number in (0, 1):
        x = np.column_stack([categories.design[run == number], np.ones((run == number).sum())])
        profiles.append(np.linalg.lstsq(x, volumes[run == number] - volumes[run == number].mean(axis=0), rcond=None)[0][:3])
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(profiles[0].T, profiles[1].T, strict=True)]
    np.testing.assert_allclose(found, expected, atol=DENSE)
    assert np.median(found[:TELLING]) > 0.8
    assert abs(np.mean(found[TELLING:])) < 0.15  # 360 voxels, three categories: standard error 0.04


def test_only_voxels_that_repeat_are_chosen() -> None:
    volumes, times, events, run = two_runs(0.8, unlike=20)
    found = select_maps([volumes], *categories_of(events, times, run), counts=(60,), penalties=(0.1,), repeats=Repeats(run, 0.9))
    kept = (found.weights != 0).any(axis=0)
    assert found.auc > 0.85
    assert kept[20:TELLING].mean() > 0.6
    assert kept[:20].mean() < 0.5  # three categories: a profile of chance is so like another in one of seven voxels


def test_labels_that_mean_nothing_give_chance_with_voxels_that_repeat_too() -> None:
    areas = []
    for seed in range(8):
        volumes, times, events, run = two_runs(0.0, 10 * seed)
        told = categories_of(events, times, run)
        areas.append(select_maps([volumes], *told, counts=(60,), penalties=(0.1,), repeats=Repeats(run, 0.5)).auc)
    assert abs(np.mean(areas) - 0.5) < 3 * np.std(areas, ddof=1) / np.sqrt(len(areas)) + 0.01


def test_some_voxels_are_kept_where_none_repeats_and_one_run_is_split_in_the_middle() -> None:
    volumes, times, events, run = two_runs(0.0)
    categories, _ = categories_of(events, times, run)
    values, everything = volumes.T.astype(np.float32), np.ones(len(run), bool)
    assert Repeats(run, 0.9999).kept(values, everything, categories.design).sum() == LEAST_VOXELS
    assert Repeats(run, -1.0).kept(values, everything, categories.design).all()
    volumes, times, events, run = two_runs(0.8)
    alone = Repeats(run, 0.5).kept(volumes.T.astype(np.float32), run == 0, categories.design)
    assert alone[:TELLING].mean() > 2 * alone[TELLING:].mean()
