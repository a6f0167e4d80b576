"""The default of ``fit``: maps on selected voxels, their settings in the folder, and their pages."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.categories import Categories, categories_of
from rtevo.decode.events import Event, Target
from rtevo.decode.figures import draw_selected
from rtevo.decode.folder import Decoder, write_decoder
from rtevo.decode.grid import ResponsePrior
from rtevo.decode.recorded import Series, examples_of, nuisance_of
from rtevo.decode.repeats import Repeats
from rtevo.decode.selection import COUNTS, Chosen, select_maps
from rtevo.decode.shape import Piece, estimate_responses
from rtevo.decode.train import Performance
from rtevo.errors import DataError
from rtevo.progress import shown
from rtevo.records import Grid

__all__ = ["draw_all", "fit_selected", "map_name", "performance_of", "response_told", "told", "write_selected"]

Array = NDArray[np.float64]


def fit_selected(
    options: argparse.Namespace,
    series_at: Callable[[float], list[Series]],
    events: list[list[Event]],
    targets: list[Target] | None,
    tr_s: float,
    days: Sequence[str],
) -> tuple[Chosen, Categories, Array, Array, list[Series], float, list[ResponsePrior | None]]:
    """Choose and fit the maps, and estimate the responses of their projections.

    Parameters
    ----------
    options : argparse.Namespace
        `fwhm`, `voxels`, `reliable`, `permutations` and `seed` of the command line.
    series_at : callable
        Smoothing, mm, to the runs.
    events, targets : list
        Of each run; no targets: every kind of event is a category.
    tr_s : float
        Repetition time, seconds.
    days : sequence of str
        Of each run.

    Returns
    -------
    chosen : Chosen
    categories : Categories
    weights : ndarray, float64 (K, voxels)
        Of the mask's voxels.
    sd : ndarray, float64 (voxels,)
        Noise at the chosen smoothing.
    series : list of Series
        At the chosen smoothing.
    fwhm_mm : float
    responses : list of ResponsePrior or None
        Of each map; None where there is too little to estimate it from.
    """
    versions = [series_at(fwhm_mm) for fwhm_mm in options.fwhm]
    made = [examples_of(each, [nuisance_of(one, tr_s) for one in each], events, targets or [], tr_s) for each in versions]
    counted = np.all([sd > 0 for _, sd in made], axis=0)
    if counted.sum() < 2:
        raise DataError(f"the mask: expected at least 2 voxels that vary in all runs, found {int(counted.sum())}")
    examples = made[0][0]
    categories, parts = categories_of(events, examples.times_s, examples.run, targets)
    missing = [name for name, column in zip(_sides(categories, targets), categories.design.T, strict=True) if not np.ptp(column) > 0]
    if missing:
        raise DataError(f"training: expected volumes that show each category's response, found none of {', '.join(missing)}")
    names = sorted(set(days))
    of_volume = np.array([names.index(day) for day in days], np.int64)[examples.run]
    with shown() as progress:
        chosen = select_maps(
            [each.patterns[:, counted] for each, _ in made],
            categories,
            parts,
            counts=options.voxels or COUNTS,
            permutations=options.permutations,
            rng=np.random.default_rng(options.seed),
            days=of_volume,
            progress=progress,
            repeats=None if options.reliable is None else Repeats(examples.run, options.reliable),
        )
    weights = np.zeros((len(chosen.weights), len(counted)))
    weights[:, counted] = chosen.weights
    best = chosen.recipe.smoothing
    sd = np.where(counted, made[best][1], 0.0)
    count = len(categories.names)
    responses = estimate_responses(_pieces(chosen, examples.times_s, examples.run, count), events, tr_s, count)
    return chosen, categories, weights[:count], sd, versions[best], float(options.fwhm[best]), responses


def _pieces(chosen: Chosen, times_s: Array, run: NDArray[np.int64], count: int) -> list[Piece]:
    """Series of the first maps in the volumes that they had not seen, a piece for each fold and run."""
    pieces: list[Piece] = []
    for index, scores in chosen.outside:
        for number in np.unique(run[index]):
            own = run[index] == number
            pieces.append((times_s[index[own]], scores[own, :count], int(number)))
    return pieces


def _sides(categories: Categories, targets: list[Target] | None) -> list[str]:
    """Name each column of the design in a message."""
    if targets is None:
        return list(categories.names)
    return [f"'{targets[0].text}'"] if categories.numeric else [f"the first side of '{targets[0].text}'", "its other side"]


def map_name(text: str) -> str:
    """Make a map's name of a category's or a target's."""
    return "-".join("".join(c if c.isalnum() else " " for c in text).split())


