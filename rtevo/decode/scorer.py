"""Volumes and onsets in, scores out.

What happens to a volume, in order: smoothing, mask, and then one of three methods. ``deconvolve`` (:mod:`rtevo.decode.separate`): the
volume is projected on the map and overlapping responses are taken apart, drift and motion with them. ``pattern``: so are the voxels, and
an image's pattern is correlated with the map. ``peak`` (:mod:`rtevo.decode.peak`): each voxel is standardised against all volumes so far,
and the mean pattern around the peak of the response is correlated with the map, as if images did not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.decode.folder import Decoder
from rtevo.decode.grid import Grid, Response, ResponsePrior
from rtevo.decode.hrf import SHAPES, Shape
from rtevo.decode.learnt import Learnt
from rtevo.decode.nuisance import SPIKE_MM, Drift, Nuisance, motion_in_mm, penalties
from rtevo.decode.peak import Peak
from rtevo.decode.score import Score
from rtevo.decode.separate import FIRST_S, Separate, Used
from rtevo.errors import DecoderError, GeometryError
from rtevo.kernels.smooth import smooth

__all__ = ["METHODS", "Method", "Scorer"]

Method = Literal["deconvolve", "pattern", "peak"]
METHODS: tuple[Method, ...] = ("deconvolve", "pattern", "peak")


class Scorer:
    """Score of each image, from aligned volumes and onsets as they come.

    Volumes are added in run order, missing ones as None. What comes out depends on the volumes and onsets alone, not on when it is
    asked for.

    With ``method="deconvolve"`` an image is scored with its standard error when its response has been seen (`first_s`), and again whenever
    the score has improved; its unit is the noise of a voxel, or of the map's projection where the decoder knows it (`unit`). Neighbouring
    images' responses are separated. With ``method="pattern"`` so are their patterns, and the score is a correlation.

    With ``method="peak"`` an image is scored once, the moment the last volume of its window has been added, against the mean and the
    standard deviation of all volumes up to that one. Where `drift_sd` or `motion_sd` is given, a linear drift or the six motion parameters
    are taken out of each voxel, with a ridge that is a prior for their size: what the volumes so far give evidence for goes, tending to the
    plain fit as they grow. By default nothing is: the fit cannot know that it explains responses.

    Parameters
    ----------
    decoder : Decoder
        Mask and weight map.
    tr_s : float
        Repetition time, seconds, > 0. Volume i is acquired from ``i * tr_s``.
    method : {"deconvolve", "pattern", "peak"}
        See above.
    fwhm_mm : float
        Width of the smoothing, mm; 0: none.
    duration_s : float
        How long an image is shown, seconds (not for peak, nor are those until `grid`).
    first_s : float
        A score is published when the response has been seen until so long after the onset.
    motion_terms, drift, spike_mm
        See :class:`rtevo.decode.nuisance.Nuisance`.
    nuisance_terms : sequence of int
        Sizes of groups of other terms, which come with the volumes; the evidence chooses among them.
    hrf : {"canonical", "derivatives", "fir"}
        See :func:`rtevo.decode.hrf.basis`.
    grid : Grid, optional
        Parameters that the deconvolution considers. Default: the usual ones, around the response that the decoder brings, where it does.
    delay_s : float
        From onset to the middle of the window, seconds (peak, as the rest).
    half_window_tr : int
        Volumes on each side of it, see :func:`rtevo.decode.peak.response_window`.
    drift_sd : float
        Expected drift, noise standard deviations per minute; 0: none; infinite: the plain least-squares fit.
    motion_sd : float
        Expected effect of motion, noise standard deviations per mm (a radian counts as 50 mm); 0: none; infinite: the plain fit.

    Attributes
    ----------
    left_out : list of int
        Indices of volumes in neither fit nor windows: missing, not aligned, with a number in the mask that is not finite, or (deconvolve,
        pattern) six standard deviations from what the volumes before predict.

    Raises
    ------
    ValueError
        A parameter is out of range.
    DecoderError
        The decoder's unit is not a number > 0, or its response is none.
    """

    def __init__(
        self,
        decoder: Decoder,
        tr_s: float,
        *,
        method: Method = "deconvolve",
        fwhm_mm: float = 4.0,
        duration_s: float = 3.0,
        first_s: float = FIRST_S,
        motion_terms: int = 6,
        drift: Drift = "walk",
        spike_mm: float = SPIKE_MM,
        nuisance_terms: Sequence[int] = (),
        hrf: Shape = "canonical",
        grid: Grid | None = None,
        delay_s: float = 6.0,
        half_window_tr: int = 1,
        drift_sd: float = 0.0,
        motion_sd: float = 0.0,
    ) -> None:
        for name, value in (("tr_s", tr_s), ("duration_s", duration_s), ("first_s", first_s)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a number > 0, got {value}")
        for name, value in (("fwhm_mm", fwhm_mm), ("delay_s", delay_s), ("half_window_tr", half_window_tr)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        for name, value in (("drift_sd", drift_sd), ("motion_sd", motion_sd)):
            if not value >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}")
        for name, text, known in (("method", method, METHODS), ("hrf", hrf, SHAPES)):
            if text not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {text!r}")
        self._decoder = decoder
        self._fwhm_mm = float(fwhm_mm)
        weights = decoder.weights[decoder.mask].astype(np.float64)
        self.left_out: list[int] = []
        grid = grid or _grid(decoder)
        self._undershoot = grid.undershoot
        self._method: Peak | Separate
        if method == "peak":
            self._method = Peak(weights, tr_s, delay_s, half_window_tr, penalties(drift_sd, motion_sd))
        else:
            nuisance = Nuisance(tr_s, motion_terms, drift, spike_mm, nuisance_terms)
            self._method = Separate(
                weights, tr_s, duration_s, nuisance, first_s=first_s, pattern=method == "pattern", shape=hrf, known=self._known(),
                grid=grid, left_out=self.left_out, unit=_unit(decoder),
            )  # fmt: skip
        self._seen: set[int] = set()  # those that came with data
        self._uses_late = method == "peak"
        self._keys: set[tuple[int, int]] = set()
        self._done: list[Score] = []

    def add_volume(self, index: int, volume: NDArray[Any] | None, motion: ArrayLike, others: ArrayLike = ()) -> None:
        """Add one volume.

        Parameters
        ----------
        index : int
            Position in the run, 0 = first. Usually the next one. One that was added as missing may come later after all: for ``peak`` it
            still joins the fit and the windows that are open; for ``deconvolve`` and ``pattern`` it is not used. Indices that were skipped
            when a window ends are missing.
        volume : ndarray (X, Y, Z), or None
            Aligned volume on the decoder's grid; None: missing.
        motion : array-like of float, (6,)
            Of this volume, see ``records.MOTION_COLUMNS`` (mm, rad); NaN: not aligned.
        others : array-like of float, (sum of nuisance_terms,) or empty
            Nuisance terms of this volume, see :meth:`rtevo.decode.nuisance.Nuisance.terms` (not peak).

        Raises
        ------
        GeometryError
            The volume has another shape than the decoder.
        ValueError
            The index was added with a volume before, or `motion` has another shape.
        """
        if np.shape(motion) != (6,):
            raise ValueError(f"motion of volume {index}: expected 6 parameters, got shape {np.shape(motion)}")
        usable = volume is not None and np.isfinite(motion_in_mm(motion)).all()
        values = self.values(int(index), volume) if usable and volume is not None else None
        self.add_values(int(index), values, motion, volume is not None, others)

    def add_values(
        self, index: int, values: NDArray[np.float32] | None, motion: ArrayLike, came: bool = True, others: ArrayLike = ()
    ) -> None:
        """Add one volume of which the mask's voxels are at hand, smoothed: what :meth:`values` returns; else as :meth:`add_volume`.

        Parameters
        ----------
        index : int
        values : ndarray, float32 (voxels,), or None
            None: not usable.
        motion : array-like of float, (6,)
        came : bool
            Whether there was a volume.
        others : array-like of float
        """
        motion_mm = motion_in_mm(motion)
        if index < 0 or index in self._seen:
            raise ValueError(f"volume {index}: expected an index >= 0 that was not added before")
        if came:
            self._seen.add(index)
        if values is None and index not in self.left_out:
            self.left_out.append(index)
        elif values is not None and index in self.left_out and self._uses_late:
            self.left_out.remove(index)
        if isinstance(self._method, Peak):
            self._done += self._method.add_volume(index, motion_mm, values)
        else:
            self._done += self._method.add_volume(index, motion_mm, values, others)

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

    def shown_for(self, key: tuple[int, int], shown_s: float) -> None:
        """Record that an image was taken away before its time: its response overlaps its neighbours' all the same.

        Parameters
        ----------
        key : tuple of int, (2,)
        shown_s : float
            How long it was shown, seconds.
        """
        self._method.shown_for(key, float(shown_s))

    def ready(self, final: bool = False) -> list[Score]:
        """Return the scores that have become ready since the last call, each once, in order of their onsets.

        Parameters
        ----------
        final : bool
            No volume will follow: score all other images too, on what there is of their responses, NaN where that is nothing.
        """
        if final:
            self._done += self._method.settle(final=True)
        done, self._done = self._done, []
        return sorted(done, key=lambda score: (score.onset_s, score.key, score.revision))

    def interrupt(self) -> None:
        """Begin a new run of the scanner, of unknown signal level: its volumes continue the count of the last run.

        What has been learnt stays: voxels' standard deviations, the noise and the responses (deconvolve, pattern), all volumes so far
        (peak). Images without a score get none any more: ask for :meth:`ready` with `final` before.
        """
        self._method.interrupt()

    def learnt(self) -> Learnt:
        """What stays where the next run has a scorer of its own, for :meth:`take_over`: after :meth:`interrupt`.

        Returns
        -------
        dict of str to ndarray
            Empty where nothing has been learnt.
        """
        return self._method.learnt()

    def take_over(self, learnt: Learnt) -> None:
        """Begin a run with what an earlier one's scorer has learnt, before any volume: at a new signal level, with images of its own.

        Raises
        ------
        ValueError
            It is not of a scorer with these settings.
        """
        self._method.take_over(learnt)

    def reliability(self) -> float:
        """Expected squared correlation of the scores so far with the responses they measure; NaN where it is not known (yet).

        Scores are posterior means: the responses are expected to vary by the scores' variance and the mean squared error together.
        """
        return self._method.reliability()

    def there(self) -> list[float]:
        """Probability that each group of nuisance terms is there, NaN where too few volumes have shown it; empty for ``peak``."""
        return [] if isinstance(self._method, Peak) else self._method.there()

    def response(self) -> Response | None:
        """What is known of the response's lag and width, now and beforehand; None for ``peak``."""
        return self._method.response()

    def used(self) -> list[Used]:
        """Return the volumes that the fit has used since the last call: number, projection, motion in mm; none for ``peak``."""
        return self._method.used() if isinstance(self._method, Separate) else []

    def noise(self) -> tuple[float, float]:
        """What is expected of the noise: autocorrelation over a second, the drift's spread after one; NaN for ``peak``."""
        return self._method.noise() if isinstance(self._method, Separate) else (math.nan, math.nan)

    @property
    def undershoot(self) -> float:
        """Of the response that is fitted, as a multiple of the canonical one."""
        return self._undershoot

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Noise of each voxel and the smoothed reference, where the decoder brings them."""
        decoder = self._decoder
        if decoder.noise_sd is None:
            return None
        reference = self.values(-1, decoder.reference)
        return None if reference is None else (decoder.noise_sd[decoder.mask].astype(np.float64), reference.astype(np.float64))

    def values(self, index: int, volume: NDArray[Any]) -> NDArray[np.float32] | None:
        """Smooth an aligned volume and return the mask's voxels, float32 (voxels,); None where they are not all finite.

        Raises
        ------
        GeometryError
            The volume has another shape than the decoder.
        """
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


def _grid(decoder: Decoder) -> Grid:
    """Parameters that are considered: the participant's response, where the decoder knows it, else a wide range."""
    try:
        known = ResponsePrior.of(decoder.settings)
    except ValueError as problem:
        raise DecoderError(f"decoder '{decoder.name}', {problem} in decoder.json") from None
    return Grid() if known is None else Grid().known(known)


def _unit(decoder: Decoder) -> float:
    """Noise of the map's projection, where the decoder's settings have it, else a voxel's."""
    unit = decoder.settings.get("unit", 1.0)
    if isinstance(unit, bool) or not isinstance(unit, (int, float)) or not (math.isfinite(unit) and unit > 0):
        raise DecoderError(f"decoder '{decoder.name}', unit: expected a number > 0 in decoder.json, found {unit!r}")
    return float(unit)
