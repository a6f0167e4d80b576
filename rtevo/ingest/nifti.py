"""NIfTI files as a source: a file for each volume, or one file that grows; ``.nii`` and ``.nii.gz``, NIfTI-1 and NIfTI-2.

A file ``run_0007.nii`` is volume 7 of the series ``run_``: the last number in the name counts, from 1, or from 0 where the file with 0
comes before any other was passed on. In a four-dimensional ``.nii`` every volume counts once its bytes are there, whatever number of
volumes the header announces so far; a ``.nii.gz`` counts once its stream has ended. A BIDS sidecar (``.json``) beside the file gives
repetition time and slice timing where it is there before the file. The header is read by nibabel.
"""

from __future__ import annotations

import io
import math
import os
import re
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError, DicomError
from rtevo.ingest.dicom import DicomFile, TruncatedError
from rtevo.ingest.header import SeriesHeader
from rtevo.ingest.inflating import Inflating
from rtevo.ingest.parts import Part
from rtevo.outside import open_regular, read_json, shown
from rtevo.records import Grid

__all__ = ["NiftiFile", "is_nifti", "read_nifti", "volume_file"]

ENDINGS = (".nii", ".nii.gz")
SIZES = {348: 352, 540: 544}  # bytes of a header, with the flag for extensions
UNITS_S = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
MAX_INFLATED = 1 << 32
MAX_VOLUME = 1 << 30  # bytes
HEAD = 1 << 12  # bytes that are inflated to read the header
SLACK = 1 << 16  # bytes that a packed file may hold beyond what its header announces
MOST_SIDECAR = 1 << 22  # bytes


class NiftiFile(NamedTuple):
    """What a file holds so far: volumes from the one that was asked for, how many are there, how many are announced, and the size
    in bytes at which the next is there; how many are there when none is left for the next look."""

    file: DicomFile
    there: int
    announced: int
    needed: int
    held: int


def is_nifti(path: str) -> bool:
    """Whether a file's name is a NIfTI file's."""
    return path.lower().endswith(ENDINGS)


def volume_file(
    name: str, series: SeriesHeader, grid: Grid, volumes: dict[int, NDArray[Any] | None], *, field: str, **part: Any
) -> DicomFile:
    """Whole volumes on a grid, in the form in which all volumes reach an :class:`~rtevo.ingest.assembly.Assembler`.

    Parameters
    ----------
    name : str
        For messages.
    series : SeriesHeader
        Of the volumes.
    grid : Grid
        On which they lie.
    volumes : dict of int to (ndarray (X, Y, Z) or None)
        Data by number in the run.
    field : str
        What the number is.
    **part
        Fields of :class:`~rtevo.ingest.parts.Part` that are not the usual ones; `slopes` and `intercepts` are of one element.
    """
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(grid.shape) - 1
    common: dict[str, Any] = {
        "component": "M",
        "echo": 1,
        "te_ms": 0.0,
        "frames": np.arange(1),
        "positions": (corners @ grid.affine.T)[:, :3],
        "ordered": True,
        "acquired_s": math.nan,
        "slopes": np.ones(1),
        "intercepts": np.zeros(1),
        "grid": grid,
    } | part
    parts = tuple(Part(numbers={field: number}, pixels=data, **common) for number, data in volumes.items())
    spacing = tuple(grid.voxel_size_mm.tolist())
    uid = f"{name} {','.join(map(str, volumes))}"
    return DicomFile(name, uid, series, np.eye(3)[:2], spacing, parts, (name, None, None), grid.shape[1::-1])


def read_nifti(path: str, *, pixels: bool = True, skip: int = 0, most_bytes: int = 1 << 62) -> NiftiFile:
    """Read the volumes that a file holds so far.

    Parameters
    ----------
    path : str
        The file.
    pixels : bool
        Whether to read the voxels too.
    skip : int
        Volumes at the start that are not wanted.
    most_bytes : int
        No more than one volume beyond this many are read.

    Returns
    -------
    NiftiFile

    Raises
    ------
    TruncatedError
        If the header or a compressed stream is not whole.
    DicomError
        If it is no NIfTI file, or one that is no volume on a grid.
    OSError
        If it cannot be opened.
    """
    with open_regular(path) as file:
        try:
            if path.lower().endswith(".gz"):
                return _read_packed(path, file, pixels, skip, most_bytes)
            return _read(path, file, os.fstat(file.fileno()).st_size, pixels, skip, most_bytes)
        except (DicomError, OSError):
            raise
        except Exception as error:  # whatever odd bytes do to nibabel and NumPy
            raise DicomError(f"{path}: malformed header ({type(error).__name__}: {shown(error)})") from error


