"""One DICOM file: what it is, where its slices lie, which volumes of the run they belong to, and their pixels.

Kinds of files
--------------
mosaic
    Siemens: all slices of one volume as tiles of one picture; number and direction of the slices come from the CSA header.
slices
    One slice a file (Philips, GE, others).
enhanced
    Multi-frame: one volume (Siemens XA), or all volumes, echoes and components of a series (Philips).
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DicomError, NotDicomError, PixelsError
from rtevo.ingest.elements import GE_PRIVATE, NATIVE, PIXEL_DATA, Elements, Incomplete, OversizeError, fragments, open_elements, rewritten
from rtevo.ingest.header import SeriesHeader, series_header
from rtevo.ingest.parts import Part, enhanced_layout, filled_tiles, mosaic_layout, mosaic_slices, mosaic_tiles, slice_layout
from rtevo.outside import open_regular, read_exactly, shown

__all__ = ["MAX_FILE", "DicomFile", "Part", "TruncatedError", "parse_dicom", "read_dicom", "why_undecodable"]

PICTURE_CLASSES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7")  # MR (plain, enhanced, ...) and secondary capture
MAX_PIXELS = 1 << 31
LARGE, MAX_FILE = 1 << 26, MAX_PIXELS + (1 << 28)  # bytes: of a file that is read in two goes, and of the largest that is read
RLE = "1.2.840.10008.1.2.5"
JPEGS = "1.2.840.10008.1.2.4."
COMPRESSED = (JPEGS, RLE)
SIZE_2000, JPEG_2000 = re.compile(rb"\xff\x4f\xff\x51..(.{36})", re.S), struct.Struct(">2xIIII16xH")
OVERSIZE = re.compile(rb"\xff\xf8\0[\x04-\x20]\x04[\x02-\x04]")
SIZE_JPEG = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]\0[\x0b\x0e\x11\x14][\x02-\x10](.{5})", re.S)
JPEG = struct.Struct(">HHB")
SYNTAX_NAMES = {
    "1.2.840.10008.1.2.4.50": ("JPEG baseline", "pylibjpeg[libjpeg]"),
    "1.2.840.10008.1.2.4.51": ("JPEG extended", "pylibjpeg[libjpeg]"),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", "pylibjpeg[libjpeg]"),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless, first-order prediction", "pylibjpeg[libjpeg]"),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS lossless", "pylibjpeg[libjpeg]"),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near-lossless", "pylibjpeg[libjpeg]"),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", "pylibjpeg[openjpeg]"),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", "pylibjpeg[openjpeg]"),
    "1.2.840.10008.1.2.4.201": ("high-throughput JPEG 2000 lossless", "pylibjpeg[openjpeg]"),
    "1.2.840.10008.1.2.4.202": ("high-throughput JPEG 2000 lossless, RPCL", "pylibjpeg[openjpeg]"),
    "1.2.840.10008.1.2.4.203": ("high-throughput JPEG 2000", "pylibjpeg[openjpeg]"),
    RLE: ("RLE lossless", "pydicom"),
}


class TruncatedError(DicomError):
    """A file ends before its header says.

    Parameters
    ----------
    message : str
        What is missing.
    needed : int
        Bytes that the file must have at least.
    exact : bool
        Whether the file is known to be whole at `needed` bytes.
    file : DicomFile, optional
        What the header says, where that much is there.
    """

    def __init__(self, message: str, needed: int, exact: bool = False, file: DicomFile | None = None) -> None:
        self.needed = needed
        self.exact = exact
        self.file = file
        super().__init__(message)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """One file.

    Parameters
    ----------
    name : str
        Path or name, for messages.
    uid : str
        SOP instance UID: the same in every copy of the file.
    series : SeriesHeader
        The series that it belongs to.
    orientation : ndarray, float64 (2, 3)
        Directions of growing column and row index, LPS+.
    spacing_mm : tuple of float, (3,)
        Between columns, between rows, and between slices where the header says it (else 0).
    parts : tuple of Part
        Its slices by volume.
    identity : tuple
        Acquisition time, acquisition and instance number: the same in two files only if they hold the same pictures.
    picture : tuple of int
        Rows and columns of a slice.
    size : int
        Length in bytes that the header asks for.
    checksum : int
        CRC-32 of the stored pixels.
    tail, stored : int
        Bytes of zeros at the end of the stored pixels, without the empty tiles of a mosaic, and bytes of pixels; 0 where compressed.
    """

    name: str
    uid: str
    series: SeriesHeader
    orientation: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    parts: tuple[Part, ...]
    identity: tuple[str, int | None, int | None]
    picture: tuple[int, int]
    size: int = 0
    checksum: int = 0
    tail: int = 0
    stored: int = 0


def read_dicom(path: Path | str, *, pixels: bool = True, most_bytes: int = MAX_FILE) -> DicomFile:
    """Read one DICOM file.

    Parameters
    ----------
    path : path
        The file.
    pixels : bool
        Whether to decode the pixels, or only check that they are there.
    most_bytes : int
        A larger file is refused unread.

    Returns
    -------
    DicomFile

    Raises
    ------
    TruncatedError
        If the file ends before its header says; it may still be growing.
    DicomError
        If it is no DICOM picture, or of a kind that is not supported; the message says which.
    OSError
        If it cannot be opened.
    """
    return parse_dicom(_contents(path, most_bytes), os.fspath(path), pixels=pixels)


def _contents(path: Path | str, most_bytes: int = MAX_FILE) -> bytes:
    """What a regular file holds; of a large one only once its beginning is DICOM's."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise NotDicomError(f"{shown(os.fspath(path), None)}: expected at most {most_bytes} bytes, found {size}")
        if size <= LARGE:
            return file.read() or b""
        try:
            _open(file.read(LARGE) or b"")
        except Incomplete:
            pass  # a long header: the rest says
        except DicomError as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from None
        file.seek(0)
        return read_exactly(file, size)


