"""Lag, width and undershoot of a participant's response, from training runs: of the projection on a map that has not seen them.

A map that was fitted with the canonical response repeats it in the volumes that it was fitted to. So the series is that of the volumes
that were held out, each projected on the map of the others, piece by piece. It is explained by the responses to all kinds of event, of
one shape and each of its own size, a constant and a slope for each piece, and first-order autoregressive noise. Every combination of lag,
width, undershoot and autocorrelation on a grid is weighed by its restricted likelihood (D. A. Harville 1974, doi:10.1093/biomet/61.2.383)
and what is known of people's responses beforehand; means and standard deviations are reported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.events import Event
from rtevo.decode.grid import Grid, ResponsePrior
from rtevo.decode.hrf import response

__all__ = ["Piece", "estimate_response"]

Array = NDArray[np.float64]
Piece = tuple[Array, Array, int]
"""Middles of volumes from the start of their run, s, their scores, and which run."""
_LAGS_S = np.arange(-2.0, 4.76, 0.25)
_WIDTHS = np.geomspace(0.6, 1.7, 8)
_UNDERSHOOTS = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
_UNDERSHOOT_SD = 0.6  # beforehand
_AUTOCORRELATION = (0.0, 0.2, 0.4, 0.6, 0.8)
_FEWEST = 20  # volumes


def estimate_response(pieces: Sequence[Piece], events: Sequence[Sequence[Event]], tr_s: float) -> ResponsePrior | None:
    """Estimate the response of one map's projection.

    Parameters
    ----------
    pieces : sequence of Piece
        Series of volumes that the map had not seen.
    events : sequence of sequence of Event
        Of each run.
    tr_s : float
        Repetition time, seconds.

    Returns
    -------
    ResponsePrior or None
        None where there are too few volumes or events.
    """
    pieces = [piece for piece in pieces if len(piece[0]) > 3]
    kinds = sorted({event.trial_type for part in events for event in part})
    if sum(len(times) for times, _, _ in pieces) < max(_FEWEST, 3 * (len(kinds) + 2 * len(pieces))):
        return None
    constants = [np.column_stack([np.ones(len(times)), times - times.mean()]) for times, _, _ in pieces]
    values, log = [], []
    for width, undershoot in itertools.product(_WIDTHS, _UNDERSHOOTS):
        for lag_s in _LAGS_S:
            shapes = [_predicted(times - lag_s, events[run], kinds, float(width), float(undershoot)) for times, _, run in pieces]
            best = [_evidence(pieces, shapes, constants, rho, tr_s) for rho in _AUTOCORRELATION]
            values.append((lag_s, width, undershoot))
            log.append(float(np.logaddexp.reduce(best)))
    grid, (lag_s, width, undershoot) = Grid(), np.array(values).T
    weights = np.array(log) - 0.5 * ((lag_s - grid.lag_mean_s) / grid.lag_prior_s) ** 2
    weights -= 0.5 * (np.log(width) / grid.width_prior) ** 2 + 0.5 * ((undershoot - 1.0) / _UNDERSHOOT_SD) ** 2
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    means = [float(weights @ each) for each in (lag_s, width, undershoot)]
    errors = [math.sqrt(float(weights @ (each - mean) ** 2)) for each, mean in zip((lag_s, width, undershoot), means, strict=True)]
    least = _LAGS_S[1] - _LAGS_S[0], 0.5 * (_WIDTHS[1] - _WIDTHS[0])  # no finer than the grid
    return ResponsePrior(means[0], max(errors[0], 0.5 * least[0]), means[1], max(errors[1], least[1]), means[2], errors[2])


def _predicted(times_s: Array, events: Sequence[Event], kinds: Sequence[str], width: float, undershoot: float) -> Array:
    """Response to each kind of event, (n, kinds)."""
    total = np.zeros((len(times_s), len(kinds)))
    for event in events:
        total[:, kinds.index(event.trial_type)] += response(times_s - event.onset_s, event.duration_s, width, undershoot)
    return total


def _evidence(pieces: Sequence[Piece], shapes: Sequence[Array], constants: Sequence[Array], rho: float, tr_s: float) -> float:
    """Restricted log likelihood, the noise variance being integrated out."""
    count, total = shapes[0].shape[1], sum(each.shape[1] for each in constants)
    rows, targets, log_det, at = [], [], 0.0, count
    for (times, scores, _), shape, constant in zip(pieces, shapes, constants, strict=True):
        whole = np.zeros((len(times), count + total))
        whole[:, :count], whole[:, at : at + constant.shape[1]] = shape, constant
        at += constant.shape[1]
        step = rho ** (np.diff(times) / tr_s) if rho else np.zeros(len(times) - 1)
        scale = 1.0 / np.sqrt(1.0 - step**2)
        rows += [whole[:1], (whole[1:] - step[:, np.newaxis] * whole[:-1]) * scale[:, np.newaxis]]
        targets += [scores[:1], (scores[1:] - step * scores[:-1]) * scale]
        log_det -= 2.0 * float(np.log(scale).sum())
    x, y = np.concatenate(rows), np.concatenate(targets)
    normal, cross = x.T @ x + 1e-9 * np.eye(x.shape[1]), x.T @ y
    left = float(y @ y - cross @ np.linalg.solve(normal, cross))
    return -0.5 * (len(y) - x.shape[1]) * math.log(max(left, 1e-12)) - 0.5 * log_det - 0.5 * float(np.linalg.slogdet(normal)[1])
