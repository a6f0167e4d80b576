"""The console in a real browser: one simulated session, watched and operated from its start to its end."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rtevo.config import load
from rtevo.decode import Decoder
from rtevo.record import EventRecord, Notice, RecordedSession, ScoreRecord
from rtevo.record.parts import RecordT
from rtevo.records import NOTES, EventKind
from rtevo.session.plan import Plan
from rtevo.stages.table import child_main

pytest.importorskip("nicegui", reason="the console is optional: pip install 'rtevo[console]'")
api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install '.[test]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("console"),
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]
WIDTHS = {1280: 800, 1024: 768, 820: 1180, 390: 844}
LONG_MS = 120_000  # a wait that takes longer never ends
SESSION = ("--speed", "4", "--generations", "300", "--population", "3")  # it is stopped long before its end
CHEAP = "[generator]\nsteps = 2\n[simulation]\nvoxel_mm = [6.0, 6.0, 6.6]\n"


@dataclass
class Watched:
    """A session, and the page that shows it."""

    out: Path
    process: subprocess.Popen[str]
    browser: Any
    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def state(self, words: str) -> None:
        """Wait until the page says so."""
        self.page.locator(".state", has_text=words).wait_for(timeout=LONG_MS)

    def connected(self) -> None:
        """Wait until what is pressed arrives."""
        self.page.wait_for_function("window.did_handshake === true", timeout=LONG_MS)

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def figure(self, label: str) -> int:
        """Return the number that follows a label in the first line."""
        found = re.search(rf"{label} (\d+)", self.page.locator(".figures").inner_text())
        return int(found.group(1)) if found else 0

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + LONG_MS / 1000
        while not condition():
            assert time.monotonic() < deadline, "never happened"
            self.page.wait_for_timeout(50)

    def records(self, kind: type[RecordT]) -> list[RecordT]:
        return RecordedSession(self.out).records(kind)

    @property
    def actions(self) -> list[str]:
        """What the operator has done."""
        return [record.action for record in self.records(Notice) if record.level == "operator"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, unused_tcp_port: int) -> Iterator[Watched]:
    """A session that waits for Start, in a browser that has just opened its page."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "session.toml").write_text(CHEAP)
    command = [sys.executable, "-m", "rtevo.run", "session.toml", "--console", str(unused_tcp_port), "--out", "out", *SESSION]
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        stack.enter_context(process)
        stack.callback(process.kill)
        playwright = stack.enter_context(api.sync_playwright())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        stack.callback(browser.close)
        watched = Watched(folder / "out", process, browser, browser.new_page(viewport={"width": 1280, "height": 800}))
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.on("websocket", lambda socket: watched.requests.append(socket.url))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        assert process.stderr is not None
        token = ""
        for line in process.stderr:
            token = found[1] if (found := re.search(r"token=([\w-]+)", line)) else token
            if "waiting for Start" in line:
                break
        else:
            raise AssertionError(f"the session left with {process.wait()} before it was ready")
        watched.page.goto(f"http://127.0.0.1:{unused_tcp_port}/?token={token}", timeout=LONG_MS)
        watched.connected()
        yield watched


def test_it_waits_for_start_with_the_first_pictures_painted(watched: Watched) -> None:
    watched.state("Ready: press Start")
    watched.until(lambda: watched.page.locator(".tile img").count() >= 2)
    assert not watched.records(EventRecord)
    watched.press("s")
    watched.state("Running")
    assert watched.actions == ["start"]


def test_it_shows_the_session_live(watched: Watched) -> None:
    volume, image = watched.figure("volume"), watched.figure("image")
    watched.until(lambda: watched.figure("volume") > volume + 3 and watched.figure("image") > image)
    watched.until(lambda: watched.page.locator(".tile .scale b").count() >= 3)  # scores with their error bars
    watched.until(lambda: watched.page.locator(".now img").count() == 1)
    loaded = "() => [...document.querySelectorAll('.tile img')].every(image => image.complete && image.naturalWidth > 0)"
    watched.page.wait_for_function(loaded, timeout=LONG_MS)
    assert watched.page.locator(".charts canvas").count() == 3
    assert "volume aligned" in watched.page.locator(".health").inner_text()


