"""Volumes whose pixels are known, and the files or messages in which a scanner sends them."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.decode import write_decoder
from rtevo.records import Grid
from rtevo.simulate import Simulation, make_decoder
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.participant import Participant
from rtevo.simulate.scanner import Scanner
from rtevo.simulate.send import PushEncoder

__all__ = ["DESCRIPTION", "SETTINGS", "TRANSPORTS", "TR_S", "Files", "decoder", "encoder", "fingerprint", "volume"]

TR_S = 0.25
SETTINGS = Simulation(tr_s=TR_S, shape=(32, 32, 12), voxel_size_mm=(6.0, 6.0, 8.0))
TRANSPORTS = ("mosaic", "slices", "nifti", "store", "push")
DESCRIPTION = "bold campaign"
DAY = datetime.datetime(2026, 1, 2, 10)
VOLUMES = 80  # that the head is measured for; a longer run begins anew

Files = Callable[[int, NDArray[np.int16]], list[tuple[str, bytes]]]
"""Index and pixels of a volume -> name and contents of each of its files, or its message."""


@lru_cache(1)
def _measured() -> list[NDArray[np.int16]]:
    head = SETTINGS.head()
    scanner, participant = Scanner(head, SETTINGS), Participant(SETTINGS.preference(), np.random.default_rng(0), 0.0)
    return [np.clip(scanner.acquire(index, participant), 0, 4000).astype(np.int16) for index in range(VOLUMES)]


def volume(index: int, run: int = 0) -> NDArray[np.int16]:
    """Pixels of a volume, int16 (X, Y, Z); no two of them, of any runs, are alike."""
    pixels = _measured()[index % VOLUMES].copy()
    pixels[0, 0, 0], pixels[1, 0, 0] = 1 + index, 1 + run
    pixels[-1, -1, -1] = 1  # a torn file does not end in zeros as a whole one does
    return pixels


def fingerprint(pixels: NDArray[np.generic]) -> str:
    """SHA-256 of int16 pixels (X, Y, Z)."""
    return hashlib.sha256(np.ascontiguousarray(pixels, np.int16).tobytes()).hexdigest()


def decoder(folder: Path) -> None:
    """Write the decoder of the simulated participant."""
    made = make_decoder(SETTINGS)
    write_decoder(folder, "liking", made.reference, made.mask, made.weights, made.grid.affine, made.settings)


class _Mosaics(MosaicWriter):
    """Mosaics of a run that may be started again under the series' identifier: pictures are others."""

    def __init__(self, series_number: int, again: int, day: datetime.datetime) -> None:
        self._again = again
        super().__init__(".", SETTINGS.grid, TR_S, description=DESCRIPTION, series_number=series_number, started=day)
        self._started = day + datetime.timedelta(seconds=60 * again)

    def _uid(self, *what: object) -> str:
        started, self._started = self._started, self._started.replace(hour=0, minute=0, second=0)
        uid = super()._uid(*what, self._again if "volume" in what else "")
        self._started = started
        return uid


def _slice_file(mosaics: _Mosaics, series_number: int, again: int, index: int, place: int, pixels: NDArray[np.int16]) -> bytes:
    """One slice as a file, as Philips' classic export has it."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    nx, ny, nz = pixels.shape
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ SETTINGS.grid.affine
    size = SETTINGS.grid.voxel_size_mm
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = mosaics._uid("slices", series_number, "volume", index, place)
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.ImageType, data.Modality, data.Manufacturer = ["ORIGINAL", "PRIMARY", "M", "FFE"], "MR", "Philips Medical Systems"
    data.SeriesDescription = data.ProtocolName = DESCRIPTION
    data.StudyInstanceUID = mosaics._uid("study")
    data.SeriesInstanceUID = mosaics._uid("slices", series_number)
    started = DAY + datetime.timedelta(seconds=60 * again)
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = started.strftime("%Y%m%d")
    data.StudyTime = data.SeriesTime = started.strftime("%H%M%S")
    data.AcquisitionTime = (started + datetime.timedelta(seconds=index * TR_S)).strftime("%H%M%S.%f")
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = series_number, 1, place * 500 + index + 1
    data.TemporalPositionIdentifier, data.NumberOfTemporalPositions = index + 1, 500
    data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = ["EP", "GR"], "SK", "2D"
    data.RepetitionTime, data.EchoTime = 1000 * TR_S, 30
    data.SliceThickness = data.SpacingBetweenSlices = float(size[2])
    data.Rows, data.Columns, data.PixelSpacing = ny, nx, [float(size[1]), float(size[0])]
    axes = affine[:3, :3] / size
    data.ImageOrientationPatient = [float(v) for v in np.concatenate([axes[:, 0], -axes[:, 1]])]
    data.ImagePositionPatient = [float(v) for v in (affine @ [0, ny - 1, place, 1])[:3]]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x18, "SL", nz)
    data.PixelData = np.ascontiguousarray(pixels[:, ::-1, place].T.astype(np.uint16)).tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def _nifti(pixels: NDArray[np.int16], compressed: bool) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(pixels, SETTINGS.grid.affine)
    image.header.set_zooms((*map(float, SETTINGS.grid.voxel_size_mm),))
    contents = image.to_bytes()
    return gzip.compress(contents, 1) if compressed else contents


def encoder(transport: str, *, series_number: int = 2, again: int = 0, days_before: int = 0, compressed: bool = False) -> Files:
    """Return what makes the files of a run.

    Parameters
    ----------
    transport : str
        One of :data:`TRANSPORTS`.
    series_number : int
        Of DICOM files; part of the name of others.
    again : int
        So often the run was started again under the same series number and identifier.
    days_before : int
        The run is another study's, so many days ago.
    compressed : bool
        NIfTI as ``.nii.gz``.
    """
    mosaics = _Mosaics(series_number, again, DAY - datetime.timedelta(days=days_before))
    tag = f"{series_number:03d}{'abcdefgh'[again]}" + f"-{days_before}" * bool(days_before)

    def files(index: int, pixels: NDArray[np.int16]) -> list[tuple[str, bytes]]:
        if transport in ("mosaic", "store"):
            return [(f"{tag}_{index + 1:06d}.dcm", mosaics.encode(index, pixels))]
        if transport == "slices":
            return [
                (f"{tag}_{index + 1:06d}_{k:02d}.dcm", _slice_file(mosaics, series_number, again, index, k, pixels))
                for k in range(pixels.shape[2])
            ]
        if transport == "nifti":
            return [(f"run{tag}_v_{index + 1:04d}.nii{'.gz' if compressed else ''}", _nifti(pixels, compressed))]
        push = PushEncoder(Grid(SETTINGS.shape, SETTINGS.grid.affine), TR_S, f"{DESCRIPTION} {series_number}")
        return [(f"volume-{index:05d}", push.encode(index, pixels))]

    return files
