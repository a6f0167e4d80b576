"""The scanner's pulses, and answers of a box, from a serial or parallel port, stamped by a thread or process of its own.

A port that is lost while a run goes on (unplugged, switched off) is opened again as soon as it is there; both computers are told.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from presenter.display import DisplayError, Press
from presenter.pins import GAP, PULSE, RECORD, TIME
from rtevo.wire import TRIGGER

__all__ = ["Port", "open_port"]

BAUD, PIN = 115200, 10  # where the settings name none: usual for trigger boxes; ACK, the pin that parallel triggers come in at
LOOK_S = 0.1  # how often a thread that waits for a byte looks whether it shall stop
AGAIN_S = 0.5  # how often a lost port is tried
DEAD_NS = 10_000_000  # bytes and edges that follow a pulse within this time belong to it
START_S = 60.0  # longest wait for the process that watches a pin

Signal = tuple[int, str]  # when, ns; key that came, or "": a pulse


class Source(Protocol):
    """A port that is waited on."""

    def read(self) -> list[Signal]:
        """Wait for a short time; gives what has come."""
        ...

    def told(self) -> list[str]:
        """Give what should be known of it, once."""
        ...

    def close(self) -> None:
        """Let go of the port."""
        ...


class Port:
    """Takes the time of each pulse and key, in a thread of its own.

    Parameters
    ----------
    open_source : callable
        Opens the port, now and whenever it has been lost.
    name : str
        As the settings call it.

    Raises
    ------
    Exception
        Whatever `open_source` raises now.
    """

    def __init__(self, open_source: Callable[[], Source], name: str = "the trigger port") -> None:
        self._open, self._name = open_source, name
        self._source: Source | None = open_source()
        self._pulses: deque[int] = deque()
        self._presses: deque[Press] = deque()
        self._texts: deque[str] = deque()
        self._last: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trigger", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._source is None:
                self._open_again()
                continue
            try:
                for t_ns, key in self._source.read():
                    self._take(t_ns, key)
                self._texts.extend(self._source.told())
            except Exception as error:  # a port that is unplugged; drivers raise what they like
                self._texts.append(f"{self._name} has failed ({_short(error)}): is it plugged in? It is opened again when it is back")
                self._let_go()
        self._let_go()

    def _open_again(self) -> None:
        self._stop.wait(AGAIN_S)
        with contextlib.suppress(Exception):
            self._source = self._open()
            self._texts.append(f"{self._name} is back: pulses are taken again")

    def _let_go(self) -> None:
        if self._source is not None:
            with contextlib.suppress(Exception):  # it has failed already
                self._source.close()
        self._source = None

    def _take(self, t_ns: int, key: str) -> None:
        """Keep one signal, unless it belongs to the one before it."""
        if t_ns - self._last.get(key, -(2**62)) >= DEAD_NS:
            if key:
                self._presses.append(Press(key, t_ns))
            else:
                self._pulses.append(t_ns)
        self._last[key] = t_ns

    def take(self) -> list[int]:
        """Give the times of the pulses since the last call, ns of the display's clock."""
        return _emptied(self._pulses)

    def presses(self) -> list[Press]:
        """Give the keys that came in on the same line since the last call."""
        return _emptied(self._presses)

    def told(self) -> list[str]:
        """Give what has gone wrong, or right again, since the last call."""
        return _emptied(self._texts)

    @property
    def shortest_ns(self) -> int:
        """A pulse that lasts longer than this is certain to have been seen so far, ns; 0 where its length is of no account."""
        return getattr(self._source, "longest_gap_ns", 0)

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Port:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _emptied(queue: deque[Any]) -> list[Any]:
    found = []
    while queue:
        found.append(queue.popleft())
    return found


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:80] or type(error).__name__


