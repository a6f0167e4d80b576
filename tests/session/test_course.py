"""From a session file to its course: conditions, blinding, recorded scores, resumption, limits."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rtevo.config import Config, build
from rtevo.errors import ConfigError, DataError
from rtevo.evolve import Surrogate
from rtevo.evolve.__main__ import main
from rtevo.latent import LatentSpace
from rtevo.record import LOG, LogWriter
from rtevo.session.blinding import condition_of, load_secret, scramble
from rtevo.session.course import check, make_course, resolve_condition, state_of
from rtevo.session.safety import avoid_of

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
    codes = [line.split("\t")[2] for line in key.read_text().splitlines()[1:]]
    assert len({len(code) for code in codes}) == 1  # neither their length
    assert len(set(codes)) == len({code[-8:] for code in codes}) == len({code[:8] for code in codes}) == 20  # nor what two have in common
    key.write_text(key.read_text().replace("\t01\t", "\t01\tA"))
    with pytest.raises(ConfigError, match="is damaged"):
        resolve_condition(build({"session": {"condition": "blinded", "participant": "01"}, "evolution": {"blinding_key": str(key)}}))


def blinded(key: Path, participant: str, secret: Path | None = None) -> str:
    evolution = {"blinding_key": str(key), "blinding_secret": str(secret or "")}
    return resolve_condition(build({"session": {"condition": "blinded", "participant": participant}, "evolution": evolution}))


def test_a_key_with_a_secret_says_nothing_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    key, secret, other = tmp_path / "key.tsv", tmp_path / "secret", tmp_path / "other"
    people = [f"{k:02d}" for k in range(1, 13)]
    arguments = ["blind", "--participants", *people, "--conditions", "brain", "yoked", "random", "--out"]
    assert main([*arguments, str(key), "--secret", str(secret)]) == 0
    assert "blinding_secret" in capsys.readouterr().out
    assert secret.stat().st_mode & 0o077 == 0
    assert Counter(blinded(key, who, secret) for who in people) == {"brain": 4, "yoked": 4, "random": 4}
    rows = [line.split("\t") for line in key.read_text().splitlines()[1:]]
    assert len({len(code) for _, _, code in rows}) == 1
    for who, session, code in rows:  # trying all conditions, as without a secret, finds none
        with pytest.raises(ValueError, match="written with a secret"):
            condition_of(code, who, session)
        with pytest.raises(ValueError, match="damaged, or was written with another secret"):
            condition_of(code, "99", session, load_secret(secret))  # a row that was copied
    with pytest.raises(ConfigError, match="written with a secret: name its file as"):
        blinded(key, "01")
    assert main([*arguments, str(tmp_path / "second.tsv"), "--secret", str(other)]) == 0
    with pytest.raises(ConfigError, match="written with another secret"):
        blinded(key, "01", other)
    before = secret.read_text()
    assert main([*arguments, str(tmp_path / "third.tsv"), "--secret", str(secret)]) == 0  # used again
    assert secret.read_text() == before
    secret.write_text("no secret")
    assert main([*arguments, str(tmp_path / "fourth.tsv"), "--secret", str(secret)]) == 2
    assert not (tmp_path / "fourth.tsv").exists()


def test_an_ended_session_tells_nothing_of_the_others(tmp_path: Path) -> None:
    """What two codes have in common does not depend on whether their conditions are the same."""
    codes = {who: [scramble(condition, who, "01") for condition in ("brain", "sham", "random")] for who in ("01", "02")}
    assert len({len(code) for each in codes.values() for code in each}) == 1
    assert len({scramble("brain", "01", "01") for _ in range(50)}) == 50
    assert [condition_of(code, "01", "01") for code in codes["01"]] == ["brain", "sham", "random"]


def test_a_key_of_an_earlier_version_still_counts() -> None:
    code = base64.b32encode(b"sham:07:01"[::-1]).decode().rstrip("=")
    assert condition_of(code, "07", "01") == "sham"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--participants", "01", "02", "01"], "--participants: expected each once, got 01 more than once"),
        (["--participants", "01", "--sessions", "a", "a"], "--sessions: expected each once, got a more than once"),
        (["--participants", "01", "--conditions", "sham", "sham"], "--conditions: expected each once"),
        (["--participants", "Jürgen"], "--participants: expected letters a to z and digits, got 'Jürgen'; did you mean 'Juergen'?"),
    ],
)
def test_what_cannot_be_a_key_is_refused(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blind", *arguments, "--out", str(tmp_path / "key.tsv")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "key.tsv").exists()


def test_a_key_that_lists_a_session_twice_is_refused(tmp_path: Path) -> None:
    rows = [f"01\t01\t{scramble(condition, '01', '01')}\n" for condition in ("brain", "sham")]
    (tmp_path / "key.tsv").write_text("participant\tsession\tcode\n" + "".join(rows))
    with pytest.raises(ConfigError, match="found 1 listed more than once, first participant '01', session '01'"):
        blinded(tmp_path / "key.tsv", "01")


def test_a_yoked_session_reads_the_donors_candidates_without_its_probes(tmp_path: Path) -> None:
    told = [(0, 1, -1, 2.0), (0, 0, -1, 1.0), (0, 2, 0, None), (1, 0, -1, None)]
    with LogWriter(tmp_path / LOG) as log:
        for generation, candidate, probe, fitness in told:
            key = {"generation": generation, "candidate": candidate}
            log.append("latents", {**key, "probe": probe})
            if fitness is not None:
                log.append("fitness", {**key, "fitness": fitness})
    course = make_course(config("yoked", yoked_to=str(tmp_path)), "yoked", SPACE)
    course.due()
    assert [course.score(0, k, 9.0)[0].fitness for k in (0, 1)] == [1.0, 2.0]
    assert np.isnan(course.score(0, 2, 9.0)[0].fitness)
    (tmp_path / LOG).unlink()
    with pytest.raises(ConfigError, match="yoked_to: expected the folder of a session"):
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
    again = make_course(config(continue_from=str(tmp_path), generations=1), "brain", SPACE)  # as many in all as the first had in mind
    for mine, its in zip(again.due(), expected, strict=True):
        assert its.generation == 1
        np.testing.assert_array_equal(mine.latent, its.latent)
    with pytest.raises(ConfigError, match="another latent space"):
        make_course(config(continue_from=str(tmp_path)), "brain", LatentSpace.random(6, 12, seed=2))
    with pytest.raises(ConfigError, match="expected strategy 'truncation'"):
        make_course(config(continue_from=str(tmp_path), strategy="truncation"), "brain", SPACE)
    (tmp_path / "evolution.json").write_text("{}")
    with pytest.raises(ConfigError, match="of an earlier run, found something else"):
        make_course(config(continue_from=str(tmp_path)), "brain", SPACE)


def test_a_chain_of_runs_brings_all_of_them_each_by_itself(tmp_path: Path) -> None:
    """Each of three folders goes on from the one before; the second's scores are in another unit, and lie elsewhere."""
    asked = {}
    for offset, scale in ((0.0, 1.0), (30.0, 3.0)):
        before = ""
        for number, (add, times) in enumerate(((0.0, 1.0), (offset, scale), (0.0, 1.0))):
            settings = config(continue_from=before, probe_every=4)
            course = make_course(settings, "brain", SPACE)
            rng = np.random.default_rng(number)
            while wanted := course.due():
                for request in wanted:
                    course.show()
                    score = add + times * (float(request.latent[0]) + 0.3 * rng.standard_normal())
                    course.score(request.generation, request.candidate, score, 0.3 * times)
            out = tmp_path / f"{scale:g}-{number}"
            out.mkdir()
            (out / "evolution.json").write_text(json.dumps(state_of(course, SPACE)))
            before = str(out)
        state = json.loads((out / "evolution.json").read_text())["evolver"]
        assert state["runs"] == [0, 8, 16]
        assert len(state["latents"]) == 24
        assert [sum(row[0] == first for row in state["probes"]["scores"]) for first in state["runs"]] == [2, 2, 2]
        assert len(state["probes"]["latents"]) == 2  # the same in every run
        assert [course.evolver.anchor(0, other).images for other in (1, 2)] == [2, 2]
        asked[scale] = state["latents"]
    np.testing.assert_allclose(asked[3.0], asked[1.0], rtol=0, atol=0.02)


