"""Between latent vectors, which evolve, and image embeddings, which are painted.

A latent space is a principal component analysis of image embeddings: ``embedding = mean + (latent * scale) @ components``. The
components are orthonormal, so the way back is their transpose: exact for embeddings inside the space, the nearest point of it for
others. `scale` is 1 for plain components, and the standard deviation along each component for a whitened space, where N(0, I)
looks like the embeddings that the analysis has seen.
"""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.errors import DataError

__all__ = ["ORTHONORMAL_TOLERANCE", "Avoid", "LatentSpace"]

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest deviation of ``components @ components.T`` from the identity: float16 storage of 1,024 numbers stays below 5e-4."""

_KNOWN = {"mean", "components", "scale"}


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """A linear latent space of image embeddings.

    Parameters
    ----------
    mean : ndarray, float32 (e,)
        Embedding of the latent origin.
    components : ndarray, float32 (d, e)
        Orthonormal rows, d <= e.
    scale : ndarray, float32 (d,), optional
        Embedding units of one latent unit along each component, > 0. Default: ones.

    Raises
    ------
    DataError
        Shapes do not fit, a number is not finite, or the rows of `components` are not orthonormal.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    scale: NDArray[np.float32] = field(default_factory=lambda: np.ones(0, np.float32))

    def __post_init__(self) -> None:
        mean = _numbers("mean", self.mean, 1)
        components = _numbers("components", self.components, 2)
        scale = _numbers("scale", self.scale, 1) if np.size(self.scale) else np.ones(len(components), np.float32)
        if components.shape[1] != len(mean):
            raise DataError(f"latent space: expected components of {len(mean)} numbers as the mean has, got shape {components.shape}")
        if not 1 <= len(components) <= len(mean):
            raise DataError(f"latent space: expected 1 to {len(mean)} components, got {len(components)}")
        if scale.shape != (len(components),):
            raise DataError(f"latent space: expected a scale of {len(components)} numbers, one a component, got shape {scale.shape}")
        if scale.min() <= 0:
            raise DataError(f"latent space: expected scales > 0, got {scale.min():g} at component {int(scale.argmin())}")
        _check_orthonormal(components)
        for name, array in (("mean", mean), ("components", components), ("scale", scale)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def latent_size(self) -> int:
        """Dimensions of a latent vector."""
        return len(self.components)

    @property
    def embedding_size(self) -> int:
        """Dimensions of an embedding."""
        return len(self.mean)

    def first(self, n: int) -> LatentSpace:
        """Give the space of the first `n` components.

        Raises
        ------
        DataError
            There are fewer.
        """
        if not 1 <= n <= self.latent_size:
            raise DataError(f"latent space: expected 1 to {self.latent_size} components, asked for {n}")
        return LatentSpace(self.mean, self.components[:n], self.scale[:n])

    def to_embedding(self, latents: ArrayLike) -> NDArray[np.float32]:
        """Map latents to embeddings.

        Parameters
        ----------
        latents : array-like of float, (..., d)
            One or more latent vectors.

        Returns
        -------
        ndarray, float32 (..., e)

        Raises
        ------
        ValueError
            The last axis has another length than d.
        """
        points = _last_axis("latents", latents, self.latent_size)
        scaled = points * self.scale.astype(np.float64)
        return (self.mean + scaled @ self.components.astype(np.float64)).astype(np.float32)

    def to_latent(self, embeddings: ArrayLike) -> NDArray[np.float32]:
        """Map embeddings to the nearest latents.

        Parameters
        ----------
        embeddings : array-like of float, (..., e)
            One or more embeddings.

        Returns
        -------
        ndarray, float32 (..., d)

        Raises
        ------
        ValueError
            The last axis has another length than e.
        """
        points = _last_axis("embeddings", embeddings, self.embedding_size)
        projected = (points - self.mean) @ self.components.astype(np.float64).T
        return (projected / self.scale).astype(np.float32)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatentSpace:
        """Read a latent space from an ``.npz`` file with ``mean``, ``components`` and, optionally, ``scale``.

        Pickled objects are never loaded.

        Raises
        ------
        DataError
            There is no such file, it is not an ``.npz`` file, lacks an array, or its arrays do not make a latent space.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: expected a latent space (.npz with mean, components), found no such file")
        try:
            found, names = _arrays(path)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as problem:
            raise DataError(f"{path}: expected an .npz file of plain arrays, found something else: {problem}") from None
        missing = {"mean", "components"} - set(found)
        if missing:
            raise DataError(f"{path}: expected arrays mean and components, found {names}")
        try:
            return cls(**found)
        except DataError as problem:
            raise DataError(f"{path}: {problem}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file that :meth:`load` reads, whole or not at all. The same space gives the same bytes."""
        path = Path(path)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name in ("mean", "components", "scale"):
                array = io.BytesIO()
                np.lib.format.write_array(array, np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), array.getvalue())  # ZipInfo: a fixed date
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)

    @classmethod
    def random(cls, latent_size: int, embedding_size: int, seed: int) -> LatentSpace:
        """Make a latent space along random directions, for demonstrations and tests.

        Parameters
        ----------
        latent_size, embedding_size : int
            ``1 <= latent_size <= embedding_size``.
        seed : int
            The same seed gives the same space.

        Returns
        -------
        LatentSpace
            Mean zero; `scale` is such that latents from N(0, I) give embeddings whose elements have a variance of 1 on average.

        Raises
        ------
        ValueError
            The sizes do not fit.
        """
        if not 1 <= latent_size <= embedding_size:
            raise ValueError(f"latent_size: expected 1 to {embedding_size} (the embedding's size), got {latent_size}")
        rng = np.random.default_rng(seed)
        basis, triangle = np.linalg.qr(rng.standard_normal((embedding_size, latent_size)))
        basis *= np.sign(np.diag(triangle))  # makes the decomposition unique, whatever LAPACK is used
        scale = np.full(latent_size, np.sqrt(embedding_size / latent_size), np.float32)
        return cls(np.zeros(embedding_size, np.float32), np.ascontiguousarray(basis.T, np.float32), scale)


