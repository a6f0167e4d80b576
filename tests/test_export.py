"""A run as BIDS: the scanner's clock, every volume in its place, nothing overwritten."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from rtevo import records
from rtevo.config import Config, build, dump
from rtevo.decode.folder import write_decoder
from rtevo.errors import DataError
from rtevo.export import export
from rtevo.export.__main__ import main
from rtevo.record import LogWriter, Recorder, compact, volume_path
from rtevo.records import EventKind, MessageKind, VolumeFlag

SHAPE = (4, 3, 2)
AFFINE = np.array([[-3.0, 0, 0, 5], [0, 3, 0.1, -7], [0, -0.1, 3.5, 11], [0, 0, 0, 1]])
SECOND_NS = 1_000_000_000


def slot(dtype: np.dtype[np.void], **fields: object) -> np.void:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record[()]


def volume(data: Any = None, **fields: object) -> np.void:
    made = slot(records.volume_dtype(30), **fields)
    records.put_volume(made, data, records.Grid(SHAPE, AFFINE))
    return made


def config(**session: Any) -> Config:
    return build({"session": {"participant": "07", "session": "a", "run": 2, **session}})


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a session of five volumes (one lost) and two pictures (one never shown)."""

    def write(
        name: str = "out", scale: float = 1.0, save_raw: bool = True, acquisition: Any = None, marks: Any = (), **session: Any
    ) -> Path:
        out = tmp_path / name
        out.mkdir()
        (out / "session.toml").write_text(dump(config(**session)), encoding="utf-8")
        with LogWriter(out / "record.jsonl") as log:
            log.append("start", {"rtevo": "1.2", "tr_s": 2.0})
        recorder = Recorder(out, save_raw)
        for index in range(5):
            lost = VolumeFlag.MISSING if index == 3 else VolumeFlag.OK
            data = np.zeros(SHAPE) if lost else (np.arange(24).reshape(SHAPE) + 100 * index) * scale
            fields = {"index": index, "flags": int(lost), "closed_ns": index, "ingested_ns": index}
            told = b"" if index else json.dumps(acquisition or {}).encode()
            recorder.take("volumes", volume(data, **fields, acquisition=told))
            motion = [np.nan] * 6 if lost else [0.1 * index] * 6
            recorder.take("aligned", slot(records.aligned_dtype(), **fields, motion=motion, framewise_displacement_mm=np.nan))
        recorder.take("events", slot(records.event_dtype(), kind=EventKind.TRIGGER, t_ns=10 * SECOND_NS))
        for candidate in range(2):
            key = {"generation": 0, "candidate": candidate}
            recorder.take("images", slot(records.image_dtype(4, 4, 2), **key, pixels=np.full((4, 4, 3), 50 * candidate)))
        shown = {"generation": 0, "candidate": 1}
        for kind, t_s in ((EventKind.ONSET, 12.5), (EventKind.OFFSET, 15.5)):
            recorder.take("events", slot(records.event_dtype(), kind=kind, **shown, t_ns=int(t_s * SECOND_NS)))
        recorder.take("scores", slot(records.score_dtype(), **shown, score=0.25, score_se=0.5))
        for t_s, text in marks:
            told = {"kind": MessageKind.OPERATOR, "action": b"mark", "text": text.encode(), "t_ns": int(t_s * SECOND_NS)}
            recorder.take("messages", slot(records.message_dtype(), **told))
        recorder.log.close()
        return out

    return write


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_volumes_are_where_they_were_with_gaps_as_nan(recorded: Callable[..., Path], tmp_path: Path) -> None:
    path = export(recorded(scale=0.5), tmp_path / "bids")
    assert path.relative_to(tmp_path / "bids").as_posix() == "sub-07/ses-a/func/sub-07_ses-a_task-rtevo_run-02_bold.nii.gz"
    image = nibabel.load(path)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert image.header.get_zooms()[3] == 2.0
    data = np.asanyarray(image.dataobj)
    assert data.dtype == np.float32
    expected = np.stack([(np.arange(24).reshape(SHAPE) + 100 * k) * 0.5 for k in range(5)], axis=3)
    expected[..., 3] = np.nan
    np.testing.assert_array_equal(data, expected)
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert (sidecar["RepetitionTime"], sidecar["TaskName"], sidecar["MissingVolumes"]) == (2.0, "rtevo", [3])


