"""A session across two computers, each a network namespace, started from the words of the docs; then with the network cut.

Needs root and iproute2 (Linux).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtevo.record import LOG, RecordedSession
from rtevo.records import EventKind

from .conftest import quickly

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "how-to-two-computers.md"
LIMIT_S = 200.0
SUPPORT, STIMULUS = "10.213.55.1", "10.213.55.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Hosts:
    """Two computers and the cable between them."""

    def __init__(self) -> None:
        self.names = {SUPPORT: f"rtevo-a-{os.getpid()}", STIMULUS: f"rtevo-b-{os.getpid()}"}
        for name in self.names.values():
            ip("netns", "add", name)
        ends = dict(zip(self.names, ("support", "stimulus"), strict=True))
        a, b = self.names.values()
        ip("-n", a, "link", "add", "support", "type", "veth", "peer", "name", "stimulus", "netns", b)
        for address, name in self.names.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", ends[address])
            for device in (ends[address], "lo"):
                ip("-n", name, "link", "set", device, "up")
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, address: str, words: list[str], folder: Path) -> subprocess.Popen[str]:
        words = ["ip", "netns", "exec", self.names[address], *words]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with (folder / f"{address}.log").open("w") as said:
            self.processes.append(subprocess.Popen(words, cwd=folder, stdout=said, stderr=subprocess.STDOUT, text=True, env=environment))
        return self.processes[-1]

    def cable(self, state: str) -> None:
        ip("-n", self.names[SUPPORT], "link", "set", "support", state)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for name in self.names.values():
            ip("netns", "del", name)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        made = Hosts()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield made
    made.close()


def typed(computer: str, program: str) -> list[str]:
    """Give the words of the last command of the page for a program on a computer."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith(f"python -m {program} ")]
    [command] = [line.split("#")[0] for line in lines if f"# on the {computer}" in line][-1:]
    words = shlex.split(command.replace("SUPPORT", SUPPORT))
    return [sys.executable, *words[1:]]


def begin(hosts: Hosts, folder: Path, *options: str) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Do what the page says on both computers."""
    text = PAGE.read_text()
    [session] = re.findall(r"```toml\n(.*?)```", text[text.index("A rehearsal across both computers") :], re.S)[:1]
    there = folder / "stimulus"
    there.mkdir()
    (folder / "rehearsal.toml").write_text(session)
    quickly(("rehearsal.toml",), folder)
    subprocess.run(typed("support computer", "rtevo.bridge"), check=True, cwd=folder, capture_output=True)
    (folder / "keys/presenter.json").rename(there / "presenter.json")
    support = hosts.start(SUPPORT, [*typed("support computer", "rtevo.run"), "--out", "out", *options], folder)
    stimulus = hosts.start(STIMULUS, typed("stimulus PC", "presenter"), there)
    return support, stimulus


def wait_for_images(folder: Path, support: subprocess.Popen[str], count: int) -> float:
    """Wait until some images have been shown; gives the time that the test ends at the latest."""
    out, deadline = folder / "out", time.monotonic() + LIMIT_S
    shown = 0
    while shown < count:
        assert time.monotonic() < deadline, "no image was shown"
        assert support.poll() is None
        time.sleep(0.05)
        if (out / LOG).exists():
            shown = len(RecordedSession(out).events(EventKind.ONSET))
    return deadline


def finish(support: subprocess.Popen[str], stimulus: subprocess.Popen[str], folder: Path) -> tuple[dict[str, Any], RecordedSession]:
    """Wait for both; give summary and record."""
    codes = support.wait(LIMIT_S), stimulus.wait(LIMIT_S)
    said = "".join(file.read_text() for file in sorted(folder.rglob("10.*.log")))
    assert codes == (0, 0), said
    return json.loads((folder / "out/summary.json").read_text()), RecordedSession(folder / "out")


@pytest.mark.slow
def test_a_whole_session_across_two_computers(hosts: Hosts, tmp_path: Path) -> None:
    options = ("--speed", "max", "--generations", "2", "--population", "3")
    summary, _ = finish(*begin(hosts, tmp_path, *options), tmp_path)
    assert summary["status"] == "completed"
    assert summary["images"]["shown"] == 6
    assert summary["volumes"]["lost"] == 0
    assert all(generation["mean_true_response"] is not None for generation in summary["generations"])  # somebody has looked


@pytest.mark.slow
def test_the_network_goes_and_comes_back_and_the_presenter_is_killed_and_started_again(hosts: Hosts, tmp_path: Path) -> None:
    support, stimulus = begin(hosts, tmp_path, "--speed", "3", "--generations", "1", "--population", "7", "--condition", "ratings")
    deadline = wait_for_images(tmp_path, support, 2)
    hosts.cable("down")
    text = ""
    while "presenter silent" not in text:
        assert time.monotonic() < deadline, "the silence was not told"
        time.sleep(0.05)
        text = (tmp_path / "out/session.log").read_text()
    hosts.cable("up")
    wait_for_images(tmp_path, support, 5)
    stimulus.kill()
    again = hosts.start(STIMULUS, typed("stimulus PC", "presenter"), tmp_path / "stimulus")
    summary, recorded = finish(support, again, tmp_path)
    assert summary["status"] == "completed"
    for kind in (EventKind.ONSET, EventKind.OFFSET, EventKind.RATING):
        assert [event.candidate for event in recorded.events(kind)] == list(range(7))
    for told in ("presenter silent", "presenter answers again", "restarted"):
        assert any(told in warning for warning in summary["warnings"])
