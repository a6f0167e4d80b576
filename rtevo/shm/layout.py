"""The bytes of a ring: version 1.

All numbers are little-endian and 8 bytes wide unless said otherwise. *Lines* are 128 bytes: two cache lines of x86-64, which fetches
them in pairs, and one of Apple's arm64; no line is written by more than one process in normal operation.

======================  =======================================================================================================
offset                  what
======================  =======================================================================================================
0                       **static** part, written before the segment gets its name, never again
0                       magic ``RTEVORNG``; 8: layout version; 16: size of the segment; 24: slots; 32: bytes of a slot's record;
                        40: stride from slot to slot; 48: offset of slot 0; 56: offset of the description; 64: its length;
                        72: number of readers; 80: first sequence number; 88: owner's identity; 96: PID namespace;
                        104: time of creation (Unix ns); 112: hash of the description (16 bytes, BLAKE2b)
128                     **producer line**, written by the writer: 0 head (sequence number of the next message), 8 state,
                        16 writer's identity, 24 waits, 32 ns spent in the ring's own code, 64 how it spread
256 + 128 i             **reader line** i, written by that reader: 0 tail (sequence number of the next message to release),
                        8 identity, 16 slots lost, 24 waits, 32 sum and 40 maximum of the wake-up latency (ns),
                        48 ns spent in the ring's own code, 56 messages read, 64 how the time spread
256 + 128 (n + k)       **stamp** of slot k, written by the writer: 0 begin, 8 end (both sequence number + 1), 16 published (ns);
                        24 place: the slot of the latest message whose sequence number is k modulo `slots`
after the stamps        **description**, JSON: the slot's dtype, the readers, the semaphores
next multiple of 4096   **slots**: the records, page-aligned; the stride is a multiple of 128, of 4096 from that size on
======================  =======================================================================================================

*How it spread*: 16 counts of 4 bytes, of the messages that took less than 1024 ns, less than 2048 ns, 4096 ns and so on; the last counts
the rest. The counts wrap.

A sequence number counts messages modulo the largest multiple of `slots` below 2**64 (2**64 itself where that is a multiple), so that
message ``s`` has its place at ``s % slots`` across the wrap as well.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rtevo.shm.errors import RingError, RingMismatch

__all__ = ["LINE", "VERSION", "Layout", "Reader", "describe_dtype", "rebuild_dtype"]

MAGIC = b"RTEVORNG"
VERSION = 1
LINE = 128

PRODUCER = 128
HEAD, STATE, WRITER, WRITER_WAITS, WRITER_NS = 0, 8, 16, 24, 32
READERS = 256
TAIL, READER, LOST, WAITS, WAKE_NS, WAKE_MAX_NS, READER_NS, MESSAGES = 0, 8, 16, 24, 32, 40, 48, 56
SPREAD, BUCKETS, BUCKET_NS = 64, 16, 1024  # in the producer's line and in each reader's
BEGIN, END, PUBLISHED_NS, PLACE = 0, 8, 16, 24

OPEN, ENDED, BROKEN, BUILDING = 0, 1, 2, 3  # values of the state word

_STATIC = struct.Struct("<8s13Q16s")
_FIELDS = (
    "version", "size", "slots", "itemsize", "stride", "payload", "description_at", "description_length", "n_readers", "first", "owner",
    "namespace", "created_ns",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """One declared reader of a ring.

    Parameters
    ----------
    name : str
        Unique in the ring.
    critical : bool
        The writer waits for a critical reader; an observer may be overrun, and can detect that.
    semaphore : str, optional
        Wake-up semaphore, shared by all rings on which one process waits together. Default: a separate one.
    """

    name: str
    critical: bool = True
    semaphore: str | None = None


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def describe_dtype(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as plain JSON: a format string, ``{"base", "shape"}`` or ``{"size", "fields": [[name, offset, dtype]...]}``."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": describe_dtype(base), "shape": list(shape)}
    if dtype.fields is None or dtype.names is None:
        return dtype.str
    fields = [[name, dtype.fields[name][1], describe_dtype(dtype.fields[name][0])] for name in dtype.names]
    return {"size": dtype.itemsize, "fields": fields}


def rebuild_dtype(description: Any) -> np.dtype[Any]:
    """Return the dtype from the result of :func:`describe_dtype`."""
    if isinstance(description, str):
        return np.dtype(description)
    if "base" in description:
        return np.dtype((rebuild_dtype(description["base"]), tuple(description["shape"])))
    names, offsets, formats = zip(*description["fields"], strict=True) if description["fields"] else ((), (), ())
    return np.dtype(
        {
            "names": list(names),
            "offsets": list(offsets),
            "formats": [rebuild_dtype(each) for each in formats],
            "itemsize": description["size"],
        }
    )


def _flat(description: Any, path: str = "slot") -> Iterator[tuple[str, str]]:
    """Yield the fields of a description: path of a field, its type and place."""
    if isinstance(description, dict) and "fields" in description:
        yield f"{path} size", f"{description['size']} bytes"
        for name, offset, inner in description["fields"]:
            yield f"{path}.{name} offset", str(offset)
            yield from _flat(inner, f"{path}.{name}")
    elif isinstance(description, dict):
        yield f"{path} shape", str(tuple(description["shape"]))
        yield from _flat(description["base"], path)
    else:
        yield f"{path} type", str(description)


@dataclass(frozen=True)
class Layout:
    """The constants of a ring.

    Parameters
    ----------
    dtype : numpy dtype
        Dtype of one slot's record; structured, without Python objects.
    slots : int
        Number of slots.
    readers : tuple of Reader
        The readers, each with its semaphore's name.
    writer_semaphore : str
        Wakes the writer when a slot has become free.
    owner, namespace, created_ns : int
        The creating process (see :mod:`rtevo.shm.process`), its PID namespace, and when (Unix ns).
    first : int
        Sequence number of the first message.
    """

    dtype: np.dtype[np.void]
    slots: int
    readers: tuple[Reader, ...]
    writer_semaphore: str
    owner: int
    namespace: int
    created_ns: int
    first: int = 0
    description: bytes = field(init=False)

    def __post_init__(self) -> None:
        text = {
            "dtype": describe_dtype(self.dtype),
            "readers": [[each.name, each.critical, each.semaphore] for each in self.readers],
            "writer_semaphore": self.writer_semaphore,
        }
        object.__setattr__(self, "description", json.dumps(text, separators=(",", ":")).encode())

    @property
    def modulus(self) -> int:
        """Sequence numbers count modulo this."""
        return 2**64 // self.slots * self.slots

    @property
    def stride(self) -> int:
        """Bytes from slot to slot."""
        return _round_up(self.dtype.itemsize, LINE if self.dtype.itemsize < 4096 else 4096)

    @property
    def stamps(self) -> int:
        """Offset of the stamp of slot 0."""
        return READERS + LINE * len(self.readers)

    @property
    def description_at(self) -> int:
        """Offset of the description."""
        return self.stamps + LINE * self.slots

    @property
    def payload(self) -> int:
        """Offset of slot 0: the size of everything before the slots."""
        return _round_up(self.description_at + len(self.description), max(4096, mmap.ALLOCATIONGRANULARITY))

    @property
    def size(self) -> int:
        """Bytes of the whole segment."""
        return self.payload + self.stride * self.slots

    @property
    def semaphores(self) -> tuple[str, ...]:
        """Names of all semaphores of the ring, each once."""
        return tuple(dict.fromkeys([self.writer_semaphore, *(each.semaphore for each in self.readers if each.semaphore)]))

    def reader_line(self, index: int) -> int:
        """Offset of the line of reader `index`."""
        return READERS + LINE * index

    def static(self) -> bytes:
        """Bytes of the static part."""
        digest = hashlib.blake2b(self.description, digest_size=16).digest()
        return _STATIC.pack(
            MAGIC, VERSION, self.size, self.slots, self.dtype.itemsize, self.stride, self.payload, self.description_at,
            len(self.description), len(self.readers), self.first, self.owner, self.namespace, self.created_ns, digest,
        )  # fmt: skip

    @classmethod
    def parse(cls, name: str, data: bytes | mmap.mmap, size: int) -> Layout:
        """Read a layout back.

        Parameters
        ----------
        name : str
            Name of the ring, for messages.
        data : bytes-like
            The segment from its beginning, up to the slots at least.
        size : int
            Size of the segment, bytes.

        Raises
        ------
        RingMismatch
            The segment is not a ring, is of another version, or is damaged.
        """
        if size < READERS or bytes(data[:8]) != MAGIC:
            raise RingMismatch(name, "magic", MAGIC, bytes(data[:8]) if size >= 8 else f"{size} bytes")
        _, *numbers, digest = _STATIC.unpack(bytes(data[: _STATIC.size]))
        found = dict(zip(_FIELDS, numbers, strict=True))
        if found["version"] != VERSION:
            raise RingMismatch(name, "layout version", VERSION, found["version"])
        if found["size"] != size:
            raise RingMismatch(name, "size of the segment in bytes", found["size"], size)
        begin, length = found["description_at"], found["description_length"]
        text = bytes(data[begin : begin + length])
        if hashlib.blake2b(text, digest_size=16).digest() != digest:
            raise RingMismatch(name, "hash of the description", digest.hex(), hashlib.blake2b(text, digest_size=16).hexdigest())
        content = json.loads(text)
        layout = cls(
            rebuild_dtype(content["dtype"]), found["slots"], tuple(Reader(*each) for each in content["readers"]),
            content["writer_semaphore"], found["owner"], found["namespace"], found["created_ns"], found["first"],
        )  # fmt: skip
        room = (size - layout.payload) // layout.stride
        expected = {
            "itemsize": layout.dtype.itemsize, "stride": layout.stride, "slots": room, "payload": layout.payload,
            "n_readers": len(layout.readers),
        }  # fmt: skip
        for key, value in expected.items():
            if value != found[key]:
                raise RingMismatch(name, key, value, found[key])
        return layout

    def check_dtype(self, name: str, expected: np.dtype[np.void]) -> None:
        """Compare with the dtype that a caller expects.

        Raises
        ------
        RingMismatch
            Naming the first field that differs.
        """
        ours, theirs = dict(_flat(describe_dtype(expected))), dict(_flat(describe_dtype(self.dtype)))
        for key in [*ours, *theirs]:
            if ours.get(key) != theirs.get(key):
                raise RingMismatch(name, key, ours.get(key, "no such field"), theirs.get(key, "no such field"))


def check_slot_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse dtypes that cannot lie in shared memory, or are not records.

    Raises
    ------
    RingError
        With the reason.
    """
    if dtype.names is None:
        raise RingError(f"slot_dtype: expected a structured dtype (np.dtype([(name, format), ...])), got {dtype}")
    if dtype.hasobject:
        raise RingError(f"slot_dtype: Python objects cannot be shared between processes, got {dtype}")
    if dtype.itemsize == 0:
        raise RingError(f"slot_dtype: expected at least one byte, got {dtype}")
