"""What placement is measured against, each behind the same small face: two volumes in, matrix out.

``matrix`` is decoder's world to today's world, RAS+ mm, as :class:`rtevo.place.Placement` has it. NaN counts as 0: none of them knows
of it. A peer that is not installed raises ImportError when it is made.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rtevo.records import Grid

__all__ = ["PEERS", "AntsAffine", "AntsRigid", "Peer", "SimpleItk"]

Array = NDArray[np.float64]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world to RAS+ and back


class Peer:
    """One way to place a volume."""

    name: ClassVar[str]

    def place(self, reference: NDArray[Any], grid: Grid, today: NDArray[Any], today_grid: Grid) -> Array:
        """Return the matrix, float64 (4, 4)."""
        raise NotImplementedError


class _Ants(Peer):
    kind: ClassVar[str]

    def __init__(self) -> None:
        import ants  # its threads: ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS, read when it is loaded

        self.ants = ants

    def _image(self, volume: NDArray[Any], grid: Grid) -> Any:
        itk = LPS @ grid.affine
        size = np.sqrt((itk[:3, :3] ** 2).sum(axis=0))
        data = np.nan_to_num(np.asarray(volume, np.float32))
        return self.ants.from_numpy(data, origin=tuple(itk[:3, 3]), spacing=tuple(size), direction=itk[:3, :3] / size)

    def place(self, reference: NDArray[Any], grid: Grid, today: NDArray[Any], today_grid: Grid) -> Array:
        fixed, moving = self._image(reference, grid), self._image(today, today_grid)
        found = self.ants.registration(fixed, moving, type_of_transform=self.kind, random_seed=1)
        files = {*found["fwdtransforms"], *found["invtransforms"]}
        transform = self.ants.read_transform(found["fwdtransforms"][-1])
        matrix, centre = np.eye(4), np.asarray(transform.fixed_parameters)
        matrix[:3, :3] = np.reshape(transform.parameters[:9], (3, 3))
        matrix[:3, 3] = transform.parameters[9:] + centre - matrix[:3, :3] @ centre
        for file in files:
            with contextlib.suppress(OSError):
                Path(file).unlink()
        return np.asarray(LPS @ matrix @ LPS)


class AntsRigid(_Ants):
    """antspyx, type_of_transform="Rigid"."""

    name = "antspyx Rigid"
    kind = "Rigid"


class AntsAffine(_Ants):
    """antspyx, type_of_transform="BOLDAffine": twelve parameters, and judged with all of them."""

    name = "antspyx BOLDAffine"
    kind = "BOLDAffine"


class SimpleItk(Peer):
    """SimpleITK: Euler transform, Mattes mutual information, three resolutions, geometry-centred start."""

    name = "SimpleITK"

    def __init__(self) -> None:
        import SimpleITK

        self.itk = SimpleITK
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def _image(self, volume: NDArray[Any], grid: Grid) -> Any:
        itk = LPS @ grid.affine
        size = np.sqrt((itk[:3, :3] ** 2).sum(axis=0))
        image = self.itk.GetImageFromArray(np.ascontiguousarray(np.nan_to_num(np.asarray(volume, np.float32)).T))
        image.SetOrigin(itk[:3, 3].tolist())
        image.SetSpacing(size.tolist())
        image.SetDirection((itk[:3, :3] / size).ravel().tolist())
        return image

    def place(self, reference: NDArray[Any], grid: Grid, today: NDArray[Any], today_grid: Grid) -> Array:
        itk, fixed, moving = self.itk, self._image(reference, grid), self._image(today, today_grid)
        method = itk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.25, 1)
        method.SetInterpolator(itk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(learningRate=1.0, minStep=1e-3, numberOfIterations=200, relaxationFactor=0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([6.0, 3.0, 1.0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        # by the centres of mass: by the centres of the fields of view it fails more often here
        start = itk.CenteredTransformInitializer(fixed, moving, itk.Euler3DTransform(), itk.CenteredTransformInitializerFilter.MOMENTS)
        start = itk.Euler3DTransform(start)
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(fixed, moving)
        rotation, centre = np.reshape(start.GetMatrix(), (3, 3)), np.array(start.GetCenter())
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = np.array(start.GetTranslation()) + centre - rotation @ centre
        return np.asarray(LPS @ matrix @ LPS)


PEERS: list[type[Peer]] = [AntsRigid, AntsAffine, SimpleItk]
