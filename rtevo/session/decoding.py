"""From volumes and onsets to motion and scores: the same for a session that runs, is taken up again, or is computed anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rtevo.config import Config
from rtevo.config import sections as settings_of
from rtevo.decode import Decoder, Quality, Score, Scorer, SeveralScorer, scorer_of, whole
from rtevo.errors import DataError
from rtevo.place import Verdict
from rtevo.realign import Making, framewise_displacement
from rtevo.realign.first import FEWEST
from rtevo.record.making import making_of
from rtevo.records import Decision, Grid, Projected, VolumeFlag
from rtevo.session.placing import Attempt, Hints, Placing
from rtevo.session.rings import looks_at_volumes
from rtevo.session.sensors import physio_sizes

if TYPE_CHECKING:
    from rtevo.decode import Learnt, Method
    from rtevo.decode.compartments import Compartments
    from rtevo.decode.grid import Response
    from rtevo.decode.hrf import Shape
    from rtevo.decode.nuisance import Drift
    from rtevo.session.takeover import Before

__all__ = ["Aligned", "Decide", "Decoding", "accept_good"]

WAITING_S = 60.0  # of volumes that are kept for the scores while the operator is asked


Decide = Callable[[Attempt], Decision]


@dataclass(frozen=True, eq=False)
class Aligned:
    """The results of one volume.

    Parameters
    ----------
    index, flags : int
    motion : ndarray, float64 (6,)
        NaN where it could not be aligned.
    displacement_mm, dvars_percent, tsnr : float
        See `rtevo.records.aligned_dtype`.
    data : ndarray, float32 (X, Y, Z), or None
        Aligned; None where it cannot be scored.
    physio : ndarray, float64 (terms,), or None
        Terms of pulse and respiration; None: they are not measured.
    """

    index: int
    flags: int
    motion: NDArray[np.float64]
    displacement_mm: float
    dvars_percent: float
    tsnr: float
    data: NDArray[np.float32] | None
    physio: NDArray[np.float64] | None = None


class Decoding:
    """State of decoding between volumes.

    A part begins with its first volume, whatever grid that lies on: see :mod:`rtevo.session.placing`. Until the decoder is placed,
    volumes are aligned and wait to be scored.

    Parameters
    ----------
    config : Config
    decoder : Decoder
    tr_s : float
        Repetition time, s.
    first : int
        Number of the first volume that it is given.
    decide : callable, optional
        Called with every attempt to place the decoder, returns what becomes of it at once. Default: the good ones are accepted, and
        the others wait for :meth:`decide`.
    hints : Hints, optional
        What is known beforehand of where the head lies; from the session's settings if None.
    before : Before, optional
        The values learnt in an earlier run of the visit.

    Attributes
    ----------
    quality : Quality or None
        None until the decoder is placed.
    news : list of Attempt
        Attempts that were made or decided since somebody emptied this.
    lay : tuple of (Decoder, ndarray float64 (4, 4)), or None
        The decoder as it was placed last, and where it lies: the world of the decoder as it was made to its own.
    renewed : bool
        A part lies on another grid than the one before: what was learnt of responses and noise began anew with it.
    """

    def __init__(
        self,
        config: Config,
        decoder: Decoder,
        tr_s: float,
        first: int = 0,
        decide: Decide | None = None,
        hints: Hints | None = None,
        before: Before | None = None,
    ) -> None:
        self._config, self._decoder, self._first, self._tr_s = config, decoder, first, tr_s
        self._decide = decide or accept_good
        self._hints = hints or Hints.of(config, decoder)
        self._placing: Placing | None = None
        self._placed: tuple[Decoder, NDArray[np.float64]] | None = None  # the decoder on today's grid, and its place
        self._scorer: Scorer | SeveralScorer | None = None
        self._compartments: Compartments | None = None  # of the nuisance terms, where the session has any
        self.quality: Quality | None = None
        self.lay: tuple[Decoder, NDArray[np.float64]] | None = None
        self._waiting: list[Aligned | tuple[tuple[int, int], float]] = []  # volumes and onsets, until the decoder is placed
        self._making: Making | None = None
        self._guide: NDArray[np.float32] | None = None  # of the part before
        self._previous: NDArray[np.float64] | None = None
        self._physio = physio_sizes(config, tr_s)
        self._begins = first  # number of the part's first volume
        self._onsets: dict[tuple[int, int], float] = {}
        self.renewed = False
        self._used: list[Projected] = []
        self.news: list[Attempt] = []
        if before is not None:
            self._take_over(before)

    def _take_over(self, before: Before) -> None:
        """Begin where an earlier run of the visit has ended; the decoder is placed anew.

        Raises
        ------
        DataError
            What was learnt does not fit this decoder.
        """
        self._placed = self.lay = before.decoder, before.place
        self._guide = before.guide
        self._scorer, self.quality = self._make_scorer(before.decoder, before.place), Quality(before.decoder)
        try:
            self._scorer.take_over(before.learnt)
        except ValueError as problem:
            raise DataError(f"[decoder] continue_from: the earlier run used another decoder: {problem}") from None

    @property
    def placed(self) -> bool:
        """Whether the decoder lies on the head of the part that runs."""
        return self._placing is not None and bool(self._placing.attempts) and self._placing.attempts[-1].decision == Decision.ACCEPTED

    @property
    def undecided(self) -> Attempt | None:
        """The attempt that waits for a decision."""
        attempts = [] if self._placing is None else self._placing.attempts
        return attempts[-1] if attempts and attempts[-1].decision == Decision.PENDING else None

    @property
    def grid(self) -> Grid | None:
        """The grid that aligned volumes lie on; None before the part's first volume."""
        if self._placing is None or self._placing.realigner is None:
            return None
        return self._placing.realigner.grid

    @property
    def guide(self) -> NDArray[np.float32] | None:
        """The reference of the motion, if it is not a decoder's; None before the decoder is placed."""
        plain = self._making is None or self._making.plain
        return None if plain or self._placing is None or not self.placed else self._placing.guide

    def onset(self, key: tuple[int, int], onset_s: float) -> None:
        """Add an image that was shown, s from the session's first volume."""
        self._onsets[key] = onset_s
        if self._scorer is None or not self.placed:
            self._waiting.append((key, onset_s))
        else:
            self._scorer.add_onset(key, onset_s - self._first * self._tr_s)

    def taken(self, key: tuple[int, int], taken_s: float) -> None:
        """Record that an image was taken away, s from the session's first volume; one that was not on the screen has no response."""
        if key in self._onsets and self._scorer is not None:
            self._scorer.shown_for(key, taken_s - self._onsets[key])

    def align(
        self,
        index: int,
        volume: NDArray[Any] | None,
        flags: int,
        grid: Grid | None = None,
        acquisition: Mapping[str, Any] | None = None,
        physio: NDArray[np.float64] | None = None,
    ) -> Aligned:
        """Align a volume, and place the decoder where it is not yet.

        Parameters
        ----------
        index : int
        volume : ndarray, float32 (X, Y, Z), or (echoes, X, Y, Z), or None
            None where it is missing.
        flags : int
        grid : Grid, optional
            That the volume lies on; needed with the part's first one.
        acquisition : dict, optional
            What the headers say, with the part's first volume: needed where echoes are combined or distortion is undone.
        physio : ndarray, float64 (terms,), optional
            The volume's terms of pulse and respiration.

        Raises
        ------
        DataError
            Headers and settings do not say enough for that, or a map cannot be read.
        """
        motion, data, displacement = np.full(6, np.nan), None, np.nan
        if volume is not None:
            placing = self._begun(grid, index, acquisition or {})
            estimate = placing.estimate(volume)
            if estimate.converged:
                motion = np.asarray(estimate.params, np.float64)
                counts = placing.mask if self.decoder is None else self.decoder.mask
                data = placing.aligned(volume, estimate) if whole(volume, counts) else None
            else:
                flags |= VolumeFlag.UNALIGNED
            if flags & VolumeFlag.LATE:  # those after it came before: it is no step from them
                return Aligned(index, int(flags), motion, np.nan, np.nan, np.nan, data, physio)
            self._place(placing.take(index, volume, estimate, data))
        if data is not None:
            if self._previous is not None:
                displacement = float(framewise_displacement(np.stack([self._previous, motion]))[1])
            self._previous = motion
        if displacement > self._config.decoder.spike_mm:
            flags |= VolumeFlag.SPIKE
        dvars, tsnr = self.quality.add(data) if self.quality is not None and self.placed else (np.nan, np.nan)
        return Aligned(index, int(flags), motion, displacement, dvars, tsnr, data, physio)

    def learn(self, aligned: Aligned) -> None:
        """Add an aligned volume to the scores."""
        if self._scorer is None or not self.placed:
            self._waiting.append(aligned)
            self._forget()
        else:
            self._scorer.add_volume(aligned.index - self._first, aligned.data, aligned.motion, self._others(aligned))
            self._use(self._scorer)

    def _others(self, aligned: Aligned) -> NDArray[np.float64]:
        """Return the nuisance terms of a volume: those that come from itself, and those of pulse and respiration; NaN where not known."""
        sizes = () if self._compartments is None else self._compartments.sizes
        own, physio = np.full(sum(sizes), np.nan), np.full(sum(self._physio), np.nan)
        if self._compartments is not None and aligned.data is not None and not aligned.flags & VolumeFlag.LATE:
            own = self._compartments.terms(aligned.data)
        if aligned.physio is not None and len(aligned.physio) == len(physio):  # not where these settings make others of them
            physio = aligned.physio
        return np.concatenate([own, physio])

    def _use(self, scorer: Scorer | SeveralScorer) -> None:
        """Keep the volumes that the scorer has used, if evolution uses them."""
        used = scorer.used()
        if not (used and looks_at_volumes(self._config)):
            return
        found, (autocorrelation, drift_sd) = scorer.response(), scorer.noise()
        assert found is not None
        for index, value, motion_mm in used:
            number = index + self._first
            self._used.append(
                Projected(
                    number, (number + 0.5) * self._tr_s, value, tuple(motion_mm.tolist()), autocorrelation, drift_sd,
                    found.lag_s, found.lag_sd_s, found.width, scorer.undershoot,
                )
            )  # fmt: skip

    def used(self) -> list[Projected]:
        """Return the volumes that scores have used since the last call, if evolution uses volumes."""
        used, self._used = self._used, []
        return used

    def _forget(self) -> None:
        """Drop waiting volumes beyond those that the decoder can use."""
        kept = [(k, each) for k, each in enumerate(self._waiting) if isinstance(each, Aligned) and each.data is not None]
        if len(kept) > max(WAITING_S / self._tr_s, FEWEST):
            number, oldest = kept[0]
            self._waiting[number] = replace(oldest, data=None)

    # --- placement ------------------------------------------------------------------------------------------------------------------

    def _begun(self, grid: Grid | None, index: int, acquisition: Mapping[str, Any]) -> Placing:
        """The part's placing: begun with its first volume."""
        if self._placing is None:
            if grid is None:
                raise ValueError("the first volume of a part: expected its grid")
            self._begins = index
            at_hand = [*([] if self._placed is None else [self._placed]), *self._hints.decoders]
            given = self._hints.given(self._decoder, grid)
            if given is None:
                at_hand.append((self._decoder, np.eye(4)))
            starts = [matrix for _, matrix in at_hand]
            same = self._guide is not None and self._placed is not None and not self._placed[0].grid.difference(grid)
            if self._making is None or not same:
                self._making = making_of(self._config.acquisition, grid, acquisition)
            guided = None
            if same and not self._making.plain and self._placed is not None and self._guide is not None:
                guided = (*self._placed, self._guide)
            self._placing = Placing(self._config, self._decoder, grid, self._tr_s, at_hand, starts, given, self._making, guided)
        return self._placing

    def _place(self, attempt: Attempt | None) -> None:
        """Process an attempt, and decide it if that needs nobody."""
        if attempt is None:
            return
        self.news.append(attempt)
        if (decision := self._decide(attempt)) != Decision.PENDING:
            self.decide(decision, attempt.volume)

    def decide(self, decision: Decision, index: int) -> None:
        """Decide the attempt that waits; `index` is the last volume that has come.

        Raises
        ------
        DecoderError
            The decoder cannot be carried to today's grid.
        """
        assert self._placing is not None
        attempt = self._placing.decide(decision, index)
        self.news.append(attempt)
        if decision != Decision.ACCEPTED:
            return
        decoder = self._placing.decoder()
        before = None if self._placed is None else self._placed[0]
        self._placed = decoder, attempt.placement.matrix
        self.lay = decoder, self._placing.place
        if before is None or decoder is not before or self._scorer is None or self.quality is None:
            if self._scorer is not None:
                self._first, self.renewed = self._begins, True
            self._scorer, self.quality = self._make_scorer(decoder, self._placing.place), Quality(decoder)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if isinstance(each, Aligned):
                self.quality.add(each.data)
                self.learn(each)
            else:
                self.onset(*each)

    def decide_by(self, decide: Decide) -> None:
        """Decide attempts from now on otherwise."""
        self._decide = decide

    def _make_scorer(self, decoder: Decoder, place: NDArray[np.float64]) -> Scorer | SeveralScorer:
        settings = self._config.decoder
        self._compartments = compartments(settings, decoder, place, self._tr_s)
        return scorer_of(
            decoder,
            self._tr_s,
            method=cast("Method", settings.method),
            fwhm_mm=settings.fwhm_mm,
            duration_s=self._config.presentation.image_s,
            first_s=settings.first_score_s,
            motion_terms=settings.motion_terms,
            drift=cast("Drift", settings.drift),
            spike_mm=settings.spike_mm,
            nuisance_terms=(*(() if self._compartments is None else self._compartments.sizes), *self._physio),
            hrf=cast("Shape", settings.hrf),
            delay_s=settings.delay_s,
            half_window_tr=settings.half_window_tr,
        )

    @property
    def decoder(self) -> Decoder | None:
        """The decoder on today's grid; None until it is placed."""
        return self._placed[0] if self._placed is not None and self.placed else None

    # --- scores ---------------------------------------------------------------------------------------------------------------------

    @property
    def left_out(self) -> int:
        """Number of volumes that scores leave out: see :class:`rtevo.decode.Scorer`."""
        return 0 if self._scorer is None else len(self._scorer.left_out)

    def scores(self, final: bool = False) -> tuple[list[Score], float]:
        """Return the scores that are ready, and how reliable all are; `final`: no volume follows."""
        if self._scorer is None:
            return [], np.nan
        scores = self._scorer.ready(final=final)
        reliability = self._scorer.reliability() if scores else np.nan
        moved = [
            replace(s, onset_s=s.onset_s + self._first * self._tr_s, last_volume_index=s.last_volume_index + self._first) for s in scores
        ]
        return moved if self._first else scores, reliability

    @property
    def response(self) -> Response | None:
        """Estimate of the response's lag and width; None if there is none."""
        return None if self._scorer is None else self._scorer.response()

    def interrupt(self) -> None:
        """The scanner's run is over and another one follows: what was learnt of the noise and the responses stays, the level is new.

        The next part is placed anew. On the same grid the learnt values remain; on another one the decoder starts anew.
        """
        self.close()
        self._guide = self._guide if self.guide is None else self.guide
        self._placing, self._previous = None, None
        self._waiting.clear()
        if self._scorer is not None and self.quality is not None:
            self._scorer.interrupt()
            self.quality.interrupt()
        if self._compartments is not None:
            self._compartments.interrupt()

    def learnt(self) -> Learnt:
        """Return what the next run of the visit may take over of noise and responses; no volume of this one follows."""
        if self._scorer is None:
            return {}
        self._scorer.interrupt()
        return self._scorer.learnt()

    def close(self) -> None:
        """End the realigner's threads."""
        if self._placing is not None:
            self._placing.close()