def test_a_volume_that_was_not_saved_is_listed_as_missing(
    recorded: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recorded()
    volume_path(out, 1).unlink()
    path = export(out, tmp_path / "bids")
    assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["MissingVolumes"] == [1, 3]
    assert np.isnan(np.asanyarray(nibabel.load(path).dataobj)[..., 1]).all()
    (motion,) = (tmp_path / "bids" / "derivatives").rglob("*timeseries.tsv")
    lost = [[name for name, spike in row.items() if name.startswith("missing") and spike == "1"] for row in table(motion)]
    assert [len(names) for names in lost] == [0, 1, 0, 1, 0]
    assert "1 volumes that arrived have no file: MissingVolumes lists them" in capsys.readouterr().err


def test_the_sidecar_has_what_the_headers_say(recorded: Callable[..., Path], tmp_path: Path) -> None:
    told = {"Manufacturer": "Siemens", "EchoTime": 0.03, "SliceTiming": [0.0, 1.0], "SliceEncodingDirection": "k"}
    path = export(recorded(acquisition=told), tmp_path / "bids")
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert {name: sidecar[name] for name in told} == told


@pytest.mark.parametrize("times", [[0.0, 2.0], [0.0, 0.5, 1.0], [-0.5, 1.0]])
def test_times_of_slices_that_cannot_be_are_left_out(recorded: Callable[..., Path], tmp_path: Path, times: list[float]) -> None:
    path = export(recorded(acquisition={"SliceTiming": times, "SliceEncodingDirection": "k"}), tmp_path / "bids")
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert not {"SliceTiming", "SliceEncodingDirection"} & set(sidecar)


def test_events_count_from_the_first_volume_and_name_their_picture(recorded: Callable[..., Path], tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    path = export(recorded(), bids)
    (row,) = table(path.with_name(path.name.replace("bold.nii.gz", "events.tsv")))
    assert (row["onset"], row["duration"], row["trial_type"], row["candidate"]) == ("2.5", "3.0", "image", "1")
    assert (row["score"], row["score_se"], "rating" in row) == ("0.25", "0.5", False)
    assert (bids / "stimuli" / row["stim_file"]).exists()
    described = json.loads(path.with_name(path.name.replace("bold.nii.gz", "events.json")).read_text())
    assert set(row) <= set(described)
    motion = table(next((bids / "derivatives" / "rtevo").rglob("*_timeseries.tsv")))
    assert [r["missing_outlier00"] for r in motion] == ["0", "0", "0", "1", "0"]
    assert motion[2]["trans_x"] == "0.2"


def events(path: Path) -> list[dict[str, str]]:
    return table(path.with_name(path.name.replace("bold.nii.gz", "events.tsv")))


def test_what_the_operator_marked_is_an_event_with_its_note(recorded: Callable[..., Path], tmp_path: Path) -> None:
    marks = [(17.25, "coughed,\ttwice\n"), (9.0, "bell"), (14, ""), (99, "the scanner has stopped")]
    found = events(export(recorded(marks=marks), tmp_path / "bids"))
    assert [(row["onset"], row["duration"], row["trial_type"], row["note"]) for row in found] == [
        ("-1.0", "0", "mark", "bell"),
        ("2.5", "3.0", "image", "n/a"),
        ("4.0", "0", "mark", "n/a"),
        ("7.25", "0", "mark", "coughed, twice"),
        ("8.0", "0", "mark", "the scanner has stopped"),  # the last volume's
    ]
    assert found[0]["stim_file"] == found[0]["score"] == "n/a"


def test_marks_of_a_session_that_went_on_are_in_their_own_part(recorded: Callable[..., Path], tmp_path: Path) -> None:
    out = recorded(marks=[(17.25, "before")])
    with LogWriter(out / "record.jsonl") as log:
        log.append("start", {"rtevo": "1.2", "tr_s": 2.0, "shape": list(SHAPE), "affine": AFFINE.tolist(), "first_volume": 5})
        mark = {"action": "mark", "stage": ""}
        log.append("operator", {**mark, "t_ns": 2 * SECOND_NS, "text": "between"})
        log.append("events", {"kind": int(EventKind.TRIGGER), "t_ns": 4 * SECOND_NS})
        log.append("operator", {**mark, "t_ns": 5 * SECOND_NS, "text": "after"})
    recorder = Recorder(out, True)
    for index in (5, 6):
        fields = {"index": index, "closed_ns": index, "ingested_ns": index}
        recorder.take("volumes", volume(**fields, acquisition=b""))
        recorder.take("aligned", slot(records.aligned_dtype(), **fields))
    recorder.log.close()
    found = events(export(out, tmp_path / "bids"))
    assert [(row["onset"], row["note"]) for row in found if row["trial_type"] == "mark"] == [
        ("7.25", "before"), ("10.0", "between"), ("11.0", "after")
    ]  # fmt: skip


def test_runs_are_added_and_never_overwritten(recorded: Callable[..., Path], tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    export(recorded("one"), bids)
    before = {p: p.read_bytes() for p in bids.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match="exists already"):
        export(recorded("again"), bids)
    export(recorded("two", participant="08"), bids)
    assert [r["participant_id"] for r in table(bids / "participants.tsv")] == ["sub-07", "sub-08"]
    assert all(p.read_bytes() == text for p, text in before.items() if p.name != "participants.tsv")


def test_what_cannot_be_exported_is_said_before_anything_is_written(
    recorded: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bids = tmp_path / "bids"
    assert main([str(tmp_path / "nothing"), str(bids)]) == 2
    assert main([str(recorded(save_raw=False)), str(bids)]) == 2
    assert "4 of 5 raw volumes are missing (first: 0)" in capsys.readouterr().err
    assert not bids.exists()
    bids.mkdir()
    (bids / "thesis.doc").touch()
    with pytest.raises(DataError, match="expected an empty folder or a BIDS data set"):
        export(recorded("whole"), bids)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, -3, 32767], np.int16), ([0, 40000], np.uint16), ([0, 70000], np.float32), ([-1, 40000], np.float32), ([0.5], np.float32)],
)
def test_volumes_are_kept_without_loss(values: list[float], kind: type) -> None:
    data = np.array(values, np.float32)
    kept = compact(data)
    assert kept.dtype == kind
    np.testing.assert_array_equal(kept.astype(np.float32), data)


