"""One reference, and volumes aligned to it one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, binary_erosion, maximum_filter, minimum_filter

from rtevo.kernels import interpolate
from rtevo.kernels._compile import COMPILING, cache_lock, is_compiled
from rtevo.kernels.align import pack_rows
from rtevo.kernels.gains import make_gains
from rtevo.kernels.mask import brain_mask
from rtevo.kernels.rigid import matrix_from_params, params_from_matrix
from rtevo.kernels.smooth import smooth
from rtevo.kernels.template import make_level, seen_through_splines, thinned
from rtevo.kernels.warp import warped_rows
from rtevo.realign.matching import CHUNKS, Match, Matcher
from rtevo.realign.team import Team
from rtevo.realign.warp import Warp
from rtevo.records import Grid

__all__ = ["Motion", "Realigner", "guiding_mask", "warm_up"]

Array = NDArray[np.float64]
Volume = NDArray[np.float32]

TOLERANCE_MM = 0.01  # the last step's size, a sum of six: the next would be a tenth of it, and noise alone moves estimates by 0.003 mm
APPROACH_TOLERANCE_MM = 0.1
NEAR_TOLERANCE_MM = 0.02
NEAR_STRIDE = 2  # the approach takes every second row along X and Y
FAR_TOLERANCE_MM = 0.5
MOST_STEPS = 16
FAR_FWHM_MM = 12.0  # smoothing of a volume that was lost
TURNS = [(0, 0, 0), (0, 0, 30), (0, 0, -30), (25, 0, 0), (-25, 0, 0)]  # degrees about x, y, z: where else a lost head may be found
MARGIN_MM = 6.0  # of the guiding mask around the brain
CUT_SIGNAL, CUT_SHARE = 0.25, 0.05  # a brain was cut out where so bright voxels touch solid zeros along so much of its surface
MIN_VOXELS = 100  # in the mask
GOOD_CORRELATION = 0.9  # below it, other starts are tried
MIN_CORRELATION = 0.7
MIN_OVERLAP = 0.5
MAX_INVALID = 0.05  # share of the mask's voxels that may be NaN or infinite


@dataclass(frozen=True, eq=False)
class Motion:
    """The position of one volume relative to the reference.

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
        Standard deviation (robust) of the difference that alignment leaves, as a fraction of the reference's mean signal in the mask.
    correlation : float
        Of volume and reference after alignment.
    scale : float
        Intensity of the volume over that of the reference; NaN where the volume could not be aligned.
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


_OF_REFERENCE = ("mask", "_mean", "_fine", "_near", "_gains", "_far", "_balance")  # never changed once they are made
_PREPARED: list[tuple[Array, Array, dict[str, Any]]] = []  # of the last reference, where it cannot change


