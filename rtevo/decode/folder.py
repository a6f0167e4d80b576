"""The decoder folder: a reference volume, a mask and a weight map on one grid, as NIfTI files, and settings as JSON.

Nothing in it is ever unpickled. The three NIfTI files alone are a decoder too; ``noise_sd.nii.gz``, the voxels' noise in the training
run, lets ``deconvolve`` start without a baseline.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, NDArray

from rtevo.errors import DataError, DecoderError
from rtevo.objective import Goal
from rtevo.outside import read_json
from rtevo.records import Grid

__all__ = [
    "MASK",
    "NOISE",
    "REFERENCE",
    "SETTINGS",
    "SUFFIX",
    "Decoder",
    "decoder_files",
    "maps_in",
    "own_settings",
    "read_map",
    "write_decoder",
]

REFERENCE, MASK, SETTINGS, SUFFIX = "ref_img.nii.gz", "mask_img.nii.gz", "decoder.json", "_img.nii.gz"
NOISE = "noise_sd.nii.gz"
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Decoder:
    """A weight map, and the reference and mask that go with it.

    Parameters
    ----------
    grid : Grid
        Of all three.
    reference : ndarray, float32 (X, Y, Z)
        Volumes are realigned to this.
    mask : ndarray, bool (X, Y, Z)
        Voxels that are decoded.
    weights : ndarray, float32 (X, Y, Z)
        The map, zero outside the mask.
    name : str
        What it decodes.
    settings : dict
        Settings stored with the decoder, empty for a folder without ``decoder.json``; where there are several maps, with what is this map's
        own. `unit`, where there is one, is the noise of the map's projection in units of a voxel's: scores are in units of it.
    noise_sd : ndarray, float32 (X, Y, Z), optional
        Standard deviation of each voxel's noise, smoothed and denoised, in the reference's units; 0 where the voxel does not count.
    goal : Goal, optional
        An objective over several maps, see :func:`rtevo.decode.maps.load_decoder`.
    maps : tuple of Decoder
        These maps, in the order of `goal.maps`, on one grid and reference; `weights` then say where they weigh, `mask` is all of theirs.

    Raises
    ------
    DecoderError
        The arrays do not fit the grid, the mask is empty, or the weights inside it are not finite or all the same.
    """

    grid: Grid
    reference: NDArray[np.float32]
    mask: NDArray[np.bool_]
    weights: NDArray[np.float32]
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    noise_sd: NDArray[np.float32] | None = None
    goal: Goal | None = None
    maps: tuple[Decoder, ...] = ()

    def __post_init__(self) -> None:
        for name in ("reference", "mask", "weights", *(() if self.noise_sd is None else ("noise_sd",))):
            shape = getattr(self, name).shape
            if shape != self.grid.shape:
                raise DecoderError(f"decoder '{self.name}', {name}: expected shape {self.grid.shape}, found {shape}")
        reference = np.array(self.reference, np.float32)
        mask = np.array(self.mask, np.bool_)
        weights = np.where(mask, np.asarray(self.weights, np.float32), np.float32(0))
        if not np.isfinite(reference).all():
            raise DecoderError(f"decoder '{self.name}', reference: expected finite numbers, found {_count_bad(reference)} that are not")
        if mask.sum() < 2:
            raise DecoderError(f"decoder '{self.name}', mask: expected at least 2 voxels, found {int(mask.sum())}: it is empty")
        if not np.isfinite(weights).all():
            raise DecoderError(
                f"decoder '{self.name}', weights: expected finite numbers inside the mask, found {_count_bad(weights)} NaN or infinite"
            )
        if np.ptp(weights[mask]) == 0:
            raise DecoderError(f"decoder '{self.name}', weights: expected a map, found {weights[mask][0]:g} in every voxel of the mask")
        arrays: dict[str, NDArray[Any]] = {"reference": reference, "mask": mask, "weights": weights}
        if self.noise_sd is not None:
            arrays["noise_sd"] = np.where(mask, np.asarray(self.noise_sd, np.float32), np.float32(0))
            if not (np.isfinite(arrays["noise_sd"]).all() and (arrays["noise_sd"] >= 0).all()):
                raise DecoderError(f"decoder '{self.name}', noise_sd: expected finite numbers >= 0 inside the mask, found others")
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], name: str | None = None) -> Decoder:
        """Read a decoder folder: ``ref_img.nii.gz``, ``mask_img.nii.gz``, ``NAME_img.nii.gz`` and, optionally, ``decoder.json``.

        Parameters
        ----------
        folder : path
            The folder.
        name : str, optional
            Which map, where the folder has several. Default: the one that ``decoder.json`` names, else the only one.

        Raises
        ------
        DecoderError
            A file is missing or unreadable, the grids differ, no map or no single map is meant, or the arrays make no decoder.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DecoderError(f"{folder}: expected a decoder folder, found no such folder")
        stored = _read_settings(folder / SETTINGS)
        name = _choose_map(folder, name or stored.get("name"))
        reference, grid = read_map(folder / REFERENCE)
        arrays = {REFERENCE: reference}
        for file in (MASK, name + SUFFIX, *((NOISE,) if (folder / NOISE).is_file() else ())):
            arrays[file], other = read_map(folder / file)
            difference = grid.difference(other)
            if difference:
                raise DecoderError(f"{folder / file}: not on the grid of {REFERENCE}: {difference}")
        mask = np.nan_to_num(arrays[MASK]) > 0.5
        settings = {**stored.get("settings", {}), **stored.get("maps", {}).get(name, {})}
        try:
            return cls(grid, reference, mask, arrays[name + SUFFIX], name, settings, arrays.get(NOISE))
        except DecoderError as problem:
            raise DecoderError(f"{folder}: {problem}") from None


