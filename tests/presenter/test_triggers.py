"""Scanner's pulses from ports: a real pseudo-terminal stands in for the serial port, a driver that reads a file for the parallel one."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from presenter.pins import GAP, PULSE, RECORD, watch
from presenter.triggers import DEAD_NS, Port, open_port
from tests.support.link import until

LIMIT_S = 30.0
SECOND = 1_000_000_000
LOW_NS = 250_000_000  # between two pulses: long enough for the process that watches to be let run on a busy computer


def collect(port: Port, count: int) -> list[int]:
    times: list[int] = []
    deadline = time.monotonic() + LIMIT_S
    while len(times) < count:
        assert time.monotonic() < deadline, f"no pulse came: {port.told()}"
        times += port.take()
    return times


class Script:
    """Pulses at the times of a list, then it fails."""

    def __init__(self, signals: list[tuple[int, str]]) -> None:
        self.signals, self.closed = deque(signals), threading.Event()

    def read(self) -> list[tuple[int, str]]:
        if not self.signals:
            raise OSError("unplugged")
        return [self.signals.popleft()]

    def told(self) -> list[str]:
        return []

    def close(self) -> None:
        self.closed.set()


def test_bytes_of_one_pulse_are_one_and_a_port_that_fails_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presenter.triggers.AGAIN_S", 0.0)
    first = Script([(t, "") for t in (SECOND, SECOND + 1000, SECOND + DEAD_NS - 1, 3 * SECOND, 5 * SECOND)])
    second = Script([(7 * SECOND, ""), (7 * SECOND + 1, "b")])
    sources: deque[Script | OSError] = deque([first, OSError("not there yet"), second])

    def open_source() -> Script:
        source = sources.popleft() if sources else OSError("gone")
        if isinstance(source, OSError):
            raise source
        return source

    with Port(open_source, "trigger 'serial:COM3'") as port:
        assert collect(port, 4) == [SECOND, 3 * SECOND, 5 * SECOND, 7 * SECOND]
        assert second.closed.wait(LIMIT_S)
        assert first.closed.is_set()
        assert [press.key for press in port.presses()] == ["b"]
        failed, back, again = port.told()
    assert failed == again
    assert failed.startswith("trigger 'serial:COM3' has failed (unplugged)")
    assert back == "trigger 'serial:COM3' is back: pulses are received again"


# --- serial -----------------------------------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal by a name of its own, that can be unplugged and plugged in again."""

    def __init__(self, name: Path) -> None:
        pytest.importorskip("serial", reason="pyserial comes with PsychoPy")
        self.name = name
        self.plug()

    def plug(self) -> None:
        self.ours, theirs = os.openpty()
        self._theirs = theirs
        self.name.symlink_to(os.ttyname(theirs))

    def unplug(self) -> None:
        self.name.unlink()
        os.close(self.ours)
        os.close(self._theirs)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if not hasattr(os, "openpty"):
        pytest.skip("no pseudo-terminals here")
    made = Terminal(tmp_path / "ttyUSB0")
    yield made
    made.unplug()


@pytest.fixture
def no_dead_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presenter.triggers.DEAD_NS", 0)  # pulses follow each other quickly here


@pytest.mark.usefixtures("no_dead_time")
def test_every_byte_of_a_serial_port_is_a_pulse(terminal: Terminal) -> None:
    port = open_port(f"serial:{terminal.name}@9600")
    assert port is not None
    with port:
        for _ in range(3):
            before = time.perf_counter_ns()
            os.write(terminal.ours, b"5")
            [stamped] = collect(port, 1)
            assert before <= stamped <= time.perf_counter_ns()
        assert port.told() == []
        os.write(terminal.ours, b"1")  # a button of the same box, perhaps
        collect(port, 1)
        told: list[str] = []
        until(lambda: bool(told.extend(port.told()) or told))
    assert told == ["bytes of several kinds arrive (0x31 and 0x35), each counted as a pulse: name the pulses (serial:...=5)"]


@pytest.mark.usefixtures("no_dead_time")
def test_only_the_bytes_that_are_named_are_pulses_and_others_are_keys(terminal: Terminal) -> None:
    port = open_port(f"serial:{terminal.name}@9600=5,0x74")
    assert port is not None
    with port:
        os.write(terminal.ours, b"1A\x00\xff5t")
        assert len(collect(port, 2)) == 2
        assert [press.key for press in port.presses()] == ["1", "A"]


@pytest.mark.usefixtures("no_dead_time")
def test_a_serial_port_that_is_unplugged_in_mid_run_is_survived_and_opened_again(terminal: Terminal) -> None:
    port = open_port(f"serial:{terminal.name}@9600")
    assert port is not None
    told: list[str] = []
    with port:
        os.write(terminal.ours, b"5")
        collect(port, 1)
        terminal.unplug()
        until(lambda: bool(told.extend(port.told()) or told))
        terminal.plug()
        until(lambda: bool(told.extend(port.told()) or len(told) > 1))
        os.write(terminal.ours, b"5")
        assert len(collect(port, 1)) == 1
    assert ["has failed" in text for text in told] == [True, False]
    assert told[1].endswith("is back: pulses are received again")


# --- parallel ---------------------------------------------------------------------------------------------------------------------------


def test_rising_edges_of_a_pin_are_pulses() -> None:
    levels = deque([1, 0, 0, 1, 1, 1, 0])  # high at the start is no edge
    records: list[tuple[int, int]] = []

    class Out:
        def write(self, raw: bytes) -> None:
            records.append(RECORD.unpack(raw))

        def flush(self) -> None:
            pass

    def look() -> bool:
        if not levels:
            raise EOFError
        return bool(levels.popleft())

    with pytest.raises(EOFError):
        watch(look, Out(), threading.Event(), 0)  # type: ignore[arg-type]
    assert [kind for kind, _ in records if kind == PULSE] == [PULSE]
    assert [value > 0 for kind, value in records if kind == GAP] == [True]


def test_a_process_of_its_own_watches_the_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver reads the pin from a file; its times are those of this process's clock; it says how long it did not look."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("fake_port")))
    pins = tmp_path / "parport0"
    pins.write_bytes(bytes(16))
    port = open_port(f"parallel:{pins}@13")
    assert port is not None
    with port, pins.open("r+b") as file, mmap.mmap(file.fileno(), 0) as levels:
        for _ in range(3):
            before = time.perf_counter_ns()
            levels[13] = 1
            [stamped] = collect(port, 1)
            assert before <= stamped <= time.perf_counter_ns()
            levels[13] = 0
            high_again_ns = time.perf_counter_ns() + LOW_NS
            until(lambda moment=high_again_ns: time.perf_counter_ns() > moment)  # type: ignore[misc]
        until(lambda: port.shortest_ns > 0)


def test_ports_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    from presenter.display import DisplayError

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("fake_port")))
    assert open_port("keyboard") is None
    for name in ("serial:/dev/there-is-none", "parallel:/dev/there-is-none"):
        with pytest.raises(DisplayError, match=f"trigger '{name}'.*[Nn]o such file"):
            open_port(name)
