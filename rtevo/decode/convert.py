"""Decoders from elsewhere: the prototype's maps, maps in other spaces, and pickled linear models of scikit-learn.

A chain of linear steps (mask, principal components, scaler, linear model) is one weight a voxel and an intercept, exactly.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, map_coordinates

from rtevo.decode.carry import same_voxels
from rtevo.decode.figures import draw_map
from rtevo.decode.folder import Decoder, read_map, write_decoder
from rtevo.errors import DataError, DecoderError
from rtevo.kernels.mask import brain_mask
from rtevo.outside import load_arrays, parse_json, read_apart
from rtevo.place.transforms import read_chain
from rtevo.records import Grid

__all__ = ["convert_maps", "convert_model", "linear", "place_map"]

Array = NDArray[np.float64]
TIMEOUT_S = 120.0
LEAST_ON_HEAD = 0.5
"""A map in another space is refused where less of its weight comes to lie on the reference's head."""
HEAD_MM = 8.0  # of the head around the brain
AROUND_MM, COARSE_MM = 100.0, 5.0  # so far around the reference, and so coarsely, a map's weight is looked for


def convert_maps(reference: Path, mask: Path, weights: Path, out: Path, name: str, transforms: Sequence[Path] = ()) -> Decoder:
    """Make a decoder folder of the prototype's three NIfTI files, or of a map in another space.

    Parameters
    ----------
    reference, mask, weights : Path
        On one grid; with `transforms` the weights may lie on any.
    out : Path
        The decoder's folder. With `transforms`, ``placement.png`` there shows where the map came to lie.
    name : str
        Of the map.
    transforms : sequence of Path
        From the map's space to the reference's, in the order in which ``antsApplyTransforms`` takes them.

    Raises
    ------
    DecoderError
        A file is not there or no 3-D NIfTI file, the grids differ, the arrays make no decoder, or less than half of the map comes to lie on
        the reference's head.
    """
    (volume, grid), (inside, other), (values, third) = read_map(reference), read_map(mask), read_map(weights)
    chosen = _on(mask, np.nan_to_num(inside) > 0.5, other, reference, grid)
    settings: dict[str, Any] = {"kind": "imported maps", "provenance": _hashes(reference, mask, weights, *transforms)}
    if not transforms:
        placed = _on(weights, values, third, reference, grid)
        return write_decoder(out, name, volume, chosen, np.where(chosen, placed, 0), grid.affine, settings)
    placed, on_head = place_map(values, third, volume, grid, transforms)
    out.mkdir(parents=True, exist_ok=True)
    draw_map(out / "placement.png", volume, grid, placed, f"'{name}': {on_head:.0%} of the map on the head of {reference.name}")
    if on_head < LEAST_ON_HEAD:
        files = " ".join(str(path) for path in transforms)
        raise DecoderError(
            f"{weights}: expected at least {LEAST_ON_HEAD:.0%} of the map on the head of {reference}, found {on_head:.0%} "
            f"({out / 'placement.png'}); check the transforms' direction and order: antsApplyTransforms -i MAP -r REFERENCE -t {files}"
        )
    settings |= {"transforms": [str(path) for path in transforms], "on_head": round(on_head, 4)}
    return write_decoder(out, name, volume, chosen, np.where(chosen, placed, 0), grid.affine, settings)


def place_map(
    values: NDArray[np.float32], own: Grid, reference: NDArray[np.float32], grid: Grid, transforms: Sequence[Path]
) -> tuple[Array, float]:
    """Resample a map through transforms: the mean over each voxel of the reference, linear in between the map's.

    Returns
    -------
    placed : ndarray, float64 (X, Y, Z)
        On the reference's grid.
    on_head : float
        Share of the map's absolute weight, wherever it comes to lie, that is on the reference's head.
    """
    chain, known = read_chain(transforms, grid, own), np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    to_voxel = np.linalg.inv(own.affine)

    def look(voxels: Array, what: Array) -> Array:
        points = chain(voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3])
        at = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        return np.asarray(map_coordinates(what, at.T, order=1, mode="grid-constant"), np.float64)

    everywhere = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)
    parts = [np.array(part) / 2 - 0.25 for part in np.ndindex(2, 2, 2)]
    seen = look(np.concatenate([everywhere + part for part in parts]), known)
    placed = seen.reshape(len(parts), *grid.shape).mean(axis=0)

    room = np.ceil(AROUND_MM / grid.voxel_size_mm).astype(int)
    step = np.maximum((COARSE_MM / grid.voxel_size_mm).round().astype(int), 1)
    axes = [np.arange(-n, size + n, by) for n, size, by in zip(room, grid.shape, step, strict=True)]
    around = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    weight = look(around.astype(np.float64), np.abs(known))
    within = ((around >= 0) & (around < grid.shape)).all(axis=1)
    brain = brain_mask(np.nan_to_num(reference), grid.affine)
    head = binary_dilation(brain, iterations=max(round(HEAD_MM / float(grid.voxel_size_mm.mean())), 1))
    on_head = float(weight[within][head[tuple(around[within].T)]].sum())
    return placed, on_head / float(weight.sum()) if weight.sum() > 0 else 0.0


def _on(path: Path, values: NDArray[Any], found: Grid, reference: Path, grid: Grid) -> NDArray[Any]:
    """Return an array in the reference's order of voxels, or raise DecoderError where it has others."""
    order = same_voxels(found, grid)
    if order is None:
        raise DecoderError(f"{path}: not on the grid of {reference}: {grid.difference(found)}")
    return order(values)


