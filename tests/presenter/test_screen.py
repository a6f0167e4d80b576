"""The PsychoPy display in a real window: what is drawn is read back, keys come from the X server.

Needs an interpreter with PsychoPy (`make psychopy`, or this one), Xvfb and, for the keys, xdotool.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.bridge import Bridge, PresenterEvent
from rtevo.records import NOTES, EventKind
from rtevo.simulate import FaultyNetwork
from rtevo.wire import PresentationSettings, digest

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0  # a test that takes longer hangs
SECOND = 1_000_000_000

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def interpreter() -> str:
    made = REPOSITORY / ".venv/psychopy/bin/python"
    if made.exists():
        return str(made)
    if importlib.util.find_spec("psychopy") is None:
        pytest.skip("no PsychoPy here: `make psychopy` installs it for these tests")
    return sys.executable


class Desktop:
    """An X server without a screen, its pixels in a file."""

    def __init__(self, folder: Path, screens: tuple[str, ...] = ("800x600x24",)) -> None:
        self._file = folder / "Xvfb_screen0"
        reader, writer = os.pipe()
        sizes = [word for k, size in enumerate(screens) for word in ("-screen", str(k), size)]
        self._server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writer), *sizes, "-fbdir", str(folder), "-nolisten", "tcp", "+xinerama", "-noreset"],
            pass_fds=[writer],
            stderr=subprocess.DEVNULL,
        )
        os.close(writer)
        with os.fdopen(reader) as said:
            self.name = ":" + said.readline().strip()
        assert self.name != ":", "Xvfb did not start"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "DISPLAY": self.name, "PYTHONPATH": str(REPOSITORY)}

    def key(self, name: str, kind: str = "key") -> None:
        self.xdotool(kind, name)

    def xdotool(self, *words: str) -> None:
        """Do it; again where a window that it looked at went away meanwhile, or the server was resetting itself."""
        deadline = time.monotonic() + LIMIT_S
        while subprocess.run(["xdotool", *words], env=self.environment(), stdout=subprocess.DEVNULL).returncode:
            assert time.monotonic() < deadline, words

    def pixels(self) -> Pixels:
        """What is on the screen, uint8 (height, width, 3): an X window dump (XWDFile.h, version 7) of 32-bit BGRX pixels."""
        raw = self._file.read_bytes()
        header = np.frombuffer(raw, ">u4", 25)
        size, width, height, line, colours = (int(header[k]) for k in (0, 4, 5, 12, 19))
        data = np.frombuffer(raw, np.uint8, height * line, offset=size + 12 * colours).reshape(height, line)
        return np.ascontiguousarray(data[:, : 4 * width].reshape(height, width, 4)[:, :, 2::-1])

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(LIMIT_S)


@pytest.fixture
def desktops(tmp_path: Path) -> Iterator[Callable[..., Desktop]]:
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (Debian: xvfb libgl1-mesa-dri libglu1-mesa libjack-jackd2-0 xdotool)")
    made: list[Desktop] = []

    def make(*screens: str) -> Desktop:
        folder = tmp_path / f"screen-{len(made)}"
        folder.mkdir()
        made.append(Desktop(folder, screens or ("800x600x24",)))
        return made[-1]

    yield make
    for desktop in made:
        desktop.close()


@pytest.fixture
def desktop(desktops: Callable[..., Desktop]) -> Desktop:
    return desktops()


def random_pixels(seed: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_the_middle(screen: Pixels, height: int, width: int) -> Pixels:
    top, left = (screen.shape[0] - height) // 2, (screen.shape[1] - width) // 2
    return screen[top : top + height, left : left + width]


def probe(interpreter: str, desktop: Desktop, folder: Path, settings: PresentationSettings) -> dict[str, Pixels]:
    folder.mkdir()
    script = Path(__file__).with_name("screen_probe.py")
    done = subprocess.run(
        [interpreter, str(script), str(folder), json.dumps(asdict(settings))],
        env=desktop.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return {file.stem: np.load(file) for file in folder.glob("*.npy")}


@pytest.mark.slow
def test_pixels_orientation_and_mirroring_are_exact(interpreter: str, desktop: Desktop, tmp_path: Path) -> None:
    plain = probe(interpreter, desktop, tmp_path / "plain", PresentationSettings(image_height=0, rating_window_s=5))
    mirrored = probe(interpreter, desktop, tmp_path / "mirrored", PresentationSettings(image_height=0, rating_window_s=5, mirrored=True))
    first, second = random_pixels(1, 301, 403), random_pixels(2, 200, 100)
    for scenes, turn in ((plain, 1), (mirrored, -1)):
        for name, pixels in (("first", first), ("first-while-preparing", first), ("second", second)):
            shown = scenes[name]
            row = int(np.flatnonzero((shown != shown[0, 0]).any(axis=(1, 2)))[0])
            column = int(np.flatnonzero((shown != shown[0, 0]).any(axis=(0, 2)))[0])
            found = shown[row : row + pixels.shape[0], column : column + pixels.shape[1]]
            np.testing.assert_array_equal(found, pixels[:, ::turn])
            assert abs(2 * row + pixels.shape[0] - shown.shape[0]) <= 1  # in the middle
            assert abs(2 * column + pixels.shape[1] - shown.shape[1]) <= 1
            shown = shown.copy()
            shown[row : row + pixels.shape[0], column : column + pixels.shape[1]] = shown[0, 0]
            assert (shown == shown[0, 0]).all()  # nothing else is on the screen
    for name in ("text", "fixation", "rating", "answer"):
        assert (plain[name] != plain[name][0, 0]).any()
        np.testing.assert_array_equal(mirrored[name], plain[name][:, ::-1])
    assert not np.array_equal(plain["text"], mirrored["text"])
    np.testing.assert_array_equal(plain["fixation-while-preparing"], plain["fixation"])
    marked = np.argwhere((plain["answer"] != plain["rating"]).any(axis=2))
    assert 20 < np.ptp(marked[:, 1]) < 120  # around one label, the leftmost
    assert marked[:, 1].max() < plain["rating"].shape[1] // 2


@pytest.mark.slow
def test_shapes_sizes_and_labels_are_as_the_session_says(interpreter: str, desktop: Desktop, tmp_path: Path) -> None:
    """Degrees are of the flat screen's own geometry; a dot is round; a bullseye's cross lets the background through."""
    common = {
        "background": (0.0, 0.25, 1.0),
        "image_deg": 10.0,
        "screen_width_cm": 40.0,
        "viewing_distance_cm": 60.0,
        "rating_window_s": 5.0,
    }
    ratings = {"rating_keys": ("1", "2"), "rating_labels": ("no", "yes")}
    dot = probe(interpreter, desktop, tmp_path / "dot", PresentationSettings(fixation="dot", fixation_height=0.1, **common, **ratings))
    bull = probe(
        interpreter,
        desktop,
        tmp_path / "bull",
        PresentationSettings(fixation="bullseye", fixation_height=0.2, ratings_reversed=True, **common, **ratings),
    )
    height, width = dot["fixation"].shape[:2]
    paper = dot["fixation"][0, 0]
    np.testing.assert_allclose(paper, [0, 64, 255], atol=1)
    shown = (dot["first"] != paper).any(axis=2)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    expected = 2 * 60 * math.tan(math.radians(5)) * width / 40  # pixels
    assert abs(np.ptp(rows) + 1 - expected) <= 1.5
    assert abs(np.ptp(columns) + 1 - expected * 403 / 301) <= 1.5
    ink = (dot["fixation"] != paper).any(axis=2)
    assert abs(ink.sum() - math.pi * (0.05 * height) ** 2) < 0.05 * ink.sum()
    ink = (bull["fixation"] != paper).any(axis=2)
    side = 0.2 * height
    for x, y, there in ((0, 0, True), (0.3, 0, False), (0, -0.3, False), (0.3, 0.3, True), (0.45, 0.45, False)):  # dot, arms, disc, outside
        assert ink[round(height / 2 + y * side), round(width / 2 + x * side)] == there
    labels = [scenes["rating"][height // 2 - height // 30 : height // 2 + height // 30] != paper for scenes in (dot, bull)]
    words = [np.flatnonzero(label.any(axis=(0, 2))) for label in labels]  # "no" is shorter than "yes": which is on the left?
    left = [int((word[: np.argmax(np.diff(word)) + 1]).size) for word in words]
    assert left[0] < left[1]


def start(interpreter: str, desktop: Desktop, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([interpreter, *words], env=desktop.environment(), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(LIMIT_S)
    assert process.stderr is not None
    process.stderr.close()


class Show:
    """A session on the desktop: the bridge here, the presenter in a process of its own."""

    def __init__(self, interpreter: str, desktop: Desktop, settings: PresentationSettings, *options: str) -> None:
        self.desktop, self.settings = desktop, settings
        self.bridge = Bridge("tcp://127.0.0.1:0", settings)
        self.events: list[PresenterEvent] = []
        self.process = start(interpreter, desktop, "-m", "presenter", "--connect", self.bridge.endpoint, *(options or ["--once"]))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"never happened; so far {self.events}"
            assert self.process.poll() is None or self.bridge._ended, self.process.stderr and self.process.stderr.read()
            self.events += self.bridge.poll(0.01)

    def wait(self, kind: EventKind, count: int = 1) -> PresenterEvent:
        """Wait until that many events of a kind have come; gives the last of them."""
        self.until(lambda: sum(e.kind == kind for e in self.events) >= count)
        return [e for e in self.events if e.kind == kind][count - 1]

    def told(self, text: str) -> None:
        """Wait until the support computer has received a text."""
        self.until(lambda: any(text in event.text for event in self.events if event.kind in NOTES))

    def after(self, seconds: float) -> None:
        """Serve the link for a while."""
        moment = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > moment)

    def press_until(self, key: str, kind: EventKind, count: int = 1) -> PresenterEvent:
        """Press a key; gives the event that follows."""
        self.desktop.key(key)
        return self.wait(kind, count)

    def finish(self) -> None:
        assert self.process.wait(LIMIT_S) == 0
        self.bridge.close()

    def close(self) -> None:
        end(self.process)
        self.bridge.close()


@pytest.fixture
def present(interpreter: str, desktop: Desktop) -> Iterator[Callable[..., Show]]:
    shows: list[Show] = []

    def make(settings: PresentationSettings, *options: str) -> Show:
        shows.append(Show(interpreter, desktop, settings, *options))
        return shows[-1]

    yield make
    for show in shows:
        show.close()


@pytest.mark.slow
def test_what_the_participant_sees(present: Callable[..., Show], desktop: Desktop) -> None:
    show = present(PresentationSettings(image_s=1000, image_height=0))
    first = random_pixels(5, 120, 200)
    show.until(lambda: show.bridge.ready)
    waiting = desktop.pixels()
    background = waiting[0, 0]
    assert waiting.shape == (600, 800, 3)  # full screen
    assert (waiting != background).any()
    trigger = show.press_until("5", EventKind.TRIGGER)
    held = show.wait(EventKind.FIXATION)
    assert held.mono_ns >= trigger.mono_ns
    cross = desktop.pixels()
    ink = np.argwhere((cross != background).any(axis=2))
    np.testing.assert_allclose(ink.mean(axis=0), [299.5, 399.5], atol=1)  # a cross in the middle
    assert np.ptp(ink, axis=0).max() < 40
    show.bridge.send_image(3, 4, first, verdict="given")
    onset = show.wait(EventKind.ONSET)
    assert (onset.generation, onset.candidate) == (3, 4)
    seen = desktop.pixels()
    np.testing.assert_array_equal(in_the_middle(seen, 120, 200), first)
    assert int((seen != background).any(axis=2).sum()) <= 120 * 200
    assert show.press_until("Escape", EventKind.END).text == "escape"
    assert [e.kind for e in show.events if e.kind not in NOTES][-2:] == [EventKind.OFFSET, EventKind.END]
    show.finish()


@pytest.mark.slow
def test_no_frame_of_a_marked_picture_is_on_the_screen_and_one_that_is_taken_away_leaves_it(
    present: Callable[..., Show], desktop: Desktop
) -> None:
    show = present(PresentationSettings(image_s=8, washout_s=0.1, image_height=0, away_key="backspace"))
    marked, good = np.full((120, 200, 3), (255, 0, 255), np.uint8), random_pixels(5, 120, 200)
    show.until(lambda: show.bridge.ready)
    background = desktop.pixels()[0, 0]
    show.press_until("5", EventKind.TRIGGER)
    show.wait(EventKind.FIXATION)
    cross = desktop.pixels()
    show.bridge.send_image(0, 0, marked, verdict="")
    show.bridge.send_image(0, 1, marked, verdict="passed", sha256=digest(good))
    assert [show.wait(EventKind.REFUSED, k + 1).candidate for k in range(2)] == [0, 1]
    np.testing.assert_array_equal(desktop.pixels(), cross)
    show.bridge.send_image(0, 2, good, verdict="passed", sha256=digest(good))
    show.wait(EventKind.ONSET)
    np.testing.assert_array_equal(in_the_middle(desktop.pixels(), 120, 200), good)
    show.bridge.take_away()
    taken = show.wait(EventKind.TAKEN)
    assert (taken.candidate, taken.text) == (2, "operator")
    np.testing.assert_array_equal(desktop.pixels(), cross)
    show.bridge.send_image(0, 3, good, verdict="given")
    show.wait(EventKind.ONSET, 2)
    assert show.press_until("BackSpace", EventKind.TAKEN, 2).text == "stimulus PC"
    seen = desktop.pixels()
    np.testing.assert_array_equal(seen[0, 0], background)
    np.testing.assert_array_equal(seen, cross)
    show.press_until("Escape", EventKind.END)
    show.finish()


@pytest.mark.slow
def test_trials_ratings_and_durations(present: Callable[..., Show]) -> None:
    settings = PresentationSettings(image_s=0.5, washout_s=0.25, rating_window_s=30, image_height=0.5, end_s=0.1)
    show = present(settings)
    for k in range(4):
        show.bridge.send_image(0, k, random_pixels(k, 64, 64), verdict="given")
    show.until(lambda: show.bridge.ready and show.bridge.in_flight == 0)
    pressed = time.monotonic_ns()
    trigger = show.press_until("5", EventKind.TRIGGER)
    assert pressed <= trigger.mono_ns + trigger.error_ns
    assert show.press_until("5", EventKind.PULSE).mono_ns > trigger.mono_ns  # the next volume's
    for k, key in enumerate(("1", "6", "3")):
        show.wait(EventKind.OFFSET, k + 1)
        rating = show.press_until(key, EventKind.RATING, k + 1)
        assert (rating.candidate, rating.value) == (k, float(settings.rating_keys.index(key)))
        assert 0 < rating.response_time_s < 30
    show.wait(EventKind.ONSET, 4)
    show.bridge.end("enough")
    show.wait(EventKind.OFFSET, 4)
    show.press_until("4", EventKind.RATING, 4)
    assert show.wait(EventKind.END).text == "enough"
    show.finish()
    by_kind = {kind: [e for e in show.events if e.kind == kind] for kind in EventKind}
    dropped = {e.candidate: e.value for e in by_kind[EventKind.OFFSET]}
    frame_s = 1 / 60  # Xvfb has no refresh: the presenter paces itself
    for onset, offset in zip(by_kind[EventKind.ONSET], by_kind[EventKind.OFFSET], strict=True):
        slack_s = frame_s * (1 + dropped.get(onset.candidate, 0)) + (onset.error_ns + offset.error_ns) / SECOND
        assert abs((offset.mono_ns - onset.mono_ns) / SECOND - settings.image_s) <= slack_s
    for offset, rating in zip(by_kind[EventKind.OFFSET], by_kind[EventKind.RATING], strict=True):
        assert math.isclose(rating.response_time_s, (rating.mono_ns - offset.mono_ns) / SECOND, abs_tol=2e-3 + 2 * offset.error_ns / SECOND)
    assert not by_kind[EventKind.FIXATION]


@pytest.mark.slow
def test_self_test_measures_screen_textures_and_trigger(interpreter: str, desktop: Desktop, tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    call = "import sys, pathlib, presenter.selftest as s; s.self_test(None, frames=60, report_file=pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen(
        [interpreter, "-u", "-c", call, str(report_file)], env=desktop.environment(), stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.startswith("keys (Psychtoolbox): press 5, 1, 2, 3, 4, 6"):
                for key in ("5", "x", "1", "Escape"):
                    desktop.key(key)
            if line.startswith("key '1'"):
                seen = r"key '1' \(rating\): Psychtoolbox, time known to \d+\.\d ms, window in front"  # busy cores make it uncertain
                assert re.fullmatch(seen, line.strip())
            if line.startswith("trigger (keyboard)"):
                break
        while not report_file.exists() and process.poll() is None:
            desktop.key("5")
    assert process.wait(LIMIT_S) == 0
    report = json.loads(report_file.read_text())
    assert report["frames"]["n"] == 60
    assert report["frames"]["refresh_hz"] > 0
    assert report["upload"]["n"] == 40
    assert report["upload"]["p50_ms"] > 0
    assert report["trigger"]["pulses"] == 10
    assert report["keys"]["pressed"] == ["5", "x", "1", "escape"]
    assert report["keys"]["missing"] == ["2", "3", "4", "6"]
    assert any("vertical synchronisation" in line for line in report["to_do"])


# --- situations: docs/stimulus-pc.md ------------------------------------------------------------------------------------------------------


def words_of(process: subprocess.Popen[str]) -> str:
    """What a process said until it ended."""
    assert process.stderr is not None
    return process.stderr.read()


PROBLEMS = {
    "screen: expected 0 to 0 on this computer, got 3": {"screen": 3},
    "the session runs in lock-step (speed max), which no screen can follow: use --headless": {"speed": 0},
    "rating_labels: the text does not fit on the screen": {"rating_labels": ("x" * 90,) * 5, "rating_window_s": 5},
    "trigger_key: expected the name of a key, got 'f19', which is no key's name": {"trigger_key": "f19"},
    "(U+10A80): install a font that has them": {"end_text": "\U00010a80"},
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_cannot_be_presented_is_said_on_both_computers(present: Callable[..., Show], problem: str) -> None:
    show = present(PresentationSettings(**PROBLEMS[problem]))  # type: ignore[arg-type]
    deadline = time.monotonic() + LIMIT_S
    while show.process.poll() is None:
        assert time.monotonic() < deadline
        show.events += show.bridge.poll(0.01)
    show.events += show.bridge.poll(0.01)
    assert show.process.returncode == 1
    assert f"{problem}" in words_of(show.process).splitlines()[-1]
    assert [problem in event.text for event in show.events if "cannot present" in event.text] == [True]
    assert not show.bridge.connected


@pytest.mark.parametrize("lacks", ["PsychoPy", "a desktop"])
def test_a_computer_that_cannot_show_anything_says_so(interpreter: str, lacks: str) -> None:
    no_psychopy = "import sys; sys.modules['psychopy'] = None; from presenter.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"PYTHONPATH": str(REPOSITORY)}
    with Bridge("tcp://127.0.0.1:0", PresentationSettings()) as bridge:
        words = ["-c", no_psychopy] if lacks == "PsychoPy" else ["-m", "presenter"]
        process = subprocess.Popen(
            [interpreter, *words, "--connect", bridge.endpoint], env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        told: list[str] = []
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None:
            assert time.monotonic() < deadline
            told += [event.text for event in bridge.poll(0.01)]
        assert process.returncode == 1
        said = words_of(process).splitlines()[-1]
        assert process.stderr is not None
        process.stderr.close()
    expected = "PsychoPy is not installed in this Python" if lacks == "PsychoPy" else "PsychoPy finds no screen here"
    assert expected in said
    assert any("cannot present" in text and expected in text for text in told)


@pytest.mark.slow
def test_of_two_presenters_the_first_keeps_the_session_and_says_so_when_it_is_replaced(
    interpreter: str, desktops: Callable[..., Desktop], present: Callable[..., Show], desktop: Desktop
) -> None:
    other = desktops()
    settings = PresentationSettings(image_s=0.5, washout_s=0.5, image_height=0)
    show = Show.__new__(Show)
    show.desktop, show.settings, show.bridge, show.events = desktop, settings, Bridge("tcp://127.0.0.1:0", settings), []
    with FaultyNetwork(show.bridge.endpoint) as wires:
        first = second = show.process = start(interpreter, desktop, "-m", "presenter", "--connect", wires.endpoint)
        try:
            show.until(lambda: show.bridge.ready)
            second = start(interpreter, other, "-m", "presenter", "--connect", show.bridge.endpoint)
            show.told("another presenter waits")
            show.press_until("5", EventKind.TRIGGER)
            show.wait(EventKind.FIXATION)
            wires.pull()
            show.told("presenter silent")
            show.after(3.5)
            wires.plug()
            show.told("presenter answers again")
            show.bridge.send_image(0, 0, random_pixels(1, 64, 64), verdict="given")
            show.wait(EventKind.OFFSET)
            fixation = desktop.pixels()
            show.bridge.admit(1)
            show.told("has taken over")
            show.until(lambda: show.bridge.ready)
            show.bridge.send_image(0, 1, random_pixels(2, 64, 64), verdict="given")
            show.wait(EventKind.ONSET, 2)
            show.until(lambda: int((desktop.pixels() != fixation).sum()) > 2000)  # a text
            np.testing.assert_array_equal(in_the_middle(other.pixels(), 64, 64), random_pixels(2, 64, 64))
            desktop.key("Escape")
            assert show.process.wait(LIMIT_S) == 1
            assert words_of(show.process).splitlines()[-1].endswith("another presenter has taken this one's place")
            show.process, show.desktop = second, other
            assert show.press_until("Escape", EventKind.END).text == "escape"
            assert second.wait(LIMIT_S) == 0
            said = words_of(second)
            assert "refuses for now: another presenter is connected" in said
            assert "no answer from" not in said.partition("priority over other programs")[0]
        finally:
            for process in (first, second):
                end(process)
            show.bridge.close()


OTHER_WINDOW = "import pyglet; w = pyglet.window.Window(90, 90, caption='other'); w.activate(); print('here', flush=True); pyglet.app.run()"


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--window",), ("--once",)], ids=["a window", "the full screen"])
def test_keys_typed_into_another_window_do_not_count(
    interpreter: str, present: Callable[..., Show], desktop: Desktop, options: tuple[str, ...]
) -> None:
    show = present(PresentationSettings(), *options)
    show.until(lambda: show.bridge.ready)
    other = subprocess.Popen([interpreter, "-c", OTHER_WINDOW], env=desktop.environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "here"
        show.told("window is not in front")
        if options == ("--window",):  # nobody takes the keys back
            desktop.key("5")
            show.told("key '5' was typed into another window: it does not count")
            desktop.key("Escape")
            show.told("key 'escape' was typed into another window")
            assert not [event for event in show.events if event.kind == EventKind.TRIGGER]
            desktop.xdotool("search", "--name", "rtevo", "windowfocus")
        show.told("in front again")
        show.press_until("5", EventKind.TRIGGER)
        assert show.press_until("Escape", EventKind.END).text == "escape"
        show.finish()
        assert "not in front" in words_of(show.process)
    finally:
        other.kill()
        other.wait(LIMIT_S)
        assert other.stdout is not None
        other.stdout.close()


@pytest.mark.slow
def test_a_key_that_is_held_is_one_press_without_psychtoolbox(interpreter: str, desktop: Desktop) -> None:
    settings = PresentationSettings(image_s=0.2, washout_s=0.2, rating_window_s=1.5)
    show = Show.__new__(Show)
    show.desktop, show.settings, show.bridge, show.events = desktop, settings, Bridge("tcp://127.0.0.1:0", settings), []
    script = "import sys; sys.modules['psychtoolbox'] = None; from presenter.__main__ import main; sys.exit(main(sys.argv[1:]))"
    show.process = start(interpreter, desktop, "-c", script, "--connect", show.bridge.endpoint, "--once")
    try:
        show.until(lambda: show.bridge.ready)
        assert any("Psychtoolbox is missing" in warning for warning in show.bridge.warnings)
        desktop.key("5", "keydown")
        show.wait(EventKind.TRIGGER)
        show.after(1.5)  # repeats begin after 0.66 s, 25 a second
        desktop.key("5", "keyup")
        for k in range(2):
            show.bridge.send_image(0, k, random_pixels(k, 16, 16), verdict="given")
        show.wait(EventKind.OFFSET)
        desktop.key("3", "keydown")  # held through the next trial
        show.wait(EventKind.RATING, 2)
        desktop.key("3", "keyup")
        show.press_until("5", EventKind.PULSE)
        first, second = (event for event in show.events if event.kind == EventKind.RATING)
        assert first.value == 2.0
        assert math.isnan(second.value)
        assert sum(event.kind == EventKind.PULSE for event in show.events) == 1
        show.press_until("Escape", EventKind.END)
        assert show.process.wait(LIMIT_S) == 0
    finally:
        show.close()


@pytest.mark.slow
def test_the_end_text_stays_until_the_next_run_and_its_window_with_it(present: Callable[..., Show], desktop: Desktop) -> None:
    settings = PresentationSettings(end_s=0.0, end_text="Thank you", wait_text="Please wait")
    show = present(settings, "--window")
    show.until(lambda: show.bridge.ready)
    waiting = desktop.pixels()
    show.bridge.end("finished")
    show.wait(EventKind.END)
    endpoint = show.bridge.endpoint
    show.bridge.close()
    thanks = desktop.pixels()
    assert (thanks != waiting).any()
    moment = time.monotonic() + 1.0
    while time.monotonic() < moment:
        np.testing.assert_array_equal(desktop.pixels(), thanks)
    show.events.clear()
    show.bridge = Bridge(endpoint, PresentationSettings(wait_text="Please wait"), session="the next run")
    show.until(lambda: show.bridge.ready)
    np.testing.assert_array_equal(desktop.pixels(), waiting)
    show.bridge.close()  # the support computer's session breaks down: fixation
    deadline = time.monotonic() + LIMIT_S
    while np.array_equal(desktop.pixels(), waiting):
        assert time.monotonic() < deadline
    assert show.process.poll() is None
    while show.process.poll() is None:
        assert time.monotonic() < deadline
        desktop.key("Escape")
    assert show.process.returncode == 0
    assert words_of(show.process).splitlines()[-1] == "presenter: ended (finished)"


@pytest.mark.slow
def test_a_computer_that_stalls_over_an_offset_reports_bounds_that_hold(present: Callable[..., Show]) -> None:
    settings = PresentationSettings(image_s=1.0, washout_s=1.0, image_height=0.5)
    show = present(settings)
    for k in range(2):
        show.bridge.send_image(0, k, random_pixels(k, 64, 64), verdict="given")
    show.until(lambda: show.bridge.ready and show.bridge.in_flight == 0)
    show.press_until("5", EventKind.TRIGGER)
    onset = show.wait(EventKind.ONSET)
    show.until(lambda: time.monotonic_ns() > onset.mono_ns + 0.7 * SECOND)
    show.process.send_signal(signal.SIGSTOP)
    stopped_ns = time.monotonic_ns()
    show.after(1.0)
    show.process.send_signal(signal.SIGCONT)
    resumed_ns = time.monotonic_ns()
    offset = show.wait(EventKind.OFFSET)
    second = show.wait(EventKind.ONSET, 2)
    assert stopped_ns < resumed_ns <= offset.mono_ns + offset.error_ns  # the image stayed as long as nothing moved
    assert second.mono_ns - offset.mono_ns > 0.9 * SECOND  # the washout is as long as ever
    show.press_until("Escape", EventKind.END)
    show.finish()


@pytest.mark.slow
def test_texts_of_right_to_left_scripts_are_drawn_as_they_are_read(interpreter: str, desktop: Desktop, tmp_path: Path) -> None:
    """What is on the screen is what Pillow's own layout draws, to the pixel."""
    pytest.importorskip("PIL")
    from presenter import lettering

    if "DejaVu Sans" not in lettering._installed(()):
        pytest.skip("no DejaVu fonts here (Debian: fonts-dejavu-core)")
    text = "שלום עולם"
    settings = PresentationSettings(wait_text=text, font="DejaVu Sans", text_height=0.08, background=(0.0, 0.0, 0.0))
    shown = probe(interpreter, desktop, tmp_path / "probe", settings)["text"][:, :, 0]
    ink = lettering.Lettering({"wait_text": text}, "DejaVu Sans").picture(text, round(0.08 * shown.shape[0]), 1e9)
    found = in_the_middle(shown[:, :, None], *ink.shape)[:, :, 0]
    assert np.abs(found.astype(int) - ink).max() <= 1
    assert int((shown > 0).sum()) == int((found > 0).sum())


@pytest.mark.slow
def test_screens_are_listed(interpreter: str, desktops: Callable[..., Desktop]) -> None:
    desktop = desktops("800x600x24", "640x480x24")
    done = subprocess.run(
        [interpreter, "-m", "presenter", "--screens"], env=desktop.environment(), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second, advice = done.stdout.splitlines()
    assert first.startswith("screen 0: 800 x 600 at (0, 0), scaling 100%")
    assert second.startswith("screen 1: 640 x 480 at ")
    assert "[presentation] screen" in advice
