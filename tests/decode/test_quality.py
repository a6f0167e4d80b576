"""Quality of the incoming volumes against its definitions, and what is said of a run that is not like the decoder's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rtevo.decode import Decoder, Quality, Scorer, differences
from rtevo.decode.hrf import response
from rtevo.realign import dvars
from rtevo.records import Grid

SHAPE = (6, 7, 5)


def make_decoder(**settings: float) -> Decoder:
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) < 0.5
    return Decoder(Grid(SHAPE, np.diag([3.0, 3.0, 3.5, 1.0])), np.full(SHAPE, 900.0), mask, rng.standard_normal(SHAPE), "map", settings)


def test_measures_are_what_they_are_called() -> None:
    decoder = make_decoder()
    data = (1000 + 10 * np.random.default_rng(1).standard_normal((*SHAPE, 30))).astype(np.float32)
    quality = Quality(decoder)
    found = [quality.add(data[..., k]) for k in range(30)]
    inside = data[decoder.mask].astype(float)
    expected = dvars(data, decoder.mask) * 100
    for k in range(1, 30):
        assert found[k][0] == pytest.approx(expected[k] / inside[:, : k + 1].mean(), rel=1e-9)
    assert math.isnan(found[0][0])
    assert math.isnan(found[8][1])
    for k in (9, 20, 29):
        so_far = inside[:, : k + 1]
        assert found[k][1] == pytest.approx(np.median(so_far.mean(axis=1) / so_far.std(axis=1, ddof=1)), rel=1e-9)
    assert quality.gain() == pytest.approx(np.median(inside.mean(axis=1)) / 900, rel=1e-9)


def test_missing_volumes_have_no_measures_and_spoil_none() -> None:
    decoder = make_decoder()
    data = (1000 + 10 * np.random.default_rng(1).standard_normal((20, *SHAPE))).astype(np.float32)
    bad = data[0].copy()
    bad[decoder.mask] = np.nan
    whole, gappy = Quality(decoder), Quality(decoder)
    for k in range(20):
        last = whole.add(data[k])
        if k == 12:
            assert math.isnan(gappy.add(None)[0])
            assert math.isnan(gappy.add(bad)[0])
        found = gappy.add(data[k])
        assert math.isnan(found[0]) == (k in (0, 12))
        assert found[1] == pytest.approx(last[1], nan_ok=True)


def test_a_run_unlike_the_decoders_is_told() -> None:
    decoder = make_decoder(tr_s=2.0, fwhm_mm=4.0)
    still = np.zeros(6)
    assert differences(decoder, 2.0, 4.0, 1.1, still) == []
    assert differences(make_decoder(), 0.867, 6.0, 0.9, still) == []
    away = np.array([0.0, 12.0, 9.0, 0.0, 0.0, 0.0])
    assert differences(decoder, 0.867, 6.0, 0.2, away) == [
        "the decoder was made at a repetition time of 2 s, this run has 0.867 s",
        "the decoder was made with a smoothing of 4 mm, this session has [decoder] fwhm_mm = 6",
        "the signal is 0.2 times that of the decoder's reference",
        "the head lies 15 mm from its position in the decoder's reference",
    ]


def test_reliability_is_what_the_scores_turn_out_to_be() -> None:
    """Expected squared correlation with the responses, against the one that is found."""
    decoder = replace(make_decoder(), noise_sd=np.full(SHAPE, 10.0, np.float32))
    squared, expected = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        truth = rng.standard_normal(30)
        times = (np.arange(150) + 0.5) * 1.0
        series = sum(a * response(times - 6 - 4 * k, 3.0) for k, a in enumerate(truth))
        data = 1000 + 10 * rng.standard_normal((150, *SHAPE)) + 4 * np.multiply.outer(series, decoder.weights)
        scorer = Scorer(decoder, 1.0, fwhm_mm=0)
        assert math.isnan(scorer.reliability())
        scores = {}
        for i in range(150):
            for k in range(30):
                if i <= 6 + 4 * k < i + 1:
                    scorer.add_onset((0, k), 6.0 + 4 * k)
            scorer.add_volume(i, data[i].astype(np.float32), np.zeros(6))
            scores.update({score.key[1]: score.score for score in scorer.ready(final=i == 149)})
        squared.append(np.corrcoef([scores[k] for k in range(30)], truth)[0, 1] ** 2)
        expected.append(scorer.reliability())
    apart = np.mean(expected) - np.mean(squared)
    assert apart < 0.06  # six runs of 30 images
    assert apart > -0.15  # that images may share a part of their response makes errors longer in short runs, where it cannot be excluded