def why_undecodable(path: Path | str) -> str:
    """Return why the pixels of a compressed file cannot be decoded here; empty if they can, or are not compressed."""
    try:
        contents = _contents(path)
        if _open(contents).transfer_syntax not in NATIVE:
            parse_dicom(contents, os.fspath(path))
    except PixelsError as error:
        return str(error)
    except (DicomError, Incomplete, OSError):
        pass
    return ""


def parse_dicom(contents: bytes, name: str, *, pixels: bool = True) -> DicomFile:
    """Like :func:`read_dicom`, from the file's bytes."""
    try:
        elements = _open(contents)
    except Incomplete as error:
        message = f"{name}: ends at byte {len(contents)} within its header" if contents else f"{name}: empty"
        raise TruncatedError(message, error.needed, error.exact) from None
    except DicomError as error:
        raise type(error)(f"{name}: {error}") from None
    try:
        return _parse(elements, len(contents), name, pixels)
    except TruncatedError:
        raise
    except DicomError as error:
        raise type(error)(f"{name}: {error}") from None
    except Exception as error:
        raise DicomError(f"{name}: malformed header ({type(error).__name__}: {shown(error)})") from error


def _open(contents: bytes) -> Elements:
    """Find the elements; where the quick walk stumbles over the file, as pydicom reads them."""
    try:
        return open_elements(contents)
    except OversizeError:
        raise
    except DicomError as error:
        if contents[128:132] != b"DICM":
            raise
        try:
            elements = open_elements(rewritten(contents))
        except (DicomError, Incomplete) as second:
            raise DicomError(f"{error}; {second}") from None
        if PIXEL_DATA not in elements:
            raise
        return elements


def _parse(elements: Elements, size: int, name: str, pixels: bool) -> DicomFile:
    if PIXEL_DATA not in elements:
        kind = elements.text(0x00080016)
        if not kind or (kind.startswith(PICTURE_CLASSES) and not kind.startswith("1.2.840.10008.5.1.4.1.1.4.2")):
            raise TruncatedError(f"{name}: ends at byte {size} before its pixels", size + 1)
        raise DicomError(f"holds no picture (SOP class {kind})")
    frames = max(1, elements.integer(0x00280008) or sum(1 for _ in elements.items(0x52009230)))
    shape = (frames, _dimension(elements, 0x00280010, "rows"), _dimension(elements, 0x00280011, "columns"))
    if elements.integer(0x00280002) not in (None, 1):
        raise DicomError(f"expected grey-scale pictures, found {elements.integer(0x00280002)} samples a pixel")
    header = _describe(elements, shape, name)
    end = _check_pixels(elements, shape, size, header)
    start = elements.table[PIXEL_DATA][1]
    parts = _with_pixels(header, _decode(elements, shape)) if pixels else header.parts
    stored = memoryview(elements.buffer)[start:end]
    tail = 0
    if elements.transfer_syntax in NATIVE:
        tail = max(0, len(stored) - len(bytes(stored).rstrip(b"\0")) - _empty(header, len(stored)))
    return replace(header, parts=parts, size=end, checksum=zlib.crc32(stored), tail=tail, stored=len(stored))


