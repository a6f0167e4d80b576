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
from rtevo.latent.examples import ARRAYS, Examples
from rtevo.outside import load_arrays

__all__ = ["ORTHONORMAL_TOLERANCE", "SCALINGS", "LatentSpace"]

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest deviation of ``components @ components.T`` from the identity: float16 storage of 1,024 numbers stays below 5e-4."""

SCALINGS = ("file", "whitened", "plain")

_KNOWN = {"mean", "components", "scale", "sd"}


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
    sd : ndarray, float32 (d,), optional
        Standard deviation along each component of the embeddings that the analysis has seen, >= 0; empty where it is not known.
    examples : Examples, optional
        Some of the pictures that the analysis has seen.

    Raises
    ------
    DataError
        Shapes do not fit, a number is not finite, or the rows of `components` are not orthonormal.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    scale: NDArray[np.float32] = field(default_factory=lambda: np.ones(0, np.float32))
    sd: NDArray[np.float32] = field(default_factory=lambda: np.ones(0, np.float32))
    examples: Examples | None = None

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
        sd = _numbers("sd", self.sd, 1)
        if len(sd) not in (0, len(components)) or (sd < 0).any():
            raise DataError(f"latent space: expected {len(components)} standard deviations >= 0, or none, got {sd}")
        if self.examples is not None and self.examples.points.shape[1] != len(components):
            found = self.examples.points.shape[1]
            raise DataError(f"latent space: expected examples of {len(components)} numbers, one a component, got {found}")
        _check_orthonormal(components)
        for name, array in (("mean", mean), ("components", components), ("scale", scale), ("sd", sd)):
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
        """Return the space of the first `n` components.

        Raises
        ------
        DataError
            There are fewer.
        """
        if not 1 <= n <= self.latent_size:
            raise DataError(f"latent space: expected 1 to {self.latent_size} components, asked for {n}")
        examples = None if self.examples is None else self.examples.first(n)
        return LatentSpace(self.mean, self.components[:n], self.scale[:n], self.sd[:n], examples)

    def scaled(self, how: str) -> LatentSpace:
        """Return the space with its latents in other units.

        Parameters
        ----------
        how : str
            "whitened": standard deviations; "plain": embedding units; "file": as it is.

        Raises
        ------
        DataError
            Its standard deviations are not known, or not all positive.
        """
        if how not in SCALINGS:
            raise ValueError(f"how: expected one of {', '.join(SCALINGS)}, got {how!r}")
        if how == "file":
            return self
        if how == "plain":
            return LatentSpace(self.mean, self.components, sd=self.sd, examples=self.examples)
        if not len(self.sd) or self.sd.min() <= 0:
            raise DataError("latent space: cannot be whitened: it has no standard deviation > 0 along every component (made by `fit`)")
        return LatentSpace(self.mean, self.components, self.sd, self.sd, self.examples)

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
        """Read a latent space from an ``.npz`` file with ``mean``, ``components`` and, optionally, ``scale``, ``sd`` and examples.

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
        except ValueError:  # NumPy's advice is to load it all the same, which is nobody's
            raise DataError(f"{path}: expected an .npz file of plain arrays, found something else") from None
        except (OSError, EOFError, zipfile.BadZipFile, DataError) as problem:
            raise DataError(f"{path}: expected an .npz file of plain arrays, found something else: {problem}") from None
        missing = {"mean", "components"} - set(found)
        if missing:
            raise DataError(f"{path}: expected arrays mean and components, found {names}")
        try:
            own = {name: array for name, array in found.items() if name in _KNOWN}
            return cls(**own, examples=Examples.of(found))
        except DataError as problem:
            raise DataError(f"{path}: {problem}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file that :meth:`load` reads, whole or not at all. The same space gives the same bytes."""
        path = Path(path)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            arrays = {name: getattr(self, name) for name in ("mean", "components", "scale", *(("sd",) if len(self.sd) else ()))}
            for name, values in (arrays | ({} if self.examples is None else self.examples.arrays())).items():
                array = io.BytesIO()
                np.lib.format.write_array(array, np.ascontiguousarray(values), allow_pickle=False)
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


def _arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Read the known arrays of an .npz file and list the names of all."""
    found = load_arrays(path)
    return {name: array for name, array in found.items() if name in _KNOWN.union(ARRAYS)}, sorted(found)


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
