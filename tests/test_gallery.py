"""What a report says of the preference: known where it was planted, not known where there is none, hidden where it must be."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import multivariate_normal

from rtevo.errors import DataError
from rtevo.evolve import RandomEvolver, preference_of
from rtevo.evolve.model import SIGNAL_TO_NOISE, Curved, Linear, features, radial
from rtevo.latent import Examples, LatentSpace, examples_of
from rtevo.report import figures
from rtevo.report.gallery import KNOWN, LIMIT, Named, Preferred, choose, odds, preferred_of, verdict, what_it_means, words

SIZE = 12
SPACE = LatentSpace.random(SIZE, 40, 0)
SAMPLED = 0.05  # of a mean of 4000 draws, in standard deviations: three standard errors


def told(latents: np.ndarray, scores: np.ndarray, error: float = math.nan, *, runs: int = 1) -> RandomEvolver:
    """An evolver that was told scores of images that were chosen otherwise."""
    evolver = RandomEvolver(latents.shape[1], np.random.default_rng(0))
    for part in np.array_split(np.arange(len(latents)), runs):
        evolver.begin()
        evolver.ask(len(part))
    numbers = np.arange(len(latents))
    evolver.place(numbers, latents)
    evolver.tell(numbers, scores, np.full(len(latents), error))
    return evolver


def directed(seed: int, n: int = 60, slope: float = 1.0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random images whose responses rise along a direction: latents, scores, the direction."""
    rng = np.random.default_rng(seed)
    latents, goal = rng.standard_normal((n, SIZE)), rng.standard_normal(SIZE)
    goal /= np.linalg.norm(goal)
    return latents, slope * latents @ goal + noise * rng.standard_normal(n), goal


def test_both_of_two_planted_optima_are_in_the_gallery() -> None:
    rng = np.random.default_rng(1)
    first, second = np.linalg.qr(rng.standard_normal((SIZE, 2)))[0].T
    latents = rng.standard_normal((90, SIZE))
    for k, target in enumerate((first, second)):
        latents[k::3] = math.sqrt(SIZE) * target + 0.5 * rng.standard_normal((30, SIZE))
    shares = np.maximum(latents @ np.stack([first, second]).T / np.linalg.norm(latents, axis=1, keepdims=True), 0).max(axis=1)
    found = preferred_of(told(latents, 4 * shares**2 + 0.5 * rng.standard_normal(90), 0.5), SPACE, 5)
    assert found.known
    assert found.curved
    best, next_best = (latents[5 * each.key[0] + each.key[1]] for each in found.gallery[:2])
    assert {int(np.argmax([image @ first, image @ second])) for image in (best, next_best)} == {0, 1}
    assert {each.alike for each in found.gallery[:2]} <= set(range(25, 40))
    assert all(0 < each.low < each.response < each.high for each in found.gallery[:2])
    assert math.isnan(found.gallery[0].own)
    assert "own optimum" in " ".join(words(found.gallery[1])) or "optimum of its own" in " ".join(words(found.gallery[1]))


def test_of_noise_nothing_is_known_and_nothing_is_named() -> None:
    said = []
    for seed in range(12):
        latents, scores, _ = directed(seed, n=35, slope=0.0)
        said.append(preferred_of(told(latents, scores, 1.0), SPACE, 5))
    assert sum(found.known for found in said) <= 1  # by Ville's inequality one in 20
    unknown = next(found for found in said if not found.known)
    assert "Not known" in verdict(unknown)
    assert "20 to 1 is required" in verdict(unknown)


def test_what_drives_a_run_is_named_by_the_pictures_along_the_direction() -> None:
    latents, scores, goal = directed(3)
    points = np.random.default_rng(4).standard_normal((40, SIZE)) * SPACE.scale
    points[7], points[9] = 2 * goal * SPACE.scale, -goal * SPACE.scale
    named = replace(SPACE, examples=Examples(tuple(f"picture {k}" for k in range(40)), points.astype(np.float32)))
    found = preferred_of(told(latents, scores, 1.0), named, 5)
    assert found.known
    assert (found.along[0].name, found.against[0].name) == ("picture 7", "picture 9")
    assert found.along[0].low < found.along[0].cosine < found.along[0].high
    truth = preference_of(told(latents, scores, 1.0))
    assert truth is not None
    true = float(truth.direction @ goal / np.linalg.norm(truth.direction))
    assert found.cosine[1] < true < found.cosine[2]
    assert found.gallery[0].near[0].low == found.gallery[0].near[0].high
    assert "Known: the odds for a preference against none are" in verdict(found)