def _empty(header: DicomFile, stored: int) -> int:
    """Bytes at the end of a mosaic that no slice has."""
    if header.series.kind != "mosaic":
        return 0
    slices, (_, columns) = len(header.parts[0].frames), header.picture
    tiles = math.ceil(math.sqrt(slices))
    tile_row = stored // tiles
    beside = -slices % tiles * columns * stored // (tiles * tiles * header.picture[0] * columns)
    return (tiles - math.ceil(slices / tiles)) * tile_row + beside


def _dimension(elements: Elements, tag: int, what: str) -> int:
    value = elements.integer(tag)
    if value is None or not 1 <= value <= 65535:
        raise DicomError(f"expected a number of {what} from 1 to 65535, found {value}")
    return value


def _pixel_type(elements: Elements) -> np.dtype[Any]:
    bits = elements.integer(0x00280100)
    if bits not in (8, 16, 32):
        raise DicomError(f"expected 8, 16 or 32 bits a pixel, found {bits}")
    order = elements.order if elements.table[PIXEL_DATA][0] != b"OB" else "<"
    if elements.transfer_syntax == GE_PRIVATE:
        order = ">"
    return np.dtype(f"{order}{'i' if elements.integer(0x00280103) else 'u'}{bits // 8}")


def _check_pixels(elements: Elements, shape: tuple[int, int, int], size: int, header: DicomFile) -> int:
    """Where the pixels end, having checked that they are all there."""
    _, start, end = elements.table[PIXEL_DATA]
    needed = math.prod(shape) * _pixel_type(elements).itemsize
    if needed > MAX_PIXELS:
        raise DicomError(f"expected pictures of at most {MAX_PIXELS} bytes, found {needed}")
    if end < 0:  # encapsulated: the end is marked, not announced
        try:
            found, end = fragments(elements.buffer, start)
        except Incomplete as error:
            raise TruncatedError(f"{header.name}: ends at byte {size} within its compressed pixels", error.needed, False, header) from None
        if elements.transfer_syntax.startswith(JPEGS):
            _check_codestreams(elements.buffer, found, shape)
        return end
    if elements.transfer_syntax in NATIVE and end - start < needed:
        raise DicomError(f"pixel data: expected {needed} bytes for {shape} pixels, found {end - start} announced")
    if end > len(elements.buffer):
        raise TruncatedError(f"{header.name}: ends at byte {size}, its header says {end}", end, True, header)
    return int(end)


def _check_codestreams(buffer: bytes, found: list[tuple[int, int]], shape: tuple[int, int, int]) -> None:
    """Refuse compressed pixels that are larger by themselves than the header says: decoders take the memory that they ask for.

    The sizes are those of JPEG 2000 (ITU-T T.800, A.5.1), JPEG and JPEG-LS (ITU-T T.81, B.2.2; T.87, C.2.2).
    """
    frames, rows, columns = shape
    if len(found) < frames:
        raise DicomError(f"compressed pixels: expected a fragment for each of {frames} frames, found {len(found)}")
    stored = b"".join(memoryview(buffer)[start:end] for start, end in found)
    if OVERSIZE.search(stored):
        raise DicomError("compressed pixels: expected a size in their frame's header, found an oversize image (JPEG-LS, LSE 4)")
    sizes = [(b - d, a - c, n) for a, b, c, d, n in (JPEG_2000.unpack(size[1]) for size in SIZE_2000.finditer(stored))]
    sizes += [JPEG.unpack(size[1]) for size in SIZE_JPEG.finditer(stored)]
    for height, width, samples in sizes:
        if height * width * samples > rows * columns:
            raise DicomError(f"compressed pixels: expected {rows} x {columns} of 1 sample, found {height} x {width} of {samples}")