class _Serial:
    """Bytes of a serial port: each is a pulse, or those that are named are, and every other one is a key."""

    def __init__(self, name: str, baud: int, pulses: frozenset[int] | None) -> None:
        import serial

        self._port: Any = serial.Serial(name, baud, timeout=LOOK_S)
        self._port.reset_input_buffer()
        self._pulses, self._kinds = pulses, set[int]()
        self._texts: list[str] = []

    def read(self) -> list[Signal]:
        taken: bytes = self._port.read(1)
        now = time.perf_counter_ns()
        if not taken:
            return []
        byte = taken[0]
        if self._pulses is not None and byte not in self._pulses:
            return [(now, chr(byte))] if 0x20 < byte < 0x7F else []
        if byte not in self._kinds:
            self._kinds.add(byte)
            if self._pulses is None and len(self._kinds) == 2:
                seen = " and ".join(sorted(map(hex, self._kinds)))
                self._texts.append(f"bytes of several kinds come in ({seen}), each taken for a pulse: name those that are (serial:...=5)")
        return [(now, "")]

    def told(self) -> list[str]:
        texts, self._texts = self._texts, []
        return texts

    def close(self) -> None:
        self._port.close()


class _Parallel:
    """Rising edges of one pin, watched by a process that does nothing else (:mod:`presenter.pins`)."""

    def __init__(self, address: str, pin: int) -> None:
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "presenter.pins", address, str(pin)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert self._process.stdout is not None
        self._out, self.longest_gap_ns, self._offset_ns = self._process.stdout, 0, 0
        clock = threading.Timer(START_S, self._process.kill)
        clock.start()
        try:
            self._offset_ns = self._compare_clocks()
        except BaseException:
            self._process.kill()
            self.close()
            raise
        finally:
            clock.cancel()

    def _compare_clocks(self) -> int:
        """Give what is to be added to the process's times: nothing where both clocks are one, as on all systems known."""
        self._next()  # it watches
        assert self._process.stdin is not None
        before = time.perf_counter_ns()
        self._process.stdin.write(b"?")
        self._process.stdin.flush()
        kind, value = self._next()
        while kind != TIME:
            kind, value = self._next()
        after = time.perf_counter_ns()
        return 0 if before <= value <= after else (before + after) // 2 - value

    def _next(self) -> tuple[int, int]:
        """Wait for the next record."""
        raw = self._out.read(RECORD.size)
        if len(raw) < RECORD.size:
            assert self._process.stderr is not None
            words = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            raise OSError(words[-1] if words else "the process that watches it has ended")
        try:
            kind, value = RECORD.unpack(raw)
        except struct.error as error:
            raise OSError("the process that watches it sends nonsense") from error
        return int(kind), int(value)

    def read(self) -> list[Signal]:
        kind, value = self._next()
        if kind == GAP:
            self.longest_gap_ns = max(self.longest_gap_ns, value)
        return [(value + self._offset_ns, "")] if kind == PULSE else []

    def told(self) -> list[str]:
        return []

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def open_port(trigger: str) -> Port | None:
    """Open what the settings' `trigger` names; None for the keyboard.

    Raises
    ------
    DisplayError
        It cannot be opened.
    """
    match = TRIGGER.fullmatch(trigger)
    if match is None or match[1]:
        return None
    pulses = frozenset(int(x, 16) if len(x) > 1 else ord(x) for x in match[5].split(",")) if match[5] else None

    def open_source() -> Source:
        if match[2]:
            return _Serial(match[3], int(match[4] or BAUD), pulses)
        return _Parallel(match[7], int(match[8] or PIN))

    try:
        return Port(open_source, f"trigger {trigger!r}")
    except ImportError as error:
        raise DisplayError(f"trigger {trigger!r}: {error} (PsychoPy brings pyserial, and drivers of parallel ports)") from error
    except Exception as error:
        raise DisplayError(f"trigger {trigger!r}: the port cannot be opened: {error}{_ports() if match[2] else ''}") from error


def _ports() -> str:
    """Name the serial ports that are there."""
    with contextlib.suppress(Exception):
        from serial.tools import list_ports

        names = [port.device for port in list_ports.comports()]
        return f"; serial ports here: {', '.join(names)}" if names else "; there is no serial port here"
    return ""
