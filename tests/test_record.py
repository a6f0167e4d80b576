"""The log survives a cut at any byte, and the tables follow from it alone."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtevo import records
from rtevo.errors import DataError, full_disk
from rtevo.record import (
    LOG,
    AlignedRecord,
    LogWriter,
    Notice,
    RecordedSession,
    Recorder,
    finalise,
    held,
    hold,
    image_path,
    of_kind,
    read_log,
    release,
    reserve,
    skip_damaged,
)
from rtevo.record.__main__ import main as record_command
from rtevo.record.log import read_up_to_damage
from rtevo.records import EventKind, MessageKind, VolumeFlag

START = {"tr_s": 2.0, "rtevo": "0", "condition": "brain", "seed": 1}


def slot(dtype: np.dtype[np.void], **fields: object) -> np.void:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record[()]


def test_records_are_read_back_and_continue_their_numbers(tmp_path: Path) -> None:
    for k in range(2):
        with LogWriter(tmp_path / "log") as log:
            log.append("start", {"x": k})
    assert [(r.seq, r.more) for r in read_log(tmp_path / "log")] == [(0, {"x": 0}), (1, {"x": 1})]


def test_messages_are_recorded_by_their_kind(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.log:
        for kind, action in ((MessageKind.WARNING, ""), (MessageKind.OPERATOR, "mark"), (MessageKind.ERROR, "")):
            recorder.take("messages", slot(records.message_dtype(), kind=kind, t_ns=5, stage=b"", action=action.encode(), text=b"text"))
    kinds = [(r.level, r.action, r.text, r.t_ns) for r in of_kind(read_log(tmp_path / "record.jsonl"), Notice)]
    assert kinds == [("warning", "", "text", 5), ("operator", "mark", "text", 5), ("error", "", "text", 5)]


def test_a_log_cut_at_any_byte_loses_at_most_its_last_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogWriter(path) as log:
        for k in range(3):
            log.append("x", {"k": k})
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        assert len(read_log(path)) == complete
        with LogWriter(path) as log:
            log.append("x", {"k": "next"})
        assert [r.seq for r in read_log(path)] == list(range(complete + 1))


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogWriter(path) as log:
        for k in range(3):
            log.append("x", {"k": k})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"k": 1', b'"k": 7') + lines[2])
    with pytest.raises(DataError, match="line 2: damaged"):
        read_log(path)


def test_a_missing_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogWriter(path) as log:
        for k in range(3):
            log.append("x", {"k": k})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(DataError, match="line 2: expected record 1, found record 2"):
        read_log(path)


def test_a_log_has_one_writer_and_a_folder_one_holder(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log"), hold(tmp_path):
        with pytest.raises(DataError, match="another process writes to it"):
            LogWriter(tmp_path / "log")
        with pytest.raises(DataError, match="still running"), hold(tmp_path):
            pass
    with LogWriter(tmp_path / "log"), hold(tmp_path):
        pass


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A run of two generations of two images: the last one was never scored, one volume was lost."""
    with LogWriter(tmp_path / "record.jsonl") as log:
        log.append("start", START)
    recorder = Recorder(tmp_path)
    ms = 1_000_000
    for index in range(4):
        flags = VolumeFlag.MISSING if index == 2 else VolumeFlag.OK
        aligned = slot(
            records.aligned_dtype(10),
            index=index,
            flags=int(flags),
            motion=[index, 0, 0, 0, 0, 0.25],
            framewise_displacement_mm=np.nan if index == 0 else 0.5,
            closed_ns=index * 1000 * ms,
            aligned_ns=index * 1000 * ms + 10 * ms,
        )
        records.put_volume(aligned, np.full((2, 2, 2), index), records.Grid((2, 2, 2), np.diag([3.0, 3.0, 3.3, 1.0])))
        recorder.take("aligned", aligned)
    recorder.take("events", slot(records.event_dtype(), kind=EventKind.TRIGGER, generation=-1, candidate=-1, t_ns=500 * ms))
    for k, (generation, candidate) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        key = {"generation": generation, "candidate": candidate}
        recorder.take(
            "latents",
            slot(
                records.latent_dtype(3, 2),
                **key,
                probe=-1,
                scored_ns=generation * 7000 * ms,
                evolved_ns=1,
                latent=[k, 0.5, 0.1],
                embedding=[k, 1],
            ),
        )
        recorder.take(
            "images",
            slot(
                records.image_dtype(4, 5, 2),
                **key,
                painted_ns=7000 * ms + 30 * ms + k * ms,
                embedding=[k, 2],
                pixels=np.full((4, 5, 3), 40 * k),
            ),
        )
        if k == 3:
            continue
        onset = (4 + 4 * k) * 1000 * ms + 500 * ms
        recorder.take("events", slot(records.event_dtype(), kind=EventKind.ONSET, **key, t_ns=onset, error_ns=ms))
        guess = {"error_ns": 700 * ms, "guess": True} if k == 1 else {}
        recorder.take("events", slot(records.event_dtype(), kind=EventKind.OFFSET, **key, t_ns=onset + 3000 * ms, **guess))
        score = {"score": 0.1 * k, "score_se": np.nan, "volumes_used": 3, "closed_ns": 100 * ms, "scored_ns": 104 * ms}
        recorder.take("scores", slot(records.score_dtype(), **key, **score))
        recorder.take("fitness", slot(records.fitness_dtype(), **key, fitness=0.1 * k))
    with recorder.log as log:
        log.append("end", {"status": "completed", "reason": "", "rings": {}, "warnings": []})
    hashes = [hashlib.sha256(np.full((4, 5, 3), 40 * k, np.uint8).tobytes()).hexdigest()[:16] for k in range(3)]
    seen = "".join(f"{preference}\t{own}\n" for preference, own in zip((1.0, 2.0, 6.0), hashes, strict=True))
    (tmp_path / "hidden_truth.tsv").write_text(f"preference\tpixels_sha256\n{seen}", encoding="utf-8")
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_a_volume_that_came_late_has_one_row(session: Path) -> None:
    with Recorder(session).log as log:
        gap = next(r for r in of_kind(read_log(session / LOG), AlignedRecord) if r.index == 2)
        log.add(replace(gap, flags=int(VolumeFlag.LATE), motion=[9.0, 0, 0, 0, 0, 0]))
    assert finalise(session)["volumes"] == {"received": 4, "aligned": 4, "lost": 0, "unaligned": 0, "late": 1}
    rows = table(session / "motion.tsv")
    assert [row["volume"] for row in rows] == ["0", "1", "2", "3"]
    assert (rows[2]["flags"], rows[2]["trans_x"]) == ("4", "9.0")