@pytest.mark.parametrize(("width", "height"), WIDTHS.items())
def test_it_fits(watched: Watched, width: int, height: int) -> None:
    watched.page.set_viewport_size({"width": width, "height": height})
    watched.page.screenshot(path=watched.out.parent / f"console-{width}.png")
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    for button in watched.page.locator(".bar .q-btn:visible").all():
        box = button.bounding_box()
        assert box["height"] >= 44  # fingers
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    for panel in watched.page.locator(".health, .now").all():
        assert panel.evaluate("each => each.scrollWidth <= each.clientWidth")  # nothing is cut


def test_a_note_has_the_time_at_which_it_was_asked_for(watched: Watched) -> None:
    watched.press("m")
    note = watched.page.get_by_placeholder("a note")
    api.expect(note).to_be_focused(timeout=LONG_MS)
    watched.page.keyboard.type("space bar: the hand moved")
    volume = watched.figure("volume")
    watched.until(lambda: watched.figure("volume") > volume)
    watched.press("Enter")
    watched.page.locator(".log", has_text="mark: space bar: the hand moved").wait_for(timeout=LONG_MS)
    (mark,) = (record for record in watched.records(Notice) if record.action == "mark")
    assert mark.text == "space bar: the hand moved"
    assert mark.clock_ns - mark.t_ns > 0.8e9  # a volume has come since
    note.wait_for(state="hidden", timeout=LONG_MS)


@pytest.fixture
def elsewhere(watched: Watched) -> Iterator[tuple[str, str, Any]]:
    """A second console of the session that runs, blinded, and with a token as other computers need it: address, token, pipe."""
    text = (watched.out / "session.log").read_text()
    config = load(watched.out / "session.toml")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    config = replace(config, session=replace(config.session, condition="blinded"), console=replace(config.console, port=port))
    decoder = Decoder.load(watched.out / "decoder")
    plan = Plan(
        name=re.findall(r"DEBUG session (\w+)", text)[-1],
        config=config,
        condition="sham",
        out=watched.out,
        runtime=next(Path(tempfile.gettempdir()).glob(f"rtevo-run-{watched.process.pid}-*")),
        incoming=watched.out,
        capacity=math.prod(decoder.grid.shape),
        tr_s=config.acquisition.tr_s,
        decoder=watched.out / "decoder",
        decoder_name=decoder.name,
        embedding_size=64,
        image_size=(64, 64),
        token=secrets.token_urlsafe(32),
    )
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=child_main, args=("console", plan, its), daemon=True)
    process.start()
    its.close()
    while json.loads(mine.recv_bytes())["kind"] != "ready":
        pass
    yield f"http://127.0.0.1:{port}/", plan.token, mine
    process.kill()
    process.join()
    mine.close()


def test_from_elsewhere_it_is_seen_with_the_token_only_and_blinded_without_a_score(watched: Watched, elsewhere: Any) -> None:
    address, token, pipe = elsewhere
    with watched.browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        stranger, page, sent = context.new_page(), context.new_page(), []
        for wrong in ("", "?token=guess"):
            assert stranger.goto(address + wrong, timeout=LONG_MS).status == 401
        assert "needs the address with the token" in stranger.inner_text("body")
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: sent.append(str(frame))))
        page.goto(f"{address}?token={token}", timeout=LONG_MS)
        assert page.url == address  # the token is not left where it can be read
        page.wait_for_function("window.did_handshake === true", timeout=LONG_MS)
        page.locator(".hidden-scores", has_text="Scores are hidden: this session is blinded.").wait_for(timeout=LONG_MS)
        page.locator(".tile", has_text="hidden").nth(2).wait_for(timeout=LONG_MS)
        frames = len(sent)
        watched.until(lambda: len(sent) > frames + 5)
        page.screenshot(path=watched.out.parent / "console-blinded.png")
        page.keyboard.press("m")
        api.expect(page.get_by_placeholder("a note")).to_be_focused(timeout=LONG_MS)
        page.keyboard.type("from elsewhere")
        page.keyboard.press("Enter")
        told: list[dict[str, Any]] = []

        def noted() -> bool:
            while pipe.poll():
                told.append(json.loads(pipe.recv_bytes()))
            return any(each["kind"] == "operator" for each in told)

        watched.until(noted)
        known = {f"{record.score:+.2f}".replace("-", "\N{MINUS SIGN}") for record in watched.records(ScoreRecord)}
        shown = page.content() + "".join(sent)
    assert [score for score in known if score in shown] == []
    assert len([score for score in known if score in watched.page.content()]) > 3  # where they are to be seen
    assert [(each["action"], each["text"]) for each in told if each["kind"] == "operator"] == [("mark", "from elsewhere")]


