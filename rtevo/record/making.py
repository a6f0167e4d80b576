"""What happens to a run's volumes besides their motion, by its settings and by what the headers say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.config import Config
from rtevo.config.acquisition import Acquisition
from rtevo.decode import read_map
from rtevo.errors import DataError
from rtevo.realign import PLAIN, Echoes, Encoding, Making, load_map, map_on, read_warp
from rtevo.record.kinds import VolumeRecord
from rtevo.record.session import MAPS, taken_over
from rtevo.records import Grid

if TYPE_CHECKING:
    from rtevo.record.session import RecordedSession

__all__ = ["as_they_come", "check_maps", "keep_maps", "making_of", "recorded_making"]

SECONDS = (0.002, 0.5)  # between which the median of a map of T2* lies
LEAST_S = 0.001  # of T2* in a voxel of a map


def making_of(settings: Acquisition, grid: Grid, acquisition: Mapping[str, Any]) -> Making:
    """Make it for a run.

    Parameters
    ----------
    settings : Acquisition
        The section of the session file.
    grid : Grid
        Of the run's volumes.
    acquisition : dict
        What the headers say of the run, with BIDS's names; ``EchoTimes`` where several echoes come.

    Raises
    ------
    DataError
        Headers and settings do not say enough, or a map cannot be read.
    """
    several = settings.echoes > 1
    if not several and not settings.distortion:
        return PLAIN
    warp = None
    if settings.distortion:
        unit = settings.distortion_unit
        encoding = Encoding.of(acquisition, settings.phase_encoding, settings.readout_s, unit) if unit != "mm" else None
        warp = read_warp(Path(settings.distortion), unit, grid, encoding)
    return Making(warp, _echoes(settings, grid, acquisition) if several else None)


def recorded_making(session: RecordedSession) -> Making:
    """Make it for a run that was recorded.

    Raises
    ------
    DataError
        As for :func:`making_of`.
    """
    recorded = session.settings.get("acquisition", {})
    moved = {key: value for (section, key), value in taken_over(session.out).items() if section == "acquisition"}
    settings = Acquisition(**{each.name: recorded[each.name] for each in fields(Acquisition) if each.name in recorded} | moved)
    said = next((record.acquisition for record in session.records(VolumeRecord) if record.acquisition), {})
    return PLAIN if session.grid is None else making_of(settings, session.grid, said)


def _echoes(settings: Acquisition, grid: Grid, acquisition: Mapping[str, Any]) -> Echoes:
    """How echoes are combined."""
    te_s = [float(te) for te in acquisition.get("EchoTimes", ())]
    if len(te_s) != settings.echoes or min(te_s) <= 0:
        raise DataError(f"[acquisition] echoes: expected the times of {settings.echoes} echoes in the headers, found {te_s or 'none'}")
    if not settings.t2star:
        return Echoes(te_s)
    path = Path(settings.t2star)
    t2star_s = map_on(*_t2star(path), grid)
    return Echoes(te_s, np.asarray(np.maximum(t2star_s, LEAST_S), np.float32))


def as_they_come(config: Config) -> Config:
    """Return the settings without what happens to volumes besides their motion: for a decoder's reference, which stands for one."""
    return replace(config, acquisition=replace(config.acquisition, echoes=1, distortion=""))


def check_maps(config: Config) -> None:
    """Check what can be checked before a volume comes.

    Raises
    ------
    DataError, DecoderError
        A map or a mask cannot be read.
    """
    if config.acquisition.distortion:
        load_map(Path(config.acquisition.distortion), config.acquisition.distortion_unit)
    if config.acquisition.t2star:
        _t2star(Path(config.acquisition.t2star))
    for mask in (config.decoder.white_matter_mask, config.decoder.csf_mask):
        if mask:
            read_map(Path(mask))


def keep_maps(config: Config, out: Path) -> Config:
    """Copy maps and masks into the session's folder, so that it can be computed again from that alone; return settings that name them."""
    for section, key in MAPS:
        own = getattr(config, section)
        if named := getattr(own, key):
            copy = out / f"{key}{'.nii.gz' if named.endswith('.gz') else '.nii'}"
            shutil.copyfile(named, copy)
            changes: dict[str, Any] = {section: replace(own, **{key: str(copy)})}
            config = replace(config, **changes)
    return config


def _t2star(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a map of T2* and its affine; where it has no number the median of the others stands."""
    data, affine = load_map(path, "s")
    known = data[np.isfinite(data) & (data > 0)]
    middle = float(np.median(known)) if known.size else 0.0
    if not SECONDS[0] < middle < SECONDS[1]:
        raise DataError(f"{path}: expected T2* in s, found a median of {middle:g}: is it in ms?")
    return np.where(np.isfinite(data) & (data > 0), data, middle), affine
