"""Decoding a recorded session's volumes again, to restore the decoder's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.decode import Score
from rtevo.errors import DataError, DecoderError
from rtevo.place import Verdict
from rtevo.record import AlignedRecord, EventRecord, Part, PlacementRecord, Record, VolumeRecord, parts, read_volume, volume_path
from rtevo.records import Decision, EventKind, RunClock, VolumeFlag
from rtevo.session.decoding import Aligned, Decide, Decoding
from rtevo.session.placing import Attempt

__all__ = ["Again"]


class Again:
    """Decode recorded parts of a session again, from the saved volumes.

    A volume that could not be saved, or whose record is lost, counts as missing. Placements are computed again, and decided as
    recorded; without recorded decisions (sessions of 0.1) the first is accepted.

    Parameters
    ----------
    out : Path
        The session's folder.
    log : sequence of Record
        Records of the parts; the decoder was new at the first one.
    make : callable
        Called with the number of a part's first volume and the function that decides placements; returns a new `Decoding`.
    kept : bool
        Another part follows that keeps the decoder's state: the last images of this part get their final scores.

    Attributes
    ----------
    decoding : Decoding
        The present state.
    """

    def __init__(self, out: Path, log: Sequence[Record], make: Callable[[int, Decide], Decoding], kept: bool = False) -> None:
        self._out, self._parts, self._make, self._kept = out, parts(log), make, kept
        self._decided: dict[int, PlacementRecord] = {}  # by number of attempt in the part
        self.decoding = make(self._parts[0].start.first_volume, self._decide)

    @property
    def volumes(self) -> int:
        """Number of volumes."""
        return sum(len(list(_with_lost(part))) - len(part) + len(part.records(VolumeRecord)) for part in self._parts)

    def __iter__(self) -> Iterator[tuple[Record, Aligned | None, list[Score], float]]:
        """Replay the log.

        Yields
        ------
        record : Record
            Record of a volume, or the last one of a part.
        aligned : Aligned or None
            The volume.
        scores : list of Score
            Scores that became ready with it.
        reliability : float

        Raises
        ------
        DataError
            The log is not a session's: the order of its volumes or images is impossible.
        """
        try:
            yield from self._go_through()
        except ValueError as error:
            raise DataError(f"{self._out}: the log is not a session's, and cannot be decoded again: {error}") from None

    def _go_through(self) -> Iterator[tuple[Record, Aligned | None, list[Score], float]]:
        """Decode the parts in order."""
        for number, part in enumerate(self._parts):
            start = part.start
            if number and start.decoder_state == "rebaselined":
                self.decoding.close()
                self.decoding = self._make(start.first_volume, self._decide)
            elif number:
                self.decoding.interrupt()
            grid = part.grid
            clock = RunClock(start.tr_s, start.first_volume)
            physio = {(r.index, r.flags & VolumeFlag.LATE): r.physio for r in part.records(AlignedRecord) if r.physio is not None}
            self._decided = {r.attempt: r for r in part.records(PlacementRecord) if r.decision != Decision.PENDING}
            for record in _as_decoded(part):
                if isinstance(record, VolumeRecord):
                    terms = physio.get((record.index, record.flags & VolumeFlag.LATE))
                    known = None if terms is None else np.asarray(terms, np.float64)
                    aligned = self.decoding.align(record.index, *self._load(record), grid, record.acquisition, known)
                    self.decoding.learn(aligned)
                    self._decide_later(record.index)
                    yield record, aligned, *self.decoding.scores()
                elif record.kind == EventKind.TRIGGER:
                    clock = clock.triggered(record.t_ns)
                elif record.kind == EventKind.ONSET and clock.trigger_ns is not None:
                    self.decoding.onset((record.generation, record.candidate), clock.seconds(record.t_ns))
                elif record.kind == EventKind.TAKEN and clock.trigger_ns is not None:
                    self.decoding.taken((record.generation, record.candidate), clock.seconds(record.t_ns))
            follows = self._parts[number + 1].start.decoder_state == "kept" if number + 1 < len(self._parts) else self._kept
            if part.ended_well or follows:
                yield part[-1], None, *self.decoding.scores(final=True)

    def _decide(self, attempt: Attempt) -> Decision:
        """Decide a placement as recorded, if it was decided at once; an undecided one is accepted."""
        decided = self._decided.get(attempt.number)
        if decided is None or (decided.decision == Decision.ACCEPTED and decided.volume <= attempt.volume):
            if attempt.placement.verdict == Verdict.BAD and decided is not None:
                raise DecoderError("; ".join(["the decoder does not lie on the recorded volumes", *attempt.placement.reasons]))
            return Decision.ACCEPTED
        return Decision(decided.decision) if decided.volume <= attempt.volume else Decision.PENDING

    def _decide_later(self, index: int) -> None:
        """Apply the decision that was made after this volume."""
        waiting = self.decoding.undecided
        decided = None if waiting is None else self._decided.get(waiting.number)
        if decided is not None and decided.volume <= index:
            self.decoding.decide(Decision(decided.decision), index)

    def _load(self, record: VolumeRecord) -> tuple[NDArray[np.float32] | None, int]:
        """Return a raw volume and its flags; a volume that never came, or could not be saved, is missing."""
        import nibabel

        if record.flags & VolumeFlag.MISSING or record.saved is False:
            return None, record.flags | VolumeFlag.MISSING
        path = volume_path(self._out, record.index)
        try:
            return read_volume(path), record.flags
        except (OSError, nibabel.filebasedimages.ImageFileError):
            raise DataError(f'{path}: expected the raw volume ([record] save_volumes = "raw" keeps it), cannot read it') from None


def _as_decoded(part: Part) -> Iterator[VolumeRecord | EventRecord]:
    """Yield a part's volumes and events in the order of decoding; if that was not recorded, in the order of the log."""
    taken = {(r.index, r.flags & VolumeFlag.LATE): -1 if r.events_taken is None else r.events_taken for r in part.records(AlignedRecord)}
    events, done, seen = part.records(EventRecord), 0, 0
    for record in _with_lost(part):
        seen += isinstance(record, EventRecord)
        if isinstance(record, VolumeRecord):
            known = taken.get((record.index, record.flags & VolumeFlag.LATE), -1)
            until = seen if known < 0 else known
            yield from events[done:until]
            done = max(done, until)
            yield record
    yield from events[done:]


def _with_lost(part: Part) -> Iterator[Record]:
    """Yield a part's records, with a substitute for each volume whose record is lost: it counts as missing."""
    expected = part.start.first_volume
    for record in part:
        if isinstance(record, VolumeRecord) and not record.flags & VolumeFlag.LATE:
            for index in range(expected, record.index):
                yield replace(record, index=index, flags=int(VolumeFlag.MISSING), acquired_s=np.nan, acquisition=None)
            expected = record.index + 1
        yield record
