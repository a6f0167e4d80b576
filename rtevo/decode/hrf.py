"""The haemodynamic response to an image: SPM's double-gamma function, integrated over the time the image was shown.

The kernel is the difference of two gamma densities, with a peak 5 s after a brief event, an undershoot after 15 s, and a ratio of 6
between them, over 32 s: K. J. Friston et al. 1998, doi:10.1006/nimg.1997.0306, with the parameters of SPM's ``spm_hrf``. The integral
over a boxcar is a difference of incomplete gamma functions, so nothing is sampled or convolved numerically.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc

__all__ = ["HRF_LENGTH_S", "response"]

HRF_LENGTH_S = 32.0
"""The kernel is zero from here on, seconds."""
_PEAK_SHAPE, _UNDERSHOOT_SHAPE, _RATIO = 6.0, 16.0, 6.0


def response(t_s: ArrayLike, duration_s: float) -> NDArray[np.float64]:
    """Response to an image, as a share of its own peak.

    Parameters
    ----------
    t_s : array-like of float
        Time since the image's onset, seconds.
    duration_s : float
        How long it was shown, seconds, > 0.

    Returns
    -------
    ndarray, float64, as `t_s`
        Zero before the onset and from ``HRF_LENGTH_S + duration_s`` on; its maximum over all times is 1.
    """
    return _boxcar(np.asarray(t_s, np.float64), float(duration_s)) / _peak(float(duration_s))


def _boxcar(t_s: NDArray[np.float64], duration_s: float) -> NDArray[np.float64]:
    """Integrate the kernel over the boxcar; not normalised."""
    return _step(t_s) - _step(t_s - duration_s)


def _step(t_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral of the kernel from 0 to t."""
    t = np.clip(t_s, 0.0, HRF_LENGTH_S)
    return np.asarray(gammainc(_PEAK_SHAPE, t) - gammainc(_UNDERSHOOT_SHAPE, t) / _RATIO, np.float64)


@lru_cache(maxsize=64)
def _peak(duration_s: float) -> float:
    """Largest value of the response to a boxcar."""
    if not (np.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s: expected a finite number > 0, got {duration_s}")
    return float(_boxcar(np.arange(0.0, HRF_LENGTH_S + duration_s, 0.01), duration_s).max())
