"""What realignment is measured against, each behind the same small face: reference and affine in, matrix and aligned volume out.

A peer that is not installed raises ImportError when it is made. All give ``matrix`` as :class:`rtevo.realign.Motion` has it: reference
world to volume world, RAS+ mm.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["PEERS", "AntsAffine", "AntsRigid", "LeastSquares", "Ours", "Peer", "SimpleItk", "SpmRealtime"]

Array = NDArray[np.float64]
Found = tuple[Array, NDArray[np.float32]]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world to RAS+ and back


class Peer:
    """One way to align a volume to a reference."""

    name: ClassVar[str]

    def __init__(self, reference: NDArray[Any], affine: Array, threads: int) -> None:
        self.affine = affine
        self.shape = reference.shape

    def align(self, volume: NDArray[Any]) -> Found:
        """Estimate and reslice."""
        raise NotImplementedError

    def close(self) -> None:
        """End the threads."""


class Ours(Peer):
    """This project."""

    name = "rtevo"

    def __init__(self, reference: NDArray[Any], affine: Array, threads: int) -> None:
        from rtevo.realign import Realigner

        super().__init__(reference, affine, threads)
        self.realigner = Realigner(reference, affine, threads=threads)
        self.out = np.empty(reference.shape, np.float32)

    def align(self, volume: NDArray[Any]) -> Found:
        motion, aligned = self.realigner.align(volume, self.out)
        return motion.matrix, aligned

    def close(self) -> None:
        self.realigner.close()


class LeastSquares(Peer):
    """Plain least squares in NumPy and SciPy: inverse-compositional steps on trilinear samples of smoothed volumes, cubic reslice.

    No peer anyone uses, but what a reader can check line by line; its time says nothing.
    """

    name = "least squares (NumPy)"

    def __init__(self, reference: NDArray[Any], affine: Array, threads: int) -> None:
        from rtevo.kernels.mask import brain_mask
        from rtevo.kernels.template import steepest_descent

        super().__init__(reference, affine, threads)
        self.centre = affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + affine[:3, 3]
        inner = np.zeros(self.shape, bool)
        inner[1:-1, 1:-1, 1:-1] = True
        self.mask = ndimage.binary_dilation(brain_mask(reference, affine)) & inner
        self.points = np.argwhere(self.mask).T
        soft = self._soft(reference)
        self.seen = soft[self.mask]
        change = steepest_descent(reference.astype(float), affine, self.centre)[:, self.mask]
        self.change = change - np.outer(change @ self.seen / (self.seen @ self.seen), self.seen)
        self.inverse = np.linalg.inv(self.change @ change.T)

    def _soft(self, volume: NDArray[Any]) -> Array:
        from rtevo.kernels.template import seen_through_splines

        return seen_through_splines(volume.astype(float))

    def align(self, volume: NDArray[Any]) -> Found:
        from rtevo.kernels.rigid import matrix_from_params

        soft, matrix, world = self._soft(volume), np.eye(4), np.linalg.inv(self.affine)
        for _ in range(12):
            voxels = world @ matrix @ self.affine
            value = ndimage.map_coordinates(soft, voxels[:3, :3] @ self.points + voxels[:3, 3:], order=1, mode="nearest")
            scale = value @ self.seen / (self.seen @ self.seen)
            step = self.inverse @ (self.change @ (value - scale * self.seen)) / scale
            matrix = matrix @ np.linalg.inv(matrix_from_params(step, self.centre))
            if np.abs(step[:3]).sum() + 50 * np.abs(step[3:]).sum() < 1e-3:
                break
        voxels = world @ matrix @ self.affine
        return matrix, ndimage.affine_transform(volume.astype(np.float32), voxels[:3, :3], voxels[:3, 3], order=3, mode="mirror")


class _Ants(Peer):
    kind: ClassVar[str]

    def __init__(self, reference: NDArray[Any], affine: Array, threads: int) -> None:
        import ants  # its threads: ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS, read when it is loaded

        super().__init__(reference, affine, threads)
        self.ants = ants
        self.fixed = self._image(reference)

    def _image(self, volume: NDArray[Any]) -> Any:
        itk = LPS @ self.affine
        size = np.sqrt((itk[:3, :3] ** 2).sum(axis=0))
        data = np.asarray(volume, np.float32)
        return self.ants.from_numpy(data, origin=tuple(itk[:3, 3]), spacing=tuple(size), direction=itk[:3, :3] / size)

    def align(self, volume: NDArray[Any]) -> Found:
        found = self.ants.registration(self.fixed, self._image(volume), type_of_transform=self.kind)
        files = {*found["fwdtransforms"], *found["invtransforms"]}
        transform = self.ants.read_transform(found["fwdtransforms"][-1])
        matrix, centre = np.eye(4), np.asarray(transform.fixed_parameters)
        matrix[:3, :3] = np.reshape(transform.parameters[:9], (3, 3))
        matrix[:3, 3] = transform.parameters[9:] + centre - matrix[:3, :3] @ centre
        aligned = found["warpedmovout"].numpy()
        for file in files:
            with contextlib.suppress(OSError):
                Path(file).unlink()
        return LPS @ matrix @ LPS, aligned


class AntsAffine(_Ants):
    """antspyx, type_of_transform="BOLDAffine"."""

    name = "antspyx BOLDAffine"
    kind = "BOLDAffine"


class AntsRigid(_Ants):
    """antspyx, type_of_transform="BOLDRigid"."""

    name = "antspyx BOLDRigid"
    kind = "BOLDRigid"


class SimpleItk(Peer):
    """SimpleITK: Euler transform, mean squares, two resolutions, cubic B-spline resampling."""

    name = "SimpleITK"

    def __init__(self, reference: NDArray[Any], affine: Array, threads: int) -> None:
        import SimpleITK

        super().__init__(reference, affine, threads)
        self.itk = SimpleITK
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        self.fixed = self._image(reference)
        self.centre = (LPS @ affine @ [*((np.array(self.shape) - 1) / 2), 1])[:3]

    def _image(self, volume: NDArray[Any]) -> Any:
        itk = LPS @ self.affine
        size = np.sqrt((itk[:3, :3] ** 2).sum(axis=0))
        image = self.itk.GetImageFromArray(np.ascontiguousarray(np.asarray(volume, np.float32).T))
        image.SetOrigin(itk[:3, 3].tolist())
        image.SetSpacing(size.tolist())
        image.SetDirection((itk[:3, :3] / size).ravel().tolist())
        return image

    def align(self, volume: NDArray[Any]) -> Found:
        itk, moving = self.itk, self._image(volume)
        method = itk.ImageRegistrationMethod()
        method.SetMetricAsMeanSquares()
        method.SetInterpolator(itk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(learningRate=0.5, minStep=1e-4, numberOfIterations=100, relaxationFactor=0.5)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([2.0, 1.0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        start = itk.Euler3DTransform()
        start.SetCenter(self.centre.tolist())
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(self.fixed, moving)
        rotation, centre = np.reshape(start.GetMatrix(), (3, 3)), self.centre
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = np.array(start.GetTranslation()) + centre - rotation @ centre
        aligned = itk.GetArrayFromImage(itk.Resample(moving, self.fixed, start, itk.sitkBSpline, 0.0, itk.sitkFloat32)).T
        return LPS @ matrix @ LPS, aligned


class SpmRealtime(Peer):
    """python-rtspm: SPM's realign and reslice as OpenNFT runs them in real time (its settings for neurofeedback)."""

    name = "python-rtspm"

    def __init__(self, reference: NDArray[Any], affine: Array, threads: int) -> None:
        import rtspm

        super().__init__(reference, affine, threads)
        self.spm = rtspm
        self.one = affine @ np.array([[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1], [0, 0, 0, 1.0]])  # SPM counts voxels from 1
        wrap = np.zeros((3, 1), int)
        self.estimating = {"quality": 0.9, "fwhm": 5, "sep": 4, "rtm": 0, "PW": "", "wrap": wrap, "interp": 4, "graphics": 0}
        self.reslicing = {"quality": 0.9, "fwhm": 5, "sep": 4, "interp": 4, "wrap": wrap, "mask": 1, "mean": 0, "which": 2}
        self.first = self._record(reference)
        self.state: list[Any] = [[], [], [], [], [], []]
        self._step(reference, first=True)

    def _record(self, volume: NDArray[Any]) -> dict[str, Any]:
        return {"mat": self.one.copy(), "dim": np.array(self.shape), "Vol": np.asfortranarray(volume, np.float64), "C": None}

    def _step(self, volume: NDArray[Any], first: bool) -> list[dict[str, Any]]:
        flags = {**self.estimating, "lkp": np.arange(6)}
        found, *state, _ = self.spm.spm_realign_rt([self.first, self._record(volume)], flags, 0 if first else 1, 0, *self.state)
        self.state = state
        return found  # type: ignore[no-any-return]

    def align(self, volume: NDArray[Any]) -> Found:
        found = self._step(volume, first=False)
        aligned = self.spm.spm_reslice_rt(found, self.reslicing)
        return self.one @ np.linalg.inv(found[1]["mat"]), np.asarray(aligned, np.float32)


PEERS: list[type[Peer]] = [Ours, AntsAffine, AntsRigid, SpmRealtime, SimpleItk, LeastSquares]
