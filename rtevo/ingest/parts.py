"""What a DICOM file holds of which volumes: the slices of mosaic, one-slice and multi-frame files by volume, echo and component.

Coordinates are DICOM's (LPS+ millimetres) here; :mod:`rtevo.ingest.geometry` turns slices into volumes on an RAS+ grid.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DicomError
from rtevo.ingest.csa import csa_numbers, protocol_number
from rtevo.ingest.elements import Elements
from rtevo.ingest.geometry import normal_of
from rtevo.ingest.header import SeriesHeader, moment
from rtevo.records import Grid

__all__ = ["Layout", "Part", "enhanced_layout", "filled_tiles", "mosaic_layout", "mosaic_slices", "mosaic_tiles", "slice_layout"]

COMPONENTS = {"MAGNITUDE": "M", "PHASE": "P", "REAL": "R", "IMAGINARY": "I", "M": "M", "P": "P", "R": "R", "I": "I"}
MAX_SLICES = 1024  # of a mosaic
ACQUISITION_TIME, ACQUISITION_DATETIME = "acquisition time (0008,0032)", "acquisition date-time (0008,002A)"
LEAST_TILES = 3  # along each side of a mosaic whose header does not say how many slices it has
SAME_POSITION_MM = 1e-3
UNIT_TOLERANCE = 0.01  # of the lengths of the direction vectors, and of the cosine between them


@dataclass(frozen=True, eq=False)
class Part:
    """What one file holds of one volume.

    Parameters
    ----------
    numbers : dict of str to int
        What the header offers as the volume's number in the run (from 1), best first: ``temporal`` (position index), ``begin``
        (time since the run's start over the repetition time), ``instance`` and ``interleaved`` (instance number, slices or volumes
        counting fastest), ``file`` (instance number, where it is not known how many slices a volume has), ``acquisition``.
    component : str
        ``"M"`` magnitude, ``"P"`` phase, ``"R"`` real, ``"I"`` imaginary.
    echo, te_ms : int, float
        Number of the echo (1 = first), and echo time (0 where the header does not say).
    frames : ndarray, int (n,)
        Which of the file's pictures these are.
    positions : ndarray, float64 (n, 3)
        Centre of each slice's first pixel, LPS+ mm.
    ordered : bool
        Whether the slices are a whole volume and stay in this order (mosaic).
    acquired_s : float
        When the volume's acquisition began, in seconds from a moment fixed for the series; NaN where the header does not say.
    acquired_from : str
        Where `acquired_s` comes from, empty where nowhere.
    slopes, intercepts : ndarray, float64 (n,)
        Value = stored value x slope + intercept.
    pixels : ndarray, (n, rows, columns) or None
        As stored.
    slice_times_s : ndarray, float64 (n,) or None
        When each slice was acquired, from the volume's start, seconds; None where the header does not say.
    grid : Grid, optional
        Of a part that is a whole volume already: `pixels` are (X, Y, Z) on it, with one slope and intercept for all, and `positions`
        are its corners.
    """

    numbers: dict[str, int]
    component: str
    echo: int
    te_ms: float
    frames: NDArray[np.intp]
    positions: NDArray[np.float64]
    ordered: bool
    acquired_s: float
    slopes: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    pixels: NDArray[Any] | None = None
    slice_times_s: NDArray[np.float64] | None = None
    grid: Grid | None = None
    acquired_from: str = ""


class Layout(NamedTuple):
    """Where the pictures of one file lie.

    ``orientation`` float64 (2, 3): directions of growing column and row index, LPS+. ``spacing_mm``: between columns, rows, and slices
    (0 where the header does not say). ``parts``: by volume, echo and component.
    """

    orientation: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    parts: tuple[Part, ...]


def mosaic_tiles(elements: Elements, shape: tuple[int, int]) -> int:
    """Tiles along each side of a mosaic whose header has no number of slices (XA, exported in the old form); 0 where it is none.

    A picture that claims to be a mosaic is believed only if it is at least three times as large as its acquisition matrix: one
    slice that the scanner interpolated to twice the matrix may claim it wrongly.
    """
    text = elements.text(elements.private(0x51, "SIEMENS MR HEADER", 0x0B))  # e.g. 64p*64
    matrix = max((*elements.numbers(0x00181310), *map(int, re.findall(r"[0-9]{1,5}", text))), default=0)
    if "MOSAIC" not in elements.words(0x00080008) or matrix <= 0:
        return 0
    tiles = round(shape[1] / matrix)
    return tiles if tiles >= LEAST_TILES and tiles**2 <= MAX_SLICES and shape[0] % tiles == shape[1] % tiles == 0 else 0


def filled_tiles(picture: NDArray[Any], tiles: int) -> int:
    """Number of slices in a mosaic, by its last tile that is not blank.

    Raises
    ------
    DicomError
        If so few are filled that there would be fewer tiles.
    """
    rows, columns = (side // tiles for side in picture.shape)
    filled = picture.reshape(tiles, rows, tiles, columns).any(axis=(1, 3)).ravel()
    slices = int(np.flatnonzero(filled)[-1]) + 1 if filled.any() else 0
    if slices <= (tiles - 1) ** 2:
        raise DicomError(
            f"mosaic without a number of slices: expected more than {(tiles - 1) ** 2} filled tiles of {tiles**2}, found {slices}"
        )
    return slices


def mosaic_slices(elements: Elements) -> int:
    """Number of slices in a Siemens mosaic by its header, 0 where a file is none (whatever its image type claims)."""
    csa = elements.raw(elements.private(0x29, "SIEMENS CSA HEADER", 0x10))
    numbers = csa_numbers(csa, "NumberOfImagesInMosaic")
    found = int(numbers[0]) if numbers else elements.integer(elements.private(0x19, "SIEMENS MR HEADER", 0x0A)) or 0
    if found > MAX_SLICES:
        raise DicomError(f"expected at most {MAX_SLICES} slices in a mosaic, found {found}")
    return found if found > 1 else 0


def mosaic_layout(elements: Elements, slices: int, shape: tuple[int, int]) -> Layout:
    """Slices of a Siemens mosaic of `shape` (rows, columns).

    The header's position is that of the first pixel of a picture as large as the mosaic, lying about the centre of the first slice
    (see nibabel, https://nipy.org/nibabel/dicom/dicom_mosaic.html).
    """
    tiles = math.ceil(math.sqrt(slices))
    rows, columns = shape[0] // tiles, shape[1] // tiles
    if rows * tiles != shape[0] or columns * tiles != shape[1]:
        raise DicomError(f"mosaic of {slices} slices: expected rows and columns in multiples of {tiles}, found {shape}")
    csa = elements.raw(elements.private(0x29, "SIEMENS CSA HEADER", 0x10))
    orientation = _orientation(elements)
    between_rows, between_columns = _pixel_spacing(elements)
    spacing = _mosaic_spacing(elements)
    normal = normal_of(orientation)
    direction = np.array(csa_numbers(csa, "SliceNormalVector"))
    if direction.shape == (3,) and direction @ normal < 0:
        normal = -normal
    offset = orientation[0] * between_columns * (shape[1] - columns) / 2 + orientation[1] * between_rows * (shape[0] - rows) / 2
    positions = _position(elements) + offset + np.arange(slices)[:, None] * spacing * normal
    turned = (csa_numbers(csa, "ProtocolSliceNumber") or (0.0,))[0] > 0  # numbered from the other end: dcm2niix turns these round
    frames = np.arange(slices)[::-1] if turned else np.arange(slices)
    part = Part(
        numbers=_mosaic_numbers(elements.integer(0x00200013), elements.integer(0x00200012), slices),
        component=_component(elements),
        echo=elements.integer(0x00180086) or 1,
        te_ms=elements.number(0x00180081) or 0.0,
        frames=frames,
        positions=positions[frames],
        ordered=True,
        acquired_s=_acquired(elements),
        slopes=np.full(slices, elements.number(0x00281053) or 1.0),
        intercepts=np.full(slices, elements.number(0x00281052) or 0.0),
        slice_times_s=_mosaic_times(elements, csa, slices, frames),
        acquired_from=ACQUISITION_TIME if 0x00080032 in elements else ACQUISITION_DATETIME,
    )
    return Layout(orientation, (between_columns, between_rows, spacing), (part,))


def _mosaic_numbers(instance: int | None, acquisition: int | None, slices: int) -> dict[str, int]:
    """Instance and acquisition number; instance numbers that count slices (1, 21, 41, ... in 3D sequences) are brought to volumes."""
    if instance and acquisition and acquisition > 1 and instance - 1 == (acquisition - 1) * slices:
        instance = acquisition
    return _numbers(instance=instance, acquisition=acquisition)


def _mosaic_times(elements: Elements, csa: bytes, slices: int, frames: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """Acquisition times of a mosaic's slices, in seconds from the first's."""
    times_ms = csa_numbers(csa, "MosaicRefAcqTimes") or elements.numbers(elements.private(0x19, "SIEMENS MR HEADER", 0x29))
    return _from_first(np.array(times_ms)[frames] / 1000) if len(times_ms) == slices else None


def _from_first(times_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Times from the earliest one; None where they are not known or all the same."""
    times_s = times_s - times_s.min() if np.isfinite(times_s).all() else np.zeros(1)
    return times_s.round(6) if times_s.any() else None


def _mosaic_spacing(elements: Elements) -> float:
    """Distance between the centres of neighbouring slices of a mosaic in mm."""
    spacing = elements.number(0x00180088)
    if spacing and spacing > 0:
        return spacing
    protocol = elements.raw(elements.private(0x29, "SIEMENS CSA HEADER", 0x20))
    ends = [[protocol_number(protocol, f"sSliceArray.asSlice[{i}].sPosition.d{axis}") for axis in ("Sag", "Cor", "Tra")] for i in (0, 1)]
    if any(value is not None for end in ends for value in end):  # zeros are not written
        first, second = ([value or 0.0 for value in end] for end in ends)
        return math.dist(first, second)
    thickness = elements.number(0x00180050)
    if thickness and thickness > 0:
        return thickness
    raise DicomError("expected the distance between slices, (0018,0088) or the protocol's slice positions, found neither")


def slice_layout(elements: Elements, series: SeriesHeader) -> Layout:
    """The one slice of a one-file-per-slice series."""
    between_rows, between_columns = _pixel_spacing(elements)
    begin = elements.number(elements.private(0x2005, "Philips MR Imaging DD 001", 0xA0)) if series.vendor == "Philips" else None
    slope, intercept = _rescale(elements, series, elements)
    part = Part(
        numbers=_slice_numbers(elements, series, begin),
        component=_component(elements),
        echo=elements.integer(0x00180086) or 1,
        te_ms=elements.number(0x00180081) or 0.0,
        frames=np.zeros(1, np.intp),
        positions=_position(elements)[None],
        ordered=False,
        acquired_s=_slice_acquired(elements, series, begin),
        slopes=np.array([slope]),
        intercepts=np.array([intercept]),
        acquired_from=_slice_source(elements, series, begin),
    )
    spacing = elements.number(0x00180088) or elements.number(0x00180050) or 0.0
    return Layout(_orientation(elements), (between_columns, between_rows, abs(spacing)), (part,))


def _slice_numbers(elements: Elements, series: SeriesHeader, begin: float | None) -> dict[str, int]:
    temporal, instance = elements.integer(0x00200100), elements.integer(0x00200013)
    return _numbers(
        temporal=temporal if temporal else None,
        begin=round(begin / series.tr_s) + 1 if begin is not None and series.tr_s and 0 <= begin < 1e6 else None,
        instance=(instance - 1) // series.slices + 1 if instance and series.slices else None,
        file=instance if instance and not series.slices else None,
        interleaved=(instance - 1) % series.volumes + 1 if instance and series.volumes and series.volumes > 1 else None,
        acquisition=elements.integer(0x00200012),
    )


def _slice_acquired(elements: Elements, series: SeriesHeader, begin: float | None) -> float:
    """When the slice's volume began. GE writes the series' time into every file, unless there is a trigger time."""
    if begin is not None:
        return begin
    if series.vendor == "GE":
        trigger = elements.number(0x00181060)
        return trigger / 1000 if trigger is not None else math.nan
    return _acquired(elements)


def _slice_source(elements: Elements, series: SeriesHeader, begin: float | None) -> str:
    if begin is not None:
        return "begin of the dynamic scan (2005,xxA0)"
    if series.vendor == "GE":
        return "trigger time (0018,1060)"
    return ACQUISITION_TIME if 0x00080032 in elements else ACQUISITION_DATETIME


def enhanced_layout(elements: Elements, frames: int, series: SeriesHeader) -> Layout:
    """Slices of a multi-frame file by volume, echo and component."""
    shared = elements.first(0x52009229)
    items = list(elements.items(0x52009230))
    if len(items) != frames:
        raise DicomError(f"expected a functional group for each of {frames} frames, found {len(items)}")
    read = [_Frame(item, shared, elements, series) for item in items]
    orientation = _checked_orientation(read[0].orientation)
    strays = [i for i, frame in enumerate(read) if np.abs(np.subtract(frame.orientation, read[0].orientation)).max() > UNIT_TOLERANCE]
    if strays:
        raise DicomError(f"expected parallel frames, found frame {strays[0] + 1} of {frames} at an angle (a localiser?)")
    echo_times = sorted({frame.te_ms for frame in read})
    groups: dict[tuple[str, float, int], list[int]] = {}
    for i, volume in enumerate(_volume_of(read)):
        groups.setdefault((read[i].component, read[i].te_ms, volume), []).append(i)
    flat = elements.text(0x00180023) != "3D"  # a three-dimensional acquisition has all its slices at once
    several = len({volume for _, _, volume in groups}) > 1
    parts = []
    for (component, te_ms, volume), members in groups.items():
        if several:
            numbers = {"temporal": volume}
        else:
            numbers = _numbers(
                temporal=read[members[0]].temporal,
                instance=elements.integer(0x00200013) if frames > 1 else None,
                acquisition=elements.integer(0x00200012) or read[members[0]].acquisition,
            )
        parts.append(
            Part(
                numbers=numbers,
                component=component,
                echo=(elements.integer(0x00180086) or 1) if len(echo_times) == 1 else echo_times.index(te_ms) + 1,
                te_ms=te_ms,
                frames=np.array(members),
                positions=np.array([read[i].position for i in members]),
                ordered=False,
                acquired_s=min(read[i].acquired_s for i in members),
                slopes=np.array([read[i].slope for i in members]),
                intercepts=np.array([read[i].intercept for i in members]),
                acquired_from="frame acquisition date-time (0018,9074)",
                slice_times_s=_from_first(np.array([read[i].acquired_s for i in members])) if flat else None,
            )
        )
    return Layout(orientation, read[0].spacing_mm, tuple(parts))


class _Frame:
    """Functional groups of one frame, its own before the shared ones."""

    __slots__ = (
        "acquired_s",
        "acquisition",
        "component",
        "in_stack",
        "intercept",
        "orientation",
        "position",
        "slope",
        "spacing_mm",
        "te_ms",
        "temporal",
    )

    def __init__(self, item: Elements, shared: Elements | None, top: Elements, series: SeriesHeader) -> None:
        def group(tag: int) -> Elements | None:
            return item.first(tag) if tag in item else shared.first(tag) if shared else None

        position, orientation, measures = group(0x00209113), group(0x00209116), group(0x00289110)
        self.position = position.numbers(0x00200032) if position else ()
        if len(self.position) != 3 or orientation is None or measures is None:
            raise DicomError("expected the position, orientation and pixel measures of every frame")
        self.orientation = orientation.numbers(0x00200037)
        if len(self.orientation) != 6:
            _checked_orientation(self.orientation)
        between = _pixel_spacing(measures)
        spacing = measures.number(0x00180088) or measures.number(0x00180050) or 0.0
        self.spacing_mm = (between[1], between[0], abs(spacing))
        content, kind, echo = group(0x00209111), group(0x00189226), group(0x00189114)
        converted = [source for source in (item.first(0x00209171), shared.first(0x00209170) if shared else None) if source]
        self.temporal = next((n for c in converted if (n := c.integer(0x00200100))), None)
        self.temporal = (content.integer(0x00209128) if content else None) or self.temporal
        self.acquisition = content.integer(0x00209156) if content else None
        self.in_stack = content.integer(0x00209057) if content else None
        self.acquired_s = moment(content.text(0x00189074)) if content else math.nan
        self.component = _component(top, kind)
        te_ms = next((te for c in converted if (te := c.number(0x00180081))), 0.0)
        self.te_ms = round((echo.number(0x00189082) if echo else None) or te_ms, 3)
        private = item.first(item.private(0x2005, "Philips MR Imaging DD 005", 0x0F)) if series.vendor == "Philips" else None
        transformation = group(0x00289145)
        self.slope, self.intercept = _rescale(transformation or top, series, private or top)


def _volume_of(frames: list[_Frame]) -> list[int]:
    """Number of the volume that each frame belongs to, from 1: its temporal position, or how often its place came before."""
    temporal = [frame.temporal for frame in frames]
    acquisition = [frame.acquisition for frame in frames]
    places = [(frame.component, frame.te_ms, *(round(x / SAME_POSITION_MM) for x in frame.position)) for frame in frames]
    for numbers in (temporal, acquisition):
        if None not in numbers and len(set(zip(places, numbers, strict=True))) == len(frames):
            return [number for number in numbers if number is not None]
    seen: dict[tuple[object, ...], int] = {}
    volumes = []
    stacked = {place: frame.in_stack for place, frame in zip(places, frames, strict=True)}
    for place, frame in zip(places, frames, strict=True):
        if frame.in_stack != stacked[place]:
            raise DicomError(f"frames {frame.in_stack} and {stacked[place]} of the stack are both at {frame.position} mm")
        seen[place] = seen.get(place, 0) + 1
        volumes.append(seen[place])
    return volumes


def _rescale(elements: Elements, series: SeriesHeader, private: Elements) -> tuple[float, float]:
    """Slope and intercept of the stored values.

    Philips' display scaling differs from volume to volume of a session; where the private scale slope is there the values are put on
    the scale of the measurement, as dcm2niix does (Chenevert et al. 2014, doi:10.1593/tlo.13811).
    """
    slope, intercept = elements.number(0x00281053), elements.number(0x00281052)
    if series.vendor == "Philips":
        if slope is None:
            mapping = private.first(0x00409096)
            slope, intercept = (mapping.number(0x00409225), mapping.number(0x00409224)) if mapping else (None, None)
        scale = private.number(private.private(0x2005, "Philips MR Imaging DD 001", 0x0E))
        if scale:
            return 1 / scale, (intercept or 0.0) / ((slope or 1.0) * scale)
    return slope or 1.0, intercept or 0.0


def _component(elements: Elements, frame_type: Elements | None = None) -> str:
    """Magnitude, phase, real or imaginary part; magnitude where the header does not say."""
    private = elements.integer(elements.private(0x43, "GEMS_PARM_01", 0x2F))  # GE's own image type
    if private in (0, 1, 2, 3):
        return "MPRI"[private]
    for source in (frame_type, elements):
        words = (source.text(0x00089208), *source.words(0x00089007)[2:], *source.words(0x00080008)[2:]) if source else ()
        for word in words:
            if word.upper() in COMPONENTS:
                return COMPONENTS[word.upper()]
    return "M"


def _numbers(**candidates: int | None) -> dict[str, int]:
    """Those that are filled; only instance numbers may begin at 0."""
    return {name: number for name, number in candidates.items() if number is not None and (number > 0 or name == "instance")}


def _acquired(elements: Elements) -> float:
    """Acquisition date and time in seconds from a fixed day."""
    if 0x00080032 in elements:
        return moment(elements.text(0x00080022) or elements.text(0x00080021), elements.text(0x00080032))
    return moment(elements.text(0x0008002A))


def _position(elements: Elements) -> NDArray[np.float64]:
    numbers = elements.numbers(0x00200032)
    if len(numbers) != 3:
        raise DicomError(f"expected three numbers as image position (0020,0032), found {numbers}")
    return np.array(numbers)


def _orientation(elements: Elements) -> NDArray[np.float64]:
    return _checked_orientation(elements.numbers(0x00200037))


def _checked_orientation(numbers: tuple[float, ...]) -> NDArray[np.float64]:
    if len(numbers) == 6:
        orientation = np.array(numbers).reshape(2, 3)
        if np.abs(orientation @ orientation.T - np.eye(2)).max() <= 2 * UNIT_TOLERANCE:
            return orientation
    raise DicomError(f"expected two unit vectors at a right angle as image orientation (0020,0037), found {numbers}")


def _pixel_spacing(elements: Elements) -> tuple[float, float]:
    """Distance between rows and between columns in mm."""
    numbers = elements.numbers(0x00280030)
    if len(numbers) != 2 or not all(0 < value < 1000 for value in numbers):
        raise DicomError(f"expected two positive numbers as pixel spacing (0028,0030), found {numbers}")
    return numbers[0], numbers[1]