def test_an_image_that_scored_nothing_is_not_preferred_because_it_lies_along_the_direction() -> None:
    latents, scores, goal = directed(5, noise=0.1)
    own = np.random.default_rng(6).standard_normal(60) * 1.5
    along = int(np.argmax(latents @ goal))
    own[along] = -2.0 - float(latents[along] @ goal)
    preference = preference_of(told(latents, scores + own, 0.1))
    assert preference is not None
    responses = preference.images(2000, np.random.default_rng(0))[:, along]
    slope = preference.responses(latents[along : along + 1], 2000, np.random.default_rng(0))
    assert slope.mean() > 0.5
    assert responses.mean() < -0.5
    evolver = told(latents, scores + own, 0.1)
    evolver.tell([0, 1], (scores + own)[:2])  # of these the error is not known
    partly = preference_of(evolver)
    assert partly is not None
    assert np.isfinite(partly.images(10, np.random.default_rng(0))).all()
    keys = {(each.key[0] * 5 + each.key[1]) for each in preferred_of(told(latents, scores + own, 0.1), SPACE, 5).gallery}
    assert along not in keys


def test_images_of_a_gallery_are_apart_and_better_than_a_random_one() -> None:
    latents = np.eye(6)[[0, 0, 1, 2, 3, 4, 5]] + 0.01
    responses = np.random.default_rng(0).standard_normal((500, 7)) + np.array([9.0, 8.0, 7.0, 0.5, 6.0, 5.0, 4.0])
    chosen = choose(responses, latents, most=4)
    assert chosen == [0, 2, 4, 5]  # not the second, which is like the first; not the fourth, of which that is not sure
    unit = latents[chosen] / np.linalg.norm(latents[chosen], axis=1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(4, 1)].max() <= LIMIT
    assert choose(responses - 20, latents) == []


def test_only_the_last_runs_images_are_shown_though_all_runs_say_what_is_preferred() -> None:
    latents, scores, _ = directed(8, n=80)
    found = preferred_of(told(latents, scores + np.repeat([0.0, 5.0], 40), 1.0, runs=2), SPACE, 5)
    assert (found.runs, found.scored) == (2, 80)
    assert found.known
    assert {each.key[0] for each in found.gallery} <= set(range(8))  # 40 images, five a generation
    assert "80 scored images of 2 runs" in verdict(found)


def test_draws_of_the_linear_model_have_the_posterior_of_its_mixture() -> None:
    latents, scores, _ = directed(9)
    linear = Linear(latents, scores, np.ones(60))
    draws = linear.posterior(4000, np.random.default_rng(0))
    centred, y = features(latents) - features(latents).mean(axis=0), scores - scores.mean()
    means = [np.linalg.solve(centred.T @ centred + np.eye(SIZE + 1) / ratio, centred.T @ y) for ratio in SIGNAL_TO_NOISE]
    np.testing.assert_allclose(draws.mean(axis=0), linear.weights @ means, atol=SAMPLED * draws.std(axis=0).max())


def test_the_evidence_is_that_of_the_marginal_likelihoods() -> None:
    latents, scores, _ = directed(10, n=20)
    linear = Linear(latents, scores, np.ones(20))
    contrasts = np.linalg.svd(np.ones((1, 20)))[2][1:]  # whatever the mean is
    x, y = contrasts @ features(latents), contrasts @ scores

    def evidence(ratio: float) -> float:
        """Over a noise variance of density 1 / variance, by its sum."""
        variances = np.geomspace(1e-3, 1e3, 4000)
        logs = [multivariate_normal.logpdf(y, cov=v * (np.eye(19) + ratio * x @ x.T)) for v in variances[::10]]
        return float(np.logaddexp.reduce(logs))

    assert linear.log_evidence[4] - linear._of_none == pytest.approx(evidence(float(SIGNAL_TO_NOISE[4])) - evidence(0.0), abs=0.01)


def test_draws_of_the_curved_model_have_the_mean_of_a_gaussian_process() -> None:
    latents, scores, _ = directed(11, n=30)
    linear = Linear(latents, scores, np.ones(30))
    curved = Curved(latents, scores, np.ones(30), linear, linear.mean().direction[0])
    points = np.random.default_rng(1).standard_normal((5, SIZE))
    draws = curved.posterior(points, 4000, np.random.default_rng(2))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return curved._ratio * (np.exp(a @ b.T / SIZE) - 1 + np.outer(radial(a), radial(b)))

    whole = kernel(latents, latents) + curved._ratio * 100.0 + np.eye(30)
    expected = kernel(points, latents) @ np.linalg.solve(whole, scores - scores.mean())
    variance = np.diag(kernel(points, points) - kernel(points, latents) @ np.linalg.solve(whole, kernel(latents, points)))
    np.testing.assert_allclose(draws.mean(axis=0), expected, atol=SAMPLED * draws.std(axis=0).max())
    # a variance that is itself unknown, of 29 degrees of freedom, has a mean larger by 29 / 27
    np.testing.assert_allclose(draws.var(axis=0), variance * curved.noise_variance * 29 / 27, rtol=0.1)