class Realigner:
    """Aligns volumes to a reference.

    Each estimate starts from the motion of the last volume that could be aligned, on a quarter of the voxels; where that fails, from
    smoothed volumes and several places. The result does not depend on the start beyond about a micrometre.

    Parameters
    ----------
    reference : array_like, (X, Y, Z)
        Any real dtype and strides; at least 4 voxels along each axis. NaN counts as 0.
    affine : array_like, (4, 4)
        Voxel to RAS+ mm, of the reference and of every volume: oblique, flipped and anisotropic as it may be.
    mask : array_like, bool (X, Y, Z), optional
        Voxels that guide the alignment: best the whole head. Default: :func:`guiding_mask` of the reference.
    wanted : array_like, bool (X, Y, Z), optional
        Voxels that the resliced volumes must hold; the others are 0 (or anything between wanted ones), and cost nothing. Default: all.
    threads : int, optional
        Default 1: fastest where other processes are busy. Results are the same, bit for bit, for any number.

    Raises
    ------
    ValueError
        If shapes do not fit, or the reference holds nothing to align to.
    """

    def __init__(
        self,
        reference: ArrayLike,
        affine: ArrayLike,
        mask: ArrayLike | None = None,
        threads: int | None = None,
        wanted: ArrayLike | None = None,
    ) -> None:
        data = np.nan_to_num(np.asarray(reference, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        if data.ndim != 3 or min(data.shape) < 4:
            raise ValueError(f"Realigner reference: expected (X, Y, Z) of at least 4 voxels each, got shape {data.shape}")
        if threads is not None and threads < 1:
            raise ValueError(f"Realigner threads: expected at least 1, got {threads}")
        self.grid = Grid(data.shape, np.asarray(affine, np.float64))
        self.centre: Array = self.grid.affine[:3, :3] @ ((np.array(data.shape) - 1) / 2) + self.grid.affine[:3, 3]
        self._rows = self._wanted_rows(wanted)
        if not self._take_prepared(reference, mask):
            self.mask = guiding_mask(data, self.grid) if mask is None else np.array(mask, np.bool_)
            self._prepare(data)
            self._keep_prepared(reference, mask)
        self._team = Team(threads or 1)
        self._matcher = Matcher(self.grid, self.centre, self._team, max(len(n.weight) for n in (self._near, self._fine, self._far)))
        self._volume = interpolate.padded(self.grid.shape)
        lines = self.grid.shape[2] + 2 * max(interpolate.BLOCK, interpolate.TAPS)
        self._lines = np.zeros((self._team.threads, lines), np.float32)
        self._last = np.eye(4)
        self._invalid = 0.0

    def _take_prepared(self, reference: ArrayLike, mask: ArrayLike | None) -> bool:
        """Copy what the last realigner made of the same reference: this saves seconds of computing for large ones."""
        for kept, affine, prepared in _PREPARED if mask is None else ():
            if kept is reference and np.array_equal(affine, self.grid.affine):
                self.__dict__.update(prepared)
                return True
        return False

    def _keep_prepared(self, reference: ArrayLike, mask: ArrayLike | None) -> None:
        """Keep what was made of an unchangeable reference, for the next realigner."""
        _PREPARED.clear()
        if mask is None and isinstance(reference, np.ndarray) and reference.base is None and not reference.flags.writeable:
            _PREPARED.append((reference, self.grid.affine, {name: self.__dict__[name] for name in _OF_REFERENCE}))

    def _wanted_rows(self, wanted: ArrayLike | None) -> NDArray[np.int64]:
        voxels = np.ones(self.grid.shape, np.float32) if wanted is None else np.asarray(wanted, np.float32)
        if voxels.shape != self.grid.shape:
            raise ValueError(f"Realigner wanted: expected shape {self.grid.shape}, got {voxels.shape}")
        self._everything = wanted is None
        return pack_rows(voxels)[0]

    def _prepare(self, data: Array) -> None:
        """Make the levels: `far` for what was lost, `near` for the approach, `fine` for the estimate."""
        if self.mask.shape != data.shape:
            raise ValueError(f"Realigner mask: expected shape {data.shape}, got {self.mask.shape}")
        inner = np.zeros(data.shape, np.bool_)
        inner[1:-1, 1:-1, 1:-1] = True
        weight = (self.mask & inner).astype(np.float64)
        if weight.sum() < MIN_VOXELS or not np.ptp(data[self.mask]) > 0 or not (weight * data).sum() > 0:
            raise ValueError(f"Realigner reference: nothing to align to, {int(weight.sum())} voxels of signal inside the field of view")
        self._mean = float((weight * data).sum() / weight.sum())
        data = data / self._mean
        place = (self.grid.affine, self.centre, CHUNKS)
        self._fine = make_level(data, weight, *place, 1, quintic=True, precise=True)
        self._near = make_level(data, weight, *place, NEAR_STRIDE, quintic=False, precise=True)
        self._gains = make_gains(seen_through_splines(data, quintic=False), thinned(weight, NEAR_STRIDE), self.grid.voxel_size_mm)
        soft = smooth(data, self.grid.voxel_size_mm, FAR_FWHM_MM).astype(np.float64)
        wide = (binary_dilation(self.mask) & inner).astype(np.float64)
        self._far = make_level(soft, wide, *place, NEAR_STRIDE, quintic=False, precise=False)
        self._balance = _balance(soft, self.grid.affine)

    def estimate(self, volume: ArrayLike) -> Motion:
        """Estimate the motion of one volume.

        Parameters
        ----------
        volume : array_like, (X, Y, Z)
            Any real dtype and strides; NaN and infinity count as 0.
        """
        self._load(volume)
        return self._estimate()

    def reslice(self, volume: ArrayLike, motion: Motion, out: Volume | None = None, warp: Warp | None = None) -> Volume:
        """Sample a volume on the reference's grid by cubic B-splines; with a warp its distortion is undone in the same interpolation.

        Points up to one voxel outside the volume take its mirrored edge, further out 0. A volume that could not be aligned is
        passed on as it is.

        Parameters
        ----------
        volume : array_like, (X, Y, Z)
        motion : Motion
            Of that volume.
        out : ndarray, float32 (X, Y, Z), optional
            C-ordered; written and returned.
        warp : Warp, optional
            On the reference's grid.
        """
        result = self._result(out)
        if not motion.converged:
            result[...] = volume
            return result
        self._load(volume)
        return self._reslice(motion, result, warp)

    def align(self, volume: ArrayLike, out: Volume | None = None) -> tuple[Motion, Volume]:
        """Estimate and reslice in one go, which spares a copy of the volume; the same results bit for bit."""
        result = self._result(out)
        motion = self.estimate(volume)
        if motion.converged:
            return motion, self._reslice(motion, result)
        result[...] = volume
        return motion, result

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def __enter__(self) -> Realigner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _result(self, out: Volume | None) -> Volume:
        if out is None:
            return np.empty(self.grid.shape, np.float32)
        if out.shape != self.grid.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"Realigner out: expected C-ordered float32 {self.grid.shape}, got {out.dtype} {out.shape}")
        return out

    def _load(self, volume: ArrayLike) -> None:
        """Copy a volume into the padded buffer."""
        data = np.asarray(volume)
        if data.shape != self.grid.shape:
            raise ValueError(f"Realigner volume: expected shape {self.grid.shape}, got {data.shape}")
        p = interpolate.PAD
        body = self._volume[p:-p, p:-p, p:-p]
        body[...] = data
        self._invalid = 0.0
        if data.dtype.kind == "f" and not np.isfinite(body.sum()):
            invalid = ~np.isfinite(body)
            self._invalid = float(invalid[self.mask].mean())
            body[invalid] = 0.0
        interpolate.mirror_padding(self._volume)

    def _estimate(self) -> Motion:
        if self._invalid > MAX_INVALID:
            return self._refused(f"{self._invalid:.0%} of the brain's voxels are not finite", None)
        flat = interpolate.as_line(self._volume)
        near = self._approach(self._start(self._last))
        if not near.converged or near.correlation < GOOD_CORRELATION:
            near = self._search(near)
        if not near.converged or near.correlation < MIN_CORRELATION:
            return self._refused(f"correlation with the reference {near.correlation:.2f}, expected at least {MIN_CORRELATION}", near)
        if near.overlap < MIN_OVERLAP:
            return self._refused(f"{near.overlap:.0%} of the reference's brain in the field of view, expected {MIN_OVERLAP:.0%}", near)
        learned = self._matcher.learn(flat, self._near, self._gains, near, tolerance_mm=NEAR_TOLERANCE_MM)
        end = self._matcher.finish(flat, self._fine, self._gains, learned, tolerance_mm=TOLERANCE_MM, most=MOST_STEPS)
        if not end.converged or end.overlap < MIN_OVERLAP:
            return self._refused(f"no stable estimate in {MOST_STEPS} steps", end)
        self._last = end.matrix
        params = params_from_matrix(end.matrix, self.centre)
        steps = near.iterations + learned.iterations + end.iterations
        return Motion(end.matrix, params, True, steps, end.spread, near.correlation, 1.0 / (end.gain * self._mean))

    def _refused(self, reason: str, found: Match | None) -> Motion:
        steps, residual, correlation = (found.iterations, found.spread, found.correlation) if found else (0, np.nan, np.nan)
        return Motion(np.eye(4), np.full(6, np.nan), False, steps, residual, correlation, reason=reason)

    def _start(self, matrix: Array) -> Match:
        return Match(matrix, 1.0 / self._mean, np.inf, 0.0, 0.0, 0, False)

    def _approach(self, start: Match) -> Match:
        flat = interpolate.as_line(self._volume)
        return self._matcher.match(flat, self._near, start, tolerance_mm=APPROACH_TOLERANCE_MM, most=MOST_STEPS)

    def _search(self, best: Match) -> Match:
        """Approach from further away, on smoothed data: the best match found, or the first good one."""
        p = interpolate.PAD
        body = self._volume[p:-p, p:-p, p:-p]
        if not np.ptp(body) > 0:
            return best
        padded = interpolate.padded(self.grid.shape)
        soft = padded[p:-p, p:-p, p:-p]
        soft[...] = smooth(body, self.grid.voxel_size_mm, FAR_FWHM_MM)
        interpolate.mirror_padding(padded)
        shift = _balance(soft, self.grid.affine) - self._balance
        for matrix in (self._last, np.eye(4), *(matrix_from_params([*shift, *turn], self.centre) for turn in np.deg2rad(TURNS))):
            far = self._matcher.match(
                interpolate.as_line(padded), self._far, self._start(matrix), tolerance_mm=FAR_TOLERANCE_MM, most=MOST_STEPS
            )
            near = self._approach(far)
            if near.correlation * near.converged > best.correlation * best.converged:
                best = near
            if best.converged and best.correlation > GOOD_CORRELATION:
                break
        return best

    def _reslice(self, motion: Motion, out: Volume, warp: Warp | None = None) -> Volume:
        nx, ny, _ = self.grid.shape
        matrix = np.linalg.inv(self.grid.affine) @ motion.matrix @ self.grid.affine
        volume, flat, lines = self._volume, interpolate.as_line(self._volume), self._lines
        self._team.run(lambda n, first, last: interpolate.prefilter_yz(volume, first, last, lines[n]), nx)
        self._team.run(lambda n, first, last: interpolate.prefilter_x(volume, first, last), ny + 2 * interpolate.PAD)

        def sample(worker: int, first: int, last: int) -> None:
            if warp is None:
                interpolate.reslice_rows(flat, self.grid.shape, False, matrix, self._rows, first, last, lines[worker], out)
            else:
                warped_rows(flat, self.grid.shape, matrix, warp.shift, warp.gain, self._rows, first, last, out)

        if not self._everything:
            out[...] = 0
        self._team.run(sample, len(self._rows))
        return out


def guiding_mask(reference: Array, grid: Grid) -> NDArray[np.bool_]:
    """Choose the voxels that guide an alignment: the brain, and `MARGIN_MM` around it for its outline.

    Where someone cut the head out of its surroundings, no volume shows what the reference shows along the cut: it is left out, as far
    as the splines see it.
    """
    brain = brain_mask(reference, grid.affine)
    mask: NDArray[np.bool_] = binary_dilation(brain, iterations=max(round(MARGIN_MM / float(grid.voxel_size_mm.mean())), 1))
    blank = minimum_filter(reference == 0, size=3)  # solid zeros, not a dark voxel by chance
    blank = maximum_filter(blank, size=3)
    bright = reference > CUT_SIGNAL * reference[brain].mean() if brain.any() else brain
    if (binary_dilation(blank) & bright).sum() > CUT_SHARE * (brain & ~binary_erosion(brain)).sum():
        mask &= ~binary_dilation(blank, iterations=2)
    return mask


def _balance(volume: NDArray[np.floating], affine: Array) -> Array:
    """Centre of mass of a volume in the world, mm: float64 (3,)."""
    total = float(np.abs(volume).sum())
    if not total > 0:
        return np.zeros(3)
    sums = [
        float((np.abs(volume).sum(axis=tuple(a for a in range(3) if a != axis)) * np.arange(n)).sum())
        for axis, n in enumerate(volume.shape)
    ]
    return np.asarray(affine[:3, :3] @ (np.array(sums) / total) + affine[:3, 3])


def warm_up(on_compile: Callable[[str], None] | None = None) -> None:
    """Compile the kernels that a session needs, or load them from the cache; see :mod:`rtevo.kernels._compile`.

    Parameters
    ----------
    on_compile : callable, optional
        Called with a sentence where this is the first time on this computer, and takes long.
    """
    if on_compile is not None and not is_compiled():
        on_compile(COMPILING)
    x, y, z = np.meshgrid(*[np.arange(12.0)] * 3, indexing="ij")
    ball = 100 * np.exp(-((x - 5) ** 2 + (y - 6) ** 2 + (z - 5.5) ** 2) / 12)
    with cache_lock():
        with Realigner(ball, np.eye(4), mask=ball > 10) as realigner:
            motion, out = realigner.align(ball)
            realigner._reslice(motion, out)  # whether or not so small a volume could be aligned
            realigner._reslice(motion, out, Warp.of(np.zeros((*ball.shape, 3))))
        smooth(ball, (1, 1, 1), 2.0)
