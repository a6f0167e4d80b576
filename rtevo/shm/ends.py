"""The two ends of a ring: the writer's and a reader's. Each belongs to one process, and is used by one of its threads at a time."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NoReturn

import numpy as np

from rtevo.shm import native, process
from rtevo.shm.errors import (
    OwnerLost,
    ReaderLost,
    RingClosed,
    RingError,
    RingInUse,
    RingMismatch,
    RingOverrun,
    RingPeerLost,
    RingTimeout,
    WriterLost,
)
from rtevo.shm.layout import (
    BEGIN,
    BROKEN,
    END,
    ENDED,
    HEAD,
    LINE,
    LOST,
    MESSAGES,
    OPEN,
    PLACE,
    PRODUCER,
    PUBLISHED_NS,
    READER,
    READER_NS,
    READERS,
    SPREAD,
    STATE,
    TAIL,
    WAITS,
    WAKE_MAX_NS,
    WAKE_NS,
    WRITER,
    WRITER_NS,
    WRITER_WAITS,
)
from rtevo.shm.pool import Pool
from rtevo.shm.segment import Segment
from rtevo.shm.wakeup import CHECK_S, Wakeup

__all__ = ["ReaderEnd", "WriterEnd", "claim"]

_CHECK_NS = int(CHECK_S * 1e9)
_WRITER_NS = (PRODUCER + WRITER_NS) // 8
_WRITER_WAITS = (PRODUCER + WRITER_WAITS) // 8


def claim(segment: Segment, offset: int, role: str) -> int:
    """Claim a role for this process.

    Returns
    -------
    int
        Identity of the dead process that held the role before; 0: none.

    Raises
    ------
    RingInUse
        A live process holds the role.
    """
    own = process.own_identity()
    while True:
        found = segment.load(offset)
        if found == own or process.alive(found):
            who = "this process" if found == own else f"process {process.pid_of(found)}"
            raise RingInUse(f"ring {segment.name}: {role} is {who} already; only one is possible at a time")
        if segment.swap(offset, found, own):
            return found


class _End:
    """Common parts of both ends: deadlines, and detection of lost peers."""

    def __init__(self, segment: Segment, wakeup: Wakeup) -> None:
        self.segment = segment
        self.layout = segment.layout
        self.wakeup = wakeup
        self.modulus = self.layout.modulus
        self.holding = False
        self._timeout_s: float | None = None
        self._waited_ns = 0
        self._spent_ns = 0
        self._woken_ns = 0
        self._checked_ns = time.monotonic_ns()
        self._owner_reported = False
        self._head_at = segment.address + PRODUCER + HEAD
        self._state_at = segment.address + PRODUCER + STATE
        self._slots = self.layout.slots
        self._stamps_offset = self.layout.stamps
        self._stamps = segment.address + self._stamps_offset

    def sleep(self, deadline_ns: int | None) -> bool:
        """Sleep until woken, the next check of the peers, or the deadline; return False if the deadline has passed."""
        now = time.monotonic_ns()
        if deadline_ns is None:
            self.wakeup.wait(CHECK_S)
            return True
        if now >= deadline_ns:
            return False
        self.wakeup.wait(min(CHECK_S, (deadline_ns - now) / 1e9))
        return True

    def lost_peer(self) -> RingPeerLost | None:
        """Check, at most four times a second, whether a relevant process is gone."""
        now = time.monotonic_ns()
        if now - self._checked_ns < _CHECK_NS:
            return None
        self._checked_ns = now
        owner = self.layout.owner
        if not self._owner_reported and not process.alive(owner):
            self._owner_reported = True
            pid = process.pid_of(owner)
            text = f"ring {self.segment.name}: its owner, process {pid}, is dead; no process will remove the ring or restart its members"
            return OwnerLost(text, "owner", pid)
        return self._lost_other()

    def _lost_other(self) -> RingPeerLost | None:
        raise NotImplementedError

    def _deadline(self) -> int | None:
        return None if self._timeout_s is None else time.monotonic_ns() + int(self._timeout_s * 1e9)

    def _enter(self, what: str) -> None:
        if self.holding:
            raise RingError(f"ring {self.segment.name}: a slot is being {what} already; leave its with block first")


class WriterEnd(_End):
    """The writer's end; its own context manager for one slot."""

    def __init__(self, segment: Segment, wakeup: Wakeup, readers: list[Wakeup]) -> None:
        super().__init__(segment, wakeup)
        self._wake_readers = readers
        if segment.load(PRODUCER + STATE) == ENDED:
            self._raise_ended()
        claim(segment, PRODUCER + WRITER, "its writer")
        segment.swap(PRODUCER + STATE, BROKEN, OPEN)
        self._critical = sum(1 << index for index, each in enumerate(self.layout.readers) if each.critical)
        self._gap = 2**64 - self.modulus
        self._lines = segment.address + READERS
        self._count = len(self.layout.readers)
        self._head = 0
        self._slot = -1  # of the message being written
        self._sure = False  # whether head, slot and pool are valid
        self._pool = Pool(self.modulus, (), ())
        self._restore()

    def reserve(self, timeout_s: float | None) -> WriterEnd:
        """Prepare for one ``with`` block."""
        self._enter("written")
        self._timeout_s = timeout_s
        return self

    def __enter__(self) -> np.void:
        started, self._waited_ns = time.monotonic_ns(), 0
        index = self._choose() if self._sure else None
        if index is None:
            index = self._make_room()
        if native.begin(self._stamps + LINE * index, (self._head + 1) % 2**64, self._state_at) != OPEN:
            self._raise_ended()
        self.holding = True
        slot: np.void = self.segment.slots[index]
        self._spent_ns = time.monotonic_ns() - started - self._waited_ns
        return slot

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.holding = False
        if kind is not None:
            return
        now, sequence, slot = time.monotonic_ns(), self._head, self._slot
        self._sure = False  # if a signal raises in here, the next block starts from the shared state
        place = self._stamps + LINE * (sequence % self._slots) + PLACE
        following = (sequence + 1) % self.modulus
        native.publish(self._stamps + LINE * slot, (sequence + 1) % 2**64, now, place, slot, self._head_at, following)
        for each in self._wake_readers:
            each.post()
        self._head, self._slot = following, -1
        self._pool.publish(sequence, slot)
        self._sure = True
        cost_ns = time.monotonic_ns() - now + self._spent_ns
        self.segment.words[_WRITER_NS] += cost_ns
        self.segment.note_cost(PRODUCER + SPREAD, cost_ns)

    def _lags(self) -> int:
        return native.lags(self._lines, self._count, self._critical, self._head, self._gap)

    def _choose(self) -> int | None:
        if self._slot < 0:  # else the slot of an unpublished block is used again
            lags = self._lags()
            self._sure = False
            slot = self._pool.take(self._head, lags & 0xFFFFFFFF, lags >> 32)
            self._slot = -1 if slot is None else slot
            self._sure = True
            return slot
        return self._slot

    def _restore(self) -> None:
        """Make the pool from the shared state."""
        segment, stamps, slots = self.segment, self._stamps_offset, self._slots
        self._head = head = segment.load(PRODUCER + HEAD)
        held: dict[int, int] = {}
        free = []
        for age in range(min(self._lags() & 0xFFFFFFFF, slots), 0, -1):
            sequence = (head - age) % self.modulus
            held[segment.load(stamps + LINE * (sequence % slots) + PLACE)] = sequence
        for slot in range(slots):
            begun, ended = segment.load(stamps + LINE * slot + BEGIN), segment.load(stamps + LINE * slot + END)
            age = (head - ended + 1) % self.modulus if begun == ended else 0
            if slot not in held:
                free.append((age if 0 < age < self.modulus // 2 else self.modulus // 2, slot))  # damaged or never used: counts as old
        self._pool = Pool(
            self.modulus,
            [(sequence, slot) for slot, sequence in held.items()],
            [((head - age) % self.modulus, slot) for age, slot in sorted(free, reverse=True)],
        )
        self._slot, self._sure = -1, True

    def _raise_ended(self) -> NoReturn:
        raise RingClosed(f"ring {self.segment.name}: the stream has ended; no more messages can be written")

    def _holders(self) -> list[int]:
        """Return the critical readers (by index) that hold all slots; empty if a slot is free."""
        found = []
        for index, reader in enumerate(self.layout.readers):
            line = self.layout.reader_line(index)
            if reader.critical:
                lag = (self._head - self.segment.load(line + TAIL)) % self.modulus
                found += [index] if lag >= self._slots else []
        return found

    def _make_room(self) -> int:
        """Wait for a free slot, and return it."""
        if not self._sure:
            self._restore()
        slot = self._choose()
        if slot is not None:
            return slot
        deadline, began = self._deadline(), time.monotonic_ns()
        self.segment.words[_WRITER_WAITS] += 1
        while True:
            if self.segment.load(PRODUCER + STATE) != OPEN:
                self._raise_ended()
            in_time = self.sleep(deadline)
            slot = self._choose()
            if slot is not None:
                self._waited_ns = time.monotonic_ns() - began
                return slot
            lost = self.lost_peer()
            if lost is not None:
                raise lost
            if not in_time:
                raise RingTimeout(self._full(self._holders()))

    def _full(self, holders: list[int]) -> str:
        names = []
        for index in holders:
            pid = process.pid_of(self.segment.load(self.layout.reader_line(index) + READER))
            names.append(f"'{self.layout.readers[index].name}' ({f'process {pid}' if pid else 'not attached'})")
        return (
            f"ring {self.segment.name}: all {self.layout.slots} slots are full and none became free within {self._timeout_s} s; waiting "
            f"for critical reader {', '.join(names)}"
        )

    def _lost_other(self) -> RingPeerLost | None:
        for index in self._holders():
            who = self.segment.load(self.layout.reader_line(index) + READER)
            if process.pid_of(who) and not process.alive(who) and index in self._holders():
                name, pid = self.layout.readers[index].name, process.pid_of(who)
                text = (
                    f"ring {self.segment.name}: critical reader '{name}', process {pid}, is dead and all {self.layout.slots} slots are "
                    "full; restart it"
                )
                return ReaderLost(text, name, pid)
        return None

    def leave(self, broken: bool) -> None:
        """End the stream (or mark it as broken off), and release the role."""
        if broken:
            self.segment.swap(PRODUCER + STATE, OPEN, BROKEN)
        else:
            self.end()
        self.segment.swap(PRODUCER + WRITER, process.own_identity(), 0)
        for each in self._wake_readers:
            each.post()

    def end(self) -> None:
        """End the stream."""
        self.segment.store(PRODUCER + STATE, ENDED)
        for each in self._wake_readers:
            each.post()


class ReaderEnd(_End):
    """A reader's end; its own context manager for one slot."""

    def __init__(self, segment: Segment, wakeup: Wakeup, writer: Wakeup, index: int) -> None:
        super().__init__(segment, wakeup)
        self._wake_writer = writer
        self.reader = self.layout.readers[index]
        self._line = self.layout.reader_line(index)
        self._tail_at = segment.address + self._line + TAIL
        self._word = self._line // 8
        claim(segment, self._line + READER, f"its reader '{self.reader.name}'")
        self._tail = segment.load(self._line + TAIL)
        self._slot = 0  # slot of the message at the tail, once it is ready
        self._places = self._stamps + PLACE
        self._view = segment.slots[:]
        self._view.flags.writeable = False  # this process may be the writer as well
        self.lost = 0
        self._lost_next = 0  # number lost before the next slot
        self._verdict: RingError | None = None

    def read(self, timeout_s: float | None) -> ReaderEnd:
        """Prepare for one ``with`` block."""
        self._enter("read")
        self._timeout_s = timeout_s
        return self

    def ready(self) -> bool:
        """Return whether there is a message to read."""
        found = native.arrived(self._head_at, self._tail, self._places, self._slots)
        self._slot = found - 1
        return found != 0

    def settled(self) -> bool:
        """Return whether a read would return or raise at once."""
        if self.ready() or native.load(self._state_at) != OPEN:
            return True
        if self._verdict is None:
            self._verdict = self.lost_peer()
        return self._verdict is not None

    def __enter__(self) -> np.void:
        started, waited_ns = time.monotonic_ns(), 0
        if not self.ready():
            waited_ns = self._wait()
        if not self.reader.critical:
            self._catch_up()
        self.lost, self._lost_next = self._lost_next, 0
        self.holding = True
        slot: np.void = self._view[self._slot]
        self._spent_ns = time.monotonic_ns() - started - waited_ns
        return slot

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.holding:
            return
        self.holding = False
        started, sequence = time.monotonic_ns(), self._tail
        torn = not self.reader.critical and native.intact_after(self._stamps + LINE * self._slot, (sequence + 1) % 2**64)
        if self._waited_ns:
            self._note_wait()
        self._release((sequence + 1) % self.modulus)
        words = self.segment.words
        words[self._word + MESSAGES // 8] += 1
        cost_ns = time.monotonic_ns() - started + self._spent_ns
        words[self._word + READER_NS // 8] += cost_ns
        self.segment.note_cost(self._line + SPREAD, cost_ns)
        if torn:
            words[self._word + LOST // 8] += 1
            if kind is None or issubclass(kind, Exception):
                raise RingOverrun(
                    f"ring {self.segment.name}: observer '{self.reader.name}' was overtaken while it read message {sequence}: discard "
                    "the data"
                ) from error

    @property
    def published_ns(self) -> int:
        """Publication time of the message being read."""
        return int(self.segment.words[(self._stamps_offset + LINE * self._slot + PUBLISHED_NS) // 8])

    def _note_wait(self) -> None:
        """Count a wait, and its delay after the publication (before the slot is released and its stamp overwritten)."""
        words, word = self.segment.words, self._word
        words[word + WAITS // 8] += 1
        latency = self._woken_ns - self.published_ns
        if 0 <= latency <= self._waited_ns:  # published while this end waited
            words[word + WAKE_NS // 8] += latency
            words[word + WAKE_MAX_NS // 8] = max(latency, words[word + WAKE_MAX_NS // 8])
        self._waited_ns = 0

    def _release(self, tail: int) -> None:
        self._tail = tail
        native.store(self._tail_at, tail)
        if self.reader.critical:
            self._wake_writer.post()

    def _skip(self, count: int) -> None:
        self._lost_next += count
        self.segment.words[self._word + LOST // 8] += count
        self._release((self._tail + count) % self.modulus)

    def _catch_up(self) -> None:
        """Move an observer to a whole message: after an overrun half a ring behind the writer, or it would soon be overtaken again."""
        while native.intact_before(self._stamps + LINE * self._slot, (self._tail + 1) % 2**64):
            lag = (native.load(self._head_at) - self._tail) % self.modulus
            if lag < self._slots:
                raise RingMismatch(self.segment.name, f"sequence number of slot {self._slot}", self._tail, "another")
            self._skip(lag - self._slots // 2)
            self.ready()

    def woken(self, began_ns: int) -> int:
        """Record a wait for the next message; return its duration, ns."""
        self._woken_ns = time.monotonic_ns()
        self._waited_ns = self._woken_ns - began_ns
        return self._waited_ns

    def _wait(self) -> int:
        deadline, began = self._deadline(), time.monotonic_ns()
        while not self.ready():
            state = native.load(self._state_at)
            lost, self._verdict = self._verdict or self.lost_peer(), None
            if self.ready():  # published before the stream ended or the writer died
                break
            if state != OPEN:
                raise self._ended(state)
            if lost is not None:
                raise lost
            if not self.sleep(deadline) and not self.ready():
                raise RingTimeout(f"ring {self.segment.name}: nothing for reader '{self.reader.name}' within {self._timeout_s} s")
        return self.woken(began)

    def _ended(self, state: int) -> RingError:
        if state == BROKEN:
            return WriterLost(
                f"ring {self.segment.name}: its writer left on an exception; everything it published has been read", "writer", 0
            )
        return RingClosed(f"ring {self.segment.name}: the stream has ended and everything has been read")

    def _lost_other(self) -> RingPeerLost | None:
        who = self.segment.load(PRODUCER + WRITER)
        pid = process.pid_of(who)
        if not pid or process.alive(who):
            return None
        return WriterLost(
            f"ring {self.segment.name}: its writer, process {pid}, is dead; everything it published has been read", "writer", pid
        )

    def leave(self) -> None:
        """Release the role; unread messages stay for the next process that attaches."""
        self.holding = False
        self.segment.swap(self._line + READER, process.own_identity(), 0)
