"""Objectives over several maps: the score is what the maps' scores say, and its error holds though the maps share their noise."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from rtevo.decode import Decoder, Score, Scorer, SeveralScorer, load_decoder, scorer_of, write_decoder
from rtevo.decode.carry import reorder, together
from rtevo.decode.hrf import response
from rtevo.decode.several import combined, objective_values
from rtevo.decode.shared import SharedNoise
from rtevo.errors import DecoderError
from rtevo.objective import Goal, parse_objective
from rtevo.records import Grid

SHAPE = (6, 7, 5)
GRID = Grid(SHAPE, np.diag([3.0, 3.0, 3.5, 1.0]))
TR_S = 1.0
STILL = np.zeros(6)
SINGLE = 1e-4  # maps are float32, and filters differ in how they shrink


def decoders(names: str = "face place body", seed: int = 0, overlap: float = 0.0) -> list[Decoder]:
    """Maps of one folder; `overlap`: correlation of each with the first."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 1:6, 1:4] = True
    first = rng.standard_normal(SHAPE)
    noise = np.where(mask, 2.0, 0)
    made = []
    for k, name in enumerate(names.split()):
        own = first if k == 0 else overlap * first + math.sqrt(1 - overlap**2) * rng.standard_normal(SHAPE)
        made.append(Decoder(GRID, np.full(SHAPE, 100.0), mask, own, name, {"unit": 1.0 + 0.5 * k, "fwhm_mm": 0.0}, noise))
    return made


def bundle(maps: list[Decoder], text: str) -> Decoder:
    goal = parse_objective(text).over([one.name for one in maps])
    named = {one.name: one for one in maps}
    return together(replace(maps[0], goal=goal), [named[name] for name in goal.maps])


def run(scorer: Any, maps: list[Decoder], amplitudes: np.ndarray, seed: int = 1, shared: float = 0.0) -> list[Score]:
    """Show images whose responses lie along the maps, with white noise and a noise that the maps share; return all scores."""
    rng = np.random.default_rng(seed)
    patterns = [one.weights[one.mask] - one.weights[one.mask].mean() for one in maps]
    units = [each / np.linalg.norm(each) for each in patterns]
    onsets = 4.0 + 5.0 * np.arange(len(amplitudes))
    found, shown = [], 0
    for i in range(int(onsets[-1] + 30)):
        while shown < len(onsets) and onsets[shown] < i + 1:
            scorer.add_onset((0, shown), onsets[shown])
            shown += 1
        values = 2.0 * rng.standard_normal(len(units[0]))
        common = rng.standard_normal()
        for k, each in enumerate(units):
            signal = float(response(i + 0.5 - onsets, 3.0) @ amplitudes[:, k])
            values += 2.0 * each * (signal + shared * common * (1, -1)[k % 2])
        volume = np.full(SHAPE, 100.0, np.float32)
        volume[maps[0].mask] += values
        scorer.add_volume(i, volume, STILL)
        found += scorer.ready()
    return [*found, *scorer.ready(final=True)]


def last(scores: list[Score]) -> dict[tuple[int, int], Score]:
    return {score.key: score for score in scores}


def settings(**rest: Any) -> dict[str, Any]:
    return {"fwhm_mm": 0.0, "duration_s": 3.0, **rest}


@pytest.mark.parametrize("method", ["deconvolve", "pattern", "peak"])
def test_an_objective_of_one_map_has_its_scores_to_the_bit(method: str) -> None:
    maps = decoders()
    amplitudes = np.random.default_rng(3).normal(0, 3, (8, 3))
    alone = run(Scorer(maps[1], TR_S, **settings(method=method)), maps, amplitudes)
    several = run(scorer_of(bundle(maps, "place"), TR_S, **settings(method=method)), maps, amplitudes)
    assert [repr(replace(score, maps=())) for score in several] == [repr(score) for score in alone]
    assert all(repr(score.maps) == repr(((score.score, score.score_se),)) for score in several)


