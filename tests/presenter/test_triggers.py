"""Scanner's pulses from ports: a real pseudo-terminal stands in for the serial port, a driver made of a list for the parallel one."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import ModuleType

import pytest

from presenter.display import DisplayError
from presenter.triggers import DEAD_NS, Port, open_port

LIMIT_S = 30.0


def collect(port: Port, count: int) -> list[int]:
    times: list[int] = []
    deadline = time.monotonic() + LIMIT_S
    while len(times) < count:
        assert time.monotonic() < deadline, "no pulse came"
        times += port.take()
    return times


class Script:
    """Pulses at the times of a list; the clock is the list's too."""

    def __init__(self, times: list[int]) -> None:
        self.times, self.now, self.closed = deque(times), 0, threading.Event()

    def pulse(self) -> bool:
        if not self.times:
            raise OSError("unplugged")
        self.now = self.times.popleft()
        return True

    def close(self) -> None:
        self.closed.set()


def test_bytes_of_one_pulse_are_one_and_a_port_that_fails_says_so() -> None:
    second = 1_000_000_000
    script = Script([second, second + 1000, second + DEAD_NS - 1, 3 * second, 5 * second])
    port = Port(script, lambda: script.now)
    assert script.closed.wait(LIMIT_S)
    with pytest.raises(DisplayError, match="trigger port failed: unplugged"):
        port.take()
    assert list(port._times) == [second, 3 * second, 5 * second]
    port.close()


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A pseudo-terminal: this end, and the name of the other."""
    ours, theirs = os.openpty()
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_every_byte_of_a_serial_port_is_a_pulse(terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presenter.triggers.DEAD_NS", 0)  # they follow each other quickly here
    pytest.importorskip("serial", reason="pyserial comes with PsychoPy")
    ours, name = terminal
    port = open_port(f"serial:{name}@9600")
    assert port is not None
    with port:
        for _ in range(3):
            before = time.perf_counter_ns()
            os.write(ours, b"5")
            [stamped] = collect(port, 1)
            assert before <= stamped <= time.perf_counter_ns()


def test_rising_edges_of_a_pin_are_pulses(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = deque([1, 0, 0, 1, 1, 1, 0])  # high at the start is no edge
    opened: list[object] = []

    class ParallelPort:
        def __init__(self, address: object) -> None:
            opened.append(address)

        def readPin(self, pin: int) -> int:  # noqa: N802 (PsychoPy's name)
            opened.append(pin)
            return levels.popleft() if len(levels) > 1 else levels[0]

    psychopy, parallel = ModuleType("psychopy"), ModuleType("psychopy.parallel")
    parallel.ParallelPort, psychopy.parallel = ParallelPort, parallel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "psychopy", psychopy)
    monkeypatch.setitem(sys.modules, "psychopy.parallel", parallel)
    port = open_port("parallel:0x378@13")
    assert port is not None
    with port:
        assert len(collect(port, 1)) == 1
        while len(levels) > 1:
            time.sleep(0)
        assert port.take() == []
    assert set(opened) == {0x378, 13}


def test_ports_that_cannot_be_opened() -> None:
    assert open_port("keyboard") is None
    for name in ("serial:/dev/there-is-none", "parallel:0x378"):
        with pytest.raises(DisplayError, match=f"trigger '{name}'"):
            open_port(name)
