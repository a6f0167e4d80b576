"""What a message of the push socket holds, everything checked: see :mod:`rtevo.ingest.push` for the format."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.ingest.header import SeriesHeader
from rtevo.outside import parse_json, shown
from rtevo.records import Grid

__all__ = ["MAX_HEADER", "data_of", "header_of", "series_of"]

MAX_INDEX = 1_000_000
MAX_HEADER = 1 << 16  # bytes of a message's first frame
LONGEST_NAME = 200  # characters of a series and a token
NAMES = {"index", "shape", "dtype", "affine", "tr_s", "order", "acquired_s", "slice_times_s", "series", "token", "echo_times_s"}


def header_of(frames: list[bytes]) -> dict[str, Any]:
    """Read the first frame of a message."""
    try:
        header = parse_json(frames[0] if frames else b"", MAX_HEADER)
    except DataError as error:
        raise DataError(f"expected JSON in the first frame ({error})") from None
    if not isinstance(header, dict):
        raise DataError("expected a JSON object in the first frame")
    return header


def data_of(header: dict[str, Any], voxels: bytes, echoes: int) -> tuple[NDArray[Any], Grid]:
    """The volume, of several echoes with an axis for them, and its grid, everything checked."""
    if unknown := set(header) - NAMES:
        raise DataError(f"expected the names {', '.join(sorted(NAMES))}; found {shown(', '.join(sorted(unknown)))}")
    if missing := {"index", "shape", "dtype", "affine"} - set(header):
        raise DataError(f"expected {', '.join(sorted(missing))}, found nothing")
    index = header["index"]
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= MAX_INDEX:
        raise DataError(f"index: expected a whole number from 0, got {shown(repr(index))}")
    try:
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in header["shape"]):
            raise DataError(f"shape: expected three whole numbers, got {shown(repr(header['shape']))}")
        if any(isinstance(value, bool) for row in header["affine"] for value in row):
            raise DataError(f"affine: expected numbers, got {shown(repr(header['affine']))}")
        shape = tuple(header["shape"])
        if echoes > 1 and (len(shape) != 4 or shape[0] != echoes):
            raise DataError(f"shape: expected {echoes} echoes, and the three of a volume, got {shown(repr(header['shape']))}")
        grid = Grid(shape[1:] if echoes > 1 else shape, np.array(header["affine"], np.float64))
        if not isinstance(header["dtype"], str):
            raise TypeError(f"dtype: expected NumPy's name of one, got {shown(repr(header['dtype']))}")
        dtype = np.dtype(header["dtype"])
    except DataError:
        raise
    except Exception as error:  # NumPy reads a name of a type as it would read code
        raise DataError(str(error)) from None
    if dtype.kind not in "iuf":
        raise DataError(f"dtype: expected integers or real numbers, got {shown(repr(header['dtype']))}")
    needed = math.prod(shape) * dtype.itemsize
    if len(voxels) != needed:
        raise DataError(f"expected {needed} bytes of voxels for shape {grid.shape} and dtype {dtype.str}, found {len(voxels)}")
    _check_times(header, grid, echoes)
    if header.get("order", "C") not in ("C", "F"):
        raise DataError(f"order: expected C or F, got {shown(repr(header['order']))}")
    return np.frombuffer(voxels, dtype).reshape(shape, order=header.get("order", "C")), grid


def _check_times(header: dict[str, Any], grid: Grid, echoes: int) -> None:
    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    tr_s, acquired_s, times = header.get("tr_s"), header.get("acquired_s"), header.get("slice_times_s")
    if tr_s is not None and not (is_number(tr_s) and tr_s > 0):
        raise DataError(f"tr_s: expected > 0 seconds, got {shown(repr(tr_s))}")
    if acquired_s is not None and not is_number(acquired_s):
        raise DataError(f"acquired_s: expected seconds, got {shown(repr(acquired_s))}")
    if times is not None and not (isinstance(times, list) and len(times) == grid.shape[2] and all(map(is_number, times))):
        raise DataError(f"slice_times_s: expected {grid.shape[2]} numbers, got {shown(repr(times))}")
    te_s, wanted = header.get("echo_times_s", []), echoes if echoes > 1 else 0
    if not (isinstance(te_s, list) and len(te_s) == wanted and all(map(is_number, te_s)) and all(te > 0 for te in te_s)):
        what = f"{wanted} times in seconds" if wanted else "none, as echoes are not combined here"
        raise DataError(f"echo_times_s: expected {what}, got {shown(repr(te_s))} ([acquisition] echoes)")
    if times is not None and not (min(times) >= 0 and max(times) <= (math.inf if tr_s is None else tr_s)):
        raise DataError(f"slice_times_s: expected 0 to tr_s ({tr_s} s), got {min(times)} to {max(times)}")


def series_of(header: dict[str, Any]) -> SeriesHeader:
    """What a message says of its run."""
    tr_s, name = header.get("tr_s"), header.get("series", "")
    for what in ("series", "token"):
        if not isinstance(header.get(what, ""), str):
            raise DataError(f"{what}: expected text, got {shown(repr(header[what]))}")
        if len(header.get(what, "")) > LONGEST_NAME:
            raise DataError(f"{what}: expected at most {LONGEST_NAME} characters, got {len(header[what])}")
    return SeriesHeader(
        uid=name,
        study_uid="",
        number=None,
        description=name,
        protocol="",
        vendor="script",
        model="",
        kind="pushed",
        image_type=(),
        sequence="",
        echo_planar=True,
        spin_echo=False,
        modality="MR",
        tr_s=None if tr_s is None else float(tr_s),
        volumes=None,
        slices=None,
        b_value=0.0,
    )
