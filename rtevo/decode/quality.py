"""Quality of the incoming data: DVARS, temporal signal-to-noise ratio, and agreement with the decoder."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.folder import Decoder

__all__ = ["Quality", "differences", "whole"]

_FEWEST = 10  # volumes from which on a tSNR is reported
_GAIN = 2.0  # the signal may be this many times the reference's, or this part of it
_AWAY_MM = 10.0
_TR = 0.01


class Masked(Protocol):
    """A reference with a mask: a decoder, or of a run without one its first volume and the brain in it."""

    @property
    def reference(self) -> NDArray[np.float32]:
        """Volume that others are aligned to, (X, Y, Z)."""
        ...

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Voxels that are measured."""
        ...


class Quality:
    """Running measures of the aligned volumes inside the decoder's mask. Costs the same at every volume.

    Parameters
    ----------
    decoder : Decoder, or what has a reference and a mask
    """

    def __init__(self, decoder: Masked) -> None:
        self._mask = decoder.mask
        reference = decoder.reference[decoder.mask].astype(np.float64)
        self._reference = float(np.median(reference[reference > 0])) if (reference > 0).any() else math.nan
        self._last: NDArray[np.float64] | None = None
        self._count = 0
        self._mean = np.zeros(len(reference))
        self._squares = np.zeros(len(reference))

    def add(self, volume: NDArray[Any] | None) -> tuple[float, float]:
        """Add an aligned volume, None if there is none.

        Returns
        -------
        dvars : float
            Root mean square change since the volume before, percent of the mean signal (J. D. Power et al. 2012,
            doi:10.1016/j.neuroimage.2011.10.018); NaN where either is not there.
        tsnr : float
            Median over the voxels of mean over standard deviation (n - 1) of all volumes so far; NaN before the tenth.
        """
        last, self._last = self._last, None
        if volume is None:
            return math.nan, self._tsnr()
        values = volume[self._mask].astype(np.float64)
        if not np.isfinite(values).all():
            return math.nan, self._tsnr()
        self._last = values
        self._count += 1
        step = values - self._mean
        self._mean += step / self._count
        self._squares += step * (values - self._mean)
        level = float(self._mean.mean())
        dvars = math.nan if last is None or not level > 0 else 100.0 * math.sqrt(float(((values - last) ** 2).mean())) / level
        return dvars, self._tsnr()

    def interrupt(self) -> None:
        """The next volume is another run's first: there is no change to it."""
        self._last = None

    def gain(self) -> float:
        """Signal level so far, as a multiple of the reference's."""
        return float(np.median(self._mean)) / self._reference if self._count else math.nan

    def _tsnr(self) -> float:
        if self._count < _FEWEST:
            return math.nan
        sd = np.sqrt(self._squares / (self._count - 1))
        varies = sd > 0
        return float(np.median(self._mean[varies] / sd[varies])) if varies.any() else math.nan


def differences(decoder: Decoder, tr_s: float, fwhm_mm: float, gain: float, motion: NDArray[np.float64]) -> list[str]:
    """Return how the incoming run differs from the decoder's: repetition time, smoothing, signal level, place of the head.

    Parameters
    ----------
    decoder : Decoder
    tr_s, fwhm_mm : float
        Of the session.
    gain : float
        See :meth:`Quality.gain`.
    motion : ndarray, float64 (6,)
        Of the first volume against the reference, mm and rad.
    """
    found, settings = [], decoder.settings
    trained_s, smoothed_mm = settings.get("tr_s"), settings.get("fwhm_mm")
    if isinstance(trained_s, (int, float)) and abs(tr_s / trained_s - 1) > _TR:
        found.append(f"the decoder was made at a repetition time of {trained_s:g} s, this run has {tr_s:g} s")
    if isinstance(smoothed_mm, (int, float)) and abs(fwhm_mm - smoothed_mm) > 0.05:
        found.append(f"the decoder was made with a smoothing of {smoothed_mm:g} mm, this session has [decoder] fwhm_mm = {fwhm_mm:g}")
    if not 1 / _GAIN <= gain <= _GAIN:
        found.append(f"the signal is {gain:.3g} times that of the decoder's reference")
    shift_mm = float(np.linalg.norm(motion[:3]))
    if shift_mm > _AWAY_MM:
        found.append(f"the head lies {shift_mm:.0f} mm from its position in the decoder's reference")
    return found


def whole(volume: NDArray[Any], mask: NDArray[np.bool_]) -> bool:
    """Return whether a volume, as received, is finite in every voxel of the mask, in each echo (realignment replaces NaN by 0)."""
    return bool(np.isfinite(volume.sum(dtype=np.float64)) or np.isfinite(volume[..., mask]).all())
