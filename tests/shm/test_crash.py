"""Processes that are killed, at every bytecode instruction of the ring's code and at random machine instructions."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rtevo.shm import OwnerLost, Reader, ReaderLost, Ring, RingClosed, RingTimeout, WriterLost, clean, wait_any

Name = Callable[[], str]
Start = Callable[[], Any]


def _load_nursery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rtevo_test_nursery", Path(__file__).with_name("nursery.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tasks = _load_nursery()
KILLED = -signal.SIGKILL


def _kill_everywhere(worker: Any, where: str, step: int, *task: object) -> Iterator[int]:
    """Run a task with a kill before instruction 0, `step`, 2 `step`... of a file; yield after each; end when it gets through alive."""
    instruction = 0
    while True:
        status = worker.ask("wait", worker.ask("start_and_kill_at", instruction, where, *task))
        assert status in (0, KILLED)
        yield instruction
        if status == 0:
            return
        instruction += step


@pytest.mark.parametrize(("where", "step", "least"), [pytest.param("ends.py", 1, 1000, marks=pytest.mark.slow), ("", 97, 40)])
def test_a_writer_killed_anywhere_loses_nothing_and_is_replaced(ring_name: Name, nursery: Start, where: str, step: int, least: int) -> None:
    worker, expected, kills = nursery(), 0, 0
    with (
        Ring.create(ring_name(), tasks.SLOT, 3, ["a", Reader("watch", critical=False)], reader="a") as ring,
        Ring.attach(ring.name, "watch") as watch,
    ):
        for _ in _kill_everywhere(worker, where, step, "write", ring.name, 2):
            kills += 1
            for reader in (ring, watch):
                count = 0
                while reader.poll():
                    with reader.read() as slot:
                        assert tasks.check(slot) == expected + count
                    count += 1
                assert reader.lost == 0
            expected += count
            assert ring.statistics().published == expected
            assert not ring.lag("a")
    assert expected > 2
    assert kills > least


@pytest.mark.parametrize(("where", "step", "least"), [pytest.param("ends.py", 1, 400, marks=pytest.mark.slow), ("", 97, 20)])
def test_a_reader_killed_anywhere_loses_nothing_and_is_replaced(ring_name: Name, nursery: Start, where: str, step: int, least: int) -> None:
    worker, written, kills = nursery(), 0, 0
    with Ring.create(ring_name(), tasks.SLOT, 4, ["a"], writer=True) as ring:
        for _ in _kill_everywhere(worker, where, step, "read", ring.name, "a", 2):
            kills += 1
            with Ring.attach(ring.name, "a") as reader:
                first = ring.statistics().consumed["a"]
                for value in range(first, written):  # what the dead one has not released
                    with reader.read(timeout_s=0) as slot:
                        assert tasks.check(slot) == value
            assert not ring.lag("a")
            for _ in range(2):
                with ring.reserve(timeout_s=0) as slot:
                    tasks.fill(slot, written)
                written += 1
    assert kills > least


def test_an_owner_killed_anywhere_leaves_nothing_that_cannot_be_cleaned(ring_name: Name, nursery: Start) -> None:
    worker, name, semaphore = nursery(), ring_name(), ring_name()
    for instruction in _kill_everywhere(worker, "", 251, "own", name, semaphore):
        if instruction % 2:
            Ring.create(f"{name}x", tasks.SLOT, 4, [Reader("a", semaphore=semaphore)]).close()  # takes the name over
        clean()
        left = [path.name for path in Path("/dev/shm").iterdir() if name[1:] in path.name or semaphore[1:] in path.name]
        assert not left, f"killed before instruction {instruction}"
    assert not list(Path("/dev/shm").glob("rtevo.*")), "half-built segments"


@pytest.mark.slow
def test_a_pipeline_killed_at_random_loses_nothing(ring_name: Name, nursery: Start) -> None:
    writers, relays = nursery(), nursery()
    with (
        Ring.create(ring_name(), tasks.SLOT, 8, ["relay"]) as first,
        Ring.create(ring_name(), tasks.SLOT, 8, ["end"], reader="end") as second,
    ):
        writers.send("restart", 1, 200, 0.02, "write_on", "write_until", first.name, 0)
        relays.send("restart", 2, 100, 0.02, "relay", "relay", first.name, "relay", second.name)
        seen, repeated = -1, 0
        while True:
            try:
                with second.read(timeout_s=60) as slot:
                    value = tasks.check(slot)
            except WriterLost:
                relays.check()
                writers.check()
                continue  # killed; the next one follows
            except RingClosed:
                break
            assert value in (seen, seen + 1)
            repeated += value == seen  # a relay was killed between its write and its release
            seen = value
        assert writers.answer() == 200
        assert relays.answer() > 0
        assert repeated <= 100
        assert seen + 1 == first.published > 200


def test_a_dead_writer_is_noticed_and_replaced(ring_name: Name, nursery: Start) -> None:
    worker = nursery()
    with Ring.create(ring_name(), tasks.SLOT, 4, ["a"], reader="a") as ring:
        pid = worker.ask("start", "hold", ring.name, "writer")
        with ring.read(timeout_s=60) as slot:
            assert tasks.check(slot) == 0
        os.kill(pid, signal.SIGKILL)  # a zombie from now on: nobody has waited for it
        with pytest.raises(WriterLost, match=f"its writer, process {pid}, is dead") as caught, ring.read(timeout_s=60):
            pass
        assert (caught.value.pid, caught.value.name) == (pid, "writer")
        assert wait_any([ring], timeout_s=60) == [ring]
        with pytest.raises(WriterLost), ring.read(timeout_s=60):
            pass
        assert worker.ask("wait", pid) == KILLED
        with Ring.attach(ring.name, writer=True) as writer:
            with writer.reserve() as slot:
                tasks.fill(slot, 1)
            with ring.read(timeout_s=0) as slot:
                assert tasks.check(slot) == 1


def test_a_dead_critical_reader_is_noticed(ring_name: Name, nursery: Start) -> None:
    worker = nursery()
    with Ring.create(ring_name(), tasks.SLOT, 2, ["a", "b"], writer=True, reader="b") as ring:

        def write(value: int) -> None:
            with ring.reserve(timeout_s=60) as slot:
                tasks.fill(slot, value)
            with ring.read(timeout_s=0):
                pass

        pid = worker.ask("start", "hold", ring.name, "a")
        for value in range(3):  # one more than there are slots: it has read the first
            write(value)
        os.kill(pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(ReaderLost, match=rf"critical reader 'a', process {pid}, is dead"):
                write(3)
        worker.ask("wait", pid)


def test_a_dead_owner_is_noticed_once(ring_name: Name, nursery: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ring.create(ring_name(), tasks.SLOT, 2, ["a"], writer=True, reader="a") as ring:
        monkeypatch.setattr("rtevo.shm.ends.process.alive", lambda who: False)
        with pytest.raises(OwnerLost, match="its owner, process"), ring.read(timeout_s=60):
            pass
        with pytest.raises(WriterLost), ring.read(timeout_s=60):
            pass
        with ring.reserve() as slot:  # one can go on
            tasks.fill(slot, 1)
        with ring.read(timeout_s=0) as slot:
            assert tasks.check(slot) == 1


def test_a_process_that_got_the_number_of_a_dead_one_is_another(ring_name: Name) -> None:
    with Ring.create(ring_name(), tasks.SLOT, 2, ["a"], reader="a") as ring:
        from rtevo.shm import process
        from rtevo.shm.layout import PRODUCER, WRITER

        impostor = process.identity(os.getpid(), (process.own_identity() & process.START_MASK) + 1)
        ring._segment.store(PRODUCER + WRITER, impostor)
        assert not ring.statistics().writer_alive
        with pytest.raises(WriterLost), ring.read(timeout_s=60):
            pass
        with Ring.attach(ring.name, writer=True):
            assert ring.statistics().writer_alive
        with pytest.raises(RingClosed), ring.read(timeout_s=0):
            pass


@pytest.mark.slow
def test_hundreds_of_thousands_of_messages_between_processes(ring_name: Name, nursery: Start) -> None:
    count, readers = 300_000, 3
    names = [f"r{index}" for index in range(readers)]
    workers = [nursery() for _ in range(readers + 1)]
    with Ring.create(ring_name(), tasks.SLOT, 256, [*names, Reader("watch", critical=False)]) as ring:
        pids = [worker.ask("start", "verify", ring.name, name, count) for worker, name in zip(workers, names, strict=False)]
        pids.append(workers[-1].ask("start", "write_until", ring.name, count - 1))
        for worker, pid in zip(workers, pids, strict=True):
            assert worker.ask("wait", pid) == 0
        assert ring.statistics().consumed == {**dict.fromkeys(names, count), "watch": 0}


@pytest.mark.slow
def test_an_overtaken_observer_never_sees_a_torn_message(ring_name: Name, nursery: Start) -> None:
    count, workers = 200_000, [nursery(), nursery()]
    with Ring.create(ring_name(), tasks.SLOT, 3, [Reader("watch", critical=False)]) as ring:
        pids = [
            workers[0].ask("start", "observe", ring.name, "watch", count),
            workers[1].ask("start", "write_until", ring.name, count - 1),
        ]
        assert [worker.ask("wait", pid) for worker, pid in zip(workers, pids, strict=True)] == [0, 0]


def test_no_free_slot_in_time_names_the_reader_that_never_came(ring_name: Name) -> None:
    with Ring.create(ring_name(), tasks.SLOT, 2, ["a"], writer=True) as ring:
        for value in range(2):
            with ring.reserve() as slot:
                tasks.fill(slot, value)
        with pytest.raises(RingTimeout, match=r"critical reader 'a' \(not attached\)"), ring.reserve(timeout_s=0):
            pass
