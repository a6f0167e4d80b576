"""One file at a time: kinds, encodings, and everything that may be wrong with it."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from rtevo.errors import DicomError
from rtevo.ingest import TruncatedError
from rtevo.ingest.csa import csa_numbers, csa_values
from rtevo.ingest.dicom import parse_dicom
from rtevo.ingest.elements import PIXEL_DATA, Elements, open_elements
from rtevo.ingest.header import moment
from rtevo.ingest.selection import Selection
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter, csa_header

Made = Any  # the class in conftest.py
Encode = Callable[..., bytes]
GRID = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))


def mosaic(tmp_path: Path, index: int = 0) -> bytes:
    volume = np.arange(8 * 6 * 5, dtype=np.float32).reshape(8, 6, 5)
    return MosaicWriter(tmp_path, GRID, 2.0).encode(index, volume)


def test_a_mosaic(tmp_path: Path) -> None:
    file = parse_dicom(mosaic(tmp_path, 3), "m.dcm")
    (part,) = file.parts
    assert (file.series.vendor, file.series.kind, file.picture) == ("Siemens", "mosaic", (6, 8))
    assert part.numbers == {"instance": 4, "acquisition": 4}
    assert part.pixels is not None
    assert part.pixels.shape == (5, 6, 8)
    np.testing.assert_allclose(np.diff(part.positions, axis=0), np.tile([0, 0, 3.5], (4, 1)), atol=1e-9)


def test_a_false_mosaic_tag_is_not_believed(made: Made, encode: Encode) -> None:
    dataset = made.slice(0, 0)
    dataset.Manufacturer, dataset.ImageType = "SIEMENS", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    assert parse_dicom(encode(dataset), "x").series.kind == "slices"


def test_a_philips_slice_and_its_scaling(made: Made, encode: Encode) -> None:
    dataset = made.slice(2, 3)
    dataset.RescaleSlope, dataset.RescaleIntercept = 4.0, 8.0
    file = parse_dicom(encode(dataset), "x")
    assert (file.parts[0].slopes[0], file.parts[0].intercepts[0]) == (4.0, 8.0)
    dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.5)
    (part,) = parse_dicom(encode(dataset), "x").parts
    assert (part.slopes[0], part.intercepts[0]) == (2.0, 4.0)  # (stored x 4 + 8) / (4 x 0.5)
    assert part.numbers["temporal"] == 3
    assert file.series.slices == 5


def test_private_tags_that_a_server_stored_as_unknown(made: Made, encode: Encode) -> None:
    dataset = made.slice(0, 0)
    block = dataset.private_block(0x2001, "Philips Imaging DD 001")
    tag = block.get_tag(0x18)
    dataset[tag] = pydicom.DataElement(tag, "UN", struct.pack("<i", 5))
    assert parse_dicom(encode(dataset), "x").series.slices == 5


@pytest.mark.parametrize(
    ("component", "expected"), [(["ORIGINAL", "PRIMARY", "P", "ND"], "P"), (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"], "P")]
)
def test_phase_is_told_from_magnitude(component: list[str], expected: str, made: Made, encode: Encode) -> None:
    dataset = made.slice(0, 0)
    dataset.ImageType = component
    assert parse_dicom(encode(dataset), "x").parts[0].component == expected


def test_an_enhanced_file_of_one_volume_in_any_frame_order(made: Made, encode: Encode) -> None:
    file = parse_dicom(encode(made.enhanced([2], instance=3, shuffle=True)), "x")
    (part,) = file.parts
    assert part.numbers == {"temporal": 3, "instance": 3, "acquisition": 3}
    assert file.series.tr_s == 2.0
    heights = part.positions @ np.cross(*file.orientation)
    assert part.pixels is not None
    np.testing.assert_array_equal(part.pixels[np.argsort(heights)], made.pixels[2])


def test_an_enhanced_file_of_all_volumes(made: Made, encode: Encode) -> None:
    file = parse_dicom(encode(made.enhanced([0, 1, 2, 3], "Philips Medical Systems", shuffle=True)), "x")
    assert sorted(part.numbers["temporal"] for part in file.parts) == [1, 2, 3, 4]
    for part in file.parts:
        heights = part.positions @ np.cross(*file.orientation)
        assert part.pixels is not None
        np.testing.assert_array_equal(part.pixels[np.argsort(heights)], made.pixels[part.numbers["temporal"] - 1])


def test_an_enhanced_file_without_temporal_positions_counts_how_often_a_place_comes(made: Made, encode: Encode) -> None:
    dataset = made.enhanced([0, 1, 2, 3], "Philips Medical Systems")
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.FrameContentSequence[0].TemporalPositionIndex = 1
    file = parse_dicom(encode(dataset), "x")
    assert [part.numbers for part in file.parts] == [{"temporal": n} for n in (1, 2, 3, 4)]
    assert file.parts[3].pixels is not None
    np.testing.assert_array_equal(file.parts[3].pixels, made.pixels[3])


def test_components_and_echoes_of_an_enhanced_file(made: Made, encode: Encode) -> None:
    dataset = made.enhanced([0, 1, 2, 3], "Philips Medical Systems")
    kinds = [("MAGNITUDE", 12.0), ("MAGNITUDE", 30.0), ("PHASE", 12.0), ("PHASE", 30.0)]
    for i in range(4 * 5):
        component, te_ms = kinds[i // 5]
        dataset.PerFrameFunctionalGroupsSequence[i] = made.frame(0, i % 5, component=component, te_ms=te_ms)
    file = parse_dicom(encode(dataset), "x")
    assert [(part.component, part.echo, part.te_ms) for part in file.parts] == [("M", 1, 12), ("M", 2, 30), ("P", 1, 12), ("P", 2, 30)]


@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_of_defined_and_undefined_length(undefined: bool, made: Made, encode: Encode) -> None:
    dataset = made.enhanced([0])
    for sequence in (dataset[0x52009229], dataset[0x52009230]):
        sequence.is_undefined_length = undefined
        for item in sequence.value:
            item.is_undefined_length_sequence_item = undefined
            for inner in item:
                inner.is_undefined_length = undefined
    file = parse_dicom(encode(dataset), "x")
    np.testing.assert_allclose(file.parts[0].positions, [made.position(k) for k in range(5)])


@pytest.mark.parametrize("kind", ["slice", "enhanced"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_every_encoding_gives_the_same(kind: str, syntax: str, made: Made, encode: Encode) -> None:
    dataset = made.slice(1, 2) if kind == "slice" else made.enhanced([1])
    dataset.RescaleSlope, dataset.RescaleIntercept = 1.5, -3
    plain = parse_dicom(encode(dataset), "plain")
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
        data = encode(dataset)
    elif syntax == ExplicitVRBigEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
        data = encode(dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
        data = encode(dataset)
    file = parse_dicom(data, "other")
    assert file.series == plain.series
    assert file.uid == plain.uid
    for part, expected in zip(file.parts, plain.parts, strict=True):
        assert part.numbers == expected.numbers
        assert (part.component, part.echo, part.te_ms, part.acquired_s) == (
            expected.component,
            expected.echo,
            expected.te_ms,
            expected.acquired_s,
        )
        np.testing.assert_array_equal(part.positions, expected.positions)
        np.testing.assert_array_equal(part.slopes, expected.slopes)
        assert part.pixels is not None
        np.testing.assert_array_equal(part.pixels, expected.pixels)


def test_a_file_without_preamble_or_meta_information(made: Made, encode: Encode) -> None:
    data = encode(made.slice(1, 2))
    bare = data[data.index(b"\x08\x00\x08\x00CS") :]
    assert parse_dicom(bare, "x").uid == parse_dicom(data, "x").uid


def test_a_compressed_file_that_cannot_be_read_names_syntax_and_package(made: Made, encode: Encode) -> None:
    dataset = made.slice(0, 0)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 no picture"])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(DicomError, match=r"1\.2\.840\.10008\.1\.2\.4\.90, JPEG 2000 lossless.*pylibjpeg\[openjpeg\]"):
        parse_dicom(encode(dataset), "x")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: d.__delattr__("ImagePositionPatient"), "image position"),
        (lambda d: d.__delattr__("SOPInstanceUID"), "identifiers"),
        (lambda d: setattr(d, "ImageOrientationPatient", [0] * 6), "image orientation"),
        (lambda d: setattr(d, "PixelSpacing", [0, 3]), "pixel spacing"),
        (lambda d: setattr(d, "SamplesPerPixel", 3), "grey-scale"),
        (lambda d: setattr(d, "Rows", 0), "number of rows"),
        (lambda d: setattr(d, "Rows", 60), "pixel data: expected 960 bytes"),
        (lambda d: setattr(d, "BitsAllocated", 12), "8, 16 or 32 bits"),
        (lambda d: setattr(d, "NumberOfFrames", 2), "functional groups"),
    ],
)
def test_what_is_wrong_is_said(break_it: Callable[[pydicom.Dataset], None], message: str, made: Made, encode: Encode) -> None:
    dataset = made.slice(0, 0)
    break_it(dataset)
    with pytest.raises(DicomError, match=f"^a/x.dcm: .*{message}") as caught:
        parse_dicom(encode(dataset, enforce_file_format=False), "a/x.dcm")
    assert not isinstance(caught.value, TruncatedError)


def test_files_that_are_no_pictures(made: Made, encode: Encode) -> None:
    with pytest.raises(DicomError, match="not a DICOM file"):
        parse_dicom(b"subject,condition\n" * 20, "events.csv")
    dataset = made.slice(0, 0)
    del dataset.PixelData
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    with pytest.raises(DicomError, match="holds no picture"):
        parse_dicom(encode(dataset), "report.dcm")


@pytest.mark.parametrize("kind", ["mosaic", "slice", "enhanced", "rle", "big"])
def test_a_file_that_is_cut_anywhere_is_incomplete_and_nothing_else(kind: str, tmp_path: Path, made: Made, encode: Encode) -> None:
    if kind == "mosaic":
        data = mosaic(tmp_path)
    elif kind == "big":
        dataset = made.slice(0, 0)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        data = encode(dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    else:
        dataset = made.enhanced([0]) if kind == "enhanced" else made.slice(0, 0)
        if kind == "rle":
            dataset.compress(RLELossless, generate_instance_uid=False)
        data = encode(dataset)
    whole = parse_dicom(data, "x")
    assert whole.size == len(data)
    for size in range(len(data)):
        with pytest.raises(TruncatedError) as caught:
            parse_dicom(data[:size], "x")
        assert size < caught.value.needed <= len(data) + (0 if caught.value.exact else 140)
        if caught.value.exact:
            assert caught.value.needed == len(data)
        if caught.value.file is not None:
            assert caught.value.file.uid == whole.uid


def test_space_that_was_reserved_and_not_written_is_incomplete(tmp_path: Path) -> None:
    data = mosaic(tmp_path)
    for written in (0, 100, 132, 400, 1500):
        with pytest.raises(TruncatedError):
            parse_dicom(data[:written] + bytes(len(data) - written), "x")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, make: type[Made], encode: Encode) -> list[bytes]:
    made = make()
    datas = [made.slice(0, 0), made.enhanced([0]), made.enhanced([0, 1], "Philips")]
    return [mosaic(tmp_path_factory.mktemp("mosaic")), *map(encode, datas)]


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12), kind=st.integers(0, 3))
def test_a_damaged_file_is_read_or_refused(flips: list[tuple[float, int]], kind: int, samples: list[bytes]) -> None:
    data = bytearray(samples[kind])
    start = data.index(b"\xe0\x7f\x10\x00") + 12
    for where, value in flips:
        data[int(where * start)] = value
    with contextlib.suppress(DicomError):  # and no other error
        parse_dicom(bytes(data), "x")


def values(elements: Elements, data: bytes) -> list[tuple[int, int]]:
    """Where the values of a file's elements lie, those within sequences included."""
    found = [(entry[1], entry[2]) for tag, entry in elements.table.items() if tag != PIXEL_DATA and 0 < entry[2] - entry[1] < 200]
    for tag, entry in elements.table.items():
        if entry[0] == b"SQ":
            for item in elements.items(tag):
                found += values(item, data)
    return found