def convert_model(model: Path, reference: Path, mask: Path, out: Path, name: str, category: str | None = None) -> Decoder:
    """Make a decoder folder of a pickled linear model, its reference and the mask whose voxels it was fitted on.

    Parameters
    ----------
    model : Path
        Pickle or joblib file; read by :mod:`rtevo.decode.unpickle` in a process of its own.
    reference, mask : Path
        NIfTI files on one grid; the model's columns are the mask's voxels in C order, as nilearn's maskers give them.
    out : Path
        The decoder's folder.
    name : str
        Of the map.
    category : str, optional
        Which class, where the model tells more than two.

    Raises
    ------
    DecoderError
        The file was refused (the message says what it asked for), the model is not linear, or it does not fit the mask.
    """
    steps, arrays = _read_apart(model)
    weights, intercept = linear(steps, arrays, category)
    (volume, grid), (inside, other) = read_map(reference), read_map(mask)
    _on(mask, inside, other, reference, grid)
    chosen = np.nan_to_num(inside) > 0.5
    if len(weights) != chosen.sum():
        raise DecoderError(f"{model}: expected a weight for each of the {int(chosen.sum())} voxels of {mask}, found {len(weights)}")
    values = np.zeros(other.shape)
    values[chosen] = weights  # columns follow the mask's own order
    chosen, values = (_on(mask, array, other, reference, grid) for array in (chosen, values))
    settings = {
        "kind": "imported model",
        "steps": [step["name"] for step in steps],
        "intercept": intercept,
        "provenance": _hashes(model, reference, mask),
    }
    return write_decoder(out, name, volume, chosen, values, grid.affine, settings)


def linear(steps: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], category: str | None = None) -> tuple[Array, float]:
    """Multiply a chain of linear steps out.

    Parameters
    ----------
    steps, arrays
        From :func:`rtevo.decode.unpickle.read`.
    category : str, optional
        Which class, where there are more than two.

    Returns
    -------
    weights : ndarray, float64 (columns,)
        Of the chain's input.
    intercept : float

    Raises
    ------
    DecoderError
        A step is not fitted, or the sizes do not fit each other.
    """
    try:
        weights, intercept = _decision(len(steps) - 1, steps[-1]["name"], arrays, category)
        for k in reversed(range(len(steps) - 1)):
            weights, intercept = _before(k, steps[k], arrays, weights, intercept)
    except (KeyError, IndexError, ValueError) as problem:
        raise DecoderError(f"the model: expected fitted linear steps of matching sizes, found: {problem}") from None
    if not np.isfinite(weights).all():
        raise DecoderError("the model: expected finite weights, found NaN or infinity")
    return weights, float(intercept)


def _decision(k: int, name: str, arrays: dict[str, NDArray[Any]], category: str | None) -> tuple[Array, float]:
    """Weights and intercept of the last step."""
    if f"{k}.coef_" not in arrays:
        raise DecoderError(f"the model: expected a fitted linear model as its last step, found {name} without coef_")
    weights = np.atleast_2d(np.asarray(arrays[f"{k}.coef_"], np.float64))
    intercepts = np.broadcast_to(np.asarray(arrays.get(f"{k}.intercept_", 0.0), np.float64).ravel(), len(weights))
    classes = [str(c) for c in arrays.get(f"{k}.classes_", ())]
    if category is not None and category not in classes:
        raise DecoderError(f"--class: expected one of {', '.join(classes) or 'none'}, got '{category}'")
    if len(weights) == 1:
        sign = -1.0 if category is not None and category == classes[0] else 1.0
        return sign * weights[0], sign * float(intercepts[0])
    if category is None:
        raise DecoderError(f"the model: has {len(weights)} classes; choose one with --class ({', '.join(classes)})")
    row = classes.index(category)  # against the mean of all, so that a change common to all classes does not count
    return weights[row] - weights.mean(axis=0), float(intercepts[row] - intercepts.mean())


def _before(k: int, step: dict[str, Any], arrays: dict[str, NDArray[Any]], weights: Array, intercept: float) -> tuple[Array, float]:
    """Propagate weights and intercept back through a step, to its input."""
    mean = np.asarray(arrays[f"{k}.mean_"], np.float64) if f"{k}.mean_" in arrays else np.zeros(1)
    if step["name"] == "StandardScaler":
        weights = weights / np.asarray(arrays.get(f"{k}.scale_", 1.0), np.float64)
    elif step["name"] == "PCA":
        scale = np.sqrt(arrays[f"{k}.explained_variance_"]) if step.get("whiten") else 1.0
        weights = (weights / scale) @ np.asarray(arrays[f"{k}.components_"], np.float64)
    else:
        raise DecoderError(f"the model: expected StandardScaler or PCA before the last step, found {step['name']}")
    return weights, intercept - float((weights * mean).sum())


def _read_apart(model: Path) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Read a model in a process of its own."""
    if not model.is_file():
        raise DecoderError(f"{model}: expected a pickled model, found no such file")
    command = [sys.executable, "-I", "-m", "rtevo.decode.unpickle", str(model.resolve())]
    try:
        head, _, rest = read_apart(command, TIMEOUT_S).partition(b"\n")
        return parse_json(head), load_arrays(rest)
    except DataError as error:
        raise DecoderError(f"{model}: {error}") from None


def _hashes(*paths: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
