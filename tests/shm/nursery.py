"""A process without threads that forks workers quickly; they attach to rings by name and are killed at chosen or random points.

Run as a script. Commands come on standard input, one JSON list per line, ``[task, argument...]``; each answer is one line. ``start``
forks a worker and answers with its process id; ``wait`` reaps it and answers with its exit status (-9: killed by SIGKILL).
``restart`` starts a task again and again, kills it (SIGKILL) at a random moment each time, and then starts one that may end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

import rtevo.shm
from rtevo.shm import Reader, Ring, RingClosed, RingInUse, RingOverrun, RingPermission, WriterLost, clean

SLOT = np.dtype([("value", "<i8"), ("data", "<u4", (64,))], align=True)
IN_USE = 3  # exit status: the name, or the role, was taken
SOURCE = os.path.dirname(rtevo.shm.__file__)


_PATTERNS = np.random.default_rng(0).integers(0, 2**32, (1021, 64), dtype="<u4")  # 1021 is a prime: no ring has that many slots
_BYTES = [pattern.tobytes() for pattern in _PATTERNS]


def fill(slot: np.void, value: int) -> None:
    """Write a message of which every byte depends on its value."""
    slot["value"] = value
    slot["data"] = _PATTERNS[value % 1021]


def check(slot: np.void) -> int:
    """Return a message's value, having looked at every byte."""
    found = slot.tobytes()
    value = int.from_bytes(found[:8], "little", signed=True)
    assert found[8:] == _BYTES[value % 1021], f"torn message {value}: {slot['data']}"
    return value


def die_at(opcode: int, where: str) -> Callable[..., Any]:
    """Return a trace function that kills this process before the given bytecode instruction (from 0) of rtevo.shm, or of one file."""
    left = opcode
    source = os.path.join(SOURCE, where)

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal left
        if event == "call":
            if not frame.f_code.co_filename.startswith(source):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        if event == "opcode":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    return trace


def write(name: str, count: int) -> None:
    """Write messages that count on from what has been published; leave without a word."""
    ring = Ring.attach(name, writer=True)
    for value in range(ring.statistics().published, ring.statistics().published + count):
        with ring.reserve() as slot:
            fill(slot, value)


def write_on(name: str, _last: int) -> None:
    """Write messages until killed."""
    write(name, 1 << 62)


def write_until(name: str, last: int) -> None:
    """Write messages up to a value, then end the stream."""
    with Ring.attach(name, writer=True) as ring:
        for value in range(ring.statistics().published, last + 1):
            with ring.reserve() as slot:
                fill(slot, value)


def read(name: str, reader: str, count: int) -> None:
    """Read messages; leave without a word."""
    ring = Ring.attach(name, reader)
    for _ in range(count):
        with ring.read() as slot:
            check(slot)


def relay(name: str, reader: str, out: str) -> None:
    """Copy messages from ring to ring until the stream ends."""
    with contextlib.suppress(RingClosed), Ring.attach(name, reader) as source, Ring.attach(out, writer=True) as sink:
        # RingClosed: a predecessor was killed after it had ended the stream
        while not (source.closed and not source.lag(reader)):
            with contextlib.suppress(WriterLost):  # killed, and about to be replaced
                for message in source:
                    with sink.reserve() as slot:
                        fill(slot, check(message))


def verify(name: str, reader: str, count: int) -> None:
    """Read messages to the end of the stream; each must be the next."""
    with Ring.attach(name, reader) as ring:
        seen = 0
        for message in ring:
            assert check(message) == seen
            seen += 1
        assert seen == count, f"{seen} of {count} messages"


def observe(name: str, reader: str, count: int) -> None:
    """Follow as an observer that is overtaken all the time: every message is accounted for, as read, as lost, or as overwritten."""
    position = overwritten = skipped = 0
    with Ring.attach(name, reader) as ring:
        while True:
            try:
                with ring.read() as slot:
                    value = check(slot)  # fails if the slot is overwritten meanwhile; the ring then says why
            except RingOverrun:
                position, overwritten, skipped = position + ring.lost + 1, overwritten + 1, skipped + ring.lost
                continue
            except RingClosed:
                break
            position, skipped = position + ring.lost, skipped + ring.lost
            assert value == position, f"expected message {position}, got {value}"
            position += 1
        lost = ring.statistics().overruns[reader]
    assert position == count, f"{position} of {count} messages accounted for"
    assert lost == overwritten + skipped > 0


