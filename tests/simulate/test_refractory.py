"""Responses that are not additive, as far as it was published."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.simulate.participant import Participant
from rtevo.simulate.refractory import Refractory

from .test_participant import Level

PUBLISHED = 0.05  # what the curves of Huettel and McCarthy, and Miezin et al., can be read to


def pictures(n: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(("every_s", "left"), [(1.0, 0.6), (6.0, 0.9)])
def test_a_second_picture_has_what_was_published_of_the_first_one_s_response(every_s: float, left: float) -> None:
    dark, light = np.zeros((32, 32, 3), np.uint8), np.tile(np.uint8([[[0, 255, 0]]]), (32, 32, 1))  # nothing in common
    share = Refractory()
    assert share(0.0, dark) == 1.0
    assert share(every_s, light) == pytest.approx(left, abs=PUBLISHED)


def test_pictures_in_a_row_have_less_the_closer_they_are_and_one_that_comes_again_has_less_than_another() -> None:
    def last(every_s: float) -> float:
        share = Refractory()
        return [share(k * every_s, picture) for k, picture in enumerate(pictures(12))][-1]

    assert last(1.0) < 0.4 < last(2.0) < last(4.0) < last(20.0)
    share, (first, other) = Refractory(), pictures(2)
    share(0.0, first)
    again = Refractory()
    again(0.0, first)
    assert again(30.0, first) < share(30.0, other)


def test_a_participant_s_amplitudes_are_those_that_are_left_and_preferences_stay() -> None:
    plain, less = (Participant(Level(), np.random.default_rng(0), refractory=own) for own in (None, Refractory()))
    for k, picture in enumerate(pictures(4)):
        for participant in (plain, less):
            participant.look("image", 1.0 * k, picture)
    assert [v.preference for v in plain.viewings] == [v.preference for v in less.viewings]
    shares = [b.amplitude_percent / a.amplitude_percent for a, b in zip(plain.viewings, less.viewings, strict=True)]
    assert shares[0] == 1.0
    assert max(shares[1:]) < 0.65
