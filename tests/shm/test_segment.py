"""Names, owners, and what is left behind: who may take, list and remove what; and every refusal says what to do."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import posix_ipc
import pytest

from rtevo.shm import (
    OwnerLost,
    Reader,
    Ring,
    RingClosed,
    RingInUse,
    RingMismatch,
    RingMissing,
    RingSpace,
    RingTimeout,
    RingUnsupported,
    clean,
)
from rtevo.shm.__main__ import main
from rtevo.shm.errors import RingError
from rtevo.shm.segment import list_segments

Name = Callable[[], str]
Start = Callable[[], Any]
SLOT = np.dtype([("value", "<i8")])
SHM = Path("/dev/shm")


def _kill(worker: Any, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert worker.ask("wait", pid) == -signal.SIGKILL


def _conditions(capsys: pytest.CaptureFixture[str]) -> str:
    assert main([]) == 0
    return capsys.readouterr().out


def _owned(worker: Any, name: str) -> int:
    """Start a process that owns a ring; return its id when the ring is there."""
    pid = int(worker.ask("start", "own_and_hold", name))
    while True:
        try:
            Ring.attach(name).close()
        except RingMissing:
            continue
        return pid


def test_the_name_of_a_live_ring_is_refused(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4) as ring:
        with pytest.raises(RingInUse, match=f"in use by process {os.getpid()}, which is alive"):
            Ring.create(ring.name, SLOT, 4)
        assert Ring.attach(ring.name).slots == 4


def test_a_dead_owners_ring_is_replaced_and_its_members_can_go_on(
    ring_name: Name, nursery: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    worker, name = nursery(), ring_name()
    pid = _owned(worker, name)
    with Ring.attach(name, "a") as reader:
        assert f"{name}  live, open: owner process {pid};" in _conditions(capsys)
        _kill(worker, pid)
        assert f"{name}  orphaned, open: owner process {pid} (dead);" in _conditions(capsys)
        assert name not in clean()  # this process is still in it
        with pytest.raises(OwnerLost, match="left by a dead session"):
            Ring.attach(name)
        with pytest.raises(OwnerLost, match="no process will remove the ring"), reader.read(timeout_s=60):
            pass
        with pytest.raises(RingTimeout), reader.read(timeout_s=0):
            pass
        with Ring.create(name, SLOT, 8, ["a"]) as ring:
            assert ring.slots == 8
            assert reader.slots == 4
        with pytest.raises(RingMissing):
            Ring.attach(name)


def test_clean_removes_the_dead_and_leaves_the_living(ring_name: Name, nursery: Start, capsys: pytest.CaptureFixture[str]) -> None:
    worker, name, semaphore = nursery(), ring_name(), ring_name()
    _kill(worker, _owned(worker, name))
    posix_ipc.Semaphore(semaphore, posix_ipc.O_CREAT).close()
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as ring:
        assert main(["clean"]) == 0
        report = capsys.readouterr().out
        assert "removed" in report or "nothing to remove" in report
        assert ring.name not in report
        # another test run, or a session, may have cleaned before this one
        assert [path.name for path in SHM.iterdir() if name[1:] in path.name or semaphore[1:] in path.name] == []
        Ring.attach(ring.name, "a").close()
        assert f"{ring.name}  live" in _conditions(capsys)


def test_a_dead_ring_is_listed_as_stale(ring_name: Name, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], reader="a") as ring, monkeypatch.context() as patch:
        patch.setattr("rtevo.shm.process.alive", lambda who: False)
        text = _conditions(capsys)
        assert f"{ring.name}  stale, open: owner process {os.getpid()} (dead)" in text
        assert f"critical 'a': process {os.getpid()} (dead)" in text


def test_a_semaphore_is_removed_with_the_last_ring_that_uses_it(ring_name: Name) -> None:
    shared = ring_name()
    one = Ring.create(ring_name(), SLOT, 4, [Reader("a", semaphore=shared)])
    two = Ring.create(ring_name(), SLOT, 4, [Reader("a", semaphore=shared)])
    one.close()
    Ring.attach(two.name, "a").close()
    two.close()
    assert not (SHM / f"sem.{shared[1:]}").exists()


@pytest.mark.slow
def test_owners_that_contend_for_a_name_and_are_killed(ring_name: Name, nursery: Start) -> None:
    name, semaphore = ring_name(), ring_name()
    workers = [nursery(), nursery()]
    for seed, worker in enumerate(workers):
        worker.send("restart", seed, 100, 0.03, "own_on", "own", name, semaphore)
    assert [worker.answer() for worker in workers] == [100, 100]
    clean()


def test_what_cannot_be_judged_is_left_alone(ring_name: Name, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], reader="a") as ring:
        monkeypatch.setattr("rtevo.shm.process.namespace", lambda: 1)
        assert f"{ring.name}  foreign" in _conditions(capsys)
        assert ring.name not in clean()
        with pytest.raises(RingMismatch, match=r"PID namespace \(container\)"):
            Ring.attach(ring.name)
        with pytest.raises(RingInUse, match="another PID namespace"):
            Ring.create(ring.name, SLOT, 4)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0, b"NOTARING", "magic"),
        (8, b"\x07", "layout version"),
        (16, b"\x01", "size of the segment in bytes"),
        (24, b"\x05", "slots"),
        (40, b"\x01", "stride"),
        (112, b"\x00" * 16, "hash of the description"),
    ],
)
def test_a_segment_that_is_no_ring_of_ours(
    ring_name: Name, offset: int, value: bytes, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as ring:
        path = SHM / ring.name[1:]
        with path.open("r+b") as file:
            before = os.pread(file.fileno(), len(value), offset)
            os.pwrite(file.fileno(), value, offset)
            with pytest.raises(RingMismatch, match=f"ring {ring.name}: {field}: expected .*, found ") as caught:
                Ring.attach(ring.name)
            assert caught.value.field == field
            assert f"{ring.name}  unreadable: ring {ring.name}: {field}" in _conditions(capsys)
            assert ring.name not in clean()
            with pytest.raises(RingMismatch):
                Ring.create(ring.name, SLOT, 4)
            os.pwrite(file.fileno(), before, offset)


def test_a_file_that_is_too_short(ring_name: Name) -> None:
    name = ring_name()
    (SHM / name[1:]).write_bytes(b"RTEV")
    with pytest.raises(RingMismatch, match="magic"):
        Ring.attach(name)
    (SHM / name[1:]).unlink()


def test_a_ring_removed_by_hand_is_not_removed_again_under_its_name(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as first:
        (SHM / first.name[1:]).unlink()
        with Ring.create(first.name, SLOT, 4, ["a"]) as second:
            first.close()
            Ring.attach(second.name, "a").close()


def test_full_memory_says_how_much_and_what_to_do(ring_name: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = np.dtype([("data", "u1", (1 << 30,))])
    with pytest.raises(
        RingSpace, match=r"4096 slots of 1073741824 bytes need 4194304\.\d MiB .* /dev/shm has .* 'python -m rtevo.shm clean'"
    ):
        Ring.create(ring_name(), huge, 4096)

    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(RingSpace, match=r"need 0\.0 MiB"):
        Ring.create(ring_name(), SLOT, 4)
    assert not list(SHM.glob(f"rtevo.{os.getpid()}.*"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_ring(ring_name: Name, nursery: Start) -> None:
    worker = nursery()
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as ring:
        assert worker.ask("wait", worker.ask("start", "as_nobody", ring.name)) == 0
        Ring.attach(ring.name, "a").close()


def test_platforms_without_timed_waits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix_ipc, "SEMAPHORE_TIMEOUT_SUPPORTED", False)
    for call in (lambda: Ring.create("/rtevo-x", SLOT, 4), lambda: Ring.attach("/rtevo-x"), clean, list_segments):
        with pytest.raises(RingUnsupported, match="sem_timedwait"):
            call()


@pytest.fixture
def locked() -> Iterator[Callable[[Path], None]]:
    """Return a function that locks a file or folder, as another process would."""
    with ExitStack() as stack:

        def lock(path: Path) -> None:
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)

        yield lock


def test_a_locked_registry_is_reported(ring_name: Name, monkeypatch: pytest.MonkeyPatch, locked: Callable[[Path], None]) -> None:
    clean()  # the lock's file is there
    locked(SHM / f".rtevo-lock-{os.getuid()}")
    monkeypatch.setattr("rtevo.shm.segment.LOCK_S", 0)  # from here on: others take the lock for a moment, too
    with pytest.raises(RingError, match="another process has kept it locked"):
        Ring.create(ring_name(), SLOT, 4)


def test_anybodys_lock_on_the_folder_is_nothing_to_a_ring(ring_name: Name, locked: Callable[[Path], None]) -> None:
    locked(SHM)  # as long as the test lasts
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as ring:
        assert (SHM / ring.name[1:]).exists()
    assert not (SHM / ring.name[1:]).exists()


def test_a_ring_goes_though_the_registry_is_locked(
    ring_name: Name, monkeypatch: pytest.MonkeyPatch, locked: Callable[[Path], None]
) -> None:
    monkeypatch.setattr("rtevo.shm.segment.GIVE_UP_S", 0)
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as ring:
        locked(SHM / f".rtevo-lock-{os.getuid()}")
    assert not (SHM / ring.name[1:]).exists()


def test_a_ring_whose_owner_stopped_in_the_middle_of_making_it(ring_name: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtevo.shm.layout import BUILDING, OPEN, PRODUCER, STATE

    monkeypatch.setattr("rtevo.shm.ring.CHECK_S", 0)
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as ring:
        ring._segment.store(PRODUCER + STATE, BUILDING)
        with pytest.raises(RingError, match="never finished"):
            Ring.attach(ring.name)
        ring._segment.store(PRODUCER + STATE, OPEN)


def test_the_list_shows_counts(ring_name: Name, capsys: pytest.CaptureFixture[str]) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a", Reader("watch", critical=False)], writer=True, reader="a") as ring:
        for _ in range(3):
            with ring.reserve():
                pass
        with ring.read():
            pass
        text = _conditions(capsys)
        assert f"writer process {os.getpid()}: 3 published, 2 of 4 slots held, waited 0 times" in text
        assert f"critical 'a': process {os.getpid()}; 1 consumed, 2 behind, 0 lost" in text
        assert "observer 'watch': not attached; 0 consumed, 3 behind" in text
        assert main(["--json"]) == 0
        assert f'"name": "{ring.name}"' in capsys.readouterr().out


def test_a_forked_copy_gives_nothing_up(ring_name: Name) -> None:
    ring = Ring.create(ring_name(), SLOT, 4, ["a"], writer=True)
    reader = Ring.attach(ring.name, "a")
    for handle in (reader, ring):
        copy = object.__new__(Ring)
        copy.__dict__.update(handle.__dict__)
        copy._pid = -1  # as a fork would find it
        copy.close()
    with ring.reserve():
        pass
    assert reader.poll()
    ring.close()
    with reader.read():
        pass
    with pytest.raises(RingClosed), reader.read():
        pass
    reader.close()
