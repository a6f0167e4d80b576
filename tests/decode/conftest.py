"""Stands in for the smoothing kernel where it is not there yet."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import numpy as np
from scipy import ndimage

if importlib.util.find_spec("rtevo.kernels.smooth") is None:

    def smooth(volume: Any, voxel_size_mm: Any, fwhm_mm: float, out: Any = None) -> Any:
        sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / np.asarray(voxel_size_mm)
        return ndimage.gaussian_filter(np.asarray(volume, np.float32), sigma, mode="constant", truncate=4)

    module = types.ModuleType("rtevo.kernels.smooth")
    module.smooth = smooth  # type: ignore[attr-defined]
    sys.modules["rtevo.kernels.smooth"] = module
