"""Runs and decoders of another grid: today's reference, volumes sampled where another run's lie, a decoder folder carried to today."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.carry import carry, reorder, same_voxels
from rtevo.decode.folder import MASK, NOISE, REFERENCE, SETTINGS, SUFFIX, Decoder, maps_in, own_settings, write_decoder
from rtevo.decode.sampling import sample
from rtevo.errors import DataError, DecoderError, GeometryError
from rtevo.outside import read_json
from rtevo.place import Placement, Verdict, draw_placement, inside, judge, place
from rtevo.realign import FirstVolumes, Realigner
from rtevo.realign.series import Run
from rtevo.records import Grid

__all__ = ["carry_folder", "find_placement", "for_run", "in_order", "maps_for_run", "sampled", "seen_by", "sentence", "steady"]

Volume = NDArray[np.float32]
Array = NDArray[np.float64]
MOST_VOLUMES = 10
"""Number of a run's first steady volumes that make a reference."""
PLACEMENT, PICTURE = "placement.json", "placement.png"
_SETTLING = 10  # largest number of volumes before steady state
_MARGIN = -1.0  # voxels from the centres of the field of view's edge, inwards


def steady(run: Run, most: int = MOST_VOLUMES) -> tuple[Volume, list[Volume]]:
    """Mean of a run's first volumes, aligned to each other, without those before steady state and those in which the head lay elsewhere.

    Returns
    -------
    reference : ndarray, float32 (X, Y, Z)
    volumes : list of ndarray, float32 (X, Y, Z)
        What it is the mean of.

    Raises
    ------
    DataError
        There is no volume.
    """
    volumes: list[Volume] = []
    for volume in run:
        if volume is not None and len(volumes) < most + _SETTLING:
            volumes.append(np.nan_to_num(volume, nan=0.0, posinf=0.0, neginf=0.0))
    if not volumes:
        raise DataError("the run: expected at least one volume, found none")
    if len(volumes) == 1:
        return volumes[0], volumes
    first = FirstVolumes(1.0)
    try:
        with Realigner(volumes[len(volumes) // 2], run.grid.affine) as realigner:
            for volume in volumes:
                motion, aligned = realigner.align(volume)
                if motion.converged:
                    first.add(aligned, motion.params, run.grid.affine)
    except ValueError as problem:
        raise DataError(f"the run: expected volumes of a head: {problem}") from None
    good = first.good()[:most] or volumes[:1]
    return np.asarray(np.mean(good, axis=0, dtype=np.float64), np.float32), good


def find_placement(decoder: Decoder, today: Volume, grid: Grid, matrix: Array | None = None, weight: Volume | None = None) -> Placement:
    """Place a decoder on a run's reference, or judge a transform that was given (decoder's world to today's)."""
    size = np.abs(decoder.weights) if weight is None else weight
    if matrix is None:
        return place(decoder.reference, decoder.grid, today, grid, weight=size)
    try:
        return judge(matrix, decoder.reference, decoder.grid, today, grid, weight=size)
    except ValueError as problem:
        raise GeometryError(f"the transform: {problem}") from None


def sentence(placement: Placement) -> str:
    """Return a placement in one line, with its reasons."""
    figures = (
        f"placement {placement.verdict.value}: correlation {placement.correlation:.2f}, {placement.overlap:.0%} of the head and "
        f"{placement.weight_kept:.0%} of the weight in the field of view, expected error {placement.expected_error_mm:.2f} mm"
    )
    return "; ".join([figures, *(reason.rstrip(".") for reason in placement.reasons)])


def for_run(decoder: Decoder, run: Run) -> tuple[Decoder, Placement | None]:
    """Return a decoder for a run of any grid, as a session would have it.

    Returns
    -------
    decoder : Decoder
        Itself on its own grid, reordered where the run has its voxels in another order, else carried to the run's first steady volumes.
    placement : Placement or None
        None where none was needed.

    Raises
    ------
    GeometryError
        The placement is bad.
    """
    carried, placement = maps_for_run([decoder], run)
    return carried[0], placement


def maps_for_run(decoders: Sequence[Decoder], run: Run) -> tuple[list[Decoder], Placement | None]:
    """Return the maps of one folder for a run of any grid, as :func:`for_run`, all by one placement.

    Raises
    ------
    GeometryError
        The placement is bad.
    """
    same = [found for decoder in decoders if (found := reorder(decoder, run.grid)) is not None]
    if len(same) == len(decoders):
        return same, None
    wanted = "expected a run in which the decoder's head can be found"
    try:
        today, volumes = steady(run)
    except DataError as problem:
        raise GeometryError(f"{wanted}: {problem}") from None
    placement = find_placement(decoders[0], today, run.grid, weight=None if len(decoders) == 1 else _weight(decoders))
    if placement.verdict is Verdict.BAD:
        raise GeometryError(f"{wanted}: {sentence(placement)}")
    return [carry(decoder, placement, today, run.grid, volumes=volumes) for decoder in decoders], placement


def _weight(decoders: Sequence[Decoder]) -> Volume:
    """Where several maps weigh, each as much as another."""
    return np.asarray(np.sum([np.abs(decoder.weights) / np.abs(decoder.weights).max() for decoder in decoders], axis=0))


def in_order(run: Run, grid: Grid) -> Run:
    """Return a run in the order in which another grid holds the same voxels; itself where it has that order, or other voxels."""
    order = None if not grid.difference(run.grid) else same_voxels(run.grid, grid)
    if order is None:
        return run

    def volume(index: int) -> Volume | None:
        found = run.volume(index)
        return None if found is None else order(found)

    return Run(order.grid(run.grid), run.tr_s, run.count, volume)


def seen_by(run: Run, placement: Placement, grid: Grid) -> NDArray[np.bool_]:
    """Return the voxels of another grid that a run covers, with a margin for the head's motion; bool (X, Y, Z)."""
    return inside(placement.matrix, grid, run.grid, _MARGIN)


def sampled(
    run: Run, reference: Volume, placement: Placement, grid: Grid, mask: NDArray[np.bool_]
) -> Iterator[tuple[int, Volume | None, Array]]:
    """Sample every volume of a run on another grid, in one interpolation by its motion after the placement.

    Parameters
    ----------
    run : Run
    reference : ndarray, float32 (x, y, z)
        Of the run, on its own grid: motion is estimated against it.
    placement : Placement
        World of `grid` to world of that reference.
    grid : Grid
        Where to sample.
    mask : ndarray, bool (X, Y, Z)
        Voxels of `grid` that must be finite.

    Yields
    ------
    index : int
    volume : ndarray, float32 (X, Y, Z), or None
        None: missing, not aligned, or not finite in the mask.
    params : ndarray, float64 (6,)
        Its motion, mm and rad; NaN where there is none.
    """
    to_voxel, to_world = np.linalg.inv(run.grid.affine), placement.matrix @ grid.affine
    with Realigner(reference, run.grid.affine) as realigner:
        for index, raw in enumerate(run):
            motion = None if raw is None else realigner.estimate(raw)
            if raw is None or motion is None or not motion.converged:
                yield index, None, np.full(6, np.nan)
                continue
            matrix = to_voxel @ motion.matrix @ to_world
            volume: Volume | None = sample(raw, matrix, grid.shape)
            if not np.isfinite(raw.sum(dtype=np.float64)):
                holes = sample(~np.isfinite(raw), matrix, grid.shape)
                volume = None if (np.abs(holes[mask]) > 0.01).any() else volume
            yield index, volume, np.asarray(motion.params, np.float64)


def carry_folder(folder: Path, name: str | None, run: Run, out: Path, matrix: Array | None = None) -> tuple[Placement, list[Decoder]]:
    """Write a decoder folder on a run's grid, ``placement.json`` and ``placement.png``; where the verdict is bad, only these two.

    Parameters
    ----------
    folder : Path
        The decoder's.
    name : str or None
        One map; None: all of the folder.
    run : Run
        Today's.
    out : Path
        May exist where it is empty or holds an earlier placement, which is replaced.
    matrix : ndarray, float64 (4, 4), optional
        The transform, where it was given.

    Raises
    ------
    DecoderError
        There is no such decoder, or `out` holds something else.
    """
    maps = maps_in(folder)
    stored = Decoder.load(folder, name or (maps[0] if maps else None))
    decoders = [stored] if name is not None or len(maps) == 1 else [Decoder.load(folder, each) for each in maps]
    _clear(out)
    today, volumes = steady(run)
    weight = _weight(decoders)
    placement = find_placement(stored, today, run.grid, matrix, weight)
    out.mkdir(parents=True, exist_ok=True)
    (out / PLACEMENT).write_text(json.dumps(placement.as_dict(), indent=2) + "\n", "utf-8")
    draw_placement(out / PICTURE, placement, stored.reference, stored.grid, today, run.grid, weight=weight, title=folder.name)
    if placement.verdict is Verdict.BAD:
        return placement, []
    carried = [carry(decoder, placement, today, run.grid, volumes=volumes) for decoder in decoders]
    own = own_settings(folder) if len(carried) > 1 else None
    for one in carried:
        write_decoder(out, one.name, one.reference, one.mask, one.weights, one.grid.affine, one.settings, one.noise_sd, own)
    _name_as(folder, out, len(carried) > 1)
    return placement, carried


def _clear(out: Path) -> None:
    """Remove an earlier placement; refuse a folder that holds anything else."""
    there = list(out.iterdir()) if out.is_dir() else []
    if there and not (out / PLACEMENT).is_file():
        raise DecoderError(f"{out}: expected a new folder, or one with an earlier placement, found other files; choose another --out")
    for path in there:
        if path.name in (REFERENCE, MASK, NOISE, SETTINGS, PLACEMENT, PICTURE) or path.name.endswith(SUFFIX):
            path.unlink()


def _name_as(folder: Path, out: Path, several: bool) -> None:
    """Set the default map of a folder of several maps to that of the first folder, or to none."""
    if not several:
        return
    source = folder / SETTINGS
    name = read_json(source).get("name") if source.is_file() else None
    stored = read_json(out / SETTINGS)
    stored.pop("name", None)
    named = {"name": name} if name else {}
    (out / SETTINGS).write_text(json.dumps({**stored, **named}, indent=2) + "\n", "utf-8")
