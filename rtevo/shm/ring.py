"""The ring: one writer, any number of declared readers, fixed slots in shared memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from rtevo.shm import process
from rtevo.shm.ends import ReaderEnd, WriterEnd
from rtevo.shm.errors import OwnerLost, RingClosed, RingError, RingMismatch
from rtevo.shm.layout import BUILDING, ENDED, HEAD, OPEN, PRODUCER, STATE, TAIL, Layout, Reader, check_slot_dtype
from rtevo.shm.segment import Segment, check_name
from rtevo.shm.statistics import RingStatistics, collect
from rtevo.shm.wakeup import CHECK_S, Wakeup

__all__ = ["Ring", "wait_any"]


class Ring:
    """A handle on a ring; see :meth:`create` and :meth:`attach`.

    A handle belongs to one process and its `reserve` and `read` to one thread at a time; it does not survive a fork. Leaving its
    ``with`` block is :meth:`close`, except that a writer that leaves on an exception does not end the stream in good order: its
    readers get :class:`~rtevo.shm.errors.WriterLost` when they have read everything.
    """

    def __init__(self, segment: Segment, *, owner: bool, writer: bool = False, reader: str | None = None) -> None:
        self._segment = segment
        self._owner = owner
        self._pid = os.getpid()
        self._open = True
        self._writer: WriterEnd | None = None
        self._reader: ReaderEnd | None = None
        layout = segment.layout
        index = self._index(reader) if reader is not None else -1
        self._wakeups = {name: Wakeup(name) for name in layout.semaphores} if owner or writer or index >= 0 else {}
        if writer:
            readers = dict.fromkeys(each.semaphore for each in layout.readers if each.semaphore)
            self._writer = WriterEnd(segment, self._wakeups[layout.writer_semaphore], [self._wakeups[name] for name in readers])
        if index >= 0:
            own = self._wakeups[str(layout.readers[index].semaphore)]
            try:
                self._reader = ReaderEnd(segment, own, self._wakeups[layout.writer_semaphore], index)
            except BaseException:
                if self._writer is not None:
                    self._writer.leave(broken=True)
                raise

    # -- making and attaching ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str,
        slot_dtype: np.dtype[Any],
        slots: int,
        readers: Sequence[Reader | str] = (),
        *,
        writer: bool = False,
        reader: str | None = None,
        first_sequence: int = 0,
    ) -> Ring:
        """Make a ring, and own it: closing this handle ends the stream and removes the ring.

        A ring of the same name whose owner is dead is replaced; its surviving members keep the old memory until they notice.

        Parameters
        ----------
        name : str
            Starts with "/rtevo-", 27 characters at most.
        slot_dtype : numpy dtype
            Structured; one record of it per slot.
        slots : int
            Messages that the ring holds, 2 at least.
        readers : sequence of Reader or str
            All readers of the ring; a name alone is a critical reader with a separate semaphore.
        writer : bool
            Be the writer as well.
        reader : str, optional
            Be this reader as well.
        first_sequence : int
            Sequence number of the first message (for tests of the counters' wrap-around).

        Raises
        ------
        RingError
            An argument breaks a rule.
        RingInUse, RingSpace, RingPermission, RingMismatch
            See :mod:`rtevo.shm.errors`.
        """
        check_name(name)
        dtype: np.dtype[np.void] = np.dtype(slot_dtype)
        check_slot_dtype(dtype)
        if not 2 <= slots < 2**32:
            raise RingError(f"ring {name}: slots: expected 2 to 2**32 - 1, got {slots}")
        layout = Layout(
            dtype,
            slots,
            tuple(_named(name, index, each) for index, each in enumerate(readers)),
            f"{name}.w",
            process.own_identity(),
            process.namespace(),
            time.time_ns(),
        )
        _check_readers(name, layout.readers)
        layout = replace(layout, first=first_sequence % layout.modulus)
        segment = Segment.create(name, layout, "write" if writer else "read" if reader is not None else "watch")
        try:
            return cls(segment, owner=True, writer=writer, reader=reader)
        except BaseException:
            segment.remove()
            raise

    @classmethod
    def attach(
        cls,
        name: str,
        reader: str | None = None,
        writer: bool = False,
        *,
        slot_dtype: np.dtype[Any] | None = None,
    ) -> Ring:
        """Open an existing ring, as its writer, as one of its readers, or (neither) to inspect it.

        A role whose holder is dead or has left can be taken again: a writer continues the sequence, a reader continues with the message
        that its predecessor had not released.

        Parameters
        ----------
        name : str
            Of the ring.
        reader : str, optional
            Be this reader.
        writer : bool
            Be the writer.
        slot_dtype : numpy dtype, optional
            Expected dtype of the slots; checked field by field.

        Raises
        ------
        RingMissing, RingMismatch, RingPermission
            There is no such ring, it is not the expected one, or it belongs to another user.
        RingInUse
            Another live process holds the role.
        RingClosed
            The writer's role was requested, and the stream has ended.
        OwnerLost
            The ring was left by a dead session.
        """
        segment = Segment.open(name, "write" if writer else "read" if reader is not None else "inspect")
        layout = segment.layout
        if slot_dtype is not None:
            layout.check_dtype(name, np.dtype(slot_dtype))
        if layout.namespace != process.namespace():
            raise RingMismatch(name, "PID namespace (container) of the owner", process.namespace(), layout.namespace)
        if not process.alive(layout.owner):
            pid = process.pid_of(layout.owner)
            text = f"ring {name}: left by a dead session (owner process {pid}); 'python -m rtevo.shm clean' removes it"
            raise OwnerLost(text, "owner", pid)
        _until_built(segment)
        return cls(segment, owner=False, writer=writer, reader=reader)

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(broken=kind is not None)

    def close(self) -> None:
        """Release the roles of this handle; a writer ends the stream, an owner ends it and removes the ring. May be repeated.

        Views of slots stay valid memory, with undefined contents.
        """
        self._close(broken=False)

    def _close(self, broken: bool) -> None:
        if not self._open:
            return
        self._open = False
        writer, reader, self._writer, self._reader = self._writer, self._reader, None, None
        if os.getpid() != self._pid:
            return  # a forked copy: the roles are the parent's
        if reader is not None:
            reader.leave()
        if writer is not None:
            writer.leave(broken)
        if self._owner:
            self._segment.swap(PRODUCER + STATE, OPEN, ENDED)
            self._wake_all()
            self._segment.remove()
        self._wakeups = {}

    # -- writing ----------------------------------------------------------------------------------------------------------------

    def reserve(self, timeout_s: float | None = 10.0) -> AbstractContextManager[np.void]:
        """Return the next slot, to be written in place; leaving the ``with`` block publishes it, unless on an exception.

        The contents of the slot on entry are undefined (an old message).

        Parameters
        ----------
        timeout_s : float, optional
            Longest wait for a free slot, s; None: as long as the blocking readers live.

        Raises
        ------
        RingTimeout
            No slot became free in time; the message names the blocking critical readers.
        ReaderLost
            A blocking critical reader is dead (noticed within 0.5 s).
        OwnerLost
            The ring's owner is dead; raised once, on a wait.
        RingClosed
            The stream has ended.
        """
        if self._writer is None:
            raise self._not("the writer")
        return self._writer.reserve(timeout_s)

    def close_writing(self) -> None:
        """End the stream: readers get the remaining messages, then RingClosed. For the writer, or the owner in its place."""
        if self._writer is None and not self._owner:
            raise self._not("the writer or the owner")
        self._segment.store(PRODUCER + STATE, ENDED)
        self._wake_all()

    def _wake_all(self) -> None:
        for wakeup in self._wakeups.values():
            wakeup.post()

    # -- reading ----------------------------------------------------------------------------------------------------------------

    def read(self, timeout_s: float | None = None) -> AbstractContextManager[np.void]:
        """Return the next message as a read-only view, valid inside the ``with`` block; leaving the block in any way releases the message.

        For an observer, leaving raises RingOverrun if the writer has overtaken it meanwhile. An exception of the block then becomes the
        cause of the RingOverrun, because bad data explain it.

        Parameters
        ----------
        timeout_s : float, optional
            Longest wait, s; 0: do not wait; None: as long as the writer lives.

        Raises
        ------
        RingTimeout
            No message came in time.
        RingClosed
            The stream has ended and everything has been read.
        WriterLost
            The writer is dead (noticed within 0.5 s) or left on an exception, and everything has been read. Reading can continue: a
            restarted writer's messages follow.
        OwnerLost
            The ring's owner is dead; raised once, on having to wait.
        RingOverrun
            See above.
        """
        if self._reader is None:
            raise self._not("a reader")
        return self._reader.read(timeout_s)

    def __iter__(self) -> Iterator[np.void]:
        """Yield messages until the stream ends; each is released when the next is requested."""
        while True:
            try:
                with self.read() as slot:
                    yield slot
            except RingClosed:
                return

    def poll(self) -> bool:
        """Return whether there is a message to read now."""
        if self._reader is None:
            raise self._not("a reader")
        return self._reader.ready()

    @property
    def lost(self) -> int:
        """Number of messages that this reader lost just before the present or last one."""
        if self._reader is None:
            raise self._not("a reader")
        return self._reader.lost

    @property
    def published_ns(self) -> int:
        """Publication time of the message being read, ``time.monotonic_ns()``; a message that follows from it has a later time."""
        if self._reader is None:
            raise self._not("a reader")
        return self._reader.published_ns

    # -- state ------------------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the ring."""
        return self._segment.name

    @property
    def slot_dtype(self) -> np.dtype[np.void]:
        """Dtype of a slot."""
        return self._segment.layout.dtype

    @property
    def slots(self) -> int:
        """Messages that the ring holds."""
        return self._segment.layout.slots

    @property
    def closed(self) -> bool:
        """Whether the stream has ended; messages may be left to read."""
        return self._segment.load(PRODUCER + STATE) == ENDED

    @property
    def published(self) -> int:
        """Messages published since the ring was made; costs a microsecond, unlike `statistics`."""
        layout = self._segment.layout
        return (self._segment.load(PRODUCER + HEAD) - layout.first) % layout.modulus

    def lag(self, reader: str) -> int:
        """Messages published and not yet released by a reader; costs a microsecond, unlike `statistics`."""
        tail = self._segment.load(self._segment.layout.reader_line(self._index(reader)) + TAIL)
        return (self._segment.load(PRODUCER + HEAD) - tail) % self._segment.layout.modulus

    def statistics(self) -> RingStatistics:
        """Return the ring's counters, and which processes live; any process may call this at any time. It takes 10 us for each process."""
        return collect(self._segment)

    def _index(self, reader: str) -> int:
        names = [each.name for each in self._segment.layout.readers]
        if reader not in names:
            raise RingError(f"ring {self._segment.name}: reader: expected one of {', '.join(names) or 'none'}, got {reader!r}")
        return names.index(reader)

    def _not(self, role: str) -> RingError:
        if not self._open:
            return RingError(f"ring {self.name}: this handle has been closed")
        return RingError(f"ring {self.name}: this handle is not {role}; request the role in attach or create")


def wait_any(rings: Sequence[Ring], timeout_s: float | None = None) -> list[Ring]:
    """Wait until at least one of several rings can be read without waiting, or would raise at once (ended, writer lost).

    Parameters
    ----------
    rings : sequence of Ring
        Rings attached as readers, all with the same semaphore (`Reader.semaphore`).
    timeout_s : float, optional
        Longest wait, s; None: no limit.

    Returns
    -------
    list of Ring
        Such rings, in the order given; empty after the time.

    Raises
    ------
    RingError
        The rings do not share a semaphore: a wait for one would miss the others.
    """
    ends = []
    for ring in rings:
        if ring._reader is None:
            raise ring._not("a reader")
        ends.append(ring._reader)
    semaphores = {end.reader.semaphore for end in ends}
    if len(semaphores) != 1:
        raise RingError(f"wait_any: expected rings whose readers share one semaphore, got {sorted(map(str, semaphores)) or 'no ring'}")
    began, slept = time.monotonic_ns(), False
    deadline = None if timeout_s is None else began + int(timeout_s * 1e9)
    while not (found := [ring for ring, end in zip(rings, ends, strict=True) if end.settled()]):
        if not ends[0].sleep(deadline):
            found = [ring for ring, end in zip(rings, ends, strict=True) if end.ready()]
            break
        slept = True
    for end in ends:
        if slept and end.ready():
            end.woken(began)
    return found


def _named(name: str, index: int, reader: Reader | str) -> Reader:
    """Return a reader with its semaphore filled in."""
    each = Reader(reader) if isinstance(reader, str) else reader
    if each.semaphore is None:
        return replace(each, semaphore=f"{name}.{index}")
    check_name(each.semaphore, f"ring {name}: semaphore of reader '{each.name}'", 30)
    return each


def _check_readers(name: str, readers: Sequence[Reader]) -> None:
    names = [each.name for each in readers]
    if len(set(names)) != len(names) or not all(names):
        raise RingError(f"ring {name}: readers: expected different names, got {names}")
    if len(names) > 64:
        raise RingError(f"ring {name}: readers: expected 64 at most, got {len(names)}")


def _until_built(segment: Segment) -> None:
    """Wait until a new ring also has its semaphores, just after its name."""
    for _ in range(100):
        if segment.load(PRODUCER + STATE) != BUILDING:
            return
        time.sleep(CHECK_S / 25)
    raise RingError(f"ring {segment.name}: its owner never finished making it (state {BUILDING}, expected {OPEN})")
