"""Scores from the volumes around the peak of the response, as if images did not overlap.

Drift and motion are removed by a linear fit to all volumes so far and a voxel's standard deviation is that of its residual over all
volumes so far; the pattern around the peak is correlated with the weight map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.learnt import Learnt
from rtevo.decode.running import RunningFit
from rtevo.decode.score import Score

__all__ = ["LATE_S", "Peak", "pearson", "response_window"]

LATE_S = 30.0
"""An onset reported up to this long after its window has passed is still scored."""


def response_window(onset_s: float, tr_s: float, delay_s: float = 6.0, half_window_tr: int = 1) -> range:
    """Return the volumes that measure the response to an image.

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


class Peak:
    """The method behind ``Scorer(method="peak")``.

    Parameters
    ----------
    weights : ndarray, float64 (voxels,)
        The map inside the mask.
    tr_s, delay_s, half_window_tr
        See :func:`response_window`.
    penalty : ndarray, float64 (p,)
        Of drift and motion terms, see :class:`rtevo.decode.running.RunningFit`.
    """

    def __init__(
        self, weights: NDArray[np.float64], tr_s: float, delay_s: float, half_window_tr: int, penalty: NDArray[np.float64]
    ) -> None:
        self._weights = weights
        self._window = (tr_s, delay_s, half_window_tr)
        self._fit = RunningFit(len(weights), penalty)
        self._kept = math.ceil((LATE_S + delay_s) / tr_s) + 2 * half_window_tr + 1
        self._recent: dict[int, tuple[NDArray[np.float64], NDArray[np.float32]]] = {}
        self._last = -1
        self._pending: dict[tuple[int, int], float] = {}

    def add_onset(self, key: tuple[int, int], onset_s: float) -> list[Score]:
        """Add an image; return the scores that are ready now."""
        self._pending[key] = onset_s
        return self.settle()

    def shown_for(self, key: tuple[int, int], shown_s: float) -> None:
        """Nothing: images are taken to stand alone."""

    def add_volume(self, index: int, motion_mm: NDArray[np.float64], values: NDArray[np.float32] | None) -> list[Score]:
        """Add a volume, None if there is none to use; return the scores that are ready now."""
        self._last = max(self._last, index)
        if values is not None:
            terms = np.concatenate([[index * self._window[0] / 60.0], motion_mm])
            self._fit.add(terms, values)
            self._recent[index] = (terms, values)
        for old in [i for i in self._recent if i < self._last - self._kept]:
            del self._recent[old]
        return self.settle()

    def settle(self, final: bool = False) -> list[Score]:
        """Score the images whose windows have passed, or all that are left."""
        done = []
        for key, onset_s in list(self._pending.items()):
            window = response_window(onset_s, *self._window)
            if final or window[-1] <= self._last:
                del self._pending[key]
                done.append(self._score(key, onset_s, window))
        return done

    def interrupt(self) -> None:
        """See :meth:`rtevo.decode.scorer.Scorer.interrupt`."""
        self._pending.clear()

    def learnt(self) -> Learnt:
        """See :meth:`rtevo.decode.scorer.Scorer.learnt`."""
        return self._fit.learnt()

    def take_over(self, learnt: Learnt) -> None:
        """See :meth:`rtevo.decode.scorer.Scorer.take_over`."""
        if learnt:
            self._fit.take_over(learnt)

    def response(self) -> None:
        """Nothing is learnt of the response."""

    def reliability(self) -> float:
        """Without standard errors: not known."""
        return math.nan

    def _score(self, key: tuple[int, int], onset_s: float, window: Sequence[int]) -> Score:
        """Score one image on the volumes of its window that are there."""
        used = [i for i in window if i in self._recent]
        if not used or self._fit.volumes == len(used):  # nothing measured, or nothing to compare it with
            return Score(key, onset_s, math.nan, math.nan, len(used), used[-1] if used else -1)
        terms: NDArray[np.float64] = np.mean([self._recent[i][0] for i in used], axis=0, dtype=np.float64)
        values: NDArray[np.float64] = np.mean([self._recent[i][1] for i in used], axis=0, dtype=np.float64)
        pattern = self._fit.residual(terms, values)
        sd = self._fit.sd()
        varies = sd > 0
        score = pearson(pattern[varies] / sd[varies], self._weights[varies])
        return Score(key, onset_s, score, math.nan, len(used), used[-1])


def pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson correlation of two series, NaN where one of them does not vary."""
    if len(a) < 2:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return min(1.0, max(-1.0, float((a * b).sum()) / norm)) if norm > 0 else math.nan