def own(name: str, semaphore: str) -> None:
    """Make two rings that share a semaphore, use them, and remove them."""
    readers = [Reader("a", semaphore=semaphore), Reader("b", critical=False)]
    with (
        Ring.create(f"{name}x", SLOT, 4, readers, writer=True, reader="a") as one,
        Ring.create(f"{name}y", SLOT, 4, readers, writer=True, reader="a") as two,
    ):
        for ring in (one, two):
            with ring.reserve() as slot:
                fill(slot, 1)


def own_on(name: str, semaphore: str) -> None:
    """Make and remove rings until killed, in contention with others."""
    while True:
        with contextlib.suppress(RingInUse):
            own(name, semaphore)


def own_and_hold(name: str) -> None:
    """Make a ring; then wait to be killed."""
    with Ring.create(name, SLOT, 4, ["a"]):
        signal.pause()


def as_nobody(name: str) -> None:
    """As an unprivileged user: attaching and creating are refused, listing and cleaning leave the ring alone."""
    os.setgid(65534)
    os.setuid(65534)
    for call in (lambda: Ring.attach(name), lambda: Ring.create(name, SLOT, 4)):
        try:
            call()
        except RingPermission as error:
            if "belongs to another user" not in str(error):
                raise
        else:
            raise AssertionError("not refused")
    assert name not in clean()


def hold(name: str, role: str) -> None:
    """Attach and say so by a message or by reading one; then wait to be killed."""
    ring = Ring.attach(name, writer=True) if role == "writer" else Ring.attach(name, role)
    if role == "writer":
        with ring.reserve() as slot:
            fill(slot, 0)
    else:
        with ring.read():
            pass
    signal.pause()


TASKS: dict[str, Callable[..., None]] = {
    task.__name__: task for task in (write, write_on, own_on, write_until, read, relay, verify, observe, own, own_and_hold, hold, as_nobody)
}


def run(task: str, arguments: list[Any], kill_at: tuple[int, str] | None = None) -> int:
    """Fork a worker; return its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if kill_at is not None:
            sys.settrace(die_at(*kill_at))
        TASKS[task](*arguments)
        sys.settrace(None)
        status = 0
    except RingInUse:
        status = IN_USE
    except BaseException:
        sys.settrace(None)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def reap(pid: int) -> int:
    """Wait for a worker's end; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(pid: int, delay_s: float) -> int:
    """Run a worker for a time, then send it SIGKILL at a random instruction; return its exit status."""
    worker = os.pidfd_open(pid)
    select.select([worker], [], [], delay_s)  # until it ends, or that long
    os.kill(pid, signal.SIGKILL)  # where it has ended: to nobody, since it has not been waited for
    os.close(worker)
    return reap(pid)


def restart(seed: int, rounds: int, longest_s: float, task: str, last_task: str, *arguments: Any) -> int:
    """Kill a task at random moments, `rounds` times, then let another finish; return how many of them were killed before their end."""
    rng = random.Random(seed)
    killed = 0
    for _ in range(rounds):
        status = kill_after(run(task, list(arguments)), rng.uniform(1e-4, longest_s))
        assert status in (0, IN_USE, -signal.SIGKILL), f"{task}: exit status {status}"
        killed += status < 0
    while (status := reap(run(last_task, list(arguments)))) == IN_USE:
        pass
    assert status == 0, f"{last_task}: exit status {status}"
    return killed


def main() -> None:
    """Serve commands until standard input closes."""
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "start":
            answer: Any = run(arguments[0], arguments[1:])
        elif command == "start_and_kill_at":
            answer = run(arguments[2], arguments[3:], kill_at=(arguments[0], arguments[1]))
        elif command == "wait":
            answer = reap(arguments[0])
        else:
            answer = restart(*arguments)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
