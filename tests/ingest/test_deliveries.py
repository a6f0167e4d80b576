"""Whatever the delivery, the output is the true series with exactly the gaps that it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtevo.ingest import FolderSource, Volume
from rtevo.records import Grid, VolumeFlag
from rtevo.simulate.dicom import MosaicWriter

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
    writer = MosaicWriter(tmp_path_factory.mktemp("recording"), grid, 2.0)
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


deliveries = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["mosaic", "philips", "ge", "enhanced"]),
        "order": st.randoms(use_true_random=False),
        "sorted": st.booleans(),
        "dropped": st.sets(st.integers(0, VOLUMES * 5 - 1), max_size=3),
        "copied": st.lists(st.integers(0, VOLUMES * 5 - 1), max_size=4),
        "cut": st.dictionaries(st.integers(0, VOLUMES * 5 - 1), st.floats(0, 0.999), max_size=3),
        "growing": st.sets(st.integers(0, VOLUMES * 5 - 1), max_size=3),
        "polls": st.integers(0, 5),
        "pause_s": st.sampled_from([0.0, 0.5, 2.0]),
    }
)


def deliver(plan: dict[str, Any], recording: Recording, folder: Path, source: FolderSource, clock: Clock) -> list[Volume]:
    """Write the files as planned, looking at the folder now and then; returns what came out."""
    count = len(recording.files)
    jobs: list[tuple[int, bytes]] = [(i, recording.files[i]) for i in range(count) if i not in plan["dropped"]]
    jobs = [(i, contents[: int(len(contents) * plan["cut"].get(i, 1.0))]) for i, contents in jobs]
    jobs += [(i % count, recording.files[i % count]) for i in plan["copied"]]
    if not plan["sorted"]:
        plan["order"].shuffle(jobs)
    volumes: list[Volume] = []
    for number, (i, contents) in enumerate(jobs):
        path = folder / f"{(number * 7919) % 1009:04d}.dcm"
        if i in plan["growing"]:
            for end in (0, len(contents) // 3, len(contents) - 1):
                path.write_bytes(contents[: max(end, 0)])
                volumes += source.poll()
        path.write_bytes(contents)
        if plan["polls"] and number % plan["polls"] == 0:
            clock.now_ns += int(plan["pause_s"] * 1e9)
            volumes += source.poll()
    return volumes


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


@settings(max_examples=120, deadline=None)
@given(plan=deliveries)
def test_any_delivery_gives_the_true_series_and_its_gaps(
    plan: dict[str, Any], recordings: dict[str, Recording], tmp_path_factory: pytest.TempPathFactory
) -> None:
    recording = recordings[plan["kind"]]
    count = len(recording.files)
    folder = tmp_path_factory.mktemp("watched")
    clock = Clock()
    source = FolderSource(folder, patience_s=PATIENCE_S, stall_s=STALL_S, clock_ns=clock)
    volumes = deliver(plan, recording, folder, source, clock) + source.finish()
    copied = {i % count for i in plan["copied"]}
    cut = {i for i in plan["cut"] if i < count and i not in plan["dropped"]}
    good = ({i for i in range(count)} - plan["dropped"] - cut) | copied
    whole = {v for v in range(VOLUMES) if all(i in good for i in range(count) if recording.volume_of[i] == v)}
    begun = {recording.volume_of[i] for i in good}
    named = {recording.volume_of[i] for i in cut}  # some headers of these can be read, some not
    known = begun | {v for v in named if any(volume.index == v for volume in volumes)}
    check(volumes, whole, known, recording)
    sent_whole = count - len(cut | {i for i in plan["dropped"] if i < count}) + len(plan["copied"])
    assert source.duplicates == sent_whole - len(good)
    assert source.pending == 0
    assert source.seen == len(list(folder.iterdir()))
    shutil.rmtree(folder)
