"""Decoding with nuisance terms of its volumes, as a session does it: judged, the same again, taken over by the next run."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rtevo.config import Config, build
from rtevo.decode import Decoder, Score
from rtevo.errors import DecoderError
from rtevo.session.decoding import Decoding
from rtevo.session.simulation import simulation
from rtevo.simulate import make_decoder

TR_S = 2.0


def made(**decoder: object) -> tuple[Config, Decoder]:
    config = build({"decoder": {"nuisance": ["csf", "acompcor"], **decoder}, "simulation": {"voxel_mm": [6.0, 6.0, 6.6]}})
    found = make_decoder(simulation(config, TR_S))
    return config, Decoder(found.grid, found.reference, found.mask, found.weights, "map", dict(found.settings), found.noise_sd)


def run(config: Config, decoder: Decoder, count: int = 45) -> tuple[Decoding, list[Score]]:
    rng, decoding = np.random.default_rng(0), Decoding(config, decoder, TR_S)
    for index in range(count):
        if index % 2 == 0:
            decoding.onset((0, index // 2), index * TR_S)
        volume = (decoder.reference + 5 * rng.standard_normal(decoder.grid.shape)).astype(np.float32)
        decoding.learn(decoding.align(index, volume, 0, decoder.grid))
    scores = decoding.scores(final=True)[0]
    decoding.close()
    return decoding, scores


def test_terms_are_judged_and_the_same_volumes_give_the_same_scores() -> None:
    config, decoder = made()
    _, first = run(config, decoder)
    _, again = run(config, decoder)
    assert repr(first) == repr(again)
    there = first[-1].nuisance
    assert len(there) == 2
    assert all(0 <= number <= 1 for number in there)
    assert math.isfinite(first[0].score)


def test_a_mask_that_is_given_is_used_and_one_that_is_too_small_is_refused(tmp_path: Path) -> None:
    _, decoder = made()
    mask = np.zeros(decoder.grid.shape, np.uint8)
    nib.save(nib.Nifti1Image(mask, decoder.grid.affine), tmp_path / "csf.nii.gz")
    config, decoder = made(nuisance=["csf"], csf_mask=str(tmp_path / "csf.nii.gz"))
    with pytest.raises(DecoderError, match="nuisance: csf: expected at least 20 voxels, found 0"):
        run(config, decoder, 1)
