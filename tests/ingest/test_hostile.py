"""Files that are made to do harm: each is named and passed over, and the run goes on."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from rtevo.errors import DicomError
from rtevo.ingest import FolderSource
from rtevo.ingest.dicom import parse_dicom
from rtevo.ingest.nifti import read_nifti

FakeClock = Any
SHAPE = (8, 6, 5)
VOLUME_BYTES = 2 * 8 * 6 * 5
LITTLE = 32 << 20  # bytes that reading any of these files may take beyond what was there: bombs are made larger


def nifti(index: int = 0, volumes: int = 0) -> bytes:
    data = np.random.default_rng(index).integers(0, 4096, (*SHAPE, volumes) if volumes else SHAPE).astype(np.int16)
    made = nibabel.Nifti1Image(data, np.diag([3.0, 3, 3, 1]))
    made.header.set_xyzt_units("mm", "sec")
    made.header["pixdim"][4] = 2.0
    return bytes(made.to_bytes())


def with_header(contents: bytes, name: str, value: Any) -> bytes:
    header = nibabel.Nifti1Header(contents[:348], check=False)
    header.structarr[name] = value
    return header.structarr.tobytes() + contents[348:]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_goes_on(folder: Path, clock: FakeClock, named: str = "") -> FolderSource:
    """The bad files lie there: two good volumes are taken all the same, and something was said of each bad file."""
    (folder / "good_1.nii").write_bytes(nifti(1))
    (folder / "good_2.nii").write_bytes(nifti(2))
    source = FolderSource(folder, series="good", patience_s=1, stall_s=1, clock_ns=clock, confined=True)
    found = source.poll()
    clock.advance(10)
    found += source.poll() + source.finish()
    assert [volume.index for volume in found] == [0, 1]
    assert not named or any(named in problem for problem in source.problems), source.problems
    assert all(problem.isprintable() for problem in source.problems)
    return source


# --- odd bytes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("xyzt_units", 255),
        ("vox_offset", np.nan),
        ("vox_offset", np.inf),
        ("vox_offset", -1e30),
        ("vox_offset", 1e30),
        ("dim", [3, 32767, 32767, 32767, 1, 1, 1, 1]),
        ("dim", [4, 8, 6, 5, -7, 1, 1, 1]),
        ("scl_slope", np.inf),
        ("srow_x", np.nan),
    ],
)
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_odd_header_bytes_end_nothing(name: str, value: Any, ending: str, tmp_path: Path, clock: FakeClock) -> None:
    contents = with_header(nifti(volumes=2), name, value)
    (tmp_path / f"bad.{ending}").write_bytes(gzip.compress(contents) if ending == "nii.gz" else contents)
    check_goes_on(tmp_path, clock)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_any_bytes_of_a_nifti_header_are_an_error_of_that_file_or_none(
    tmp_path: Path, places: list[tuple[int, int]], packed: bool, several: bool
) -> None:
    contents = bytearray(nifti(volumes=2 if several else 0))
    for place, value in places:
        contents[place] = value
    path = tmp_path / ("x_1.nii.gz" if packed else "x_1.nii")
    path.write_bytes(gzip.compress(bytes(contents), 1) if packed else contents)
    source = FolderSource(tmp_path, patience_s=1, clock_ns=lambda: 0)
    source.poll()
    source.finish()


SIDECARS = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "a large number": '{"RepetitionTime": 1' + "0" * 400 + "}",
    "an infinite number": '{"RepetitionTime": 1e400, "SliceTiming": [1e400, 0, 0, 0, 0]}',
    "numbers of no use": '{"RepetitionTime": true, "SliceTiming": {"a": 1}, "SeriesDescription": ["x"]}',
    "no text": b"\xff\xfe\x00{",
    "control characters": json.dumps({"SeriesDescription": "good\x1b[2J\x1b]0;owned\x07\r"}),
    "half a surrogate": '{"SeriesDescription": "good\\udc80"}',
}


@pytest.mark.parametrize("sidecar", SIDECARS.values(), ids=SIDECARS)
def test_a_sidecar_ends_nothing(sidecar: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "good_1.json").write_bytes(sidecar if isinstance(sidecar, bytes) else sidecar.encode())
    (tmp_path / "good_1.nii").write_bytes(nifti(1))
    source = FolderSource(tmp_path, patience_s=1, clock_ns=lambda: 0)
    assert len(source.poll() + source.finish()) == 1
    assert source.told.isprintable()
    json.dumps(source.told).encode()


NAMES = [
    b"caf\xe9_1.nii", b"caf\xe9.dcm", b"\x1b[2J\x1b[31mALARM.dcm", b"a\nrtevo: all is well.dcm", "\u202egnp.mcd".encode(), b"%s%n.dcm",
    b"run_" + b"9" * 200 + b".nii", "run_٣.nii".encode(), b"-.nii", b".nii.gz.nii", b"1.nii", b"x" * 250 + b".nii",
]  # fmt: skip


@pytest.mark.parametrize("content", [b"no picture at all" * 20, nifti()], ids=["text", "nifti"])
def test_names_of_all_kinds_end_nothing_and_are_shown_escaped(content: bytes, tmp_path: Path, clock: FakeClock) -> None:
    for name in NAMES:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(content)
    source = check_goes_on(tmp_path, clock)
    for problem in source.problems:
        problem.encode()  # as it goes into the record
    assert r"\x1b[2J" in " ".join(source.problems)
    assert r"caf\udce9" in " ".join(source.problems)


def test_an_error_that_nobody_thought_of_is_that_of_the_file(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, **_: object) -> None:
        raise ZeroDivisionError("of a reader")

    (tmp_path / "bad.dcm").write_bytes(b"x" * 200)
    monkeypatch.setattr("rtevo.ingest.folder.read_dicom", broken)
    check_goes_on(tmp_path, clock, "bad.dcm: cannot be used (ZeroDivisionError: of a reader)")


# --- what is no file -------------------------------------------------------------------------------------------------------------


def test_fifos_devices_sockets_and_links_out_of_the_folder_are_never_opened(tmp_path: Path, clock: FakeClock) -> None:
    watched, outside = tmp_path / "watched", tmp_path / "outside"
    watched.mkdir()
    outside.mkdir()
    (outside / "secret.nii").write_bytes(nifti())
    os.mkfifo(watched / "p_1.nii")
    os.mkfifo(watched / "p_2.dcm")
    os.mkfifo(watched / "good_1.json")
    (watched / "zero.dcm").symlink_to("/dev/zero")
    (watched / "z_1.nii.gz").symlink_to("/dev/zero")
    (watched / "folder").symlink_to(outside)
    (watched / "root").symlink_to("/")
    (watched / "file.nii").symlink_to(outside / "secret.nii")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(os.path.relpath(watched / "s.dcm"))
        source = check_goes_on(watched, clock)
    for name in ("p_1.nii", "p_2.dcm", "zero.dcm", "z_1.nii.gz", "folder", "root", "file.nii", "s.dcm"):
        assert len([p for p in source.problems if p.startswith(f"{name}: ") and ("neither" in p or "out of" in p)]) == 1, name


def test_a_file_that_becomes_a_fifo_after_it_was_listed_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "x_1.nii"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        read_nifti(str(path))
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"):
        read_nifti(str(tmp_path / "zero.nii"))


def test_a_fifo_that_gives_way_to_a_file_is_looked_at(tmp_path: Path, clock: FakeClock) -> None:
    os.mkfifo(tmp_path / "good_1.nii")
    source = FolderSource(tmp_path, patience_s=1, clock_ns=clock)
    assert source.poll() == []
    (tmp_path / "whole").write_bytes(nifti(1))
    (tmp_path / "whole").rename(tmp_path / "good_1.nii")
    clock.advance(1)
    assert len(source.poll() + source.finish()) == 1


# --- bombs -----------------------------------------------------------------------------------------------------------------------


def zeros(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


BOMBS: dict[str, Callable[[], bytes]] = {
    "more than is announced": lambda: gzip.compress(nifti()) + zeros(4 * LITTLE),
    "members of zeros": lambda: gzip.compress(nifti()[:400]) + 64 * zeros(2 << 20),
    "empty members": lambda: gzip.compress(nifti()) + 20_000 * gzip.compress(b"", 1),
    "members of a byte": lambda: b"".join(gzip.compress(nifti()[k : k + 1], 1) for k in range(800)),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_gzip_bomb_takes_neither_memory_nor_time(bomb: Callable[[], bytes], tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "bomb_1.nii.gz").write_bytes(bomb())
    before = peak_bytes()
    check_goes_on(tmp_path, clock, "bomb_1.nii.gz: ")
    assert peak_bytes() < before + LITTLE


def test_a_packed_run_with_fewer_volumes_than_announced_does_not_go_round_for_ever(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "short.nii.gz").write_bytes(gzip.compress(nifti(volumes=5)[:-VOLUME_BYTES]))
    check_goes_on(tmp_path, clock, "short.nii.gz: ends at byte")


def test_packed_in_blocks_or_with_what_follows_it_is_read_as_before(tmp_path: Path) -> None:
    contents = nifti(volumes=3)
    blocks = b"".join(gzip.compress(contents[k : k + 256]) for k in range(0, len(contents), 256)) + gzip.compress(b"")
    (tmp_path / "blocks.nii.gz").write_bytes(blocks)
    (tmp_path / "more.nii.gz").write_bytes(gzip.compress(contents + bytes(100)))
    plain = nibabel.Nifti1Image.from_bytes(contents).get_fdata()
    for name in ("blocks", "more"):
        found = read_nifti(str(tmp_path / f"{name}.nii.gz"), skip=1)
        assert [part.numbers for part in found.file.parts] == [{"position": 2}, {"position": 3}]
        for k, part in enumerate(found.file.parts):
            np.testing.assert_array_equal(part.pixels, plain[..., 1 + k])


def test_a_file_larger_than_a_sessions_can_be_is_named_and_not_read(
    tmp_path: Path, clock: FakeClock, made: Any, encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it holds what it says."""
    contents = encode(made.slice(0, 0))
    (tmp_path / "large.dcm").write_bytes(contents + bytes(100))
    source = FolderSource(tmp_path, patience_s=1, clock_ns=clock, most_bytes=len(contents) + 99)
    monkeypatch.setattr("rtevo.ingest.dicom.parse_dicom", lambda *_, **__: pytest.fail("read"))
    assert source.poll() == []
    assert source.problems == [f"large.dcm: expected at most {len(contents) + 99} bytes, found {len(contents) + 100}"]


