"""Gaussian smoothing against scipy.ndimage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rtevo.kernels.smooth import FWHM_PER_SIGMA, smooth

FLOAT32_SLACK = 2e-6


def _oracle(volume, size, fwhm_mm):
    for axis in range(3):
        sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / size[axis]
        volume = ndimage.gaussian_filter1d(volume, sigma, axis=axis, mode="constant", truncate=4.0)
    return volume


@pytest.mark.parametrize("fwhm_mm", [0.5, 4.0, 11.0])
@pytest.mark.parametrize("shape", [(9, 10, 11), (3, 30, 2), (1, 1, 7)])
def test_agrees_with_scipy(shape, fwhm_mm):
    volume = np.random.default_rng(1).normal(size=shape)
    size = (2.0, 3.0, 3.5)
    np.testing.assert_allclose(smooth(volume, size, fwhm_mm), _oracle(volume, size, fwhm_mm), atol=FLOAT32_SLACK)


def test_zero_width_and_out_and_strides():
    volume = np.asfortranarray(np.random.default_rng(2).integers(-5, 5, (6, 5, 4)).astype(np.int16))
    out = np.empty(volume.shape, np.float32)
    assert smooth(volume, (3, 3, 3), 0.0, out=out) is out
    np.testing.assert_array_equal(out, volume)


def test_mask_normalisation():
    rng = np.random.default_rng(3)
    volume, mask, size = rng.normal(size=(8, 9, 10)), rng.random((8, 9, 10)) > 0.4, (3.0, 3.0, 3.0)
    expected = np.where(mask, _oracle(volume * mask, size, 6.0) / _oracle(mask.astype(float), size, 6.0), 0)
    np.testing.assert_allclose(smooth(volume, size, 6.0, mask=mask), expected, atol=1e-5)
    np.testing.assert_allclose(smooth(np.ones(mask.shape), size, 6.0, mask=mask)[mask], 1.0, atol=1e-5)


@pytest.mark.parametrize("wrong", [dict(fwhm_mm=-1.0), dict(fwhm_mm=np.nan), dict(voxel_size_mm=(3, 3)), dict(volume=np.zeros((3, 3)))])
def test_refuses(wrong):
    given = dict(volume=np.zeros((3, 3, 3)), voxel_size_mm=(3, 3, 3), fwhm_mm=4.0) | wrong
    with pytest.raises(ValueError, match="smooth"):
        smooth(**given)


def test_a_kernel_without_extent_along_y_stays_inside_its_scratch() -> None:
    volume = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(np.float32)
    found = smooth(volume, (1e6, 1e6, 1.0), 3.0)  # it used to write past the end of its scratch
    expected = ndimage.gaussian_filter1d(volume.astype(np.float64), 3.0 / FWHM_PER_SIGMA, axis=2, mode="constant")
    np.testing.assert_allclose(found, expected, atol=1e-5)