WORDS = st.sampled_from(
    [b"-1", b"0", b"1e308", b"nan", b"inf", b"1\\2\\3", b"99999999999999999999", b"\\", b"", b"20269999", b"M\\P\\MOSAIC"]
)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.integers(0, 3),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), WORDS | st.binary(max_size=16)), min_size=1, max_size=3),
)
def test_whatever_an_element_holds_a_file_is_sorted_or_refused(kind: int, changes: list[tuple[float, bytes]], samples: list[bytes]) -> None:
    data = bytearray(samples[kind])
    places = values(open_elements(samples[kind]), samples[kind])
    for where, value in changes:
        start, end = places[int(where * len(places))]
        data[start:end] = value[: end - start].ljust(end - start, b" " if value.isascii() else b"\0")
    try:
        file = parse_dicom(bytes(data), "x")
    except DicomError:  # and no other error
        return
    selection = Selection(None, patience_s=1.0, first=1)
    for part in file.parts:
        selection.add(file, part, 0, 0.0, "x")
    selection.settle(10.0, final=True)
    for stream in selection.streams.values():
        for volume in stream.assembler.advance(10.0, final=True):
            assert volume.data is None or volume.data.shape == volume.grid.shape
    selection.told()
    assert selection.explain()


def test_csa_headers_of_both_kinds() -> None:
    second = csa_header([("First", "IS", 1, ["7"]), ("SliceNormalVector", "FD", 3, ["0.1", "-0.2", "0.97"]), ("Empty", "LO", 1, [])])
    assert csa_numbers(second, "SliceNormalVector") == (0.1, -0.2, 0.97)
    assert csa_values(second, "Empty") == ()
    assert csa_values(second, "Absent") == ()
    assert csa_values(second[:100], "SliceNormalVector") == ()
    items = [b"0.1\0", b"-0.2", b"0.97"]
    entry = struct.pack("<64si4siii", b"SliceNormalVector", 3, b"FD", 4, 3, 77)
    first = struct.pack("<II", 1, 77) + entry + b"".join(struct.pack("<4i", 4 + 3, 7, 77, 7) + item for item in items)
    assert csa_numbers(first, "SliceNormalVector") == (0.1, -0.2, 0.97)


