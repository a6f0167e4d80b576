"""What is not known of a series beforehand: the values that its parameters may have, and how probable they are before any data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALONE", "CANONICAL_PEAK_S", "Grid", "Response", "ResponsePrior"]

Array = NDArray[np.float64]
CANONICAL_PEAK_S = 5.0
"""Of the canonical response to a brief event."""
ALONE = (0.0, 1.0)
"""Images whose amplitudes share nothing but their mean."""
_SPREAD = 2.0  # scale of the prior of the amplitudes' spread
_LEAST_LAG_SD_S, _LEAST_WIDTH_SD = 0.3, 0.08  # of a participant's response between a training run and today
_STEPS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


@dataclass(frozen=True)
class ResponsePrior:
    """A participant's response as a training run has it.

    Parameters
    ----------
    lag_s, lag_se_s : float
        Delay against the canonical response, and its standard error, seconds.
    width, width_se : float
        Width of the peak as a multiple of the canonical one.
    undershoot, undershoot_se : float
        As a multiple of the canonical one.
    """

    lag_s: float
    lag_se_s: float
    width: float
    width_se: float
    undershoot: float = 1.0
    undershoot_se: float = math.nan

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ResponsePrior | None:
        """Read it from a decoder's settings; None where there is none.

        Raises
        ------
        ValueError
            It is there, but not such a response.
        """
        stored = settings.get("response")
        if stored is None:
            return None
        names = ("lag_s", "lag_se_s", "width", "width_se", "undershoot")
        try:
            values = {name: float(stored[name]) for name in names}
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"response: expected numbers {', '.join(names)}, found {stored!r}") from None
        fine = all(math.isfinite(value) for value in values.values()) and -3 <= values["lag_s"] <= 6 and 0.4 <= values["width"] <= 2.5
        if not (fine and values["lag_se_s"] > 0 and values["width_se"] > 0 and 0 <= values["undershoot"] <= 4):
            raise ValueError(
                f"response: expected a lag of -3 to 6 s, a width of 0.4 to 2.5, errors > 0, undershoot 0 to 4, found {stored!r}"
            )
        return cls(**values)

    def as_dict(self) -> dict[str, float | None]:
        """Return plain JSON types for ``decoder.json``, None for NaN."""
        return {name: None if math.isnan(value) else round(float(value), 4) for name, value in asdict(self).items()}

    def sentence(self) -> str:
        """Return the response in words."""
        peak_s = CANONICAL_PEAK_S + self.lag_s
        return (
            f"{self.lag_s:+.1f} +- {self.lag_se_s:.1f} s against the canonical one (its peak {peak_s:.1f} s after a brief event), "
            f"{self.width:.2f} +- {self.width_se:.2f} times as wide, undershoot {self.undershoot:.1f} times"
        )


@dataclass(frozen=True)
class Response:
    """What is known of the response after some volumes: mean and standard deviation, and before them.

    Parameters
    ----------
    lag_s, lag_sd_s, width, width_sd : float
    prior_lag_s, prior_lag_sd_s, prior_width, prior_width_sd : float
    edge : float
        Probability that the lag is the largest or the smallest that is considered.
    lags_s : tuple of float
        Those.
    """

    lag_s: float
    lag_sd_s: float
    width: float
    width_sd: float
    prior_lag_s: float
    prior_lag_sd_s: float
    prior_width: float
    prior_width_sd: float
    edge: float
    lags_s: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """Values that the unknown parameters may have; every combination is tried.

    Parameters
    ----------
    amplitude_sd : tuple of float
        Spread of the images' amplitudes, in noise standard deviations, > 0, in equal ratios. Beforehand it is half-Cauchy with scale 2
        (A. Gelman 2006, doi:10.1214/06-BA117A). Not nearer to 0: short runs would often be taken to have no spread at all, and errors be
        given far too small.
    autocorrelation : tuple of float
        Correlation of the noise of successive volumes, 0 <= r < 1.
    drift_sd : tuple of float
        Spread of the drift after one second, in noise standard deviations; it grows with the square root of time.
    motion_sd : tuple of float
        Effect of a millimetre of motion, in noise standard deviations.
    lag_s : tuple of float
        Delay of the response against the canonical one, seconds.
    width : tuple of float
        Width of the response's peak as a multiple of the canonical one.
    shared : tuple of (float, float)
        Share of the amplitudes' variance that images near each other have in common, and how far that reaches, seconds (its correlation
        falls to 1/e): images of a block, or a common mean that changes. The first counts as much beforehand as all others together.
    lag_mean_s, lag_prior_s : float
        Expected lag and its spread, seconds. Peaks of single people's responses lie about 1 s apart (D. A. Handwerker et al. 2004,
        doi:10.1016/j.neuroimage.2003.11.029).
    width_mean, width_prior : float
        Expected width, and the spread of its logarithm.
    undershoot : float
        As a multiple of the canonical one.
    """

    amplitude_sd: tuple[float, ...] = (0.12, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
    autocorrelation: tuple[float, ...] = (0.1, 0.4, 0.7)
    drift_sd: tuple[float, ...] = (0.01, 0.05, 0.25)
    motion_sd: tuple[float, ...] = (0.0, 3.0)
    lag_s: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
    width: tuple[float, ...] = (0.75, 1.0, 1.35)
    shared: tuple[tuple[float, float], ...] = (ALONE, (0.8, 15.0), (0.8, 150.0))
    lag_mean_s: float = 0.8
    lag_prior_s: float = 1.6
    width_mean: float = 1.0
    width_prior: float = 0.3
    undershoot: float = 1.0

    def points(self) -> Array:
        """Return all combinations, float64 (8, n), in the order of the fields; what is shared takes two rows."""
        axes = (self.amplitude_sd, self.autocorrelation, self.drift_sd, self.motion_sd, self.lag_s, self.width, range(len(self.shared)))
        rows = np.array(np.meshgrid(*axes, indexing="ij"), np.float64).reshape(7, -1)
        return np.vstack([rows[:6], np.array(self.shared, np.float64)[rows[6].astype(np.int64)].T])

    def log_prior(self) -> Array:
        """Logarithm of each combination's probability, but for a constant, float64 (n,)."""
        amplitude_sd, _, _, _, lag_s, width, share, reach_s = self.points()
        log = np.log(amplitude_sd / (1.0 + (amplitude_sd / _SPREAD) ** 2))  # half-Cauchy, times its spacing on the grid
        log -= 0.5 * ((lag_s - self.lag_mean_s) / self.lag_prior_s) ** 2
        log -= 0.5 * (np.log(width / self.width_mean) / self.width_prior) ** 2
        first = (share == self.shared[0][0]) & (reach_s == self.shared[0][1])
        return np.asarray(log - np.where(first, 0.0, math.log(max(len(self.shared) - 1, 1))), np.float64)

    def known(self, response: ResponsePrior) -> Grid:
        """The same, with a participant's own response as what is expected."""
        lag_sd_s = max(response.lag_se_s, _LEAST_LAG_SD_S)
        width_sd = max(response.width_se / response.width, _LEAST_WIDTH_SD)
        return replace(
            self,
            lag_s=tuple(float(each) for each in response.lag_s + lag_sd_s * _STEPS),
            width=tuple(float(each) for each in response.width * np.exp(1.2 * width_sd * _STEPS[1:4])),
            lag_mean_s=response.lag_s,
            lag_prior_s=lag_sd_s,
            width_mean=response.width,
            width_prior=width_sd,
            undershoot=response.undershoot,
        )

    def fixed(self) -> Grid:
        """The same with the canonical lag and width only."""
        return replace(self, lag_s=(0.0,), width=(1.0,), lag_mean_s=0.0, width_mean=1.0)
