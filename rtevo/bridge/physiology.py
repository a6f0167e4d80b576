"""Skin conductance over OSC: a measure of the response to an image, beside brain and ratings."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from rtevo.errors import LinkError

__all__ = ["Physiology", "response"]

BASELINE_S = (-0.5, 1.0)  # around an onset: before any response to it can begin
WINDOW_S = (1.0, 5.0)  # a response begins 1 to 3 s after the event and peaks 1 to 3 s later
GRACE_S = 0.5  # longest delay of samples
KEEP_S = 30.0
FEWEST = 3  # samples in either window


def response(times_s: np.ndarray, conductance: np.ndarray, onset_s: float) -> float:
    """Return the amplitude of the skin conductance response to an event: the peak's height above the level before it.

    The windows are those recommended for event-related responses (Boucsein et al. 2012, Publication recommendations for electrodermal
    measurements, Psychophysiology 49, doi:10.1111/j.1469-8986.2012.01384.x); without a rise the response is 0.

    Parameters
    ----------
    times_s : ndarray (N,)
        Times of the samples, s.
    conductance : ndarray (N,)
        Microsiemens.
    onset_s : float
        Onset of the event, s.

    Returns
    -------
    float
        Microsiemens; NaN if there are too few samples.
    """
    before, after = (conductance[(times_s >= onset_s + a) & (times_s < onset_s + b)] for a, b in (BASELINE_S, WINDOW_S))
    if len(before) < FEWEST or len(after) < FEWEST:
        return math.nan
    return max(0.0, float(np.max(after) - np.mean(before)))


class Physiology:
    """Receives samples as OSC messages over UDP, and measures the response to each onset.

    Parameters
    ----------
    bind : str
        ``ADDRESS:PORT``.
    path : str
        OSC address of the messages whose first argument is the conductance, microsiemens.
    mono_ns : callable
        This computer's monotonic clock; samples are stamped on arrival.

    Raises
    ------
    LinkError
        python-osc is not installed, or the address cannot be listened at.
    """

    def __init__(self, bind: str, path: str, mono_ns: Callable[[], int] = time.monotonic_ns) -> None:
        try:
            from pythonosc.osc_packet import OscPacket, ParseError
        except ImportError as error:
            raise LinkError(f"[bridge] osc: python-osc is needed (pip install 'rtevo[osc]'): {error}") from error
        self._packet, self._parse_error = OscPacket, ParseError
        self._path, self._mono_ns = path, mono_ns
        host, _, port = bind.rpartition(":")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((host, int(port)))
        except (OSError, ValueError) as error:
            self._socket.close()
            raise LinkError(f"[bridge] osc: expected a free ADDRESS:PORT of this computer, got {bind!r}: {error}") from error
        self.endpoint = f"{host}:{self._socket.getsockname()[1]}"
        self.unreadable = 0
        self._samples: deque[tuple[float, float]] = deque()  # s, microsiemens
        self._onsets: deque[tuple[int, int, int]] = deque()  # generation, candidate, ns

    @property
    def samples(self) -> int:
        """Number of samples in the last half minute."""
        return len(self._samples)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def onset(self, generation: int, candidate: int, mono_ns: int) -> None:
        """Record the onset of an image."""
        self._onsets.append((generation, candidate, mono_ns))

    def poll(self) -> list[tuple[int, int, int, float]]:
        """Read new samples; return complete responses: generation, candidate, ns of the window's end, microsiemens."""
        now_ns = self._mono_ns()
        self._read(now_ns / 1e9)
        found = []
        while self._onsets and now_ns / 1e9 > self._onsets[0][2] / 1e9 + WINDOW_S[1] + GRACE_S:
            generation, candidate, onset_ns = self._onsets.popleft()
            times_s, values = np.array(self._samples, float).reshape(-1, 2).T
            found.append((generation, candidate, onset_ns + round(WINDOW_S[1] * 1e9), response(times_s, values, onset_ns / 1e9)))
        return found

    def _read(self, now_s: float) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self._socket.recv(4096)
                try:
                    messages = self._packet(data).messages
                except self._parse_error:
                    self.unreadable += 1
                    continue
                for timed in messages:
                    values = timed.message.params
                    if timed.message.address == self._path and values and isinstance(values[0], (int, float)):
                        self._samples.append((now_s, float(values[0])))
        while self._samples and self._samples[0][0] < now_s - KEEP_S:
            self._samples.popleft()
