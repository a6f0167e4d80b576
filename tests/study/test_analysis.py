"""What a study found: known answers, the test against brute force, its false-positive rate, its interval's coverage."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rtevo.study.analysis import MOST, Analysis, Effect, allocations, course, gain, holm, randomised, slope, summaries, trajectories
from rtevo.study.mixed import mixed_model
from tests.support.studies import allotted, null_scores

UNLIKELY = 1e-4  # that a correct test fails one of the bounds below


def table(runs: dict[tuple[str, str, int], Any], **columns: Any) -> pd.DataFrame:
    """Make a study's table: a row for each (generation, score, probe) of each participant, visit and run."""
    rows = [
        {"participant": p, "visit": v, "run": r, "generation": g, "score": float(s), "se": 1.0, "probe": probe, "counts": True}
        for (p, v, r), images in runs.items()
        for g, s, probe in images
    ]
    return pd.DataFrame(rows).astype({"probe": "Int64"}).assign(**columns)


def rising(by: float, n: int = 12, start: float = 0.0, probe: float | None = None) -> list[tuple[int, float, int | None]]:
    """Scores that rise evenly, in generations of three, each followed by a probe where there are some."""
    images: list[tuple[int, float, int | None]] = []
    for k in range(n):
        images.append((k // 3, start + by * k / (n - 1), None))
        if probe is not None and k % 3 == 2:
            images.append((k // 3, probe, 0))
    return images


# --- summaries ---------------------------------------------------------------------------------------------------------------------------


def test_a_gain_is_the_last_thirds_mean_less_the_firsts() -> None:
    value, se = gain(np.array([0.0, 1.0, 5.0, 5.0, 5.0, 3.0, 4.0]))  # two at each end
    assert value == pytest.approx(3.0)
    assert se == pytest.approx(math.sqrt((0.5 + 0.5) / 2))
    assert all(map(math.isnan, gain(np.array([1.0, 2.0]))))


def test_a_slope_is_the_rise_from_the_first_image_to_the_last() -> None:
    assert slope(np.linspace(1, 4, 9)) == pytest.approx((3.0, 0.0), abs=1e-9)
    rng = np.random.default_rng(0)
    scores = np.linspace(0, 2, 30) + rng.standard_normal(30)
    oracle = stats.linregress(np.linspace(0, 1, 30), scores)
    assert slope(scores) == pytest.approx((oracle.slope, oracle.stderr))


def test_probes_put_runs_on_one_zero() -> None:
    two = {("01", "01", 1): rising(1, probe=0.5), ("01", "02", 1): rising(1, start=1 - 40, probe=0.5 - 40)}
    found = course(table(two))
    assert found.anchored
    rise = np.r_[np.linspace(0, 1, 12), np.linspace(1, 2, 12)]
    np.testing.assert_allclose(found.images["level"], rise - rise[:8].mean(), atol=1e-9)
    assert list(found.images["step"]) == [k // 3 for k in range(24)]
    assert found.images["progress"].iloc[[0, -1]].tolist() == [0, 1]
    assert summaries(found, "gain").loc["01", "summary"] == pytest.approx(
        np.linspace(1, 2, 12)[-8:].mean() - np.linspace(0, 1, 12)[:8].mean()
    )


def test_without_probes_only_what_happens_within_runs_counts_for_everybody() -> None:
    one = {("02", "01", 1): rising(3)}
    two = {("01", "01", 1): rising(1), ("01", "02", 1): rising(2, start=-40)}
    found = course(table(two | one))
    assert not found.anchored
    assert found.loose == ("01",)
    both = summaries(found, "slope")
    assert both["summary"].to_dict() == pytest.approx({"01": 1.5, "02": 3.0})
    assert both["runs"].to_dict() == {"01": 2, "02": 1}


def test_different_probes_in_each_run_tie_nothing_together() -> None:
    second = [(g, s, None if p is None else 1) for g, s, p in rising(1, probe=0.5)]
    assert course(table({("01", "01", 1): rising(1, probe=0.5), ("01", "02", 1): second})).loose == ("01",)


def test_images_of_runs_that_do_not_count_and_without_a_score_are_left_out() -> None:
    rows = table({("01", "01", 1): rising(1), ("01", "01", 2): rising(9)})
    rows.loc[rows["run"] == 2, "counts"] = False
    rows.loc[0, "score"] = math.nan
    found = course(rows)
    assert len(found.images) == 11
    assert found.anchored
    assert summaries(found, "gain").loc["01", "images"] == 11


def test_the_truth_of_simulated_participants_is_summarised_alike() -> None:
    rows = table({("01", "01", 1): rising(1)})
    rows["true_response"] = rows["score"] * 2
    found = summaries(course(rows), "slope").loc["01"]
    assert found["true_summary"] == pytest.approx(2 * found["summary"])


def test_trajectories_count_participants_of_an_arm_alike() -> None:
    runs = {("01", "01", 1): rising(11, start=100), ("02", "01", 1): rising(4, n=6), ("03", "01", 1): rising(0, start=7)}
    found = course(table(runs))
    own = trajectories(found)
    assert own[own["who"] == "03"]["mean"].tolist() == [0] * 4
    assert own[own["who"] == "01"]["mean"].tolist() == [-0.5, 2.5, 5.5, 8.5]  # from the mean of the first four images
    arms = trajectories(found, {"01": "brain", "02": "brain", "03": "sham"})
    second = arms[(arms["who"] == "brain") & (arms["step"] == 1)].iloc[0]
    assert (second["mean"], second["se"], second["n"]) == pytest.approx((2.65, 0.15, 2))
    assert len(arms) == 8


# --- the test ----------------------------------------------------------------------------------------------------------------------------


def study(n: int, paired: bool) -> tuple[list[str], dict[str, bool], dict[str, str]]:
    """Make a study of n participants an arm."""
    names = [f"{k:02d}" for k in range(2 * n)]
    return names, {name: k % 2 == 0 for k, name in enumerate(names)}, {name: str(k // 2) for k, name in enumerate(names)} if paired else {}


def brute(y: np.ndarray, arm: np.ndarray, block: np.ndarray, shift: float) -> float:
    """Two-sided p value of a shift, by going through all subsets of participants one by one."""
    shifted = y - shift * arm
    n = [arm[block == b].sum() for b in np.unique(block)]

    def statistic(chosen: np.ndarray) -> float:
        return float(np.mean([shifted[(block == b) & chosen].mean() - shifted[(block == b) & ~chosen].mean() for b in np.unique(block)]))

    every = [
        chosen
        for bits in itertools.product([False, True], repeat=len(y))
        if [(chosen := np.array(bits))[block == b].sum() for b in np.unique(block)] == n
    ]
    own, all_ = statistic(arm), np.array([statistic(chosen) for chosen in every])
    return min(1.0, 2 * min((all_ >= own - 1e-9).mean(), (all_ <= own + 1e-9).mean()))


@pytest.mark.parametrize("paired", [True, False], ids=["pairs", "one block"])
def test_p_value_and_interval_are_those_of_brute_force(paired: bool) -> None:
    rng = np.random.default_rng(4)
    names, treated, blocks = study(5, paired)
    arm, block = np.array([treated[n] for n in names]), np.array([blocks.get(n, "") for n in names])
    y = rng.standard_normal(10).round(1) + 0.8 * arm  # rounded: ties
    found = randomised(dict(zip(names, y, strict=True)), treated, blocks, rng, level=0.2)
    assert found.exact
    assert found.allocations == (2**5 if paired else math.comb(10, 5))
    assert found.p == pytest.approx(brute(y, arm, block, 0.0))
    assert found.smallest_p == 2 / found.allocations
    for end, outwards in ((found.low, -1e-6), (found.high, 1e-6)):
        assert brute(y, arm, block, end + outwards) <= 0.2
        assert brute(y, arm, block, end - outwards) > 0.2


def test_pairs_are_kept() -> None:
    """Pairs differ much, and each treated one has a little more: only a test that keeps pairs can see it."""
    names, treated, blocks = study(8, True)
    values = {name: 100.0 * (k // 2) + treated[name] for k, name in enumerate(names)}
    rng = np.random.default_rng(0)
    kept = randomised(values, treated, blocks, rng)
    assert (kept.estimate, kept.p) == pytest.approx((1.0, 2 / 2**8))
    assert (kept.low, kept.high) == pytest.approx((1.0, 1.0))
    assert randomised(values, treated, {}, rng).p > 0.9


def test_too_few_participants_bound_nothing_and_it_is_said() -> None:
    names, treated, blocks = study(4, True)
    found = randomised({name: float(treated[name]) for name in names}, treated, blocks, np.random.default_rng(0))
    assert found.smallest_p == found.p == 2 / 16
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_who_has_nobody_to_be_compared_with_is_named_and_counts_for_nothing() -> None:
    names, treated, blocks = study(6, True)
    values = {name: float(k) for k, name in enumerate(names)}
    values["03"] = math.nan
    found = randomised(values, treated, blocks, np.random.default_rng(0))
    assert found.alone == ("02",)
    assert (found.treated, found.control) == (5, 5)
    assert found == randomised(values | {"02": 1e9}, treated, blocks, np.random.default_rng(0))
    nothing = randomised({}, treated, blocks, np.random.default_rng(0))
    assert (nothing.treated, nothing.allocations) == (0, 0)
    assert math.isnan(nothing.p)


def test_blocks_of_unequal_sizes_are_averaged_by_what_they_know() -> None:
    values = {"a": 1.0, "b": 0.0, "c": 5.0, "d": 2.0, "e": 2.0}
    treated = dict.fromkeys("ac", True) | dict.fromkeys("bde", False)
    found = randomised(values, treated, dict.fromkeys("ab", "1") | dict.fromkeys("cde", "2"), np.random.default_rng(0))
    assert found.estimate == pytest.approx((1 * 0.5 + 3 * (2 / 3)) / (0.5 + 2 / 3))
    assert found.allocations == 2 * 3


def test_many_participants_are_held_against_a_seeded_draw() -> None:
    names, treated, _ = study(20, False)
    rng = np.random.default_rng(7)
    values = {name: rng.standard_normal() + treated[name] for name in names}
    found, again, other = (randomised(values, treated, {}, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert found == again != other
    assert not found.exact
    assert found.allocations == 10_000
    oracle = stats.ttest_ind(*([v for n, v in values.items() if treated[n] is arm] for arm in (True, False)))
    assert found.p == pytest.approx(oracle.pvalue, rel=0.5)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval()), rel=0.15)
    drawn, _ = allocations(np.array([True, False] * 20), [2] * 20, rng)
    assert (drawn.reshape(-1, 20, 2).sum(axis=2) == 1).all()
    assert math.comb(16, 8) <= MOST  # eight an arm are gone through


def test_several_comparisons_are_adjusted_by_holm() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_what_is_fixed_beforehand_has_a_rule_for_each_key() -> None:
    right = Analysis()
    rules = {spec.name: spec.metadata["check"] for spec in fields(Analysis)}
    assert all(rules[name](getattr(right, name)) for name in rules)
    assert not any(rules[name](wrong) for name, wrong in {"summary": "last", "treated": "", "level": 1.0}.items())


# --- what it is worth --------------------------------------------------------------------------------------------------------------------

STUDIES = 1000


def effects(paired: bool, seed: int, shift: float = 0.0) -> list[Effect]:
    """Tests of many studies of eight participants an arm, from images to p value."""
    rng = np.random.default_rng(seed)
    names, _, blocks = study(8, paired)
    found = []
    for _ in range(STUDIES):
        arm = dict(zip(names, allotted(rng, 8, paired).tolist(), strict=True))
        values = {n: gain(own)[0] + shift * arm[n] for n, own in zip(names, null_scores(rng, 16), strict=True)}
        found.append(randomised(values, arm, blocks, rng))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False], ids=["pairs", "one block"])
def test_eight_participants_an_arm_give_no_more_false_positives_than_five_in_a_hundred(paired: bool) -> None:
    """The most that a test with a rate of 5% gives in as many studies, but for one case in ten thousand (binomial)."""
    false = sum(effect.p <= 0.05 for effect in effects(paired, seed=20))
    assert false <= stats.binom(STUDIES, 0.05).isf(UNLIKELY)
    assert false >= stats.binom(STUDIES, 0.045).ppf(UNLIKELY)  # 0.047 is the largest level below 5% that 256 allocations have


@pytest.mark.slow
def test_the_interval_holds_the_effect_as_often_as_it_says() -> None:
    held = sum(effect.low <= 1.7 <= effect.high for effect in effects(True, seed=21, shift=1.7))
    assert held >= stats.binom(STUDIES, 0.95).ppf(UNLIKELY)


# --- the mixed model ---------------------------------------------------------------------------------------------------------------------


def simulated(effect: float, n: int = 8) -> tuple[pd.DataFrame, dict[str, bool]]:
    rng = np.random.default_rng(11)
    names, treated, _ = study(n, False)
    runs = {}
    for name in names:
        start, by = rng.standard_normal(), 0.5 + 0.4 * rng.standard_normal() + effect * treated[name]
        runs[name, "01", 1] = [(g, s + 0.7 * rng.standard_normal(), p) for g, s, p in rising(by, 30, start)]
    return table(runs), treated


def test_the_mixed_model_finds_the_effect_that_is_there() -> None:
    pytest.importorskip("statsmodels")
    rows, treated = simulated(effect=1.5)
    found = mixed_model(course(rows).images, treated)
    assert found.converged
    assert found.low < 1.5 < found.high
    assert 0.05 < found.high - found.low < 2
    assert found.p < 0.001
    test = randomised(summaries(course(rows), "slope")["summary"].to_dict(), treated, {}, np.random.default_rng(0))
    assert found.estimate == pytest.approx(test.estimate, abs=0.05)  # balanced: the same in expectation, weights differ a little
