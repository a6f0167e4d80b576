"""The simulated localizer: it finds the hidden voxels, as well as its noise allows and no better."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rtevo.simulate import Simulation, make_decoder


def test_it_finds_where_liking_shows(coarse: Simulation) -> None:
    head = coarse.head()
    decoder = make_decoder(coarse, head=head)
    assert decoder.mask.sum() > 300
    assert np.corrcoef(decoder.weights[decoder.mask], head.gains[decoder.mask])[0, 1] > 0.6
    assert decoder.mask[np.abs(head.gains) > 0.5].mean() > 0.9
    assert not decoder.weights[~decoder.mask].any()
    assert np.isfinite(decoder.weights).all()
    np.testing.assert_allclose(decoder.reference[head.brain], head.signal[head.brain], rtol=0.1)
    assert (decoder.mask.dtype, decoder.weights.dtype, decoder.reference.dtype) == (np.bool_, np.float32, np.int16)
    assert decoder.grid.shape == coarse.shape
    json.dumps(decoder.settings)


def test_its_noise_is_real(coarse: Simulation) -> None:
    nothing = replace(coarse, amplitude_percent=0.0, ar1=0.0)
    head = nothing.head()
    decoder = make_decoder(nothing, head=head, duration_s=200)
    t = decoder.t[head.brain]
    assert np.median(np.abs(t)) / 0.6745 == pytest.approx(1.0, abs=0.15)  # standard normal
    assert abs(np.corrcoef(t, head.gains[head.brain])[0, 1]) < 0.2
    assert decoder.mask.any()
    weak = make_decoder(replace(coarse, tsnr=15.0), head=head, duration_s=120)
    strong = make_decoder(replace(coarse, tsnr=150.0), head=head, duration_s=120)
    known = np.abs(head.gains) > 0.5
    assert np.abs(weak.t[known]).mean() < np.abs(strong.t[known]).mean() / 3


def test_the_same_seeds_give_the_same_decoder(coarse: Simulation) -> None:
    one, again = (make_decoder(coarse, duration_s=60) for _ in range(2))
    np.testing.assert_array_equal(one.weights, again.weights)
    np.testing.assert_array_equal(one.mask, again.mask)
    assert not np.array_equal(make_decoder(replace(coarse, seed=9), duration_s=60).weights, one.weights)
