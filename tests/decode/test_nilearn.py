"""Parity with nilearn where the mathematics is the same: smoothing, masking, detrending, confound removal, standardisation."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest

from rtevo.decode import Decoder, Scorer, response_window
from rtevo.records import Grid

maskers = pytest.importorskip("nilearn.maskers", exc_type=ImportError)

SHAPE, TR_S = (18, 20, 16), 2.0
PARITY = 5e-5  # on correlations: both smooth in float32


@pytest.mark.parametrize("fwhm_mm", [None, 4.0, 6.0])
def test_peak_scores_are_what_nilearns_masker_gives(fwhm_mm: float | None) -> None:
    """The whole run cleaned offline by NiftiMasker, as the prototype did a generation, against the last score of the causal fit."""
    rng = np.random.default_rng(0)
    affine = np.diag([3.0, 2.5, 3.5, 1.0])
    mask = np.zeros(SHAPE, bool)
    mask[5:13, 6:14, 5:11] = True  # away from the edges, beyond which nilearn mirrors the volume and this project sees zeros
    motion = np.cumsum(rng.normal(0, [0.03] * 3 + [0.0005] * 3, (50, 6)), axis=0)
    data = 1000 + 10 * rng.standard_normal((*SHAPE, 50)) + np.arange(50) * rng.normal(0, 0.5, (*SHAPE, 1))
    data = (data + rng.normal(0, 30, (*SHAPE, 6)) @ motion.T).astype(np.float32)
    decoder = Decoder(Grid(SHAPE, affine), np.ones(SHAPE, np.float32), mask, rng.standard_normal(SHAPE).astype(np.float32), "map")

    scorer = Scorer(decoder, TR_S, method="peak", fwhm_mm=fwhm_mm or 0.0, drift_sd=math.inf, motion_sd=math.inf)
    onset_s = 90.0
    window = response_window(onset_s, TR_S)
    assert window[-1] == 49
    scorer.add_onset((0, 0), onset_s)
    for i in range(50):
        scorer.add_volume(i, data[..., i], motion[i])

    masker = maskers.NiftiMasker(
        nib.Nifti1Image(mask.astype(np.uint8), affine), smoothing_fwhm=fwhm_mm, detrend=True, standardize="zscore_sample", t_r=TR_S
    )
    clean = masker.fit_transform(nib.Nifti1Image(data, affine), confounds=motion)
    weights = decoder.weights[mask]
    expected = np.corrcoef(clean[list(window)].mean(axis=0), weights)[0, 1]
    assert scorer.ready()[0].score == pytest.approx(expected, abs=PARITY)