def console_pid(watched: Watched) -> int:
    return int(re.findall(r"stage console is process (\d+)", (watched.out / "session.log").read_text())[-1])


def test_a_press_is_sent_until_it_is_heard_and_the_page_waits_for_a_slow_server(watched: Watched) -> None:
    watched.page.evaluate("window.same = true")
    before = len(watched.actions)
    os.kill(console_pid(watched), signal.SIGSTOP)
    try:
        watched.press(" ")
        watched.page.locator("body.unheard").wait_for(timeout=LONG_MS)  # and the page says so
        watched.page.locator(".q-btn.pressed", has_text="Pause").wait_for(timeout=LONG_MS)
        watched.page.evaluate("window.socket.io.engine.close()")  # the connection is lost besides
    finally:
        os.kill(console_pid(watched), signal.SIGCONT)
    watched.state("Paused")
    watched.page.wait_for_function("!document.body.classList.contains('unheard')", timeout=LONG_MS)
    watched.press(" ")
    watched.state("Running")
    assert watched.actions[before:] == ["pause", "go_on"]  # each once, though sent again
    assert watched.page.evaluate("window.same")  # it was not loaded anew


def test_a_pause_comes_between_trials_and_ends(watched: Watched) -> None:
    watched.press(" ")
    watched.state("Paused")
    volume, image = watched.figure("volume"), watched.figure("image")
    watched.until(lambda: watched.figure("volume") > volume + 6)  # the scanner goes on
    assert watched.figure("image") == image
    watched.page.locator(".q-btn", has_text="Go on").click()
    watched.state("Running")
    watched.until(lambda: watched.figure("image") > image)
    kinds = [EventKind(event.kind) for event in watched.records(EventRecord) if event.kind not in NOTES]
    pause = len(kinds) - 1 - kinds[::-1].index(EventKind.PAUSE)
    assert kinds[pause + 1] == EventKind.GO_ON
    trials = [kind for kind in kinds[:pause] if kind in (EventKind.ONSET, EventKind.OFFSET)]
    assert trials[-1] == EventKind.OFFSET
    assert watched.actions[-2:] == ["pause", "go_on"]


def test_the_session_goes_on_when_the_console_is_killed_and_the_page_comes_back_by_itself(watched: Watched) -> None:
    os.kill(console_pid(watched), signal.SIGKILL)
    watched.until(lambda: any(record.level == "warning" for record in watched.records(Notice)))
    events = len(watched.records(EventRecord))
    watched.until(lambda: len(watched.records(EventRecord)) > events + 2)
    watched.page.locator(".log", has_text="console was killed by signal 9 (SIGKILL) and was restarted").wait_for(timeout=LONG_MS)
    watched.state("Running")
    watched.page.locator(".log", has_text="the hand moved").wait_for(timeout=LONG_MS)  # it knows everything again
    watched.connected()
    assert watched.process.poll() is None


def test_stop_asks_and_then_ends_the_session_in_good_order(watched: Watched) -> None:
    watched.press("x")
    question = watched.page.get_by_text("End the session now?")
    question.wait_for(timeout=LONG_MS)
    watched.page.get_by_text("the session continues until you stop it").wait_for(timeout=LONG_MS)
    watched.page.set_viewport_size({"width": 390, "height": 844})
    assert watched.page.locator(".q-dialog__backdrop").count() == 0  # what goes on is neither dimmed nor covered
    top = watched.page.locator(".q-dialog .q-card").bounding_box()["y"]
    for seen in (".state", ".figures", ".now img, .now .empty"):
        box = watched.page.locator(seen).first.bounding_box()
        assert box["y"] + box["height"] <= top
    watched.page.set_viewport_size({"width": 1280, "height": 800})
    watched.press("Escape")
    question.wait_for(state="hidden", timeout=LONG_MS)
    assert watched.process.poll() is None
    watched.press("x")
    question.wait_for(timeout=LONG_MS)
    watched.press("Enter")
    watched.state("Stopped")
    watched.page.screenshot(path=watched.out.parent / "console-over.png")
    assert watched.process.wait(60) == 0
    assert (watched.out / "summary.json").exists()
    assert watched.actions[-1] == "stop"


def test_nothing_came_from_elsewhere_and_nothing_went_wrong(watched: Watched) -> None:
    hosts = {urlsplit(url).hostname for url in watched.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert watched.complaints == []
