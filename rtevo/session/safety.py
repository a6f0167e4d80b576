"""The session file's safety settings -> embeddings to avoid, and the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.config import Config
from rtevo.errors import DataError
from rtevo.evolve import Shell
from rtevo.gate import Gate, make_gate
from rtevo.latent import Avoid, LatentSpace
from rtevo.outside import load_array

__all__ = ["AVOIDED", "Adjustment", "avoid_of", "gate_of"]

AVOIDED = "avoid.npy"  # name in a session's folder


def avoid_of(config: Config, space: LatentSpace, out: Path | None = None) -> Avoid | None:
    """Return the embeddings that a session avoids; None: none.

    Parameters
    ----------
    config : Config
    space : LatentSpace
    out : Path, optional
        The session's folder, if it exists already: the embeddings are saved there (:data:`AVOIDED`).

    Raises
    ------
    DataError
        Embeddings or pictures cannot be read, or do not fit the space.
    """
    safety = config.safety
    if out is not None and (out / AVOIDED).exists():
        return Avoid(space, load_array(out / AVOIDED), safety.avoid_distance)
    if not safety.avoid:
        return None
    if not Path(safety.avoid).is_dir():
        return Avoid.load(space, safety.avoid, safety.avoid_distance)
    from rtevo.generate.encode import encode_folder

    model = Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else None
    return Avoid(space, encode_folder(Path(safety.avoid), model, _here(config.generator.devices[0])), safety.avoid_distance)


def gate_of(config: Config, avoid: Avoid | None, device: str = "cpu") -> Gate:
    """Return a session's gate, with filters not started yet; `device` runs a safety checker.

    Raises
    ------
    ConfigError
        A filter is not installed, or a folder is not a safety checker's.
    """
    safety = config.safety
    return make_gate(avoid, safety.checker, safety.filters, safety.deadline_s, _here(device))


def _here(device: str) -> str:
    """Return a device of this computer, because pictures are judged here even if another computer paints them."""
    return "auto" if device.startswith("dask://") else device


class Adjustment:
    """Keeps latents within a session's limits, and away from embeddings to avoid.

    Parameters
    ----------
    space : LatentSpace
    limits : sequence of float
        Least and greatest length of a latent, 1 = the usual one; of its embedding the greatest holds, too. Empty: none.
    avoid : Avoid, optional
    rng : numpy.random.Generator
        Random generator for the directions around avoided embeddings.
    distance : float
        Cosine distance to keep to embeddings whose pictures were refused; 0: none.
    """

    def __init__(
        self, space: LatentSpace, limits: Sequence[float], avoid: Avoid | None, rng: np.random.Generator, distance: float = 0.0
    ) -> None:
        self._space, self._limits, self._rng, self._usual = space, limits, rng, math.sqrt(space.latent_size)
        self._avoid, self._distance = avoid, distance
        self._refused: list[NDArray[np.float32]] = []  # embeddings, the oldest first

    def __call__(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return permitted latents, float32 (n, d), in place of the requested ones."""
        if self._limits:
            norm = np.linalg.norm(latents, axis=1, keepdims=True)
            latents = (latents * (np.clip(norm, self._limits[0] * self._usual, self._limits[1] * self._usual) / norm)).astype(np.float32)
            shell = Shell.of(self._space.mean, self._space.components, self._space.scale)
            latents = shell.within(latents.astype(np.float64), self._limits[1]).astype(np.float32)
        while self._refused:
            away = Avoid(self._space, self._refused, self._distance, beside=self._avoid)
            try:
                return away.away(latents, self._rng)
            except DataError:
                del self._refused[0]  # with so many refusals almost no direction is left: keep only the latest
        return self._avoid.away(latents, self._rng) if self._avoid is not None else latents

    def refused(self, latent: NDArray[np.float32]) -> None:
        """Avoid a latent, float32 (d,), whose pictures were refused, if the session requires it."""
        if self._distance:
            self._refused.append(self._space.to_embedding(latent))
