"""What is in a folder: its series, and the one that a run would use."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rtevo.errors import DataError
from rtevo.ingest.dicom import why_undecodable
from rtevo.ingest.folder import FolderSource
from rtevo.ingest.selection import Stream
from rtevo.ingest.volume import Volume
from rtevo.progress import Progress
from rtevo.records import Grid, VolumeFlag

__all__ = ["SeriesInfo", "Survey", "describe", "survey"]


@dataclass(frozen=True, eq=False)
class SeriesInfo:
    """One component and echo of a series in a folder.

    Parameters
    ----------
    grid : Grid
        Shape and RAS+ affine of its volumes.
    tr_s : float or None
        Repetition time in seconds; from the acquisition times where the header has none, or they contradict it.
    n_volumes : int
        Length of the run in volumes, those that are missing included.
    vendor, kind, description : str
        As in :class:`rtevo.ingest.header.SeriesHeader`.
    number : int or None
        Series number.
    uid : str
        Series instance UID.
    component, echo, te_ms : str, int, float
        ``"M"`` magnitude, ``"P"`` phase, ...; number of the echo (1 = first) and echo time.
    announced : int or None
        Number of volumes that the header announces.
    missing : tuple of int
        Volumes of which no whole data are there.
    files : int
        Number of files.
    likely : bool
        Whether it looks functional.
    why : str
        Why it does or does not.
    problems : tuple of str
        What is wrong with it.
    acquired_from : str
        Where the volumes' acquisition times come from; empty where the headers have none that tell volumes apart.
    slice_times_s : tuple of float or None
        When each slice of a volume was acquired, from the volume's start, seconds; None where the header does not say.
    """

    grid: Grid
    tr_s: float | None
    n_volumes: int
    vendor: str
    kind: str
    description: str
    number: int | None
    uid: str
    component: str
    echo: int
    te_ms: float
    announced: int | None
    missing: tuple[int, ...]
    files: int
    likely: bool
    why: str
    problems: tuple[str, ...]
    acquired_from: str = ""
    slice_times_s: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Survey:
    """Everything in a folder.

    Parameters
    ----------
    run : SeriesInfo or None
        What a run would use; None where there is no such series, and `reason` says why.
    volumes : list of Volume
        Of `run`, without data.
    series : list of SeriesInfo
        Every series with at least one whole volume.
    problems : list of str
        Files that are of no use, and other things to know.
    duplicates : int
        Copies of files.
    extra_files : list of (str, int or None)
        Copies and damaged files of the run: path below the folder, and the volume that they belong to where that is known.
    reason : str
        Why there is no run, else empty.
    """

    run: SeriesInfo | None
    volumes: list[Volume]
    series: list[SeriesInfo]
    problems: list[str]
    duplicates: int
    extra_files: list[tuple[str, int | None]]
    reason: str


def describe(folder: Path | str, series: str | None = None, progress: Progress | None = None) -> SeriesInfo:
    """Describe the series that a run over a folder would use.

    Parameters
    ----------
    folder : path
        Folder of DICOM files; folders in it are looked into.
    series : str, optional
        Number, UID, or (part of) description or protocol name; None takes what looks functional.
    progress : Progress, optional
        Called before each file.

    Returns
    -------
    SeriesInfo

    Raises
    ------
    DataError
        If there is no such folder, no DICOM file in it, no series to use, no whole volume, or no decoder for its pixels.
    """
    found = survey(folder, series, progress)
    if found.run is None:
        raise DataError(found.reason)
    return found.run


def survey(folder: Path | str, series: str | None = None, progress: Progress | None = None, echoes: int = 1) -> Survey:
    """List what is in a folder.

    Parameters
    ----------
    folder, series, progress
        As for :func:`describe`.
    echoes : int
        So many echoes make the run: their files are named with its volumes.

    Returns
    -------
    Survey

    Raises
    ------
    DataError
        If there is no such folder.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: expected a folder of DICOM files, found {'a file' if os.path.exists(folder) else 'nothing'}")
    source = FolderSource(folder, series=series, patience_s=math.inf, stall_s=math.inf, pixels=False, progress=progress)
    source.read_all()
    volumes = {stream.key: stream.assembler.advance(0.0, final=True) for stream in source.streams}
    infos = {stream.key: _info(stream, volumes[stream.key]) for stream in source.streams if volumes[stream.key]}
    run = source.settle()
    problems = list(source.problems)
    reason, extra = "", []
    if run is None:
        reason = f"{folder}: {source.explain()}"
    elif run.key not in infos:
        reason = f"{folder}: {run.label}: none of its volumes is whole"
    elif why := _undecodable(folder, run):
        reason = f"{folder}: {run.label}: {why}"
    else:
        extra = source.extra_files()
    if reason and problems:
        reason += "".join(f"\n  {problem}" for problem in problems[:10]) + ("\n  ..." if len(problems) > 10 else "")
    info = infos.get(run.key) if run and not reason else None
    run_volumes = volumes[run.key] if run and info else []
    if echoes > 1 and run is not None:
        run_volumes = _with_echoes(run_volumes, [each for key, each in volumes.items() if key[:2] == run.key[:2] and key != run.key])
    return Survey(info, run_volumes, list(infos.values()), problems, source.duplicates, extra, reason)


def _with_echoes(volumes: list[Volume], others: list[list[Volume]]) -> list[Volume]:
    """Add the other echoes' files to those of a run's volumes."""
    files = {(volume.index, name): None for echo in (volumes, *others) for volume in echo for name in volume.files}
    return [replace(volume, files=tuple(name for index, name in files if index == volume.index)) for volume in volumes]


def _undecodable(folder: Path | str, run: Stream) -> str:
    """Why neither the first nor the last of a run's files can be decoded, where that is so: only headers were read."""
    names = sorted(run.files) if run.series.kind in ("mosaic", "slices", "enhanced") else []
    found = [why_undecodable(os.path.join(folder, name)) for name in dict.fromkeys([*names[:1], *names[-1:]])]
    return found[0] if found and all(found) else ""


def _info(stream: Stream, volumes: list[Volume]) -> SeriesInfo:
    header = stream.series
    missing = tuple(volume.index for volume in volumes if VolumeFlag.MISSING in volume.flags)
    return SeriesInfo(
        grid=volumes[0].grid,
        tr_s=stream.assembler.tr_s or _interval_s(volumes),
        n_volumes=volumes[-1].index + 1,
        vendor=header.vendor,
        kind=header.kind,
        description=header.description or header.protocol,
        number=header.number,
        uid=header.uid,
        component=stream.key.component,
        echo=stream.echo,
        te_ms=stream.te_ms,
        announced=header.volumes,
        missing=missing,
        files=len(stream.files),
        likely=int(stream.likeness) == 0,
        why=stream.why,
        problems=tuple(stream.assembler.problems),
        acquired_from=stream.assembler.acquired_from,
        slice_times_s=next((tuple(v.slice_times_s.tolist()) for v in volumes if v.slice_times_s is not None), None),
    )


def _interval_s(volumes: list[Volume]) -> float | None:
    """Median time between acquisitions, where the headers have their times."""
    steps = [(b.acquired_s - a.acquired_s) / (b.index - a.index) for a, b in itertools.pairwise(volumes)]
    finite = [step for step in steps if math.isfinite(step) and step > 0]
    return round(float(np.median(finite)), 6) if finite else None
