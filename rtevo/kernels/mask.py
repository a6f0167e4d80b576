"""Brain mask from one EPI volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.kernels.smooth import smooth

__all__ = ["brain_mask", "otsu_threshold"]

CLOSING_FWHM_MM = 7.0  # smoothing before the threshold: closes vessels and noise, keeps the outline


def otsu_threshold(values: NDArray[np.float32]) -> float:
    """Threshold that best splits values in two classes.

    Source: N. Otsu (1979), IEEE Trans. Syst. Man Cybern. 9:62-66, doi:10.1109/TSMC.1979.4310076.
    """
    high = np.percentile(values, 99.0)  # bright vessels and spikes do not stretch the histogram
    counts, edges = np.histogram(np.minimum(values, high), bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(float)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[1:][np.nanargmax(between)])


def brain_mask(volume: ArrayLike, affine: ArrayLike) -> NDArray[np.bool_]:
    """Return the voxels of an EPI volume with signal: smoothing, Otsu's threshold, largest connected part, holes filled.

    It keeps whatever is bright and connected, scalp included: a mask to average and to align by, not an anatomical segmentation.

    Parameters
    ----------
    volume : array_like, (X, Y, Z)
        Any real dtype; NaN counts as 0.
    affine : array_like, (4, 4)
        Voxel to RAS+ mm.

    Returns
    -------
    ndarray, bool (X, Y, Z)
        All False where the volume is constant.
    """
    from scipy import ndimage

    data = np.nan_to_num(np.asarray(volume, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    size = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    soft = smooth(data, size, CLOSING_FWHM_MM, mask=np.ones(data.shape, np.bool_))
    if float(np.ptp(soft)) <= 1e-6 * float(np.abs(soft).max()):
        return np.zeros(data.shape, np.bool_)
    labels, count = ndimage.label(soft > otsu_threshold(soft))
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        labels = labels == sizes.argmax()
    return np.asarray(ndimage.binary_fill_holes(labels), np.bool_)
