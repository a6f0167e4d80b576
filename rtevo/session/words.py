"""The shared words of a session's processes.

They lie in a small memory-mapped file in the session's runtime folder. Each is an independent aligned 64-bit flag or counter with one
writer at a time; nothing is inferred from the order in which two of them change, except in lock-step, where the conductor reads all twice
(:mod:`rtevo.session.conductor`).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

__all__ = ["Words"]

WORDS = (
    "started_ns",  # monotonic ns of session time 0; 0 before
    "speed_ppm",  # millionths; 0 = lock-step
    "now_ns",  # lock-step only: session time
    "end",  # request to end the session in good order (last generation scored, Ctrl-C, operator)
    "stop_scanner",  # a simulated or replayed scanner ends after its current volume
    "drain",  # the scanner has gone: ingest hands over its last volumes and closes
    "abort",  # a stage has died: all processes save and exit
    "delivered",  # files that a simulated or replayed scanner has finished writing
    "settled",  # value of `delivered` when ingest last found nothing new
    "scanner_wake_ns",
    "scanner_grants",
    "presenter_wake_ns",
    "presenter_grants",
    "bridge_port",  # port of the bridge; 0 before
    "bridge_event",  # the last event that the bridge published or was about to publish: see rtevo.stages.bridge
    "presenter_place",  # the computer of the bridge's presenter: see rtevo.bridge.waiting
    "presenter_process",  # the presenter's number there
    "presenter_waits",  # number of another presenter that waits for admission; 0: none
    "presenter_admitted",  # set by the operator: number of the presenter to admit
    "triggered",  # the trigger has come
    "trigger_ns",  # session time of the trigger; 0 before
    "trigger_error_ns",  # bound of that
    "shown",  # an image has been
    "volume_ns",  # session time at which the run's last volume came in; 0 before
    "volume_count",  # how many have come in, in this part of the session
    "delay_ns",  # the longest time so far from the end of a volume's acquisition until it came in, session time
    "early_ns",  # session time at which a volume came in before there was a trigger; 0: none
    "unusable",  # volumes without a break, up to the last one, that could not be aligned
    "scored",  # images that have a score
    "held",  # images cannot be scored: fixation after the current trial, until the operator wants to go on
    "held_told",  # the bridge has acted on that
    "alarm",  # number of alarms so far
    "seen",  # number of alarms marked as seen
    "start_shift",  # repetition times by which the trigger was too late, judged from the volumes, while that can be corrected; 0: none
    "start_accepted",  # set by the operator: correct the start by this many repetition times
    "pause",  # the operator wants fixation after the current trial
    "placed",  # number of times that the decoder was placed on today's head: images are shown from the first on
    "placed_told",  # value of `placed` that the bridge has handled
    "placement_asked",  # 1 + number of the placement that waits for the operator; 0: none
    "placement_answer",  # set by the operator: 4 times `placement_asked`, + 1: accept, + 2: try the next volumes
    "images_told",  # the bridge has handled the end of the images
    "restart",  # the session ends, to begin again with another run of the scanner
    "waiting",  # everything is ready; the operator has not started the session yet
    "over",  # 1: the session is complete, 2: stopped, 3: complete, but its images could not be scored
    "offered",  # choices after this run of a visit, as bits of rtevo.session.orders; 0: none
    "chosen",  # set by the operator: one of these bits
    "between",  # 1: the stimulus PC is connected between two runs, and shows its text
    "parted",  # the next run is known: processes that waited for it may exit
)


class Words:
    """Shared words of a session.

    Parameters
    ----------
    path : Path
        The mapped file; made by :meth:`create`.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(WORDS))
        self._words = np.frombuffer(self._map, np.int64)
        self._at = {name: i for i, name in enumerate(WORDS)}

    @staticmethod
    def make(path: Path) -> None:
        """Write the file; every word is 0."""
        path.write_bytes(bytes(8 * len(WORDS)))

    def close(self) -> None:
        """Unmap; the file stays."""
        del self._words
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get(self, word: str) -> int:
        """Return a shared word."""
        return int(self._words[self._at[word]])

    def set(self, word: str, value: int) -> None:
        """Write a shared word."""
        self._words[self._at[word]] = value
