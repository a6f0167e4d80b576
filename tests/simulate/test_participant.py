"""The simulated participant: blood flow against SciPy and a plain convolution, preference, answers, the link."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, stats

from rtevo.errors import LinkError
from rtevo.localizer.pictures import marked
from rtevo.simulate.participant import (
    REFERENCE_S,
    Behaviour,
    ColourPreference,
    Participant,
    ParticipantLink,
    Vigilance,
    boxcar_response,
    haemodynamic_integral,
    haemodynamic_response,
)
from rtevo.wire import Key, Pressed, Seen, Shown, decode, encode

GRID_ERROR = 1e-3  # of the peak: what a sum over a millisecond grid may differ from the closed form
FORGOTTEN_PERCENT = 1e-6  # what is left of a picture that is no longer counted


def test_response_is_spms_double_gamma() -> None:
    t_s = np.linspace(-2, 32, 341)
    expected = stats.gamma.pdf(t_s, 6) - stats.gamma.pdf(t_s, 16) / 6
    np.testing.assert_allclose(haemodynamic_response(t_s), expected, atol=1e-12)


def test_integral_is_that_of_the_response() -> None:
    t_s = np.arange(0, 40, 0.001)
    summed = np.concatenate([[0], np.cumsum((haemodynamic_response(t_s)[1:] + haemodynamic_response(t_s)[:-1]) * 0.0005)])
    np.testing.assert_allclose(haemodynamic_integral(t_s), summed, atol=1e-6)
    assert haemodynamic_integral(np.array([-1.0, -np.inf])).tolist() == [0, 0]


def watch(participant: Participant, pictures: list[tuple[float, float, float]]) -> None:
    """Show uniform pictures: onset, offset (s) and grey level."""
    for onset_s, offset_s, level in pictures:
        participant.look("image", onset_s, np.full((4, 4, 3), level, np.uint8))
        if math.isfinite(offset_s):
            participant.look("fixation", offset_s)


class Level:
    """Prefers light pictures: 0 at grey level 100, 1 at 200."""

    def __call__(self, pixels: np.ndarray) -> float:
        return float(pixels.mean() / 100 - 1)

    def settings(self) -> dict[str, str]:
        return {"kind": "level"}


def test_response_equals_the_plain_convolution() -> None:
    participant = Participant(Level(), np.random.default_rng(0), amplitude_percent=2.0)
    pictures = [(1.0, 4.0, 200.0), (5.5, 8.5, 50.0), (9.0, 10.25, 250.0), (11.0, math.inf, 150.0)]
    watch(participant, pictures)
    dt = 0.001
    fine_s = np.arange(0, 14, dt)
    drive, presence = np.zeros(fine_s.size), np.zeros(fine_s.size)
    for onset_s, offset_s, level in pictures:
        shown = (fine_s >= onset_s) & (fine_s < offset_s)
        drive += shown * 2.0 * (level / 100 - 1)
        presence += shown
    kernel = haemodynamic_response(fine_s)
    reference = signal.fftconvolve((fine_s < REFERENCE_S) * 1.0, haemodynamic_response(np.arange(0, 30, dt)))[: int(30 / dt)].max()
    hidden, visual = participant.response(fine_s)
    np.testing.assert_allclose(hidden, signal.fftconvolve(drive, kernel)[: fine_s.size] / reference, atol=2 * GRID_ERROR)
    np.testing.assert_allclose(visual, signal.fftconvolve(presence, kernel)[: fine_s.size] / reference, atol=GRID_ERROR)


def test_peak_to_one_picture_is_its_amplitude() -> None:
    participant = Participant(Level(), np.random.default_rng(0), amplitude_percent=3.0)
    watch(participant, [(10.0, 10.0 + REFERENCE_S, 200.0)])
    hidden, _ = participant.response(np.arange(0, 30, 0.01))
    assert hidden.max() == pytest.approx(3.0, abs=1e-3)
    assert 15 < np.arange(0, 30, 0.01)[hidden.argmax()] < 18
    assert participant.viewings[0].amplitude_percent == pytest.approx(3.0)


def test_pictures_long_gone_are_forgotten_without_a_step() -> None:
    participant = Participant(Level(), np.random.default_rng(0))
    watch(participant, [(4.0 * i, 4.0 * i + 3, 200.0) for i in range(30)])
    long_ago = Participant(Level(), np.random.default_rng(0))
    watch(long_ago, [(4.0 * i, 4.0 * i + 3, 200.0) for i in range(30)])
    stepped = np.array([participant.response(np.array([t]))[0][0] for t in np.arange(0, 200, 1.0)])
    long_ago._recent = list(long_ago.viewings)
    at_once = long_ago.response(np.arange(0, 200, 1.0))[0]
    np.testing.assert_allclose(stepped, at_once, atol=FORGOTTEN_PERCENT)


pictures = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).integers(0, 256, (16, 12, 3), np.uint8))


@given(pictures, pictures, st.floats(0, 1))
def test_preference_is_linear_along_a_fade_between_pictures(one: np.ndarray, other: np.ndarray, at: float) -> None:
    prefer = ColourPreference(np.random.default_rng(1))
    fade = np.rint((1 - at) * one + at * other).astype(np.uint8)
    rounding = np.abs(prefer._weights).sum() * 0.5 / 255
    assert prefer(fade) == pytest.approx((1 - at) * prefer(one) + at * prefer(other), abs=rounding)


@given(pictures)
def test_preference_does_not_depend_on_the_number_of_pixels(picture: np.ndarray) -> None:
    prefer = ColourPreference(np.random.default_rng(1))
    larger = picture.repeat(6, axis=0).repeat(6, axis=1)
    coarse = np.abs(prefer._weights).sum() * 0.02  # the cosines are sampled more finely
    assert prefer(larger) == pytest.approx(prefer(picture), abs=coarse)


def test_preference_sees_layout_and_colour_and_differs_between_participants() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, :, 0] = 255
    one, other = (ColourPreference(np.random.default_rng(seed)) for seed in (1, 2))
    assert one(picture) != other(picture)
    values = {round(one(p), 9) for p in (picture, picture[::-1], picture.transpose(1, 0, 2), picture[..., ::-1])}
    assert len(values) == 4


@pytest.mark.slow
def test_preference_is_roughly_standardised_over_the_tiny_generators_pictures() -> None:
    generate = pytest.importorskip("rtevo.generate")
    rng = np.random.default_rng(3)
    with generate.load(generate.GeneratorSettings(steps=6)) as generator:
        embeddings = rng.standard_normal((24, generator.embedding_size)).astype(np.float32)
        painted = [p.pixels for p in generator.paint(embeddings, np.ones(24, np.uint64))]
    values = np.array([[ColourPreference(np.random.default_rng(seed))(p) for p in painted] for seed in range(12)])
    assert np.sqrt((values.mean(axis=1) ** 2).mean()) < 1
    assert 0.5 < np.sqrt(values.var(axis=1).mean()) < 2


def test_ratings_follow_the_preference_but_for_noise() -> None:
    behaviour, rng = Behaviour(missed=0.0), np.random.default_rng(0)
    liked = rng.standard_normal(400)
    answers = [behaviour.answer(float(p), rng) for p in liked]
    ratings = np.array([behaviour.keys.index(a[1]) for a in answers if a is not None])
    times_s = np.array([a[0] for a in answers if a is not None])
    assert 0.7 < stats.spearmanr(liked, ratings).statistic < 0.98
    assert set(ratings.tolist()) == {0, 1, 2, 3, 4}
    assert times_s.min() >= 0.25
    assert times_s.max() < 4
    assert times_s[np.abs(liked) > 1].mean() < times_s[np.abs(liked) < 0.5].mean()


def test_some_ratings_are_missed_and_draw_as_many_numbers() -> None:
    always, never = np.random.default_rng(4), np.random.default_rng(4)
    assert Behaviour(missed=1.0).answer(0.3, always) is None
    assert Behaviour(missed=0.0).answer(0.3, never) is not None
    assert always.random() == never.random()


def test_a_key_is_planned_for_the_rating_screen_only() -> None:
    participant = Participant(Level(), np.random.default_rng(0), behaviour=Behaviour(missed=0.0))
    participant.look("rating", 1.0)
    assert participant.planned is None  # nothing seen yet
    watch(participant, [(2.0, 5.0, 200.0)])
    participant.look("rating", 5.0)
    assert participant.planned is not None
    assert participant.planned[0] > 5.0
    participant.look("fixation", 5.2)
    assert participant.planned is None  # too late
    participant.look("rating", 6.0)
    planned = participant.planned
    assert planned is not None
    participant.pressed()
    assert participant.answers == {0: (pytest.approx(planned[0] - 6.0), planned[1])}
    assert participant.viewings[0].offset_s == 5.0


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_link_brings_pictures_and_takes_keys(transport: str, tmp_path: Path) -> None:
    bind = f"ipc://{tmp_path}/p" if transport == "ipc" and len(str(tmp_path)) < 90 else "tcp://127.0.0.1:0"
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with ParticipantLink(bind) as link, zmq.Context() as context, context.socket(zmq.DEALER) as screen:
        assert not link.endpoint.endswith((":0", ":*"))
        assert not link.connected
        assert link.receive() is None
        with pytest.raises(LinkError, match="no presenter"):
            link.press("5")
        screen.setsockopt(zmq.LINGER, 0)
        screen.connect(link.endpoint)
        screen.send_multipart(encode(Shown("image", 123, 5, 7), picture))
        assert link.poll(30)
        received = link.receive()
        assert received is not None
        assert received[0] == Shown("image", 123, 5, 7)
        assert received[1] is not None
        np.testing.assert_array_equal(received[1], picture)
        link.seen(123)
        link.press("6", 456)
        assert screen.poll(30_000)
        assert [decode(screen.recv_multipart())[0] for _ in range(2)] == [Seen(123), Key("6", 456)]
        screen.send_multipart(encode(Pressed("6")))
        assert link.poll(30)
        assert link.receive() == (Pressed("6"), None)


def test_link_says_where_it_cannot_listen() -> None:
    with ParticipantLink("tcp://127.0.0.1:0") as link, pytest.raises(LinkError, match="cannot listen on 'tcp://"):
        ParticipantLink(link.endpoint)


class Vigilant:
    """Pictures shown one after the other to a participant with a task, and when it presses."""

    def __init__(self, task: str, missed: float = 0.0) -> None:
        self.participant = Participant(Level(), np.random.default_rng(1), vigilance=Vigilance(task, "2", missed=missed, false=0.0))

    def look(self, *pictures: np.ndarray) -> list[float | None]:
        found: list[float | None] = []
        for k, pixels in enumerate(pictures):
            self.participant.look("image", float(k), pixels)
            self.participant.look("fixation", k + 0.3)  # a flip does not forget an answer that is on its way
            planned = self.participant.planned
            found.append(None if planned is None else planned[0] - k)
            if planned is not None:
                assert planned[1] == "2"
                self.participant.pressed()
        return found


def test_a_picture_that_comes_again_at_once_is_answered_by_its_pixels() -> None:
    a, b = (np.full((20, 20, 3), level, np.uint8) for level in (50, 150))
    answers = Vigilant("one-back").look(a, b, b.copy(), a, b)
    assert [answer is not None for answer in answers] == [False, False, True, False, False]
    assert answers[2] is not None
    assert 0.25 <= answers[2] < 1.5
    assert Vigilant("one-back", missed=1.0).look(b, b) == [None, None]


def test_a_dot_is_answered_by_its_pixels() -> None:
    plain = np.full((100, 100, 3), 90, np.uint8)
    dotted = marked(plain, np.random.default_rng(3))
    assert [answer is not None for answer in Vigilant("detection").look(plain, dotted, plain, plain)] == [False, True, False, False]


def test_areas_respond_to_what_they_are_for_and_never_below_nothing() -> None:
    light, dark = (np.full((4, 4, 3), level, np.uint8) for level in (200, 50))
    participant = Participant(Level(), np.random.default_rng(1), areas=[Level(), Level()])
    participant.look("image", 0.0, dark)
    participant.look("image", 3.0, light)
    participant.look("fixation", 6.0)
    assert [viewing.areas_percent for viewing in participant.viewings] == [(0.0, 0.0), (3.0, 3.0)]
    times_s = np.arange(0.0, 20.0, 0.1)
    areas, (hidden, _) = participant.area_responses(times_s), participant.response(times_s)
    only = boxcar_response(times_s, participant.viewings[1:])[0]
    np.testing.assert_allclose(areas, [only, only])
    assert not np.allclose(areas[0], hidden)