def test_the_summary_counts_and_averages(session: Path) -> None:
    summary = finalise(session)
    assert summary == json.loads((session / "summary.json").read_text())
    assert summary["volumes"] == {"received": 3, "aligned": 3, "lost": 1, "unaligned": 0, "late": 0}
    assert summary["images"]["painted"] == 4
    assert summary["images"]["shown"] == 3
    assert summary["images"]["cadence_s"] == {"n": 1, "min": 4.0, "p50": 4.0, "max": 4.0}
    first, second = summary["generations"]
    assert (first["mean_fitness"], first["mean_true_response"]) == (0.05, 1.5)
    assert (second["mean_fitness"], second["mean_true_response"], second["shown"]) == (0.2, 6.0, 1)
    assert summary["latencies_ms"]["file_closed_to_aligned"] == {"n": 3, "p50": 10.0, "p99": 10.0, "max": 10.0}
    assert summary["latencies_ms"]["last_needed_volume_to_score"]["max"] == 4.0
    assert summary["latencies_ms"]["scores_to_first_image"] == {"n": 1, "p50": 32.0, "p99": 32.0, "max": 32.0}


def test_trials_have_one_row_per_image_in_order_of_presentation(session: Path) -> None:
    finalise(session)
    rows = table(session / "trials.tsv")
    assert [row["onset"] for row in rows] == ["4.0", "8.0", "12.0", "n/a"]
    assert [row["duration"] for row in rows] == ["3.0", "3.0", "3.0", "n/a"]
    assert [row["duration_error"] for row in rows] == ["0.001", "0.701", "0.001", "n/a"]
    assert [row["guessed"] for row in rows] == ["0", "1", "0", "n/a"]
    assert rows[1]["score"] == "0.1"
    assert rows[1]["score_se"] == "n/a"
    assert rows[3]["fitness"] == "n/a"
    assert [float(rows[2][f"x{i}"]) for i in range(3)] == [2.0, 0.5, np.float32(0.1)]