def test_how_scores_age_is_what_this_session_says_whatever_the_run_before_did(tmp_path: Path) -> None:
    first = make_course(config(preference_half_life=40.0), "brain", SPACE)
    first.due()
    (tmp_path / "evolution.json").write_text(json.dumps(state_of(first, SPACE)))
    assert first.evolver.to_state()["settings"]["half_life"] == 40.0
    again = make_course(config(continue_from=str(tmp_path), preference_half_life=9.0), "brain", SPACE)
    assert again.evolver.to_state()["settings"]["half_life"] == 9.0
    with pytest.raises(ConfigError, match="preference_half_life: expected 0 for strategy 'truncation', got 5"):
        config(preference_half_life=5.0, strategy="truncation")


def test_no_image_is_asked_for_near_what_is_avoided(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    avoided = rng.standard_normal((3, 12))
    np.save(tmp_path / "avoid.npy", avoided)
    settings = config(avoid=str(tmp_path / "avoid.npy"), avoid_distance=0.7, norm_limits=[1.0, 1.0], population=40, generations=1)
    course = make_course(settings, "brain", SPACE, avoid_of(settings, SPACE))
    asked = np.array([r.latent for r in course.due()])
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), np.sqrt(6), rtol=1e-6)
    embeddings = SPACE.to_embedding(asked).astype(float)
    cosine = embeddings @ avoided.T / np.linalg.norm(embeddings, axis=1)[:, None] / np.linalg.norm(avoided, axis=1)
    assert cosine.max() <= 0.3 + 1e-6
    assert np.sum(cosine.max(axis=1) > 0.29) > 3  # some were moved, no further than needed
    np.testing.assert_array_equal(course.evolver._latents, asked.astype(float))
    far = config(avoid=str(tmp_path / "avoid.npy"), avoid_distance=1.9)
    course = make_course(far, "brain", SPACE, avoid_of(far, SPACE))
    with pytest.raises(DataError, match="leaves next to nothing"):
        course.due()
    np.save(tmp_path / "avoid.npy", avoided[:, :5])
    with pytest.raises(DataError, match=r"expected finite embeddings \(k, 12\)"):
        avoid_of(settings, SPACE)