def _decode(elements: Elements, shape: tuple[int, int, int]) -> NDArray[Any]:
    """The pixels as stored, (frames, rows, columns)."""
    syntax = elements.transfer_syntax
    if syntax in NATIVE:
        _, start, _ = elements.table[PIXEL_DATA]
        return _stored_bits(elements, np.frombuffer(elements.buffer, _pixel_type(elements), math.prod(shape), start)).reshape(shape)
    if not syntax.startswith(COMPRESSED):
        raise DicomError(f"expected a transfer syntax of the DICOM standard, found {syntax}")
    import pydicom  # only here: compressed files are rare, and pydicom costs a quarter of a second to import

    what, package = SYNTAX_NAMES.get(syntax, ("of a kind without plugin", "nothing: export the series uncompressed"))
    try:
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(io.BytesIO(elements.buffer), force=True)
            decoded = np.asarray(pydicom.pixels.pixel_array(dataset, raw=syntax == RLE))
    except Exception as error:  # pydicom's plugins raise all kinds
        raise PixelsError(f"compressed pixels (transfer syntax {syntax}, {what}) cannot be decoded; install {package}: {error}") from error
    return (_stored_bits(elements, decoded) if syntax == RLE else decoded).reshape(shape)


def _stored_bits(elements: Elements, pixels: NDArray[Any]) -> NDArray[Any]:
    """The pixels without the bits that hold none: above HighBit and below BitsStored (DICOM PS3.5, 8.1.1), where overlays may lie."""
    allocated = 8 * pixels.dtype.itemsize
    stored = elements.integer(0x00280101) or allocated
    high = elements.integer(0x00280102)
    end = stored if high is None or not stored <= high + 1 <= allocated else high + 1
    if not 0 < stored < allocated:
        return pixels
    return (pixels << (allocated - end)) >> (allocated - stored)  # keeps the sign of signed ones


def _describe(elements: Elements, shape: tuple[int, int, int], name: str) -> DicomFile:
    """Everything but the pixels."""
    frames, rows, columns = shape
    if 0x52009230 in elements:
        series = series_header(elements, "enhanced" if frames > 1 else "slices", (rows, columns), elements.first(0x52009229))
        layout = enhanced_layout(elements, frames, series)
    else:
        if frames > 1:
            raise DicomError(f"expected functional groups that say where each of {frames} frames lies, found none")
        if "VFRAME" in elements.words(0x00080008):
            raise DicomError("holds a volume in United Imaging's GRID format, which is not read: export one file per slice")
        slices = mosaic_slices(elements) or _count_slices(elements, shape, name)
        tiles = math.ceil(math.sqrt(slices)) if slices else 1
        series = series_header(elements, "mosaic" if slices else "slices", (rows // tiles, columns // tiles))
        layout = mosaic_layout(elements, slices, (rows, columns)) if slices else slice_layout(elements, series)
        rows, columns = rows // tiles, columns // tiles
    uid = elements.text(0x00080018)
    if not uid or not series.uid:
        raise DicomError("expected identifiers of the instance (0008,0018) and of the series (0020,000E), found none")
    identity = (elements.text(0x0008002A) + elements.text(0x00080032), elements.integer(0x00200012), elements.integer(0x00200013))
    return DicomFile(name, uid, series, layout.orientation, layout.spacing_mm, layout.parts, identity, (rows, columns))


def _count_slices(elements: Elements, shape: tuple[int, int, int], name: str) -> int:
    """Number of slices of a mosaic whose header does not say it, from its pixels; 0 for what is no mosaic."""
    tiles = mosaic_tiles(elements, shape[1:])
    if not tiles:
        return 0
    end = elements.table[PIXEL_DATA][2]
    if end > len(elements.buffer):
        raise TruncatedError(f"{name}: ends at byte {len(elements.buffer)}, its header says {end}", end, True)
    return filled_tiles(_decode(elements, shape)[0], tiles)


def _with_pixels(header: DicomFile, pixels: NDArray[Any]) -> tuple[Part, ...]:
    """Assign the pictures to the parts; those of a mosaic are its tiles."""
    if header.series.kind == "mosaic":
        tiles = math.ceil(math.sqrt(len(header.parts[0].frames)))
        _, rows, columns = pixels.shape
        tiled = pixels.reshape(tiles, rows // tiles, tiles, columns // tiles).transpose(0, 2, 1, 3)
        pixels = tiled.reshape(-1, rows // tiles, columns // tiles)
    if len(header.parts) == 1 and np.array_equal(header.parts[0].frames, np.arange(len(pixels))):
        return (replace(header.parts[0], pixels=pixels),)
    return tuple(replace(part, pixels=pixels[part.frames]) for part in header.parts)
