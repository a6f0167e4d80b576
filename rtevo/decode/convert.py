"""Decoders from elsewhere: the prototype's maps, and pickled linear models of scikit-learn.

A chain of linear steps (mask, principal components, scaler, linear model) is one weight a voxel and an intercept, exactly.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.folder import Decoder, read_map, write_decoder
from rtevo.errors import DecoderError

__all__ = ["convert_maps", "convert_model", "linear"]

Array = NDArray[np.float64]
TIMEOUT_S = 120.0


def convert_maps(reference: Path, mask: Path, weights: Path, out: Path, name: str) -> Decoder:
    """Make a decoder folder of the prototype's three NIfTI files.

    Parameters
    ----------
    reference, mask, weights : Path
        On one grid.
    out : Path
        The decoder's folder.
    name : str
        Of the map.

    Raises
    ------
    DecoderError
        A file is not there or no 3-D NIfTI file, the grids differ, or the arrays make no decoder.
    """
    (volume, grid), (inside, other), (values, third) = read_map(reference), read_map(mask), read_map(weights)
    for path, found in ((mask, other), (weights, third)):
        if difference := grid.difference(found):
            raise DecoderError(f"{path}: not on the grid of {reference}: {difference}")
    chosen = np.nan_to_num(inside) > 0.5
    settings = {"kind": "imported maps", "provenance": _hashes(reference, mask, weights)}
    return write_decoder(out, name, volume, chosen, np.where(chosen, values, 0), grid.affine, settings)


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
    if difference := grid.difference(other):
        raise DecoderError(f"{mask}: not on the grid of {reference}: {difference}")
    chosen = np.nan_to_num(inside) > 0.5
    if len(weights) != chosen.sum():
        raise DecoderError(f"{model}: expected a weight for each of the {int(chosen.sum())} voxels of {mask}, found {len(weights)}")
    values = np.zeros(grid.shape)
    values[chosen] = weights
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
        raise DecoderError(f"the model: expected fitted linear steps that fit each other, found: {problem}") from None
    if not np.isfinite(weights).all():
        raise DecoderError("the model: expected finite weights, found others")
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
        raise DecoderError(f"the model: tells {len(weights)} classes apart; say which is wanted with --class ({', '.join(classes)})")
    row = classes.index(category)  # against the mean of all, so that a change common to all classes does not count
    return weights[row] - weights.mean(axis=0), float(intercepts[row] - intercepts.mean())


def _before(k: int, step: dict[str, Any], arrays: dict[str, NDArray[Any]], weights: Array, intercept: float) -> tuple[Array, float]:
    """Take weights and intercept through a step, to its input."""
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
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        raise DecoderError(f"{model}: refused: reading took more than {TIMEOUT_S:g} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DecoderError(f"{model}: {said[-1] if said else f'refused: its reader ended with {done.returncode}'}")
    head, _, rest = done.stdout.partition(b"\n")
    with np.load(io.BytesIO(rest), allow_pickle=False) as stored:
        return json.loads(head), dict(stored)


def _hashes(*paths: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
