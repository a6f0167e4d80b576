"""The response of a map's projection: found where it is, with errors that hold, and kept in decoder.json."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import gamma

from rtevo.decode import Deconvolver, Grid
from rtevo.decode.events import Event
from rtevo.decode.grid import ResponsePrior
from rtevo.decode.shape import estimate_responses

TR_S = 1.5


def make_pieces(peak_s: float, seed: int, noise: float) -> tuple[list, list[list[Event]]]:
    """Two runs of blocks of three kinds; responses are gamma densities of unit spread in scale, not the package's."""
    rng = np.random.default_rng(seed)
    lattice = np.arange(0, 60, 0.05)
    pieces, events = [], []
    for run in range(2):
        own = [Event(8.0 + 26.0 * k, 12.0, kind, {}) for k, kind in enumerate(rng.permutation(list("abcabc")))]
        times = (np.arange(120) + 0.5) * TR_S
        kernel = gamma.pdf(lattice, peak_s + 1, scale=1.0)
        block = np.convolve(kernel, np.ones(240))[: len(lattice)] * 0.05
        scores = np.zeros((len(times), 2))
        for event in own:
            shape = np.interp(times - event.onset_s, lattice, block, left=0.0, right=0.0)
            scores += np.outer(shape, {"a": (2.0, -1.0), "b": (-1.0, 2.0), "c": (-1.0, -1.0)}[event.trial_type])
        scores += noise * rng.standard_normal(scores.shape)
        pieces += [(times[:70], scores[:70], run), (times[70:], scores[70:], run)]
        events.append(own)
    return pieces, events


@pytest.mark.parametrize("peak_s", [4.0, 7.5])
def test_the_response_is_found_with_an_error_that_holds(peak_s: float) -> None:
    pieces, events = make_pieces(peak_s, 0, 0.7)
    for found in estimate_responses(pieces, events, TR_S, 2):
        assert found is not None
        at = np.arange(0, 20, 0.01)
        width = math.sqrt(peak_s + 1) / math.sqrt(6)
        assert abs(found.lag_s - (peak_s - 5)) < 3 * found.lag_se_s  # three standard errors
        assert abs(found.width - width) < 3 * found.width_se
        assert found.lag_se_s < 0.6
        assert found.undershoot < 1.0  # there is none
        assert at[gamma.pdf(at, peak_s + 1).argmax()] == pytest.approx(peak_s, abs=0.01)


def test_nothing_is_said_of_a_few_volumes() -> None:
    pieces, events = make_pieces(5.0, 0, 1.0)
    assert estimate_responses([(pieces[0][0][:12], pieces[0][1][:12], 0)], events, TR_S, 2) == [None, None]


def test_it_is_kept_in_the_decoder_and_read_again() -> None:
    prior = ResponsePrior(1.25, 0.4, 1.1, 0.1, 0.8)
    stored = prior.as_dict()
    assert stored["undershoot_se"] is None
    again = ResponsePrior.of({"response": stored})
    assert again is not None
    assert again.as_dict() == stored
    assert ResponsePrior.of({}) is None
    assert "its peak 6.2 s after a brief event" in prior.sentence()
    for bad in ({"lag_s": 1.0}, {**stored, "width": 0.0}, {**stored, "lag_se_s": math.nan}, 3):
        with pytest.raises(ValueError, match="response: expected"):
            ResponsePrior.of({"response": bad})


def test_a_known_response_narrows_the_grid_around_it_and_is_reported() -> None:
    grid = Grid().known(ResponsePrior(2.0, 0.1, 1.2, 0.01, 0.5))
    assert grid.lag_s == pytest.approx((1.4, 1.7, 2.0, 2.3, 2.6))  # no narrower than responses differ between days
    assert grid.width[1] == pytest.approx(1.2)
    assert grid.undershoot == 0.5
    before = Deconvolver(1.0, 0, grid).response()
    assert before.lag_s == pytest.approx(2.0)
    assert (before.prior_lag_s, before.prior_lag_sd_s, before.prior_width) == (2.0, 0.3, 1.2)
    assert before.edge < 0.2
