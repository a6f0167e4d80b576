"""Beats, breaths and what is made of them, against a simulated body whose beats and breaths are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.physio import Sensor, sizes
from rtevo.physio.beats import Beats, find_beats, phase
from rtevo.physio.breath import breaths, smoothed
from rtevo.physio.regressors import Physiology, cardiac_response, moments, respiration_response
from rtevo.physio.trace import Trouble
from rtevo.simulate.body import Body

Array = NDArray[np.float64]
RATE_HZ, LENGTH_S = 50.0, 180.0
BOTH = (Sensor.CARDIAC, Sensor.RESPIRATORY)
ALL = ("retroicor", "rvt", "hrv")


@pytest.fixture(scope="module")
def body() -> Body:
    return Body(np.random.default_rng(3), LENGTH_S)


@pytest.fixture(scope="module")
def seen(body: Body) -> tuple[Array, Array, Array]:
    """Times, pulse and belt, with noise."""
    rng, t = np.random.default_rng(4), np.arange(-30.0, LENGTH_S, 1 / RATE_HZ)
    return t, body.pulse(t) + 0.05 * rng.standard_normal(len(t)), body.belt(t) + 0.02 * rng.standard_normal(len(t))


def heard(t: Array, pulse: Array, belt: Array, until_s: float, physiology: Physiology | None = None, from_s: float = -np.inf) -> Physiology:
    """What has heard everything from one moment until another."""
    physiology = physiology or Physiology(ALL, BOTH, 1.0)
    a, b = np.searchsorted(t, [from_s, until_s])
    for sensor, values in zip(BOTH, (pulse, belt), strict=True):
        physiology.add(sensor, 0, int(a), values[a:b], float(t[a]), 1 / RATE_HZ)
    return physiology


def circular(a: Array, b: Array) -> Array:
    """How far two phases are apart, but for a constant; radians."""
    apart = np.exp(1j * (a - b))
    return np.asarray(np.abs(np.angle(apart / apart.mean())), np.float64)


def test_every_beat_is_found_once_at_its_place(body: Body, seen: tuple[Array, Array, Array]) -> None:
    t, pulse, _ = seen
    found = np.interp(find_beats(pulse, RATE_HZ), np.arange(len(t)), t)
    true = body.beats_s[(body.beats_s > t[0] + 1) & (body.beats_s < t[-1] - 1)]
    delay = np.array([found[np.abs(found - beat - 0.25).argmin()] - beat for beat in true])
    assert len(found) == pytest.approx(len(true), abs=3)  # at the ends
    assert np.abs(delay - np.median(delay)).max() < 0.05


def test_beats_as_they_come_are_those_of_the_whole(seen: tuple[Array, Array, Array]) -> None:
    _, pulse, _ = seen
    beats, step = Beats(RATE_HZ), round(0.8 * RATE_HZ)
    for end in range(step, len(pulse), step):
        first = max(0, end - 300)
        beats.search(pulse[first:end], first)
    whole = find_beats(pulse, RATE_HZ)
    assert len(beats.numbers) == pytest.approx(len(whole), abs=3)
    near = np.array([np.abs(whole - number).min() for number in beats.numbers])
    assert np.mean(near < 0.03 * RATE_HZ) > 0.97


def test_a_beat_that_was_overlooked_is_put_in_between_and_one_too_many_is_taken_out() -> None:
    beats = Beats(RATE_HZ)
    beats._numbers = [50.0 * k for k in range(20) if k != 11] + [960.0, 1000.0]
    np.testing.assert_allclose(beats.numbers, 50.0 * np.arange(21))


def test_the_phase_grows_by_a_turn_from_beat_to_beat_and_goes_on_after_the_last() -> None:
    beats = np.array([0.0, 1.0, 2.2, 3.0, 4.0])
    turns = phase(beats, np.array([0.5, 1.6, 3.0, 4.5, -0.5])) / (2 * np.pi)
    np.testing.assert_allclose(turns, [0.5, 1.5, 3.0, 4.5, -0.5])


def test_phases_at_the_end_of_a_volume_are_near_those_that_are_known_later(seen: tuple[Array, Array, Array]) -> None:
    """Half a repetition time before the last sample: the next beat is foretold."""
    then, later, ends_s = [], [], np.arange(20.0, LENGTH_S - 5, 2.0)
    physiology, last = Physiology(("retroicor",), BOTH, 1.0), -np.inf
    for end_s in ends_s:
        heard(*seen, end_s, physiology, last)
        last = end_s
        then.append(physiology.at([end_s - 0.5], end_s).terms)
    heard(*seen, LENGTH_S, physiology, last)
    later = [physiology.at([end_s - 0.5], LENGTH_S).terms for end_s in ends_s]
    now, known = np.array(then), np.array(later)
    for cosine, sine, error in ((0, 2, 0.35), (4, 6, 0.5)):  # first harmonics: of the pulse, and of respiration
        apart = circular(np.arctan2(now[:, sine], now[:, cosine]), np.arctan2(known[:, sine], known[:, cosine]))
        assert np.sqrt(np.mean(apart**2)) < error, (cosine, apart)


def test_breaths_are_found_with_their_depth(body: Body, seen: tuple[Array, Array, Array]) -> None:
    t, _, belt = seen
    peaks, per_time = breaths(smoothed(belt, RATE_HZ), RATE_HZ)
    ends = np.interp(peaks, np.arange(len(t)), t)
    true = body.breaths_s + 0.4 * np.diff(body.breaths_s, append=np.inf)
    near = np.array([np.abs(true - end).argmin() for end in ends])
    assert np.median(np.abs(true[near] - ends)) < 0.1
    inside = (near > 0) & (near < len(body.breaths_s) - 1)
    depth = np.array([body.chest(body.breaths_s[k] + 0.4 * (body.breaths_s[k + 1] - body.breaths_s[k])) for k in near[inside]])
    period = np.array([body.breaths_s[k] - body.breaths_s[k - 1] for k in near[inside]])
    assert np.corrcoef(depth / period, per_time[inside])[0, 1] > 0.85


@pytest.mark.parametrize(("tr_s", "count"), [(0.8, (4, 4, 1, 1)), (2.0, (8, 8, 1, 1))])
def test_there_are_as_many_terms_as_said(seen: tuple[Array, Array, Array], tr_s: float, count: tuple[int, ...]) -> None:
    assert sizes(ALL, BOTH, tr_s) == count
    assert sizes(ALL, (Sensor.CARDIAC,), tr_s) == (count[0], 1)
    assert sizes((), BOTH, tr_s) == ()
    at = moments(tr_s, np.linspace(0, tr_s, 20, endpoint=False), np.ones(20))
    found = heard(*seen, 60.0, Physiology(ALL, BOTH, tr_s)).at(60.0 - tr_s + at, 60.0)
    assert found.terms.shape == (sum(count),)
    assert found.trouble == (Trouble.NONE, Trouble.NONE)


def test_moments_are_those_of_the_slices_in_which_the_map_lies() -> None:
    slices, energy = np.arange(10) * 0.2, np.zeros(10)
    energy[3] = 2.0
    np.testing.assert_allclose(moments(2.0, slices, energy), [0.6, 0.6])
    np.testing.assert_allclose(moments(2.0, slices, np.ones(10)), 0.9 + np.std(slices) * np.array([-1, 1]))
    np.testing.assert_allclose(moments(1.0, slices / 2, np.zeros(10)), [0.45])  # nothing known of the map


def test_a_flat_pulse_is_left_out_and_comes_back_by_itself(seen: tuple[Array, Array, Array]) -> None:
    t, pulse, belt = seen
    pulse = np.where((t > 60) & (t < 70), 0.5, pulse)
    physiology = heard(t, pulse, belt, 66.0)
    found = physiology.at([65.5], 66.0)
    assert found.trouble == (Trouble.FLAT, Trouble.NONE)
    assert np.isnan(found.heart_rate)
    assert not found.terms[:4].any()
    assert found.terms[4:8].any()
    found = heard(t, pulse, belt, 90.0, physiology, 66.0).at([89.5], 90.0)
    assert found.trouble == (Trouble.NONE, Trouble.NONE)
    assert 40 < found.heart_rate < 100


def test_noise_is_no_heart_and_a_belt_at_its_end_no_breath(seen: tuple[Array, Array, Array]) -> None:
    t, _, belt = seen
    rng = np.random.default_rng(0)
    noise = np.convolve(rng.standard_normal(len(t)), np.ones(4), "same") * (1 + 3 * (rng.random(len(t)) > 0.97))
    found = heard(t, noise, np.clip(belt, None, np.percentile(belt, 20)), 60.0).at([59.5], 60.0)
    assert found.trouble[0] in (Trouble.RATE, Trouble.NO_BEATS)
    assert found.trouble[1] == Trouble.SATURATED
    assert not found.terms.any()


def test_a_sensor_that_has_gone_silent_is_left_out(seen: tuple[Array, Array, Array]) -> None:
    physiology = heard(*seen, 60.0)
    assert physiology.at([61.0], 61.5).trouble == (Trouble.NONE, Trouble.NONE)
    found = physiology.at([63.5], 64.0)
    assert found.trouble == (Trouble.SILENT, Trouble.SILENT)
    assert not found.terms.any()
    assert Physiology(ALL, BOTH, 1.0).at([0.5], 1.0).trouble == (Trouble.SILENT, Trouble.SILENT)


def test_samples_at_a_higher_rate_give_the_same(body: Body) -> None:
    found = []
    for rate_hz in (50.0, 400.0):
        t = np.arange(-30.0, 60.0, 1 / rate_hz)
        physiology = Physiology(ALL, BOTH, 1.0)
        for begin in range(0, len(t), 97):  # not a multiple of anything
            part = t[begin : begin + 97]
            physiology.add(Sensor.CARDIAC, 0, begin, body.pulse(part), part[0], 1 / rate_hz)
            physiology.add(Sensor.RESPIRATORY, 0, begin, body.belt(part), part[0], 1 / rate_hz)
        found.append(physiology.at([59.3], 60.0).terms)
    np.testing.assert_allclose(found[1], found[0], atol=0.5)  # the beat is found at another place by some ms


def test_slow_terms_are_what_the_true_breaths_and_beats_make_through_the_published_responses(
    body: Body, seen: tuple[Array, Array, Array]
) -> None:
    """By convolution on a fine grid, with everything known; the terms have what was known at the end of each volume."""
    ends_s = np.arange(40.0, LENGTH_S, 2.0)
    physiology, last, rows = Physiology(("rvt", "hrv"), BOTH, 1.0), -np.inf, []
    for end_s in ends_s:
        heard(*seen, end_s, physiology, last)
        last = end_s
        rows.append(physiology.at([end_s - 0.5], end_s).terms)
    grid, past = np.arange(-70.0, LENGTH_S, 0.05), np.arange(0.0, 40.0, 0.05)
    period_s = np.diff(body.breaths_s)
    depth = body.chest(body.breaths_s[:-1] + 0.4 * period_s) / period_s
    rate = np.interp(grid, body.beats_s[1:], 60 / np.diff(body.beats_s))
    inputs = np.interp(grid, body.breaths_s[:-1] + 0.4 * period_s, depth), np.convolve(rate, np.full(120, 1 / 120), "same")
    for found, signal, response in zip(np.array(rows).T, inputs, (respiration_response, cardiac_response), strict=True):
        true = np.convolve(signal - signal.mean(), response(past))[: len(grid)]
        assert np.corrcoef(found, np.interp(ends_s - 0.5, grid, true))[0, 1] > 0.8, response
        assert 0.2 < found.std() < 4