class _Head(NamedTuple):
    """What the header says: where the first volume begins, bytes of one, and how many there are announced, at least."""

    header: Any
    grid: Grid
    dtype: np.dtype[Any]
    scaling: tuple[float, float]
    offset: int
    length: int
    several: bool
    announced: int


def _read_packed(path: str, file: Any, pixels: bool, skip: int, most_bytes: int) -> NiftiFile:
    """Read a gzip file: its header first, then no more than that announces, of which what is asked for is kept."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_INFLATED:
        raise DicomError(f"{path}: expected at most {MAX_INFLATED} bytes, found {size}")
    inflating = Inflating(path, file, size)
    head = _head(path, io.BytesIO(inflating.read(HEAD)), inflating.there)
    end = head.offset + head.length * head.announced
    if end > MAX_INFLATED:
        raise DicomError(f"{path}: expected at most {MAX_INFLATED} bytes when inflated, its header announces {end}")
    inflating.limit(end + SLACK)
    begin = head.offset + skip * head.length
    kept = inflating.between(begin, begin + max(1, most_bytes // head.length) * head.length)
    return _volumes(path, head, _At(kept, begin), inflating.rest(), pixels, skip, most_bytes)


class _At(io.BytesIO):
    """A piece of a file, that begins at `begin`."""

    def __init__(self, piece: bytes, begin: int) -> None:
        super().__init__(piece)
        self._begin = begin

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(offset - self._begin, whence)


def _read(path: str, file: Any, size: int, pixels: bool, skip: int, most_bytes: int) -> NiftiFile:
    return _volumes(path, _head(path, file, size), file, size, pixels, skip, most_bytes)


def _head(path: str, file: Any, size: int) -> _Head:
    header = _header(path, file, size)
    try:
        grid, dtype = _grid(header), _dtype(header)
        slope, intercept = header.get_slope_inter()
        offset = int(header.get_data_offset())
    except Exception as error:  # nibabel raises all kinds
        raise DicomError(f"{path}: {shown(error)}") from None
    length, several = math.prod(grid.shape) * dtype.itemsize, int(header["dim"][0]) > 3
    if length > MAX_VOLUME or not 0 <= offset <= MAX_INFLATED:
        raise DicomError(f"{path}: expected volumes of at most {MAX_VOLUME} bytes, found {length} from byte {offset}")
    scaling = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    return _Head(header, grid, dtype, scaling, offset, length, several, max(1, int(header["dim"][4])) if several else 1)


def _volumes(path: str, head: _Head, file: Any, size: int, pixels: bool, skip: int, most_bytes: int) -> NiftiFile:
    header, grid, offset, length, several = head.header, head.grid, head.offset, head.length, head.several
    there = max(0, (size - offset) // length)
    announced = max(there, head.announced) if several else 1
    there = min(there, announced)
    stop = min(there, skip + max(1, most_bytes // length))
    series, number = _series(path, header, announced if several else None)
    volumes: dict[int, NDArray[Any] | None] = {}
    for k in range(skip, stop):
        volumes[k + 1 if several else number] = _voxels(file, offset + k * length, length, head.dtype, grid) if pixels else None
    times = _slice_times(path, header, grid.shape[2])
    described = volume_file(
        path,
        series,
        grid,
        volumes,
        field="position" if several else "name",
        slopes=np.array([head.scaling[0]]),
        intercepts=np.array([head.scaling[1]]),
        slice_times_s=times,
    )
    return NiftiFile(described, stop, announced, offset + (stop + 1) * length, there)


def _voxels(file: Any, offset: int, length: int, dtype: np.dtype[Any], grid: Grid) -> NDArray[Any]:
    file.seek(offset)
    contents = file.read(length)
    while len(contents) < length:
        more = file.read(length - len(contents))
        if not more:
            raise OSError(5, "the file became shorter")
        contents += more
    return np.frombuffer(contents, dtype).reshape(grid.shape, order="F")


def _header(path: str, file: Any, size: int) -> Any:
    import nibabel

    start = file.read(8)
    if len(start) < 8 or not any(start):
        raise TruncatedError(f"{path}: ends at byte {size} within its header" if size else f"{path}: empty", max(size + 1, 352))
    found = [n for n in (int.from_bytes(start[:4], order) for order in ("little", "big")) if n in SIZES]
    if not found:
        raise DicomError(f"{path}: not a NIfTI file: expected 348 or 540 in its first bytes, found {start[:4]!r}")
    if size < SIZES[found[0]]:
        raise TruncatedError(f"{path}: ends at byte {size} within its header", SIZES[found[0]])
    file.seek(0)
    kind = nibabel.Nifti1Header if found[0] == 348 else nibabel.Nifti2Header
    try:
        return kind(file.read(found[0]))  # without its extensions, which nobody needs
    except Exception as error:  # nibabel raises all kinds
        raise DicomError(f"{path}: {shown(error)}") from None


def _grid(header: Any) -> Grid:
    dimensions = header["dim"].tolist()
    if not 3 <= dimensions[0] <= 7 or min(dimensions[1:4]) < 1 or any(n > 1 for n in dimensions[5 : dimensions[0] + 1]):
        raise DicomError(f"expected volumes of three dimensions, found the dimensions {dimensions[1 : max(dimensions[0], 0) + 1]}")
    if not header["sform_code"] and not header["qform_code"]:
        raise DicomError("expected an sform or a qform that says where its voxels lie, found neither")
    return Grid(tuple(dimensions[1:4]), header.get_best_affine())


def _dtype(header: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise DicomError(f"expected integers or real numbers, found voxels of {dtype}")
    return dtype


def _stem(path: str) -> str:
    return path[: -len(next(ending for ending in reversed(ENDINGS) if path.lower().endswith(ending)))]


def _sidecar(path: str) -> dict[str, Any]:
    with suppress(OSError, DataError):
        found = read_json(_stem(path) + ".json", MOST_SIDECAR)
        return found if isinstance(found, dict) else {}
    return {}


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value > 0 else None


def _unit_s(header: Any) -> float | None:
    """The header's unit of time in seconds; None where it names none, or nothing that is known."""
    try:
        return UNITS_S.get(header.get_xyzt_units()[1])
    except KeyError:
        return None