def test_a_session_keeps_embeddings_to_its_spaces_shell_by_the_strategy_and_by_its_own_limits() -> None:
    scale = np.array([5, 1, 1, 1, 1, 1], np.float32)
    space = LatentSpace(SPACE.mean, SPACE.components, scale)
    evolver = make_course(config(strategy="surrogate"), "brain", space).evolver
    assert isinstance(evolver, Surrogate)
    assert evolver.shell is not None
    np.testing.assert_array_equal(evolver.shell.scale, scale)
    asked = make_course(config(strategy="truncation", norm_limits=[1.0, 1.0], population=40), "brain", space).due()
    lengths = np.linalg.norm([space.to_embedding(r.latent) - space.mean for r in asked], axis=1)
    assert lengths.max() == pytest.approx(np.sqrt(30), rel=1e-5)  # the usual one: 25 + 5
    assert np.linalg.norm([r.latent for r in asked], axis=1).min() < 0.9 * np.sqrt(6)  # shorter than the session says, for that


def test_minutes_set_the_budget_that_the_surrogate_plans_for() -> None:
    course = make_course(config(generations=100, stop_minutes=2.0), "brain", SPACE)
    assert course.evolver.to_state()["settings"]["budget"] == 28  # (120 s - 6 s of baseline) / 4 s


def test_what_was_refused_is_kept_away_from_and_so_much_may_be_refused_that_only_the_latest_counts() -> None:
    settings = build({"safety": {"keep_away": 0.3}, "evolution": {"latent_size": 6, "generations": 20, "population": 10}})
    course = make_course(settings, "brain", SPACE)
    refused: list[np.ndarray] = []
    for _ in range(120):
        (first, *_) = wanted = course.due()
        if refused:
            now = SPACE.to_embedding(np.stack([r.latent for r in wanted])).astype(float)
            near = 1 - now @ refused[-1] / np.linalg.norm(now, axis=1) / np.linalg.norm(refused[-1])
            assert near.min() >= 0.3 - 1e-6
        for request in wanted:
            course.refuse(request.generation, request.candidate, request.latent)
        refused.append(SPACE.to_embedding(wanted[-1].latent).astype(float))
    assert first is not None