def test_the_volumes_of_an_objective_are_its_map_s_with_its_sign_and_are_handed_out_once() -> None:
    maps = decoders()
    amplitudes = np.random.default_rng(3).normal(0, 3, (4, 3))
    alone, against = Scorer(maps[1], TR_S, **settings()), scorer_of(bundle(maps, "-2 * place"), TR_S, **settings())
    for scorer in (alone, against):
        run(scorer, maps, amplitudes)
    used = alone.used()
    assert [index for index, _, _ in used] == list(range(49))
    assert [(index, -value) for index, value, _ in against.used()] == [(index, value) for index, value, _ in used]
    assert alone.used() == against.used() == []
    assert alone.noise() == against.noise()
    assert 0.1 <= alone.noise()[0] <= 0.7
    assert scorer_of(bundle(maps, "rank(place)"), TR_S, **settings()).used() == []


def test_a_weighted_sum_is_a_map_whose_projection_is_the_sum_of_theirs() -> None:
    maps = decoders()
    whole = combined(maps, (1.0, -0.5, 0.25))
    rng = np.random.default_rng(5)
    from rtevo.decode.separate import Projection

    def projected(one: Decoder, values: np.ndarray) -> float:
        project = Projection(one.weights[one.mask].astype(float), one.noise_sd[one.mask].astype(float), float(one.settings["unit"]))
        project(np.zeros_like(values))
        return project(values)

    for _ in range(5):
        values = rng.normal(100, 5, int(maps[0].mask.sum())).astype(np.float32)
        expected = sum(weight * projected(one, values) for one, weight in zip(maps, (1.0, -0.5, 0.25), strict=True))
        assert projected(whole, values) == pytest.approx(expected, abs=SINGLE)


def test_the_score_of_a_difference_is_the_difference_of_the_maps_scores_and_says_both() -> None:
    maps = decoders()
    amplitudes = np.random.default_rng(4).normal(0, 8, (12, 3))
    scorer = scorer_of(bundle(maps, "face - 0.5 * place"), TR_S, **settings())
    found = last(run(scorer, maps, amplitudes))
    assert isinstance(scorer, SeveralScorer)
    assert len(found) == 12
    differences = [score.score - (score.maps[0][0] - 0.5 * score.maps[1][0]) for score in found.values()]
    errors = [score.score_se for score in found.values()]
    assert np.std(differences) < 0.3 * np.mean(errors)  # each filter shrinks by itself
    assert 0 < scorer.reliability() <= 1


def test_the_error_of_a_difference_holds_though_the_maps_share_noise() -> None:
    maps = decoders("face place")
    covered, errors, independent = [], [], []
    for seed in range(4):
        amplitudes = np.random.default_rng(100 + seed).normal(0, 4, (16, 2))
        found = last(run(scorer_of(bundle(maps, "face - place"), TR_S, **settings()), maps, amplitudes, seed, shared=3.0))
        units = [float(one.settings["unit"]) for one in maps]
        truth = amplitudes[:, 0] / units[0] - amplitudes[:, 1] / units[1]
        own = np.array([found[0, k].score for k in range(16)])
        se = np.array([found[0, k].score_se for k in range(16)])
        away = own - truth - np.mean(own - truth)  # the mean of all images is not known, nor is it part of the error
        covered += list(np.abs(away) < 1.96 * se)
        errors += list(se)
        independent += [math.hypot(*(found[0, k].maps[m][1] for m in (0, 1))) for k in range(16)]
    assert 0.88 <= np.mean(covered) <= 1.0  # 64 images of 4 runs: standard error 0.03
    assert np.mean(errors) > 1.05 * np.mean(independent)  # opposite signs in the two maps: more noise than of independent maps


@pytest.mark.parametrize("sign", [1, -1])
def test_the_correlation_of_the_maps_noise_is_seen_under_large_responses(sign: int) -> None:
    maps = decoders("face place")
    shared, rng = SharedNoise(maps, TR_S, 3.0), np.random.default_rng(0)
    onsets = 3.0 + 5.0 * np.arange(30)
    patterns = [(one.weights[one.mask] - one.weights[one.mask].mean()).astype(float) for one in maps]
    units = [each / np.linalg.norm(each) for each in patterns]
    back = np.linalg.pinv(np.array(units)).T  # so that the projections are what is put in
    amplitudes = rng.normal(0, 10, (30, 2)) @ np.array([[1, -0.8 * sign], [0, 0.6]])  # responses correlated the other way
    covariance = np.array([[1.0, 0.7 * sign], [0.7 * sign, 1.0]])
    for onset in onsets:
        shared.add_onset(float(onset))
    for i, noise in enumerate(rng.multivariate_normal(np.zeros(2), covariance, 170)):
        wanted = response(i + 0.5 - onsets, 3.0) @ amplitudes + noise
        shared.add_volume(i, [(2.0 * wanted @ back).astype(np.float32)] * 2, STILL)
    found = shared.covariance()
    assert found[0, 1] / math.sqrt(found[0, 0] * found[1, 1]) == pytest.approx(0.7 * sign, abs=0.12)  # 130 degrees of freedom: 0.05