def test_a_sparse_file_is_not_read_into_memory(tmp_path: Path, clock: FakeClock) -> None:
    for name in ("x.dcm", "y_1.nii.gz"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"x" * 200)
            file.truncate(1 << 40)
    before = peak_bytes()
    check_goes_on(tmp_path, clock, "x.dcm: ")
    assert peak_bytes() < before + 4 * LITTLE  # 64 MB are looked at


def test_a_deflated_data_set_holds_no_more_than_it_announces(made: Any, encode: Callable[..., bytes]) -> None:
    dataset = made.slice(0, 0)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    honest = encode(dataset)
    assert len(parse_dicom(honest, "honest").parts) == 1
    end = next(k for k in range(132, len(honest)) if _inflates(honest[k:]))
    plain = zlib.decompress(honest[end:], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = honest[:end] + packer.compress(plain) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(128)) + packer.flush()
    assert len(bomb) < 1 << 20
    before = peak_bytes()
    with pytest.raises(DicomError, match="found more"):
        parse_dicom(bomb, "bomb")
    assert peak_bytes() < before + 2 * LITTLE


def _inflates(contents: bytes) -> bool:
    try:
        return len(zlib.decompress(contents, -15)) > 200
    except zlib.error:
        return False


def test_compressed_pixels_are_no_larger_than_rows_and_columns(made: Any, encode: Callable[..., bytes]) -> None:
    from PIL import Image

    large = io.BytesIO()
    Image.fromarray(np.zeros((2048, 2048), np.uint8)).save(large, format="JPEG2000", no_jp2=True)
    dataset = made.slice(0, 0)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([large.getvalue()])
    dataset["PixelData"].VR = "OB"
    with pytest.raises(DicomError, match="found 2048 x 2048 of 1"):
        parse_dicom(encode(dataset), "bomb")
    for frame in (b"\xff\xd8\xff\xc3\0\x0b\x10\xff\xff\xff\xff\x01\x01\x11\0", b"\xff\xd8\xff\xf8\0\x0c\x04\x04\0\1\0\0\0\1\0\0"):
        dataset.PixelData = encapsulate([frame])
        with pytest.raises(DicomError, match=r"65535 x 65535|oversize"):
            parse_dicom(encode(dataset), "bomb")
