"""The session script against a display whose frames are counted and a link that does what the script says."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from presenter.display import Picture, Press, Scene
from presenter.session import Session
from rtevo import wire
from rtevo.wire import Kind, PresentationSettings

SECOND = 1_000_000_000


@dataclass
class FakeLink:
    """Messages arrive at their times; what is sent is kept."""

    now: Callable[[], int]
    arrivals: deque[tuple[int, wire.Numbered]]
    sent: list[wire.Numbered] = field(default_factory=list)
    silences: tuple[tuple[int, int], ...] = ()

    def send(self, message: Any) -> int:
        self.sent.append(message)
        return len(self.sent)

    def take(self) -> list[tuple[wire.Numbered, memoryview | None]]:
        taken: list[tuple[wire.Numbered, memoryview | None]] = []
        while self.arrivals and self.arrivals[0][0] <= self.now():
            message = self.arrivals.popleft()[1]
            taken.append((message, memoryview(b"abc") if isinstance(message, wire.Image) else None))
        return taken

    def shown(self, size: int) -> None:
        """Nothing is bounded here."""

    @property
    def silent(self) -> bool:
        return any(begins <= self.now() < ends for begins, ends in self.silences)

    def flush(self, timeout_s: float) -> bool:
        return True

    def events(self, *kinds: Kind) -> list[wire.Event]:
        return [m for m in self.sent if isinstance(m, wire.Event) and (not kinds or m.kind in kinds)]


class FakeDisplay:
    """Frames come every `frame_ns`, except those that `stalls` (frame number -> frames lost) says are late."""

    name = "fake"

    def __init__(self, frame_ns: int, keys: list[tuple[float, str]], stalls: dict[int, int] | None = None, upload_frames: int = 0) -> None:
        self.frame_ns, self.dropped, self.flip_error_ns = frame_ns, 0, 0
        self.warnings: tuple[str, ...] = ()
        self.texts: list[str] = []
        self._upload_frames, self.prepare_ns = upload_frames, upload_frames * frame_ns
        self._frame = 0
        self._stalls = stalls or {}
        self._keys = deque(sorted((round(t * SECOND), key) for t, key in keys))
        self.flips: list[tuple[int, Scene]] = []
        self.prepared: list[Picture] = []

    def now_ns(self) -> int:
        return self._frame * self.frame_ns

    def advance(self, now_ns: int) -> None:
        raise AssertionError("not in lock-step")

    def prepare(self, picture: Picture) -> None:
        self.prepared.append(picture)
        self._frame += self._upload_frames

    def due(self, until_ns: int) -> bool:
        return self.now_ns() + self.frame_ns >= until_ns - self.frame_ns // 2

    def wait(self, until_ns: int) -> list[Press]:
        assert self.now_ns() < 3600 * SECOND, "the script waits for ever"
        self._flip()
        presses = []
        while self._keys and self._keys[0][0] <= self.now_ns():
            presses.append(Press(self._keys[0][1], self._keys.popleft()[0]))
        return presses

    def show(self, scene: Scene, at_ns: int) -> int:
        while not self.due(at_ns):
            self._flip()
        self._flip()
        self.flips.append((self.now_ns(), scene))
        return self.now_ns()

    def close(self) -> None:
        pass

    def told(self) -> list[str]:
        texts, self.texts = self.texts, []
        return texts

    def _flip(self) -> None:
        lost = self._stalls.pop(self._frame, 0)
        self._frame += 1 + lost
        self.dropped += lost
        self.flip_error_ns = lost * self.frame_ns


def image(candidate: int) -> wire.Image:
    return wire.Image(0, candidate, 1, 1, verdict=wire.PASSED)


def run(
    settings: PresentationSettings,
    arrivals: list[tuple[float, wire.Numbered]],
    keys: list[tuple[float, str]] | None = None,
    frame_ns: int = 16_666_667,
    stalls: dict[int, int] | None = None,
    started: bool = False,
    upload_frames: int = 0,
    silences: tuple[tuple[float, float], ...] = (),
) -> tuple[str, FakeLink, FakeDisplay]:
    display = FakeDisplay(frame_ns, [(1.0, settings.trigger_key)] if keys is None else keys, stalls, upload_frames)
    link = FakeLink(display.now_ns, deque((round(t * SECOND), m) for t, m in arrivals))
    link.silences = tuple((round(a * SECOND), round(b * SECOND)) for a, b in silences)
    return Session(settings, link, display, started).run(), link, display


def many(n: int, end_s: float) -> list[tuple[float, wire.Numbered]]:
    return [(0.0, image(i)) for i in range(n)] + [(end_s, wire.End("done"))]


@pytest.mark.parametrize("refresh_hz", [60.0, 59.94, 75.0, 120.0, 144.0])
def test_cadence_does_not_slip(refresh_hz: float) -> None:
    frame = round(SECOND / refresh_hz)
    _, link, _ = run(PresentationSettings(), many(60, 1e6), keys=[(1.0, "5"), (235.0, "escape")], frame_ns=frame)
    onsets = [e.t_ns for e in link.events(Kind.ONSET)]
    offsets = [e.t_ns for e in link.events(Kind.OFFSET)]
    assert len(onsets) > 55
    for k, onset in enumerate(onsets):  # never further than one frame from the schedule that the first onset began
        assert abs(onset - onsets[0] - k * 4 * SECOND) <= frame
    for onset, offset in zip(onsets[:-1], offsets, strict=False):
        assert abs(offset - onset - 3 * SECOND) <= frame // 2 + 1  # the nearest whole number of frames


def test_pictures_come_in_order_and_are_made_ready_before_their_onset() -> None:
    _, link, display = run(PresentationSettings(), many(5, 100.0), keys=[(1.0, "5")])
    assert [e.candidate for e in link.events(Kind.ONSET)] == [0, 1, 2, 3, 4]
    assert [p.candidate for p in display.prepared] == [0, 1, 2, 3, 4]
    assert [s.picture.candidate for _, s in display.flips if s.picture] == [0, 1, 2, 3, 4]
    assert [s.kind for _, s in display.flips][:5] == ["text", "fixation", "image", "fixation", "image"]


def test_baseline_and_late_images_hold_fixation() -> None:
    arrivals = [(0.0, image(0)), (9.0, image(1)), (9.5, image(2)), (30.0, wire.End("done"))]
    reason, link, _ = run(PresentationSettings(baseline_s=2), arrivals)
    assert reason == "done"
    onsets = [e.t_ns / SECOND for e in link.events(Kind.ONSET)]
    assert onsets[0] == pytest.approx(3.0, abs=0.017)  # trigger at 1 s + baseline
    assert onsets[1] == pytest.approx(9.0, abs=0.034)  # due at 7 s, held until it came
    assert onsets[2] - onsets[1] == pytest.approx(4.0, abs=0.017)  # the schedule starts anew from the held onset
    held = [e.t_ns / SECOND for e in link.events(Kind.FIXATION)]
    assert held == pytest.approx([7.0, onsets[2] + 4.0], abs=0.034)
    assert link.events()[-1].kind == Kind.END
    assert link.events()[-1].text == "done"


def test_no_fixation_event_while_images_are_in_time() -> None:
    _, link, _ = run(PresentationSettings(), many(3, 5.0))
    assert link.events(Kind.FIXATION) == []


def test_a_pause_lets_the_trial_finish_and_holds_fixation_until_it_goes_on() -> None:
    arrivals = [*many(3, 40.0), (2.0, wire.Pause(True)), (20.0, wire.Pause(False))]
    _, link, display = run(PresentationSettings(), sorted(arrivals, key=lambda a: a[0]))
    kinds = [Kind.TRIGGER, Kind.ONSET, Kind.OFFSET, Kind.PAUSE, Kind.GO_ON, *[Kind.ONSET, Kind.OFFSET] * 2, Kind.FIXATION, Kind.END]
    assert [e.kind for e in link.events()] == kinds
    pause, go_on, onset = (link.events(kind)[k].t_ns / SECOND for kind, k in ((Kind.PAUSE, 0), (Kind.GO_ON, 0), (Kind.ONSET, 1)))
    assert pause == pytest.approx(5.0, abs=0.04)  # trigger 1 s, image 3 s, washout 1 s
    assert (go_on, onset) == pytest.approx((20.0, 20.0), abs=0.06)
    assert [s.kind for t, s in display.flips if 5.1 < t / SECOND < 19.9] == []  # fixation stays


def test_a_pause_before_the_trigger_holds_after_it_and_the_end_ends_it() -> None:
    reason, link, _ = run(PresentationSettings(baseline_s=2), [(0.0, wire.Pause(True)), *many(2, 9.0)])
    assert reason == "done"
    assert [e.kind for e in link.events()] == [Kind.TRIGGER, Kind.PAUSE, Kind.GO_ON, Kind.END]


def test_a_pause_while_an_image_is_late() -> None:
    arrivals = [(4.0, wire.Pause(True)), (6.0, image(0)), (8.0, wire.Pause(False)), (20.0, wire.End("done"))]
    _, link, _ = run(PresentationSettings(), arrivals)
    expected = [Kind.TRIGGER, Kind.FIXATION, Kind.PAUSE, Kind.GO_ON, Kind.ONSET, Kind.OFFSET, Kind.FIXATION, Kind.END]
    assert [e.kind for e in link.events()] == expected
    assert link.events(Kind.ONSET)[0].t_ns / SECOND == pytest.approx(8.0, abs=0.06)


def test_end_lets_the_trial_finish() -> None:
    _, link, display = run(PresentationSettings(), many(3, 2.0))  # asked during the first image
    assert [e.kind for e in link.events()] == [Kind.TRIGGER, Kind.ONSET, Kind.OFFSET, Kind.END]
    trigger, onset, offset, end = (e.t_ns / SECOND for e in link.events())
    assert (onset - trigger, offset - onset, end - onset) == pytest.approx((0.0, 3.0, 4.0), abs=0.04)
    assert display.now_ns() / SECOND == pytest.approx(end + 2.0, abs=0.04)  # the end text stays


@pytest.mark.parametrize("end_s", [0.5, 1.5])
def test_end_before_the_first_image(end_s: float) -> None:
    reason, link, _ = run(PresentationSettings(baseline_s=3), [(end_s, wire.End("stop"))])
    assert reason == "stop"
    assert link.events(Kind.ONSET) == []
    assert link.events()[-1].t_ns / SECOND == pytest.approx(end_s, abs=0.04)


def test_ratings() -> None:
    settings = PresentationSettings(rating_window_s=5)
    keys = [(1.0, "5"), (2.0, "3"), (5.0, "5"), (5.1, "9"), (5.25, "6"), (5.3, "1"), (12.0, "1")]
    _, link, display = run(settings, many(3, 17.0), keys)
    rated = link.events(Kind.RATING)
    opened = [e.t_ns for e in link.events(Kind.OFFSET)]
    onsets = [e.t_ns for e in link.events(Kind.ONSET)]
    assert [e.value for e in rated[:2]] == [4.0, 0.0]  # a press during the image and keys that mean nothing are no answer
    assert rated[0].response_time_s == pytest.approx((rated[0].t_ns - opened[0]) / SECOND)
    assert rated[0].t_ns == round(5.25 * SECOND)
    assert (onsets[1] - rated[0].t_ns) / SECOND == pytest.approx(1.0, abs=0.04)  # the window ends with the answer, then washout
    assert math.isnan(rated[2].value)
    assert math.isnan(rated[2].response_time_s)
    assert (rated[2].t_ns - opened[2]) / SECOND == pytest.approx(5.0, abs=0.017)
    assert [s.kind for _, s in display.flips][2:7] == ["image", "rating", "answer", "fixation", "image"]


def test_every_image_has_one_rating_even_on_escape() -> None:
    settings = PresentationSettings(rating_window_s=5)
    reason, link, _ = run(settings, many(3, 99.0), [(1.0, "5"), (5.0, "escape")])
    assert reason == "escape"
    assert [e.kind for e in link.events()] == [Kind.TRIGGER, Kind.ONSET, Kind.OFFSET, Kind.RATING, Kind.END]
    assert math.isnan(link.events(Kind.RATING)[0].value)


@pytest.mark.parametrize("at_s", [0.5, 1.5, 4.5, 6.5, 20.0, 99.5])
def test_escape_at_any_point(at_s: float) -> None:
    settings = PresentationSettings(baseline_s=2)
    reason, link, display = run(settings, [(0.0, image(0)), (5.0, image(1)), (99.0, wire.End("done"))], [(1.0, "5"), (at_s, "escape")])
    assert reason == ("escape" if at_s < 99 else "done")
    assert len(link.events(Kind.ONSET)) == len(link.events(Kind.OFFSET))
    assert [e.kind for e in link.events()].count(Kind.END) == 1
    assert link.events()[-1].text == reason
    assert display.now_ns() / SECOND == pytest.approx(at_s, abs=0.05)


def test_a_dropped_frame_does_not_shift_the_schedule_but_a_stall_does() -> None:
    frame = 16_666_667
    first = run(PresentationSettings(), many(4, 100.0), [(1.0, "5"), (16.5, "escape")], frame)[1].events(Kind.ONSET)[1].t_ns
    one = run(PresentationSettings(), many(4, 100.0), [(1.0, "5"), (16.5, "escape")], frame, {first // frame - 1: 1})[1]
    onsets = [e.t_ns for e in one.events(Kind.ONSET)]
    assert onsets[1] == first + frame
    assert abs(onsets[2] - onsets[0] - 8 * SECOND) <= 1.5 * frame
    assert [e.value for e in one.events(Kind.OFFSET)[:3]] == [0, 1, 0]  # frames dropped since the offset before
    stall = run(PresentationSettings(), many(4, 100.0), [(1.0, "5"), (16.5, "escape")], frame, {first // frame - 1: 30})[1]
    onsets = [e.t_ns for e in stall.events(Kind.ONSET)]
    assert onsets[1] == first + 30 * frame
    assert abs(onsets[2] - onsets[1] - 4 * SECOND) <= frame
    offsets = [e.t_ns for e in stall.events(Kind.OFFSET)]
    assert abs(offsets[1] - onsets[1] - 3 * SECOND) <= frame


def test_speed_divides_durations_and_response_times_stay_session_seconds() -> None:
    settings = PresentationSettings(rating_window_s=5, speed=10)
    _, link, _ = run(settings, many(2, 99.0), [(1.0, "5"), (1.5, "2"), (2.5, "escape")], frame_ns=1_666_667)
    onset, offset = link.events(Kind.ONSET)[0].t_ns, link.events(Kind.OFFSET)[0].t_ns
    rating = link.events(Kind.RATING)[0]
    assert (offset - onset) / SECOND == pytest.approx(0.3, abs=0.002)
    assert rating.value == 1.0
    assert rating.response_time_s == pytest.approx((rating.t_ns - offset) / SECOND * 10)


def test_a_presenter_started_anew_does_not_wait_for_the_trigger() -> None:
    _, link, display = run(PresentationSettings(), many(1, 6.0), keys=[], started=True)
    assert link.events(Kind.TRIGGER) == []
    assert link.events(Kind.ONSET)[0].t_ns / SECOND < 0.1
    assert display.flips[0][1].kind == "fixation"


# --- what the scanner and the operator do ----------------------------------------------------------------------------------------------


def test_dummy_triggers_are_skipped_and_later_pulses_reported() -> None:
    keys = [(t, "5") for t in (0.5, 1.0, 3.0, 5.0, 7.0)] + [(8.0, "escape")]
    _, link, _ = run(PresentationSettings(dummy_triggers=2), many(1, 99.0), keys)
    assert [e.t_ns / SECOND for e in link.events(Kind.TRIGGER)] == [3.0]
    assert [e.t_ns / SECOND for e in link.events(Kind.PULSE)] == [5.0, 7.0]


def test_what_was_typed_before_the_waiting_text_is_no_trigger() -> None:
    _, link, _ = run(PresentationSettings(), many(1, 9.0), [(0.0, "5"), (2.0, "5")])
    assert [e.t_ns / SECOND for e in link.events(Kind.TRIGGER)] == [2.0]


def test_pulses_of_a_port_count_and_the_key_does_not() -> None:
    display = FakeDisplay(16_666_667, [(1.0, "5"), (2.5, "5")])
    link = FakeLink(display.now_ns, deque([(0, image(0)), (9 * SECOND, wire.End("done"))]))

    times = deque([2 * SECOND, 4 * SECOND])

    class Pulses:
        def take(self) -> list[int]:
            return [times.popleft()] if times and times[0] <= display.now_ns() else []

        def presses(self) -> list[Press]:
            return []

        def told(self) -> list[str]:
            return []

    Session(PresentationSettings(), link, display, pulses=Pulses()).run()
    assert [(e.kind, e.t_ns / SECOND) for e in link.events(Kind.TRIGGER, Kind.PULSE)] == [(Kind.TRIGGER, 2.0), (Kind.PULSE, 4.0)]


def test_washout_is_the_images_own() -> None:
    images: list[tuple[float, wire.Numbered]] = [
        (0.0, wire.Image(0, k, 1, 1, w, verdict=wire.GIVEN)) for k, w in enumerate((0.5, 2.0, math.nan, 1.0))
    ]
    _, link, _ = run(PresentationSettings(), images, [(1.0, "5"), (16.0, "escape")])
    onsets = [e.t_ns / SECOND for e in link.events(Kind.ONSET)]
    assert [b - a for a, b in pairwise(onsets)] == pytest.approx([3.5, 5.0, 4.0], abs=0.017)


@pytest.mark.parametrize("stop_s", [0.5, 2.5, 5.0, 8.6])  # before the trigger, during the image, the rating, the washout
def test_the_operators_stop_breaks_the_trial_off(stop_s: float) -> None:
    settings = PresentationSettings(rating_window_s=5)
    stop = wire.End("stopped", at_once=True)
    reason, link, display = run(settings, [(0.0, image(0)), (stop_s, stop)], [(1.0, "5"), (7.9, "2")])
    assert reason == "stopped"
    flips = [flip / SECOND for flip, scene in display.flips if scene.kind in ("fixation", "text")]
    assert flips[-2] == pytest.approx(stop_s, abs=0.04)  # off the screen at once
    assert display.flips[-1][1].text == settings.end_text
    for kind in (Kind.OFFSET, Kind.RATING):
        assert len(link.events(kind)) == len(link.events(Kind.ONSET))
    assert [e.text for e in link.events(Kind.END)] == ["stopped"]


def test_a_reversed_scale_gives_the_leftmost_key_the_highest_rating() -> None:
    settings = PresentationSettings(rating_window_s=5, ratings_reversed=True)
    _, link, _ = run(settings, many(2, 9.5), [(1.0, "5"), (5.0, "1"), (9.2, "6")])
    assert [e.value for e in link.events(Kind.RATING)] == [4.0, 0.0]


@pytest.mark.parametrize("late_s", [x / 100 for x in range(0, 400, 13)])
def test_an_upload_never_delays_a_flip(late_s: float) -> None:
    """The second image comes at any moment of the first one's trial; making it ready takes 3 frames."""
    frame = 16_666_667
    arrivals = [(0.0, image(0)), (1.1 + late_s, image(1)), (11.0, wire.End("done"))]
    _, link, display = run(PresentationSettings(), arrivals, frame_ns=frame, upload_frames=3)
    onsets, offsets = ([e.t_ns for e in link.events(kind)] for kind in (Kind.ONSET, Kind.OFFSET))
    assert abs(offsets[0] - onsets[0] - 3 * SECOND) <= frame
    late = 1.1 + late_s > onsets[0] / SECOND + 4 - 6 * frame / SECOND  # no time was left before its onset was due
    assert abs(onsets[1] - onsets[0] - 4 * SECOND) <= (6 if late else 1) * frame
    assert len(display.prepared) == 2