def _series(path: str, header: Any, announced: int | None) -> tuple[SeriesHeader, int]:
    """The series that a file belongs to, and the number in its name."""
    stem, sidecar = _stem(path), _sidecar(path)
    folder, name = os.path.split(stem)
    found = re.fullmatch(r"(.*?)(\d+)(\D*)", name) if announced is None else None
    unit_s = _unit_s(header)
    tr_s = _positive(sidecar.get("RepetitionTime")) or (_positive(float(header["pixdim"][4]) * unit_s) if unit_s else None)
    description = str(sidecar.get("SeriesDescription") or (f"{found[1]}{found[3]}".strip(" -_.") if found else name) or name)
    series = SeriesHeader(
        uid=os.path.join(folder, f"{found[1]}*{found[3]}") if found else stem,
        study_uid=folder,
        number=None,
        description=description,
        protocol=name if found is None else description,
        vendor="NIfTI",
        model="",
        kind="nifti",
        image_type=(),
        sequence="",
        echo_planar=True,
        spin_echo=False,
        modality="MR",
        tr_s=tr_s,
        volumes=(announced if announced and announced > 1 else None) if announced is not None else None if found else 1,
        slices=None,
        b_value=0.0,
    )
    return series, int(found[2]) if found else 1


def _slice_times(path: str, header: Any, slices: int) -> NDArray[np.float64] | None:
    """Slice timing from the sidecar, else from the header; None where neither has it."""
    with suppress(TypeError, ValueError):
        times = np.array(_sidecar(path).get("SliceTiming"), np.float64)
        if times.shape == (slices,) and np.isfinite(times).all():
            return times
    with suppress(Exception):  # nibabel raises all kinds where the header has none
        unit_s = UNITS_S.get(header.get_xyzt_units()[1], 1.0)
        return np.array([math.nan if time is None else time * unit_s for time in header.get_slice_times()])
    return None
