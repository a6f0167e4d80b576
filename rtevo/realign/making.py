"""Aligned volumes from the scanner's: distortion undone and echoes combined, with one interpolation of each echo.

Motion is estimated from the first echo as it came: it has the least drop-out, and distorted volumes are compared with a distorted one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.realign.echoes import Echoes, first_echo
from rtevo.realign.realigner import Motion, Realigner
from rtevo.realign.reslice import resliced
from rtevo.realign.warp import Warp

__all__ = ["PLAIN", "Making"]


@dataclass(frozen=True, eq=False)
class Making:
    """The processing of a volume besides its motion.

    Parameters
    ----------
    warp : Warp, optional
        Distortion that is undone.
    echoes : Echoes, optional
        How several echoes are combined.
    """

    warp: Warp | None = None
    echoes: Echoes | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing does, so that aligned volumes look as those that came."""
        return self.warp is None and self.echoes is None

    def aligned(self, realigner: Realigner, volume: NDArray[np.floating], motion: Motion) -> NDArray[np.float32]:
        """Make the aligned volume.

        Parameters
        ----------
        realigner : Realigner
            That has estimated the motion.
        volume : ndarray, float32 (X, Y, Z) or (echoes, X, Y, Z)
            As it came.
        motion : Motion
            Of its first echo; converged.

        Returns
        -------
        ndarray, float32 (X, Y, Z)
        """
        if self.echoes is None:
            return realigner.reslice(first_echo(volume), motion, warp=self.warp)
        return self.echoes.combine(np.stack([realigner.reslice(echo, motion, warp=self.warp) for echo in volume]))

    def resliced(self, volume: NDArray[np.floating], affine: ArrayLike, params: ArrayLike) -> NDArray[np.float32]:
        """Make the aligned volume of one whose motion is known already, (6,); volumes come in their order."""
        if self.echoes is None:
            return resliced(first_echo(volume), affine, params, self.warp)
        return self.echoes.combine(np.stack([resliced(echo, affine, params, self.warp) for echo in volume]))

    def still(self, volume: NDArray[np.float32] | None, affine: ArrayLike) -> NDArray[np.float32] | None:
        """Make a volume as if the head had not moved, for those who align it themselves; None of one that is missing."""
        if volume is None or self.plain:
            return volume
        if self.warp is None and self.echoes is not None:
            return self.echoes.combine(volume)
        return self.resliced(volume, affine, np.zeros(6))

    @property
    def words(self) -> str:
        """Description of the processing, to follow that of the realignment."""
        warp = ", with distortion along phase encoding undone in the same interpolation" if self.warp is not None else ""
        echoes = ", echoes combined with weights by T2* (Posse et al. 1999)" if self.echoes is not None else ""
        return warp + echoes

    def begin_again(self) -> None:
        """Forget what was learnt of volumes that were aligned to another one."""
        if self.echoes is not None:
            self.echoes.begin_again()


PLAIN = Making()
