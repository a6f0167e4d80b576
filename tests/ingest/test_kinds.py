"""Kinds of exports that the recorded archives lack, made up, in any order of arrival, and as dcm2niix reads them where it does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from rtevo.errors import DicomError
from rtevo.ingest import FolderSource, Volume
from rtevo.ingest.dicom import parse_dicom

Made = Any  # the class in conftest.py
VOLUMES, SLICES, TR_S = 4, 5, 2.0
FLOAT32_AFFINE_MM = 1e-3  # dcm2niix computes affines in float32
SCALED_FLOAT32 = 2e-6  # of the value: rescaling rounds once more
VENDORS = {"ge": "GE", "philips": "Philips", "siemens": "SIEMENS", "canon": "CANON_MEC", "uih": "UIH"}
Kind = Callable[[Made], list[pydicom.FileDataset]]
KINDS: dict[str, Kind] = {}
PHILIPS = "Philips Medical Systems"


def kind(make: Kind) -> Kind:
    KINDS[make.__name__] = make
    return make


def slices(made: Made, vendor: str, change: Callable[[pydicom.FileDataset, int, int], None] = lambda *_: None) -> list[pydicom.FileDataset]:
    """Every slice of a series, each changed, given its volume and slice."""
    datasets = []
    for volume in range(VOLUMES):
        for index in range(SLICES):
            datasets.append(made.slice(volume, index, vendor))
            change(datasets[-1], volume, index)
    return datasets


def counted(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
    dataset.InstanceNumber, dataset.AcquisitionNumber = volume * SLICES + index + 1, 1


def bare(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
    """Nothing but instance numbers tells the volume, nothing how many slices one has."""
    dataset.remove_private_tags()
    dataset.pop("NumberOfTemporalPositions", None)
    dataset.pop("TemporalPositionIdentifier", None)
    counted(dataset, volume, index)


@kind
def ge_without_private_tags(made: Made) -> list[pydicom.FileDataset]:
    return slices(made, "GE", bare)


@kind
def ge_with_trigger_times(made: Made) -> list[pydicom.FileDataset]:
    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        bare(dataset, volume, index)
        dataset.TriggerTime = 2000 * volume + 400 * index

    return slices(made, "GE", change)


@kind
def ge_with_temporal_positions(made: Made) -> list[pydicom.FileDataset]:
    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        bare(dataset, volume, index)
        dataset.TemporalPositionIdentifier = volume + 1

    return slices(made, "GE", change)


@kind
def ge_numbered_from_behind_another_series(made: Made) -> list[pydicom.FileDataset]:
    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        bare(dataset, volume, index)
        dataset.InstanceNumber += 13

    return slices(made, "GE", change)


@kind
def ge_numbered_in_the_order_of_acquisition(made: Made) -> list[pydicom.FileDataset]:
    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        bare(dataset, volume, index)
        dataset.InstanceNumber = volume * SLICES + (0, 3, 1, 4, 2)[index] + 1

    return slices(made, "GE", change)


@kind
def siemens_slices_of_one_acquisition(made: Made) -> list[pydicom.FileDataset]:
    return slices(made, "SIEMENS", counted)


@kind
def canon_slices(made: Made) -> list[pydicom.FileDataset]:
    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        counted(dataset, volume, index)
        dataset.TemporalPositionIdentifier, dataset.NumberOfTemporalPositions = volume + 1, VOLUMES

    return slices(made, "CANON_MEC", change)


@kind
def united_imaging_slices(made: Made) -> list[pydicom.FileDataset]:
    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        counted(dataset, volume, index)
        dataset.AcquisitionNumber = volume + 1

    return slices(made, "UIH", change)


@kind
def philips_without_spacing_between_slices(made: Made) -> list[pydicom.FileDataset]:
    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        del dataset.SpacingBetweenSlices
        dataset.SliceThickness = 9  # must not count

    return slices(made, "Philips", change)


@kind
def philips_descending(made: Made) -> list[pydicom.FileDataset]:
    made.descending = True
    made.pixels = np.ascontiguousarray(made.pixels[:, ::-1])
    datasets = slices(made, "Philips")
    made.pixels = made.pixels[:, ::-1]
    return datasets


@kind
def unsigned_of_16_bits(made: Made) -> list[pydicom.FileDataset]:
    made.pixels = (made.pixels * 16).astype(np.uint16)
    assert made.pixels.max() > 32767

    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        dataset.BitsStored, dataset.HighBit = 16, 15

    return slices(made, "Philips", change)


@kind
def signed_of_12_bits(made: Made) -> list[pydicom.FileDataset]:
    made.pixels = (made.pixels.astype(np.int16) - 2048).astype(np.int16)

    def change(dataset: pydicom.FileDataset, volume: int, index: int) -> None:
        dataset.PixelRepresentation = 1

    return slices(made, "Philips", change)


@kind
def philips_enhanced_slice_by_slice(made: Made) -> list[pydicom.FileDataset]:
    places = [(volume, index) for index in range(SLICES) for volume in range(VOLUMES)]
    return [frames(made, [made.frame(*place) for place in places], [made.pixels[place] for place in places])]


@kind
def philips_enhanced_without_temporal_positions(made: Made) -> list[pydicom.FileDataset]:
    dataset = made.enhanced(list(range(VOLUMES)), PHILIPS)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        del groups.FrameContentSequence[0].TemporalPositionIndex
    return [dataset]


@kind
def siemens_enhanced_with_a_false_mosaic_tag(made: Made) -> list[pydicom.FileDataset]:
    datasets = [made.enhanced([volume], instance=volume + 1) for volume in range(VOLUMES)]
    for dataset in datasets:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "FMRI", "NONE", "MOSAIC"]
    return datasets


def frames(made: Made, groups: list[Dataset], pictures: list[np.ndarray]) -> pydicom.FileDataset:
    """A multi-frame file of these frames."""
    dataset = made.enhanced([0], PHILIPS)
    dataset.NumberOfFrames = len(groups)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = np.stack(pictures).tobytes()
    return dataset


def check(volumes: list[Volume], made: Made, scale: float = 1.0) -> None:
    assert [volume.index for volume in volumes] == list(range(VOLUMES))
    for volume in volumes:
        assert volume.data is not None
        np.testing.assert_allclose(volume.data, made.data(volume.index) * np.float32(scale), rtol=SCALED_FLOAT32)
        assert volume.tr_s == TR_S


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("order", ["as sent", "shuffled", "backwards"])
def test_in_any_order_of_arrival(name: str, order: str, made: Made, encode: Any, clock: Any, tmp_path: Path) -> None:
    if order == "backwards" and name == "ge_numbered_from_behind_another_series":
        return  # where numbers begin anywhere the first volume is the lowest that came before one was passed on
    datasets = KINDS[name](made)
    files = [encode(dataset, enforce_file_format=True) for dataset in datasets]
    if order != "as sent":
        files = files[::-1] if order == "backwards" else [files[i] for i in np.random.default_rng(3).permutation(len(files))]
    source = FolderSource(tmp_path, patience_s=1e6, clock_ns=clock)
    volumes = source.poll()
    for number, contents in enumerate(files):
        (tmp_path / f"{number:03d}").write_bytes(contents)
        volumes += source.poll()
    before_the_end = len(volumes)
    volumes += source.finish()
    check(volumes, made)
    assert [p for p in source.problems if "counts as the first" not in p] == []
    if order == "as sent" and len(files) > VOLUMES:
        assert before_the_end >= VOLUMES - 1  # at the latest when the next has begun


@pytest.mark.parametrize("name", [name for name in KINDS if name != "ge_numbered_in_the_order_of_acquisition"])  # which it refuses
def test_as_dcm2niix_reads_it(name: str, made: Made, encode: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for number, dataset in enumerate(KINDS[name](made)):
        (tmp_path / "in" / f"{number:03d}").write_bytes(encode(dataset, enforce_file_format=True))
    command = [sys.executable, "-m", "dcm2niix", "-b", "n", "-z", "n", "-f", "run", "-o", str(tmp_path / "out"), str(tmp_path / "in")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    images = [nibabel.load(path) for path in sorted((tmp_path / "out").glob("*.nii"), key=lambda path: (len(path.name), path.name))]
    assert images, done.stdout
    expected = np.concatenate([image.get_fdata().reshape(*image.shape[:3], -1) for image in images], axis=3)  # enhanced: one a file
    source = FolderSource(tmp_path / "in", patience_s=1.0)
    volumes = source.poll() + source.finish()
    if len(images) > 1:  # in the order in which it found the files, which is not a volume's
        expected = expected[..., [int(np.argmin([np.abs(expected[..., k] - v.data).max() for k in range(VOLUMES)])) for v in volumes]]
    np.testing.assert_allclose(np.stack([volume.data for volume in volumes], axis=-1), expected, rtol=SCALED_FLOAT32)
    np.testing.assert_allclose(volumes[0].grid.affine, images[0].affine, atol=FLOAT32_AFFINE_MM)


def test_philips_enhanced_with_a_scale_of_its_own_in_every_frame(made: Made, encode: Any, tmp_path: Path) -> None:
    dataset = made.enhanced(list(range(VOLUMES)), PHILIPS)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        rescale, inner = Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1.5, 0, "normalized"
        groups.PixelValueTransformationSequence = [rescale]
        inner.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.25)
        groups.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [inner])
    (tmp_path / "a").write_bytes(encode(dataset, enforce_file_format=True))
    source = FolderSource(tmp_path, patience_s=1.0)
    check(source.poll(), made, 4.0)


@pytest.mark.parametrize(
    ("given", "expected"),  # as dcm2niix 1.0.20260724 gives them
    [("rescale scale", (50, 200)), ("rescale scale real", (50, 200)), ("rescale real", (2.5, 10)), ("real", (7, 3)), ("scale", (50, 0))],
)
def test_the_scales_of_philips(given: str, expected: tuple[float, float], made: Made, encode: Any) -> None:
    dataset, mapping = made.slice(0, 0), Dataset()
    if "rescale" in given:
        dataset.RescaleSlope, dataset.RescaleIntercept = 2.5, 10
    if "scale" in given.split():
        dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.02)
    if "real" in given:
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 7.0, 3.0
        dataset.RealWorldValueMappingSequence = [mapping]
    (part,) = parse_dicom(encode(dataset), "x").parts
    assert (part.slopes[0], part.intercepts[0]) == pytest.approx(expected, rel=1e-5)


def test_a_grid_of_united_imaging_is_refused_and_not_taken_for_a_slice(made: Made, encode: Any) -> None:
    dataset = made.slice(0, 0, "UIH")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "VFRAME"]
    with pytest.raises(DicomError, match="GRID format, which is not read: export one file per slice"):
        parse_dicom(encode(dataset), "x")


@pytest.mark.parametrize("by", ["component", "te_ms"])
def test_components_and_echoes_of_a_philips_enhanced_series(by: str, made: Made, encode: Any, tmp_path: Path) -> None:
    values = ("MAGNITUDE", "PHASE") if by == "component" else (12.0, 30.0)
    places = [(volume, index, value) for volume in range(VOLUMES) for index in range(SLICES) for value in values]
    groups = [made.frame(volume, index, **{by: value}) for volume, index, value in places]
    pictures = [made.pixels[volume, index] if value == values[0] else 4095 - made.pixels[volume, index] for volume, index, value in places]
    (tmp_path / "a").write_bytes(encode(frames(made, groups, pictures), enforce_file_format=True))
    source = FolderSource(tmp_path, patience_s=1.0)
    check(source.poll(), made)
    assert len(source.streams) == 2


@pytest.mark.parametrize("fastest", ["echo", "slice"])
@pytest.mark.parametrize("private", [True, False])
def test_echoes_share_the_instance_numbers_of_a_series(
    private: bool, fastest: str, made: Made, encode: Any, clock: Any, tmp_path: Path
) -> None:
    source = FolderSource(tmp_path, patience_s=1e6, clock_ns=clock)
    volumes: list[Volume] = []
    echoes = (12, 30, 48)
    for volume in range(VOLUMES):
        order = (
            [(e, k) for k in range(SLICES) for e in range(3)] if fastest == "echo" else [(e, k) for e in range(3) for k in range(SLICES)]
        )
        for place, (echo, index) in enumerate(order):
            dataset = made.slice(volume, index, "GE")
            if not private:
                bare(dataset, volume, index)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str((volume, place))])
            dataset.EchoNumbers, dataset.EchoTime = echo + 1, echoes[echo]
            dataset.InstanceNumber = (volume * SLICES * 3) + place + 1
            dataset.PixelData = (made.pixels[volume, index] // (echo + 1)).tobytes()
            (tmp_path / f"{volume}-{place}").write_bytes(encode(dataset, enforce_file_format=True))
            volumes += source.poll()
    volumes += source.finish()
    check(volumes, made)
    assert source.problems == []
    assert len(source.streams) == 3


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]
)
@pytest.mark.parametrize("enhanced", [False, True])
def test_a_series_in_every_transfer_syntax(enhanced: bool, syntax: str, make: Any, encode: Any, tmp_path: Path) -> None:
    if syntax == JPEGLSLossless:
        pytest.importorskip("jpeg_ls", reason="pyjpegls is not installed")
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    made = make()
    made.pixels = np.tile(made.pixels, (1, 1, 8, 8))  # codecs want pictures of some size
    datasets = [made.enhanced([volume], instance=volume + 1) for volume in range(VOLUMES)] if enhanced else slices(made, "Philips")
    for number, dataset in enumerate(datasets):
        dataset.Rows, dataset.Columns = made.pixels.shape[2:]
        if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        options = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
        plain = syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian)
        (tmp_path / str(number)).write_bytes(encode(dataset, **(options if plain else {"enforce_file_format": True})))
    source = FolderSource(tmp_path, patience_s=1.0)
    check(source.poll() + source.finish(), made)
    assert source.problems == []


@pytest.mark.parametrize("vendor", ["Philips", "GE", "SIEMENS"])
@pytest.mark.parametrize("whole", [False, True])
def test_files_that_highdicom_converted_to_multi_frame(whole: bool, vendor: str, made: Made, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")
    datasets = slices(made, vendor)
    for dataset in datasets:
        for name in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "AccessionNumber",
            "ReferringPhysicianName",
            "Laterality",
        ):
            setattr(dataset, name, "")
        dataset.StudyID, dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = "1", "1.2.3", ""
        dataset.ManufacturerModelName, dataset.DeviceSerialNumber, dataset.SoftwareVersions = "X", "1", "1"
        dataset.ContentDate, dataset.ContentTime, dataset.PatientPosition = "20260102", "101500", "HFS"
        dataset.EchoNumbers, dataset.FlipAngle, dataset.EchoTrainLength, dataset.ScanOptions = 1, 60, 1, ""
        dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.WindowCenter, dataset.WindowWidth = 1, 0, 1, 2
    series = generate_uid()
    for number, group in enumerate([datasets] if whole else [datasets[k : k + SLICES] for k in range(0, len(datasets), SLICES)]):
        converted = highdicom.legacy.LegacyConvertedEnhancedMRImage(group, series, 5, generate_uid(), number + 1)
        converted.save_as(tmp_path / str(number))
    source = FolderSource(tmp_path, patience_s=1.0)
    check(source.poll() + source.finish(), made)
    assert source.problems == []
    vendor_name = source.streams[0].series.vendor
    told = f"series 5 'bold task (enhanced conversion)' ({vendor_name} enhanced, TR 2 s): it looks functional: echo-planar series"
    assert source.told == told