def test_onsets_count_from_a_start_that_was_corrected(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "record.jsonl") as log:
        log.append("start", START)
    recorder = Recorder(tmp_path)
    events = ((EventKind.TRIGGER, 3, -1), (EventKind.TRIGGER, 1, -1), (EventKind.ONSET, 9, 0), (EventKind.OFFSET, 12, 0))
    for kind, t_s, candidate in events:
        recorder.take("events", slot(records.event_dtype(), kind=kind, generation=min(candidate, 0), candidate=candidate, t_ns=t_s * 10**9))
    recorder.log.close()
    finalise(tmp_path)
    assert [row["onset"] for row in table(tmp_path / "trials.tsv")] == ["8.0"]


def test_latents_and_embeddings_are_kept_exactly(session: Path) -> None:
    finalise(session)
    with np.load(session / "latents.npz") as saved:
        assert saved["latents"][2].tolist() == np.array([2, 0.5, 0.1], np.float32).tolist()
        assert saved["post_embeddings"].tolist() == [[0, 2], [1, 2], [2, 2], [3, 2]]


def test_pictures_and_volumes_are_saved_as_they_were(session: Path) -> None:
    assert np.array(Image.open(image_path(session, 1, 0))).tolist() == np.full((4, 5, 3), 80).tolist()
    import nibabel

    assert np.asarray(nibabel.load(session / "aligned" / "volume-00003.nii.gz").dataobj).tolist() == np.full((2, 2, 2), 3).tolist()
    assert len(table(session / "motion.tsv" if finalise(session) else session)) == 4


def test_a_run_that_was_cut_still_has_its_tables(session: Path) -> None:
    log = session / "record.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for keep in range(1, len(lines)):
        log.write_bytes(b"".join(lines[:keep]))
        assert finalise(session)["volumes"]["received"] <= 3


