"""The haemodynamic response to an image: SPM's double-gamma function, integrated over the time the image was shown, and bases around it.

The kernel is the difference of two gamma densities, with a peak 5 s after a brief event, an undershoot after 15 s, and a ratio of 6
between them, over 32 s: K. J. Friston et al. 1998, doi:10.1006/nimg.1997.0306, with the parameters of SPM's ``spm_hrf``. The integral
over a boxcar is a difference of incomplete gamma functions, so nothing is sampled or convolved numerically.

Its derivatives are SPM's (``spm_get_bf``): the change when it begins one second later, and when its peak is a hundredth wider. The
finite impulse response (G. H. Glover 1999, doi:10.1006/nimg.1998.0419; C. Goutte et al. 2000, doi:10.1109/42.897811, for the smoothness
that it is expected to have) is made of overlapping triangles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc

__all__ = ["HRF_LENGTH_S", "SHAPES", "Basis", "Shape", "basis", "response"]

Array = NDArray[np.float64]
Shape = Literal["canonical", "derivatives", "fir"]
SHAPES: tuple[Shape, ...] = ("canonical", "derivatives", "fir")
HRF_LENGTH_S = 32.0
"""The kernel is zero from here on, seconds."""
_PEAK_SHAPE, _UNDERSHOOT_SHAPE, _RATIO = 6.0, 16.0, 6.0
_WIDER = 0.01
_DERIVATIVE_SD = 0.5  # of a derivative's coefficient, as a part of the amplitude's
_FIR_STEP_S, _FIR_TRIANGLES = 2.5, 9
_FIR_SD, _FIR_SMOOTH_S = 0.3, 4.0  # deviation from the canonical shape, as a part of the amplitude, and how far it is correlated


@dataclass(frozen=True, eq=False)
class Basis:
    """What the response to an image is made of.

    Parameters
    ----------
    values : callable
        Times since onset, (...,), and duration, seconds, to the functions' values, float64 (..., size).
    prior : ndarray, float64 (size, size)
        Covariance that the coefficients are expected to have, for amplitudes of variance 1.
    readout : ndarray, float64 (size,)
        Amplitude of the response as a sum over the coefficients.
    """

    values: Callable[[ArrayLike, float], Array]
    prior: Array
    readout: Array


def basis(shape: Shape) -> Basis:
    """Return the basis of a kind of response.

    Parameters
    ----------
    shape : {"canonical", "derivatives", "fir"}
        One function; with its temporal and dispersion derivatives (the amplitude is the first coefficient); or triangles every 2.5 s until
        22.5 s after the onset (the amplitude is the projection on the canonical response to 3 s).
    """
    if shape == "canonical":
        return Basis(lambda t_s, duration_s: response(t_s, duration_s)[..., np.newaxis], np.eye(1), np.ones(1))
    if shape == "derivatives":
        return Basis(_derivatives, np.diag([1.0, _DERIVATIVE_SD**2, _DERIVATIVE_SD**2]), np.array([1.0, 0.0, 0.0]))
    centres = _FIR_STEP_S * np.arange(1, _FIR_TRIANGLES + 1)
    canonical = response(centres, 3.0)
    apart = (centres[:, np.newaxis] - centres) / _FIR_SMOOTH_S
    prior = np.outer(canonical, canonical) + _FIR_SD**2 * np.exp(-0.5 * apart**2)
    return Basis(_triangles, np.asarray(prior, np.float64), np.asarray(canonical / (canonical**2).sum(), np.float64))


def response(t_s: ArrayLike, duration_s: float, width: float = 1.0, undershoot: float = 1.0) -> Array:
    """Response to an image, as a share of its own peak.

    Parameters
    ----------
    t_s : array-like of float
        Time since the image's onset, seconds.
    duration_s : float
        How long it was shown, seconds, > 0.
    width : float
        Of the kernel's peak, as a multiple of the canonical one: its standard deviation; where the peak lies stays.
    undershoot : float
        As a multiple of the canonical one.

    Returns
    -------
    ndarray, float64, as `t_s`
        Zero before the onset and from ``HRF_LENGTH_S + duration_s`` on; its maximum over all times is 1.
    """
    own = float(width), float(undershoot)
    return _boxcar(np.asarray(t_s, np.float64), float(duration_s), *own) / _peak(float(duration_s), *own)


def share_of_peak(shown_s: float, duration_s: float, width: float = 1.0, undershoot: float = 1.0) -> float:
    """Return the peak of the response to an image that was taken away after a part of its time, as a share of the whole image's.

    Parameters
    ----------
    shown_s, duration_s : float
        How long it was shown, and would have been, seconds, > 0.
    width, undershoot : float
        As for :func:`response`.
    """
    own = float(width), float(undershoot)
    return _peak(float(shown_s), *own) / _peak(float(duration_s), *own)


def _derivatives(t_s: ArrayLike, duration_s: float) -> Array:
    """Canonical response and its two derivatives."""
    t = np.asarray(t_s, np.float64)
    plain, peak = response(t, duration_s), _peak(float(duration_s))
    wider = (_step(t, 1.0 + _WIDER) - _step(t - duration_s, 1.0 + _WIDER)) / peak
    return np.stack([plain, plain - response(t - 1.0, duration_s), (plain - wider) / _WIDER], axis=-1)


def _triangles(t_s: ArrayLike, duration_s: float) -> Array:
    """Finite impulse response."""
    centres = _FIR_STEP_S * np.arange(1, _FIR_TRIANGLES + 1)
    apart = np.abs(np.asarray(t_s, np.float64)[..., np.newaxis] - centres) / _FIR_STEP_S
    return np.maximum(1.0 - apart, 0.0)


def _boxcar(t_s: Array, duration_s: float, width: float = 1.0, undershoot: float = 1.0) -> Array:
    """Integrate the kernel over the boxcar; not normalised."""
    if width == 1.0:
        return _step(t_s, undershoot=undershoot) - _step(t_s - duration_s, undershoot=undershoot)
    shape, scale = _gamma(width)
    return _step(t_s, scale, shape, undershoot) - _step(t_s - duration_s, scale, shape, undershoot)


def _gamma(width: float) -> tuple[float, float]:
    """Shape and scale of the gamma density whose peak lies where the canonical one's does, and whose standard deviation is a multiple."""
    peak_s = _PEAK_SHAPE - 1.0
    scale = (-peak_s + math.sqrt(peak_s**2 + 4.0 * width**2 * _PEAK_SHAPE)) / 2.0
    return peak_s / scale + 1.0, scale


def _step(t_s: Array, dispersion: float = 1.0, shape: float | None = None, undershoot: float = 1.0) -> Array:
    """Integral of the kernel from 0 to t; `dispersion` widens the peak, and moves it unless `shape` holds it."""
    t = np.clip(t_s, 0.0, HRF_LENGTH_S)
    peak = gammainc(_PEAK_SHAPE / dispersion if shape is None else shape, t / dispersion)
    return np.asarray(peak - undershoot * gammainc(_UNDERSHOOT_SHAPE, t) / _RATIO, np.float64)


@lru_cache(maxsize=512)
def _peak(duration_s: float, width: float = 1.0, undershoot: float = 1.0) -> float:
    """Largest value of the response to a boxcar."""
    if not (np.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s: expected a finite number > 0, got {duration_s}")
    times = np.arange(0.0, HRF_LENGTH_S + duration_s, 0.01, dtype=np.float64)
    return float(_boxcar(times, duration_s, width, undershoot).max())