def compartments(settings: settings_of.Decoder, decoder: Decoder, place: NDArray[np.float64], tr_s: float) -> Compartments | None:
    """Return what makes a session's nuisance terms of its volumes; None where it has none.

    Parameters
    ----------
    settings : rtevo.config.Decoder
    decoder : Decoder
        On today's grid.
    place : ndarray, float64 (4, 4)
        The world of the decoder as it was made to its own.
    tr_s : float
        Repetition time, s.

    Raises
    ------
    DecoderError
        A mask cannot be read, or a compartment has too few voxels.
    """
    if not settings.nuisance or settings.method == "peak":
        return None
    from rtevo.decode import read_map
    from rtevo.decode.compartments import Compartments, compartments_of, placed_mask

    masks = compartments_of(decoder.reference, decoder.grid)
    for name, path in (("white_matter", settings.white_matter_mask), ("csf", settings.csf_mask)):
        if path:
            given, grid = read_map(Path(path))
            masks[name] = placed_mask(given, grid.affine, place, decoder.grid)
    return Compartments(settings.nuisance, masks, decoder.weights != 0, tr_s)


def accept_good(attempt: Attempt) -> Decision:
    """Accept a placement that is good; the others wait for a decision."""
    return Decision.ACCEPTED if attempt.placement.verdict == Verdict.GOOD else Decision.PENDING
