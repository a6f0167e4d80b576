"""A simulated localizer run: what a lab would know of the participant's hidden voxels before the session, noise included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtevo.records import Grid
from rtevo.simulate.head import Head
from rtevo.simulate.participant import Viewing, boxcar_response
from rtevo.simulate.scanner import LOCALIZER, Noise, Simulation, slice_times_s

__all__ = ["SimulatedDecoder", "make_decoder"]

Field = NDArray[np.float32]
MIN_VOLUMES = 24
MIN_RESPONDING = 200  # voxels


@dataclass(frozen=True, eq=False)
class SimulatedDecoder:
    """The results of a localizer run of the simulated participant.

    Parameters
    ----------
    grid : Grid
    reference : ndarray, int16 (X, Y, Z)
        Mean of the localizer's volumes.
    mask : ndarray, bool (X, Y, Z)
        Where the localizer found responses to pictures or to liking them, and around.
    weights : ndarray, float32 (X, Y, Z)
        Estimated response to liking a picture in standard deviations of the noise; 0 outside the mask.
    t : ndarray, float32 (X, Y, Z)
        t values of that response, unsmoothed, for looking at.
    noise_sd : ndarray, float32 (X, Y, Z)
        Standard deviation of the noise, smooth over space; 0 outside the mask.
    settings : dict
        How it was made, JSON-able.
    """

    grid: Grid
    reference: NDArray[np.int16]
    mask: NDArray[np.bool_]
    weights: Field
    t: Field
    noise_sd: Field
    settings: dict[str, Any] = field(default_factory=dict)


def make_decoder(settings: Simulation, duration_s: float = 300.0, fwhm_mm: float = 4.0, head: Head | None = None) -> SimulatedDecoder:
    """Simulate a localizer run of the same participant and estimate, with its noise, where liking a picture shows.

    The participant looks at random pictures (3 s each, 1 s apart, preferences from N(0, 1)) without moving. Every voxel is regressed
    on the pictures' preferences, on the presence of any picture and on slow cosines (ordinary least squares), all of them convolved
    with the haemodynamic response.

    Parameters
    ----------
    settings : Simulation
        The participant and the scan protocol.
    duration_s : float
        Of the localizer run, s.
    fwhm_mm : float
        Smoothing of the estimates, full width at half maximum, mm.
    head : Head, optional
        The participant's head, if it is at hand.

    Returns
    -------
    SimulatedDecoder
    """
    settings = settings.localizer()
    head = head or settings.head()
    tr_s, n = settings.tr_s, max(round(duration_s / settings.tr_s), MIN_VOLUMES)
    liked = settings.rng(LOCALIZER).standard_normal(int((n * tr_s - 8) / 4)).tolist()
    viewings = [Viewing(i, 4.0 + 4 * i, 7.0 + 4 * i, p, p * settings.amplitude_percent, "") for i, p in enumerate(liked)]
    design = _design(viewings, n, tr_s)
    mean, betas, variance = _fit(_volumes(settings, head, viewings, n), design)
    reference = head.signal + mean
    spread = np.sqrt(np.diag(np.linalg.inv(design.T @ design))[:2]).astype(np.float32)
    t = betas / (np.sqrt(variance) * spread[:, None, None, None])
    sigma = fwhm_mm / math.sqrt(8 * math.log(2)) / head.grid.voxel_size_mm
    mask = _mask(reference, [_smooth(x, sigma) for x in t])
    noise_sd = np.where(mask, np.sqrt(_smooth(variance, sigma)), 0).astype(np.float32)
    weights = np.divide(_smooth(betas[0], sigma), noise_sd, out=np.zeros_like(noise_sd), where=mask)
    about = {"kind": "simulated localizer", "volumes": n, "pictures": len(liked), "fwhm_mm": fwhm_mm, "simulation": settings.as_dict()}
    still = np.rint(np.maximum(reference, 0)).astype(np.int16)
    return SimulatedDecoder(head.grid, still, mask, weights, t[0].astype(np.float32), noise_sd, about)


def _design(viewings: list[Viewing], n: int, tr_s: float) -> NDArray[np.float64]:
    """Regressors in the middle of each volume: liking, any picture, constant, slow cosines (periods above 100 s); float64 (n, p)."""
    times_s = np.asarray((np.arange(n) + 0.5) * tr_s, np.float64)
    unit = [replace(v, amplitude_percent=v.preference) for v in viewings]
    columns = [*boxcar_response(times_s, unit), np.ones(n)]
    for k in range(1, int(2 * n * tr_s / 100) + 1):
        columns.append(np.cos(np.pi * k * (np.arange(n) + 0.5) / n))
    return np.stack(columns, axis=1)


def _volumes(settings: Simulation, head: Head, viewings: list[Viewing], n: int) -> Iterator[Field]:
    """Measure a head that does not move: each volume's difference from the head at rest, float32 (X, Y, Z)."""
    noise = Noise(head, settings, np.random.default_rng(settings.rng(LOCALIZER).integers(2**63)))
    times_s = slice_times_s(head.grid.shape[2], settings.tr_s)
    percent = np.float32(0.01) * head.signal
    hidden, visual = percent * head.gains, percent * head.visual * np.float32(settings.visual_percent)
    for k in range(n):
        change = noise.next((k + 0.5) * settings.tr_s)
        now = k * settings.tr_s
        liked, seen = boxcar_response(now + times_s, [v for v in viewings if now - 45 < v.onset_s < now + settings.tr_s])
        change += hidden * liked.astype(np.float32) + visual * seen.astype(np.float32)
        yield change


def _fit(volumes: Iterator[Field], design: NDArray[np.float64]) -> tuple[Field, Field, Field]:
    """Regress every voxel, one volume at a time: mean (X, Y, Z), first two coefficients (2, X, Y, Z), residual variance (X, Y, Z)."""
    basis, triangle = np.linalg.qr(design)
    first = next(volumes)
    projected = np.zeros((design.shape[1], *first.shape), np.float32)
    squares, total = np.zeros_like(first), np.zeros_like(first)
    for k, volume in enumerate(chain([first], volumes)):
        projected += basis[k].astype(np.float32)[:, None, None, None] * volume
        squares += volume * volume
        total += volume
    betas = np.tensordot(np.linalg.inv(triangle)[:2].astype(np.float32), projected, axes=1)
    variance = np.maximum(squares - (projected**2).sum(axis=0), 1e-3) / (len(design) - design.shape[1])
    return total / np.float32(len(design)), betas, variance.astype(np.float32)


def _smooth(volume: Field, sigma: NDArray[np.float64]) -> Field:
    return np.asarray(ndimage.gaussian_filter(volume, sigma, mode="constant"), np.float32)


def _mask(reference: Field, maps: list[Field]) -> NDArray[np.bool_]:
    """Voxels of the head that respond in any of the maps (beyond 4 standard deviations of the map's noise), and two voxels around."""
    head = reference > 0.4 * np.percentile(reference, 90)
    responds = np.zeros(reference.shape, bool)
    for values in maps:
        noise_sd = 1.4826 * np.median(np.abs(values[head]))
        responds |= np.abs(values) > 4 * noise_sd
    responds &= head
    if responds.sum() < MIN_RESPONDING:  # too weak to show: the strongest voxels
        strongest = np.where(head, np.abs(maps[0]), 0)
        responds = strongest >= np.partition(strongest.ravel(), -MIN_RESPONDING)[-MIN_RESPONDING]
    return np.asarray(ndimage.binary_dilation(responds, iterations=2) & head)
