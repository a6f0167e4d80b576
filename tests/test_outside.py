"""Input from outside is read safely, whichever function reads it."""

from __future__ import annotations

import io
import json
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rtevo.errors import DataError
from rtevo.outside import (
    copy_inside,
    copy_regular,
    load_array,
    load_arrays,
    open_regular,
    parse_json,
    read_json,
    read_regular,
    shown,
    shown_lines,
)
from rtevo.record import evolution_of


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 33 + "]" * 33, "1" + "0" * 400, "-" + "9" * 20, b"\xff\xfe", "{", "", " " * (1 << 24) + "1"],
    ids=["deep", "deep objects", "one too deep", "10^400", "20 digits", "no text", "half", "nothing", "long"],
)
def test_json_beyond_its_bounds_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(DataError, match="expected JSON") as raised:
        parse_json(text)
    assert len(str(raised.value)) < 300


def test_json_within_them_is_what_it_was() -> None:
    assert parse_json('{"a": [1, -2.5, "x", null, true], "b": 9223372036854775807}') == {"a": [1, -2.5, "x", None, True], "b": 2**63 - 1}
    parse_json("[" * 32 + "]" * 32)


def test_texts_are_shown_escaped_and_cut() -> None:
    assert shown("séance 1 日本") == "séance 1 日本"
    assert shown("a\x1b[2J\udce9\n\u202e") == r"a\x1b[2J\udce9\n\u202e"
    assert len(shown("x" * 10**6)) == 200
    assert shown_lines("one\ntwo\r\x00") == "one\ntwo\\r\\x00"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
        with pytest.raises(OSError, match="not a regular file"):
            read_json(path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="expected at most 100 bytes, found 1099511627776"):
        read_regular(tmp_path / "sparse", 100)


def npy(shape: str, data: bytes, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + data


LIES = {
    "a shape of a terabyte": npy("(1000000, 1000000)", bytes(16)),
    "a negative shape": npy("(-1,)", bytes(16)),
    "a shape that is none": npy("'x'", bytes(16)),
    "fewer": npy("(2,)", bytes(16)),
    "objects": npy("(1,)", bytes(8), "'|O'"),
    "fields of objects": npy("(1,)", bytes(8), "[('a', '|O')]"),
    "a dtype that is none": npy("(2,)", bytes(8), "'(2,3'"),
    "a deep header": npy("(" * 5000, b""),
    "code": npy("__import__('os').system('true')", b""),
    "no magic": b"x" * 100,
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_array_whose_header_lies_is_refused(lie: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(lie)
    with pytest.raises(DataError, match="expected an array, found"):
        load_array(tmp_path / "x.npy")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", lie)
    with pytest.raises(DataError, match="expected arrays, found"):
        load_arrays(packed.getvalue())


def test_an_array_bomb_is_refused_before_it_is_unpacked() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("x.npy", "w") as file:
        file.write(npy(f"({(80 << 20) // 4},)", b""))
        for _ in range(80):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="unpacks to"):
        load_arrays(packed.getvalue())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (16 << 10)
    with pytest.raises(DataError, match="expected arrays, found"):
        load_arrays(b"PK\x03\x04" + bytes(100))


def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    stored = {"a": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": np.array("name"), "c": np.zeros((0, 4), np.int16)}
    np.savez_compressed(tmp_path / "x.npz", **stored)
    np.save(tmp_path / "x.npy", stored["a"])
    found = load_arrays(tmp_path / "x.npz")
    assert list(found) == list(stored)
    for name, array in stored.items():
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(load_array(tmp_path / "x.npy"), stored["a"])


def test_a_copy_follows_no_link_and_takes_files_and_folders_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deeper").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "deeper" / "b.txt").write_text("b")
    (source / "deeper" / "out").symlink_to(tmp_path)
    (source / "link.txt").symlink_to(source / "a.txt")
    os.mkfifo(source / "fifo")
    assert copy_inside(source, tmp_path / "copy") == ["deeper/out", "fifo", "link.txt"]
    found = sorted(path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*"))
    assert found == ["a.txt", "deeper", "deeper/b.txt"]
    with pytest.raises(OSError, match="a link"):
        copy_regular(source / "link.txt", tmp_path / "x")


def test_evolutions_state_has_numbers_of_128_bits(tmp_path: Path) -> None:
    state = np.random.default_rng(0).bit_generator.state
    (tmp_path / "evolution.json").write_text(json.dumps({"rng": state}))
    assert evolution_of(tmp_path) == {"rng": state}
    with pytest.raises(DataError, match="an integer of"):
        read_json(tmp_path / "evolution.json")
