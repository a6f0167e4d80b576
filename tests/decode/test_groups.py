"""Groups of nuisance terms in the filters: divided afterwards as if both had run from the start, chosen by the evidence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rtevo.decode import Deconvolver, Grid, Scorer
from rtevo.decode.folder import Decoder
from rtevo.decode.grid import ALONE
from rtevo.decode.groups import JUDGED
from rtevo.decode.hrf import response
from rtevo.decode.likelihood import Free
from rtevo.decode.nuisance import Nuisance
from rtevo.records import Grid as Space

DIVIDED = 1e-6  # relative; the drift's start has a variance of 1e6, which costs digits
TR_S, IMAGES = 1.0, 20
POINT = Grid((2.0,), (0.3,), (0.02,), (0.0,), (0.0,), (1.0,), (ALONE,))
FEW = Grid((1.0, 3.0), (0.1, 0.5), (0.02,), (0.0,), (0.0,), (1.0,), (ALONE,))


def simulate(seed: int, share: float, terms: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return onsets, series, nuisance terms and true amplitudes; the terms' effect is `share` times the noise."""
    rng = np.random.default_rng(seed)
    onsets = 4 + 4.0 * np.arange(IMAGES)
    times = np.arange(4 * IMAGES + 20) + 0.5
    truth = 2 * (1 + rng.standard_normal(IMAGES))
    columns = np.cumsum(rng.standard_normal((len(times), terms)), axis=0)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    series = np.array([response(times - onset, 3.0) for onset in onsets]).T @ truth + rng.standard_normal(len(times))
    return onsets, series + share * columns.sum(axis=1) / math.sqrt(terms), columns, truth


def run(filters: Deconvolver, onsets: np.ndarray, series: np.ndarray, columns: np.ndarray) -> Deconvolver:
    shown = 0
    for index, value in enumerate(series):
        t_s = (index + 0.5) * TR_S
        while shown < len(onsets) and onsets[shown] <= t_s:
            filters.add_image((0, shown), onsets[shown], 3.0)
            shown += 1
        filters.add_volume(t_s, value, columns[index])
    return filters


@pytest.mark.parametrize("count", [JUDGED, 60])
def test_dividing_is_as_if_both_filters_had_run_from_the_start(count: int) -> None:
    onsets, series, columns, _ = simulate(0, 0.4)
    series = series[:count]
    both = run(Deconvolver(TR_S, 0, POINT, nuisance_terms=(2,)), onsets, series, columns)
    none = run(Deconvolver(TR_S, 0, POINT), onsets, series, columns[:, :0])
    np.testing.assert_allclose(both._squares[1], none._squares[0], rtol=DIVIDED)
    np.testing.assert_allclose(both._log_det[1], none._log_det[0], rtol=DIVIDED)
    own = np.r_[0:4, 6 : both._size]
    np.testing.assert_allclose(both._mean[1, own], none._mean[0, : none._size], rtol=DIVIDED, atol=DIVIDED)
    np.testing.assert_allclose(both._cov[1][np.ix_(own, own)], none._cov[0, : none._size, : none._size], rtol=1e-4, atol=1e-6)


def test_a_group_that_explains_noise_is_kept_and_scores_are_better_for_it() -> None:
    gains, chances = [], []
    for seed in range(4):
        onsets, series, columns, truth = simulate(seed, 2.0)
        found = [run(Deconvolver(TR_S, 0, FEW, nuisance_terms=sizes), onsets, series, columns[:, : sum(sizes)]) for sizes in ((), (2,))]
        values = [[each.amplitudes()[0, k].value for k in range(IMAGES)] for each in found]
        gains.append(np.corrcoef(values[1], truth)[0, 1] - np.corrcoef(values[0], truth)[0, 1])
        chances += found[1].there()
    assert min(chances) > 0.99
    assert np.mean(gains) > 0.02


def test_a_group_that_explains_nothing_is_dropped_and_costs_little() -> None:
    losses, chances = [], []
    for seed in range(4):
        onsets, series, columns, truth = simulate(seed, 0.0)
        found = [run(Deconvolver(TR_S, 0, FEW, nuisance_terms=sizes), onsets, series, columns[:, : sum(sizes)]) for sizes in ((), (2,))]
        values = [[each.amplitudes()[0, k].value for k in range(IMAGES)] for each in found]
        losses.append(np.corrcoef(values[0], truth)[0, 1] - np.corrcoef(values[1], truth)[0, 1])
        chances += found[1].there()
    assert np.mean(chances) < 0.3
    assert np.mean(losses) < 0.01


