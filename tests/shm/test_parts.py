"""The small parts: atomic operations, identities, semaphores, arrays of varying shape, the cost of importing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtevo.shm import Reader, Ring, RingTimeout, native, process
from rtevo.shm.errors import RingMissing, RingUnsupported
from rtevo.shm.pool import Pool
from rtevo.shm.wakeup import Wakeup, make_semaphore, remove_semaphore

Name = Callable[[], str]


def test_atomic_operations() -> None:
    words = np.zeros(5, np.uint64)
    at = int(words.ctypes.data)
    native.store(at, 2**64 - 1)
    assert native.load(at) == 2**64 - 1
    assert native.compare_and_swap(at, 5, 6) == 2**64 - 1
    assert native.compare_and_swap(at, 2**64 - 1, 6) == 2**64 - 1
    assert native.load(at) == 6
    assert native.begin(at, 9, at + 32) == 0
    assert words.tolist() == [9, 0, 0, 0, 0]
    assert native.intact_before(at, 9) != 0
    native.publish(at, 9, 5, at + 24, 3, at + 32, 77)
    assert words.tolist() == [9, 9, 5, 3, 77]
    assert native.intact_before(at, 9) == 0 == native.intact_after(at, 9)
    assert native.intact_after(at, 8) != 0
    words[4] = 1
    assert native.begin(at, 10, at + 32) == 1
    assert words[0] == 9


@pytest.mark.parametrize(
    ("triple", "acquire", "release"),
    [("x86_64-unknown-linux-gnu", "movq", "movq"), ("aarch64-unknown-linux-gnu", "ldar|ldapr", "stlr")],
)
def test_the_machine_code_orders_memory(triple: str, acquire: str, release: str) -> None:
    import re

    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(opt=2)
    module = llvm.parse_assembly(native.SOURCE)
    module.triple = triple
    text = machine.emit_assembly(module)
    bodies = dict(re.findall(r"^(\w+):.*?\n(.*?)\.Lfunc_end", text, re.DOTALL | re.MULTILINE))
    assert re.search(acquire, bodies["load"])
    assert re.search(release, bodies["store"])
    assert len(re.findall(release, bodies["publish"])) >= 2
    assert re.search(acquire, bodies["lags"])
    if "aarch64" in triple:
        assert re.search("dmb\tish", bodies["begin"])
        assert re.search("dmb\tish", bodies["intact_after"])


def test_identities() -> None:
    own = process.own_identity()
    assert process.pid_of(own) == os.getpid()
    assert process.alive(own)
    assert not process.alive(0)
    assert not process.alive(process.identity(os.getpid(), 1))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = process._state_and_start(child.pid)
    assert found is not None
    identity = process.identity(child.pid, found[1])
    assert process.alive(identity)
    child.kill()
    while (state := process._state_and_start(child.pid)) is not None and state[0] != "Z":
        pass
    assert not process.alive(identity)  # a zombie
    child.communicate()
    assert not process.alive(identity)


def test_a_process_that_proc_hides_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(pid: int) -> None:
        return None

    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(process, "_state_and_start", hidden)
    monkeypatch.setattr(os, "kill", kill)
    assert process.alive(process.identity(77, 1))


def test_no_proc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(RingUnsupported, match="rings need Linux"):
        process.namespace()


@pytest.fixture(params=["make_semaphore", "sem_open"])
def wakeup(ring_name: Name, request: pytest.FixtureRequest) -> Iterator[Wakeup]:
    name = ring_name()
    if request.param == "sem_open":
        Wakeup(name, create=True)
    for _ in range(2):  # the second finds it there
        make_semaphore(name, f"/rtevo.{os.getpid()}")
    yield Wakeup(name)
    remove_semaphore(name)
    remove_semaphore(name)  # twice is harmless


@pytest.mark.parametrize("clock", [True, False])
def test_posts_wake(wakeup: Wakeup, monkeypatch: pytest.MonkeyPatch, clock: bool) -> None:
    if not clock:
        wakeup._pointer = None  # a C library without sem_clockwait
    assert not wakeup.wait(0)
    assert not wakeup.wait(0.001)
    wakeup.post()
    wakeup.post()
    assert wakeup.wait(0)
    assert wakeup.wait(60)
    assert not wakeup.wait(0)
    thread = threading.Thread(target=wakeup.post)
    thread.start()
    assert wakeup.wait(60)
    thread.join()


def test_a_semaphore_made_here_is_one_that_sem_open_makes(ring_name: Name) -> None:
    names = [ring_name(), ring_name()]
    make_semaphore(names[0], f"/rtevo.{os.getpid()}")
    Wakeup(names[1], create=True)
    made, opened = (Path("/dev/shm", f"sem.{name[1:]}") for name in names)
    assert made.read_bytes() == opened.read_bytes()
    assert made.stat().st_mode == opened.stat().st_mode
    for name in names:
        remove_semaphore(name)


def test_too_many_posts_are_enough(wakeup: Wakeup, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow() -> None:
        raise OSError(errno.EOVERFLOW, "full")

    monkeypatch.setattr(wakeup, "_release", overflow)
    wakeup.post()


def test_a_missing_semaphore(ring_name: Name) -> None:
    with pytest.raises(RingMissing, match="has been removed"):
        Wakeup(ring_name())


class _Interrupted(Exception):  # noqa: N818
    pass


def test_a_signal_handlers_exception_ends_a_wait(ring_name: Name) -> None:
    def handler(number: int, frame: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Ring.create(ring_name(), np.dtype([("x", "i4")]), 2, ["a"], writer=True, reader="a") as ring:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(_Interrupted), ring.read():
                pass
            with ring.reserve() as slot:
                slot["x"] = 5
            with ring.read(timeout_s=0) as slot:
                assert slot["x"] == 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_writer_interrupted_while_publishing_goes_on_with_the_sequence(ring_name: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ring.create(ring_name(), np.dtype([("x", "i4")]), 4, ["a"], writer=True, reader="a") as ring:

        def interrupt() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            assert ring._writer is not None
            patch.setattr(ring._writer._wake_readers[0], "post", interrupt)
            with pytest.raises(KeyboardInterrupt), ring.reserve() as slot:
                slot["x"] = 1
        for value in (2, 3, 4):
            with ring.reserve(timeout_s=0) as slot:
                slot["x"] = value
        with pytest.raises(RingTimeout), ring.reserve(timeout_s=0):
            pass
        for value in (1, 2, 3, 4):
            with ring.read(timeout_s=0) as slot:
                assert slot["x"] == value


def test_the_slot_released_last_is_filled_next(ring_name: Name) -> None:
    def addresses(ring: Ring, observer: Ring | None, count: int) -> int:
        found = set()
        for _ in range(count):
            with ring.reserve(timeout_s=0) as slot:
                found.add(slot["x"].ctypes.data)
            for reader in (ring, observer):
                if reader is not None:
                    with reader.read(timeout_s=0):
                        pass
        return len(found)

    slot_dtype = np.dtype([("x", "i4", (4,))])
    with Ring.create(ring_name(), slot_dtype, 4, ["a"], writer=True, reader="a") as ring:
        assert addresses(ring, None, 9) == 1
    readers = ["a", Reader("watch", critical=False)]
    with Ring.create(ring_name(), slot_dtype, 4, readers, writer=True, reader="a") as ring, Ring.attach(ring.name, "watch") as watch:
        assert addresses(ring, watch, 9) == 1
        assert addresses(ring, None, 9) == 4  # it falls behind: nothing that it has not read is overwritten early
        while ring.lag("watch") > 1:
            with watch.read(timeout_s=0):
                pass
        assert addresses(ring, watch, 5) == 1 + 1


@given(data=st.data(), slots=st.integers(1, 9), first=st.sampled_from([0, 3, 2**64 - 5]))
def test_the_pool_against_a_plain_search(data: st.DataObject, slots: int, first: int) -> None:
    modulus = 2**64 // slots * slots
    head = first % modulus
    pool = Pool(modulus, (), [((head - modulus // 2) % modulus, slot) for slot in range(slots)])
    contents: dict[int, int] = {}  # slot -> its message's number since the start
    critical_tail = tail = published = 0
    for _ in range(40):
        critical_tail = data.draw(st.integers(critical_tail, published))
        tail = data.draw(st.integers(min(tail, critical_tail), critical_tail))
        slot = pool.take(head, published - critical_tail, published - tail)
        free = {each: contents.get(each, -slots) for each in range(slots) if contents.get(each, -slots) < critical_tail}
        if not free:
            assert slot is None
            continue
        released = [number for number in free.values() if number < tail]
        assert slot is not None
        assert free[slot] == (max(released) if released else min(free.values()))
        contents[slot] = published
        pool.publish(head, slot)
        head, published = (head + 1) % modulus, published + 1


def test_importing_is_cheap() -> None:
    code = "import sys, rtevo.shm; print([name for name in ('numba', 'torch', 'scipy', 'multiprocessing') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