def write_decoder(
    folder: str | os.PathLike[str],
    name: str,
    reference: ArrayLike,
    mask: ArrayLike,
    weights: ArrayLike,
    affine: ArrayLike,
    settings: Mapping[str, Any],
    noise_sd: ArrayLike | None = None,
    maps: Mapping[str, Mapping[str, Any]] | None = None,
) -> Decoder:
    """Write a decoder folder that :meth:`Decoder.load` reads.

    Parameters
    ----------
    folder : path
        Made where it is not there. A decoder that is in it is replaced file by file.
    name : str
        Names the map: letters, digits, ``.``, ``_``, ``-``; not ``ref`` or ``mask``.
    reference, mask, weights : array-like, (X, Y, Z)
        As in :class:`Decoder`.
    affine : array-like of float, (4, 4)
        Voxel index to RAS+ mm.
    settings : mapping
        Stored in ``decoder.json``; plain JSON types.
    noise_sd : array-like, (X, Y, Z), optional
        As in :class:`Decoder`.
    maps : mapping, optional
        Settings of each map of a folder that is to hold several: none of them is then meant unless it is named. Write the maps one by one.

    Returns
    -------
    Decoder
        What was written.

    Raises
    ------
    DecoderError
        The arrays make no decoder, the name is not allowed, or the settings are not JSON.
    """
    folder = Path(folder)
    if name in ("ref", "mask", "") or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
        raise DecoderError(f"decoder name: expected letters, digits, '.', '_' or '-', and neither 'ref' nor 'mask', got '{name}'")
    reference = np.asarray(reference, np.float32)
    try:
        grid = Grid(reference.shape, np.asarray(affine, np.float64))
    except ValueError as problem:
        raise DecoderError(f"decoder '{name}': {problem}") from None
    noise = None if noise_sd is None else np.asarray(noise_sd, np.float32)
    decoder = Decoder(grid, reference, np.asarray(mask) > 0, np.asarray(weights, np.float32), name, dict(settings), noise)
    content: dict[str, Any] = {"format_version": FORMAT_VERSION, "name": name, "settings": dict(settings)}
    if maps is not None:
        del content["name"]
        content["maps"] = {each: dict(own) for each, own in maps.items()}
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise DecoderError(f"decoder '{name}', settings: expected plain JSON types, got {problem}") from None
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / REFERENCE, _nifti_bytes(decoder.reference, grid))
    _replace(folder / MASK, _nifti_bytes(decoder.mask.astype(np.uint8), grid))
    _replace(folder / (name + SUFFIX), _nifti_bytes(decoder.weights, grid))
    if decoder.noise_sd is not None:
        _replace(folder / NOISE, _nifti_bytes(decoder.noise_sd, grid))
    else:
        (folder / NOISE).unlink(missing_ok=True)
    _replace(folder / SETTINGS, (text + "\n").encode())
    return decoder


