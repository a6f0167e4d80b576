"""From a session file to its course: conditions, blinding, recorded scores, resumption, limits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rtevo.config import Config, build
from rtevo.errors import ConfigError, DataError
from rtevo.evolve.__main__ import main
from rtevo.latent import LatentSpace
from rtevo.stages.evolution import check, make_course, resolve_condition, state_of

SPACE = LatentSpace.random(6, 12, seed=1)


def config(condition: str = "brain", **evolution: object) -> Config:
    sizes = {"latent_size": 6, "generations": 2, "population": 4, "schedule": "generational"}
    return build({"session": {"condition": condition}, "evolution": {**sizes, **evolution}})


def test_a_blinding_key_gives_every_condition_equally_often_and_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key.tsv"
    people = [f"{k:02d}" for k in range(1, 21)]
    arguments = ["blind", "--participants", *people, "--conditions", "brain", "sham", "--seed", "3", "--out", str(key)]
    assert main(arguments) == 0
    assert not any(word in key.read_text().lower() for word in ("brain", "sham"))
    found = [
        resolve_condition(build({"session": {"condition": "blinded", "participant": p}, "evolution": {"blinding_key": str(key)}}))
        for p in people
    ]
    assert Counter(found) == {"brain": 10, "sham": 10}
    assert all({*pair} == {"brain", "sham"} for pair in zip(found[::2], found[1::2], strict=True))
    assert main(arguments) == 2
    assert "expected a new file" in capsys.readouterr().err
    key.write_text(key.read_text().replace("\t01\t", "\t01\tA"))
    with pytest.raises(ConfigError, match="is damaged"):
        resolve_condition(build({"session": {"condition": "blinded", "participant": "01"}, "evolution": {"blinding_key": str(key)}}))


def test_a_yoked_session_reads_the_donors_candidates_without_its_probes(tmp_path: Path) -> None:
    (tmp_path / "trials.tsv").write_text(
        "onset\tgeneration\tcandidate\tprobe\tfitness\n1\t0\t1\tn/a\t2.0\n2\t0\t0\tn/a\t1.0\n3\t0\t2\t0\tn/a\n4\t1\t0\tn/a\tn/a\n"
    )
    course = make_course(config("yoked", yoked_to=str(tmp_path)), "yoked", SPACE)
    course.due()
    assert [course.score(0, k, 9.0)[0].fitness for k in (0, 1)] == [1.0, 2.0]
    assert np.isnan(course.score(0, 2, 9.0)[0].fitness)
    (tmp_path / "trials.tsv").write_text("nothing\n1\n")
    with pytest.raises(ConfigError, match="yoked_to: expected the trials"):
        check(config("yoked", yoked_to=str(tmp_path)), SPACE)


def test_the_random_condition_ignores_scores() -> None:
    latents = []
    for score in (0.0, 5.0):
        course = make_course(config("random"), "random", SPACE)
        for request in course.due():
            course.score(request.generation, request.candidate, score * request.latent[0])
        latents.append([r.latent for r in course.due()])
    np.testing.assert_array_equal(*latents)


def test_a_run_goes_on_from_anothers_state_only_in_the_same_space_and_strategy(tmp_path: Path) -> None:
    first = make_course(config(), "brain", SPACE)
    for request in first.due():
        first.score(request.generation, request.candidate, float(request.latent[0]))
    (tmp_path / "evolution.json").write_text(json.dumps(state_of(first, SPACE)))
    expected = first.due()
    again = make_course(config(resume=str(tmp_path), generations=1), "brain", SPACE)  # as many in all as the first had in mind
    for mine, its in zip(again.due(), expected, strict=True):
        assert its.generation == 1
        np.testing.assert_array_equal(mine.latent, its.latent)
    with pytest.raises(ConfigError, match="another latent space"):
        make_course(config(resume=str(tmp_path)), "brain", LatentSpace.random(6, 12, seed=2))
    with pytest.raises(ConfigError, match="expected strategy 'truncation'"):
        make_course(config(resume=str(tmp_path), strategy="truncation"), "brain", SPACE)
    (tmp_path / "evolution.json").write_text("{}")
    with pytest.raises(ConfigError, match="of an earlier run, found something else"):
        make_course(config(resume=str(tmp_path)), "brain", SPACE)


def test_no_image_is_asked_for_near_what_is_avoided(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    avoided = rng.standard_normal((3, 12))
    np.save(tmp_path / "avoid.npy", avoided)
    settings = config(avoid=str(tmp_path / "avoid.npy"), avoid_distance=0.7, norm_limits=[1.0, 1.0], population=40, generations=1)
    course = make_course(settings, "brain", SPACE)
    asked = np.array([r.latent for r in course.due()])
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), np.sqrt(6), rtol=1e-6)
    embeddings = SPACE.to_embedding(asked).astype(float)
    cosine = embeddings @ avoided.T / np.linalg.norm(embeddings, axis=1)[:, None] / np.linalg.norm(avoided, axis=1)
    assert cosine.max() <= 0.3 + 1e-6
    assert np.sum(cosine.max(axis=1) > 0.29) > 3  # some were moved, no further than needed
    np.testing.assert_array_equal(course.evolver._latents, asked.astype(float))
    with pytest.raises(DataError, match="leaves next to nothing"):
        make_course(config(avoid=str(tmp_path / "avoid.npy"), avoid_distance=1.9), "brain", SPACE).due()
    np.save(tmp_path / "avoid.npy", avoided[:, :5])
    with pytest.raises(DataError, match=r"expected finite embeddings \(k, 12\)"):
        check(settings, SPACE)


def test_minutes_set_the_budget_that_the_surrogate_plans_for() -> None:
    course = make_course(config(generations=100, stop_minutes=2.0), "brain", SPACE)
    assert course.evolver.to_state()["settings"]["budget"] == 28  # (120 s - 6 s of baseline) / 4 s
