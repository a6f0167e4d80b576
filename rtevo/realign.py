"""Rigid-body realignment: each volume to one reference, in real time.

>>> realigner = Realigner(reference, affine)            # (X, Y, Z), (4, 4) voxel to RAS+ mm
>>> motion = realigner.estimate(volume)                 # same grid as the reference
>>> aligned = realigner.reslice(volume, motion)         # float32 (X, Y, Z)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels import align, interpolate, smooth
from rtevo.kernels._compile import cache_lock
from rtevo.kernels.mask import brain_mask
from rtevo.kernels.rigid import matrix_from_params, params_from_matrix
from rtevo.records import Grid

__all__ = ["Motion", "Realigner", "brain_mask", "dvars", "framewise_displacement", "warm_up"]

HEAD_RADIUS_MM = 50.0  # of framewise displacement: Power et al. 2012
CHUNKS = 8  # fixed shares of the work: sums do not depend on the number of threads
TOLERANCE_MM = 2e-4  # the step below which an estimate has converged
MAX_ITERATIONS = 24
MIN_CORRELATION = 0.7


@dataclass(frozen=True, eq=False)
class Motion:
    """How one volume lies to the reference.

    Parameters
    ----------
    matrix : ndarray, float64 (4, 4)
        Reference world to volume world, RAS+ mm: what the reference shows at p, the volume shows at ``matrix @ p``.
    params : ndarray, float64 (6,)
        trans_x, trans_y, trans_z (mm), rot_x, rot_y, rot_z (rad): see :mod:`rtevo.kernels.rigid`; the rotation turns about the
        centre of the reference's grid. NaN where the volume could not be aligned (the matrix is the identity then).
    converged : bool
        False: the volume could not be aligned.
    iterations : int
    residual : float
        Root mean square difference of volume and reference after alignment, as a fraction of the reference's mean signal.
    correlation : float
        Of volume and reference after alignment.
    scale : float
        Intensity of the volume over that of the reference.
    reason : str
        Why the volume could not be aligned; empty where it could.
    """

    matrix: NDArray[np.float64]
    params: NDArray[np.float64]
    converged: bool
    iterations: int
    residual: float
    correlation: float = float("nan")
    scale: float = float("nan")
    reason: str = ""


class _Team:
    """A few threads that run one kernel on shares of its rows; the caller's thread takes part."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="realign") if threads > 1 else None

    def run(self, work: Callable[[int], None], shares: int) -> None:
        """Call `work` with each of 0 .. shares - 1."""
        if self._pool is None:
            for share in range(shares):
                work(share)
            return

        def strand(first: int) -> None:
            for share in range(first, shares, self.threads):
                work(share)

        others = [self._pool.submit(strand, first) for first in range(1, self.threads)]
        strand(0)
        for other in others:
            other.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


@dataclass(frozen=True, eq=False)
class _Template:
    """All that an iteration needs of the reference, packed (see :mod:`rtevo.kernels.align`)."""

    rows: NDArray[np.int64]
    shares: NDArray[np.int64]  # (CHUNKS + 1,) first row of each chunk
    reference: NDArray[np.float32]
    steepest: NDArray[np.float32]
    weight: NDArray[np.float32]
    hessian_inverse: NDArray[np.float64]


def _soft(volume: NDArray[np.float64], axis_kernels: list[list[float]]) -> NDArray[np.float64]:
    """Correlate each axis with its three taps, mirrored at the edges."""
    from scipy.ndimage import correlate1d

    for axis, taps in enumerate(axis_kernels):
        volume = correlate1d(volume, taps, axis=axis, mode="mirror")
    return volume