def _read_settings(path: Path) -> dict[str, Any]:
    """Read decoder.json; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        stored = read_json(path)
    except (OSError, DataError) as problem:
        raise DecoderError(f"{path}: expected a JSON file, found something else: {problem}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("settings", {}), dict):
        raise DecoderError(f"{path}: expected an object with an object 'settings', found something else")
    version = stored.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise DecoderError(f"{path}: expected format_version {FORMAT_VERSION}, found {version}")
    maps = stored.get("maps", {})
    if not isinstance(maps, dict) or not all(isinstance(own, dict) for own in maps.values()):
        raise DecoderError(f"{path}: expected 'maps' to be an object of objects, found something else")
    if not isinstance(stored.get("name", ""), str):
        raise DecoderError(f"{path}: expected 'name' to be a text, found {stored['name']!r}")
    return stored


def _choose_map(folder: Path, name: str | None) -> str:
    """Find the one map that is meant, or raise DecoderError that lists those there are."""
    for required in (REFERENCE, MASK):
        if not (folder / required).is_file():
            raise DecoderError(f"{folder}: expected {REFERENCE}, {MASK} and NAME{SUFFIX}, found no {required}")
    maps = _maps_there(folder) if name is not None else maps_in(folder)
    there = f"found {', '.join(maps)}" if maps else "found none"
    if name is not None:
        if name not in maps:
            raise DecoderError(f"{folder}: expected a weight map '{name}' ({name}{SUFFIX}), {there}")
        return name
    if len(maps) != 1:
        raise DecoderError(f"{folder}: expected one weight map NAME{SUFFIX}, or the name of one of several, {there}")
    return maps[0]


def maps_in(folder: Path) -> list[str]:
    """List the names of a folder's weight maps: those that ``decoder.json`` lists and that are there, where it lists any."""
    found = _maps_there(folder)
    listed = _read_settings(folder / SETTINGS).get("maps", {})
    return [name for name in found if name in listed] or found


def own_settings(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return what ``decoder.json`` says of each of several maps; None where it does not."""
    found = _read_settings(folder / SETTINGS).get("maps")
    return found if isinstance(found, dict) else None


def _maps_there(folder: Path) -> list[str]:
    """List the names of a folder's files of weight maps."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob("*" + SUFFIX) if path.name not in (REFERENCE, MASK))


def decoder_files(folder: Path) -> list[str]:
    """List the names of the files that make a decoder: reference, mask, noise, maps, settings, and how it was placed."""
    own = (REFERENCE, MASK, NOISE, SETTINGS, "placement.json", "placement.png")
    return [name for name in own if (folder / name).is_file()] + [name + SUFFIX for name in _maps_there(folder)]


def read_map(path: Path) -> tuple[NDArray[np.float32], Grid]:
    """Read a 3-D NIfTI file, raise DecoderError where it is not one."""
    try:
        image = nib.load(path)
        data = np.asarray(image.get_fdata(dtype=np.float32))
        while data.ndim > 3 and data.shape[-1] == 1:
            data = data[..., 0]
        return data, Grid(data.shape, image.affine)
    except (OSError, EOFError, ValueError, ImageFileError, HeaderDataError) as problem:
        raise DecoderError(f"{path}: expected a 3-D NIfTI file, found something else: {problem}") from None


def _nifti_bytes(data: NDArray[Any], grid: Grid) -> bytes:
    """Encode a compressed NIfTI file; the same data give the same bytes."""
    image = nib.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    os.replace(partial, path)


def _count_bad(array: NDArray[np.float32]) -> int:
    """Count the numbers that are not finite."""
    return int((~np.isfinite(array)).sum())