def test_missing_values_stay_float() -> None:
    assert compact(np.array([1, np.nan], np.float32)).dtype == np.float32


OUTSIDE = {
    "participant": 'participant = "x/../../.."', "an absolute one": 'participant = "/tmp/x"', "session": 'session = ".."',
    "run": 'run = "1/../../x"', "a run that is no number": "run = 1.5", "a deep file": "x = " + "[" * 5000,
    "a large run": "run = 1" + "0" * 400,
    "control characters": 'participant = "a\\u001b[2J"', "no text": "\udcff\udcfe",
}  # fmt: skip


@pytest.mark.parametrize("line", OUTSIDE.values(), ids=OUTSIDE)
def test_a_sessions_own_file_leads_nowhere_outside(line: str, recorded: Callable[..., Path], tmp_path: Path) -> None:
    out = recorded()
    (out / "session.toml").write_bytes(f"[session]\n{line}\n".encode(errors="surrogateescape"))
    before = sorted(path for path in tmp_path.rglob("*") if out not in path.parents)
    with pytest.raises(DataError, match=r"session\.toml: ") as raised:
        export(out, tmp_path / "a" / "b" / "bids")
    assert str(raised.value).isprintable()
    assert sorted(path for path in tmp_path.rglob("*") if out not in path.parents) == before


def test_a_session_file_that_does_not_say_whose_run_it_is_is_refused(recorded: Callable[..., Path], tmp_path: Path) -> None:
    out = recorded()
    (out / "session.toml").write_text("[decoder]\nfwhm_mm = 4.0\n")
    with pytest.raises(DataError, match=r"session\.toml: expected \[session\] participant"):
        export(out, tmp_path / "bids")


def test_a_sessions_decoder_of_another_name_than_a_maps_is_refused(recorded: Callable[..., Path], tmp_path: Path) -> None:
    out = recorded()
    (out / "session.toml").write_text('[decoder]\nname = "../../secret"\n')
    with pytest.raises(DataError, match="expected the name of a map"):
        export(out, tmp_path / "bids")


