"""Whatever the delivery, the output is the true series with exactly the gaps that it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtevo.ingest import FolderSource, Volume
from rtevo.records import Grid, VolumeFlag
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.faults import Fate, Faults, deliver

Made = Any  # the class in conftest.py
VOLUMES = 4
PATIENCE_S, STALL_S = 3.0, 10.0


class Clock:
    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


class Recording:
    """A small series: the bytes of its files, which volume each belongs to, and what the volumes hold."""

    def __init__(self, files: list[bytes], volume_of: list[int], data: list[NDArray[np.float32]]) -> None:
        self.files = files
        self.volume_of = volume_of
        self.data = data


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, make: type[Made], encode: Callable[..., bytes]) -> dict[str, Recording]:
    rng = np.random.default_rng(0)
    grid = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
    volumes = [rng.integers(0, 4096, grid.shape).astype(np.float32) for _ in range(VOLUMES)]
    writer = MosaicWriter(tmp_path_factory.mktemp("recording"), grid, 2.0, description="bold task")
    made = make()
    places = [(v, k) for v in range(VOLUMES) for k in range(5)]
    owners = [v for v, _ in places]
    data = [made.data(v) for v in range(VOLUMES)]
    return {
        "mosaic": Recording([writer.encode(v, x) for v, x in enumerate(volumes)], list(range(VOLUMES)), volumes),
        "philips": Recording([encode(made.slice(v, k)) for v, k in places], owners, data),
        "ge": Recording([encode(made.slice(v, k, "GE")) for v, k in places], owners, data),
        "enhanced": Recording([encode(made.enhanced([v], instance=v + 1)) for v in range(VOLUMES)], list(range(VOLUMES)), data),
    }


shares = st.sampled_from([0.0, 0.0, 0.1, 0.4])
deliveries = st.builds(
    Faults,
    drop=shares,
    duplicate=shares,
    truncate=shares,
    grow=shares,
    rename=shares,
    stranger=shares,
    stall=shares,
    stall_files=st.integers(0, 9),
    reorder=st.sampled_from([0, 0, 1, 6, 30]),
    burst=st.sampled_from([1, 1, 3, 50]),
)


def check(volumes: list[Volume], whole: set[int], known: set[int], recording: Recording) -> None:
    """Every whole volume once and right; a gap for each other one up to the last that is known of; in order but for late ones."""
    last = max(known, default=-1) if whole else -1
    in_order = [volume.index for volume in volumes if VolumeFlag.LATE not in volume.flags]
    assert in_order == list(range(last + 1))
    got = [volume.index for volume in volumes if volume.data is not None]
    assert sorted(got) == sorted(whole)
    late = {volume.index for volume in volumes if VolumeFlag.LATE in volume.flags}
    gaps = {volume.index for volume in volumes if VolumeFlag.MISSING in volume.flags}
    assert gaps == set(range(last + 1)) - whole | late
    for volume in volumes:
        if volume.data is not None:
            np.testing.assert_array_equal(volume.data, recording.data[volume.index])


@settings(max_examples=150, deadline=None)
@example(faults=Faults(drop=0.1, truncate=0.4, stranger=0.4), seed=434, kind="mosaic", polls=0, pause_s=0.0)  # only strangers are left
@given(
    faults=deliveries,
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["mosaic", "philips", "ge", "enhanced"]),
    polls=st.integers(0, 5),
    pause_s=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_any_delivery_gives_the_true_series_and_its_gaps(
    faults: Faults,
    seed: int,
    kind: str,
    polls: int,
    pause_s: float,
    recordings: dict[str, Recording],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    recording = recordings[kind]
    folder = tmp_path_factory.mktemp("watched")
    clock = Clock()
    source = FolderSource(folder, series="bold task", patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
    volumes: list[Volume] = []
    changes = 0

    def look() -> None:
        nonlocal changes
        changes += 1
        if polls and changes % polls == 0:
            clock.now_ns += int(pause_s * 1e9)
            volumes.extend(source.poll())

    files = [(f"{number:04d}.dcm", contents) for number, contents in enumerate(recording.files)]
    delivery = deliver(files, folder, faults, seed=seed, on_change=look)
    volumes += source.finish()
    fates = list(delivery.fates.values())
    count = len(fates)
    copied = {i for i in range(count) if Fate.COPIED in fates[i]}
    good = {i for i in range(count) if not fates[i] & (Fate.LOST | Fate.CUT)} | copied
    whole = {v for v in range(VOLUMES) if all(i in good for i in range(count) if recording.volume_of[i] == v)}
    begun = {recording.volume_of[i] for i in good}
    named = {recording.volume_of[i] for i in range(count) if Fate.CUT in fates[i]}  # some headers of these can be read, some not
    known = begun | {v for v in named if any(volume.index == v for volume in volumes)}
    check(volumes, whole, known, recording)
    assert source.duplicates == sum(Fate.COPIED in fate and not fate & (Fate.LOST | Fate.CUT) for fate in fates) + repeated(folder)
    assert source.pending == 0
    assert source.seen >= len(list(folder.iterdir()))  # a file that was renamed was seen under both names
    shutil.rmtree(folder)


def repeated(folder: Path) -> int:
    """Pictures among the strangers that came before."""
    pictures = [path.name[5:] for path in folder.glob("*-*.dcm")]
    return len(pictures) - len(set(pictures))


@settings(max_examples=40, deadline=None)
@given(faults=deliveries, seed=st.integers(0, 1000), polls=st.integers(1, 5))
def test_any_delivery_of_nifti_files(faults: Faults, seed: int, polls: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 4096, (8, 6, 5)).astype(np.int16) for _ in range(6)]
    files = [(f"vol_{k + 1:03d}.nii", nibabel.Nifti1Image(x, np.diag([-3.0, 3, 3.5, 1])).to_bytes()) for k, x in enumerate(data)]
    folder = tmp_path_factory.mktemp("watched")
    clock = Clock()
    source = FolderSource(folder, series="vol", patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
    volumes: list[Volume] = []
    changes = 0

    def look() -> None:
        nonlocal changes
        changes += 1
        if changes % polls == 0:
            clock.now_ns += 10**9
            volumes.extend(source.poll())

    faults = replace(faults, duplicate=0.0, rename=0.0)  # a NIfTI file is known by its name only
    fates = list(deliver(files, folder, faults, seed=seed, on_change=look).fates.values())
    volumes += source.finish()
    whole = {k for k, fate in enumerate(fates) if not fate & (Fate.LOST | Fate.CUT)}
    check(volumes, whole, whole, Recording([], [], data))
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["siemens-mosaic", "siemens-xa30-enhanced", "ge-slices"])
def test_a_recorded_series_delivered_wrongly(name: str, scanner_data: Callable[[str], Path], tmp_path: Path) -> None:
    recording = scanner_data(name) / "dicom"
    expected = {volume.index: volume for volume in FolderSource(recording, patience_s=0).finish()}
    owner = {file: volume.index for volume in expected.values() for file in volume.files}
    files = [(path.name, path.read_bytes()) for path in sorted(recording.iterdir()) if path.name in owner]
    for seed in range(4):
        folder, clock = tmp_path / str(seed), Clock()
        source = FolderSource(folder, patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
        faults = "drop=0.02, duplicate=0.05, truncate=0.02, grow=0.2, rename=0.1, stranger=0.05, stall=0.03, reorder=6"
        volumes: list[Volume] = []

        def look(source: FolderSource = source, clock: Clock = clock, volumes: list[Volume] = volumes) -> None:
            clock.now_ns += 10**8
            volumes.extend(source.poll())

        fates = deliver(files, folder, faults, seed=seed, on_change=look).fates
        volumes += source.finish()
        bad = {owner[file] for file, fate in fates.items() if fate & (Fate.LOST | Fate.CUT) and Fate.COPIED not in fate}
        got = {volume.index: volume for volume in volumes if volume.data is not None}
        assert set(got) == set(expected) - bad
        for index, volume in got.items():
            np.testing.assert_array_equal(volume.data, expected[index].data)
