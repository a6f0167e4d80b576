"""The scanner's pulses from a serial or parallel port, stamped by a thread of its own that does nothing else."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from presenter.display import DisplayError
from rtevo.wire import TRIGGER

__all__ = ["Port", "open_port"]

BAUD, PIN = 115200, 10  # where the settings name none: usual for trigger boxes; ACK, the pin that parallel triggers come in at
LOOK_S = 0.1  # how often a thread that waits for a byte looks whether it shall stop
POLL_S = 0.0005  # how often a pin is read: scanners' pulses last 1 ms or longer
DEAD_NS = 10_000_000  # bytes and edges that follow a pulse within this time belong to it


class Source(Protocol):
    """A port that is waited on."""

    def pulse(self) -> bool:
        """Wait for a short time; whether a pulse has come."""
        ...

    def close(self) -> None:
        """Let go of the port."""
        ...


class Port:
    """Takes the time of each pulse.

    Parameters
    ----------
    source : Source
    now_ns : callable
        The display's clock.
    """

    def __init__(self, source: Source, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._source, self._now_ns = source, now_ns
        self._times: deque[int] = deque()
        self._stop, self._error = False, ""
        self._thread = threading.Thread(target=self._run, name="trigger", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last = -(2**62)
        try:
            while not self._stop:
                if self._source.pulse():
                    now = self._now_ns()
                    if now - last >= DEAD_NS:
                        self._times.append(now)
                    last = now
        except Exception as error:  # a port that is unplugged; drivers raise what they like
            self._error = f"the trigger port failed: {error}"
        finally:
            self._source.close()

    def take(self) -> list[int]:
        """Give the times of the pulses since the last call, ns.

        Raises
        ------
        DisplayError
            The port has failed.
        """
        if self._error:
            raise DisplayError(self._error)
        times = []
        while self._times:
            times.append(self._times.popleft())
        return times

    def close(self) -> None:
        """Stop listening."""
        self._stop = True
        self._thread.join()

    def __enter__(self) -> Port:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Serial:
    """Every byte is a pulse."""

    def __init__(self, name: str, baud: int) -> None:
        import serial

        self._port: Any = serial.Serial(name, baud, timeout=LOOK_S)
        self._port.reset_input_buffer()

    def pulse(self) -> bool:
        return bool(self._port.read(1))

    def close(self) -> None:
        self._port.close()


class _Parallel:
    """Rising edges of one pin."""

    def __init__(self, address: str, pin: int) -> None:
        from psychopy import parallel

        self._port: Any = parallel.ParallelPort(int(address, 16) if address.lower().startswith("0x") else address)
        self._pin = pin
        self._high = bool(self._port.readPin(pin))

    def pulse(self) -> bool:
        before, self._high = self._high, bool(self._port.readPin(self._pin))
        if self._high and not before:
            return True
        time.sleep(POLL_S)
        return False

    def close(self) -> None:
        pass


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
    try:
        source = _Serial(match[3], int(match[4] or BAUD)) if match[2] else _Parallel(match[6], int(match[7] or PIN))
    except ImportError as error:
        raise DisplayError(f"trigger {trigger!r}: {error} (PsychoPy brings pyserial, and drivers of parallel ports)") from error
    except Exception as error:
        raise DisplayError(f"trigger {trigger!r}: the port cannot be opened: {error}") from error
    return Port(source)
