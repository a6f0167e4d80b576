"""Lag, width and undershoot of a participant's response, from training runs: of the projection on a map that has not seen them.

A map that was fitted with the canonical response repeats it in the volumes that it was fitted to. So the series is that of the volumes
that were held out, each projected on the map of the others, piece by piece. It is explained by the responses to all kinds of event, of
one shape and each of its own size, a constant and a slope for each piece, and first-order autoregressive noise. Every combination of lag,
width, undershoot and autocorrelation on a grid is weighed by its restricted likelihood (D. A. Harville 1974, doi:10.1093/biomet/61.2.383)
and what is known of people's responses beforehand; means and standard deviations are reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.events import Event
from rtevo.decode.grid import Grid, ResponsePrior
from rtevo.decode.hrf import HRF_LENGTH_S, response

__all__ = ["Piece", "estimate_responses"]

Array = NDArray[np.float64]
Piece = tuple[Array, Array, int]
"""Middles of volumes from the start of their run, s, (n,); their scores, (n, maps); and which run."""
_LAGS_S = np.arange(-2.0, 4.76, 0.25)
_WIDTHS = np.geomspace(0.6, 1.7, 7)
_UNDERSHOOTS = np.array([0.0, 0.6, 1.2, 1.8])
_UNDERSHOOT_SD = 0.6  # beforehand
_AUTOCORRELATION = (0.0, 0.2, 0.4, 0.6, 0.8)
_FEWEST = 20  # volumes
_STEP_S = 0.05  # of the lattice that responses are read from


def estimate_responses(pieces: Sequence[Piece], events: Sequence[Sequence[Event]], tr_s: float, maps: int) -> list[ResponsePrior | None]:
    """Estimate the response of each map's projection.

    Parameters
    ----------
    pieces : sequence of Piece
        Series of volumes that the maps had not seen.
    events : sequence of sequence of Event
        Of each run.
    tr_s : float
        Repetition time, seconds.
    maps : int
        Number of maps.

    Returns
    -------
    list of ResponsePrior or None
        None where there are too few volumes.
    """
    pieces = [piece for piece in pieces if len(piece[0]) > 3]
    kinds = sorted({event.trial_type for part in events for event in part})
    if sum(len(times) for times, _, _ in pieces) < max(_FEWEST, 3 * (len(kinds) + 2 * len(pieces))):
        return [None] * maps
    constants = [np.column_stack([np.ones(len(times)), times - times.mean()]) for times, _, _ in pieces]
    values, log = [], []
    for width, undershoot in itertools.product(_WIDTHS, _UNDERSHOOTS):
        tables = _tables(events, float(width), float(undershoot))
        for lag_s in _LAGS_S:
            shapes = [_predicted(times - lag_s, events[run], kinds, tables) for times, _, run in pieces]
            each = [_evidence(pieces, shapes, constants, rho, tr_s) for rho in _AUTOCORRELATION]
            values.append((lag_s, width, undershoot))
            log.append(np.logaddexp.reduce(each, axis=0))
    points, evidence = np.array(values).T, np.array(log).T
    return [_summary(points, own) for own in evidence]


def _summary(points: Array, log: Array) -> ResponsePrior:
    """Means and standard deviations over the grid, given each point's log likelihood."""
    grid, (lag_s, width, undershoot) = Grid(), points
    log = log - 0.5 * ((lag_s - grid.lag_mean_s) / grid.lag_prior_s) ** 2
    log -= 0.5 * (np.log(width) / grid.width_prior) ** 2 + 0.5 * ((undershoot - 1.0) / _UNDERSHOOT_SD) ** 2
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    means = points @ weights
    errors = np.sqrt((points - means[:, np.newaxis]) ** 2 @ weights)
    least = 0.5 * (_LAGS_S[1] - _LAGS_S[0]), 0.5 * (_WIDTHS[1] - _WIDTHS[0])  # no finer than the grid
    return ResponsePrior(
        float(means[0]),
        max(float(errors[0]), least[0]),
        float(means[1]),
        max(float(errors[1]), least[1]),
        float(means[2]),
        float(errors[2]),
    )


def _tables(events: Sequence[Sequence[Event]], width: float, undershoot: float) -> dict[float, tuple[Array, Array]]:
    """Response to each duration on a fine lattice."""
    tables = {}
    for duration_s in {event.duration_s for part in events for event in part}:
        times: Array = np.arange(0.0, HRF_LENGTH_S + duration_s + _STEP_S, _STEP_S, dtype=np.float64)
        tables[duration_s] = times, response(times, duration_s, width, undershoot)
    return tables


def _predicted(times_s: Array, events: Sequence[Event], kinds: Sequence[str], tables: dict[float, tuple[Array, Array]]) -> Array:
    """Response to each kind of event, (n, kinds)."""
    total = np.zeros((len(times_s), len(kinds)))
    for event in events:
        total[:, kinds.index(event.trial_type)] += np.interp(times_s - event.onset_s, *tables[event.duration_s], left=0.0, right=0.0)
    return total


def _evidence(pieces: Sequence[Piece], shapes: Sequence[Array], constants: Sequence[Array], rho: float, tr_s: float) -> Array:
    """Restricted log likelihood of each map's series, the noise variance being integrated out, (maps,)."""
    count, total = shapes[0].shape[1], sum(each.shape[1] for each in constants)
    rows, targets, log_det, at = [], [], 0.0, count
    for (times, scores, _), shape, constant in zip(pieces, shapes, constants, strict=True):
        whole = np.zeros((len(times), count + total))
        whole[:, :count], whole[:, at : at + constant.shape[1]] = shape, constant
        at += constant.shape[1]
        step = (rho ** (np.diff(times) / tr_s) if rho else np.zeros(len(times) - 1))[:, np.newaxis]
        scale = 1.0 / np.sqrt(1.0 - step**2)
        rows += [whole[:1], (whole[1:] - step * whole[:-1]) * scale]
        targets += [scores[:1], (scores[1:] - step * scores[:-1]) * scale]
        log_det -= 2.0 * float(np.log(scale).sum())
    x, y = np.concatenate(rows), np.concatenate(targets)
    normal, cross = x.T @ x + 1e-9 * np.eye(x.shape[1]), x.T @ y
    left = np.maximum((y**2).sum(axis=0) - (cross * np.linalg.solve(normal, cross)).sum(axis=0), 1e-12)
    free = len(y) - x.shape[1]
    return np.asarray(-0.5 * free * np.log(left) - 0.5 * log_det - 0.5 * float(np.linalg.slogdet(normal)[1]), np.float64)
