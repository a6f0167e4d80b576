"""A recorded session is read one way, by every version: three of 0.1 load, report, export and are computed again."""

from __future__ import annotations

import csv
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtevo
from rtevo import record, records
from rtevo.config import Config
from rtevo.decode import Decoder
from rtevo.errors import BusyError, DataError
from rtevo.export import export
from rtevo.record import (
    LOG,
    MOTION,
    SCHEMA,
    TRIALS,
    AlignedRecord,
    EventRecord,
    LogFollower,
    LogWriter,
    Notice,
    Other,
    RecordedSession,
    Recorder,
    ScoreRecord,
    VolumeRecord,
    finalise,
    hold,
    parts,
    read_log,
    record_of,
    volume_path,
)
from rtevo.record.kinds import KINDS
from rtevo.record.log import typed
from rtevo.records import MOTION_COLUMNS, EventKind, RunClock, VolumeFlag
from rtevo.report import gather, page
from rtevo.run import main

RECORDED = Path(__file__).parent / "data" / "recorded-0.1"
SESSIONS = ("completed", "interrupted", "two-parts")
S = 1_000_000_000
Copy = Callable[[str], Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Return a function that copies a recorded session to where it may be changed; what it names is found there."""

    def make(name: str) -> Path:
        out = tmp_path / name
        shutil.copytree(RECORDED / name, out)
        shutil.copy(RECORDED / "key.tsv", tmp_path)
        file = out / "session.toml"
        file.write_text(file.read_text().replace("/tmp/recorded", str(tmp_path)))
        return out

    return make


# --- sessions of 0.1 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_of_0_1_loads(name: str) -> None:
    session = rtevo.load(RECORDED / name)
    assert (session.damage, session.start.schema, session.versions) == ("", 0, ["0.1.0"])
    assert len(session.parts) == 1 + (name == "two-parts")
    assert session.status == ("unfinished" if name == "interrupted" else "completed")
    assert session.missing == []
    assert [part.clock.first_volume for part in session.parts] == [0, 7][: len(session.parts)]
    assert len(session.motion) == len(session.records(VolumeRecord))
    assert session.latents.shape == (len(session.trials), 4)
    assert np.isfinite(session.latents).all()
    assert session.embeddings.shape == session.post_embeddings.shape
    assert len(session.images) == len(session.trials)
    assert next(iter(session.images.values())).size == (64, 64)
    assert isinstance(session.decoder, Decoder)
    assert session.grid is not None
    assert session.grid.shape == session.decoder.grid.shape
    assert repr(session).count("\n") == 2
    assert [event.text for event in session.events(EventKind.READY)][:1] == ["presenter ready: headless"]


@pytest.mark.parametrize("name", ["completed", "two-parts"])
def test_its_tables_are_what_0_1_wrote_byte_for_byte(copy: Copy, name: str) -> None:
    out = copy(name)
    summary = finalise(out)
    for table in ("trials.tsv", "motion.tsv", "latents.npz", "summary.json"):
        assert (out / table).read_bytes() == (RECORDED / name / table).read_bytes(), table
    assert summary == RecordedSession(out).summary == json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("name", SESSIONS)
def test_it_has_a_report_and_an_export(copy: Copy, name: str) -> None:
    out = copy(name)
    session = gather(out)
    assert session.presenter == "headless"
    assert len(session.trials) == 6 + 3 * (name == "completed")
    assert set(session.settings["evolution"]) == {field.name for field in fields(Config().evolution)}  # by today's names
    assert "Acquisition." in page(session)
    bold = export(out, out.parent / "bids")
    assert "MissingVolumes" not in json.loads(bold.with_name(bold.name.replace(".nii.gz", ".json")).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", SESSIONS)
def test_it_is_computed_again_as_a_comparison(copy: Copy, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Motion is the same; decoding has changed on purpose since: the same images have scores, that agree."""
    out = copy(name)
    assert main(["--rerun", str(out), "--out", str(out.parent / "again")]) == 0
    told = capsys.readouterr().out
    assert f"recorded by rtevo 0.1.0, computed by {rtevo.__version__}: a comparison, not a bit-for-bit repetition" in told
    result = json.loads((out.parent / "again" / "rerun.json").read_text())
    assert result["rtevo"] == {"recorded": ["0.1.0"], "now": rtevo.__version__}
    recorded, computed = RecordedSession(out), RecordedSession(out.parent / "again")
    np.testing.assert_allclose(computed.motion[[*MOTION_COLUMNS]], recorded.motion[[*MOTION_COLUMNS]], atol=1e-4)
    before, again = recorded.trials["score"], computed.trials["score"]
    np.testing.assert_array_equal(again.isna(), before.isna())
    if before.count() > 2:  # of two images there is a sign only
        assert before.corr(again) > 0.9
        assert np.abs(again - before).max() < 0.6 * before.std()


def test_a_session_of_another_version_is_not_resumed(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    out = copy("interrupted")
    assert main(["--resume", str(out)]) == 2
    assert f"rtevo 0.1.0 recorded the session, this is rtevo {rtevo.__version__}" in capsys.readouterr().err


# --- volumes that were not saved -------------------------------------------------------------------------------------------------------


def without(out: Path, index: int, how: str) -> None:
    """Lose a volume: its file, and what the log says of it."""
    volume_path(out, index).unlink()
    log = read_log(out / LOG)
    (out / LOG).unlink()
    with LogWriter(out / LOG) as new:
        for each in log:
            mine = isinstance(each, VolumeRecord) and each.index == index
            if mine and how == "not saved":
                new.append(each.type, {**each.fields(), "saved": False}, each.clock_ns)
            elif mine:
                new.append("lost", {"line": each.seq + 1, "text": "a line is damaged"})
            else:
                new.add(each)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["not saved", "lost"])
def test_a_volume_that_was_not_saved_counts_as_missing_when_a_session_is_computed_again(
    copy: Copy, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy("completed")
    without(out, 5, how)
    assert RecordedSession(out).missing == [5]
    assert main(["--rerun", str(out), "--out", str(out.parent / "again")]) == 0
    assert capsys.readouterr().err.count("1 volumes were not saved and count as missing for the decoder: 5") == 1
    motion = RecordedSession(out.parent / "again").motion
    assert motion["volume"].tolist() == list(range(16))
    assert [k for k, flags in enumerate(motion["flags"]) if flags & VolumeFlag.MISSING] == [5]


def test_a_volume_that_was_not_saved_does_not_keep_a_session_from_going_on(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtevo.past import resume

    out = copy("interrupted")
    without(out, 3, "not saved")
    monkeypatch.setattr(resume, "_check_unchanged", lambda *_: None)  # its session file names another place
    monkeypatch.setattr(resume, "__version__", "0.1.0")
    plan, words = resume.resume(out)
    assert plan.first_volume == 7
    assert words.endswith("; 1 volumes were not saved and count as missing for the decoder: 3")
    volume_path(out, 4).unlink()  # of which the log knows nothing
    with pytest.raises(rtevo.errors.ConfigError, match="1 of 7 volumes are missing"):
        resume.resume(out)


def test_a_volume_that_cannot_be_saved_is_recorded_as_such(tmp_path: Path) -> None:
    (tmp_path / "volumes").touch()  # no folder can be made of that name
    recorder = Recorder(tmp_path, save_raw=True)
    slot = np.zeros((), records.volume_dtype(8))
    records.put_volume(slot, np.ones((2, 2, 2)), records.Grid((2, 2, 2), np.eye(4)))
    with recorder.log:
        recorder.take("volumes", slot[()])
    assert [r.saved for r in RecordedSession(tmp_path).records(VolumeRecord)] == [False]
    assert len(recorder.problems) == 1
    assert "the volume could not be saved" in recorder.problems[0]


# --- the session as a user sees it ------------------------------------------------------------------------------------------------------


def test_frames_have_the_columns_that_are_documented() -> None:
    session = rtevo.load(RECORDED / "two-parts")
    known = [name for name in TRIALS if name not in ("physiology", "refused", "taken_away")]
    assert list(session.trials.columns) == [*known, "x0", "x1", "x2", "x3"]
    assert list(session.motion.columns) == list(MOTION)
    for table, columns in ((session.trials, TRIALS), (session.motion, MOTION)):
        assert {name: str(table[name].dtype) for name in columns if name in table} == {n: k for n, (k, _) in columns.items() if n in table}
    assert session.trials["probe"].isna().all()
    assert session.motion["part"].tolist() == [0] * 7 + [1] * 7


def test_frames_are_the_tables(copy: Copy) -> None:
    session = RecordedSession(copy("completed"))
    session.save()
    for table, name in ((session.trials, "trials.tsv"), (session.motion, "motion.tsv")):
        with (session.out / name).open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file, delimiter="\t"))
        for column in table:
            assert [float("nan") if row[column] == "n/a" else float(row[column]) for row in read] == pytest.approx(
                table[column].astype("float64").tolist(), rel=0, abs=0, nan_ok=True
            )


def test_pictures_are_read_when_they_are_asked_for(copy: Copy) -> None:
    session = RecordedSession(copy("completed"))
    shutil.rmtree(session.out / "images" / "generation-01")
    assert session.images[0, 1].mode == "RGB"
    assert (1, 0) in session.images
    with pytest.raises(KeyError):
        session.images[7, 7]
    with pytest.raises(FileNotFoundError):
        session.images[1, 0]


def test_its_settings_are_those_of_the_session_file(copy: Copy) -> None:
    session = RecordedSession(copy("two-parts"))
    assert isinstance(session.config, Config)
    assert session.config.session.condition == session.settings["session"]["condition"] == "blinded"


@pytest.mark.parametrize("piece", [b"", b'deadbeef {"seq": 99'])
def test_a_damaged_log_loads_up_to_the_damage_and_says_so(copy: Copy, piece: bytes) -> None:
    out = copy("completed")
    lines = (out / LOG).read_bytes().splitlines(keepends=True)
    (out / LOG).write_bytes(b"".join([*lines[:40], lines[40][:-9] + b"\n", *lines[41:]]) + piece)
    with pytest.warns(UserWarning, match="line 41: damaged"):
        session = rtevo.load(out)
    assert len(session.log) == 40
    assert "LOG DAMAGED" in repr(session)
    assert "line 41: damaged" in session.damage
    assert len(session.trials)
    with pytest.raises(DataError, match="line 41: damaged"):
        RecordedSession(out)


def test_a_half_written_log_is_whole_but_for_its_last_record(copy: Copy) -> None:
    out = copy("interrupted")
    (out / LOG).write_bytes((out / LOG).read_bytes()[:-20])
    session = rtevo.load(out)
    assert (session.damage, len(session.log), session.status) == ("", 44, "unfinished")


def test_importing_rtevo_imports_nothing_heavy() -> None:
    code = "import sys, rtevo; rtevo.load; print(sorted({'numpy', 'pandas', 'torch', 'rtevo.record'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_whoever_holds_a_session_is_an_exception_of_its_own(tmp_path: Path) -> None:
    with LogWriter(tmp_path / LOG), hold(tmp_path):
        for busy in (lambda: LogWriter(tmp_path / LOG), lambda: hold(tmp_path).__enter__()):
            with pytest.raises(BusyError):
                busy()


# --- the log's schema --------------------------------------------------------------------------------------------------------------------

SLOTS: dict[str, tuple[np.dtype[Any], set[str], set[str]]] = {  # slot; what is in a file instead, or is the record's kind; what is added
    "volumes": (records.volume_dtype(8), {"data", "shape", "affine"}, {"saved"}),
    "aligned": (records.aligned_dtype(physio=3), set(), set()),
    "physiology": (records.physiology_dtype(), {"count"}, set()),
    "placements": (records.placement_dtype(), set(), set()),
    "scores": (records.score_dtype(2, 1), set(), set()),
    "fitness": (records.fitness_dtype(), set(), set()),
    "latents": (records.latent_dtype(3, 4), set(), set()),
    "images": (records.image_dtype(4, 4, 3), {"pixels"}, set()),
    "series": (records.series_dtype(), set(), set()),
    "refused": (records.image_dtype(4, 4, 3), {"pixels"}, set()),
    "events": (records.event_dtype(), set(), set()),
    "warning": (records.message_dtype(), {"kind"}, {"level"}),
}
COMMON = {"seq", "clock_ns", "more"}


@pytest.mark.parametrize("ring", SLOTS)
def test_records_of_a_ring_have_the_fields_of_its_slot(ring: str) -> None:
    slot, elsewhere, added = SLOTS[ring]
    assert {field.name for field in fields(KINDS[ring])} - COMMON == set(slot.names or ()) - elsewhere | added


@pytest.mark.parametrize("kind", sorted({*KINDS.values(), Other, record.Record} - {KINDS[r] for r in SLOTS}, key=lambda k: k.__name__))
def test_the_fields_of_the_others_are_documented(kind: type[record.Record]) -> None:
    text = inspect.getdoc(kind) or ""
    named = {name.strip() for line in re.findall(r"^([a-z][\w, ]*) : ", text, re.M) for name in line.split(",")}
    own = {field.name for field in fields(kind)} - (COMMON if kind is not record.Record else set())
    assert named == own


def test_what_this_version_does_not_know_is_kept_and_passed_over(tmp_path: Path) -> None:
    """A kind of record, and a field: both survive being written again, as a session that is computed again writes them."""
    with LogWriter(tmp_path / LOG) as log:
        log.append("start", {"schema": SCHEMA, "tr_s": 2.0, "rtevo": "9", "run": {"of": 3}})
        log.append("verdict", {"type_of_gate": "image", "level": 3, "name": "x", "more": [1]}, 7)
        log.append("events", {"kind": int(EventKind.TRIGGER), "t_ns": 5, "gaze": [0.5, None]})
        log.append("events", {"kind": 999, "t_ns": 6})
    again = tmp_path / "again"
    again.mkdir()
    with LogWriter(again / LOG) as log:
        for each in read_log(tmp_path / LOG):
            log.add(each)
    start, verdict, event, unknown = read_log(again / LOG)
    assert (start.more, event.more, unknown.more) == ({"run": {"of": 3}}, {"gaze": [0.5, None]}, None)
    assert isinstance(verdict, Other)
    assert (verdict.type, verdict.clock_ns, verdict.more) == ("verdict", 7, {"type_of_gate": "image", "level": 3, "name": "x", "more": [1]})
    assert len(finalise(again)["generations"]) == 0


@pytest.mark.parametrize("name", SESSIONS)
def test_a_record_that_is_written_again_holds_what_it_held(name: str, tmp_path: Path) -> None:
    with LogWriter(tmp_path / LOG) as log:
        for each in read_log(RECORDED / name / LOG):
            log.add(each)
    for old, new in zip((RECORDED / name / LOG).read_bytes().splitlines(), (tmp_path / LOG).read_bytes().splitlines(), strict=True):
        before, after = (json.loads(line.split(b" ", 1)[1]) for line in (old, new))
        assert repr({k: after[k] for k in before}) == repr({**before, "kind": after["kind"]} if "kind" in before else before)
        assert set(after) - set(before) <= {"schema"}


def test_a_log_of_a_later_schema_is_refused_with_its_version(tmp_path: Path) -> None:
    with LogWriter(tmp_path / LOG) as log:
        log.append("start", {"schema": SCHEMA + 1, "tr_s": 2.0, "rtevo": "9.1"})
    with pytest.raises(DataError, match=f"expected a log of schema {SCHEMA} or less, found {SCHEMA + 1}: rtevo 9.1 recorded it"):
        rtevo.load(tmp_path)


NOTES_OF_0_1 = {
    "presenter ready: psychopy, 60.000 Hz": EventKind.READY,
    "another presenter waits: a (headless); the session stays with b (psychopy)": EventKind.WAITS,
    "the other presenter waits no longer: a (headless)": EventKind.LEFT,
    "presenter silent for 2.1 s: waiting for it": EventKind.SILENT,
    "presenter answers again after 4.0 s": EventKind.BACK,
    "a presenter has been started anew: the session goes on with it": EventKind.BACK,
    "the operator lets another presenter in: a (headless) has taken over": EventKind.REPLACED,
    "stimulus PC: the screen is slow": EventKind.NOTE,
}


def test_notes_of_0_1_get_their_kinds_where_they_are_read_and_no_others_do(tmp_path: Path) -> None:
    lines = [{"type": "events", "kind": int(EventKind.NOTE), "text": text} for text in NOTES_OF_0_1]
    for start, expected in (({}, list(NOTES_OF_0_1.values())), ({"schema": 1}, [EventKind.NOTE] * len(lines))):
        found = [r.kind for r in typed([{"type": "start", **start}, *lines]) if isinstance(r, EventRecord)]
        assert found == expected
        with LogWriter(tmp_path / f"log-{len(start)}") as log:
            log.append("start", start)
            for line in lines:
                log.append("events", {k: v for k, v in line.items() if k != "type"})
        follower = LogFollower(tmp_path / f"log-{len(start)}")
        assert [r.kind for r in follower.new() if isinstance(r, EventRecord)] == expected


# --- the clock of a run -----------------------------------------------------------------------------------------------------------------


def test_seconds_count_from_the_sessions_first_volume() -> None:
    first = RunClock(2.0)
    assert np.isnan(first.seconds(5 * S))
    assert first.triggered(3 * S).seconds(5 * S) == 2.0
    second = RunClock(2.0, 10)
    assert (second.begins_s, second.triggered(3 * S).seconds(5 * S), second.triggered(3 * S).since_trigger_s(5 * S)) == (20.0, 22.0, 2.0)
    assert first.triggered(3 * S).triggered(1 * S).seconds(5 * S) == 4.0  # a start that was corrected


def event(kind: EventKind, t_s: float, candidate: int = -1, **more: Any) -> dict[str, Any]:
    key = {"generation": min(candidate, 0), "candidate": candidate}
    return {"type": "events", "kind": int(kind), "t_ns": round(t_s * S), **key, **more}


def corrected(tmp_path: Path) -> Path:
    """A run whose start was corrected from 3 s to 1 s, with an image, a hold and a mark."""
    with LogWriter(tmp_path / LOG) as log:
        log.append("start", {"schema": 1, "tr_s": 2.0, "rtevo": "9"})
        log.append("grid", {"shape": [2, 2, 2], "affine": np.eye(4).tolist()})
        found = [event(EventKind.TRIGGER, 3), event(EventKind.TRIGGER, 1), event(EventKind.ONSET, 9, 0), event(EventKind.OFFSET, 12, 0)]
        found += [event(EventKind.FIXATION, 13), event(EventKind.ONSET, 15, 1)]
        found += [{"type": "operator", "action": "mark", "text": "", "t_ns": 11 * S}]
        found += [{"type": "volumes", "index": k} for k in range(9)]
        for each in found:
            log.append(each.pop("type"), each)
    return tmp_path


def test_everybody_counts_from_a_start_that_was_corrected(tmp_path: Path) -> None:
    from rtevo.console.view import View
    from rtevo.export import _marks, _Run

    session = RecordedSession(corrected(tmp_path))
    assert session.trials["onset"].tolist() == [8.0, 14.0]
    assert record.held(session.parts) == [12.0]
    assert session.grid is not None
    assert [mark["onset"] for mark in _marks(_Run(session, tmp_path, {}, session.grid))] == [10.0]
    view = View(Config(), 2.0)
    for each in session.log:
        view.take(each)
    assert view.run.seconds(11 * S) == session.clock.seconds(11 * S) == 10.0


def test_parts_divide_a_log_and_know_how_they_ended() -> None:
    log = [record_of({"type": kind, **more}) for kind, more in (("start", {"tr_s": 2.0}), ("end", {"status": "stopped"}), ("start", {}))]
    first, second = parts(log)
    assert (first.ended_well, second.ended_well, second.end) == (True, False, None)
    assert first.records(ScoreRecord) == first.records(AlignedRecord) == first.records(Notice) == []