def test_markers_tell_what_happened_and_when() -> None:
    marks: list[tuple[str, int]] = []
    display = FakeDisplay(16_666_667, [(1.0, "5")])
    link = FakeLink(display.now_ns, deque([(0, image(0)), (2 * SECOND, wire.End("done"))]))
    Session(PresentationSettings(), link, display, mark=lambda text, t_ns: marks.append((text, t_ns))).run()
    assert [text for text, _ in marks] == ["trigger", "onset 0 0", "offset 0 0", "end done"]
    assert [t for _, t in marks] == [e.t_ns for e in link.events()]


def test_the_first_image_waits_until_the_decoder_lies_on_todays_head() -> None:
    arrivals: list[tuple[float, wire.Numbered]] = [(0.0, wire.Pause(True)), (0.0, image(0)), (8.0, wire.Pause(False))]
    arrivals.append((11.5, wire.End("done")))
    _, link, _ = run(PresentationSettings(), arrivals)
    (trigger,), (onset,) = link.events(Kind.TRIGGER), link.events(Kind.ONSET)
    assert trigger.t_ns == 1 * SECOND
    assert onset.t_ns == pytest.approx(8 * SECOND, abs=SECOND / 10)
    assert [event.kind for event in link.events(Kind.PAUSE, Kind.GO_ON, Kind.FIXATION)] == [Kind.PAUSE, Kind.GO_ON]


