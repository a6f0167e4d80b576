"""Fits to all volumes so far, one volume at a time.

Sums over the volumes are updated; solving with them gives exactly what a fit to the stored volumes would give, at a cost that does not
depend on their number. Sums over voxels are NumPy's own, not the BLAS's, so the result does not depend on a thread count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.decode.learnt import Learnt, checked

__all__ = ["RunningFit"]

_EXPLAINED = 1e-10  # residual variance below this part of the total is rounding: the voxel has nothing left to standardise
_RANK = 1e-12  # terms whose part not shared with the others is smaller than this are the same term


class RunningFit:
    """Linear fit of nuisance terms to many voxels, one volume at a time, with exactly the result of fitting all volumes at once.

    For voxel series y and terms X this is ridge regression with a constant that is not penalised: it minimises
    ``|y - c - X b|^2 + b' diag(penalty) b``. Kept are the means of X and y and the sums of products of their deviations, updated as in
    Welford 1962 (doi:10.1080/00401706.1962.10490022), which loses no digits to the level of the signal. Adding a volume costs
    O(terms x voxels), whatever the number of volumes.

    Parameters
    ----------
    voxels : int
        Number of series.
    penalty : array-like of float, (p,)
        Ridge penalty of each term, >= 0: the inverse of the variance that its coefficient is expected to have, in units of the noise
        variance. A term is then taken out only as far as the volumes so far show it to be there.

    Attributes
    ----------
    volumes : int
        How many have been added.
    """

    def __init__(self, voxels: int, penalty: ArrayLike) -> None:
        self._penalty = np.array(penalty, np.float64)
        terms = len(self._penalty)
        self.volumes = 0
        self._x_mean = np.zeros(terms)
        self._y_mean = np.zeros(voxels)
        self._xx = np.zeros((terms, terms))
        self._xy = np.zeros((terms, voxels))
        self._yy = np.zeros(voxels)

    def add(self, terms: NDArray[np.float64], values: NDArray[np.floating[Any]]) -> None:
        """Add one volume.

        Parameters
        ----------
        terms : ndarray, float64 (p,)
            Nuisance terms at this volume.
        values : ndarray, float (voxels,)
            The volume.
        """
        self.volumes += 1
        if self.volumes == 1:
            self._x_mean[:], self._y_mean[:] = terms, values
            return
        x, y = self._deviation(terms, values)
        part = 1.0 - 1.0 / self.volumes
        self._xx += part * np.outer(x, x)
        for row, factor in zip(self._xy, part * x, strict=True):
            row += factor * y
        self._x_mean += x / self.volumes
        self._y_mean += y / self.volumes
        y *= y
        y *= part
        self._yy += y

    def learnt(self) -> Learnt:
        """Return the sums so far, for :meth:`take_over`."""
        sums = {name: getattr(self, f"_{name}") for name in ("x_mean", "y_mean", "xx", "xy", "yy")}
        return {"volumes": np.array(self.volumes), **sums}

    def take_over(self, learnt: Learnt) -> None:
        """Begin with an earlier run's sums.

        Raises
        ------
        ValueError
            They are not of a fit like this.
        """
        terms, voxels = self._xy.shape
        shapes = {"x_mean": (terms,), "y_mean": (voxels,), "xx": (terms, terms), "xy": (terms, voxels), "yy": (voxels,)}
        found = checked(learnt, {"volumes": (), **shapes})
        self.volumes = int(found.pop("volumes"))
        for name, sums in found.items():
            setattr(self, f"_{name}", sums)

    def residual(self, terms: NDArray[np.float64], values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Remove the fitted constant and nuisance terms from a volume, or from the mean of several (of terms and values alike)."""
        x, residual = self._deviation(terms, values)
        for factor, row in zip(self._inverse() @ x, self._xy, strict=True):
            residual -= factor * row
        return residual

    def sd(self) -> NDArray[np.float64]:
        """Standard deviation of each voxel's residual over the volumes so far, float64 (voxels,); 0 where nothing is left.

        It is the root of the mean square (no degrees of freedom taken off, which would scale all voxels alike).
        """
        inverse = self._inverse()
        explained = 2 * inverse - inverse @ self._xx @ inverse  # residual sum of squares: y'y - (X'y)' explained (X'y)
        values, vectors = np.linalg.eigh((explained + explained.T) / 2)
        squares = self._yy.copy()
        for value, vector in zip(values, vectors.T, strict=True):
            part = np.zeros_like(squares)
            for factor, row in zip(vector, self._xy, strict=True):
                part += factor * row
            squares -= value * part**2
        squares[squares <= _EXPLAINED * self._yy] = 0
        return np.sqrt(squares / max(self.volumes, 1))

    def _deviation(self, terms: NDArray[np.float64], values: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return terms and values relative to their means."""
        deviation = values.astype(np.float64)
        deviation -= self._y_mean
        return terms - self._x_mean, deviation

    def _inverse(self) -> NDArray[np.float64]:
        """Return the (pseudo-)inverse of the penalised X'X, computed on terms scaled alike."""
        normal = self._xx + np.diag(self._penalty)
        scale = np.sqrt(np.diag(normal))
        scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        scaled = np.linalg.pinv(normal * np.outer(scale, scale), rcond=_RANK, hermitian=True)
        return np.asarray(scaled * np.outer(scale, scale), np.float64)
