"""The states that the next run of a visit takes over: the decoder's placement, what it has learnt, the state of evolution.

At the end of a run of a visit its decoder's state is saved in the run's folder (``decoder-state/``). A run that continues another one
keeps copies of these states in its own folder, so that it can be recomputed from that alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.config import Config
from rtevo.decode import Decoder, together, write_decoder
from rtevo.errors import ConfigError, DataError, DecoderError
from rtevo.outside import load_arrays, read_json
from rtevo.physio import SENSORS
from rtevo.record import DECODER_BEFORE, EVOLUTION, EVOLUTION_BEFORE
from rtevo.session.sensors import sensors_of

if TYPE_CHECKING:
    from rtevo.decode import Learnt
    from rtevo.session.decoding import Decoding

__all__ = ["STATE", "Before", "before_of", "keep", "save_decoder", "save_state"]

STATE = "decoder-state"
_LEARNT, _WORDS, _DECODER, _GUIDE = "learnt.npz", "state.json", "decoder", "guide.npz"
_SETTINGS = ("method", "motion_terms", "drift", "hrf", "fwhm_mm")  # of [decoder], which what has been learnt rests on
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Before:
    """The state that a run's decoder takes over.

    Parameters
    ----------
    decoder : Decoder
        Decoder on the grid of the earlier run.
    place : ndarray, float64 (4, 4)
        Its place: the session's decoder's world to that of `decoder`, rigid.
    learnt : dict of str to ndarray
        See :meth:`rtevo.decode.Scorer.learnt`.
    guide : ndarray, float32 (X, Y, Z), optional
        What motion was estimated against, where that was no reference of a decoder's: see :mod:`rtevo.session.placing`.
    """

    decoder: Decoder
    place: NDArray[np.float64]
    learnt: Learnt
    guide: NDArray[np.float32] | None = None


def save_decoder(folder: Path, decoder: Decoder) -> None:
    """Save a decoder, with all its maps, as a decoder folder."""
    own = {one.name: one.settings for one in decoder.maps} or None
    for one in decoder.maps or (decoder,):
        write_decoder(folder, one.name, one.reference, one.mask, one.weights, one.grid.affine, one.settings, one.noise_sd, own)


def save_state(out: Path, decoding: Decoding, config: Config, decoder: Decoder, tr_s: float) -> None:
    """Save the state for the next run, after the last volume; nothing if the decoder was never placed.

    Parameters
    ----------
    out : Path
        The run's folder.
    decoding : Decoding
    config : Config
    decoder : Decoder
        The session's, as it was made.
    tr_s : float
    """
    if (lay := decoding.lay) is None:
        return
    partial, place = out / f"{STATE}.part", out / STATE
    for folder in (partial, place):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    carried, matrix = lay
    np.savez(partial / _LEARNT, **decoding.learnt())  # type: ignore[arg-type]
    if carried is not decoder:
        save_decoder(partial / _DECODER, carried)
    if decoding.guide is not None:
        np.savez(partial / _GUIDE, guide=decoding.guide)
    words = {"schema": 1, "place": matrix.tolist(), "carried": carried is not decoder, "made_with": _made_with(config, decoder, tr_s)}
    (partial / _WORDS).write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
    partial.rename(place)


def before_of(config: Config, decoder: Decoder, tr_s: float) -> Before | None:
    """Read the state that the session takes over from an earlier run; None if it names none.

    Parameters
    ----------
    config : Config
    decoder : Decoder
        The session's, as it was made.
    tr_s : float

    Raises
    ------
    ConfigError
        There is no such state, or it belongs to another decoder or to other settings.
    """
    if not config.decoder.continue_from:
        return None
    folder, where = _state_in(Path(config.decoder.continue_from)), f"[decoder] continue_from: {config.decoder.continue_from}"
    try:
        words = read_json(folder / _WORDS)
        place = np.array(words["place"], np.float64)
        if place.shape != (4, 4) or not np.isfinite(place).all():
            raise ValueError("place: expected a matrix of 4 x 4 numbers")
        made_with, now = dict(words["made_with"]), _made_with(config, decoder, tr_s)
        different = [name for name in {**now, **made_with} if made_with.get(name) != now.get(name)]
        if others := [f"{name} {made_with.get(name, 'none')!r}, not {now.get(name, 'none')!r}" for name in different]:
            raise ConfigError(f"{where}: expected the state of this session's decoder with its settings, found {'; '.join(others)}")
        carried = _carried(folder / _DECODER, decoder) if words["carried"] else decoder
        guide = load_arrays(folder / _GUIDE, _MOST_BYTES)["guide"] if (folder / _GUIDE).exists() else None
        if guide is not None and guide.shape != carried.grid.shape:
            raise ValueError(f"{_GUIDE}: expected shape {carried.grid.shape}, found {guide.shape}")
        return Before(carried, place, load_arrays(folder / _LEARNT, _MOST_BYTES), guide)
    except (OSError, DataError, DecoderError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f"{where}: expected the state of a run of a visit, found something else: {problem}") from None


def keep(config: Config, out: Path) -> Config:
    """Copy the states that a session takes over into its folder; return the settings that name the copies."""
    decoder, evolution = config.decoder, config.evolution
    if decoder.continue_from:
        shutil.copytree(_state_in(Path(decoder.continue_from)), out / DECODER_BEFORE)
        decoder = replace(decoder, continue_from=str(out / DECODER_BEFORE))
    if evolution.continue_from:
        place = Path(evolution.continue_from)
        shutil.copyfile(place / EVOLUTION if place.is_dir() else place, out / EVOLUTION_BEFORE)
        evolution = replace(evolution, continue_from=str(out / EVOLUTION_BEFORE))
    return replace(config, decoder=decoder, evolution=evolution)


def _state_in(place: Path) -> Path:
    """Return the folder of a state, in a run's folder or the folder itself."""
    return place / STATE if (place / STATE).is_dir() else place


def _carried(folder: Path, decoder: Decoder) -> Decoder:
    """Read a decoder carried to the grid of a run."""
    if decoder.maps:
        return together(decoder, [Decoder.load(folder, one.name) for one in decoder.maps])
    return Decoder.load(folder, decoder.name)


def _made_with(config: Config, decoder: Decoder, tr_s: float) -> Mapping[str, Any]:
    """Return the settings and the decoder on which a state depends."""
    digest = hashlib.sha256(repr(decoder.goal).encode())
    for one in decoder.maps or (decoder,):
        for array in (one.grid.affine, one.reference, one.mask, one.weights):
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())  # as files hold it
    made_with = {"decoder": digest.hexdigest(), "tr_s": tr_s, **{name: getattr(config.decoder, name) for name in _SETTINGS}}
    physio = [*(SENSORS[each] for each in sensors_of(config)), *config.physio.terms] if config.physio.measured else []
    return made_with | {name: list(own) for name, own in (("nuisance", config.decoder.nuisance), ("physio", physio)) if own}
