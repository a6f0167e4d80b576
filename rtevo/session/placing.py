"""Placement of the decoder on today's head, from the first volumes of a run, on any grid.

On the decoder's own grid volumes are aligned to the decoder's reference, and the first that can be aligned is judged. On any other, the
first steady volumes, aligned to each other, are today's reference; the decoder is placed on it (:mod:`rtevo.place`) and carried to today's
grid (:mod:`rtevo.decode.carry`). So it is on any grid where echoes are combined or distortion is undone: motion is then estimated against
the same volumes as they came (the *guide*), because no decoder's reference looks like those. Nothing here waits or asks: an
:class:`Attempt` is made, and somebody decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.config import Config
from rtevo.decode import Decoder, carry, reorder
from rtevo.errors import DataError, DecoderError
from rtevo.place import Placement, Verdict, judge, place
from rtevo.realign import PLAIN, FirstVolumes, Making, Motion, Realigner, first_echo
from rtevo.records import Decision, Grid

__all__ = ["Attempt", "Hints", "Placing"]

Volume = NDArray[np.float32]

LOST = 3  # after this many volumes in a row that cannot be aligned to the first, the next one becomes the first


@dataclass(frozen=True, eq=False)
class Attempt:
    """One placement of the decoder on today's head, and its decision.

    Parameters
    ----------
    number : int
        0 = the part's first.
    volume : int
        The last volume when it was made or decided.
    own_grid : bool
        Volumes lie on the decoder's grid and are aligned to the decoder's reference.
    placement : Placement
    reference : ndarray, float32 (X, Y, Z)
        Today's reference, on today's grid.
    steady : tuple of ndarray
        The aligned volumes whose mean is the reference.
    decision : Decision
    """

    number: int
    volume: int
    own_grid: bool
    placement: Placement
    reference: Volume
    steady: tuple[Volume, ...] = ()
    decision: Decision = Decision.PENDING


@dataclass(frozen=True, eq=False)
class Hints:
    """Knowledge of the head's position before the run's first volume.

    Parameters
    ----------
    decoders : tuple of (Decoder, ndarray float64 (4, 4))
        The decoder on the grid of a scan of this visit, and its place there.
    placement : Placement, optional
        The placement on that scan.
    file : Path, optional
        File of a transform to use.
    moving : Grid, optional
        Grid of the volume with which the transform was found; None: the run's grid.
    """

    decoders: tuple[tuple[Decoder, NDArray[np.float64]], ...] = ()
    placement: Placement | None = None
    file: Path | None = None
    moving: Grid | None = None

    def given(self, decoder: Decoder, grid: Grid) -> NDArray[np.float64] | None:
        """Return the placement from a file, decoder's world to today's, for a run on this grid; None: no file."""
        if self.file is None:
            return None
        from rtevo.place.transforms import read_affine

        return read_affine(self.file, decoder.grid, self.moving or grid)

    @classmethod
    def of(cls, config: Config, decoder: Decoder) -> Hints:
        """Read the hints that the session's settings name: a scan of this visit, a transform.

        Raises
        ------
        DataError, DecoderError
            One of them cannot be used.
        """
        settings = config.decoder
        scan = _scan(config)
        hints = cls((), None, None if settings.placement == "auto" else Path(settings.placement), None if scan is None else scan[1])
        given = hints.given(decoder, decoder.grid)  # report an unreadable file now
        if scan is None:
            return hints
        found = place(decoder.reference, decoder.grid, *scan, weight=np.abs(decoder.weights), starts=[] if given is None else [given])
        if found.verdict == Verdict.BAD:
            raise DecoderError("; ".join([f"[decoder] scout = {settings.scout!r}: the decoder does not lie on it", *found.reasons]))
        return replace(hints, decoders=((carry(decoder, found, *scan), found.matrix),), placement=found)


def _scan(config: Config) -> tuple[Volume, Grid] | None:
    """Return the scan of this visit that the session names."""
    settings = config.decoder
    if not settings.scout:
        return None
    from rtevo.decode.runs import read_scan

    if not settings.scout.isdecimal():
        return read_scan(Path(settings.scout))
    if not config.acquisition.folder:
        raise DataError(f"[decoder] scout = {settings.scout!r}: a series number needs [acquisition] folder")
    return read_scan(Path(config.acquisition.folder), settings.scout)


class Placing:
    """Aligns the volumes of one part of a session, and places the decoder on them.

    Parameters
    ----------
    config : Config
    decoder : Decoder
        The original decoder.
    grid : Grid
        Grid of the part's volumes.
    tr_s : float
        Repetition time, s.
    at_hand : iterable of (Decoder, ndarray float64 (4, 4))
        Decoders that are placed on today's head already, each with its place: the decoder's world to its own. If the grid is that of one
        of these, volumes are aligned to its reference.
    starts : iterable of ndarray, float64 (4, 4)
        Initial placements of the search.
    given : ndarray, float64 (4, 4), optional
        The placement, where it comes from a file.
    making : Making
        What happens to a volume besides its motion.
    guided : tuple of (Decoder, ndarray float64 (4, 4), ndarray float32 (X, Y, Z)), optional
        The decoder as it lay in the part before, on this grid, its place, and the guide there.

    Attributes
    ----------
    attempts : list of Attempt
        Made so far.
    guide : ndarray, float32 (X, Y, Z), or None
        What motion is estimated against.
    """

    def __init__(
        self,
        config: Config,
        decoder: Decoder,
        grid: Grid,
        tr_s: float,
        at_hand: Iterable[tuple[Decoder, NDArray[np.float64]]] = (),
        starts: Iterable[NDArray[np.float64]] = (),
        given: NDArray[np.float64] | None = None,
        making: Making = PLAIN,
        guided: tuple[Decoder, NDArray[np.float64], Volume] | None = None,
    ) -> None:
        self._config, self._decoder, self.grid, self._tr_s = config, decoder, grid, tr_s
        self._starts, self._given, self._making = tuple(starts), given, making
        self.attempts: list[Attempt] = []
        self._first = FirstVolumes(tr_s)
        self._guides: list[tuple[Volume, Volume]] = []  # of the first volumes: aligned, and as they came on the same grid
        self._lost, self._asked = 0, False
        self.realigner: Realigner | None = None
        self.guide: Volume | None = None
        self._own: tuple[Decoder, NDArray[np.float64]] | None = None
        if guided is not None:
            self._own = guided[:2]
            self._align_to(guided[2])
        for known, matrix in at_hand if making.plain else ():
            if (fitting := reorder(known, grid)) is not None:
                self._own = fitting, matrix
                self._align_to(fitting.reference)
                break

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Voxels that must be finite in a usable volume, before the decoder is placed."""
        assert self.realigner is not None
        return self.realigner.mask if self._own is None else self._own[0].mask

    def _align_to(self, reference: Volume) -> None:
        if self.realigner is not None:
            self.realigner.close()
        own = self._own
        affine = own[0].grid.affine if own is not None else self.grid.affine
        self.guide = reference
        self.realigner = Realigner(reference, affine, threads=self._config.decoder.threads)

    def close(self) -> None:
        """End the realigner's threads."""
        if self.realigner is not None:
            self.realigner.close()

    def estimate(self, volume: Volume) -> Motion:
        """Estimate the motion of a volume against today's reference; the first one is that, until a better one is there."""
        volume = first_echo(volume)
        if self.realigner is None or (self._lost >= LOST and not self.attempts):
            self._own, self._lost, self._first = None, 0, FirstVolumes(self._tr_s)
            self._guides.clear()
            self._making.begin_again()
            try:
                self._align_to(np.nan_to_num(np.asarray(volume, np.float32)))
            except ValueError as problem:  # it cannot be a reference: the next one is tried
                nothing = np.full(6, np.nan)
                return Motion(np.eye(4), nothing, False, 0, math.nan, reason=str(problem))
        assert self.realigner is not None
        motion = self.realigner.estimate(volume)
        self._lost = 0 if motion.converged else self._lost + 1
        return motion

    def aligned(self, volume: Volume, motion: Motion) -> Volume:
        """Make the aligned volume of one whose motion was estimated."""
        assert self.realigner is not None
        return self._making.aligned(self.realigner, volume, motion)

    def take(self, index: int, volume: Volume, motion: Motion, aligned: Volume | None) -> Attempt | None:
        """Add a volume after the last decision; return the attempt that it completes.

        Parameters
        ----------
        index : int
        volume, aligned : ndarray, float32 (X, Y, Z)
            As it came, (echoes, X, Y, Z) of several echoes; aligned to today's reference, None where it cannot be used.
        motion : Motion
        """
        if self._asked or aligned is None:
            return None
        steady: tuple[Volume, ...] = (aligned,)
        reference = np.asarray(volume if self._making.plain else aligned, np.float32)
        if self._own is not None:
            placement = self._judged(volume, motion) if self._making.plain else self._judged_aligned(aligned)
        else:
            self._first.add(aligned, motion.params, self.grid.affine)
            if not self._making.plain:
                assert self.realigner is not None
                self._guides.append((aligned, self.realigner.reslice(first_echo(volume), motion)))
            if not (steady := self._first.steady()):
                return None
            reference = np.asarray(np.mean(steady, axis=0, dtype=np.float64), np.float32)
            placement = self._placed(reference)
            self._align_to(reference if self._making.plain else self._guide_of(steady))
        self._asked = True
        attempt = Attempt(len(self.attempts), index, self._own is not None, self._named(placement), reference, steady)
        self.attempts.append(attempt)
        return attempt

    def _guide_of(self, steady: tuple[Volume, ...]) -> Volume:
        """Mean of the steady volumes as they came, which those that follow are aligned to."""
        came = [guide for aligned, guide in self._guides if any(aligned is each for each in steady)]
        return np.asarray(np.mean(came, axis=0, dtype=np.float64), np.float32)

    def _judged_aligned(self, aligned: Volume) -> Placement:
        """Judge where the head lies in a part that goes on with the guide of the one before."""
        assert self._own is not None
        weight = np.abs(self._decoder.weights)
        return judge(self._own[1], self._decoder.reference, self._decoder.grid, aligned, self.grid, weight=weight)

    def _judged(self, volume: Volume, motion: Motion) -> Placement:
        """Judge the head's position on a grid on which the decoder is placed."""
        assert self._own is not None
        weight = np.abs(self._decoder.weights)
        return judge(motion.matrix @ self._own[1], self._decoder.reference, self._decoder.grid, volume, self.grid, weight=weight)

    def _named(self, placement: Placement) -> Placement:
        """Mark a placement as doubtful if the decoder is named after another participant."""
        whose, own = self._decoder.settings.get("participant"), self._config.session.participant
        if not isinstance(whose, str) or whose == own:
            return placement
        reason = (
            f"expected a decoder of participant {own}, found one of participant {whose}: check [session] participant and [decoder] folder"
        )
        verdict = Verdict.DOUBTFUL if placement.verdict == Verdict.GOOD else placement.verdict
        return replace(placement, verdict=verdict, reasons=(reason, *placement.reasons))

    def _placed(self, reference: Volume) -> Placement:
        decoder, weight = self._decoder, np.abs(self._decoder.weights)
        if self._given is not None:
            return judge(self._given, decoder.reference, decoder.grid, reference, self.grid, weight=weight)
        return place(decoder.reference, decoder.grid, reference, self.grid, weight=weight, starts=self._starts)

    @property
    def place(self) -> NDArray[np.float64]:
        """The decoder's place on the reference of the volumes: its world to that of :meth:`decoder`, from the last attempt."""
        return self.attempts[-1].placement.matrix if self._own is None else self._own[1]

    def decide(self, decision: Decision, index: int) -> Attempt:
        """Decide the last attempt; `index` is the last volume so far. After `AGAIN` the next volumes are tried."""
        decided = replace(self.attempts[-1], decision=decision, volume=index)
        self.attempts[-1] = decided
        if decision == Decision.AGAIN:
            self._asked, self._first = False, FirstVolumes(self._tr_s)
            self._guides.clear()
        return decided

    def decoder(self) -> Decoder:
        """Return the decoder on today's grid, from the last attempt."""
        attempt = self.attempts[-1]
        if self._own is not None:
            return self._own[0]
        fwhm_mm = self._config.decoder.fwhm_mm
        return carry(self._decoder, attempt.placement, attempt.reference, self.grid, volumes=attempt.steady, fwhm_mm=fwhm_mm, moved=True)
