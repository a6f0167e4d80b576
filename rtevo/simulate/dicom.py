"""Writes functional volumes as a Siemens scanner exports them: one mosaic DICOM file for each volume.

A mosaic file holds the slices of a volume as tiles of one large picture; the tiles are described by Siemens' private CSA header
(0029,1010): their number and the direction in which they follow each other. The layout of that header is not published by
Siemens; it is written here as nibabel's documentation describes it ("Siemens format DICOM with CSA header",
https://nipy.org/nibabel/dicom/siemens_csa.html) and as dcm2niix reads it.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.records import Grid
from rtevo.simulate.echoes import ECHO_S

__all__ = ["MosaicWriter", "csa_header"]

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
RTEVO_CLASS_UID = "2.25.261470493718253440861092746114932051263"  # the implementation that wrote the file
LONG_LENGTH = frozenset((b"OB", b"OW", b"SQ", b"UN", b"UT"))  # value representations with a four-byte length
Element = tuple[int, int, bytes, bytes | str | int | list[int]]  # group, number, value representation, value
STORED_MAX = 4095  # scanners store 12 bits
ORTHOGONAL_TOLERANCE = 1e-4  # cosine between two voxel axes above which a grid is oblique to itself


def csa_header(tags: Sequence[tuple[str, str, int, Sequence[str]]]) -> bytes:
    """Encode a CSA2 header.

    Parameters
    ----------
    tags : sequence of (name, vr, vm, items)
        Name, value representation, value multiplicity and values as text of each entry.

    Returns
    -------
    bytes
        The value of (0029,1010) or (0029,1020).
    """
    syngo_types = {"IS": 6, "DS": 3, "FD": 4, "US": 10, "CS": 16, "LO": 19, "SH": 22, "UN": 0}
    out = [b"SV10\x04\x03\x02\x01", struct.pack("<II", len(tags), 77)]
    for name, vr, vm, items in tags:
        n_items = 6 * math.ceil(len(items) / 6)  # Siemens pads the list to a multiple of six
        out.append(struct.pack("<64si4siii", name.encode(), vm, vr.encode(), syngo_types[vr], n_items, 77))
        for i in range(n_items):
            value = items[i].encode() + b"\0" if i < len(items) else b""
            out.append(struct.pack("<iiii", len(value), len(value), 77 if value else 205, len(value)))
            out.append(value + b"\0" * (-len(value) % 4))
    header = b"".join(out)
    return header + b"\0" * (-len(header) % 4)


def _elements(elements: Sequence[Element]) -> bytes:
    """Encode data elements, explicit VR little endian."""
    out = []
    for group, number, vr, value in elements:
        if isinstance(value, bytes):
            body = value
        elif isinstance(value, str):
            body = value.encode()
        else:
            numbers = [value] if isinstance(value, int) else value
            body = struct.pack(f"<{len(numbers)}{'H' if vr == b'US' else 'I'}", *numbers)
        if len(body) % 2:
            body += b"\0" if vr in (b"UI", b"OB") else b" "
        if vr in LONG_LENGTH:
            out.append(struct.pack("<HH2sHI", group, number, vr, 0, len(body)))
        else:
            out.append(struct.pack("<HH2sH", group, number, vr, len(body)))
        out.append(body)
    return b"".join(out)


def _decimal(value: float) -> str:
    """A number as a DICOM decimal string: at most 16 characters."""
    for digits in range(16, 5, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.6g}"


def _decimals(values: NDArray[np.float64]) -> str:
    return "\\".join(_decimal(float(v)) for v in values)


def _interleaved(slices: int, tr_s: float) -> list[float]:
    """Acquisition time of each slice from the volume's start in ms, Siemens' interleaved order."""
    first = 0 if slices % 2 else 1
    order = [*range(first, slices, 2), *range(1 - first, slices, 2)]
    times = [0.0] * slices
    for rank, index in enumerate(order):
        times[index] = round(1000 * tr_s * rank / slices / 2.5) * 2.5
    return times


def _hashed(text: str) -> str:
    """A unique identifier under 2.25, derived from a text."""
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15], 'big')}"


class MosaicWriter:
    """One functional series, written volume by volume as Siemens mosaic files.

    Parameters
    ----------
    folder : path
        Folder for the files; made if missing.
    grid : Grid
        Shape and RAS+ affine of the volumes. Its axes must be at right angles to each other; any rotation and either handedness will
        do. Reading a file back (:mod:`rtevo.ingest`, dcm2niix) gives exactly this grid.
    tr_s : float
        Repetition time in seconds.
    description : str
        Series description and protocol name.
    series_number : int
        Number of the series in the session.
    volumes : int, optional
        Number of volumes that the protocol announces; 0 says nothing.
    started : datetime, optional
        Acquisition time of volume 0; now if None. Identifiers are derived from it, the description and the series number, so the same
        arguments give the same bytes.
    units_per_step : float
        Value of one step of the stored integers (0 to 4095), written as rescale slope where it is not 1.
    echo : tuple of (int, int, float)
        Number of the echo that is written (1 = first), of how many, and its time, s.

    Raises
    ------
    ValueError
        If the grid is sheared or the repetition time is not positive.
    """

    def __init__(
        self,
        folder: Path | str,
        grid: Grid,
        tr_s: float,
        *,
        description: str = "rtevo simulated BOLD",
        series_number: int = 1,
        volumes: int = 0,
        started: datetime.datetime | None = None,
        units_per_step: float = 1.0,
        echo: tuple[int, int, float] = (1, 1, ECHO_S),
    ) -> None:
        if not tr_s > 0:
            raise ValueError(f"MosaicWriter tr_s: expected > 0 seconds, got {tr_s!r}")
        if not units_per_step > 0:
            raise ValueError(f"MosaicWriter units_per_step: expected > 0, got {units_per_step!r}")
        self.folder = Path(folder)
        self.grid = grid
        self.tr_s = float(tr_s)
        self.units_per_step = float(units_per_step)
        self._started = started or datetime.datetime.now()
        self._description = description
        self._series_number = series_number
        self._volumes = volumes
        self._echo, self._echoes, self._te_s = echo
        self._tiles = math.ceil(math.sqrt(grid.shape[2]))
        nx, ny, _ = grid.shape
        self._mosaic = np.zeros((self._tiles, ny, self._tiles, nx), np.uint16)  # tile row, row, tile column, column
        self._set_geometry()
        self._set_fixed()
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, index: int) -> Path:
        """File of volume `index`."""
        return self.folder / f"001_{self._series_number:06d}_{self._instance(index):06d}.dcm"

    def _instance(self, index: int) -> int:
        """Instance number: through all echoes of the series."""
        return index * self._echoes + self._echo

    def write(self, index: int, volume: NDArray[np.float32] | NDArray[np.int16]) -> Path:
        """Write one volume.

        Parameters
        ----------
        index : int
            Position in the run, 0 = first.
        volume : ndarray, float32 or int16 (X, Y, Z)
            Values are stored as the nearest of 4096 steps of `units_per_step` from 0; what lies outside is clipped, as scanners do.

        Returns
        -------
        Path
            The file, written under its final name and closed.

        Raises
        ------
        ValueError
            If the volume has another shape than the grid or is not finite.
        """
        contents = self.encode(index, volume)
        path = self.path(index)
        path.write_bytes(contents)
        return path

    def encode(self, index: int, volume: NDArray[np.float32] | NDArray[np.int16]) -> bytes:
        """The bytes of the file that :meth:`write` writes."""
        if volume.shape != self.grid.shape:
            raise ValueError(f"MosaicWriter volume: expected shape {self.grid.shape}, got {volume.shape}")
        steps = np.multiply(volume, np.float32(1 / self.units_per_step), dtype=np.float32)
        if not np.isfinite(steps.sum()):
            raise ValueError(f"MosaicWriter volume {index}: expected finite values, got NaN or infinity")
        np.rint(steps, out=steps)
        np.clip(steps, 0, STORED_MAX, out=steps)
        slices = steps.astype(np.uint16)[:, ::-1, :].transpose(2, 1, 0)  # slice, row, column
        for k, tile in enumerate(slices):
            self._mosaic[k // self._tiles, :, k % self._tiles, :] = tile
        return self._before_pixels(index) + _elements([(0x7FE0, 0x10, b"OW", self._mosaic.tobytes())])

    def _uid(self, *what: object) -> str:
        """A unique identifier under 2.25, derived from what it names."""
        return _hashed("\n".join(str(w) for w in (self._started.isoformat(), self._description, *what)))

    def _set_geometry(self) -> None:
        """Work out what the headers say about where the voxels lie (DICOM: LPS+ millimetres)."""
        nx, ny, _ = self.grid.shape
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.grid.affine
        size = self.grid.voxel_size_mm
        axes = affine[:3, :3] / size
        if np.abs(axes.T @ axes - np.eye(3)).max() > ORTHOGONAL_TOLERANCE:
            raise ValueError(f"MosaicWriter grid: expected voxel axes at right angles, got the affine {self.grid.affine.tolist()}")
        self._row, self._column, self._normal = axes[:, 0], -axes[:, 1], axes[:, 2]
        self._first = (affine @ [0, ny - 1, 0, 1])[:3]  # centre of the first stored pixel of the first slice
        half = (self._tiles - 1) / 2  # the position in the header is that of a picture as large as the mosaic about the same centre
        self._position = self._first - self._row * size[0] * nx * half - self._column * size[1] * ny * half

    def _csa(self) -> bytes:
        nz = self.grid.shape[2]
        times = _interleaved(nz, self.tr_s)
        return csa_header(
            [
                ("EchoLinePosition", "IS", 1, [str(self.grid.shape[1] // 2)]),
                ("ProtocolSliceNumber", "IS", 1, ["0"]),
                ("AcquisitionMatrixText", "SH", 1, [f"{self.grid.shape[1]}*{self.grid.shape[0]}"]),
                ("PhaseEncodingDirectionPositive", "IS", 1, ["1"]),
                ("NumberOfImagesInMosaic", "US", 1, [str(nz)]),
                ("SliceNormalVector", "FD", 3, [f"{v:.8f}" for v in self._normal]),
                ("BandwidthPerPixelPhaseEncode", "FD", 1, ["25.0"]),
                ("SlicePosition_PCS", "FD", 3, [f"{v:.8f}" for v in self._position]),
                ("MosaicRefAcqTimes", "FD", nz, [f"{t:.8f}" for t in times]),
            ]
        )

    def _set_fixed(self) -> None:
        """Encode the elements that are the same in every file."""
        self._fixed_series = _elements(self._series_elements())
        self._fixed_geometry = _elements(self._geometry_elements())
        private: list[Element] = [
            (0x29, 0x10, b"LO", "SIEMENS CSA HEADER"),
            (0x29, 0x1008, b"CS", "IMAGE NUM 4"),
            (0x29, 0x1009, b"LO", self._started.strftime("%Y%m%d")),
            (0x29, 0x1010, b"OB", self._csa()),
        ]
        if self.units_per_step != 1.0:
            private[:0] = [(0x28, 0x1052, b"DS", "0"), (0x28, 0x1053, b"DS", _decimal(self.units_per_step))]
        self._fixed_private = _elements(private)

    def _series_elements(self) -> list[Element]:
        """Return the elements of the scan: groups 0008 (from modality on) to 0020,0011."""
        nx, ny, _ = self.grid.shape
        spacing = _decimal(float(self.grid.voxel_size_mm[2]))
        description = self._description.encode()[:64].decode(errors="ignore")
        return [
            (0x08, 0x60, b"CS", "MR"),
            (0x08, 0x70, b"LO", "SIEMENS"),
            (0x08, 0x80, b"LO", "rtevo simulated scanner"),
            (0x08, 0x1030, b"LO", "rtevo"),
            (0x08, 0x103E, b"LO", description),
            (0x08, 0x1090, b"LO", "rtevo"),
            (0x10, 0x10, b"PN", "simulated^rtevo"),
            (0x10, 0x20, b"LO", "simulated"),
            (0x18, 0x20, b"CS", "EP"),
            (0x18, 0x21, b"CS", "SK"),
            (0x18, 0x22, b"CS", "FS"),
            (0x18, 0x23, b"CS", "2D"),
            (0x18, 0x24, b"SH", f"*epfid2d1_{ny}"),
            (0x18, 0x50, b"DS", spacing),
            (0x18, 0x80, b"DS", _decimal(1000 * self.tr_s)),
            (0x18, 0x81, b"DS", _decimal(round(1000 * self._te_s, 6))),
            (0x18, 0x86, b"IS", str(self._echo)),
            (0x18, 0x87, b"DS", "3"),
            (0x18, 0x88, b"DS", spacing),
            (0x18, 0x89, b"IS", str(ny)),
            (0x18, 0x91, b"IS", str(ny)),
            (0x18, 0x1020, b"LO", "syngo MR E11"),
            (0x18, 0x1030, b"LO", description),
            (0x18, 0x1310, b"US", [nx, 0, 0, ny]),
            (0x18, 0x1312, b"CS", "COL"),
            (0x18, 0x1314, b"DS", "60"),
            (0x18, 0x5100, b"CS", "HFS"),
            (0x20, 0x0D, b"UI", _hashed(f"study\n{self._started.date().isoformat()}")),  # one a day
            (0x20, 0x0E, b"UI", self._uid("series", self._series_number)),
            (0x20, 0x10, b"SH", "1"),
            (0x20, 0x11, b"IS", str(self._series_number)),
        ]

    def _geometry_elements(self) -> list[Element]:
        """Where the pixels lie and how they are stored: 0020,0032 to 0028,0103."""
        nx, ny, _ = self.grid.shape
        size = self.grid.voxel_size_mm
        announced: list[Element] = [(0x20, 0x105, b"IS", str(self._volumes))] if self._volumes else []
        return [
            (0x20, 0x32, b"DS", _decimals(self._position)),
            (0x20, 0x37, b"DS", _decimals(np.concatenate([self._row, self._column]))),
            (0x20, 0x52, b"UI", self._uid("frame of reference")),
            *announced,
            (0x20, 0x1041, b"DS", _decimal(float(self._first @ self._normal))),
            (0x28, 0x02, b"US", 1),
            (0x28, 0x04, b"CS", "MONOCHROME2"),
            (0x28, 0x10, b"US", self._tiles * ny),
            (0x28, 0x11, b"US", self._tiles * nx),
            (0x28, 0x30, b"DS", _decimals(size[[1, 0]])),  # between rows, between columns
            (0x28, 0x100, b"US", 16),
            (0x28, 0x101, b"US", 12),
            (0x28, 0x102, b"US", 11),
            (0x28, 0x103, b"US", 0),
        ]

    def _before_pixels(self, index: int) -> bytes:
        """All of the file before its pixels, in the order of the tags."""
        uid = self._uid("series", self._series_number, "volume", index, *(["echo", self._echo] if self._echoes > 1 else []))
        acquired = self._started + datetime.timedelta(seconds=index * self.tr_s)
        content = acquired + datetime.timedelta(seconds=self.tr_s)
        times = [(0x20, self._started), (0x21, self._started), (0x22, acquired), (0x23, content)]  # study, series, acquisition, content
        meta = _elements(
            [
                (0x02, 0x01, b"OB", b"\x00\x01"),
                (0x02, 0x02, b"UI", MR_IMAGE_STORAGE),
                (0x02, 0x03, b"UI", uid),
                (0x02, 0x10, b"UI", EXPLICIT_LITTLE_ENDIAN),
                (0x02, 0x12, b"UI", RTEVO_CLASS_UID),
            ]
        )
        image: list[Element] = [
            (0x08, 0x05, b"CS", "ISO_IR 192"),
            (0x08, 0x08, b"CS", "ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC"),
            (0x08, 0x16, b"UI", MR_IMAGE_STORAGE),
            (0x08, 0x18, b"UI", uid),
            *((0x08, tag, b"DA", when.strftime("%Y%m%d")) for tag, when in times),
            *((0x08, tag + 0x10, b"TM", when.strftime("%H%M%S.%f")) for tag, when in times),
        ]
        numbers: list[Element] = [(0x20, 0x12, b"IS", str(index + 1)), (0x20, 0x13, b"IS", str(self._instance(index)))]
        start = b"\0" * 128 + b"DICM" + _elements([(0x02, 0x00, b"UL", len(meta))])
        parts = (start, meta, _elements(image), self._fixed_series, _elements(numbers), self._fixed_geometry, self._fixed_private)
        return b"".join(parts)
