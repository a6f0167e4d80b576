"""Segments of shared memory: making, mapping, listing, and removal of those with a dead owner.

A segment is built under a temporary name, ``/rtevo.PID.START.NAMESPACE.N``, which identifies its owner, and gets the ring's name by one
atomic link when its static part is complete. So a segment with a ring's name always identifies its owner, and the leftovers of a process
killed while building can be recognised as well. Semaphores are made after the segment that names them, and unlinked before it: a
semaphore that no segment names is unused. Names are taken and released under one lock of the user (``flock`` on ``.rtevo-lock-UID``), so
that two processes cannot both find a ring stale, and one of them then remove the other's new ring. Other users' rings cannot be removed
anyway. A process that removes its own ring, which is not stale, does not wait long for the lock.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import posix_ipc

from rtevo.shm import native, process
from rtevo.shm.errors import RingError, RingInUse, RingMissing, RingPermission, RingSpace, RingUnsupported
from rtevo.shm.layout import BUCKET_NS, BUCKETS, BUILDING, HEAD, OPEN, PRODUCER, READER, STATE, TAIL, WRITER, Layout
from rtevo.shm.wakeup import FOLDER, make_semaphore, remove_semaphore

__all__ = ["MAX_NAME", "PREFIX", "Segment", "check_name", "clean", "list_segments"]

PREFIX = "/rtevo-"
MAX_NAME = 27  # macOS allows 30 characters; semaphores add up to three

LOCK_S = 10.0  # longest wait for the lock under which names are taken
GIVE_UP_S = 0.5  # longest wait for the lock to remove an own ring

_NAME = re.compile(r"/rtevo-[A-Za-z0-9_-]+")
_BUILDING = re.compile(r"rtevo\.(\d+)\.(\d+)\.(\d+)\.\d+")
_counter = itertools.count()


def check_name(name: str, what: str = "ring name", longest: int = MAX_NAME) -> None:
    """Refuse names that are not portable, or not recognisable as rtevo's.

    Raises
    ------
    RingError
        With the rule and the name.
    """
    if not _NAME.fullmatch(name) or len(name) > longest:
        raise RingError(
            f"{what}: expected '{PREFIX}' and then letters, digits, '_' or '-', {longest} characters at most (POSIX names are limited to "
            f"30 on macOS), got {name!r} ({len(name)} characters)"
        )


Access = Literal["inspect", "watch", "read", "write"]


class Segment:
    """A mapped segment: words of its header by address, its slots as an array.

    Parameters
    ----------
    name : str
        Name of the ring.
    descriptor : int
        Open file; closed here.
    layout : Layout
        Layout of the segment.
    access : str
        "inspect": the header for reading; "watch": the header; "read": and the slots for reading; "write": and for writing.
    """

    def __init__(self, name: str, descriptor: int, layout: Layout, access: Access) -> None:
        self.name = name
        self.layout = layout
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # page faults now, not in the first round of messages
        both = mmap.PROT_READ | mmap.PROT_WRITE
        try:
            self._header = mmap.mmap(descriptor, layout.payload, flags=flags, prot=mmap.PROT_READ if access == "inspect" else both)
            self._bytes = np.frombuffer(self._header, np.uint8)  # not unmapped before the last user of an address has gone
            self.words = memoryview(self._header).cast("Q")
            self.counts = memoryview(self._header).cast("I")
            self.address = int(self._bytes.ctypes.data)
            self.slots: Any = None
            if access in ("read", "write"):
                length, prot = layout.size - layout.payload, both if access == "write" else mmap.PROT_READ
                slots = mmap.mmap(descriptor, length, flags=flags, prot=prot, offset=layout.payload)
                self.slots = np.ndarray((layout.slots,), layout.dtype, buffer=slots, strides=(layout.stride,))
        finally:
            os.close(descriptor)

    def note_cost(self, spread: int, cost_ns: int) -> None:
        """Count a message's cost in the histogram at an offset of the header."""
        at = spread // 4 + min(BUCKETS - 1, (cost_ns // BUCKET_NS).bit_length())
        self.counts[at] = (self.counts[at] + 1) % 2**32

    def load(self, offset: int) -> int:
        """Return the word at an offset of the header (acquire)."""
        return int(native.load(self.address + offset))

    def store(self, offset: int, value: int) -> None:
        """Store the word at an offset of the header (release)."""
        native.store(self.address + offset, value)

    def swap(self, offset: int, expected: int, new: int) -> bool:
        """Store `new` if the word is `expected`; return whether it was."""
        return bool(native.compare_and_swap(self.address + offset, expected, new) == expected)

    @classmethod
    def create(cls, name: str, layout: Layout, access: Access = "watch") -> Segment:
        """Make a segment and its semaphores.

        Raises
        ------
        RingInUse
            The name belongs to a live process.
        RingSpace
            Shared memory is full.
        RingPermission, RingMismatch
            The name belongs to another user, or to something that is not a ring.
        """
        _require_linux()
        temporary = _temporary_name()
        descriptor = int(posix_ipc.SharedMemory(temporary, posix_ipc.O_CREX, mode=0o600).fd)
        try:
            _allocate(name, descriptor, layout)
            segment = cls(name, descriptor, layout, access)
            segment._fill()
            with _registry():
                _claim(temporary, name)
                try:
                    for semaphore in layout.semaphores:
                        make_semaphore(semaphore, _temporary_name())
                except BaseException:
                    segment._unlink()
                    raise
        finally:
            posix_ipc.unlink_shared_memory(temporary)
        segment.store(PRODUCER + STATE, OPEN)
        return segment

    def _fill(self) -> None:
        layout = self.layout
        at = layout.description_at
        self._header[at : at + len(layout.description)] = layout.description
        self.words[(PRODUCER + STATE) // 8] = BUILDING
        self.words[(PRODUCER + HEAD) // 8] = layout.first
        for index in range(len(layout.readers)):
            self.words[(layout.reader_line(index) + TAIL) // 8] = layout.first
        static = layout.static()
        self._header[: len(static)] = static

    @classmethod
    def open(cls, name: str, access: Access) -> Segment:
        """Map an existing segment.

        Raises
        ------
        RingMissing, RingPermission, RingMismatch
            There is no such segment, it belongs to another user, or it is not a ring of this version.
        """
        _require_linux()
        descriptor = _open(name, access == "inspect")
        try:
            size = os.fstat(descriptor).st_size
            layout = Layout.parse(name, _head(descriptor, size), size)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(name, descriptor, layout, access)

    def remove(self) -> None:
        """Unlink the semaphores that no other live ring uses, then the segment; processes that have them mapped keep them."""
        with ExitStack() as stack:
            with suppress(RingError):  # its owner lives, so no other process takes the name: removal works without the lock, too
                stack.enter_context(_registry(GIVE_UP_S))
            self._unlink()

    def _unlink(self) -> None:
        elsewhere: set[str] = set()
        for other in list_segments():
            if other.segment is None:
                continue
            if other.name != self.name and not other.stale:
                elsewhere.update(other.segment.layout.semaphores)
            if other.name == self.name and other.segment.layout.static() != self.layout.static():
                return  # our ring was removed by hand, and the name is another ring's now
        for semaphore in self.layout.semaphores:
            if semaphore not in elsewhere:
                remove_semaphore(semaphore)
        with suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_shared_memory(self.name)


def _temporary_name() -> str:
    start = process.own_identity() & process.START_MASK
    return f"/rtevo.{os.getpid()}.{start}.{process.namespace()}.{next(_counter)}"


def _require_linux() -> None:
    if not posix_ipc.SEMAPHORE_TIMEOUT_SUPPORTED:
        raise RingUnsupported(
            "rings need semaphores that can be waited for with a time limit (sem_timedwait), which this platform lacks (macOS): a "
            "dead peer could not be noticed. Use Linux, or a Linux container"
        )
    process.namespace()


def _open(name: str, read_only: bool) -> int:
    try:
        return int(posix_ipc.SharedMemory(name, read_only=read_only).fd)
    except posix_ipc.ExistentialError:
        raise RingMissing(f"ring {name}: does not exist; its owner creates it first, and removes it at the session's end") from None
    except posix_ipc.PermissionsError:
        raise RingPermission(f"ring {name}: belongs to another user; choose another name") from None


def _head(descriptor: int, size: int) -> bytes:
    """Return the part of a segment before its slots, as far as its own numbers are plausible."""
    static = os.pread(descriptor, 128, 0)
    if len(static) < 128:
        return static
    end = int.from_bytes(static[56:64], "little") + int.from_bytes(static[64:72], "little")
    return os.pread(descriptor, min(end, size), 0)


def _allocate(name: str, descriptor: int, layout: Layout) -> None:
    """Reserve every byte now: a sparse segment would end in SIGBUS when the memory runs out, in the middle of a session."""
    total, _, free = shutil.disk_usage(FOLDER)
    room = min(free, _available_memory())
    try:
        if layout.size > room:  # an attempt would push other programs out of memory first
            raise OSError(errno.ENOSPC, "not enough memory")
        os.posix_fallocate(descriptor, 0, layout.size)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        megabyte = 1 << 20
        raise RingSpace(
            f"ring {name}: {layout.slots} slots of {layout.dtype.itemsize} bytes need {layout.size / megabyte:.1f} MiB of shared memory; "
            f"{FOLDER} has {free / megabyte:.1f} of {total / megabyte:.1f} MiB free and the machine {_available_memory() / megabyte:.1f} "
            "MiB of memory. Remove stale rings with 'python -m rtevo.shm clean', ask for fewer slots, or enlarge it: "
            f"'mount -o remount,size=SIZE {FOLDER}', in a container '--shm-size=SIZE'"
        ) from None


def _available_memory() -> int:
    """Return the bytes that can be allocated without swapping, by the kernel's estimate."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


@contextmanager
def _registry(wait_s: float | None = None) -> Iterator[None]:
    """Hold the user's lock under which names are taken and released; the kernel frees it if its holder dies."""
    path = FOLDER / f".rtevo-lock-{os.getuid()}"
    descriptor = _open_lock(path)
    try:
        wait_s = LOCK_S if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RingError(f"{path}: another process has kept it locked for {wait_s:g} s; see 'lslocks'") from None
                time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open the lock's file, which is never removed, so that all processes lock the same file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise RingPermission(f"{path}: cannot be opened ({error.strerror}); it is this user's lock: remove it") from None
    if os.fstat(descriptor).st_uid != os.getuid():
        os.close(descriptor)
        raise RingPermission(f"{path}: belongs to another user, expected this user's lock: remove it")
    return descriptor


def _claim(temporary: str, name: str) -> None:
    """Give a segment the ring's name, taking it from a dead owner if necessary; under the lock."""
    try:
        os.link(f"{FOLDER}{temporary}", f"{FOLDER}{name}")
        return
    except FileExistsError:
        entry = _inspect(name)
    if entry.segment is None:
        raise entry.problem or RingError(f"ring {name}: unreadable")
    if entry.owner_alive:
        pid = process.pid_of(entry.segment.layout.owner)
        where = "in another PID namespace (container)" if entry.foreign else "which is alive"
        raise RingInUse(f"ring {name}: the name is in use by process {pid}, {where}; choose another name or end that session first")
    entry.segment._unlink()
    os.link(f"{FOLDER}{temporary}", f"{FOLDER}{name}")


@dataclass(frozen=True)
class Entry:
    """The state of one segment.

    Parameters
    ----------
    name : str
        Name of the ring.
    segment : Segment, optional
        Its header, read-only; None if it could not be read.
    problem : RingError, optional
        Why it could not be read.
    owner_alive : bool
        Its owner runs, or cannot be judged from here (`foreign`).
    foreign : bool
        It was made in another PID namespace.
    attached : tuple of int
        Process ids of the live writer and readers.
    """

    name: str
    segment: Segment | None
    problem: RingError | None = None
    owner_alive: bool = True
    foreign: bool = False
    attached: tuple[int, ...] = ()

    @property
    def stale(self) -> bool:
        """Whether no process is left that could use it."""
        return self.segment is not None and not self.owner_alive and not self.attached


def _inspect(name: str) -> Entry:
    try:
        segment = Segment.open(name, "inspect")
    except RingError as error:
        return Entry(name, None, error)
    layout = segment.layout
    if layout.namespace != process.namespace():
        return Entry(name, segment, foreign=True)
    members = [segment.load(PRODUCER + WRITER), *(segment.load(layout.reader_line(i) + READER) for i in range(len(layout.readers)))]
    attached = tuple(process.pid_of(each) for each in members if process.alive(each))
    return Entry(name, segment, owner_alive=process.alive(layout.owner), attached=attached)


def list_segments() -> list[Entry]:
    """Return every ring of this machine, in order of name."""
    _require_linux()
    names = sorted(f"/{path.name}" for path in FOLDER.glob(f"{PREFIX[1:]}*") if _NAME.fullmatch(f"/{path.name}"))
    entries = (_inspect(name) for name in names)
    return [each for each in entries if not isinstance(each.problem, RingMissing)]


def clean() -> list[str]:
    """Remove leftovers of dead sessions: rings whose owner and members are all dead, half-built segments, unused semaphores.

    Segments of live sessions stay, as do those that cannot be judged: of other users, other PID namespaces and other
    versions.

    Returns
    -------
    list of str
        Names of the removed segments and semaphores.
    """
    _require_linux()
    with _registry():
        removed = []
        for entry in list_segments():
            if entry.stale and entry.segment is not None:
                entry.segment._unlink()
                removed.append(entry.name)
        return removed + _clean_half_built() + _clean_semaphores()


def _clean_semaphores() -> list[str]:
    """Remove semaphores that no segment names."""
    semaphores = [f"/{path.name[4:]}" for path in FOLDER.glob(f"sem.{PREFIX[1:]}*")]
    entries = list_segments()
    if any(each.segment is None for each in entries):
        return []  # an unreadable segment may name any of them
    named = {name for each in entries if each.segment is not None for name in each.segment.layout.semaphores}
    removed = []
    for name in semaphores:
        if name not in named:
            with suppress(posix_ipc.PermissionsError, OSError):
                remove_semaphore(name)
                removed.append(name)
    return removed


def _clean_half_built() -> list[str]:
    removed = []
    for path in FOLDER.glob("rtevo.*"):
        match = _BUILDING.fullmatch(path.name)
        if match is None:
            continue
        pid, start, namespace = (int(text) for text in match.groups())
        if namespace == process.namespace() and not process.alive(process.identity(pid, start)):
            with suppress(FileNotFoundError, PermissionError):
                path.unlink()
                removed.append(f"/{path.name}")
    return removed
