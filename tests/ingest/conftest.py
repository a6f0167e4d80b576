"""Recorded and made-up scanner files, dcm2niix as the oracle, and a clock that moves only on command."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

VOLUMES, SLICES, ROWS, COLUMNS = 4, 5, 6, 8
ORIENTATION = [0.9998476951563913, 0, -0.01745240643728351, 0, 1, 0]  # one degree of tilt
SPACING_MM = (2.5, 3.0)  # between rows, between columns
DISTANCE_MM = 3.5
TR_S = 2.0


class FakeClock:
    """A clock of nanoseconds that moves only on command."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def dcm2niix(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], nibabel.Nifti1Image]:
    """Return a function that converts a folder with dcm2niix; fails unless that gives one image."""

    def convert(folder: Path) -> nibabel.Nifti1Image:
        out = tmp_path_factory.mktemp("dcm2niix")
        command = [sys.executable, "-m", "dcm2niix", "-b", "n", "-z", "n", "-f", "out", "-o", str(out), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        images = list(out.glob("*.nii"))
        assert len(images) == 1, done.stdout + done.stderr
        return nibabel.load(images[0])

    return convert


@dataclass
class Made:
    """Makes small series with known pixels; ``pixels[volume, slice]`` are the stored pictures, slice 0 lowest along the normal."""

    seed: int = 0
    orientation: list[float] = field(default_factory=lambda: list(ORIENTATION))
    descending: bool = False  # slices are numbered from the far end of the normal

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.pixels = rng.integers(0, 4096, (VOLUMES, SLICES, ROWS, COLUMNS)).astype(np.uint16)
        self.series_uid = generate_uid(entropy_srcs=[f"series {self.seed}"])

    def position(self, index: int) -> list[float]:
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        place = SLICES - 1 - index if self.descending else index
        return [round(float(x), 8) for x in np.array([-40.0, -30, 20]) + place * DISTANCE_MM * normal]

    def data(self, volume: int) -> NDArray[np.float32]:
        """What a reader should make of one volume before rescaling."""
        return np.ascontiguousarray(self.pixels[volume].transpose(2, 1, 0)[:, ::-1].astype(np.float32))

    def base(self, *names: object) -> FileDataset:
        uid = generate_uid(entropy_srcs=[str(self.seed), *map(str, names)])
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "FFE"]
        dataset.Modality, dataset.SeriesDescription, dataset.ProtocolName = "MR", "bold task", "bold task"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["study"]), self.series_uid
        dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20260102"
        dataset.StudyTime = dataset.SeriesTime = "101500"
        dataset.SeriesNumber, dataset.AcquisitionNumber = 7, 1
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.MRAcquisitionType = ["EP", "GR"], "SK", "2D"
        dataset.RepetitionTime, dataset.EchoTime = TR_S * 1000, 30
        dataset.SliceThickness, dataset.SpacingBetweenSlices = 3, DISTANCE_MM
        dataset.Rows, dataset.Columns, dataset.PixelSpacing = ROWS, COLUMNS, list(SPACING_MM)
        dataset.ImageOrientationPatient = self.orientation
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        return dataset

    def slice(self, volume: int, index: int, vendor: str = "Philips") -> FileDataset:
        """One file of a one-file-per-slice series; GE counts slices fastest, Philips volumes."""
        dataset = self.base(vendor, volume, index)
        dataset.NumberOfTemporalPositions = VOLUMES
        dataset.ImagePositionPatient = self.position(index)
        dataset.PixelData = self.pixels[volume, index].tobytes()
        dataset.AcquisitionTime = f"1015{TR_S * volume:09.6f}"
        if vendor == "GE":
            dataset.Manufacturer = "GE MEDICAL SYSTEMS"
            dataset.AcquisitionTime = "101500"
            dataset.InstanceNumber = volume * SLICES + index + 1
            block = dataset.private_block(0x21, "GEMS_RELA_01", create=True)
            block.add_new(0x4F, "SS", SLICES)
        elif vendor == "Philips":
            dataset.Manufacturer = "Philips Medical Systems"
            dataset.InstanceNumber = index * VOLUMES + volume + 1
            dataset.TemporalPositionIdentifier = volume + 1
            block = dataset.private_block(0x2001, "Philips Imaging DD 001", create=True)
            block.add_new(0x18, "SL", SLICES)
        else:
            dataset.Manufacturer = vendor
            dataset.AcquisitionNumber = volume + 1
            dataset.InstanceNumber = index * VOLUMES + volume + 1
            del dataset.NumberOfTemporalPositions
        return dataset

    def enhanced(self, volumes: list[int], vendor: str = "SIEMENS", *, instance: int = 1, shuffle: bool = False) -> FileDataset:
        """A multi-frame file of one or more volumes."""
        dataset = self.base("enhanced", vendor, *volumes, instance)
        dataset.Manufacturer = vendor
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
        dataset.InstanceNumber, dataset.AcquisitionNumber = instance, instance
        for name in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RepetitionTime"):
            delattr(dataset, name)
        places = [(v, k) for v in volumes for k in range(SLICES)]
        if shuffle:
            places = [places[i] for i in np.random.default_rng(1).permutation(len(places))]
        dataset.NumberOfFrames = len(places)
        dataset.SharedFunctionalGroupsSequence = Sequence([self.shared()])
        dataset.PerFrameFunctionalGroupsSequence = Sequence([self.frame(v, k) for v, k in places])
        dataset.PixelData = np.stack([self.pixels[v, k] for v, k in places]).tobytes()
        return dataset

    def shared(self) -> Dataset:
        groups, timing, measures, orientation = Dataset(), Dataset(), Dataset(), Dataset()
        timing.RepetitionTime = TR_S * 1000
        measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = list(SPACING_MM), 3, DISTANCE_MM
        orientation.ImageOrientationPatient = self.orientation
        groups.MRTimingAndRelatedParametersSequence = Sequence([timing])
        groups.PixelMeasuresSequence = Sequence([measures])
        groups.PlaneOrientationSequence = Sequence([orientation])
        return groups

    def frame(self, volume: int, index: int, *, component: str = "MAGNITUDE", te_ms: float = 30.0) -> Dataset:
        groups, content, position, echo, kind = (Dataset() for _ in range(5))
        content.FrameAcquisitionDateTime = f"202601021015{TR_S * volume + 0.1 * index:09.6f}"
        content.TemporalPositionIndex, content.InStackPositionNumber, content.StackID = volume + 1, index + 1, "1"
        content.DimensionIndexValues = [1, index + 1, volume + 1]
        position.ImagePositionPatient = self.position(index)
        echo.EffectiveEchoTime = te_ms
        kind.ComplexImageComponent = component
        groups.FrameContentSequence, groups.PlanePositionSequence = Sequence([content]), Sequence([position])
        groups.MREchoSequence, groups.MRImageFrameTypeSequence = Sequence([echo]), Sequence([kind])
        return groups


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture(scope="session")
def make() -> type[Made]:
    return Made


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Return a function that gives a data set's file as bytes."""

    def to_bytes(dataset: FileDataset, **options: Any) -> bytes:
        buffer = pydicom.filebase.DicomBytesIO()
        pydicom.dcmwrite(buffer, dataset, **options)
        return bytes(buffer.getvalue())

    return to_bytes


@pytest.fixture(autouse=True)
def known_files_are_looked_at_in_every_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the look before has taken on a busy computer."""
    monkeypatch.setattr("rtevo.ingest.turns.TURN_SHARE", math.inf)
