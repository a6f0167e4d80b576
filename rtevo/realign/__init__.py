"""Rigid-body realignment: each volume to one reference, in real time.

>>> realigner = Realigner(reference, affine)            # (X, Y, Z), (4, 4) voxel to RAS+ mm
>>> motion, aligned = realigner.align(volume)           # same grid as the reference; aligned: float32 (X, Y, Z)

``motion = realigner.estimate(volume)`` and ``realigner.reslice(volume, motion)`` do the same in two steps. How it works, and from whom,
is described in :mod:`rtevo.kernels.template`, :mod:`rtevo.kernels.align` and :mod:`rtevo.kernels.interpolate`. Offline, with the same
result bit for bit::

    python -m rtevo.realign RUN.nii.gz --out DIR
"""

from rtevo.kernels.mask import brain_mask
from rtevo.realign.echoes import Echoes, first_echo
from rtevo.realign.first import FirstVolumes
from rtevo.realign.making import PLAIN, Making
from rtevo.realign.measures import dvars, framewise_displacement
from rtevo.realign.realigner import Motion, Realigner, warm_up
from rtevo.realign.reslice import resliced
from rtevo.realign.warp import Encoding, Warp, load_map, map_on, read_warp

__all__ = [
    "PLAIN",
    "Echoes",
    "Encoding",
    "FirstVolumes",
    "Making",
    "Motion",
    "Realigner",
    "Warp",
    "brain_mask",
    "dvars",
    "first_echo",
    "framewise_displacement",
    "load_map",
    "map_on",
    "read_warp",
    "resliced",
    "warm_up",
]