def a_decoder(folder: Path) -> None:
    weights = np.arange(24, dtype=np.float32).reshape(SHAPE)
    write_decoder(folder, "map", weights + 1, np.ones(SHAPE), weights, AFFINE, {})


def test_a_sessions_decoder_is_exported_and_nothing_that_lies_beside_it(recorded: Callable[..., Path], tmp_path: Path) -> None:
    out, decoder = recorded(), tmp_path / "decoders" / "today"
    a_decoder(decoder)
    (decoder / "passwords.txt").write_text("secret")
    (decoder / "deeper").mkdir()
    (out / "session.toml").write_text(f'[session]\nparticipant = "07"\nsession = "a"\nrun = 2\n[decoder]\nfolder = "{decoder}"\n')
    export(out, tmp_path / "bids")
    (copied,) = (tmp_path / "bids").rglob("decoder")
    assert sorted(path.name for path in copied.iterdir()) == ["decoder.json", "map_img.nii.gz", "mask_img.nii.gz", "ref_img.nii.gz"]


@pytest.mark.parametrize("way", ["no decoder", "link to a map", "link to settings", "the disk"])
def test_what_is_no_decoder_is_not_exported(
    way: str, recorded: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, named = recorded(), tmp_path / "named"
    a_decoder(named)
    if way == "no decoder":
        (named / "mask_img.nii.gz").unlink()
    elif way == "link to a map":
        (named / "map_img.nii.gz").rename(tmp_path / "map_img.nii.gz")
        (named / "map_img.nii.gz").symlink_to(tmp_path / "map_img.nii.gz")
    elif way == "link to settings":
        (named / "decoder.json").rename(tmp_path / "private.json")
        (named / "decoder.json").symlink_to(tmp_path / "private.json")
    else:
        named = Path("/")
    (out / "session.toml").write_text(f'[session]\nparticipant = "07"\nsession = "a"\nrun = 2\n[decoder]\nfolder = "{named}"\n')
    export(out, tmp_path / "bids")
    assert not list((tmp_path / "bids").rglob("decoder"))
    assert "the decoder is left out: " in capsys.readouterr().err


def test_links_in_a_session_s_folder_are_not_followed(
    recorded: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recorded()
    (tmp_path / "private.txt").write_text("secret")
    (out / "placement" / "part-00").mkdir(parents=True)
    (out / "placement" / "part-00" / "figure.png").write_bytes(b"figure")
    (out / "placement" / "part-00" / "link.png").symlink_to(tmp_path / "private.txt")
    (out / "placement" / "outside").symlink_to(tmp_path)
    (out / "provenance.json").symlink_to(tmp_path / "private.txt")
    export(out, tmp_path / "bids")
    (copied,) = (tmp_path / "bids").rglob("placement")
    assert [path.relative_to(copied).as_posix() for path in copied.rglob("*.*")] == ["part-00/figure.png"]
    assert not any(path.is_file() and path.read_bytes() == b"secret" for path in (tmp_path / "bids").rglob("*"))
    assert "part-00/link.png is a link or not a file, and is left out" in capsys.readouterr().err
    (out / "images").rename(tmp_path / "images")
    (picture,) = [path for path in (tmp_path / "images").rglob("*1.png")]
    (out / "images").mkdir()
    (out / "images" / picture.parent.name).mkdir()
    (out / "images" / picture.parent.name / picture.name).symlink_to(picture)
    with pytest.raises(DataError, match="expected a picture, found a link"):
        export(out, tmp_path / "other")


def test_scores_of_an_objectives_maps_are_events_columns_with_their_meaning(recorded: Callable[..., Path], tmp_path: Path) -> None:
    out = recorded()
    with LogWriter(out / "record.jsonl") as log:
        log.append("scores", {"generation": 0, "candidate": 1, "score": 0.25, "score_se": 0.5, "maps": {"face": [1.5, 0.25]}})
    events = export(out, tmp_path / "bids").parent.glob("*_events.*")
    sidecar, rows = sorted(events)
    assert rows.read_text().splitlines()[0].split("\t")[-2:] == ["score_face", "score_face_se"]
    assert rows.read_text().splitlines()[1].split("\t")[-2:] == ["1.5", "0.25"]
    assert json.loads(sidecar.read_text())["score_face"]["Description"].startswith("Score of the map face")
