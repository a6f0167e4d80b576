"""From a file being complete to its volume being in the ring, against one dcm2niix call on the same files; and what idle polling costs.

Run as a script, ``python bench/bench_ingest.py [--json FILE] [--volumes N] [--recorded DIR]``, it prints a table and writes everything as
JSON. Every volume is checked before anything counts. Files come into the watched folder by a rename, so that the moment at which they
are complete is known; the clock starts then, and the folder is looked at once. Wall-clock time is what a session waits; CPU time is
what it would be on a machine that does nothing else. The first volume of a series is left out: it pays for the choice of the series.

Series: an 80 x 80 x 35 volume as a Siemens mosaic, as an enhanced multi-frame file and as 35 slice files, with headers as large as the
recorded ones (about 6 KB a frame, 8 KB a slice); and recorded series where there are some.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from rtevo.ingest import FolderSource, Volume
from rtevo.records import Grid, put_volume, volume_dtype, volume_of
from rtevo.shm import Ring
from rtevo.simulate.dicom import MosaicWriter

SHAPE, TR_S = (80, 80, 35), 1.0
AFFINE = np.array([[-2.5, 0, 0, 100], [0, 2.5, 0, -100], [0, 0, 3.0, -50], [0, 0, 0, 1]])
TARGETS_MS = {"mosaic": 15.0, "enhanced": 15.0, "slices": 40.0}  # p99
IDLE_FILES, POLL_S, IDLE_TARGET = 10_000, 0.02, 0.02
LARGE_FILES, LARGE_FOLDERS, LARGE_VOLUMES = 200_000, 1000, 20
FRAME_BYTES, SLICE_BYTES = 6000, 7000  # of further header


def make_volume(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 4096, SHAPE).astype(np.uint16)


def base(*what: object) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.4", ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[repr(what)])
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = (generate_uid(entropy_srcs=[str(what[0]), name]) for name in ("study", "series"))
    data.ImageType, data.Modality, data.SeriesDescription, data.SeriesNumber = ["ORIGINAL", "PRIMARY", "M", "FFE"], "MR", "bold", 3
    data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = ["EP", "GR"], "SK", "2D"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.Rows, data.Columns = 1, "MONOCHROME2", SHAPE[1], SHAPE[0]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.EchoTime, data.StudyDate, data.StudyTime = 30, "20260102", "101500"
    return data


def bulk(data: Dataset, size: int) -> None:
    """Private elements as scanners write them, of `size` bytes together."""
    block = data.private_block(0x2005, "rtevo benchmark", create=True)
    for k in range(size // 100):
        block.add_new(k, "LO", "x" * 60)


def position(index: int) -> list[float]:
    return [-100.0, -97.5, -50 + 3.0 * index]


def slice_file(volume: int, index: int) -> FileDataset:
    data = base("slices", volume, index)
    data.Manufacturer, data.RepetitionTime, data.SliceThickness = "Philips Medical Systems", TR_S * 1000, 3
    data.SpacingBetweenSlices, data.PixelSpacing, data.ImageOrientationPatient = 3, [2.5, 2.5], [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient, data.TemporalPositionIdentifier, data.NumberOfTemporalPositions = position(index), volume + 1, 1000
    data.InstanceNumber, data.AcquisitionNumber = index * 1000 + volume + 1, 3
    data.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x18, "SL", SHAPE[2])
    data.PixelData = make_volume(volume)[:, ::-1, index].T.tobytes()
    bulk(data, SLICE_BYTES)
    return data


def enhanced_file(volume: int) -> FileDataset:
    data = base("enhanced", volume)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    data.Manufacturer, data.InstanceNumber, data.AcquisitionNumber, data.NumberOfFrames = "SIEMENS", volume + 1, volume + 1, SHAPE[2]
    timing, measures, orientation, shared = Dataset(), Dataset(), Dataset(), Dataset()
    timing.RepetitionTime, orientation.ImageOrientationPatient = TR_S * 1000, [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [2.5, 2.5], 3, 3
    shared.MRTimingAndRelatedParametersSequence, shared.PixelMeasuresSequence = Sequence([timing]), Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    frames = []
    for k in range(SHAPE[2]):
        frame, content, place = Dataset(), Dataset(), Dataset()
        content.FrameAcquisitionDateTime = f"2026010210{15 + volume // 60:02d}{volume % 60 + k / 100:09.6f}"
        content.TemporalPositionIndex, content.InStackPositionNumber, content.StackID = volume + 1, k + 1, "1"
        content.DimensionIndexValues, place.ImagePositionPatient = [1, k + 1, volume + 1], position(k)
        frame.FrameContentSequence, frame.PlanePositionSequence = Sequence([content]), Sequence([place])
        bulk(frame, FRAME_BYTES)
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    data.PixelData = np.ascontiguousarray(make_volume(volume)[:, ::-1].transpose(2, 1, 0)).tobytes()
    return data


def synthetic(kind: str, volumes: int, folder: Path) -> list[list[Path]]:
    """Write a series; returns the files of each volume."""
    if kind == "mosaic":
        writer = MosaicWriter(folder, Grid(SHAPE, AFFINE), TR_S, description="bold")
        return [[writer.write(v, make_volume(v).astype(np.float32))] for v in range(volumes)]
    files = []
    for v in range(volumes):
        made = [enhanced_file(v)] if kind == "enhanced" else [slice_file(v, k) for k in range(SHAPE[2])]
        files.append([folder / f"{v:04d}-{k:03d}.dcm" for k in range(len(made))])
        for path, data in zip(files[-1], made, strict=True):
            data.save_as(path, enforce_file_format=True)
    return files


def recorded(folder: Path) -> list[list[Path]]:
    """Files of a recorded series by volume."""
    source = FolderSource(folder, patience_s=0, pixels=False)
    volumes = source.poll() + source.finish()
    return [[folder / name for name in volume.files] for volume in volumes]


class Watched:
    """A watched folder and the ring behind it."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.source = FolderSource(folder, patience_s=60)
        self.ring = Ring.create(f"/rtevo-i{os.getpid()}", volume_dtype(math.prod(shape)), 4, ["a"], writer=True, reader="a")

    def deliver(self, files: list[Path], copies: Path) -> tuple[Volume, float, float]:
        """Put a volume's files into the folder; the volume, and wall-clock and CPU time until it was in the ring, ms."""
        for path in files:
            shutil.copyfile(path, copies / path.name)
        names = [(copies / path.name, self.folder / path.name) for path in files]
        for before, after in names:
            os.rename(before, after)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        (volume,) = self.source.poll()
        with self.ring.reserve(timeout_s=1) as slot:
            slot["index"] = volume.index
            put_volume(slot, volume.data, volume.grid)
        end, end_cpu = time.perf_counter(), time.process_time()
        with self.ring.read(timeout_s=1) as slot:
            assert (volume_of(slot)[0] == volume.data).all()
        return volume, (end - begin) * 1e3, (end_cpu - begin_cpu) * 1e3