def test_before_there_are_volumes_maps_share_noise_as_they_overlap() -> None:
    maps = decoders("face place", overlap=0.8)
    found = SharedNoise(maps, TR_S, 3.0).covariance()
    a, b = (one.weights[one.mask].astype(float) for one in maps)
    assert found[0, 1] / math.sqrt(found[0, 0] * found[1, 1]) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)


def monte_carlo(goal: Goal, scores: np.ndarray, errors: np.ndarray, covariance: np.ndarray, draws: int = 20000) -> np.ndarray:
    """Spread of the objective of the first image when its scores err, others known."""
    rng = np.random.default_rng(0)
    noise = rng.multivariate_normal(np.zeros(2), covariance, draws) * errors[0]
    known = scores[:20, 1].mean()
    moved = scores[0] + noise
    return np.asarray(moved[:, 0] + goal.keep[1] * (moved[:, 1] - known) ** 2)


@pytest.mark.parametrize("away", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.6])
def test_keeping_a_map_near_its_mean_has_the_error_that_sampling_gives(away: float, rho: float) -> None:
    goal = parse_objective("face - 0.7 * keep(place)").over(["face", "place"])
    rng = np.random.default_rng(1)
    scores, errors = rng.normal(0, 1, (40, 2)), np.full((40, 2), 0.8)
    scores[:, 1] -= scores[:20, 1].mean()
    scores[0, 1] = 0.0
    scores[:20, 1] -= scores[:20, 1].mean()
    scores[0, 1], scores[1:20, 1] = away, scores[1:20, 1] - away / 19
    covariance = np.array([[1.0, rho], [rho, 1.0]])
    values, ses = objective_values(goal, scores, errors, np.column_stack([scores[:, 0], errors[:, 0]]), covariance)
    mean = scores[:20, 1].mean()
    assert values == pytest.approx(scores[:, 0] - 0.7 * ((scores[:, 1] - mean) ** 2 - 0.8**2))
    sampled = monte_carlo(goal, scores, errors, covariance)
    assert ses[0] == pytest.approx(sampled.std(), rel=0.03)  # 20,000 draws: 0.5%; the mean moves with the image by a twentieth


def test_ranks_are_normal_quantiles_whatever_the_unit() -> None:
    goal = parse_objective("rank(face) - rank(place)").over(["face", "place"])
    rng = np.random.default_rng(2)
    scores = rng.permutation(np.arange(30.0))[:, np.newaxis] * [[1.0, 0.0]] + rng.permutation(np.arange(30.0))[:, np.newaxis] * [[0.0, 1.0]]
    values, ses = objective_values(goal, scores * [1.0, 250.0], np.full((30, 2), math.nan), None, np.eye(2))
    expected = ndtri((scores + 0.5) / 30) @ [1.0, -1.0]
    assert values == pytest.approx(expected, abs=1e-9)
    assert np.isnan(ses).all()  # without errors of the scores there is none
    known, ses = objective_values(goal, scores * [1.0, 250.0], np.full((30, 2), 1e-6), None, np.eye(2))
    assert known == pytest.approx(expected, abs=1e-6)
    assert (ses > 0).all()  # so few images leave a rank uncertain
    unsure, larger = objective_values(goal, scores * [1.0, 1.0], np.full((30, 2), 5.0), None, np.eye(2))
    assert np.ptp(unsure) < np.ptp(expected)
    assert np.mean(larger) > np.mean(ses)