def _template(
    reference: NDArray[np.float32], affine: NDArray[np.float64], centre: NDArray[np.float64], weight: NDArray[np.float32]
) -> _Template:
    spline, slope = [1 / 6, 4 / 6, 1 / 6], [-0.5, 0.0, 0.5]
    wide = reference.astype(np.float64)
    soft = _soft(wide, [spline] * 3)
    by_voxel = np.stack([_soft(wide, [slope if a == axis else spline for a in range(3)]) for axis in range(3)])
    gradient = np.tensordot(np.linalg.inv(affine[:3, :3]).T, by_voxel, 1)
    points = np.tensordot(affine[:3, :3], np.indices(reference.shape), 1) + (affine[:3, 3] - centre)[:, None, None, None]
    steepest = np.concatenate([gradient, np.cross(points, gradient, axis=0)])
    mean = (weight * soft).sum() / weight.sum()
    flat = soft / mean
    w = weight.astype(np.float64)
    steepest /= mean
    along = (steepest * (w * flat)).sum(axis=(1, 2, 3)) / (w * flat**2).sum()
    projected = steepest - along[:, None, None, None] * flat
    hessian = np.einsum("aijk,bijk->ab", projected * w, steepest)
    rows, size = align.pack_rows(weight)
    packed = np.zeros((8, size), np.float32)
    for x, y, z, n, start in rows:
        packed[0, start : start + n] = soft[x, y, z : z + n]
        packed[1, start : start + n] = weight[x, y, z : z + n]
        packed[2:, start : start + n] = projected[:, x, y, z : z + n]
    done = np.cumsum(rows[:, 3])
    shares = np.searchsorted(done, np.linspace(0, done[-1], CHUNKS + 1)[1:-1])
    shares = np.concatenate([[0], shares, [len(rows)]]).astype(np.int64)
    return _Template(rows, shares, packed[0], packed[2:], packed[1], np.linalg.inv(hessian) / mean)


