"""Runs and scans from files of any kind: a folder of DICOM files, one DICOM file, NIfTI."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from rtevo.decode.elsewhere import Volume, steady
from rtevo.errors import DataError
from rtevo.progress import Progress
from rtevo.realign.series import Run, open_nifti
from rtevo.records import Grid

__all__ = ["open_run", "open_scan", "read_scan"]


def open_run(path: Path, series: str | None = None, progress: Progress | None = None) -> Run:
    """Open a run: a folder of DICOM files, or a NIfTI file.

    Parameters
    ----------
    path : Path
    series : str, optional
        Which series of a folder.
    progress : Progress, optional
        Called before each file of a folder.

    Raises
    ------
    DataError
        There is no volume in it, or no file that can be read.
    """
    if not path.is_dir():
        return open_nifti(path)
    from rtevo.ingest import FolderSource, describe

    info = describe(path, series, progress)
    source = FolderSource(path, series=series, patience_s=0.0, progress=progress)
    volumes = {volume.index: volume.data for volume in (*source.poll(), *source.finish())}
    if not volumes:
        raise DataError(f"{path}: expected at least one volume, found none: {'; '.join(source.problems)}")
    return Run(info.grid, math.nan if info.tr_s is None else float(info.tr_s), max(volumes) + 1, volumes.get)


def open_scan(path: Path, series: str | None = None) -> Run:
    """Open what there is of a head: as :func:`open_run`, or a single DICOM file.

    Raises
    ------
    DataError
        There is nothing, or no whole volume in it.
    """
    if path.is_dir() or path.name.endswith((".nii", ".nii.gz")):
        return open_run(path, series)
    if not path.is_file():
        raise DataError(f"{path}: expected a file or a folder, found nothing")
    from rtevo.ingest import survey

    with tempfile.TemporaryDirectory(prefix="rtevo-scan-") as place:
        (Path(place) / path.name).symlink_to(path.resolve())
        found = survey(Path(place), series)
        info = found.run or (found.series[0] if len(found.series) == 1 else None)
        if info is None:
            raise DataError(f"{path}: {found.reason or 'expected a whole volume in the file, found none'} (or name its folder)")
        return open_run(Path(place), info.uid)


def read_scan(path: Path, series: str | None = None) -> tuple[Volume, Grid]:
    """Read a scan as a reference: the mean of its first steady volumes, float32 (X, Y, Z), and its grid.

    Raises
    ------
    DataError
        As :func:`open_scan`.
    """
    run = open_scan(path, series)
    return steady(run)[0], run.grid
