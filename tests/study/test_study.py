"""A study's file, its sealed arms, its ledger, and what comes next: without a session."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.config import load as load_config
from rtevo.errors import BusyError, ConfigError, DataError, StudyError
from rtevo.record import LogWriter, hold, is_sealed, load_secret, open_sealed
from rtevo.record import load as load_run
from rtevo.session.blinding import read_key
from rtevo.session.course import resolve_condition
from rtevo.study import Study, load
from rtevo.study.__main__ import main, status_lines
from rtevo.study.allocation import KEY, blocks_of, draw, rotated
from rtevo.study.counting import excluded, figures_of, fit_figures, fit_refused
from rtevo.study.file import Exclusion, Fit, example, read
from rtevo.study.ledger import LEDGER, append
from rtevo.study.new import new
from rtevo.study.next import begin, close, following, following_run, waits_for
from rtevo.study.settings import donors
from rtevo.study.start import STARTED, fit_arguments, main_of

ARMS = ("brain", "sham", "yoked")


def write(folder: Path, runs: str = '"loop", "loop"', more: str = "", **design: Any) -> Path:
    """Write a study file and the session file that it names."""
    given = {"name": "faces", "participants": ["01", "02", "03", "04", "05"], "arms": list(ARMS), "probe_every": 4, **design}
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    folder.mkdir(exist_ok=True)
    (folder / "session.toml").write_text("[evolution]\ngenerations = 2\npopulation = 3\n[simulation]\nparticipant_seed = 10\n")
    files = "".join(f'{kind} = "session.toml"\n' for kind in ("loop", "ratings", "localizer"))
    visits = f'[[visits]]\nlabel = "a"\nruns = [{runs}]\n'
    (folder / "study.toml").write_text("\n".join(["[study]", *lines, "[files]", files, more, visits]))
    return folder


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """Return the folder of a study that is drawn and sealed."""
    folder = write(tmp_path / "study")
    assert new(folder) is not None
    return folder


def ran(folder: Path, participant: str, planned: int = 1, status: str = "completed", why: str = "", kind: str = "loop") -> str:
    """Enter a run into the ledger; one with scores for others to be yoked to."""
    study = load(folder)
    run = max((a.run for a in study.attempts if a.participant == participant), default=0) + 1
    name = f"sub-{participant}/ses-a/run-{run:02d}"
    fields = {"participant": participant, "visit": "a", "planned": planned, "run": run, "kind": kind, "folder": name}
    append(folder, "began", **fields)
    (folder / name).mkdir(parents=True)
    with LogWriter(folder / name / "record.jsonl") as log:
        log.append("start", {"schema": 1, "tr_s": 2.0})
        for k in range(6):
            log.append("fitness", {"generation": k // 3, "candidate": k % 3, "fitness": 10.0 * int(participant) + k})
    if status != "begun":
        append(folder, "ended", folder=name, status=status, counts=status == "completed" and not why, excluded=why)
    return name


# --- the file -------------------------------------------------------------------------------------------------------------------------


def test_a_study_begins_with_a_file_to_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", str(tmp_path / "faces")]) == 0
    assert "edit this file" in capsys.readouterr().out
    text = (tmp_path / "faces" / "study.toml").read_text()
    assert text == example("faces")
    (tmp_path / "faces" / "session.toml").touch()
    found = read(tmp_path / "faces" / "study.toml")
    assert (found.study.name, found.study.probe_every, found.visits[0].runs) == ("faces", 6, ("loop",))


def test_the_study_file_of_the_docs_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    for name in ("localizer.toml", "session.toml"):
        (tmp_path / name).touch()
    (tmp_path / "study.toml").write_text(found)
    study = read(tmp_path / "study.toml")
    assert [len(visit.runs) for visit in study.visits] == [5, 2]


def test_all_mistakes_of_a_study_file_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        '[study]\nparticipants = ["01", "01", "ä"]\narms = ["yoked"]\nprobe_every = 1\nmotto = "x"\n[lunch]\n[files]\nloop = "none.toml"\n'
        '[[visits]]\nlabel = "1"\nruns = ["loop", "dance"]\n[[visits]]\nlabel = "1"\nruns = ["ratings", "fit"]\nobjective = "face -"\n'
    )
    with pytest.raises(ConfigError) as raised:
        read(tmp_path / "study.toml")
    told = "\n".join(raised.value.mistakes)
    for said in (
        "study.toml [lunch]: unknown section",
        "study.toml [study] motto: unknown key",
        "study.toml [study] participants: expected labels",
        "study.toml [study] probe_every: expected 0 or >= 2, got 1",
        "study.toml [study] name: expected one, found none",
        "study.toml [study] arms: expected the arm brain too, because yoked uses the scores of a brain participant",
        "study.toml [[visits]] 1 runs: expected some of scout",
        "study.toml [[visits]] label: expected each once, found '1' more than once",
        "study.toml [[visits]] 2 objective: ",
        "study.toml [files] ratings: expected a session file, because visit 1 has such a run, found none",
        "expected a localizer before the first fit",
    ):
        assert said in told, (said, told)


def test_when_a_run_ends_may_not_depend_on_its_arm(tmp_path: Path) -> None:
    folder = write(tmp_path / "study")
    (folder / "session.toml").write_text("[evolution]\nstop_gain = 0.1\n")
    with pytest.raises(ConfigError, match=r"session.toml \[evolution\] stop_gain: expected 0 in a study"):
        new(folder)


def test_a_study_with_a_yoked_arm_cannot_evolve_from_volumes(tmp_path: Path) -> None:
    folder = write(tmp_path / "study")
    (folder / "session.toml").write_text('[evolution]\nstrategy = "direct"\n')
    with pytest.raises(ConfigError, match=r"session.toml \[evolution\] strategy: expected 'surrogate' in a study with the arm yoked"):
        new(folder)


def test_a_session_file_that_cannot_be_used_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    folder = write(tmp_path / "study")
    (folder / "session.toml").write_text("[evolution]\ngenerations = 0\n")
    with pytest.raises(ConfigError, match=r"session.toml \[evolution\] generations: expected >= 1, got 0"):
        new(folder)
    assert {path.name for path in folder.iterdir()} == {"session.toml", "study.toml"}


# --- arms -----------------------------------------------------------------------------------------------------------------------------


def test_a_block_has_each_arm_once_and_nobody_is_yoked_before_there_is_a_partner() -> None:
    people = [f"{k:02d}" for k in range(1, 15)]
    drawn = [draw(people, ARMS, np.random.default_rng(seed)) for seed in range(60)]
    blocks = blocks_of(people, ARMS)
    assert [len(block) for block in blocks] == [2, 3, 3, 3, 3]
    for arms in drawn:
        assert [Counter(arms[who] for who in block) for block in blocks[1:]] == [Counter(ARMS)] * 4
        assert {arms[who] for who in blocks[0]} == {"brain", "sham"}
    places = Counter(arms[who] for arms in drawn for who in blocks[1][:1])
    assert set(places) == set(ARMS)  # within a block any order is drawn
    assert [len(block) for block in blocks_of(people, ("brain", "sham"))] == [2] * 7


def test_orders_are_counterbalanced() -> None:
    orders = rotated(["a", "b", "c"], [str(k) for k in range(9)], np.random.default_rng(1))
    for turn in range(3):
        assert Counter(order[turn] for order in orders.values()) == {"a": 3, "b": 3, "c": 3}
    assert rotated([], ["1"], np.random.default_rng(1)) == {}


def test_arms_are_sealed_in_a_key_that_sessions_read_and_nobody_else(sealed: Path) -> None:
    study = load(sealed)
    codes = read_key(sealed / KEY)
    assert set(codes) == {(who, "a") for who in study.participants}
    assert len({len(code) for code in codes.values()}) == 1
    assert (sealed / "secret").stat().st_mode & 0o077 == 0
    with pytest.raises(StudyError, match="the study is sealed"):
        study.arms()
    for name in (LEDGER, KEY):
        text = (sealed / name).read_text().replace('[\\"brain\\", \\"sham\\", \\"yoked\\"]', "")
        assert not any(arm in text for arm in ARMS), name


def test_a_study_is_read_where_its_session_files_are_gone(sealed: Path) -> None:
    (sealed / "session.toml").unlink()
    study = load(sealed)
    assert study.participants == ["01", "02", "03", "04", "05"]
    assert len(study.table()) == 0


def test_a_study_is_drawn_once(sealed: Path) -> None:
    with pytest.raises(ConfigError, match="the study is sealed already"):
        new(sealed)


@pytest.mark.parametrize("name", ["study.toml", KEY])
def test_what_was_sealed_cannot_change(sealed: Path, name: str) -> None:
    (sealed / name).write_text((sealed / name).read_text() + "\n")
    with pytest.raises(StudyError, match=f"{name}: expected the file sealed on"):
        load(sealed)


def test_unsealing_is_for_good_and_says_who_did_it(sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(sealed, "01")
    assert main(["unseal", "--by", "N. N.", "--why", "the end", "--study", str(sealed)]) == 0
    said, study = capsys.readouterr().out, load(sealed)
    assert said.splitlines() == [f"participant {who}: {arm}" for who, arm in study.arms().items()]
    assert study.ledger[-1]["by"] == "N. N."
    assert not study.ledger[-1]["complete"]
    assert main(["unseal", "--by", "M. M.", "--why", "again", "--study", str(sealed)]) == 0
    assert sum(entry.kind == "unsealed" for entry in load(sealed).ledger) == 1
    assert f"participant 01 ({study.arms()['01']})" in "\n".join(status_lines(load(sealed)))
    assert load(sealed).pairs() == {"01": "block-01", "02": "block-01", "03": "block-02", "04": "block-02", "05": "block-02"}


def test_a_damaged_log_does_not_keep_the_other_runs_sealed(sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"session": {"condition": "blinded"}, "evolution": {"sealed": True, "blinding_secret": str(sealed / "secret")}}
    logs = [sealed / ran(sealed, who) / "record.jsonl" for who in ("01", "02")]
    for log in logs:
        log.unlink()
        with LogWriter(log) as writer:
            writer.append("start", {"schema": 1, "tr_s": 2.0, "condition": "blinded", "settings": settings})
            writer.append("end", {"status": "completed", "condition": "blinded"})
    whole = logs[0].read_bytes()
    logs[0].write_bytes(whole.replace(b"blinded", b"blinked", 1))
    arguments = ["unseal", "--by", "N. N.", "--why", "the end", "--study", str(sealed)]
    assert main(arguments) == 2
    assert "the study is unsealed, 1 of its runs are not: repair their logs" in capsys.readouterr().err
    assert load_run(logs[1].parent).summary["condition"] == load(sealed).arms()["02"]
    logs[0].write_bytes(whole)
    (logs[1].parent / "summary.json").unlink()  # as if it had been cut short there
    assert main(arguments) == 0
    for log, who in zip(logs, ("01", "02"), strict=True):
        assert json.loads((log.parent / "summary.json").read_text())["condition"] == load(sealed).arms()[who]


# --- what comes next ------------------------------------------------------------------------------------------------------------------


def test_a_run_begins_with_everything_filled_in(sealed: Path) -> None:
    study = load(sealed)
    planned = study.following("02")
    assert planned is not None
    attempt, (file,) = begin(study, planned)
    assert (attempt.folder, file) == ("sub-02/ses-a/run-01", str(sealed / "sub-02/ses-a/run-01.toml"))
    config = load_config(Path(file))
    session, evolution = config.session, config.evolution
    assert (session.participant, session.session, session.run, session.condition) == ("02", "a", 1, "blinded")
    assert (evolution.sealed, evolution.probe_every, evolution.continue_from) == (True, 4, "")
    assert (evolution.generations, config.simulation.participant_seed) == (2, 11)
    assert config.record.out == str(sealed / "sub-02/ses-a/run-01")
    assert resolve_condition(config) in ("brain", "sham")
    assert load(sealed).attempts[0].status == "begun"


def test_runs_of_a_participant_go_on_from_each_other_and_probes_are_the_same_pictures(sealed: Path) -> None:
    first = ran(sealed, "01")
    study = load(sealed)
    planned = study.following("01")
    assert planned is not None
    one, other = (load_config(Path(begin(study, each)[1][0])) for each in (planned, replace(planned, participant="02", number=1)))
    assert one.evolution.continue_from == str(sealed / first)
    assert one.session.seed != other.session.seed
    assert one.generator.noise_seed == other.generator.noise_seed > 0


def test_the_scanner_is_asked_for_the_participant_unless_somebody_signs(tmp_path: Path) -> None:
    more = '[identity]\npatient_id = "FACES_{participant}*"\nstudy_date = "today"\nanonymous = "refuse"\n'
    folder = write(tmp_path / "study", more=more, arms=["brain", "sham"])
    new(folder)
    planned = load(folder).planned("02")[0]
    asked = load_config(Path(begin(load(folder), planned)[1][0])).acquisition
    assert (asked.patient_id, asked.study_date, asked.anonymous) == ("FACES_02*", "today", "refuse")
    assert main(["override", "02", "--what", "identity", "--by", "N. N.", "--why", "registered as 20", "--study", str(folder)]) == 0
    asked = load_config(Path(begin(load(folder), planned)[1][0])).acquisition
    assert (asked.patient_id, asked.study_date) == ("", "")


def test_objectives_take_turns_and_evolution_goes_on_within_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "study", runs='"loop"', arms=["brain", "sham"], participants=["01", "02"], counterbalance=["face", "place"])
    (folder / "maps").mkdir()
    visits = "".join(f'[[visits]]\nlabel = "{label}"\nruns = ["loop"]\ndecoder = "maps"\n' for label in "abc")
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(text[: text.index("[[visits]]")] + visits)
    new(folder)
    first = {}
    for who in ("01", "02"):
        study = load(folder)
        goals = [study.objective(who, planned.visit) for planned in study.planned(who)]
        assert goals in (["face", "place", "face"], ["place", "face", "place"])
        first[who] = goals[0]
        one = ran(folder, who)
        configs = [load_config(Path(begin(load(folder), planned)[1][0])) for planned in load(folder).planned(who)[1:]]
        assert [config.decoder.objective for config in configs] == goals[1:]
        assert [config.evolution.continue_from for config in configs] == ["", str(folder / one)]
        assert configs[0].decoder.folder == str(folder / "maps")
    assert set(first.values()) == {"face", "place"}


def test_everybody_waits_for_the_earlier_blocks_alike_and_gets_a_file_of_scores_of_one_length(sealed: Path) -> None:
    for who in ("03", "04", "05"):
        planned = load(sealed).following(who)
        assert planned is not None
        assert waits_for(load(sealed), planned) == ["01", "02"]
        with pytest.raises(StudyError, match="waits until this run of earlier participants is over: 01, 02"):
            begin(load(sealed), planned)
    for who in ("01", "02"):
        ran(sealed, who)
    secret, told, sizes = load_secret(sealed / "secret"), {}, set()
    arms = load(sealed).concealed_arms()
    for who in ("03", "04", "05"):
        study = load(sealed)
        planned = study.following(who)
        assert planned is not None
        begin(study, planned)
        data = (sealed / f"sub-{who}/ses-a/run-01.scores").read_bytes()
        assert is_sealed(data)
        sizes.add(len(data))
        told[who] = np.frombuffer(open_sealed(data, secret), "<f8")
        (partner,) = donors(study, planned)
        assert arms[partner.parents[1].name[4:]] == "brain"
    assert len(sizes) == 1
    files = [load_config(sealed / f"sub-{who}/ses-a/run-01.toml") for who in ("03", "04", "05")]
    assert all(config.evolution.yoked_to.endswith("run-01.scores") for config in files)
    brain = next(who for who in ("01", "02") if arms[who] == "brain")
    for who, own in told.items():
        if arms[who] == "yoked":
            assert own[:6].tolist() == [10.0 * int(brain) + k for k in range(6)]
            assert np.isnan(own[6:]).all()
        else:
            assert np.isnan(own).all()


def test_who_has_left_is_not_waited_for(sealed: Path) -> None:
    ran(sealed, "02")
    signed = ["override", "01", "--what", "left", "--by", "N. N.", "--why", "claustrophobia", "--study", str(sealed)]
    assert main(signed) == 0
    study = load(sealed)
    planned = study.following("03")
    assert planned is not None
    assert waits_for(study, planned) == []
    assert study.following("01") is None
    assert study.ledger[-1]["why"] == "claustrophobia"


def test_what_was_interrupted_is_asked_about_and_what_was_excluded_is_not(sealed: Path) -> None:
    ran(sealed, "01", why="mean framewise displacement 0.9 mm, the study file permits at most 0.5")
    study = load(sealed)
    planned = study.following("01")
    assert planned is not None
    assert planned.number == 2
    name = ran(sealed, "01", planned=2, status="stopped", why="it is stopped")
    following_now = load(sealed).following("01")
    assert following_now is not None
    assert following_now.number == 2
    asked: list[str] = []

    def on(_: object, attempt: Any) -> str:
        asked.append(attempt.folder)
        return "on"

    with pytest.raises(StudyError, match="participant 01 has done all runs"):
        following_run(sealed, "01", None, on, print)
    assert asked == [name]
    assert [run.counts for run in load(sealed).runs] == [False, False]
    assert "passed over" in "\n".join(status_lines(load(sealed)))


def test_a_repetition_has_a_number_of_its_own_and_the_first_one_that_counts_is_enough(sealed: Path) -> None:
    ran(sealed, "01", status="failed", why="it is failed")
    study = load(sealed)
    planned = study.following("01")
    assert planned is not None
    attempt, _ = begin(study, planned)
    assert (attempt.planned, attempt.run, attempt.folder) == (1, 3, "sub-01/ses-a/run-03")
    append(sealed, "ended", folder=attempt.folder, status="completed", counts=True, excluded="")
    coming = load(sealed).following("01")
    assert coming is not None
    assert coming.number == 2
    assert [(run.run, run.planned, run.counts, run.excluded) for run in load(sealed).runs] == [
        (1, 1, False, "it is failed"),
        (3, 1, True, ""),
    ]


def test_of_a_run_that_was_repeated_the_last_that_meets_the_rules_counts(sealed: Path) -> None:
    first = ran(sealed, "01")
    second = ran(sealed, "01", planned=2)
    again = ran(sealed, "01")
    ran(sealed, "01", status="stopped", why="it is stopped")
    runs = [(run.counts, run.excluded) for run in load(sealed).runs]
    assert runs == [(False, f"it was repeated: {again}"), (True, ""), (True, ""), (False, "it is stopped")]
    study = load(sealed)
    files = [load_config(Path(begin(study, planned)[1][0])) for planned in study.planned("01")]
    assert [config.evolution.continue_from for config in files] == ["", str(sealed / again)]  # never from a later one
    assert len({first, second, again}) == 3


def test_a_folder_that_was_left_without_a_log_is_not_used_again(sealed: Path) -> None:
    study = load(sealed)
    planned = study.following("01")
    assert planned is not None
    first, _ = begin(study, planned)
    (sealed / first.folder).mkdir()  # killed before anything was recorded
    close(load(sealed), first)
    assert load(sealed).runs == []
    attempt, _ = begin(load(sealed), planned)
    assert (attempt.planned, attempt.run) == (1, 3)


def test_two_cannot_start_the_same_participants_run(sealed: Path) -> None:
    (sealed / "sub-01").mkdir()
    with hold(sealed / "sub-01"), pytest.raises(BusyError, match="still running"):
        following_run(sealed, "01", None, lambda *_: "again", print)
    assert load(sealed).attempts == []


def test_somebody_can_sign_for_a_run_that_the_rules_exclude(sealed: Path) -> None:
    ran(sealed, "01", why="share of spikes 0.3, the study file permits at most 0.2")
    assert main(["override", "01", "--what", "counts", "--by", "N. N.", "--why", "the coil was loose", "--study", str(sealed)]) == 0
    assert [(run.counts, run.excluded) for run in load(sealed).runs] == [(True, "")]


def test_in_one_sitting_the_next_run_of_the_visit_follows(sealed: Path) -> None:
    study = load(sealed)
    planned = study.following("01")
    assert planned is not None
    attempt, _ = begin(study, planned)
    out = sealed / attempt.folder
    out.mkdir()
    with LogWriter(out / "record.jsonl") as log:
        log.append("start", {"schema": 1, "tr_s": 2.0})
        log.append("end", {"status": "stopped"})
    choose = following(sealed, "01")
    summary = load_run(out).summary
    again = choose(out, summary, "again")
    assert again is not None
    assert again.session.run == 3
    assert again.decoder.continue_from == ""
    (out / "decoder-state").mkdir()
    config = choose(out, summary, "next")  # the second attempt could not be prepared, and the operator was asked again
    assert config is not None
    assert config.session.run == 2
    assert config.decoder.continue_from == ""  # a run without a decoder's folder makes its own
    (attempt, _) = load(sealed).attempts
    assert attempt.excluded.startswith("it was stopped")
    assert choose(out, summary, "end") is None


def test_the_current_folder_or_one_above_it_is_the_study(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sealed / "sub-01" / "ses-a").mkdir(parents=True)
    monkeypatch.chdir(sealed / "sub-01" / "ses-a")
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("faces: sealed, drawn on ")
    monkeypatch.chdir(sealed.parent)
    assert main(["status"]) == 2
    assert "name it with --study" in capsys.readouterr().err
    assert main(["next", "09", "--study", str(sealed)]) == 2
    assert "participant '09': expected one of the study's: 01, 02" in capsys.readouterr().err


def test_every_kind_of_run_is_started_by_a_command() -> None:
    assert set(STARTED) == {"scout", "localizer", "fit", "loop", "ratings"}
    for started in STARTED.values():
        assert main_of(started.module)(["--help"]) == 0


# --- what counts ----------------------------------------------------------------------------------------------------------------------


def summary(fd: float | None = 0.1, spikes: int = 0, lost: int = 0, reliability: float | None = 0.5) -> dict[str, Any]:
    volumes = {"received": 100 - lost, "aligned": 100 - lost, "lost": lost, "unaligned": 0}
    return {"volumes": volumes, "quality": {"framewise_displacement_mm": {"mean": fd}, "spikes": spikes, "score_reliability": reliability}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (summary(), ""),
        (summary(fd=0.62), "mean framewise displacement 0.62 mm, the study file permits at most 0.5"),
        (summary(fd=None), "framewise_displacement_mm is not known, the study file permits at most 0.5"),
        (summary(spikes=25), "share of spikes 0.25, the study file permits at most 0.2"),
        (summary(lost=11), "share of volumes lost 0.11, the study file permits at most 0.1"),
        (summary(reliability=0.1), "reliability 0.1, the study file requires 0.2"),
        (
            summary(fd=2.0, reliability=None),
            "mean framewise displacement 2 mm, the study file permits at most 0.5; reliability is not known, the study file requires 0.2",
        ),
    ],
)
def test_a_run_counts_by_rules_that_were_fixed_beforehand(found: dict[str, Any], said: str) -> None:
    assert excluded(Exclusion(reliability=0.2), figures_of(found), "loop") == said


def test_a_localizer_has_no_reliability_and_a_rule_of_0_is_none() -> None:
    figures = figures_of(summary(fd=2.0, reliability=None))
    assert excluded(Exclusion(framewise_displacement_mm=0.0, reliability=0.2), figures, "localizer") == ""


def test_a_fit_passes_by_its_held_out_blocks(tmp_path: Path) -> None:
    from rtevo.decode.folder import write_decoder

    grid, mask = np.eye(4), np.ones((3, 3, 3), bool)
    decisions = [[-1.0, 0.1], [1.0, 0.9], [-1.0, 0.2], [1.0, 0.8]]
    performance = {"value": 0.85, "decisions": [[score, shown] for shown, score in decisions]}
    weights = np.arange(27.0).reshape(3, 3, 3)
    write_decoder(tmp_path / "d", "face", np.ones((3, 3, 3)), mask, weights, grid, {"performance": performance})
    figures = fit_figures(tmp_path / "d")
    assert figures["auc"] == 0.85
    assert figures["reliability"] == pytest.approx(0.98, abs=0.02)
    assert fit_refused(Fit(auc=0.8, reliability=0.9), figures) == ""
    assert fit_refused(Fit(auc=0.9), figures) == "auc 0.85, the study file requires 0.9"
    assert fit_refused(Fit(), fit_figures(tmp_path)) == "auc is not known, the study file requires 0.7"


def test_a_fit_that_was_killed_is_no_decoder_whatever_it_has_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "study", runs='"localizer", "fit", "loop"', more="[fit]\nauc = 0.0\n")
    new(folder)
    ran(folder, "01", kind="localizer")
    attempt, _ = begin(load(folder), load(folder).planned("01")[1])
    (folder / attempt.folder).mkdir()
    assert main(["next", "01", "--study", str(folder)]) == 2
    assert f"{attempt.folder} did not complete (failed): choose what to do (--again: repeat it;" in capsys.readouterr().err
    assert load(folder).attempts[-1].counts is False


def test_loops_wait_for_a_fit_that_passed_or_for_a_signature(tmp_path: Path) -> None:
    more = '[fit]\ntarget = "face - object"\n'
    folder = write(tmp_path / "study", runs='"localizer", "fit", "loop"', more=more, arms=["brain", "sham"])
    new(folder)
    fit = load(folder).planned("01")[1]
    with pytest.raises(StudyError, match="expected a counting localizer of the participant"):
        fit_arguments(load(folder), fit, folder / "d")
    localizer = ran(folder, "01", kind="localizer")
    wanted = ["fit", str(folder / localizer), "--target", "face - object", "--out", str(folder / "d")]
    assert fit_arguments(load(folder), fit, folder / "d") == wanted
    attempt, _ = begin(load(folder), fit)
    (folder / attempt.folder).mkdir()
    ended = close(load(folder), attempt)
    assert (ended.status, ended.counts) == ("completed", False)
    loop = load(folder).following("01")
    assert loop is not None
    assert loop.kind == "loop"
    with pytest.raises(StudyError, match=r"expected a fit that has passed in visit a, found none: auc is not known"):
        begin(load(folder), loop)
    assert main(["override", "01", "--what", "fit", "--by", "N. N.", "--why", "few blocks", "--study", str(folder)]) == 0
    config = load_config(Path(begin(load(folder), loop)[1][0]))
    assert config.decoder.folder == str(folder / attempt.folder)


def test_a_localizer_that_was_broken_off_is_repeated_and_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "study", runs='"localizer", "loop"')
    new(folder)
    ran(folder, "01", kind="localizer", status="stopped", why="it was stopped")
    before = (folder / LEDGER).read_bytes()
    for choice in ([], ["--resume"]):
        assert main(["next", "01", *choice, "--study", str(folder)]) == 2
        assert "choose what to do (--again: repeat it; --on: continue without it)" in capsys.readouterr().err
    assert (folder / LEDGER).read_bytes() == before


def test_session_files_of_a_scanner_need_no_decoder_before_the_fit_and_none_after_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "study", runs='"scout", "localizer", "fit", "loop"', arms=["brain"])
    scanner = '[acquisition]\nsource = "watch"\nfolder = "."\ntr_s = 2.0\n[decoder]\nname = "face"\n[localizer]\nfolder = "."\n'
    (folder / "session.toml").write_text(scanner)
    text = (folder / "study.toml").read_text().replace("[files]", '[files]\nscout = "session.toml"')
    (folder / "study.toml").write_text(text + '[[visits]]\nlabel = "b"\nruns = ["localizer", "loop"]\n')
    new(folder)
    for planned in load(folder).planned("01")[:2]:
        _, (file,) = begin(load(folder), planned)
        assert load_config(Path(file)).session.task == "localizer"


def test_a_damaged_ledger_is_named(sealed: Path) -> None:
    ran(sealed, "01")
    lines = (sealed / LEDGER).read_text().splitlines(keepends=True)
    (sealed / LEDGER).write_text("".join([lines[0], lines[1].replace("loop", "lope"), *lines[2:]]))
    with pytest.raises(DataError, match=r"study.jsonl line 2: damaged"):
        Study(sealed)