def summary(times: list[float]) -> dict[str, float]:
    return {"p50": float(np.median(times)), "p99": float(np.percentile(times, 99)), "max": max(times), "n": len(times)}


def measure(name: str, files: list[list[Path]], folder: Path, check: Callable[[int], np.ndarray] | None) -> dict[str, Any]:
    """Deliver a series and time each volume, and dcm2niix on one volume's files in between."""
    first = FolderSource(files[0][0].parent, patience_s=60)
    volume = first.poll()[0]
    assert volume.data is not None
    watched, copies, single = folder / "watched", folder / "copies", folder / "single"
    for made in (watched, copies, single):
        made.mkdir()
    target = Watched(watched, volume.grid.shape)
    wall, cpu, converter = [], [], []
    with target.ring:
        for index, paths in enumerate(files):
            got, wall_ms, cpu_ms = target.deliver(paths, copies)
            assert got.index == index
            assert check is None or (got.data == check(index)).all(), f"{name}: volume {index} differs"
            if index:
                wall.append(wall_ms)
                cpu.append(cpu_ms)
            if index in (1, len(files) // 2, len(files) - 1):
                converter.append(dcm2niix(paths, single))
    return {
        "series": name,
        "shape": volume.grid.shape,
        "files_per_volume": len(files[0]),
        "bytes_per_volume": sum(path.stat().st_size for path in files[0]),
        "wall_ms": summary(wall),
        "cpu_ms": summary(cpu),
        "dcm2niix_ms": min(converter),
        "target_p99_ms": TARGETS_MS.get(name),
    }


def dcm2niix(paths: list[Path], folder: Path) -> float:
    """Time of one dcm2niix call on one volume's files, ms, without the start of a Python interpreter."""
    from dcm2niix import bin_path

    for path in paths:
        shutil.copyfile(path, folder / path.name)
    out = folder / "out"
    out.mkdir()
    begin = time.perf_counter()
    subprocess.run([bin_path, "-b", "n", "-z", "n", "-o", str(out), str(folder)], capture_output=True, check=True)
    elapsed = (time.perf_counter() - begin) * 1e3
    assert list(out.glob("*.nii")), "dcm2niix converted nothing"
    shutil.rmtree(out)
    for path in paths:
        (folder / path.name).unlink()
    return elapsed


def idle(folder: Path, seconds: float) -> dict[str, float]:
    """CPU share of polling a folder of many files in which nothing happens."""
    data = slice_file(0, 0)
    data.Rows = data.Columns = 8
    data.PixelData = bytes(128)
    for k in range(IDLE_FILES):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
        data.ImagePositionPatient, data.TemporalPositionIdentifier = position(k % 35), k // 35 + 1
        data.save_as(folder / f"{k:05d}.dcm", enforce_file_format=True)
    source = FolderSource(folder, patience_s=60)
    while source.seen < IDLE_FILES:
        source.poll()
    calls: list[float] = []
    begin, begin_cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        source.poll()
        calls.append((time.perf_counter() - start) * 1e3)
        time.sleep(POLL_S)
    share = (time.process_time() - begin_cpu) / (time.perf_counter() - begin)
    return {"files": IDLE_FILES, "poll_interval_s": POLL_S, "share_of_a_core": share, "target": IDLE_TARGET, **summary(calls)}


def large(folder: Path, files: int, folders: int, seconds: float) -> dict[str, Any]:
    """A session's source over a folder of many old files: its start, polls in which nothing happens, and new volumes, hot and quiet."""
    folder.mkdir()
    grid, data = Grid((8, 6, 5), AFFINE), np.ones((8, 6, 5), np.float32)
    places = [folder / f"participant-{k // 20:03d}" / f"series-{k:04d}" for k in range(folders)]
    for k, place in enumerate(places):
        contents = MosaicWriter(place, grid, TR_S, description="bold", series_number=k + 1).encode(0, data)
        for index in range(files // folders):
            (place / f"{index:05d}.dcm").write_bytes(contents)
            os.utime(place / f"{index:05d}.dcm", (1.7e9 + k, 1.7e9 + index))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    source = FolderSource(folder, patience_s=60, confined=True, settle_s=0.02)
    source.pass_over_present()
    found: dict[str, Any] = {"files": files, "folders": folders, "start_s": time.perf_counter() - start}
    found |= {"start_cpu_s": time.process_time() - start_cpu, "polls_ms": [], "quiet_ms": [], "hot_ms": []}
    begin, begin_cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        assert source.poll() == []
        found["polls_ms"].append((time.perf_counter() - start) * 1e3)
        time.sleep(POLL_S / 2)
    found["share_of_a_core"] = (time.process_time() - begin_cpu) / (time.perf_counter() - begin)
    today = {}
    for index in range(LARGE_VOLUMES):
        for kind, place in (("quiet", places[(7 + 13 * index) % folders]), ("hot", places[0])):
            writer = today.setdefault(place, MosaicWriter(place, grid, TR_S, description="bold", series_number=folders + 1 + len(today)))
            part = writer.path(index).with_suffix(".part")
            part.write_bytes(writer.encode(index, data))
            os.utime(part, (1.7e9, 1.7e9))  # a copy that keeps old times: nothing to wait for
            seen, start = source.seen, time.perf_counter()
            part.rename(writer.path(index))
            while source.seen == seen and time.perf_counter() - start < 2 * 60:
                source.poll()
                time.sleep(POLL_S / 2)
            found[f"{kind}_ms"].append((time.perf_counter() - start) * 1e3)
    overwritten = places[folders // 2] / "00001.dcm"
    seen, start = source.seen, time.perf_counter()
    overwritten.write_bytes(MosaicWriter(places[1], grid, TR_S, description="bold", series_number=9999).encode(0, data))
    while source.seen == seen and time.perf_counter() - start < 2 * 60:
        source.poll()
        time.sleep(POLL_S / 2)
    found |= {"overwritten_s": time.perf_counter() - start}
    found["memory_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for name in ("polls_ms", "quiet_ms", "hot_ms"):
        found[name] = summary(found[name][name == "hot_ms" :])  # the first hot one is not hot yet
    return found


def large_lines(found: dict[str, Any]) -> Iterator[str]:
    """The figures with their goals, misses as misses."""

    def against(what: str, value: float, unit: str, goal: float) -> str:
        return f"  {what:<52}{value:>9.1f} {unit:<3} goal {goal:g}{'' if value <= goal else '  MISSED'}"

    yield f"large folder: {found['files']} old files in {found['folders']} folders"
    yield against("start", found["start_s"], "s", 5) + f" ({found['start_cpu_s']:.1f} s of CPU)"
    yield against("idle poll, p99", found["polls_ms"]["p99"], "ms", 20)
    yield against("idle poll, max", found["polls_ms"]["max"], "ms", 20)
    yield against("new volume in a hot folder, max", found["hot_ms"]["max"], "ms", 100)
    yield against("new volume in a quiet folder, max", found["quiet_ms"]["max"], "ms", 60_000)
    yield against("file overwritten in place in a quiet folder", found["overwritten_s"], "s", 60)
    yield f"  polling takes {found['share_of_a_core']:.1%} of a core, the listing {found['memory_mb']:.0f} MB"


def hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    versions = {"python": platform.python_version(), "numpy": np.__version__, "pydicom": pydicom.__version__}
    return {"processor": model, "cores": os.cpu_count(), "load": os.getloadavg(), **versions}


def table(results: list[dict[str, Any]], idling: dict[str, float]) -> Iterator[str]:
    headings = ("files", "wall ms p50", "p99", "max", "cpu ms p50", "p99", "target p99", "dcm2niix ms")
    yield f"{'series':<32}" + "".join(f"{name:>{width}}" for name, width in zip(headings, (6, 13, 8, 8, 12, 8, 12, 13), strict=True))
    for r in results:
        wall, cpu, target = r["wall_ms"], r["cpu_ms"], r["target_p99_ms"]
        yield (
            f"{r['series']:<32}{r['files_per_volume']:>6}{wall['p50']:>13.1f}{wall['p99']:>8.1f}{wall['max']:>8.1f}{cpu['p50']:>12.1f}"
            f"{cpu['p99']:>8.1f}{target or float('nan'):>12.0f}{r['dcm2niix_ms']:>13.1f}"
        )
    yield (
        f"idle: {idling['share_of_a_core']:.2%} of a core for {idling['files']} files at {idling['poll_interval_s'] * 1e3:.0f} ms "
        f"(target {idling['target']:.0%}); a look takes {idling['p50'] * 1e3:.0f} us, at most {idling['max']:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--volumes", type=int, default=100, help="of each synthetic series")
    parser.add_argument("--recorded", type=Path, action="append", default=[], metavar="DIR", help="folder of a recorded series")
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--large", type=int, nargs=2, metavar=("FILES", "FOLDERS"), default=(LARGE_FILES, LARGE_FOLDERS))
    parser.add_argument("--only-large", action="store_true", help="nothing but the large folder")
    options = parser.parse_args()
    machine, results = hardware(), []
    print(f"{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]:.1f}, Python {machine['python']}")
    with tempfile.TemporaryDirectory() as temporary:
        many = large(Path(temporary, "large"), *options.large, options.idle_s)
    print("\n".join(large_lines(many)), flush=True)
    if options.only_large:
        return
    with tempfile.TemporaryDirectory() as temporary:
        for kind in TARGETS_MS:
            folder = Path(temporary, kind)
            (folder / "recording").mkdir(parents=True)
            files = synthetic(kind, options.volumes, folder / "recording")
            results.append(measure(kind, files, folder, make_volume))
            shutil.rmtree(folder)
        for number, recording in enumerate(options.recorded):
            folder = Path(temporary, str(number))
            folder.mkdir()
            results.append(measure("/".join(recording.resolve().parts[-2:]), recorded(recording), folder, None))
        folder = Path(temporary, "idle")
        folder.mkdir()
        idling = idle(folder, options.idle_s)
    print("\n".join(table(results, idling)))
    if options.json:
        options.json.write_text(json.dumps({"hardware": machine, "series": results, "idle": idling, "large": many}, indent=1))


# -- pytest-benchmark ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TARGETS_MS)
def test_file_to_volume(benchmark: Any, kind: str, tmp_path: Path) -> None:
    (tmp_path / "recording").mkdir()
    files = synthetic(kind, 1, tmp_path / "recording")

    def read() -> Volume:
        source = FolderSource(files[0][0].parent, patience_s=60)
        return source.poll()[0]

    volume = read()
    assert volume.data is not None
    assert (volume.data == make_volume(0)).all()
    benchmark(read)


if __name__ == "__main__":
    sys.exit(main())
