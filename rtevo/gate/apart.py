"""A filter in a process of its own, with a deadline."""

from __future__ import annotations

import json
import logging
import math
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.gate.verdict import Finding

__all__ = ["Apart"]

READY_S = 120.0  # for a filter to load its model
MOST_TEXT = 200  # characters of a filter's reason
MOST_ANSWER = 65536  # bytes
log = logging.getLogger("rtevo")


class Apart:
    """A filter in a process of its own: if it fails, hangs or is late, the picture is refused and the filter restarted.

    Parameters
    ----------
    name : str
        Name for people.
    target : str
        ``MODULE:CLASS``, see `rtevo.gate.worker`.
    arguments : tuple of str
        Arguments of the class.
    threshold : float, optional
        Replaces the filter's own threshold.
    deadline_s : float
        Longest time for one picture, s.
    """

    def __init__(self, name: str, target: str, arguments: tuple[str, ...], threshold: float | None, deadline_s: float) -> None:
        self.name, self.version = name, ""
        self._command = [sys.executable, "-m", "rtevo.gate.worker", target, *arguments]
        self._threshold, self._deadline_s = threshold, deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ready, self._own, self._reason = False, math.nan, ""
        self._held = b""
        self._started_s = 0.0

    def __enter__(self) -> Self:
        """Start the process, and wait until it is ready.

        Raises
        ------
        DataError
            The filter cannot be loaded.
        """
        self._start()
        if not self._is_ready(time.monotonic() + READY_S):
            self.close()
            raise DataError(f"[safety] filter {self.name!r} cannot be used: {self._reason or f'not ready after {READY_S:g} s'}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process, self._ready, self._held = self._process, None, False, b""
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def judge(self, pixels: NDArray[np.uint8], embedding: NDArray[np.float32]) -> Finding:
        """Judge a picture; no answer in time is a refusal."""
        began = time.monotonic()
        deadline = began + self._deadline_s
        try:
            value = self._ask(np.ascontiguousarray(pixels), deadline)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            if not self._loading:
                self.close()
                self._start()  # it becomes ready while the next pictures are painted
            reason = f"{problem or type(problem).__name__}: a picture that the filter cannot judge is not shown"[:MOST_TEXT]
            log.warning("gate: filter %s: %s", self.name, reason)
            return Finding(self.name, self.version, True, math.nan, self.threshold, reason, 1e3 * (time.monotonic() - began))
        refused = not value <= self.threshold
        reason = f"{self._reason} ({value:.3g}, limit {self.threshold:g})" if refused else ""
        return Finding(self.name, self.version, refused, value, self.threshold, reason, 1e3 * (time.monotonic() - began))

    @property
    def threshold(self) -> float:
        """The largest value that passes."""
        return self._own if self._threshold is None else self._threshold

    @property
    def pid(self) -> int | None:
        """Process id of the filter."""
        return None if self._process is None else self._process.pid

    @property
    def _loading(self) -> bool:
        """Whether its process has started and is not ready yet: a restart would only take longer."""
        started = self._process is not None and self._process.poll() is None and not self._ready
        return started and time.monotonic() < self._started_s + READY_S

    def _start(self) -> None:
        self._started_s = time.monotonic()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def _is_ready(self, deadline: float) -> bool:
        """Wait for the filter's first message: its version, threshold and reason to refuse, or an error; return whether it is ready."""
        if self._ready:
            return True
        try:
            said = self._answer(deadline)
        except (OSError, ValueError) as problem:
            self._reason = str(problem)
            return False
        if "error" in said:
            self._reason = str(said["error"])[:MOST_TEXT]
            return False
        self.version, self._own, self._reason = str(said["version"])[:40], float(said["threshold"]), str(said["reason"])[:MOST_TEXT]
        self._ready = True
        return True

    def _ask(self, pixels: NDArray[np.uint8], deadline: float) -> float:
        """Send a picture, and return the filter's value.

        Raises
        ------
        OSError, ValueError, KeyError, TypeError
            The filter is not ready, did not answer in time, has ended, or sent an invalid answer.
        """
        if self._process is None:
            raise OSError("it has ended")
        if not self._is_ready(deadline):
            raise OSError(self._reason if self._process.poll() is not None else f"not ready within {self._deadline_s:g} s")
        self._send(json.dumps(list(pixels.shape)).encode() + b"\n" + pixels.tobytes(), deadline)
        said = self._answer(deadline)
        if "error" in said:
            raise ValueError(str(said["error"]))
        value = float(said["value"])
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, got {value}")
        return value

    def _send(self, message: bytes, deadline: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        left, pipe = memoryview(message), self._process.stdin.fileno()
        while left:
            if not select.select([], [pipe], [], max(0.0, deadline - time.monotonic()))[1]:
                raise OSError(f"no answer within {self._deadline_s:g} s")
            left = left[os.write(pipe, left[:1048576]) :]

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._held:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise OSError(f"no answer within {self._deadline_s:g} s")
            part = os.read(pipe, MOST_ANSWER)
            if not part:
                raise OSError("its process has ended")
            self._held += part
            if len(self._held) > MOST_ANSWER:
                raise ValueError("its answer is too long")
        line, _, self._held = self._held.partition(b"\n")
        said = json.loads(line)
        if not isinstance(said, dict):
            raise ValueError("expected an object")
        return said