def test_each_group_is_judged_by_itself_once_enough_volumes_have_shown_it() -> None:
    onsets, series, columns, _ = simulate(2, 2.0, terms=2)
    other = np.random.default_rng(1).standard_normal((len(series), 3))
    other[:30] = 0.0  # not known at first
    filters = Deconvolver(TR_S, 0, FEW, nuisance_terms=(2, 3))
    run(filters, onsets, series[:JUDGED], np.hstack([columns, other]))
    first, second = filters.there()
    assert not math.isnan(first)
    assert math.isnan(second)
    filters = run(Deconvolver(TR_S, 0, FEW, nuisance_terms=(2, 3)), onsets, series, np.hstack([columns, other]))
    first, second = filters.there()
    assert first > 0.99
    assert second < 0.5
    assert filters.weights().sum() == pytest.approx(1.0)


def test_filters_with_free_amplitudes_follow_what_the_others_say_of_the_groups() -> None:
    onsets, series, columns, _ = simulate(3, 2.0)
    main, shown = Deconvolver(TR_S, 0, FEW, nuisance_terms=(2,)), 0
    free = Free(TR_S, 0, main.grid, nuisance_terms=(2,))
    for index, value in enumerate(series):
        while shown < len(onsets) and onsets[shown] <= index + 0.5:
            for each in (main, free):
                each.add_image((0, shown), onsets[shown], 3.0)
            shown += 1
        main.add_volume(index + 0.5, value, columns[index])
        free.follow(main)
        free.add_volume(index + 0.5, value, columns[index])
    assert free.there() == pytest.approx(main.there())
    assert all(math.isfinite(each.value) and each.se > 0 for each in free.measured().values())


def decoder() -> Decoder:
    weights = np.random.default_rng(5).standard_normal((4, 4, 4)).astype(np.float32)
    level = np.full((4, 4, 4), 1000.0, np.float32)
    return Decoder(Space((4, 4, 4), np.eye(4) * [3, 3, 3, 1]), level, np.ones((4, 4, 4), bool), weights, "map", {}, 10 + 0 * level)


def scores(sizes: tuple[int, ...], columns: np.ndarray, before: dict[str, np.ndarray] | None = None) -> tuple[Scorer, list[float]]:
    rng = np.random.default_rng(6)
    scorer = Scorer(decoder(), TR_S, fwhm_mm=0, grid=FEW, nuisance_terms=sizes)
    if before is not None:
        scorer.take_over(before)
    for index in range(40):
        if index % 4 == 0:
            scorer.add_onset((0, index // 4), float(index))
        volume = (1000 + 10 * rng.standard_normal((4, 4, 4))).astype(np.float32)
        scorer.add_volume(index, volume, np.zeros(6), columns[index])
    return scorer, [score.score for score in scorer.ready(final=True)]


def test_terms_that_are_not_known_change_no_score() -> None:
    plain, unknown = np.zeros((40, 0)), np.full((40, 2), np.nan)
    np.testing.assert_allclose(scores((2,), unknown)[1], scores((), plain)[1], rtol=1e-9)


def test_the_next_run_takes_over_whether_groups_are_there_and_not_their_coefficients() -> None:
    columns = np.random.default_rng(7).standard_normal((40, 2))
    first, _ = scores((2,), columns)
    first.interrupt()
    there, learnt = first.there(), first.learnt()
    second = Scorer(decoder(), TR_S, fwhm_mm=0, grid=FEW, nuisance_terms=(2,))
    second.take_over(learnt)
    assert second.there() == there
    assert not math.isnan(there[0])
    values = scores((2,), columns, learnt)[1]
    assert np.isfinite(values[:8]).all()  # the last responses are not seen
    with pytest.raises(ValueError, match="mean: expected finite numbers of shape"):
        Scorer(decoder(), TR_S, fwhm_mm=0, grid=FEW).take_over(learnt)


def test_a_group_with_a_number_that_is_not_finite_is_not_known() -> None:
    nuisance = Nuisance(TR_S, groups=(2, 1))
    nuisance.spike(np.zeros(6))
    np.testing.assert_array_equal(nuisance.terms(0, [1.0, np.nan, 3.0])[6:], [0.0, 0.0, 3.0])
    np.testing.assert_array_equal(nuisance.terms(0)[6:], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"nuisance terms: expected 3 numbers, got shape \(2,\)"):
        nuisance.terms(0, [1.0, 2.0])
    with pytest.raises(ValueError, match="groups: expected sizes >= 1"):
        Nuisance(TR_S, groups=(2, 0))