@dataclass(eq=False)
class Realigner:
    """Aligns volumes to a reference.

    Parameters
    ----------
    reference : array_like, (X, Y, Z)
        Any real dtype and strides; at least 4 voxels along each axis.
    affine : array_like, (4, 4)
        Voxel to RAS+ mm, of the reference and of every volume.
    mask : array_like, bool (X, Y, Z), optional
        Voxels that guide the alignment: best the whole head. Default: :func:`brain_mask` of the reference, grown by a voxel.
    threads : int, optional
        Default 1. Results are the same, bit for bit, for any number.

    Raises
    ------
    ValueError
        If shapes do not fit, or the reference holds nothing to align to.
    """

    reference: ArrayLike
    affine: ArrayLike
    mask: ArrayLike | None = None
    threads: int | None = None
    grid: Grid = field(init=False)

    def __post_init__(self) -> None:
        data = np.nan_to_num(np.asarray(self.reference, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        if data.ndim != 3 or min(data.shape) < 4:
            raise ValueError(f"Realigner reference: expected (X, Y, Z) of at least 4 voxels each, got shape {data.shape}")
        self.grid = Grid(data.shape, np.asarray(self.affine, np.float64))
        self.centre = self.grid.affine[:3, :3] @ ((np.array(data.shape) - 1) / 2) + self.grid.affine[:3, 3]
        self._inverse_affine = np.linalg.inv(self.grid.affine)
        self._template = _template(data, self.grid.affine, self.centre, self._weight(data))
        self._team = _Team(self.threads or 1)
        self._volume = interpolate.padded(self.grid.shape)
        self._flat = self._volume.base
        nz = self.grid.shape[2]
        self._lines = np.zeros((CHUNKS, 2, nz + 2 * max(interpolate.BLOCK, interpolate.TAPS)), np.float32)
        self._sums = np.zeros((CHUNKS, align.SUMS))
        self._last = np.eye(4)
        self._held: Any = None

    def _weight(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        from scipy.ndimage import binary_dilation

        mask = binary_dilation(brain_mask(data, self.grid.affine)) if self.mask is None else np.asarray(self.mask, bool)
        if mask.shape != data.shape:
            raise ValueError(f"Realigner mask: expected shape {data.shape}, got {mask.shape}")
        inner = np.zeros(data.shape, bool)
        inner[1:-1, 1:-1, 1:-1] = True
        weight = (mask & inner).astype(np.float32)
        if weight.sum() < 100 or not np.ptp(data[mask]) > 0:
            raise ValueError(f"Realigner reference: nothing to align to, {int(weight.sum())} voxels of signal inside the field of view")
        return weight

    def estimate(self, volume: ArrayLike) -> Motion:
        """Estimate the motion of one volume; starts from the last volume's."""
        self._load(volume)
        return self._estimate()

    def reslice(self, volume: ArrayLike, motion: Motion, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Sample a volume on the reference's grid by cubic B-splines.

        Points up to one voxel outside the volume take its mirrored edge, further out 0. A volume that could not be aligned is
        passed on as it is.

        Parameters
        ----------
        volume : array_like, (X, Y, Z)
        motion : Motion
            Of that volume.
        out : ndarray, float32 (X, Y, Z), optional
            C-ordered; written and returned.
        """
        result = np.empty(self.grid.shape, np.float32) if out is None else out
        if not motion.converged:
            result[...] = volume
            return result
        self._load(volume)
        return self._reslice(motion, result)

    def align(self, volume: ArrayLike, out: NDArray[np.float32] | None = None) -> tuple[Motion, NDArray[np.float32]]:
        """Estimate and reslice in one go, which spares a copy of the volume."""
        result = np.empty(self.grid.shape, np.float32) if out is None else out
        self._load(volume)
        motion = self._estimate()
        if not motion.converged:
            result[...] = volume
            return motion, result
        return motion, self._reslice(motion, result)

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def __enter__(self) -> Realigner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, volume: ArrayLike) -> None:
        data = np.asarray(volume)
        if data.shape != self.grid.shape:
            raise ValueError(f"Realigner volume: expected shape {self.grid.shape}, got {data.shape}")
        p = interpolate.PAD
        self._volume[p:-p, p:-p, p:-p] = data
        interpolate.mirror_padding(self._volume)

    def _reslice(self, motion: Motion, out: NDArray[np.float32]) -> NDArray[np.float32]:
        nx, ny, _ = self.grid.shape
        matrix = self._inverse_affine @ motion.matrix @ self.grid.affine
        edges_x = np.linspace(0, nx, CHUNKS + 1).astype(int)
        edges_y = np.linspace(0, ny + 2 * interpolate.PAD, CHUNKS + 1).astype(int)
        self._team.run(lambda c: interpolate.prefilter_yz(self._volume, edges_x[c], edges_x[c + 1], self._lines[c, 0]), CHUNKS)
        self._team.run(lambda c: interpolate.prefilter_x(self._volume, edges_y[c], edges_y[c + 1]), CHUNKS)

        def sample(c: int) -> None:
            interpolate.reslice_rows(self._flat, self.grid.shape, matrix, edges_x[c], edges_x[c + 1], self._lines[c, 0], out)

        self._team.run(sample, CHUNKS)
        return out

    def _step(self, matrix: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
        t = self._template
        voxels = self._inverse_affine @ matrix @ self.grid.affine

        def work(c: int) -> None:
            align.accumulate(
                self._flat, self.grid.shape, voxels, scale, t.rows, t.shares[c], t.shares[c + 1],
                t.reference, t.steepest, t.weight, self._lines[c], self._sums[c],
            )  # fmt: skip

        self._team.run(work, CHUNKS)
        return np.asarray(self._sums.sum(axis=0))

    def _estimate(self) -> Motion:
        matrix, scale, iterations, converged = self._last, 1.0, 0, False
        while iterations < MAX_ITERATIONS and not converged:
            iterations += 1
            sums = self._step(matrix, scale)
            if not np.isfinite(sums).all() or sums[9] <= 0 or sums[10] <= 0:
                break
            delta = self._template.hessian_inverse @ sums[:6] / scale
            matrix = matrix @ np.linalg.inv(matrix_from_params(delta, self.centre))
            change = sums[10] / sums[9] / scale
            scale = sums[10] / sums[9]
            moved = np.abs(delta[:3]).sum() + HEAD_RADIUS_MM * np.abs(delta[3:]).sum()
            converged = bool(moved < TOLERANCE_MM and abs(change - 1) < 1e-4)
        return self._judge(matrix, sums, iterations, converged)

    def _judge(self, matrix: NDArray[np.float64], sums: NDArray[np.float64], iterations: int, converged: bool) -> Motion:
        _, _, _, _, _, _, w, r, v, rr, rv, vv = sums
        with np.errstate(all="ignore"):
            correlation = (rv - r * v / w) / np.sqrt((rr - r * r / w) * (vv - v * v / w))
            residual = np.sqrt(max(vv - rv * rv / rr, 0.0) / w) / (abs(v) / w)
        reason = ""
        if not np.isfinite(correlation):
            reason = "the volume is empty or not finite"
        elif correlation < MIN_CORRELATION:
            reason = f"correlation with the reference {correlation:.3f}, expected at least {MIN_CORRELATION}"
        elif not converged:
            reason = f"no convergence in {iterations} iterations"
        if reason:
            self._last = np.eye(4)
            return Motion(np.eye(4), np.full(6, np.nan), False, iterations, float(residual), float(correlation), float("nan"), reason)
        self._last = matrix
        params = params_from_matrix(matrix, self.centre)
        return Motion(matrix, params, True, iterations, float(residual), float(correlation), float(rv / rr))


def framewise_displacement(params: ArrayLike, radius_mm: float = HEAD_RADIUS_MM) -> NDArray[np.float64]:
    """Framewise displacement: J. D. Power et al. (2012), NeuroImage 59:2142-2154, doi:10.1016/j.neuroimage.2011.10.018.

    The sum of the absolute differences of the six parameters between successive volumes, rotations as arc lengths on a sphere.

    Parameters
    ----------
    params : array_like, (n, 6)
        Translations (mm) and rotations (rad).
    radius_mm : float
        Radius of the sphere.

    Returns
    -------
    ndarray, float64 (n,)
        mm; NaN for the first volume, and where a volume or the one before it has no motion.
    """
    p = np.asarray(params, np.float64).reshape(-1, 6)
    steps = np.abs(np.diff(p, axis=0, prepend=np.full((1, 6), np.nan)))
    return np.asarray(steps[:, :3].sum(axis=1) + radius_mm * steps[:, 3:].sum(axis=1))


def dvars(volumes: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """DVARS: root mean square over the mask of the change from the volume before (Power et al. 2012), in the data's units.

    Parameters
    ----------
    volumes : array_like, (X, Y, Z, n)
    mask : array_like, bool (X, Y, Z)

    Returns
    -------
    ndarray, float64 (n,)
        NaN for the first volume.
    """
    inside = np.asarray(volumes)[np.asarray(mask, bool)].astype(np.float64)
    if not inside.shape[0]:
        raise ValueError("dvars mask: expected at least one voxel, got none")
    steps = np.diff(inside, axis=1, prepend=np.full((inside.shape[0], 1), np.nan))
    return np.asarray(np.sqrt((steps**2).mean(axis=0)))


def warm_up() -> None:
    """Compile the kernels that a session needs, or load them from the cache; see :mod:`rtevo.kernels._compile`."""
    x, y, z = np.meshgrid(*[np.arange(12.0)] * 3, indexing="ij")
    ball = 100 * np.exp(-((x - 5) ** 2 + (y - 6) ** 2 + (z - 5.5) ** 2) / 12)
    with cache_lock():
        with Realigner(ball, np.eye(4), mask=ball > 10) as realigner:
            realigner.align(ball)
        smooth.smooth(ball, (1, 1, 1), 2.0)
