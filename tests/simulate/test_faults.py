"""Deliveries that go wrong: the same for the same seed, and exactly as their fates say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtevo.errors import ConfigError
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.faults import Delivery, Fate, Faults, FaultyWriter, deliver

FILES = [(f"{k:03d}.dcm", bytes([k]) * 100) for k in range(60)]
ALL = "drop=0.1, duplicate=0.1, truncate=0.1, grow=0.2, rename=0.2, stranger=0.2, stall=0.1, stall_files=3, reorder=5, burst=2"


def history(folder: Path, faults: str, seed: int) -> list[dict[str, int]]:
    seen: list[dict[str, int]] = []
    deliver(FILES, folder, faults, seed=seed, on_change=lambda: seen.append({p.name: p.stat().st_size for p in folder.iterdir()}))
    return seen


def test_without_faults_every_file_comes_in_its_turn(tmp_path: Path) -> None:
    seen = history(tmp_path, "", 0)
    assert [len(names) for names in seen] == list(range(1, 61))
    assert all((tmp_path / name).read_bytes() == contents for name, contents in FILES)


def test_the_same_seed_gives_the_same_delivery(tmp_path: Path) -> None:
    assert history(tmp_path / "a", ALL, 3) == history(tmp_path / "b", ALL, 3)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert history(tmp_path / "c", ALL, 4) != history(tmp_path / "a", ALL, 3)


def test_every_file_has_the_fate_that_is_told(tmp_path: Path) -> None:
    fates = deliver(FILES, tmp_path, ALL, seed=1).fates
    seen = Fate.WHOLE
    for name, contents in FILES:
        fate = fates[name]
        seen |= fate
        names = (tmp_path / name, tmp_path / f"{name}.moved")
        found = [path.read_bytes() for path in names if path.exists()]
        if Fate.LOST in fate:
            assert found == []
        elif Fate.CUT in fate:
            assert found == [contents[: len(found[0])]]
            assert len(found[0]) < len(contents)
        else:
            assert found == [contents]
        assert (tmp_path / f"{name[:-4]} (copy).dcm").exists() == (Fate.COPIED in fate)
    assert seen == Fate.LOST | Fate.CUT | Fate.COPIED | Fate.GREW | Fate.RENAMED
    assert not list(tmp_path.glob("*.part"))
    assert list(tmp_path.glob("*-notes.txt"))


def test_growth_begins_with_nothing_and_only_adds(tmp_path: Path) -> None:
    sizes = [names["000.dcm"] for names in history(tmp_path, "grow=1", 0) if "000.dcm" in names]
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    assert sizes[-1] == 100


def test_a_stall_ends_in_a_burst(tmp_path: Path) -> None:
    with Delivery(tmp_path, Faults(stall=0.2, stall_files=5), seed=2) as delivery:
        counts = [0]
        for name, contents in FILES:
            delivery.send(name, contents)
            counts.append(len(list(tmp_path.iterdir())))
    steps = np.diff(counts)
    assert steps.min() == 0
    assert steps.max() >= 5
    assert len(list(tmp_path.iterdir())) == 60


def test_a_faulty_writer_takes_the_place_of_a_scanners(tmp_path: Path) -> None:
    grid = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
    scanner = MosaicWriter(tmp_path / "as it should be", grid, 2.0)
    with Delivery(tmp_path / "watched", "drop=0.5", seed=5) as delivery:
        writer = FaultyWriter(scanner, delivery)
        paths = [writer.write(index, np.full(grid.shape, index, np.float32)) for index in range(8)]
    assert [Fate.LOST in fate for fate in delivery.fates.values()] == [not path.exists() for path in paths]
    assert 0 < sum(path.exists() for path in paths) < 8


def test_every_mistake_in_faults_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Faults.parse("drop=lots, speed=2, reorder=0.5")
    assert len(caught.value.mistakes) == 3
    with pytest.raises(ConfigError, match=r"drop: expected a share from 0 to 1, got 2.0\nfaults burst"):
        Faults.parse("drop=2, burst=0")
    assert Faults.parse("") == Faults()
    assert Faults.parse("drop = 0.5,reorder=3") == Faults(drop=0.5, reorder=3)
