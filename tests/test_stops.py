"""Signals that end a session: one wish each, the command's alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from rtevo import stops as module
from rtevo.stops import STOP_SIGNALS, Stops

GROUP = """
import multiprocessing as mp, os, signal
from rtevo.stops import Stops, ignore, start

def child(pipe):
    ignore()
    pipe.send("ready")
    pipe.send(pipe.recv())

if __name__ == "__main__":
    heard = []
    with Stops() as stops, stops.heard_by(lambda: heard.append(1)):
        context = mp.get_context("forkserver")
        mine, its = context.Pipe()
        process = context.Process(target=child, args=(its,))
        start(process)
        mine.recv()
        os.killpg(0, signal.SIGTERM)
        os.killpg(0, signal.SIGHUP)
        mine.send("still here")
        print(mine.recv(), len(heard))
        process.join()
        print(process.exitcode)
"""


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test moves."""
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_of_them_interrupts_as_control_c_does(number: int) -> None:
    before = signal.getsignal(number)
    with Stops() as stops:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert stops.count == 1
    assert signal.getsignal(number) is before


def test_a_process_that_ends_with_them_ignores_them_from_then_on() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with Stops(leaving=True):
            pass
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_that_is_sent_twice_is_one_wish(now: list[float]) -> None:
    stops, heard = Stops(), []
    with stops.heard_by(lambda: heard.append(now[0])):
        stops.take(signal.SIGTERM)
        stops.take(signal.SIGTERM)  # `timeout` sends it to the command, then to the group
        stops.take(signal.SIGHUP)  # and systemd this one besides
        now[0] += 2
        stops.take(signal.SIGTERM)
    assert heard == [100.0, 102.0]
    assert stops.count == 2


def test_while_somebody_listens_nothing_is_interrupted_and_afterwards_it_is(now: list[float]) -> None:
    stops = Stops()
    with stops.heard_by(lambda: None):
        stops.take(signal.SIGINT)
    now[0] += 2
    with pytest.raises(KeyboardInterrupt):
        stops.take(signal.SIGINT)


def test_a_signal_to_the_group_ends_neither_a_process_nor_the_server_that_it_was_forked_from(tmp_path: object) -> None:
    script = f"{tmp_path}/group.py"
    with open(script, "w") as file:
        file.write(GROUP)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, start_new_session=True, env=environment)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["still here 1", "0"]), done.stderr
