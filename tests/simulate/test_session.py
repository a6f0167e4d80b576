"""A run of the simulated scanner: with a scripted presenter over a real socket, in virtual and in real time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from rtevo.errors import LinkError
from rtevo.simulate import ParticipantLink, RealTime, Room, Simulation, run_scanner
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.participant import ColourPreference

Script = list[tuple[float, str, np.ndarray | None]]


class Deliveries:
    """Keeps volumes and when they came."""

    def __init__(self) -> None:
        self.volumes: list[np.ndarray] = []
        self.indices: list[int] = []
        self.times_s: list[float] = []
        self.now_s: Callable[[], float] = lambda: 0.0

    def write(self, index: int, volume: np.ndarray) -> None:
        self.indices.append(index)
        self.volumes.append(volume.copy())
        self.times_s.append(self.now_s())


def trials(n: int, first_s: float = 2.3, rating: bool = True) -> Script:
    script: Script = []
    for i in range(n):
        at_s = first_s + 8.0 * i
        picture = np.random.default_rng(i).integers(0, 256, (2, 2, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        script.append((at_s, "image", picture))
        script += [(at_s + 3, "rating", None), (at_s + 7, "fixation", None)] if rating else [(at_s + 3, "fixation", None)]
    return script


def run(stage: Any, virtual_time: Any, settings: Simulation, out: Path, script: Script, **options: Any) -> tuple[Deliveries, Any]:
    link, presenter = stage()
    deliveries, clock = Deliveries(), virtual_time(presenter, script, options.pop("stop_s", np.inf))
    deliveries.now_s = clock.now_s
    out.mkdir(exist_ok=True)
    options.setdefault("volumes", 20)
    run_scanner(settings, deliveries, link, clock, out, **options)
    return deliveries, presenter


def rows(out: Path, name: str = "hidden_truth.tsv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_volumes_come_in_order_one_repetition_time_apart_after_the_trigger(
    stage: Any, virtual_time: Any, coarse: Simulation, tmp_path: Path
) -> None:
    deliveries, presenter = run(stage, virtual_time, coarse, tmp_path, trials(2))
    assert deliveries.indices == list(range(20))
    start_s = deliveries.times_s[0] - coarse.tr_s
    np.testing.assert_allclose(deliveries.times_s, start_s + coarse.tr_s * np.arange(1, 21))
    assert presenter.keys[0] == ("5", round(start_s * 1e9))
    assert len(rows(tmp_path, "hidden_motion.tsv")) == 20


def test_pictures_ratings_and_times_are_in_the_log(stage: Any, virtual_time: Any, coarse: Simulation, tmp_path: Path) -> None:
    script = trials(3, first_s=4.25)
    deliveries, presenter = run(stage, virtual_time, coarse, tmp_path, script, volumes=30)
    start_s = deliveries.times_s[0] - coarse.tr_s
    truth, prefer = rows(tmp_path), coarse.preference()
    shown = [(at_s, picture) for at_s, kind, picture in script if kind == "image"]
    assert len(truth) == 3
    for row, (at_s, picture) in zip(truth, shown, strict=True):
        assert float(row["onset"]) == pytest.approx(at_s - start_s, abs=1e-6)
        assert float(row["duration"]) == pytest.approx(3.0)
        assert float(row["preference"]) == pytest.approx(prefer(picture), abs=1e-6)
        assert float(row["amplitude_percent"]) == pytest.approx(3 * prefer(picture), abs=1e-5)
    pressed = [(name, t_ns / 1e9) for name, t_ns in presenter.keys[1:]]
    answered = [row for row in truth if row["rating"] != "n/a"]
    assert len(pressed) == len(answered) > 0
    for (name, t_s), row in zip(pressed, answered, strict=True):
        assert ("1", "2", "3", "4", "6").index(name) == int(row["rating"])
        assert t_s - start_s == pytest.approx(float(row["onset"]) + 3 + float(row["response_time"]), abs=1e-5)
    about = json.loads((tmp_path / "hidden_truth.json").read_text())
    assert about["complete"] is True
    assert (about["pictures"], about["volumes"], about["simulation"]["tsnr"]) == (3, 30, 60.0)


def test_the_same_session_gives_the_same_volumes_and_log(stage: Any, virtual_time: Any, coarse: Simulation, tmp_path: Path) -> None:
    one, _ = run(stage, virtual_time, coarse, tmp_path / "one", trials(3))
    again, _ = run(stage, virtual_time, coarse, tmp_path / "again", trials(3))
    for a, b in zip(one.volumes, again.volumes, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("hidden_truth.tsv", "hidden_truth.json", "hidden_motion.tsv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_picture_changes_no_volume_before_it_and_some_after(stage: Any, virtual_time: Any, coarse: Simulation, tmp_path: Path) -> None:
    script = trials(1, first_s=6.5, rating=False)
    other: Script = [(t_s, kind, None if picture is None else 255 - picture) for t_s, kind, picture in script]
    one, _ = run(stage, virtual_time, coarse, tmp_path / "one", script)
    changed, _ = run(stage, virtual_time, coarse, tmp_path / "changed", other)
    same = [np.array_equal(a, b) for a, b in zip(one.volumes, changed.volumes, strict=True)]
    assert all(equal for equal, t_s in zip(same, one.times_s, strict=True) if t_s <= 6.5)
    assert not any(equal for equal, t_s in zip(same, one.times_s, strict=True) if 10 < t_s < 15)


def test_what_was_seen_is_on_disk_before_the_end(stage: Any, virtual_time: Any, coarse: Simulation, tmp_path: Path) -> None:
    class CrashError(Exception):
        pass

    found: list[int] = []

    def crash(index: int) -> None:
        found.append(len(rows(tmp_path)))
        assert len(rows(tmp_path, "hidden_motion.tsv")) == index + 1
        if index == 12:
            raise CrashError

    with pytest.raises(CrashError):
        run(stage, virtual_time, coarse, tmp_path, trials(2), on_volume=crash)
    assert found[0] == 0
    assert found[-1] == 2


def test_it_stops_when_the_session_says_so(stage: Any, virtual_time: Any, coarse: Simulation, tmp_path: Path) -> None:
    deliveries, _ = run(stage, virtual_time, coarse, tmp_path, trials(1), stop_s=7.5, volumes=None)
    assert deliveries.indices == [0, 1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "hidden_truth.json").read_text())["volumes"] == 6


def test_another_preference_can_be_put_in(stage: Any, virtual_time: Any, coarse: Simulation, tmp_path: Path) -> None:
    class Redness:
        def __call__(self, pixels: np.ndarray) -> float:
            return float(pixels[..., 0].mean() / 255)

        def settings(self) -> dict[str, Any]:
            return {"kind": "red"}

    script = trials(2)
    run(stage, virtual_time, coarse, tmp_path, script, preference=Redness())
    assert json.loads((tmp_path / "hidden_truth.json").read_text())["preference"] == {"kind": "red"}
    assert float(rows(tmp_path)[1]["preference"]) == pytest.approx(script[3][2][..., 0].mean() / 255, abs=1e-6)


def test_real_time_with_mosaic_files(stage: Any, coarse: Simulation, tmp_path: Path) -> None:
    link, presenter = stage()
    presenter.show("text", 0)
    writer = MosaicWriter(tmp_path / "incoming", coarse.grid, coarse.tr_s)
    clock = RealTime(speed=20.0)
    assert run_scanner(coarse, writer, link, clock, tmp_path, volumes=5) == 5
    files = sorted((tmp_path / "incoming").iterdir())
    assert [int(pydicom.dcmread(f, stop_before_pixels=True).InstanceNumber) for f in files] == [1, 2, 3, 4, 5]
    assert pydicom.dcmread(files[4]).pixel_array.max() > 1000


def test_real_time_stops_in_the_middle_of_a_wait(stage: Any, coarse: Simulation, tmp_path: Path) -> None:
    link, presenter = stage()
    presenter.show("text", 0)
    asked: list[bool] = []
    clock = RealTime(speed=1.0, stop=lambda: len(asked) > 3 or bool(asked.append(True)))
    assert run_scanner(replace(coarse, tr_s=50.0), Deliveries(), link, clock, tmp_path) == 0


def test_a_presenter_that_never_comes_is_reported(coarse: Simulation, tmp_path: Path) -> None:
    with (
        ParticipantLink("tcp://127.0.0.1:0") as link,
        pytest.raises(LinkError, match=r"no presenter has connected to tcp://.* within 0\.1 s"),
    ):
        run_scanner(coarse, Deliveries(), link, RealTime(), tmp_path, patience_s=0.1)


def test_a_room_without_a_participant_looks_and_presses_the_trigger(stage: Any, virtual_time: Any) -> None:
    link, presenter = stage()
    clock = virtual_time(presenter, trials(2))
    with Room(link, clock) as room:
        assert room.begin(0.5, "5")
        assert [room.wait_until(room.start_s + t_s) for t_s in (1.0, 5.0, 20.0)] == [True] * 3
    assert clock.now_s() == room.start_s + 20.0
    assert presenter.keys == [("5", round(room.start_s * 1e9))]


def test_a_key_that_is_not_taken_is_reported_in_lock_step(stage: Any, virtual_time: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    link, presenter = stage()
    monkeypatch.setattr(link, "press", lambda name, t_ns: None)
    with Room(link, virtual_time(presenter, [])) as room, pytest.raises(LinkError, match=r"has not taken key '5' within 0\.1 s"):
        room.begin(0.5, "5", patience_s=0.1)


def test_colours_are_the_default(coarse: Simulation) -> None:
    assert isinstance(coarse.preference(), ColourPreference)
    assert coarse.preference().settings() == replace(coarse, seed=5).preference().settings()
    assert coarse.preference().settings() != replace(coarse, participant_seed=5).preference().settings()
