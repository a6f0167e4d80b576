"""Volumes and onsets in, scores out.

What happens to a volume, in order: smoothing, mask, and then one of two methods. ``peak`` (:mod:`rtevo.decode.peak`): drift and motion
are removed by a causal fit, each voxel is standardised, and the mean pattern around the peak of the response is correlated with the
weight map. ``deconvolve`` (:mod:`rtevo.decode.separate`): the volume is projected on the map and overlapping responses are taken apart.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.decode.deconvolve import Grid
from rtevo.decode.folder import Decoder
from rtevo.decode.peak import Peak
from rtevo.decode.score import Score
from rtevo.decode.separate import Separate
from rtevo.errors import GeometryError
from rtevo.kernels.smooth import smooth

__all__ = ["DRIFT_SD", "METHODS", "MOTION_SD", "Method", "Scorer", "motion_in_mm", "penalties"]

SPHERE_MM = 50.0
"""Radius at which a rotation is counted in mm: Power et al. 2012, doi:10.1016/j.neuroimage.2011.10.018."""

DRIFT_SD, MOTION_SD = 0.1, 1.0
"""Expected drift a minute and effect of a mm of motion, in noise standard deviations. On data made from a real localizer run (six kinds of
block, told apart volume by volume, causally) these gave 0.86 and 0.88 correct (two kinds of noise), a running mean 0.72 and 0.84, plain
least squares under 0.5; with more, responses began to be eaten. Where there is no drift at all they cost 0.02 of the correlation."""

Method = Literal["peak", "deconvolve"]
METHODS: tuple[Method, ...] = ("peak", "deconvolve")


class Scorer:
    """Score of each image, from aligned volumes and onsets as they come.

    Volumes are added in run order, missing ones as None. What comes out depends on the volumes and onsets alone, not on when it is
    asked for.

    With ``method="peak"`` an image is scored once, the moment the last volume of its window has been added, on all volumes up to that
    one. A constant, a linear drift and the six motion parameters are taken out of each voxel. Drift and motion have a light ridge, which
    is a prior for their size (`drift_sd`, `motion_sd`): a plain fit would explain the first volumes entirely, responses included;
    this one takes out what the volumes so far give evidence for and tends to the plain fit as they grow.

    With ``method="deconvolve"`` an image is scored with its standard error when 8 s of its response have been seen, and again when the
    score has improved, until 16 s; its unit is the noise of a voxel. Neighbouring images' responses are separated.

    Parameters
    ----------
    decoder : Decoder
        Mask and weight map.
    tr_s : float
        Repetition time, seconds, > 0. Volume i is acquired from ``i * tr_s``.
    method : {"peak", "deconvolve"}
        See above.
    fwhm_mm : float
        Width of the smoothing, mm; 0: none.
    delay_s : float
        From onset to the middle of the window, seconds (peak).
    half_window_tr : int
        Volumes on each side of it, see :func:`rtevo.decode.peak.response_window` (peak).
    duration_s : float
        How long an image is shown, seconds (deconvolve).
    drift_sd : float
        Expected drift, noise standard deviations per minute; infinite: the plain least-squares fit.
    motion_sd : float
        Expected effect of motion, noise standard deviations per mm (a radian counts as 50 mm); infinite: the plain least-squares fit.

    Attributes
    ----------
    left_out : list of int
        Indices of volumes in neither fit nor windows: missing, not aligned, or with a number in the mask that is not finite.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    def __init__(
        self,
        decoder: Decoder,
        tr_s: float,
        *,
        method: Method = "peak",
        fwhm_mm: float = 4.0,
        delay_s: float = 6.0,
        half_window_tr: int = 1,
        duration_s: float = 3.0,
        drift_sd: float = DRIFT_SD,
        motion_sd: float = MOTION_SD,
        grid: Grid | None = None,
    ) -> None:
        for name, value in (("tr_s", tr_s), ("duration_s", duration_s), ("drift_sd", drift_sd), ("motion_sd", motion_sd)):
            if not value > 0 or (name in ("tr_s", "duration_s") and not math.isfinite(value)):
                raise ValueError(f"{name}: expected a number > 0, got {value}")
        for name, value in (("fwhm_mm", fwhm_mm), ("delay_s", delay_s), ("half_window_tr", half_window_tr)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        self._decoder = decoder
        self._fwhm_mm = float(fwhm_mm)
        weights = decoder.weights[decoder.mask].astype(np.float64)
        penalty = penalties(drift_sd, motion_sd)
        self._method: Peak | Separate
        if method == "peak":
            self._method = Peak(weights, tr_s, delay_s, half_window_tr, penalty)
        else:
            self._method = Separate(weights, tr_s, duration_s, penalty, known=self._known(), grid=grid)
        self._seen: set[int] = set()
        self._keys: set[tuple[int, int]] = set()
        self._done: list[Score] = []
        self.left_out: list[int] = []

    def add_volume(self, index: int, volume: NDArray[Any] | None, motion: ArrayLike) -> None:
        """Add one volume.

        Parameters
        ----------
        index : int
            Position in the run, 0 = first. Usually the next one. For ``peak`` a volume that comes late still joins the fit and the windows
            that are open; for ``deconvolve`` it is not used. Indices that were skipped when a window ends are missing.
        volume : ndarray (X, Y, Z), or None
            Aligned volume on the decoder's grid; None: missing.
        motion : array-like of float, (6,)
            Of this volume, see ``records.MOTION_COLUMNS`` (mm, rad); NaN: not aligned.

        Raises
        ------
        GeometryError
            The volume has another shape than the decoder.
        ValueError
            The index was added before, or `motion` has another shape.
        """
        index = int(index)
        if np.shape(motion) != (6,):
            raise ValueError(f"motion of volume {index}: expected 6 parameters, got shape {np.shape(motion)}")
        motion_mm = motion_in_mm(motion)
        if index < 0 or index in self._seen:
            raise ValueError(f"volume {index}: expected an index >= 0 that was not added before")
        values = None if volume is None or not np.isfinite(motion_mm).all() else self._values(index, volume)
        self._seen.add(index)
        if values is None:
            self.left_out.append(index)
        self._done += self._method.add_volume(index, motion_mm, values)

    def add_onset(self, key: tuple[int, int], onset_s: float) -> None:
        """Add an image that was shown, when it appears: before the volumes that its response reaches.

        Parameters
        ----------
        key : tuple of int, (2,)
            Generation and candidate.
        onset_s : float
            From the start of the first volume, seconds. With ``peak``, an onset reported more than 30 s after its window has no score.

        Raises
        ------
        ValueError
            The key was added before, or the onset is not finite.
        """
        if key in self._keys:
            raise ValueError(f"onset of {key}: expected each image once, got it again")
        if not math.isfinite(onset_s):
            raise ValueError(f"onset of {key}: expected a finite number of seconds, got {onset_s}")
        self._keys.add(key)
        self._done += self._method.add_onset(key, float(onset_s))

    def ready(self, final: bool = False) -> list[Score]:
        """Hand out the scores that have become ready since the last call, each once, in order of their onsets.

        Parameters
        ----------
        final : bool
            No volume will follow: score all other images too, on what there is of their responses, NaN where that is nothing.
        """
        if final:
            self._done += self._method.settle(final=True)
        done, self._done = self._done, []
        return sorted(done, key=lambda score: (score.onset_s, score.key, score.revision))

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Noise of each voxel and the smoothed reference, where the decoder brings them."""
        decoder = self._decoder
        if decoder.noise_sd is None:
            return None
        reference = self._values(-1, decoder.reference)
        return None if reference is None else (decoder.noise_sd[decoder.mask].astype(np.float64), reference.astype(np.float64))

    def _values(self, index: int, volume: NDArray[Any]) -> NDArray[np.float32] | None:
        """Smooth a volume and take the mask's voxels; None where they are not all finite."""
        grid, mask = self._decoder.grid, self._decoder.mask
        if volume.shape != grid.shape:
            raise GeometryError(f"volume {index}: expected the decoder's shape {grid.shape}, found {volume.shape}")
        finite = np.isfinite(volume)
        if not finite.all():
            if not finite[mask].all():
                return None
            volume = np.where(finite, volume, 0)
        if self._fwhm_mm > 0:
            volume = smooth(volume, grid.voxel_size_mm, self._fwhm_mm)
        return volume[mask].astype(np.float32)


def penalties(drift_sd: float, motion_sd: float) -> NDArray[np.float64]:
    """Ridge penalties of drift and the six motion terms, float64 (7,), from their expected sizes."""
    return np.array([drift_sd] + [motion_sd] * 6, np.float64) ** -2.0


def motion_in_mm(motion: ArrayLike) -> NDArray[np.float64]:
    """Turn motion parameters (..., 6) in mm and rad into mm, on a sphere of 50 mm."""
    return np.asarray(motion, np.float64) * ([1.0] * 3 + [SPHERE_MM] * 3)
