"""A whole run at once: the same estimates, in the same order, as in a running session."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError, GeometryError
from rtevo.realign.measures import framewise_displacement
from rtevo.realign.realigner import Motion, Realigner
from rtevo.records import MOTION_COLUMNS, Grid, VolumeFlag

__all__ = ["NiftiWriter", "Run", "align_run", "mean_aligned", "open_nifti", "write_motion"]

Volume = NDArray[np.float32]
COLUMNS = ["volume", "onset", "flags", *MOTION_COLUMNS, "framewise_displacement", "residual", "correlation", "iterations"]


@dataclass(frozen=True, eq=False)
class Run:
    """A recorded run.

    Parameters
    ----------
    grid : Grid
    tr_s : float
        Repetition time, s; NaN where unknown.
    count : int
        Volumes, missing ones included.
    volume : callable
        Index to volume, float32 (X, Y, Z); None where it is missing.
    """

    grid: Grid
    tr_s: float
    count: int
    volume: Callable[[int], Volume | None]

    def __iter__(self) -> Iterator[Volume | None]:
        return (self.volume(index) for index in range(self.count))


def open_nifti(path: Path) -> Run:
    """Open a 3-D or 4-D NIfTI file.

    Raises
    ------
    DataError
        If the file cannot be read or is of another kind.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.volumeutils import apply_read_scaling

    try:
        image = nib.load(path)
        raw = image.dataobj.get_unscaled()  # whole, in its own dtype: a compressed file has no random access
    except (OSError, EOFError, ValueError, AttributeError, ImageFileError) as error:
        raise DataError(f"{path}: expected a NIfTI file, found: {error}") from error
    if raw.ndim not in (3, 4) or not np.issubdtype(raw.dtype, np.number) or np.iscomplexobj(raw):
        raise DataError(f"{path}: expected real volumes (X, Y, Z) or (X, Y, Z, n), found {raw.dtype} {raw.shape}")
    raw = raw.reshape(*raw.shape[:3], -1)
    proxy = image.dataobj

    def volume(index: int) -> Volume:
        return np.asarray(apply_read_scaling(raw[..., index], proxy.slope, proxy.inter), np.float32)

    zooms = image.header.get_zooms()
    scale = {"msec": 1e-3, "usec": 1e-6}.get(image.header.get_xyzt_units()[1], 1.0) if hasattr(image.header, "get_xyzt_units") else 1.0
    tr_s = float(zooms[3]) * scale if len(zooms) > 3 and zooms[3] > 0 else math.nan
    return Run(Grid(raw.shape[:3], np.asarray(image.affine)), tr_s, raw.shape[3], volume)


def reference_from(path: Path, grid: Grid) -> Volume:
    """Read the first volume of a NIfTI file that lies on the run's grid.

    Raises
    ------
    GeometryError
        If it lies on another.
    """
    run = open_nifti(path)
    difference = grid.difference(run.grid)
    volume = run.volume(0)
    if difference or volume is None:
        raise GeometryError(f"{path}: expected a reference on the run's grid: {difference}")
    return volume


def first_volume(run: Run) -> Volume:
    """Return the first recorded volume of a run."""
    for volume in run:
        if volume is not None:
            return volume
    raise DataError("the run: expected at least one volume, found none")


def align_run(run: Run, realigner: Realigner) -> Iterator[tuple[Motion | None, Volume]]:
    """Align every volume of a run in turn.

    Yields
    ------
    motion : Motion or None
        None where the volume is missing.
    aligned : ndarray, float32 (X, Y, Z)
        Zeros where it is missing, as it came where it could not be aligned. Overwritten by the next.
    """
    out = np.zeros(run.grid.shape, np.float32)
    for volume in run:
        if volume is None:
            out[...] = 0
            yield None, out
        else:
            yield realigner.align(volume, out)


def mean_aligned(run: Run, realigner: Realigner) -> Volume:
    """Mean of all volumes that could be aligned: a reference with less noise than one volume."""
    total, count = np.zeros(run.grid.shape), 0
    for motion, aligned in align_run(run, realigner):
        if motion is not None and motion.converged:
            total += aligned
            count += 1
    if not count:
        raise DataError("the run: expected at least one volume that can be aligned to the first, found none")
    return (total / count).astype(np.float32)


class NiftiWriter:
    """Writes a float32 NIfTI file volume by volume, compressed where its name ends in ``.gz``.

    Parameters
    ----------
    path : Path
    grid : Grid
    count : int
        Volumes that will be written.
    tr_s : float
    """

    def __init__(self, path: Path, grid: Grid, count: int, tr_s: float) -> None:
        import nibabel as nib

        header = nib.Nifti1Header()
        header.set_data_dtype(np.float32)
        header.set_data_shape((*grid.shape, count))
        header.set_sform(grid.affine, code="scanner")
        header.set_qform(grid.affine, code="scanner", strip_shears=True)
        header.set_zooms((*grid.voxel_size_mm, 0.0 if math.isnan(tr_s) else tr_s))
        header.set_xyzt_units("mm", "sec")
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        self._file: Any = gzip.GzipFile(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb")
        self._file.write(header.binaryblock + b"\0\0\0\0")

    def write(self, volume: Volume) -> None:
        """Append a volume."""
        self._file.write(np.asarray(volume, "<f4").tobytes(order="F"))

    def __enter__(self) -> NiftiWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def params_of(motions: Iterable[Motion | None]) -> NDArray[np.float64]:
    """Motion parameters, NaN where there are none: float64 (n, 6)."""
    rows = [np.full(6, np.nan) if m is None else m.params for m in motions]
    return np.array(rows, np.float64).reshape(-1, 6)


def write_motion(path: Path, motions: list[Motion | None], tr_s: float) -> None:
    """Write ``motion.tsv``: mm, rad and mm of framewise displacement, to the last bit; n/a where there is none."""
    params = params_of(motions)
    displacement = framewise_displacement(params)

    def cell(value: Any) -> Any:
        return "n/a" if isinstance(value, float) and math.isnan(value) else value

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for n, motion in enumerate(motions):
            flags = VolumeFlag.MISSING if motion is None else VolumeFlag.OK if motion.converged else VolumeFlag.UNALIGNED
            found = (math.nan, math.nan, math.nan) if motion is None else (motion.residual, motion.correlation, motion.iterations)
            row = [n, round(n * tr_s, 6), int(flags), *params[n].tolist(), float(displacement[n]), *(float(f) for f in found[:2]), found[2]]
            writer.writerow([cell(value) for value in row])
