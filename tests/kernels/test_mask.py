"""Brain mask on phantoms with a known answer."""

from __future__ import annotations

import numpy as np

from rtevo.kernels.mask import brain_mask, otsu_threshold


def test_finds_the_head_without_specks_and_holes():
    rng = np.random.default_rng(1)
    grid = np.indices((30, 32, 24)) - np.array([15, 16, 12]).reshape(3, 1, 1, 1)
    head = (grid**2 / np.array([11, 12, 9]).reshape(3, 1, 1, 1) ** 2).sum(axis=0) < 1
    volume = np.where(head, 1000.0, 20.0) + rng.normal(scale=20, size=head.shape)
    volume[14:16, 15:17, 11:13] = 0  # a dark spot inside
    volume[1:3, 1:3, 1:3] = 1500  # a bright speck outside
    volume[0, 0, 0] = np.nan
    mask = brain_mask(volume, np.diag([3, 3, 3, 1]))
    overlap = 2 * (mask & head).sum() / (mask.sum() + head.sum())
    assert overlap > 0.93
    assert mask[15, 16, 12]
    assert not mask[:4, :4, :4].any()


def test_constant_volume_has_no_brain():
    assert not brain_mask(np.full((5, 6, 7), 3.0), np.eye(4)).any()
    assert not brain_mask(np.zeros((5, 6, 7)), np.eye(4)).any()


def test_otsu_splits_two_classes():
    values = np.concatenate([np.full(500, 1.0), np.full(300, 9.0)]).astype(np.float32)
    assert 1.0 < otsu_threshold(values) < 9.0