def test_a_session_that_begins_again_leaves_the_participant_with_the_waiting_text() -> None:
    settings = PresentationSettings()
    reason, link, display = run(settings, [(0.0, wire.Pause(True)), (0.0, image(0)), (5.0, wire.End(wire.RESTART, at_once=True))])
    assert reason == wire.RESTART
    assert [event.text for event in link.events(Kind.END)] == [wire.RESTART]
    assert link.events(Kind.ONSET) == []
    assert display.flips[-1][1] == Scene("text", settings.wait_text)
    assert display.now_ns() < 6 * SECOND  # nothing is waited for: the next run may come at any moment


def test_a_run_of_a_visit_leaves_the_participant_with_the_text_at_its_end_and_waits_for_nothing() -> None:
    settings = PresentationSettings(end_text="Soon more.")
    reason, link, display = run(settings, [(0.0, image(0)), (8.0, wire.End(wire.NEXT))])
    assert reason == wire.NEXT
    assert [event.text for event in link.events(Kind.END)] == [wire.NEXT]
    assert display.flips[-1][1] == Scene("text", "Soon more.")
    assert display.now_ns() < 9 * SECOND


# --- times that are late, or not known --------------------------------------------------------------------------------------------------


def test_a_late_offset_moves_the_rest_of_the_trial() -> None:
    frame = 16_666_667
    calm = run(PresentationSettings(), many(4, 100.0), [(1.0, "5"), (16.5, "escape")], frame)[1]
    offset = calm.events(Kind.OFFSET)[0].t_ns
    stalled = run(PresentationSettings(), many(4, 100.0), [(1.0, "5"), (16.5, "escape")], frame, {offset // frame - 1: 58})[1]
    offsets, onsets = ([e.t_ns for e in stalled.events(kind)] for kind in (Kind.OFFSET, Kind.ONSET))
    assert offsets[0] == offset + 58 * frame
    assert abs(onsets[1] - offsets[0] - SECOND) <= frame  # the washout is as long as ever
    assert abs(onsets[2] - onsets[1] - 4 * SECOND) <= frame


def test_times_of_a_stalled_screen_carry_their_bound_and_a_flag() -> None:
    frame = 16_666_667
    calm = run(PresentationSettings(), many(3, 100.0), [(1.0, "5"), (12.0, "escape")], frame)[1]
    onset, offset = calm.events(Kind.ONSET)[1].t_ns, calm.events(Kind.OFFSET)[1].t_ns
    stalls = {onset // frame - 1: 1, offset // frame: 30}
    events = run(PresentationSettings(), many(3, 100.0), [(1.0, "5"), (12.0, "escape")], frame, stalls)[1]
    late_onset, late_offset = events.events(Kind.ONSET)[1], events.events(Kind.OFFSET)[1]
    assert (late_onset.t_ns, late_onset.error_ns, late_onset.guess) == (onset + frame, frame, False)  # a dropped frame is no guess
    assert (late_offset.error_ns, late_offset.guess) == (30 * frame, True)
    assert late_offset.t_ns - late_offset.error_ns <= late_onset.t_ns + 3 * SECOND + frame  # when it should have gone
    assert all(e.error_ns == 0 and not e.guess for e in calm.events())


def test_a_key_that_waited_in_a_stalled_computer_is_a_guess() -> None:
    display = FakeDisplay(16_666_667, [])
    link = FakeLink(display.now_ns, deque([(0, image(0)), (9 * SECOND, wire.End("done"))]))
    presses = deque([Press("5", SECOND, 400_000_000)])

    def wait(until_ns: int) -> list[Press]:
        display._flip()
        return [presses.popleft()] if presses and display.now_ns() > SECOND else []

    display.wait = wait  # type: ignore[method-assign]
    Session(PresentationSettings(), link, display).run()
    [trigger] = link.events(Kind.TRIGGER)
    assert (trigger.error_ns, trigger.guess) == (400_000_000, True)
    assert ["known to 0.40 s only" in e.text for e in link.events(Kind.NOTE)] == [True]


# --- keys -------------------------------------------------------------------------------------------------------------------------------


def test_keys_typed_into_another_window_count_for_nothing_and_are_told() -> None:
    display = FakeDisplay(16_666_667, [])
    link = FakeLink(display.now_ns, deque([(0, image(0)), (9 * SECOND, wire.End("done"))]))
    elsewhere = [Press("5", SECOND, elsewhere=True), Press("escape", 2 * SECOND, elsewhere=True), Press("x", 2 * SECOND, elsewhere=True)]
    presses = deque([*elsewhere, Press("5", 3 * SECOND)])

    def wait(until_ns: int) -> list[Press]:
        display._flip()
        return [presses.popleft()] if presses and presses[0].t_ns <= display.now_ns() else []

    display.wait = wait  # type: ignore[method-assign]
    reason = Session(PresentationSettings(), link, display).run()
    assert reason == "done"
    assert [e.t_ns for e in link.events(Kind.TRIGGER)] == [3 * SECOND]
    notes = [e.text for e in link.events(Kind.NOTE)]
    assert [key in note for key, note in zip(("'5'", "'escape'"), notes, strict=True)] == [True, True]  # x means nothing


def test_what_the_display_tells_reaches_both_computers_once(caplog: pytest.LogCaptureFixture) -> None:
    display = FakeDisplay(16_666_667, [(1.0, "5")])
    link = FakeLink(display.now_ns, deque([(9 * SECOND, wire.End("done"))]))
    display.texts = ["the presenter's window is not in front"] * 3
    Session(PresentationSettings(), link, display).run()
    assert [e.text for e in link.events(Kind.NOTE)] == ["stimulus PC: the presenter's window is not in front"]
    assert caplog.text.count("not in front") == 1


def test_every_so_manieth_pulse_is_a_volumes() -> None:
    keys = [(1 + k / 10, "5") for k in range(60)] + [(8.0, "escape")]
    _, link, _ = run(PresentationSettings(pulses_per_volume=20, dummy_triggers=1), many(1, 99.0), keys)
    assert [e.t_ns / SECOND for e in link.events(Kind.TRIGGER)] == pytest.approx([3.0])
    assert [e.t_ns / SECOND for e in link.events(Kind.PULSE)] == pytest.approx([5.0])
    _, link, _ = run(PresentationSettings(pulses_per_volume=20), many(1, 99.0), keys, started=True)
    assert link.events(Kind.PULSE) == []  # nobody knows which of them are volumes'


def test_answers_over_the_port() -> None:
    display = FakeDisplay(16_666_667, [(5.5, "2")])
    link = FakeLink(display.now_ns, deque([(0, image(0)), (9 * SECOND, wire.End("done"))]))
    pulses, answers = deque([SECOND]), deque([Press("b", round(5.2 * SECOND))])

    class Box:
        def take(self) -> list[int]:
            return [pulses.popleft()] if pulses and pulses[0] <= display.now_ns() else []

        def presses(self) -> list[Press]:
            return [answers.popleft()] if answers and answers[0].t_ns <= display.now_ns() else []

        def told(self) -> list[str]:
            return []

    settings = PresentationSettings(trigger="serial:COM3@9600=5", rating_keys=("a", "b"), rating_window_s=3)
    Session(settings, link, display, pulses=Box()).run()
    [rating] = link.events(Kind.RATING)
    assert (rating.value, rating.t_ns) == (1.0, round(5.2 * SECOND))


def test_the_chosen_answer_is_marked_within_the_washout() -> None:
    settings = PresentationSettings(rating_window_s=5, ratings_reversed=True)
    _, link, display = run(settings, many(2, 9.0), [(1.0, "5"), (5.0, "2")])
    marked, fixation, onset = [flip for flip in display.flips if flip[0] >= 5 * SECOND][:3]
    assert (marked[1].kind, marked[1].chosen, marked[1].text) == ("answer", 1, settings.rating_text)
    assert (fixation[0] - marked[0]) / SECOND == pytest.approx(0.3, abs=0.017)
    assert (onset[0] - marked[0]) / SECOND == pytest.approx(1.0, abs=0.034)  # as without the mark
    assert link.events(Kind.RATING)[0].value == 3.0


def test_the_end_text_is_left_to_whoever_goes_on() -> None:
    display = FakeDisplay(16_666_667, [(1.0, "5")])
    link = FakeLink(display.now_ns, deque([(2 * SECOND, wire.End("done"))]))
    Session(PresentationSettings(end_s=60), link, display, lingers=False).run()
    assert display.now_ns() < 3 * SECOND
    assert display.flips[-1][1].text == PresentationSettings().end_text


# --- what must not be seen ---------------------------------------------------------------------------------------------------------


def seen(display: FakeDisplay) -> list[int]:
    return [s.picture.candidate for _, s in display.flips if s.picture]


def test_an_image_without_a_verdict_is_not_shown_and_both_computers_know() -> None:
    judged = "the pixels received are not those that were judged"
    images = [image(0), wire.Image(0, 1, 1, 1), wire.Image(0, 2, 1, 1, verdict=judged), image(3)]
    _, link, display = run(PresentationSettings(), [*((0.0, each) for each in images), (20.0, wire.End("done"))])
    assert seen(display) == [0, 3]
    refused = link.events(Kind.REFUSED)
    assert [(e.candidate, e.text) for e in refused] == [
        (1, "it came without a verdict"), (2, judged),
    ]  # fmt: skip


def test_the_image_on_the_screen_is_taken_away_at_the_next_frame_and_the_next_one_comes_in_time() -> None:
    arrivals = sorted([*many(3, 40.0), (6.0, wire.Away())], key=lambda a: a[0])
    _, link, display = run(PresentationSettings(), arrivals)
    (taken,) = link.events(Kind.TAKEN)
    assert (taken.candidate, taken.text) == (1, "operator")
    assert 6.0 <= taken.t_ns / SECOND <= 6.0 + 2.5 / 60
    offset = next(e for e in link.events(Kind.OFFSET) if e.candidate == 1)
    assert offset.t_ns == taken.t_ns
    onsets = [e.t_ns / SECOND for e in link.events(Kind.ONSET)]
    assert onsets == pytest.approx([1.0, 5.0, 9.0], abs=0.04)  # the cadence is as it was
    assert next(s.kind for t, s in display.flips if t == taken.t_ns) == "fixation"


def test_an_image_that_waits_is_taken_out_and_never_seen() -> None:
    arrivals = sorted([*many(3, 40.0), (2.0, wire.Away(0, 1))], key=lambda a: a[0])
    _, link, display = run(PresentationSettings(), arrivals)
    assert seen(display) == [0, 2]
    assert [(e.candidate, e.text) for e in link.events(Kind.TAKEN)] == [(1, "operator")]


def test_an_image_that_is_taken_out_before_it_comes_is_never_seen() -> None:
    _, link, display = run(PresentationSettings(), [(0.0, wire.Away(0, 1)), *many(3, 40.0)])
    assert seen(display) == [0, 2]
    assert [(e.candidate, e.text) for e in link.events(Kind.TAKEN)] == [(1, "operator")]


def test_an_image_that_has_gone_is_not_taken_away_again() -> None:
    arrivals = sorted([*many(2, 40.0), (7.0, wire.Away(0, 0)), (4.5, wire.Away())], key=lambda a: a[0])
    _, link, display = run(PresentationSettings(), arrivals)
    assert seen(display) == [0, 1]
    assert link.events(Kind.TAKEN) == []


@pytest.mark.parametrize(("key", "who"), [("b", "participant"), ("backspace", "stimulus PC")])
def test_a_key_takes_the_image_away_without_the_support_computer(key: str, who: str) -> None:
    settings = PresentationSettings(participant_key="b", away_key="backspace")
    _, link, _ = run(settings, many(2, 40.0), keys=[(1.0, "5"), (2.0, key), (4.5, key)], silences=((1.5, 3.0),))
    (taken,) = link.events(Kind.TAKEN)  # in the fixation the key takes nothing away
    assert (taken.candidate, taken.text) == (0, who)
    assert taken.t_ns / SECOND == pytest.approx(2.0, abs=0.05)


def test_the_participants_wish_to_stop_is_told_with_its_time_and_ends_nothing() -> None:
    _, link, display = run(PresentationSettings(stop_key="y"), many(2, 40.0), keys=[(1.0, "5"), (2.5, "y")])
    (asked,) = link.events(Kind.STOP_ASKED)
    assert asked.t_ns / SECOND == pytest.approx(2.5, abs=0.03)
    assert seen(display) == [0, 1]


def test_nothing_is_shown_while_the_link_is_silent() -> None:
    _, link, display = run(PresentationSettings(), many(3, 60.0), silences=((4.0, 20.0),))
    onsets = [e.t_ns / SECOND for e in link.events(Kind.ONSET)]
    assert onsets == pytest.approx([1.0, 20.0, 24.0], abs=0.06)
    assert link.events(Kind.FIXATION)[0].text == "held: the support computer does not answer"
    assert seen(display) == [0, 1, 2]


def test_a_rating_is_not_asked_for_of_an_image_that_was_taken_away() -> None:
    settings = PresentationSettings(rating_window_s=5)
    _, link, _ = run(settings, sorted([*many(1, 20.0), (2.0, wire.Away())], key=lambda a: a[0]))
    assert link.events(Kind.RATING) == []
    assert len(link.events(Kind.TAKEN)) == 1


def test_an_image_stays_as_long_as_it_says() -> None:
    own = wire.Image(0, 0, 1, 1, image_s=1.5, verdict=wire.GIVEN)
    _, link, _ = run(PresentationSettings(), [(0.0, own), (0.0, image(1)), (20.0, wire.End("done"))])
    onset, offset, following = (link.events(kind)[k].t_ns / SECOND for kind, k in ((Kind.ONSET, 0), (Kind.OFFSET, 0), (Kind.ONSET, 1)))
    assert (offset - onset, following - onset) == pytest.approx((1.5, 2.5), abs=0.03)


def test_presses_are_reported_whenever_they_come_where_the_session_wants_them() -> None:
    keys = [(0.5, "1"), (1.0, "5"), (2.0, "1"), (2.2, "x"), (4.5, "2")]
    _, link, _ = run(PresentationSettings(presses=True), many(2, 9.5), keys)
    found = [(e.text, e.generation, e.candidate, round(e.t_ns / SECOND, 1)) for e in link.events(Kind.PRESS)]
    assert found == [("1", 0, 0, 2.0), ("2", -1, -1, 4.5)]  # none before the trigger, no other keys; between images, none is meant
    _, link, _ = run(PresentationSettings(), many(2, 9.5), keys)
    assert link.events(Kind.PRESS) == []


def test_given_pictures_stay_for_their_own_times() -> None:
    times = [(0.5, 0.25), (0.5, 2.0), (1.0, 0.25)]
    arrivals = [(0.0, wire.Image(0, k, 1, 1, washout_s=w, image_s=i, verdict=wire.GIVEN)) for k, (i, w) in enumerate(times)]
    _, link, _ = run(PresentationSettings(), [*arrivals, (5.3, wire.End("done"))])
    onsets, offsets = ([e.t_ns / SECOND for e in link.events(kind)] for kind in (Kind.ONSET, Kind.OFFSET))
    assert [b - a for a, b in zip(onsets, offsets, strict=True)] == pytest.approx([0.5, 0.5, 1.0], abs=0.009)
    assert [b - a for a, b in pairwise(onsets)] == pytest.approx([0.75, 2.5], abs=0.017)
