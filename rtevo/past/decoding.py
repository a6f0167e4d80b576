"""A recorded session's volumes decoded again, so that the decoder stands where it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode import Score
from rtevo.errors import DataError, DecoderError
from rtevo.place import Verdict
from rtevo.record import grid_of, parts, volume_path
from rtevo.records import Decision, EventKind, VolumeFlag
from rtevo.session.decoding import Aligned, Decide, Decoding
from rtevo.session.placing import Attempt

__all__ = ["Again", "ended_well"]


def ended_well(part: list[dict[str, Any]]) -> bool:
    """Whether a part of a session was ended in good order, so that its last images were scored with what there was of them."""
    return part[-1]["type"] == "end" and part[-1]["status"] in ("completed", "stopped", "unscored")


class Again:
    """Decode recorded parts of a session again, from the volumes that were kept.

    Placements are made anew, and decided as they were; where nothing was decided (sessions of 0.1) the first is accepted.

    Parameters
    ----------
    out : Path
        The session's folder.
    log : list of dict
        Records of the parts; the first one is where the decoder was new.
    make : callable
        Called with the number of a part's first volume and with how placements are decided, gives a fresh `Decoding`.
    kept : bool
        Another part follows in which the decoder's state is kept: the last images of this one get their last word.

    Attributes
    ----------
    decoding : Decoding
        As it stands.
    """

    def __init__(self, out: Path, log: list[dict[str, Any]], make: Callable[[int, Decide], Decoding], kept: bool = False) -> None:
        self._out, self._parts, self._make, self._kept = out, parts(log), make, kept
        self._decided: dict[int, dict[str, Any]] = {}  # by number of attempt, of the part
        self.decoding = make(self._parts[0][0].get("first_volume", 0), self._decide)

    @property
    def volumes(self) -> int:
        """Number of volumes there are."""
        return sum(r["type"] == "volumes" for part in self._parts for r in part)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Aligned | None, list[Score], float]]:
        """Go through the log.

        Yields
        ------
        record : dict
            Of a volume, or the last one of a part.
        aligned : Aligned or None
            The volume.
        scores : list of Score
            That became ready with it.
        reliability : float
        """
        for number, part in enumerate(self._parts):
            start = part[0]
            if number and start["decoder_state"] == "rebaselined":
                self.decoding.close()
                self.decoding = self._make(start["first_volume"], self._decide)
            elif number:
                self.decoding.interrupt()
            grid = grid_of(part)
            self._decided = {r["attempt"]: r for r in part if r["type"] == "placements" and r["decision"] != Decision.PENDING}
            trigger_ns, offset_s = None, start.get("first_volume", 0) * start["tr_s"]
            for record in part:
                if record["type"] == "events" and record["kind"] == EventKind.TRIGGER:
                    trigger_ns = record["t_ns"]
                elif record["type"] == "events" and record["kind"] == EventKind.ONSET and trigger_ns is not None:
                    onset_s = (record["t_ns"] - trigger_ns) / 1e9 + offset_s
                    self.decoding.onset((record["generation"], record["candidate"]), onset_s)
                elif record["type"] == "volumes":
                    aligned = self.decoding.align(record["index"], self._load(record), record["flags"], grid)
                    self.decoding.learn(aligned)
                    self._decide_later(record["index"])
                    yield record, aligned, *self.decoding.scores()
            follows = self._parts[number + 1][0]["decoder_state"] == "kept" if number + 1 < len(self._parts) else self._kept
            if ended_well(part) or follows:
                yield part[-1], None, *self.decoding.scores(final=True)

    def _decide(self, attempt: Attempt) -> Decision:
        """Decide an attempt as it was decided, at once where it was; what nobody decided is accepted."""
        decided = self._decided.get(attempt.number)
        if decided is None or (decided["decision"] == Decision.ACCEPTED and decided["volume"] <= attempt.volume):
            if attempt.placement.verdict == Verdict.BAD and decided is not None:
                raise DecoderError("; ".join(["the decoder does not lie on the recorded volumes", *attempt.placement.reasons]))
            return Decision.ACCEPTED
        return Decision(decided["decision"]) if decided["volume"] <= attempt.volume else Decision.PENDING

    def _decide_later(self, index: int) -> None:
        """Decide what was decided after this volume."""
        waiting = self.decoding.undecided
        decided = None if waiting is None else self._decided.get(waiting.number)
        if decided is not None and decided["volume"] <= index:
            self.decoding.decide(Decision(decided["decision"]), index)

    def _load(self, record: dict[str, Any]) -> NDArray[np.float32] | None:
        """Read a volume as it came; None where it never did."""
        import nibabel

        if record["flags"] & VolumeFlag.MISSING:
            return None
        path = volume_path(self._out, record["index"])
        try:
            return np.asarray(nibabel.load(path).dataobj, np.float32)
        except (OSError, nibabel.filebasedimages.ImageFileError):
            raise DataError(f'{path}: expected the volume as it came ([record] save_volumes = "raw" keeps it), cannot read it') from None
