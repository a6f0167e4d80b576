"""From volumes and onsets to motion and scores: the same for a session that runs, is taken up again, or is computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rtevo.config import Config
from rtevo.decode import Decoder, Quality, Score, Scorer, whole
from rtevo.errors import DataError
from rtevo.realign import Realigner, framewise_displacement
from rtevo.record import parts, volume_path
from rtevo.records import EventKind, VolumeFlag

if TYPE_CHECKING:
    from rtevo.decode import Method
    from rtevo.decode.hrf import Shape
    from rtevo.decode.nuisance import Drift

__all__ = ["Again", "Aligned", "Decoding", "ended_well"]


@dataclass(frozen=True, eq=False)
class Aligned:
    """What is known of one volume.

    Parameters
    ----------
    index, flags : int
    motion : ndarray, float64 (6,)
        NaN where it could not be aligned.
    displacement_mm, dvars_percent, tsnr : float
        See `rtevo.records.aligned_dtype`.
    data : ndarray, float32 (X, Y, Z), or None
        Aligned; None where it cannot be scored.
    """

    index: int
    flags: int
    motion: NDArray[np.float64]
    displacement_mm: float
    dvars_percent: float
    tsnr: float
    data: NDArray[np.float32] | None


class Decoding:
    """State of decoding between volumes.

    Parameters
    ----------
    config : Config
    decoder : Decoder
    tr_s : float
        Repetition time, s.
    first : int
        Number of the first volume that it is given.
    """

    def __init__(self, config: Config, decoder: Decoder, tr_s: float, first: int = 0) -> None:
        settings = config.decoder
        self._decoder, self._first, self._tr_s, self._spike_mm = decoder, first, tr_s, settings.spike_mm
        self._realigner = Realigner(decoder.reference, decoder.grid.affine, threads=settings.threads)
        self._scorer = Scorer(
            decoder,
            tr_s,
            method=cast("Method", settings.method),
            fwhm_mm=settings.fwhm_mm,
            duration_s=config.presentation.image_s,
            first_s=settings.first_score_s,
            motion_terms=settings.motion_terms,
            drift=cast("Drift", settings.drift),
            spike_mm=settings.spike_mm,
            hrf=cast("Shape", settings.hrf),
            delay_s=settings.delay_s,
            half_window_tr=settings.half_window_tr,
        )
        self.quality = Quality(decoder)
        self._previous: NDArray[np.float64] | None = None

    def onset(self, key: tuple[int, int], onset_s: float) -> None:
        """Take an image that was shown, s from the session's first volume."""
        self._scorer.add_onset(key, onset_s - self._first * self._tr_s)

    def align(self, index: int, volume: NDArray[Any] | None, flags: int) -> Aligned:
        """Align a volume; None where it is missing."""
        motion, data, displacement = np.full(6, np.nan), None, np.nan
        if volume is not None:
            estimate = self._realigner.estimate(volume)
            if estimate.converged:
                motion = np.asarray(estimate.params, np.float64)
                data = self._realigner.reslice(volume, estimate) if whole(volume, self._decoder.mask) else None
            else:
                flags |= VolumeFlag.UNALIGNED
        if flags & VolumeFlag.LATE:  # those after it came before: it is no step from them
            return Aligned(index, int(flags), motion, np.nan, np.nan, np.nan, data)
        if data is not None:
            if self._previous is not None:
                displacement = float(framewise_displacement(np.stack([self._previous, motion]))[1])
            self._previous = motion
        if displacement > self._spike_mm:
            flags |= VolumeFlag.SPIKE
        dvars, tsnr = self.quality.add(data)
        return Aligned(index, int(flags), motion, displacement, dvars, tsnr, data)

    def learn(self, aligned: Aligned) -> None:
        """Take an aligned volume into the scores."""
        self._scorer.add_volume(aligned.index - self._first, aligned.data, aligned.motion)

    @property
    def left_out(self) -> int:
        """Number of volumes that scores leave out: see :class:`rtevo.decode.Scorer`."""
        return len(self._scorer.left_out)

    def scores(self, final: bool = False) -> tuple[list[Score], float]:
        """Give the scores that are ready, and how reliable all are; `final`: no volume follows."""
        scores = self._scorer.ready(final=final)
        reliability = self._scorer.reliability() if scores else np.nan
        moved = [
            replace(s, onset_s=s.onset_s + self._first * self._tr_s, last_volume_index=s.last_volume_index + self._first) for s in scores
        ]
        return moved if self._first else scores, reliability

    def interrupt(self) -> None:
        """The scanner's run is over and another one follows: what was learnt of the noise and the responses stays, the level is new."""
        self._scorer.interrupt()
        self.quality.interrupt()
        self._previous = None

    def close(self) -> None:
        """End the realigner's threads."""
        self._realigner.close()


def ended_well(part: list[dict[str, Any]]) -> bool:
    """Whether a part of a session was ended in good order, so that its last images were scored with what there was of them."""
    return part[-1]["type"] == "end" and part[-1]["status"] in ("completed", "stopped")


class Again:
    """Decode recorded parts of a session again, from the volumes that were kept.

    Parameters
    ----------
    out : Path
        The session's folder.
    log : list of dict
        Records of the parts; the first one is where the decoder was new.
    make : callable
        Called with the number of a part's first volume, gives a fresh `Decoding`.
    kept : bool
        Another part follows in which the decoder's state is kept: the last images of this one get their last word.

    Attributes
    ----------
    decoding : Decoding
        As it stands.
    """

    def __init__(self, out: Path, log: list[dict[str, Any]], make: Callable[[int], Decoding], kept: bool = False) -> None:
        self._out, self._parts, self._make, self._kept = out, parts(log), make, kept
        self.decoding = make(self._parts[0][0].get("first_volume", 0))

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
                self.decoding = self._make(start["first_volume"])
            elif number:
                self.decoding.interrupt()
            trigger_ns, offset_s = None, start.get("first_volume", 0) * start["tr_s"]
            for record in part:
                if record["type"] == "events" and record["kind"] == EventKind.TRIGGER and trigger_ns is None:
                    trigger_ns = record["t_ns"]
                elif record["type"] == "events" and record["kind"] == EventKind.ONSET and trigger_ns is not None:
                    onset_s = (record["t_ns"] - trigger_ns) / 1e9 + offset_s
                    self.decoding.onset((record["generation"], record["candidate"]), onset_s)
                elif record["type"] == "volumes":
                    aligned = self.decoding.align(record["index"], self._load(record), record["flags"])
                    self.decoding.learn(aligned)
                    yield record, aligned, *self.decoding.scores()
            follows = self._parts[number + 1][0]["decoder_state"] == "kept" if number + 1 < len(self._parts) else self._kept
            if ended_well(part) or follows:
                yield part[-1], None, *self.decoding.scores(final=True)

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
