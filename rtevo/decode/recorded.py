"""Recorded runs, opened, aligned, smoothed and masked as a session does it: what training and scoring by hand share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.events import Event, Target, read_events
from rtevo.decode.nuisance import DRIFT_SD, MOTION_SD, motion_in_mm, penalties
from rtevo.decode.quality import whole
from rtevo.decode.running import RunningFit
from rtevo.decode.runs import open_run
from rtevo.decode.train import Examples
from rtevo.errors import DataError
from rtevo.kernels.smooth import smooth
from rtevo.progress import shown
from rtevo.realign import Realigner
from rtevo.realign.series import Run, align_run, mean_aligned
from rtevo.records import Grid

__all__ = ["Frames", "Series", "aligned", "events_of", "examples_of", "nuisance_of", "open_with", "reference_of", "series_of", "terms_of"]

Array = NDArray[np.float64]
Frames = Iterator[tuple[int, NDArray[np.float32] | None, Array]]
_PEAK_S = 5.0  # from an onset to its response's peak


@dataclass(frozen=True, eq=False)
class Series:
    """One training run, aligned, smoothed and masked.

    Parameters
    ----------
    values : ndarray, float32 (n, voxels)
        Volumes that could be used.
    index : ndarray, int64 (n,)
        Their positions in the run.
    motion_mm : ndarray, float64 (volumes, 6)
        Of every volume; NaN where there is none.
    """

    values: NDArray[np.float32]
    index: NDArray[np.int64]
    motion_mm: Array


def open_with(path: Path, options: argparse.Namespace) -> Run:
    """Open a run; its TR is known afterwards."""
    with shown() as progress:
        run = open_run(path, options.series, progress)
    tr_s = run.tr_s if options.tr is None else options.tr
    if not tr_s > 0:
        raise DataError(f"{path}: expected a repetition time, found none (give --tr)")
    return Run(run.grid, tr_s, run.count, run.volume)


def events_of(path: Path, run: Run, first: int | None = None) -> list[Event]:
    """Read a run's events, in seconds from its first volume; report left-out rows and assumptions.

    Parameters
    ----------
    path : Path
    run : Run
        Its first volumes may be missing: a part of a run.
    first : int, optional
        Number of the first recorded volume, counted from the volume at the onsets' zero; 0: the onsets count from the first
        recorded volume. Default: the choice with which more events are seen, the run's own count if equal.
    """
    problems: list[str] = []
    begins = next((index for index in range(run.count) if run.volume(index) is not None), 0)
    number = first if first is not None else begins
    shift_s = (begins - number) * run.tr_s
    events = read_events(path, run.count * run.tr_s - shift_s, problems)
    if first is None and begins > 0:
        run_s, part_s = 0.0, begins * run.tr_s
        seen = [sum(begins <= (event.onset_s + by + _PEAK_S) / run.tr_s <= run.count for event in events) for by in (run_s, part_s)]
        shift_s = part_s if seen[1] > seen[0] else run_s
        whose = "the first recorded volume" if shift_s else "the run's first volume"
        problems.append(
            f"{path}: the run begins with volume {begins} (from 0); onsets are counted from {whose} ({max(seen)} of {len(events)} "
            f"events are seen then, else {min(seen)}; --first {0 if shift_s else begins} confirms, --first {begins if shift_s else 0} not)"
        )
    sys.stderr.write("".join(f"rtevo.decode: {problem}\n" for problem in problems))
    return [replace(event, onset_s=event.onset_s + shift_s) for event in events] if shift_s else events


def reference_of(run: Run) -> NDArray[np.float32]:
    """Mean of the run's volumes, aligned to its first."""
    for index in range(run.count):
        volume = run.volume(index)
        if volume is not None:
            with Realigner(volume, run.grid.affine) as realigner:
                return mean_aligned(run, realigner)
    raise DataError("the run: expected at least one volume, found none")


def aligned(run: Run, reference: NDArray[np.float32], mask: NDArray[np.bool_]) -> Frames:
    """Yield index, aligned volume (None: not usable) and motion of every volume."""
    with Realigner(reference, run.grid.affine) as realigner:
        for index, (motion, volume) in enumerate(align_run(run, realigner)):
            if motion is None or not motion.converged:
                yield index, None, np.full(6, np.nan)
            else:
                raw = run.volume(index)
                usable = raw is not None and whole(raw, mask)
                yield index, volume if usable else None, np.asarray(motion.params, np.float64)


def series_of(
    run: Run,
    reference: NDArray[np.float32],
    mask: NDArray[np.bool_],
    fwhm_mm: float,
    frames: Frames | None = None,
    grid: Grid | None = None,
) -> Series:
    """Align, smooth and mask a run, as the scorer does; or take the `frames` of a run that was sampled on another `grid`."""
    from rich.console import Console
    from rich.progress import track

    values, index, motion, holes = [], [], np.full((run.count, 6), np.nan), 0
    size_mm = (grid or run.grid).voxel_size_mm
    quiet, console = not sys.stderr.isatty(), Console(stderr=True)
    coming = track(frames or aligned(run, reference, mask), "aligning", run.count, console=console, transient=True, disable=quiet)
    for i, volume, params in coming:
        motion[i] = motion_in_mm(params)
        if volume is None:
            holes += bool(np.isfinite(params).all())
        elif np.isfinite(volume[mask]).all():
            values.append(smooth(np.nan_to_num(volume), size_mm, fwhm_mm)[mask])
            index.append(i)
    if len(values) < 10:
        why = f"; {holes} have NaN or infinite values in the mask" if holes else ""
        raise DataError(f"the run: expected at least 10 volumes that can be used, found {len(values)} of {run.count}{why}")
    return Series(np.array(values), np.array(index), motion)


def terms_of(series: Series, tr_s: float) -> Array:
    """Nuisance terms of a run's usable volumes, as the scorer has them."""
    return np.column_stack([series.index * tr_s / 60.0, series.motion_mm[series.index]])


def nuisance_of(series: Series, tr_s: float) -> RunningFit:
    """Fit drift and motion to a whole run, with the scorer's own recursion."""
    fit = RunningFit(series.values.shape[1], penalties(DRIFT_SD, MOTION_SD))
    for terms, values in zip(terms_of(series, tr_s), series.values, strict=True):
        fit.add(terms, values)
    return fit


def examples_of(
    series: list[Series], fits: list[RunningFit], events: list[list[Event]], targets: list[Target], tr_s: float
) -> tuple[Examples, Array]:
    """Denoised and standardised volumes of all runs, and each voxel's noise."""
    spread = np.array([fit.sd() for fit in fits])
    sd = np.where((spread > 0).all(axis=0), np.sqrt((spread**2).mean(axis=0)), 0.0)
    patterns = []
    for one, fit, own in zip(series, fits, spread, strict=True):
        scale = np.divide(1.0, own, out=np.zeros_like(own), where=sd > 0)
        rows = [fit.residual(terms, values) * scale for terms, values in zip(terms_of(one, tr_s), one.values, strict=True)]
        patterns.append(np.array(rows, np.float32))
    times = np.concatenate([(one.index + 0.5) * tr_s for one in series])
    run = np.concatenate([np.full(len(one.index), number) for number, one in enumerate(series)])
    return Examples(np.concatenate(patterns), times, run, events, targets), sd
