"""A sealed run's condition can be read from its log with the secret; without it the log looks the same for all conditions."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo import records
from rtevo.config import build
from rtevo.errors import ConfigError, DataError
from rtevo.evolve import create
from rtevo.past.rerun import rerun
from rtevo.record import (
    LOG,
    FitnessRecord,
    LogWriter,
    RecordedSession,
    Recorder,
    Sealed,
    evolution_of,
    is_sealed,
    load_secret,
    open_sealed,
    read_log,
    seal,
)
from rtevo.session.blinding import make_secret
from rtevo.session.checks import check_space
from rtevo.session.course import fitness_of, make_course
from rtevo.stages.evolve import SERIES_STATE_BYTES

KIND = re.compile(r'"type": "(\w+)"')
Told = list[list[tuple[int, float]]]  # after each score: candidate, fitness
BRAIN: Told = [[(0, 0.5)], [(1, -1.25)], [(2, 2.0)]]
SHAM: Told = [[(0, 0.5)], [(0, -1.25), (1, 0.5)], [(1, 2.0), (2, 0.5)]]


def slot(dtype: np.dtype[np.void], **fields: object) -> np.void:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record[()]


def write(out: Path, told: Told, secret: Path, asks: bool = True) -> None:
    """Record a sealed session of three candidates; a score comes while evolution handles the previous one."""
    out.mkdir()
    settings = {"session": {"condition": "blinded"}, "evolution": {"sealed": True, "blinding_secret": str(secret)}}
    with LogWriter(out / LOG) as log:
        log.append("start", {"schema": 1, "tr_s": 2.0, "condition": "blinded", "settings": settings})
    recorder = Recorder(out, secret=load_secret(secret))
    for number, own in enumerate(told):
        key = {"generation": 0, "candidate": number}
        recorder.take("scores", slot(records.score_dtype(), **key, score=own[0][1], score_se=1.0, scored_ns=number))
        for place, (candidate, fitness) in enumerate(own):
            given = {"generation": 0, "candidate": candidate, "fitness": fitness, "fitness_se": np.nan, "scores_taken": number + 1}
            recorder.take("fitness", slot(records.fitness_dtype(), **given))
            if not place:
                recorder.take("scores", slot(records.score_dtype(), **key, score=own[0][1], score_se=1.0, scored_ns=number))
        if asks:
            recorder.take("latents", slot(records.latent_dtype(2, 2), **key, probe=-1))
    recorder.flush()
    recorder.log.append("end", {"status": "completed", "condition": "blinded"})
    recorder.log.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    make_secret(tmp_path / "secret")
    return tmp_path / "secret"


def told_in(out: Path) -> list[tuple[int, float]]:
    return [(record.candidate, record.fitness) for record in read_log(out / LOG) if isinstance(record, FitnessRecord)]


@pytest.mark.parametrize("asks", [True, False])
def test_logs_of_all_conditions_look_the_same(tmp_path: Path, secret: Path, asks: bool) -> None:
    for name, told in (("one", BRAIN), ("two", SHAM)):
        write(tmp_path / name, told, secret, asks)
        assert told_in(tmp_path / name) == [each for own in told for each in own]
    one, two = ((tmp_path / name / LOG).read_text().splitlines() for name in ("one", "two"))
    assert [KIND.findall(line) for line in one] == [KIND.findall(line) for line in two]
    sealed = [[len(line) for line in lines if '"sealed", ' in line] for lines in (one, two)]
    assert sealed[0] == sealed[1]
    assert len(sealed[0]) == 3
    assert not any('"fitness"' in line for line in (*one, *two))


def test_without_the_secret_nobody_reads_it(tmp_path: Path, secret: Path) -> None:
    write(tmp_path / "out", SHAM, secret)
    secret.unlink()
    session = RecordedSession(tmp_path / "out")
    assert len(session.records(Sealed)) == 3
    assert told_in(tmp_path / "out") == []
    assert session.trials["score"].notna().all()


def test_tables_of_a_sealed_run_hide_what_evolution_was_told_until_it_is_unsealed(tmp_path: Path, secret: Path) -> None:
    out = tmp_path / "out"
    write(out, SHAM, secret)
    session = RecordedSession(out)
    assert session.sealed
    assert session.trials["fitness"].isna().all()
    assert [row["fitness"] for row in session.rows] == list(fitness_of(session)) == [-1.25, 2.0, 0.5]
    assert (session.summary["condition"], session.summary["generations"][0]["mean_fitness"]) == ("blinded", None)
    with LogWriter(out / LOG) as log:
        log.append("unsealed", {"condition": "sham", "secret": secret.read_text().strip(), "by": "N. N.", "why": "the end", "at": "now"})
    secret.unlink()
    session = RecordedSession(out)
    assert not session.sealed
    assert session.trials["fitness"].tolist() == [-1.25, 2.0, 0.5]
    assert session.summary["condition"] == "sham"
    assert session.parts[-1].ended_well


def test_a_sealed_run_is_not_computed_again(tmp_path: Path, secret: Path) -> None:
    write(tmp_path / "out", SHAM, secret)
    config = build({})
    with pytest.raises(DataError, match="the session is sealed"):
        rerun(tmp_path / "out", config, config, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_is_sealed_says_nothing_by_its_length_and_cannot_be_changed(secret: Path) -> None:
    key = load_secret(secret)
    lengths = {len(seal(b"x" * n, key, 100)) for n in (0, 1, 50, 92)}
    assert len(lengths) == 1
    data = seal(b"what drives it", key, 100)
    assert is_sealed(data)
    assert open_sealed(data, key) == b"what drives it"
    with pytest.raises(DataError, match="damaged or sealed with another secret"):
        open_sealed(data[:-1] + bytes([data[-1] ^ 1]), key)
    with pytest.raises(DataError, match="another secret"):
        open_sealed(data, bytes(32))


def test_a_sealed_state_is_as_long_where_volumes_are_kept_as_where_they_are_not(secret: Path) -> None:
    lengths = set()
    for strategy in ("direct", "random"):
        evolver = create(strategy, 100, 10, np.random.default_rng(0))
        evolver.ask(300)
        for number in range(300):
            evolver.shown(0, divmod(number, 10), number, number * math.pi, 3.0)
        for index in range(1500):  # 20 minutes
            evolver.volume(0, 0, records.Projected(index, index * 0.8, math.pi, (math.pi,) * 6, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3))
        lengths.add(len(seal(json.dumps(evolver.to_state()).encode(), load_secret(secret), SERIES_STATE_BYTES)))
    assert len(lengths) == 1


def test_the_state_of_a_sealed_evolution_is_read_through_the_runs_own_settings_or_once_it_is_unsealed_its_log(
    tmp_path: Path, secret: Path
) -> None:
    write(tmp_path / "out", BRAIN, secret)
    (tmp_path / "out" / "evolution.json").write_bytes(seal(b'{"schema": 1}', load_secret(secret), 1024))
    assert evolution_of(tmp_path / "out") == evolution_of(tmp_path / "out" / "evolution.json") == {"schema": 1}
    with LogWriter(tmp_path / "out" / LOG) as log:
        log.append("unsealed", {"condition": "brain", "secret": secret.read_text().strip(), "by": "N. N.", "why": "the end", "at": "now"})
    secret.unlink()
    assert evolution_of(tmp_path / "out") == {"schema": 1}


def test_a_run_after_the_unsealing_goes_on_from_its_copy_of_a_sealed_evolution(tmp_path: Path, secret: Path) -> None:
    out = tmp_path / "later"
    out.mkdir()
    (out / "evolution-before.json").write_bytes(seal(b'{"schema": 1}', load_secret(secret), 1024))
    with LogWriter(out / LOG) as log:
        log.append("start", {"schema": 1, "tr_s": 2.0, "settings": {"evolution": {"sealed": False, "blinding_secret": str(secret)}}})
    assert evolution_of(out / "evolution-before.json") == {"schema": 1}


def test_a_sealed_file_of_scores_is_what_a_yoked_session_is_told(tmp_path: Path, secret: Path) -> None:
    told = np.array([0.5, np.nan, 2.0], "<f8")
    (tmp_path / "scores").write_bytes(seal(told.tobytes(), load_secret(secret), 4096))
    evolution: dict[str, Any] = {"yoked_to": str(tmp_path / "scores"), "blinding_secret": str(secret)}
    config = build({"session": {"condition": "yoked"}, "evolution": evolution})
    course = make_course(config, "yoked", check_space(config, 64))
    assert [course._feedback.take(k, 9.0, 1.0)[0][1] for k in (0, 2)] == [0.5, 2.0]  # type: ignore[attr-defined]


def test_a_sealed_session_needs_a_secret_and_a_key() -> None:
    with pytest.raises(ConfigError, match=r"\[evolution\] sealed: expected condition 'blinded' and a blinding_secret"):
        build({"evolution": {"sealed": True}})
