"""The few words that all processes of a session share.

They lie in a small memory-mapped file in the session's runtime folder. Each is an independent aligned 64-bit flag or counter with one
writer at a time; nothing is inferred from the order in which two of them change, except in lock-step, where the conductor asks twice
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
    "end",  # asked to end the session properly (last generation scored, Ctrl-C, operator)
    "stop_scanner",  # a simulated or replayed scanner ends after its current volume
    "drain",  # nothing more will come from the scanner: ingest hands on what it has and closes
    "abort",  # a stage has died: everyone saves and leaves
    "delivered",  # files that a simulated or replayed scanner has finished writing
    "settled",  # value of `delivered` when ingest last found nothing new
    "scanner_wake_ns",
    "scanner_grants",
    "presenter_wake_ns",
    "presenter_grants",
    "bridge_port",  # that the bridge listens at; 0 before
    "bridge_event",  # the last event that the bridge has published or was about to: see rtevo.stages.bridge
    "presenter_place",  # the computer of the bridge's presenter: see rtevo.bridge.waiting
    "presenter_process",  # and its number there
    "presenter_waits",  # number of another presenter that would like to come in; 0: none does
    "presenter_admitted",  # the operator's: number of the one that is to be let in
    "triggered",  # the trigger has been
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
    "seen",  # how many of them somebody has seen
    "start_shift",  # repetition times by which the trigger was too late, as the volumes say, while that can be corrected; 0: none
    "start_accepted",  # the operator's: correct the start by so many
    "pause",  # the operator wants fixation after the current trial
    "placed",  # number of times that the decoder has been placed on today's head: from the first on, images are shown
    "placed_told",  # and how many of them the bridge has acted on
    "placement_asked",  # 1 + number of the attempt to place it that waits for the operator; 0: none does
    "placement_answer",  # the operator's: 4 times what was asked, + 1: accept, + 2: try the next volumes
    "images_told",  # the bridge has acted on the end of the images
    "restart",  # the session ends in order to begin again with another run of the scanner
    "waiting",  # everything is ready; the operator has not yet let the session begin
    "over",  # 1: the session has been completed, 2: stopped, 3: completed, but its images could not be scored
    "offered",  # what may follow this run of a visit, as bits of rtevo.session.orders; 0: nothing is asked
    "chosen",  # the operator's: one of these bits
    "between",  # 1: the stimulus PC is there between two runs, and shows the text for that
    "parted",  # what follows is known: whoever has waited for it may go
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
