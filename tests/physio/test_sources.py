"""Samples from files that grow, serial lines and streams."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rtevo.config.physio import is_sensor
from rtevo.errors import DataError, LinkError
from rtevo.physio.sources import Address, Source, open_source
from rtevo.physio.text import Pmu, Rows

LIMIT_S = 30.0
PMU = (
    "1 8 20 2 5002 LOGVERSION_PULS 3 6002 5002 uiHwRevisionPeru 1001 6002 2000 2010 5000 2020 6000 2005 1990 5003\n"
    "ECG  Freq Per: 0 0\nPULS Freq Per: 72 823\nLogStartMDHTime:  36632877\n6003\n"
)


def until(found: Callable[[], Any]) -> Any:
    """Call until something comes."""
    limit = time.monotonic() + LIMIT_S
    while not (each := found()):
        assert time.monotonic() < limit
        time.sleep(0.001)
    return each


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_monitoring_units_log_is_read_in_whatever_pieces(size: int) -> None:
    parser, marks = Pmu(), Pmu(marks=True)
    pieces = [PMU[k : k + size] for k in range(0, len(PMU), size)]
    assert_array_equal(np.concatenate([parser.feed(piece) for piece in pieces])[:, 0], [2000, 2010, 2020, 2005, 1990])
    assert_array_equal(np.concatenate([marks.feed(piece) for piece in pieces])[:, 0], [0, 0, 1, 0, 0])
    assert parser.unreadable == 0


def test_rows_are_read_and_what_is_none_is_passed_over() -> None:
    parser = Rows((3, 1))
    first = parser.feed("RESP\tGSR\tPPG\n1.5\t0\t-2e1\n3,4;5\r\nnan 1 2\n\n7 8")
    assert_array_equal(first, [[-20, 1.5], [5, 3], [2, np.nan]])
    assert parser.unreadable == 1
    assert_array_equal(parser.feed(" 9\n1 2\n"), [[9, 7]])
    assert len(parser.feed("x" * 100_000)) == 0
    assert_array_equal(parser.feed("\n4 5 6\n"), [[6, 4]])


def test_a_file_that_grows_is_followed_and_one_that_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "pulse.txt"
    with closing(open_source("file", str(path), ("2",), 50.0, tmp_path)) as source:
        assert source.poll() == []
        path.write_text("0 1\n0 2\n0 ")
        (chunk,) = source.poll()
        assert_array_equal(chunk.values, [[1], [2]])
        assert time.monotonic() - LIMIT_S < chunk.stamp_s <= time.monotonic()
        with path.open("a") as file:
            file.write("3\n")
        assert_array_equal(source.poll()[0].values, [[3]])
        path.write_text("0 7\n")
        assert source.poll() == []
        assert_array_equal(source.poll()[0].values, [[7]])


def test_a_file_in_whose_place_another_comes_is_left_for_that(tmp_path: Path) -> None:
    path = tmp_path / "pulse.txt"
    path.write_text("1\n")
    with closing(open_source("file", str(path), ("1",), 50.0, tmp_path)) as source:
        assert_array_equal(source.poll()[0].values, [[1]])
        path.rename(tmp_path / "pulse.1.txt")
        assert source.poll() == []
        path.write_text("2\n3\n")
        assert source.poll() == []
        assert_array_equal(source.poll()[0].values, [[2], [3]])


def test_what_is_no_number_is_the_sample_before_of_that_channel(tmp_path: Path) -> None:
    path = tmp_path / "both.txt"
    path.write_text("1 5\nnan 6\n3 inf\n")
    with closing(open_source("file", str(path), ("1", "2"), 50.0, tmp_path)) as source:
        assert_array_equal(source.poll()[0].values, [[1, 5], [1, 6], [3, 6]])
        with path.open("a") as file:
            file.write("nan 1e300\n4 7\n")
        assert_array_equal(source.poll()[0].values, [[3, 6], [4, 7]])


def test_of_what_a_file_held_before_a_minute_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "log.puls"
    path.write_text("1 2 3 4 " + " ".join(str(k) for k in range(1000)) + " ")
    with closing(open_source("file", str(path), ("1",), 10.0, tmp_path)) as source:
        assert_array_equal(source.poll()[0].values[:, 0], np.arange(400, 1000))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        closing(open_source("file", str(tmp_path / "pipe"), ("1",), 50.0, tmp_path)) as source,
        pytest.raises(DataError, match="expected a file"),
    ):
        source.poll()


def test_a_serial_line_is_read() -> None:
    pytest.importorskip("serial")
    here, there = os.openpty()
    with closing(open_source("serial", f"{os.ttyname(there)}@115200", ("1", "2"), 100.0, Path())) as source:
        os.write(here, b"512 3.5\n513 3.6\n51")
        values = until(source.poll)[0].values
        while len(values) < 2:
            values = np.concatenate([values, until(source.poll)[0].values])
        assert_array_equal(values, [[512, 3.5], [513, 3.6]])
        os.write(here, b"4 3.7\n")
        assert_array_equal(until(source.poll)[0].values, [[514, 3.7]])
    os.close(here)
    os.close(there)


def test_a_port_that_is_not_there_is_named() -> None:
    pytest.importorskip("serial")
    with pytest.raises(LinkError, match="/dev/nothing"):
        open_source("serial", "/dev/nothing@9600", ("1",), 100.0, Path())


def test_a_stream_is_found_by_name_and_its_channels_by_label() -> None:
    pylsl = pytest.importorskip("pylsl")
    name = f"body-{os.getpid()}"
    info = pylsl.StreamInfo(name, "Physio", 3, 50.0, pylsl.cf_float32, name)
    info.set_channel_labels(["PPG", "RSP", "GSR"])
    outlet = pylsl.StreamOutlet(info)
    try:
        source: Source = open_source("lsl", name, ("RSP", "1"), 0.0, Path())
    except LinkError:
        pytest.skip("streams cannot be found here: the network lets no multicast through")
    with closing(source):
        assert source.rate_hz == 50.0
        until(outlet.have_consumers)
        pushed_s = pylsl.local_clock()
        outlet.push_chunk([[1.0, 2.0, 3.0], [np.nan, 0.0, 0.0], [4.0, 5.0, 6.0]], pushed_s)
        chunks = until(source.poll)
        while sum(len(chunk.values) for chunk in chunks) < 3:
            chunks += until(source.poll)
        values = np.concatenate([chunk.values for chunk in chunks])
        assert_array_equal(values[[0, 2]], [[2, 1], [5, 4]])
        assert np.isfinite(values).all()
        assert abs(chunks[-1].stamp_s - (pushed_s + time.monotonic() - pylsl.local_clock())) < 1.0 + chunks[-1].error_s  # a busy computer
        with pytest.raises(LinkError, match="PPG, RSP, GSR"):
            open_source("lsl", name, ("EKG",), 0.0, Path())


@pytest.mark.parametrize("text", ["lsl:BIOPAC#PPG", "lsl:a b", "serial:/dev/ttyUSB0@115200#2", "file:/data/log.puls", "file:C:x#3"])
def test_addresses_are_read_as_the_settings_check_them(text: str) -> None:
    assert is_sensor(text)
    assert Address.of(text).channel


@pytest.mark.parametrize("text", ["lsl:", "udp:x", "serial:/dev/ttyUSB0", "file:x#PPG", "file:x#0", "PPG"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert not is_sensor(text)
    with pytest.raises(ValueError, match="expected"):
        Address.of(text)
