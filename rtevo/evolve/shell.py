"""The region in which the image model was trained: limits on the length of embeddings.

An image model paints well what it was trained on, embeddings of pictures, and these lie on a shell. Latents on a sphere are on that shell
where a latent space's scales are all alike. Where its variances fall, as 1/k say, a latent of the usual length along the first components
has an embedding several times as long as any picture's: there the length of the embedding is what limits a latent, too.

Candidates that are too long keep their direction. To turn them instead, to the best point by the model within both limits, spends what is
left of the latent's length on components of which next to nothing is known: that did worse (docs/evolution.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Shell"]

_ROUNDING = 1e-6  # relative, that of float32: in a space of equal scales nothing is moved
_FOLLOWS = 0.25

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
    follows : float
        How far what is expected of a preference follows the space: its effect along a component is expected to be as large as the scale to
        this power, in latents. 0: all alike; 1: all directions of the embedding alike.

    Raises
    ------
    ValueError
        The shapes do not fit, or the numbers are out of range.
    """

    scale: Array
    tilt: Array
    follows: float = _FOLLOWS

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
        """Shorten latents whose embeddings are too long, so that these lie on the shell.

        Parameters
        ----------
        points : ndarray, float64 (n, d)
        high : float
            As for :meth:`most`.
        """
        most, usual = self.most(high), float((self.scale**2).sum())
        far = self.excess(points) > most * (1 + _ROUNDING)
        if not far.any():
            return points
        moved = points.copy()
        square, linear = ((moved[far] * self.scale) ** 2).sum(axis=1) / usual, moved[far] @ self.tilt / usual
        moved[far] *= ((np.sqrt(linear**2 + square * most) - linear) / square)[:, np.newaxis]
        return moved

    def weights(self) -> Array:
        """How large the effect along each component is expected to be, float64 (d,): mean square 1, and 1 where all scales are alike."""
        relative = (self.scale / self.scale.max()) ** self.follows
        return np.asarray(relative / math.sqrt(float((relative**2).mean())), np.float64)

    def to_state(self) -> dict[str, Any]:
        """Return the shell as plain JSON types."""
        return {"scale": self.scale.tolist(), "tilt": self.tilt.tolist(), "follows": self.follows}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Shell:
        """Return the shell that :meth:`to_state` gave."""
        return cls(np.array(state["scale"], np.float64), np.array(state["tilt"], np.float64), float(state["follows"]))