def performance_of(chosen: Chosen, categories: Categories, column: int = 0) -> Performance:
    """Performance of one map, in the words of the other methods: own blocks 1, others -1."""
    values = chosen.labels if categories.numeric else np.where(chosen.labels == column, 1.0, -1.0)
    decisions = tuple((float(a), float(b)) for a, b in zip(values, chosen.decisions[:, column], strict=True))
    return Performance(chosen.auc, chosen.p_value, chosen.folds, len(values), chosen.permutations, chosen.note, decisions)


def told(chosen: Chosen, categories: Categories) -> str:
    """Return the performance as lines of text."""
    what = "parts of blocks" if chosen.weak else "blocks"
    measure = "correlation" if categories.numeric else "AUC"
    lines = []
    if math.isfinite(chosen.auc):
        line = f"held-out performance: {measure} {chosen.auc:.3f}"
        count = categories.design.shape[1]
        line += f", {count}-way {chosen.accuracy:.2f} (chance {1 / count:.2f})" if len(categories.names) > 1 else ""
        line += f" (p = {chosen.p_value:.3f}, " if math.isfinite(chosen.p_value) else " ("
        how = "WEAK: parts of blocks share slow noise" if chosen.weak else "all choices were made inside the folds"
        lines.append(line + f"{len(chosen.labels)} {what}, {chosen.folds} folds; {how})")
    if chosen.days:
        if math.isnan(chosen.days[0]):
            lines.append("held-out days: could not be decoded from the other days")
        else:
            right = f", {chosen.days[1]:.2f} right" if math.isfinite(chosen.days[1]) else ""
            lines.append(f"held-out days: {measure} {chosen.days[0]:.3f}{right}")
    if chosen.note and not chosen.weak:  # that is said on stderr
        lines.append(chosen.note)
    return "".join(f"{line}\n" for line in lines)


def response_told(names: Sequence[str], responses: Sequence[ResponsePrior | None]) -> str:
    """Return the maps' responses as lines of text."""
    lines = []
    for name, found in zip(names, responses, strict=True):
        if found is None:
            lines.append(f"response of '{name}': not known (too few volumes on which the map was not fitted)\n")
        else:
            lines.append(f"response of '{name}': {found.sentence()}\n")
    return "".join(lines)


def write_selected(
    folder: Path,
    names: Sequence[str],
    volumes: tuple[NDArray[np.float32], NDArray[np.bool_], Grid],
    weights: Array,
    sd: Array,
    chosen: Chosen,
    categories: Categories,
    settings: dict[str, Any],
    responses: Sequence[ResponsePrior | None],
) -> list[Decoder]:
    """Write the folder of one or several maps; `volumes` are reference, mask and their grid."""
    reference, mask, grid = volumes
    noise = np.zeros(mask.shape)
    noise[mask] = sd
    own: dict[str, dict[str, Any]] = {
        name: {"unit": float(unit), "category": category}
        for name, unit, category in zip(names, chosen.units, categories.names, strict=False)
    }
    for name, found in zip(names, responses, strict=True):
        if found is not None:
            own[name]["response"] = found.as_dict()
    several = len(names) > 1
    decoders = []
    for name, each in zip(names, weights, strict=True):
        values = np.zeros(mask.shape)
        values[mask] = each
        common = settings if several else {**settings, **own[name]}
        decoders.append(write_decoder(folder, name, reference, mask, values, grid.affine, common, noise, own if several else None))
    return decoders


def draw_all(
    folder: Path, decoders: Sequence[Decoder], chosen: Chosen, categories: Categories, series: Sequence[Series], sd: Array
) -> None:
    """Draw each map's page."""
    tsnr = np.mean([one.values.mean(axis=0) for one in series], axis=0)[sd > 0] / sd[sd > 0]
    for column, decoder in enumerate(decoders):
        found, motion = performance_of(chosen, categories, column), [one.motion_mm for one in series]
        voxels = chosen.recipe.voxels or int((sd > 0).sum())
        draw_selected(folder / f"{decoder.name}.png", decoder, tsnr, motion, found, chosen.curve, voxels, chosen.weak)
