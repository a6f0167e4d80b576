"""The log of what is hidden: what the simulated participant saw, liked and answered, and how its head moved.

Rows are on disk as soon as they are known, so that a crash keeps them. None of this may be read by decoder or evolution.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.records import MOTION_COLUMNS
from rtevo.simulate.participant import Participant, Viewing

__all__ = ["HiddenTruth"]

TRUTH, MOTION = "hidden_truth.tsv", "hidden_motion.tsv"
_COLUMNS = ("number", "onset", "duration", "preference", "amplitude_percent", "rating", "response_time", "pixels_sha256")
_MISSING = "n/a"


class HiddenTruth:
    """Writes ``hidden_truth.tsv`` (a row per picture), ``hidden_motion.tsv`` (a row per volume) and ``hidden_truth.json`` (settings).

    Times are seconds from the start of the first volume. A picture's row is written when it appears, with ``n/a`` for what is not known
    yet; :meth:`close` writes all rows once more, complete.

    Parameters
    ----------
    folder : Path
        Must exist.
    settings : dict
        JSON-able.
    part : int
        Of the run: parts after the first continue the existing files. Their pictures are counted on; onsets are the part's own.
    first_volume : int
        Number of this part's first volume.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], part: int = 0, first_volume: int = 0) -> None:
        self._folder, self._settings, self._first = folder, settings, first_volume
        self._before = _whole_lines(folder / TRUTH, part)
        moved = _whole_lines(folder / MOTION, part)
        self._volumes = len(moved)
        self._pictures = (folder / TRUTH).open("w", encoding="utf-8", buffering=1)
        self._motion = (folder / MOTION).open("w", encoding="utf-8", buffering=1)
        self._pictures.write("\t".join(_COLUMNS) + "\n" + "".join(self._before))
        self._motion.write("\t".join(("volume", *MOTION_COLUMNS)) + "\n" + "".join(moved))
        self._summary(complete=False, pictures=len(self._before))

    def picture(self, viewing: Viewing) -> None:
        """Record a picture that has just appeared."""
        self._pictures.write(_row(viewing, None, (), len(self._before)))

    def volume(self, index: int, params: NDArray[np.float64]) -> None:
        """Record the position of the head during a volume."""
        self._motion.write(f"{self._first + index}\t" + "\t".join(f"{p:.6f}" for p in params) + "\n")
        self._volumes += 1

    def close(self, participant: Participant | None) -> None:
        """Complete the files from what the participant remembers; without one, leave the pictures' rows as they are."""
        self._pictures.close()
        self._motion.close()
        if participant is None:
            return
        text = "\t".join(_COLUMNS) + "\n" + "".join(self._before)
        for viewing in participant.viewings:
            text += _row(viewing, participant.answers.get(viewing.number), participant.behaviour.keys, len(self._before))
        written = self._folder / f".{TRUTH}.part"
        written.write_text(text, encoding="utf-8")
        written.replace(self._folder / TRUTH)
        self._summary(complete=True, pictures=len(self._before) + len(participant.viewings))

    def _summary(self, complete: bool, pictures: int) -> None:
        text = json.dumps({"complete": complete, "pictures": pictures, "volumes": self._volumes, **self._settings}, indent=1)
        (self._folder / "hidden_truth.json").write_text(text + "\n", encoding="utf-8")


def _whole_lines(path: Path, part: int) -> list[str]:
    """Rows that earlier parts have left, without one that was cut short."""
    if not part or not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if line.endswith("\n")]


def _row(viewing: Viewing, answer: tuple[float, str] | None, keys: tuple[str, ...], before: int) -> str:
    """One line of ``hidden_truth.tsv``."""
    duration_s = viewing.offset_s - viewing.onset_s
    cells = (
        str(before + viewing.number),
        f"{viewing.onset_s:.6f}",
        _MISSING if math.isinf(duration_s) else f"{duration_s:.6f}",
        f"{viewing.preference:.6f}",
        f"{viewing.amplitude_percent:.6f}",
        _MISSING if answer is None else str(keys.index(answer[1])),
        _MISSING if answer is None else f"{answer[0]:.6f}",
        viewing.pixels_sha256,
    )
    return "\t".join(cells) + "\n"