def test_no_session_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the log of a session"):
        finalise(tmp_path)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A log whose third record is damaged and whose fifth is gone."""
    with LogWriter(tmp_path / "record.jsonl") as log:
        log.append("start", START)
        log.append("operator", {"action": "mark", "text": "", "t_ns": 0})
        log.append("warning", {"text": "lost", "index": 41})
        log.append("warning", {"text": "first"})
        log.append("warning", {"text": "gone"})
        log.append("warning", {"text": "second"})
    lines = log_lines(tmp_path)
    lines[2] = lines[2].replace(b"lost", b"lose")
    del lines[4]
    (tmp_path / "record.jsonl").write_bytes(b"".join(lines))
    return tmp_path


def log_lines(out: Path) -> list[bytes]:
    return (out / "record.jsonl").read_bytes().splitlines(keepends=True)


LOST = [
    "line 3 of the log is damaged: a record of type warning (index 41) is lost",
    "line 5 of the log is preceded by a gap: record 4 is lost",
]


def test_a_damaged_line_is_named_with_what_can_be_done(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = log_lines(damaged)
    assert record_command([str(damaged)]) == 2
    assert "record.jsonl line 3: damaged (its checksum does not fit); `python -m rtevo.record" in capsys.readouterr().err
    assert log_lines(damaged) == before


def test_damaged_and_missing_lines_are_skipped_and_what_is_lost_is_in_the_record(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = log_lines(damaged)
    assert record_command([str(damaged), "--skip-damaged"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"rtevo: {text}" for text in LOST]
    log = read_log(damaged / "record.jsonl")
    assert [(r.seq, r.type) for r in log] == [(0, "start"), (1, "operator"), (2, "lost"), (3, "warning"), (4, "lost"), (5, "warning")]
    assert (damaged / "record.jsonl.damaged").read_bytes().splitlines(keepends=True) == before
    assert json.loads((damaged / "summary.json").read_text())["warnings"] == [*LOST, "first", "second"]
    with LogWriter(damaged / "record.jsonl") as writer:  # it can go on
        assert writer.seq == 6
    assert record_command([str(damaged), "--skip-damaged"]) == 0  # nothing is damaged any more
    assert not (damaged / "record.jsonl.damaged-1").exists()


def test_a_line_in_the_wrong_place_is_left_out(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "record.jsonl") as log:
        for _ in range(3):
            log.append("warning", {"text": "x"})
    lines = log_lines(tmp_path)
    (tmp_path / "record.jsonl").write_bytes(b"".join([*lines[:2], lines[0], lines[2]]))
    told = "line 3 of the log is a repetition, or in the wrong place: it is left out"
    assert skip_damaged(tmp_path / "record.jsonl") == [told]
    assert log_lines(tmp_path) == lines


def test_room_is_kept_for_the_end_and_let_go(tmp_path: Path) -> None:
    reserve(tmp_path)
    [file] = tmp_path.iterdir()
    assert 0 < file.stat().st_size <= 8 << 20
    assert file.stat().st_blocks * 512 >= file.stat().st_size  # it is there, not a hole
    release(tmp_path)
    release(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(tmp_path: Path, number: int) -> None:
    error = OSError(number, os.strerror(number), "/data/volume.nii.gz")
    assert full_disk(error, tmp_path) == "the disk is full (/data/volume.nii.gz): make room there"
    assert full_disk(OSError(errno.EACCES, "no"), tmp_path) == full_disk(ValueError(), tmp_path) == ""


def test_a_log_that_cannot_be_written_any_more_is_closed(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    log = LogWriter(tmp_path / "log")
    log._file.close()
    log._file = open("/dev/full", "ab")  # noqa: SIM115
    log.append("x", {})
    with pytest.raises(OSError, match="No space left") as caught:
        log.close()
    assert full_disk(caught.value)
    assert log._file.closed


def test_times_held_are_those_of_the_report(tmp_path: Path) -> None:
    """The wait after the last image is none, nor is a hold for the placement; a session that was taken up counts on."""
    event = {"generation": 0, "candidate": 0, "error_ns": 0, "value": math.nan, "response_time_s": math.nan}
    with LogWriter(tmp_path / "record.jsonl") as log:
        for part in range(2):
            log.append("start", {**START, "first_volume": 10 * part})
            kinds = (
                EventKind.FIXATION, EventKind.TRIGGER, EventKind.PAUSE, EventKind.GO_ON, EventKind.ONSET, EventKind.OFFSET,
                EventKind.FIXATION, EventKind.ONSET, EventKind.OFFSET, EventKind.FIXATION,
            )  # fmt: skip
            for k, kind in enumerate(kinds):
                log.append("events", {**event, "kind": int(kind), "t_ns": k * 10**9})
    assert finalise(tmp_path)["images"]["times_held"] == 2
    assert held(RecordedSession(tmp_path).parts) == [5.0, 25.0]


HOSTILE = {
    "deep": b'{"seq": 1, "type": "score", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "10^400": b'{"seq": 1, "type": "score", "t": 1' + b"0" * 400 + b', "clock_ns": 1' + b"0" * 400 + b"}",
    "a kind that is none": b'{"seq": 1, "type": ["score"]}',
    "a number that is text": b'{"seq": 1, "type": "images", "generation": "0/../../..", "candidate": 0}',
    "a number that is a list": b'{"seq": 1, "type": "volumes", "index": [1], "flags": 0}',
    "an array that is none": b'{"seq": 1, "type": "latents", "generation": 0, "candidate": 0, "latent": "AAA"}',
    "an array that is a number": b'{"seq": 1, "type": "latents", "generation": 0, "candidate": 0, "latent": 1.0}',
    "a number or nothing that is a list": b'{"seq": 1, "type": "aligned", "index": 1, "flags": 0, "events_taken": [1]}',
    "a volume that no session reaches": b'{"seq": 1, "type": "volumes", "index": 1000000000000, "flags": 0}',
    "text that is a number": b'{"seq": 1, "type": "warning", "text": 7}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_line_that_is_made_to_do_harm_is_a_damaged_one(text: bytes, tmp_path: Path) -> None:
    with LogWriter(tmp_path / LOG) as log:
        log.append("start", {"tr_s": 1.0})
    with (tmp_path / LOG).open("ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        file.write(b"00000000 {}\n")
    records, damage = read_up_to_damage(tmp_path / LOG)
    assert len(records) == 1
    assert "line 2" in damage


def test_scores_of_an_objectives_maps_are_columns_of_the_trials(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, maps=("face", "place"))
    key = {"generation": 0, "candidate": 0}
    recorder.take("scores", slot(records.score_dtype(2), **key, score=1.0, score_se=0.5, maps=[[1.5, 0.25], [np.nan, np.nan]]))
    recorder.log.close()
    assert read_log(tmp_path / LOG)[0].fields()["maps"]["face"] == [1.5, 0.25]
    finalise(tmp_path)
    (row,) = table(tmp_path / "trials.tsv")
    assert [row[name] for name in ("score", "score_face", "score_face_se", "score_place")] == ["1.0", "1.5", "0.25", "n/a"]