class Avoid:
    """Embeddings to stay away from: content that a study must not show.

    Parameters
    ----------
    space : LatentSpace
    embeddings : array-like of float, (k, e)
        What to stay away from.
    distance : float
        Smallest cosine distance to any of them, between 0 and 2.

    Raises
    ------
    DataError
        The embeddings are of another size, not finite, or zero.
    """

    def __init__(self, space: LatentSpace, embeddings: ArrayLike, distance: float) -> None:
        rows = np.asarray(embeddings, np.float64)
        if rows.ndim != 2 or rows.shape[1] != space.embedding_size or not np.isfinite(rows).all() or not np.abs(rows).sum(axis=1).all():
            raise DataError(f"avoid: expected finite embeddings (k, {space.embedding_size}) other than zero, got shape {rows.shape}")
        self._space, self._rows, self._distance = space, _directions(rows), float(distance)

    @classmethod
    def load(cls, space: LatentSpace, path: str | os.PathLike[str], distance: float) -> Avoid:
        """Read the embeddings from an ``.npy`` file.

        Raises
        ------
        DataError
            It cannot be read, or its embeddings do not fit.
        """
        try:
            embeddings = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise DataError(f"{path}: expected an .npy file of embeddings, found something else: {problem}") from None
        try:
            return cls(space, embeddings, distance)
        except (DataError, TypeError, ValueError) as problem:
            raise DataError(f"{path}: {problem}") from None

    def nearest(self, embeddings: ArrayLike) -> NDArray[np.float64]:
        """Give the cosine distance of embeddings (n, e) to the nearest that is avoided, float64 (n,)."""
        return np.asarray(1.0 - (_directions(np.asarray(embeddings, np.float64)) @ self._rows.T).max(axis=1), np.float64)

    def allowed(self, latents: ArrayLike) -> NDArray[np.bool_]:
        """Whether latents (n, d) keep the distance, bool (n,)."""
        return np.asarray(self.nearest(self._space.to_embedding(latents)) >= self._distance)

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
                raise DataError(f"avoid: a distance of {self._distance:g} leaves next to nothing: none of {tries} random latents keeps it")
            ways = [self._way(moved[row].astype(np.float64), target) for target in targets]
            moved[row] = max(ways, key=lambda point: float(_directions(point) @ _directions(latents[row].astype(np.float64))))
        return moved

    def _way(self, start: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float32]:
        """Give the first allowed point on the way, by bisection; its length is that of the start."""
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


def _arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Read the known arrays of an .npz file and list the names of all."""
    with path.open("rb") as file:  # np.load on a path leaks the file where it raises
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        return {name: loaded[name] for name in loaded.files if name in _KNOWN}, sorted(loaded.files)


def _numbers(name: str, value: ArrayLike, dimensions: int) -> NDArray[np.float32]:
    """Return a private float32 copy, checked for kind, dimensions and finiteness."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.ndim != dimensions:
        raise DataError(f"latent space: expected {name} to be {dimensions}-D real numbers, got {array.dtype} {array.shape}")
    copy = np.array(array, np.float32)
    if not np.isfinite(copy).all():
        raise DataError(f"latent space: expected finite numbers in {name}, got {int((~np.isfinite(copy)).sum())} that are not")
    return copy


def _check_orthonormal(components: NDArray[np.float32]) -> None:
    """Raise DataError unless the rows are orthonormal within the tolerance."""
    rows = components.astype(np.float64)
    deviation = np.abs(rows @ rows.T - np.eye(len(rows)))
    worst = np.unravel_index(int(deviation.argmax()), deviation.shape)
    if deviation[worst] > ORTHONORMAL_TOLERANCE:
        i, j = (int(k) for k in worst)
        product = float(rows[i] @ rows[j])
        what = f"row {i} has length {np.sqrt(product):.4g}" if i == j else f"rows {i} and {j} have the product {product:.4g}"
        raise DataError(f"latent space: expected orthonormal components (tolerance {ORTHONORMAL_TOLERANCE}), but {what}")


def _last_axis(name: str, value: ArrayLike, size: int) -> NDArray[np.float64]:
    """Return float64 numbers whose last axis has `size` elements."""
    array = np.asarray(value, np.float64)
    if array.ndim < 1 or array.shape[-1] != size:
        raise ValueError(f"{name}: expected {size} numbers along the last axis, got shape {array.shape}")
    return array
