"""The scanner's pulses, and a response box's answers, from a serial or parallel port, stamped by a thread or process of its own.

A port that is lost during a run (unplugged, switched off) is opened again as soon as it is back; both computers show a message.
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

BAUD, PIN = 115200, 10  # defaults: the usual rate of trigger boxes; ACK, the usual pin of parallel triggers
LOOK_S = 0.1  # interval at which a waiting thread checks whether it must stop
AGAIN_S = 0.5  # interval between attempts to reopen a lost port
DEAD_NS = 10_000_000  # bytes and edges that follow a pulse within this time belong to it
START_S = 60.0  # longest wait for the process that watches a pin

Signal = tuple[int, str]  # time, ns; key, or "" for a pulse


class Source(Protocol):
    """A port that delivers signals."""

    def read(self) -> list[Signal]:
        """Wait for a short time; return new signals."""
        ...

    def told(self) -> list[str]:
        """Return messages about the port, each once."""
        ...

    def close(self) -> None:
        """Close the port."""
        ...


class Port:
    """Stamps each pulse and key, in a thread of its own.

    Parameters
    ----------
    open_source : callable
        Opens the port, now and after each loss.
    name : str
        The port's name in the settings.

    Raises
    ------
    Exception
        Any error of the first `open_source`.
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
            except Exception as error:  # a port is unplugged; drivers raise errors of many kinds
                self._texts.append(f"{self._name} has failed ({_short(error)}): check its plug. It is opened again when it is back")
                self._let_go()
        self._let_go()

    def _open_again(self) -> None:
        self._stop.wait(AGAIN_S)
        with contextlib.suppress(Exception):
            self._source = self._open()
            self._texts.append(f"{self._name} is back: pulses are received again")

    def _let_go(self) -> None:
        if self._source is not None:
            with contextlib.suppress(Exception):  # it has failed already
                self._source.close()
        self._source = None

    def _take(self, t_ns: int, key: str) -> None:
        """Keep one signal, unless it belongs to the previous one."""
        if t_ns - self._last.get(key, -(2**62)) >= DEAD_NS:
            if key:
                self._presses.append(Press(key, t_ns))
            else:
                self._pulses.append(t_ns)
        self._last[key] = t_ns

    def take(self) -> list[int]:
        """Return the times of the pulses since the last call, ns of the display's clock."""
        return _emptied(self._pulses)

    def presses(self) -> list[Press]:
        """Return the keys that came on the same line since the last call."""
        return _emptied(self._presses)

    def told(self) -> list[str]:
        """Return new problems, and problems that ended, since the last call."""
        return _emptied(self._texts)

    @property
    def shortest_ns(self) -> int:
        """Pulses longer than this were certainly seen so far, ns; 0 if their length does not matter."""
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
    """Bytes of a serial port: each is a pulse; or only the named bytes are pulses, and all others keys."""

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
                self._texts.append(f"bytes of several kinds arrive ({seen}), each counted as a pulse: name the pulses (serial:...=5)")
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
        """Return the offset to add to the process's times: 0 if both clocks are the same, as on all known systems."""
        self._next()  # the process watches now
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
            raise OSError("the process that watches it sends invalid records") from error
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
    """Open the port that `trigger` names in the settings; return None for the keyboard.

    Raises
    ------
    DisplayError
        The port cannot be opened.
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
        raise DisplayError(f"trigger {trigger!r}: {error} (part of PsychoPy: pyserial, and drivers of parallel ports)") from error
    except Exception as error:
        raise DisplayError(f"trigger {trigger!r}: the port cannot be opened: {error}{_ports() if match[2] else ''}") from error


def _ports() -> str:
    """Return the names of the serial ports."""
    with contextlib.suppress(Exception):
        from serial.tools import list_ports

        names = [port.device for port in list_ports.comports()]
        return f"; serial ports here: {', '.join(names)}" if names else "; there is no serial port here"
    return ""