@pytest.mark.parametrize("text", ["face - 0.5 * keep(place)", "rank(face) - 0.5 * rank(place)", "face + body - keep(place)"])
@pytest.mark.parametrize("method", ["deconvolve", "peak"])
def test_what_is_no_weighted_sum_is_scored_and_revised(text: str, method: str) -> None:
    maps = decoders()
    amplitudes = np.random.default_rng(6).normal(0, 6, (10, 3))
    scorer = scorer_of(bundle(maps, text), TR_S, **settings(method=method))
    scores = run(scorer, maps, amplitudes)
    found = last(scores)
    assert len(found) == 10
    for key in found:
        revisions = [score.revision for score in scores if score.key == key]
        assert revisions == list(range(len(revisions)))
    assert all(math.isfinite(score.score) for score in found.values())
    assert all(math.isfinite(score.score_se) == (method == "deconvolve") for score in found.values())


def test_a_volume_is_smoothed_once_for_all_maps_and_only_counted_when_it_is_whole() -> None:
    maps = decoders()
    scorer = SeveralScorer(bundle(maps, "face - place"), TR_S, **settings(fwhm_mm=4.0))
    assert scorer._first_of == [0, 0, 0]  # the maps, and their sum
    volume = np.full(SHAPE, 100.0, np.float32)
    volume[2, 2, 2] = math.nan
    scorer.add_volume(0, volume, STILL)
    scorer.add_volume(1, None, STILL)
    assert scorer.left_out == [0, 1]


# --- folders -----------------------------------------------------------------------------------------------------------------------------


def write(folder: Path, maps: list[Decoder], unit: bool = True) -> Path:
    own = {one.name: dict(one.settings) if unit else {} for one in maps}
    for one in maps:
        write_decoder(folder, one.name, one.reference, one.mask, one.weights, GRID.affine, {"tr_s": 1.0}, one.noise_sd, own)
    return folder


def test_an_objective_is_read_with_the_maps_that_it_names_and_no_others(tmp_path: Path) -> None:
    folder = write(tmp_path / "maps", decoders())
    found = load_decoder(folder, None, "place - 0.5 * face")
    assert found.goal is not None
    assert [one.name for one in found.maps] == ["place", "face"] == list(found.goal.maps)
    assert found.maps[0].settings["unit"] == 1.5
    assert np.array_equal(found.mask, found.maps[0].mask)
    assert load_decoder(folder, "face").goal is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fase", "unknown map 'fase': expected one of body, face, place"),
        ("face -", "found its end"),
        ("2 face", "'\\+' or"),
    ],
)
def test_what_the_folder_does_not_hold_is_named_with_what_it_holds(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DecoderError, match=words):
        load_decoder(write(tmp_path / "maps", decoders()), None, text)


def test_maps_without_a_unit_are_named_and_not_added(tmp_path: Path) -> None:
    folder = write(tmp_path / "maps", decoders(), unit=False)
    with pytest.raises(DecoderError, match=r"'unit' in decoder.json., found none for face, place; .*'rank\(face\) \+ rank\(place\)'"):
        load_decoder(folder, None, "face - place")
    assert load_decoder(folder, None, "rank(face) - rank(place)").maps[1].name == "place"
    assert load_decoder(folder, None, "face").maps[0].name == "face"


def test_maps_of_two_folders_on_one_reference_are_taken_together(tmp_path: Path) -> None:
    first = write(tmp_path / "monday", decoders("face place"))
    second = write(tmp_path / "tuesday", decoders("face body", seed=7))
    found = load_decoder(first, None, "monday/face - tuesday/face + body", (second,))
    assert [one.name for one in found.maps] == ["monday-face", "tuesday-face", "body"]
    with pytest.raises(DecoderError, match="unknown map 'face': expected one of monday/face, place, body, tuesday/face"):
        load_decoder(first, None, "face", (second,))
    with pytest.raises(DecoderError, match="expected different names"):
        load_decoder(first, None, "place", (first,))


def test_voxels_in_another_order_are_those_of_all_maps() -> None:
    maps = decoders()
    whole = bundle(maps, "face - place")
    flipped = Grid(SHAPE, GRID.affine @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    turned = reorder(whole, flipped)
    assert turned is not None
    assert [np.array_equal(a.weights, b.weights[::-1]) for a, b in zip(turned.maps, whole.maps, strict=True)] == [True, True]
    assert turned.goal == whole.goal