@pytest.mark.parametrize(
    ("date", "time", "seconds"),
    [("20260102", "101500", 0), ("20260102", "101500.25", 0.25), ("20260102101501.5+0100", "", 1.5), ("20260103", "00", 49500.0)],
)
def test_dates_and_times(date: str, time: str, seconds: float) -> None:
    assert moment(date, time) - moment("20260102", "101500") == pytest.approx(seconds)


def test_dates_that_are_none() -> None:
    assert np.isnan(moment("", ""))
    assert np.isnan(moment("2026", "noon"))


def test_the_private_syntax_of_ge_has_big_endian_pixels(made: Made, encode: Encode) -> None:
    dataset = made.slice(1, 2, "GE")
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    plain = encode(dataset)
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    swapped = encode(dataset).replace(b"1.2.840.10008.1.2\0", b"1.2.840.113619.5.2", 1)
    swapped = swapped.replace(b"\x02\0\x10\0UI\x12\0", b"\x02\0\x10\0UI\x12\0")  # both names are 18 bytes long
    (part,), (expected,) = parse_dicom(swapped, "x").parts, parse_dicom(plain, "x").parts
    assert part.pixels is not None
    assert expected.pixels is not None
    np.testing.assert_array_equal(part.pixels, expected.pixels)


def test_a_file_on_which_the_walk_stumbles_is_read_by_pydicom(made: Made, encode: Encode) -> None:
    data = encode(made.slice(1, 2))
    at = data.index(b"\x10\0\x20\0\x0d\0UI") + 2 if b"\x10\0\x20\0\x0d\0UI" in data else data.index(b"\x18\0\x30\x10LO")
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    odd = data[: at + 4] + (length).to_bytes(4, "little") + data[at + 8 :]  # one element in implicit encoding among explicit ones
    (part,), (expected,) = parse_dicom(odd, "x").parts, parse_dicom(data, "x").parts
    assert part.pixels is not None
    assert expected.pixels is not None
    np.testing.assert_array_equal(part.pixels, expected.pixels)
    assert part.numbers == expected.numbers
    assert parse_dicom(odd, "x").series == parse_dicom(data, "x").series


