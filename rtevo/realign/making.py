"""How an aligned volume is made of what the scanner measured: distortion undone and echoes combined, with one interpolation of each echo.

Motion is estimated from the first echo as it came: it has the least drop-out, and distorted volumes are compared with a distorted one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.realign.echoes import Echoes, first_echo
from rtevo.realign.realigner import Motion, Realigner
from rtevo.realign.warp import Warp

__all__ = ["PLAIN", "Making"]


@dataclass(frozen=True, eq=False)
class Making:
    """What happens to a volume besides its motion.

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

    def begin_again(self) -> None:
        """Forget what was learnt of volumes that were aligned to another one."""
        if self.echoes is not None:
            self.echoes.begin_again()


PLAIN = Making()
