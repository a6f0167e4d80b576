"""Volumes and onsets in, scores out.

What happens to a volume, in order: smoothing, mask, removal of drift and motion, standardisation of each voxel, mean over the volumes
around the peak of the response, correlation with the weight map. Drift and motion are removed by a linear fit to all volumes so far,
and a voxel's standard deviation is that of its residual over all volumes so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.decode.folder import Decoder
from rtevo.decode.running import RunningFit
from rtevo.errors import GeometryError
from rtevo.kernels.smooth import smooth

__all__ = ["Score", "Scorer", "pearson", "response_window"]

SPHERE_MM = 50.0
"""Radius at which a rotation is counted in mm: Power et al. 2012, doi:10.1016/j.neuroimage.2011.10.018."""
LATE_S = 30.0
"""An onset reported up to this long after its window has passed is still scored."""


@dataclass(frozen=True)
class Score:
    """The response to one image.

    Parameters
    ----------
    key : tuple of int, (2,)
        Generation and candidate.
    onset_s : float
        From the first volume.
    score : float
        Correlation with the weight map, -1 to 1; NaN where it could not be measured.
    score_se : float
        Standard error, NaN where the method gives none.
    volumes_used : int
        Volumes of the window that were there.
    last_volume_index : int
        The last one of them, -1 where there was none.
    revision : int
        0 = first value; later values replace it.
    """

    key: tuple[int, int]
    onset_s: float
    score: float
    score_se: float
    volumes_used: int
    last_volume_index: int
    revision: int = 0


def response_window(onset_s: float, tr_s: float, delay_s: float = 6.0, half_window_tr: int = 1) -> range:
    """Say which volumes measure the response to an image.

    Volume i is acquired from ``i * tr_s``. The window's centre is the volume whose start is nearest to ``onset_s + delay_s`` (at half
    a TR the later one); the window holds it and `half_window_tr` volumes on each side.

    Parameters
    ----------
    onset_s : float
        From the start of the first volume.
    tr_s : float
        Repetition time, seconds.
    delay_s : float
        From onset to the peak of the response, seconds.
    half_window_tr : int
        Volumes on each side.

    Returns
    -------
    range
        Volume indices; may begin before 0.
    """
    centre = math.floor((onset_s + delay_s) / tr_s + 0.5)
    return range(centre - half_window_tr, centre + half_window_tr + 1)


class Scorer:
    """Score of each image, from aligned volumes and onsets as they come.

    Volumes are added in run order, missing ones as None; an image is scored the moment the last volume of its window has been added, on
    all volumes up to that one, so the scores do not depend on when they are asked for. What is taken out of each voxel is a constant,
    a linear drift and the six motion parameters. Those have a light ridge (`ridge`): a prior of ``1 / sqrt(ridge)`` noise standard
    deviations per minute of drift and per millimetre of motion (radians times 50 mm). A plain fit would explain the first volumes
    entirely, responses included; this one takes out what the volumes so far give evidence for and tends to the plain fit as they grow.

    Parameters
    ----------
    decoder : Decoder
        Mask and weight map.
    tr_s : float
        Repetition time, seconds, > 0. Volume i is acquired from ``i * tr_s``.
    fwhm_mm : float
        Width of the smoothing, mm; 0: none.
    delay_s : float
        From onset to the middle of the window, seconds.
    half_window_tr : int
        Volumes on each side of it, see :func:`response_window`.
    ridge : float
        See above; 0 is the plain least-squares fit.

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
        fwhm_mm: float = 4.0,
        delay_s: float = 6.0,
        half_window_tr: int = 1,
        ridge: float = 1.0,
    ) -> None:
        for name, value, ok in (
            ("tr_s", tr_s, tr_s > 0),
            ("fwhm_mm", fwhm_mm, fwhm_mm >= 0),
            ("delay_s", delay_s, delay_s >= 0),
            ("half_window_tr", half_window_tr, half_window_tr >= 0),
            ("ridge", ridge, ridge >= 0),
        ):
            if not (math.isfinite(value) and ok):
                raise ValueError(f"{name}: expected a finite number {'>' if name == 'tr_s' else '>='} 0, got {value}")
        self._decoder = decoder
        self._tr_s, self._fwhm_mm, self._delay_s, self._half = float(tr_s), float(fwhm_mm), float(delay_s), int(half_window_tr)
        self._weights = decoder.weights[decoder.mask].astype(np.float64)
        self._fit = RunningFit(len(self._weights), np.full(7, ridge))
        self._kept = math.ceil((LATE_S + delay_s) / tr_s) + 2 * half_window_tr + 1
        self._recent: dict[int, tuple[NDArray[np.float64], NDArray[np.float32]]] = {}
        self._seen: set[int] = set()
        self._last = -1
        self._pending: dict[tuple[int, int], float] = {}
        self._keys: set[tuple[int, int]] = set()
        self._done: list[Score] = []
        self.left_out: list[int] = []

    def add_volume(self, index: int, volume: NDArray[Any] | None, motion: ArrayLike) -> None:
        """Add one volume.

        Parameters
        ----------
        index : int
            Position in the run, 0 = first. Usually the next one; a volume that comes late still joins the fit, and the windows that
            are open. Indices that were skipped when a window ends are missing.
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
        parameters = np.asarray(motion, np.float64)
        if parameters.shape != (6,):
            raise ValueError(f"motion of volume {index}: expected 6 parameters, got shape {parameters.shape}")
        if index < 0 or index in self._seen:
            raise ValueError(f"volume {index}: expected an index >= 0 that was not added before")
        values = None if volume is None or not np.isfinite(parameters).all() else self._values(index, volume)
        self._seen.add(index)
        self._last = max(self._last, index)
        if values is None:
            self.left_out.append(index)
        else:
            terms = np.concatenate([[index * self._tr_s / 60.0], parameters * ([1.0] * 3 + [SPHERE_MM] * 3)])
            self._fit.add(terms, values)
            self._recent[index] = (terms, values)
        for old in [i for i in self._recent if i < self._last - self._kept]:
            del self._recent[old]
        self._settle()

    def add_onset(self, key: tuple[int, int], onset_s: float) -> None:
        """Add an image that was shown.

        Parameters
        ----------
        key : tuple of int, (2,)
            Generation and candidate.
        onset_s : float
            From the start of the first volume, seconds. An onset reported more than ``LATE_S`` after its window has no score.

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
        self._pending[key] = float(onset_s)
        self._settle()

    def ready(self, final: bool = False) -> list[Score]:
        """Hand out the scores that have become ready since the last call, each once, in order of their onsets.

        Parameters
        ----------
        final : bool
            No volume will follow: score all other images too, on what there is of their windows, NaN where that is nothing.
        """
        if final:
            self._settle(everything=True)
        done, self._done = self._done, []
        return sorted(done, key=lambda score: (score.onset_s, score.key))

    def _settle(self, everything: bool = False) -> None:
        """Score the images whose windows have passed."""
        for key, onset_s in list(self._pending.items()):
            window = response_window(onset_s, self._tr_s, self._delay_s, self._half)
            if everything or window[-1] <= self._last:
                del self._pending[key]
                self._done.append(self._score(key, onset_s, window))

    def _score(self, key: tuple[int, int], onset_s: float, window: Sequence[int]) -> Score:
        """Score one image on the volumes of its window that are there."""
        used = [i for i in window if i in self._recent]
        if not used:
            return Score(key, onset_s, math.nan, math.nan, 0, -1)
        terms: NDArray[np.float64] = np.mean([self._recent[i][0] for i in used], axis=0, dtype=np.float64)
        values: NDArray[np.float64] = np.mean([self._recent[i][1] for i in used], axis=0, dtype=np.float64)
        pattern = self._fit.residual(terms, values)
        sd = self._fit.sd()
        varies = sd > 0
        score = pearson(pattern[varies] / sd[varies], self._weights[varies])
        return Score(key, onset_s, score, math.nan, len(used), used[-1])

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


def pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson correlation of two series, NaN where one of them does not vary."""
    if len(a) < 2:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return min(1.0, max(-1.0, float((a * b).sum()) / norm)) if norm > 0 else math.nan