def test_words_say_what_a_control_means_and_how_sure_anything_is() -> None:
    assert what_it_means("brain") == ""
    assert "permuted" in what_it_means("sham")
    assert "another participant" in what_it_means("yoked")
    assert "nothing was selected" in what_it_means("random")
    assert [odds(math.log(x)) for x in (2.0, 0.25, 30.0)] == ["2.0 to 1", "1 to 4.0", "30 to 1"]
    assert odds(1e3) == "more than a million to 1"
    assert not Preferred("nothing was scored", advantage=KNOWN + 1).known
    assert verdict(Preferred("nothing was scored")) == "Not known: nothing was scored."


def test_names_of_pictures_are_drawn_as_they_are() -> None:
    figure = Figure()
    figures.along(figure.add_subplot(), [Named("cost$_{5$", 0.5, 0.4, 0.6, b"")], "towards")  # as mathematics it would be refused
    figure.savefig(io.BytesIO(), format="png")


def test_too_few_scores_say_nothing() -> None:
    latents, scores, _ = directed(12, n=3)
    assert "too few" in preferred_of(told(latents, scores), SPACE, 5).problem
    assert "dimensions" in preferred_of(told(latents, scores), SPACE.first(3), 5).problem


# --- the latent space's pictures -------------------------------------------------------------------------------------------------------


def test_a_space_keeps_some_of_many_pictures_with_their_names(tmp_path: Path) -> None:
    files = [tmp_path / kind / f"{k:03}.png" for kind in ("cats", "dogs") for k in range(300)]
    for file in files:
        file.parent.mkdir(exist_ok=True)
    Image.new("RGB", (100, 80), "red").save(files[0])
    for file in files[1:]:
        file.hardlink_to(files[0])
    points = np.random.default_rng(0).standard_normal((600, SIZE))
    space = replace(SPACE, examples=Examples.of_files(files, tmp_path, points))
    space.save(tmp_path / "space.npz")
    kept = LatentSpace.load(tmp_path / "space.npz").first(2).scaled("plain").examples
    assert kept is not None
    assert (len(kept.names), len(set(kept.names)), len(kept.thumbnails), kept.points.shape) == (400, 400, 400, (400, 2))
    assert (kept.names[0], kept.names[-1]) == ("cats/000", "dogs/299")
    with Image.open(io.BytesIO(kept.thumbnails[0])) as picture:
        assert picture.size == (64, 51)
    np.testing.assert_allclose(kept.points[-1], points[-1, :2], rtol=2e-3)  # float16
    LatentSpace.load(tmp_path / "space.npz").save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "space.npz").read_bytes()


def test_the_built_in_space_has_keywords_and_a_space_that_keeps_nothing_has_none() -> None:
    from rtevo.generate import TINY_LATENT_SPACE

    space = LatentSpace.load(TINY_LATENT_SPACE).first(SIZE)
    known = examples_of(space)
    assert known is not None
    assert {"animal", "mammal", "flag"} <= set(known.names)
    assert known.points.shape == (len(known.names), SIZE)
    assert examples_of(SPACE) is None
    assert examples_of(LatentSpace.random(SIZE, space.embedding_size, 0)) is None


def test_examples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = replace(SPACE, examples=Examples(("a", "b"), np.zeros((2, SIZE), np.float32), (b"1", b"23")))
    good.save(tmp_path / "good.npz")
    loaded = LatentSpace.load(tmp_path / "good.npz").examples
    assert loaded is not None
    assert loaded.thumbnails == (b"1", b"23")
    with np.load(tmp_path / "good.npz") as found:
        arrays = dict(found)
    for name, value in (
        ("example_names", np.zeros(2)),
        ("example_points", np.zeros((2, SIZE - 1))),
        ("example_bytes", np.array([1, 9])),
        ("example_points", np.full((2, SIZE), np.nan)),
    ):
        np.savez(tmp_path / "bad.npz", **{**arrays, name: value})
        with pytest.raises(DataError, match=r"bad\.npz: latent space: expected"):
            LatentSpace.load(tmp_path / "bad.npz")


def test_the_state_of_an_evolver_gives_the_same_answer() -> None:
    from rtevo.evolve import from_state

    latents, scores, _ = directed(13, n=40)
    evolver = told(latents, scores, 1.0)
    again = from_state(json.loads(json.dumps(evolver.to_state())))
    assert repr(preferred_of(again, SPACE, 5)) == repr(preferred_of(evolver, SPACE, 5))  # NaN is not itself
