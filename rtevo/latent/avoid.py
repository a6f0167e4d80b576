"""Content that a study must not show: embeddings to stay away from."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.errors import DataError
from rtevo.latent.space import LatentSpace
from rtevo.outside import load_array

__all__ = ["Avoid"]


class Avoid:
    """Embeddings to stay away from: content that a study must not show.

    Parameters
    ----------
    space : LatentSpace
    embeddings : array-like of float, (k, e)
        What to stay away from.
    distance : float
        Smallest cosine distance to any of them, between 0 and 2.
    beside : Avoid, optional
        What is to be kept away from besides, at a distance of its own.

    Attributes
    ----------
    distance : float

    Raises
    ------
    DataError
        The embeddings are of another size, not finite, or zero.
    """

    def __init__(self, space: LatentSpace, embeddings: ArrayLike, distance: float, beside: Avoid | None = None) -> None:
        rows = np.asarray(embeddings, np.float64)
        if rows.ndim != 2 or rows.shape[1] != space.embedding_size or not np.isfinite(rows).all() or not np.abs(rows).sum(axis=1).all():
            raise DataError(f"avoid: expected finite embeddings (k, {space.embedding_size}) other than zero, got shape {rows.shape}")
        self._space, self._rows, self.distance, self._beside = space, _directions(rows), float(distance), beside

    @property
    def rows(self) -> NDArray[np.float64]:
        """Directions of the embeddings, float64 (k, e), each of length 1."""
        return self._rows

    @classmethod
    def load(cls, space: LatentSpace, path: str | os.PathLike[str], distance: float) -> Avoid:
        """Read the embeddings from an ``.npy`` file.

        Raises
        ------
        DataError
            It cannot be read, or its embeddings do not fit.
        """
        try:
            embeddings = load_array(path)
        except (OSError, DataError) as problem:
            raise DataError(f"{path}: expected an .npy file of embeddings, found something else: {problem}") from None
        try:
            return cls(space, embeddings, distance)
        except (DataError, TypeError, ValueError) as problem:
            raise DataError(f"{path}: {problem}") from None

    def nearest(self, embeddings: ArrayLike) -> NDArray[np.float64]:
        """Return the cosine distance of embeddings (n, e) to the nearest avoided one, float64 (n,)."""
        return np.asarray(1.0 - (_directions(np.asarray(embeddings, np.float64)) @ self._rows.T).max(axis=1), np.float64)

    def allowed(self, latents: ArrayLike) -> NDArray[np.bool_]:
        """Whether latents (n, d) keep the distance, bool (n,)."""
        allowed = np.asarray(self.nearest(self._space.to_embedding(latents)) >= self.distance)
        return allowed if self._beside is None else allowed & self._beside.allowed(latents)

    def away(self, latents: NDArray[np.float32], rng: np.random.Generator, tries: int = 64) -> NDArray[np.float32]:
        """Move latents that come too close, as little as it takes along the way to an allowed random one; the others stay.

        Parameters
        ----------
        latents : ndarray, float32 (n, d)
        rng : numpy.random.Generator
            Source of the random ones.
        tries : int
            How many are drawn; the way that needs the least change of direction is taken.

        Raises
        ------
        DataError
            Not one of the random latents is allowed.
        """
        moved = np.array(latents, np.float32)
        for row in np.flatnonzero(~self.allowed(moved)):
            targets = rng.standard_normal((tries, moved.shape[1]))
            targets = targets[self.allowed(targets)]
            if not len(targets):
                raise DataError(f"avoid: a distance of {self.distance:g} leaves next to nothing: none of {tries} random latents keeps it")
            ways = [self._way(moved[row].astype(np.float64), target) for target in targets]
            moved[row] = max(ways, key=lambda point: float(_directions(point) @ _directions(latents[row].astype(np.float64))))
        return moved

    def _way(self, start: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the first allowed point on the way, by bisection; its length is that of the start."""
        length, low, high = np.linalg.norm(start), 0.0, 1.0
        point = (length * _directions(target)).astype(np.float32)
        best = point if self.allowed(point[np.newaxis])[0] else target.astype(np.float32)
        for _ in range(12):
            middle = (low + high) / 2
            point = (length * _directions((1 - middle) * _directions(start) + middle * _directions(target))).astype(np.float32)
            if self.allowed(point[np.newaxis])[0]:
                best, high = point, middle
            else:
                low = middle
        return best


def _directions(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale rows to length 1."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-300), np.float64)
