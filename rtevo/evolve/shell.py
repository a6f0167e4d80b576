"""Where the image model has been trained: how long the embeddings of latents may be.

An image model paints well what it was trained on, embeddings of pictures, and these lie on a shell. Latents on a sphere are on that shell
where a latent space's scales are all alike. Where its variances fall, as 1/k say, a latent of the usual length along the first components
has an embedding several times as long as any picture's: there the length of the embedding is what limits a latent, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Shell"]

_ROUNDING = 1e-9  # relative: in a space of equal scales nothing is moved
_HALVINGS = 40

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shell:
    """Lengths of the embeddings ``mean + (latent * scale) @ components``.

    What counts is how much the squared length of an embedding exceeds that of the mean's: ``|scale x|^2 + 2 tilt . x``.

    Parameters
    ----------
    scale : ndarray, float64 (d,)
        Embedding units of one latent unit along each component, > 0.
    tilt : ndarray, float64 (d,)
        Of each component, its scale times the mean's coordinate along it.

    Raises
    ------
    ValueError
        The shapes do not fit, or the numbers are out of range.
    """

    scale: Array
    tilt: Array

    def __post_init__(self) -> None:
        if self.scale.ndim != 1 or self.tilt.shape != self.scale.shape:
            raise ValueError(f"shell: expected scale and tilt of one length, got shapes {self.scale.shape} and {self.tilt.shape}")
        if not (np.isfinite(self.scale).all() and np.isfinite(self.tilt).all() and (self.scale > 0).all()):
            raise ValueError("shell: expected finite numbers and scales > 0")

    @classmethod
    def of(cls, mean: ArrayLike, components: ArrayLike, scale: ArrayLike) -> Shell:
        """Return the shell of a latent space: mean (e,), components (d, e), scale (d,)."""
        scales = np.asarray(scale, np.float64)
        return cls(scales, scales * (np.asarray(components, np.float64) @ np.asarray(mean, np.float64)))

    def excess(self, points: Array) -> Array:
        """Squared length of the embeddings of latents (n, d) above the mean's, in squares of the usual distance from it (n,)."""
        return np.asarray((((points * self.scale) ** 2).sum(axis=1) + 2 * points @ self.tilt) / (self.scale**2).sum(), np.float64)

    def most(self, high: float) -> float:
        """Greatest allowed :meth:`excess`.

        Parameters
        ----------
        high : float
            Greatest length of a latent and of an embedding's distance from the mean, as a share of the usual ones. Towards the mean's own
            direction as much is allowed besides as random latents reach: 1.4 standard deviations.
        """
        return high**2 + 2 * math.sqrt(2) * float(np.linalg.norm(self.tilt)) / float((self.scale**2).sum())

    def within(self, points: Array, high: float) -> Array:
        """Move latents whose embeddings are too long onto the shell.

        A point stands for the direction in which things get better and for its own length. It becomes the best one by that direction which
        is no longer, and whose embedding is no longer than allowed: the first components, in which lengths are dear, give way to the others.

        Parameters
        ----------
        points : ndarray, float64 (n, d)
        high : float
            As for :meth:`most`.
        """
        most = self.most(high)
        moved = np.array(points, np.float64)
        far = self.excess(moved) > most * (1 + _ROUNDING)
        if far.any():
            moved[far] = self._best(moved[far], most)
        return moved

    def _best(self, points: Array, most: float) -> Array:
        """Return the maxima of ``point . x`` over the ball through each point and the ellipsoid (Karush, Kuhn and Tucker's conditions)."""
        usual = float((self.scale**2).sum())
        dear, tilt, radius = self.scale**2 / usual, self.tilt / usual, np.linalg.norm(points, axis=1, keepdims=True)
        aim, centre = points / radius, tilt / dear
        stretch = np.sqrt((most + float(centre @ tilt)) / (aim**2 / dear).sum(axis=1, keepdims=True))
        alone = stretch * aim / dear - centre  # by the ellipsoid alone
        low, high, best = np.zeros_like(radius), np.ones_like(radius), points
        for _ in range(_HALVINGS):
            price = (low + high) / 2
            shrunk = 1 - price + price * dear / dear.mean()
            turned, shift = (1 - price) * aim / shrunk, price * tilt / dear.mean() / shrunk
            across, along = (turned * shift).sum(axis=1, keepdims=True), (turned**2).sum(axis=1, keepdims=True)
            root = across**2 - along * ((shift**2).sum(axis=1, keepdims=True) - radius**2)
            on_both = (across + np.sqrt(np.maximum(root, 0.0))) / along * turned - shift
            best = np.where(root >= 0, on_both, best)
            far = (root >= 0) & (self.excess(best)[:, np.newaxis] > most)
            low, high = np.where(far, price, low), np.where(far, high, price)
        return np.where(np.linalg.norm(alone, axis=1, keepdims=True) <= radius, alone, best)

    def to_state(self) -> dict[str, Any]:
        """Return the shell as plain JSON types."""
        return {"scale": self.scale.tolist(), "tilt": self.tilt.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Shell:
        """Return the shell that :meth:`to_state` gave."""
        return cls(np.array(state["scale"], np.float64), np.array(state["tilt"], np.float64))