@pytest.mark.parametrize("syntax", [JPEG2000Lossless])
def test_compressed_pixels_are_decoded_by_the_plugins_of_pydicom(syntax: str, made: Made, encode: Encode) -> None:
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    made.pixels = np.tile(made.pixels, (1, 1, 8, 8))  # the codec wants pictures of some size
    for dataset in (made.slice(0, 1), made.enhanced([0])):
        dataset.Rows, dataset.Columns = made.pixels.shape[2:]
        plain = parse_dicom(encode(dataset), "x")
        dataset.compress(syntax, generate_instance_uid=False)
        (part,), (expected,) = parse_dicom(encode(dataset), "x").parts, plain.parts
        assert part.pixels is not None
        assert expected.pixels is not None
        np.testing.assert_array_equal(part.pixels, expected.pixels)


def test_frames_of_different_slices_at_one_place_are_refused(made: Made, encode: Encode) -> None:
    dataset = made.enhanced([1])
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
    with pytest.raises(DicomError, match="of the stack are both at"):
        parse_dicom(encode(dataset), "x")


def test_numbers_that_are_not_filled_count_for_nothing(made: Made, encode: Encode) -> None:
    dataset = made.enhanced([1], instance=2)
    dataset.AcquisitionNumber = 0
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.FrameContentSequence[0].TemporalPositionIndex = 0
    (part,) = parse_dicom(encode(dataset), "x").parts
    assert part.numbers == {"instance": 2}


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_number_that_cannot_be_right_makes_no_endless_gap(damaged: int, make: type[Made], encode: Encode) -> None:
    dataset = make().enhanced([0, 1], "Philips")
    slices = dataset.NumberOfFrames // 2
    for frame in dataset.PerFrameFunctionalGroupsSequence[slices * damaged : slices * (damaged + 1)]:
        frame.FrameContentSequence[0].TemporalPositionIndex = 4_000_000_000
    selection = Selection(None, patience_s=1.0, first=1)
    file = parse_dicom(encode(dataset), "x")
    for part in file.parts:
        selection.add(file, part, 0, 0.0, "x")
    selection.settle(10.0, final=True)
    [stream] = selection.streams.values()
    assert len(stream.assembler.advance(10.0, final=True)) <= 2
    assert stream.assembler.problems
