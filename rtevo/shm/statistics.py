"""Statistics of a ring, available at any time to any process that can open it."""

from __future__ import annotations

from dataclasses import dataclass

from rtevo.shm import process
from rtevo.shm.layout import (
    BROKEN,
    BUCKET_NS,
    BUCKETS,
    BUILDING,
    ENDED,
    HEAD,
    LOST,
    MESSAGES,
    OPEN,
    PRODUCER,
    READER,
    READER_NS,
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
from rtevo.shm.segment import Segment

__all__ = ["ReaderStatistics", "RingStatistics", "collect"]

_STATES = {OPEN: "open", ENDED: "ended", BROKEN: "broken off", BUILDING: "being made"}


@dataclass(frozen=True)
class ReaderStatistics:
    """One reader.

    Parameters
    ----------
    name : str
        As declared.
    critical : bool
        As declared.
    pid : int
        Process that holds the role, dead or alive; 0: none.
    alive : bool
        That process runs.
    consumed : int
        Messages released, skipped and lost ones included.
    messages : int
        Messages read.
    lag : int
        Messages published and not yet released; more than the ring's slots if an observer has been overtaken.
    overruns : int
        Messages lost.
    waits : int
        Number of waits for a message.
    wake_up_ns, wake_up_max_ns : int
        Sum and maximum of the time from publication to the reader, over the messages for which it waited.
    overhead_ns, overhead_p50_ns, overhead_p99_ns : int
        Time spent in the ring's own code, without waits: sum, and median and 99th percentile per message (from counts in powers of two, 34
        ms at most). Wall-clock time, including time in which another process used the core.
    """

    name: str
    critical: bool
    pid: int
    alive: bool
    consumed: int
    messages: int
    lag: int
    overruns: int
    waits: int
    wake_up_ns: int
    wake_up_max_ns: int
    overhead_ns: int
    overhead_p50_ns: int
    overhead_p99_ns: int


@dataclass(frozen=True)
class RingStatistics:
    """A ring at one moment.

    Parameters
    ----------
    name : str
        Name of the ring.
    state : str
        "open", "ended", "broken off" (the writer left on an exception) or "being made".
    slots, slot_bytes : int
        Capacity.
    published : int
        Messages published since the ring was made.
    depth : int
        Slots that the slowest critical reader holds, 0 to `slots`.
    waits : int
        Number of the writer's waits for a free slot.
    overhead_ns, overhead_p50_ns, overhead_p99_ns : int
        Time that the writer spent in the ring's own code, without waits; as for readers. On a busy machine the sum is mostly time in
        which processes that a message woke used the core.
    owner_pid, writer_pid : int
        Process ids; 0 for no writer.
    owner_alive, writer_alive : bool
        Whether these processes run.
    readers : tuple of ReaderStatistics
        As declared.
    """

    name: str
    state: str
    slots: int
    slot_bytes: int
    published: int
    depth: int
    waits: int
    overhead_ns: int
    overhead_p50_ns: int
    overhead_p99_ns: int
    owner_pid: int
    owner_alive: bool
    writer_pid: int
    writer_alive: bool
    readers: tuple[ReaderStatistics, ...]

    @property
    def lag(self) -> dict[str, int]:
        """Messages published and not yet released, by reader."""
        return {each.name: each.lag for each in self.readers}

    @property
    def consumed(self) -> dict[str, int]:
        """Messages released, by reader."""
        return {each.name: each.consumed for each in self.readers}

    @property
    def overruns(self) -> dict[str, int]:
        """Messages lost, by observer."""
        return {each.name: each.overruns for each in self.readers if not each.critical}


def _quantile(segment: Segment, line: int, share: float) -> int:
    """Return the quantile of the messages' cost (ns), assuming an even spread between powers of two; 0 without messages."""
    counts = segment.counts[(line + SPREAD) // 4 : (line + SPREAD) // 4 + BUCKETS].tolist()
    left = share * sum(counts)
    for bucket, count in enumerate(counts):
        if count and left <= count:
            low = BUCKET_NS << (bucket - 1) if bucket else 0
            return int(low + left / count * ((BUCKET_NS << bucket) - low))
        left -= count
    return 0


def _reader(segment: Segment, index: int) -> ReaderStatistics:
    layout, line = segment.layout, segment.layout.reader_line(index)
    tail = segment.load(line + TAIL)
    head = segment.load(PRODUCER + HEAD)  # after the tail: a lag is never negative
    who = segment.load(line + READER)
    rest = {key: segment.load(line + offset) for key, offset in _READER_WORDS.items()}
    return ReaderStatistics(
        name=layout.readers[index].name,
        critical=layout.readers[index].critical,
        pid=process.pid_of(who),
        alive=process.alive(who),
        consumed=(tail - layout.first) % layout.modulus,
        lag=(head - tail) % layout.modulus,
        overhead_p50_ns=_quantile(segment, line, 0.5),
        overhead_p99_ns=_quantile(segment, line, 0.99),
        **rest,
    )


_READER_WORDS = {
    "messages": MESSAGES,
    "overruns": LOST,
    "waits": WAITS,
    "wake_up_ns": WAKE_NS,
    "wake_up_max_ns": WAKE_MAX_NS,
    "overhead_ns": READER_NS,
}


def collect(segment: Segment) -> RingStatistics:
    """Return the statistics of a segment; every number is right, but not all are of the same instant."""
    layout = segment.layout
    readers = tuple(_reader(segment, index) for index in range(len(layout.readers)))
    writer = segment.load(PRODUCER + WRITER)
    state = segment.load(PRODUCER + STATE)
    return RingStatistics(
        name=segment.name,
        state=_STATES.get(state, f"unknown ({state})"),
        slots=layout.slots,
        slot_bytes=layout.dtype.itemsize,
        published=(segment.load(PRODUCER + HEAD) - layout.first) % layout.modulus,
        depth=min(layout.slots, max((each.lag for each in readers if each.critical), default=0)),
        waits=segment.load(PRODUCER + WRITER_WAITS),
        overhead_ns=segment.load(PRODUCER + WRITER_NS),
        overhead_p50_ns=_quantile(segment, PRODUCER, 0.5),
        overhead_p99_ns=_quantile(segment, PRODUCER, 0.99),
        owner_pid=process.pid_of(layout.owner),
        owner_alive=process.alive(layout.owner),
        writer_pid=process.pid_of(writer),
        writer_alive=process.alive(writer),
        readers=readers,
    )
