# ruff: noqa: PT012  (what is tested is how with blocks are left)
"""One process: what a ring promises, rule by rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rtevo.shm import (
    Reader,
    Ring,
    RingClosed,
    RingInUse,
    RingMismatch,
    RingMissing,
    RingOverrun,
    RingTimeout,
    WriterLost,
    wait_any,
)
from rtevo.shm.errors import RingError
from rtevo.shm.layout import PRODUCER, SPREAD

SLOT = np.dtype([("index", "<i4"), ("data", "<f4", (3, 5)), ("text", "S8")], align=True)
Name = Callable[[], str]


def write(ring: Ring, *values: int) -> None:
    for value in values:
        with ring.reserve(timeout_s=0) as slot:
            slot["index"] = value
            slot["data"][...] = value / 2


def read(ring: Ring) -> int:
    with ring.read(timeout_s=0) as slot:
        assert (slot["data"] == slot["index"] / 2).all()
        return int(slot["index"])


def test_messages_arrive_whole_and_in_order(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        for round_ in range(5):
            write(ring, *range(round_, round_ + 3))
            assert ring.poll()
            assert [read(ring) for _ in range(3)] == [round_, round_ + 1, round_ + 2]
            assert not ring.poll()


def test_a_view_cannot_be_written_through(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True) as ring, Ring.attach(ring.name, "a") as reader:
        write(ring, 1)
        with reader.read(timeout_s=0) as slot:
            assert not slot["data"].flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                slot["index"] = 3


def test_the_writers_view_is_the_readers_memory(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 2, ["a"], writer=True, reader="a") as ring:
        with ring.reserve() as slot:
            mine = slot["data"]
        with ring.read(timeout_s=0) as slot:
            assert np.shares_memory(mine, slot["data"])


def test_an_exception_publishes_nothing(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        with pytest.raises(KeyError), ring.reserve() as slot:
            slot["index"] = 1
            raise KeyError
        assert not ring.poll()
        write(ring, 2)
        assert read(ring) == 2


def test_a_message_counts_as_consumed_when_its_block_is_left(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        assert not ring.lag("a")
        write(ring, 1)
        with ring.read(timeout_s=0):
            assert ring.statistics().consumed == {"a": 0}
            assert ring.lag("a")
        assert ring.statistics().consumed == {"a": 1}
        assert not ring.lag("a")


def test_a_failing_block_releases_its_message(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        write(ring, 1, 2)
        with pytest.raises(KeyError), ring.read():
            raise KeyError
        assert read(ring) == 2


def test_the_writer_waits_for_critical_readers_alone(ring_name: Name) -> None:
    readers = [Reader("slow"), Reader("watch", critical=False)]
    with Ring.create(ring_name(), SLOT, 2, readers, writer=True, reader="slow") as ring:
        write(ring, 1, 2)
        with pytest.raises(RingTimeout, match=r"all 2 slots are full .* critical reader 'slow' \(process"):
            write(ring, 3)
        with pytest.raises(TimeoutError):
            write(ring, 3)
        assert read(ring) == 1
        write(ring, 3)
        assert ring.statistics().lag == {"slow": 2, "watch": 3}


def test_nothing_in_time(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 2, ["a"], writer=True, reader="a") as ring:
        with pytest.raises(RingTimeout, match=r"nothing for reader 'a' within 0 s"):
            read(ring)
        with pytest.raises(RingTimeout), ring.read(timeout_s=0.001):
            pass


def test_end_of_stream(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        write(ring, 1, 2)
        ring.close_writing()
        assert ring.closed
        assert ring.lag("a")
        assert [int(slot["index"]) for slot in ring] == [1, 2]
        assert not ring.lag("a")
        with pytest.raises(RingClosed):
            read(ring)
        with pytest.raises(RingClosed):
            write(ring, 3)


def test_iteration_releases_what_it_has_given(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        write(ring, 1, 2, 3)
        for slot in ring:
            if slot["index"] == 2:
                break
        del slot
        assert read(ring) == 3


def test_leaving_the_writers_block_ends_the_stream(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], reader="a") as ring:
        with Ring.attach(ring.name, writer=True) as writer:
            write(writer, 1)
        assert read(ring) == 1
        with pytest.raises(RingClosed):
            read(ring)
        with pytest.raises(RingClosed):
            Ring.attach(ring.name, writer=True)


def test_a_writer_that_fails_is_told_apart_from_the_end(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], reader="a") as ring:
        with pytest.raises(KeyError), Ring.attach(ring.name, writer=True) as writer:
            write(writer, 1)
            raise KeyError
        assert read(ring) == 1
        with pytest.raises(WriterLost, match="left on an exception"):
            read(ring)
        with Ring.attach(ring.name, writer=True) as writer:  # restarted
            write(writer, 2)
            assert read(ring) == 2


def test_the_owner_ends_the_stream_for_all(ring_name: Name) -> None:
    ring = Ring.create(ring_name(), SLOT, 4, ["a"])
    writer, reader = Ring.attach(ring.name, writer=True), Ring.attach(ring.name, "a")
    write(writer, 1)
    ring.close()
    assert read(reader) == 1
    with pytest.raises(RingClosed):
        read(reader)
    with pytest.raises(RingClosed):
        write(writer, 2)
    writer.close()
    reader.close()
    ring.close()  # twice is harmless
    with pytest.raises(RingMissing):
        Ring.attach(ring.name)


def test_a_reader_resumes_where_its_predecessor_stopped(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 8, ["a"], writer=True) as ring:
        write(ring, 1, 2, 3, 4, 5)
        with Ring.attach(ring.name, "a") as reader:
            assert read(reader) == 1
        with Ring.attach(ring.name, "a") as reader:
            assert read(reader) == 2
            assert reader.lost == 0


def test_a_writer_resumes_the_sequence(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 3, ["a"], reader="a") as ring:
        for value in range(5):
            with pytest.raises(KeyError), Ring.attach(ring.name, writer=True) as writer:
                write(writer, value)
                raise KeyError
            assert read(ring) == value
        assert ring.statistics().published == 5


def test_an_overtaken_observer_is_told_what_it_lost(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, [Reader("watch", critical=False)], writer=True, reader="watch") as ring:
        write(ring, *range(10))
        assert read(ring) == 8  # half a ring ahead of the writer
        assert ring.lost == 8
        assert read(ring) == 9
        assert ring.lost == 0
        assert ring.statistics().overruns == {"watch": 8}


def test_an_observer_overtaken_while_reading_is_told(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, [Reader("watch", critical=False)], writer=True, reader="watch") as ring:
        write(ring, 0, 1, 2, 3)
        with pytest.raises(RingOverrun, match="overtaken while it read message 0") as caught, ring.read() as slot:
            write(ring, 4)
            assert slot["index"] == 4
        assert caught.value.lost == 1
        assert [read(ring) for _ in range(4)] == [1, 2, 3, 4]
        write(ring, 5)
        with pytest.raises(RingOverrun) as caught, ring.read():
            write(ring, *range(6, 10))
            raise KeyError("nonsense in the data")
        assert isinstance(caught.value.__cause__, KeyError)


def test_an_observer_sees_that_a_slot_is_being_overwritten(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, [Reader("watch", critical=False)], writer=True, reader="watch") as ring:
        write(ring, 0, 1, 2, 3)
        with ring.reserve() as slot:
            slot["index"] = 4
            assert read(ring) == 2
            assert ring.lost == 2


def test_roles_are_held_by_one(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        with pytest.raises(RingInUse, match="its writer is this process already"):
            Ring.attach(ring.name, writer=True)
        with pytest.raises(RingInUse, match="its reader 'a' is this process already"):
            Ring.attach(ring.name, "a")
        with Ring.attach(ring.name) as spectator:
            assert spectator.statistics().writer_alive
            for call in (spectator.reserve, spectator.read, spectator.poll, spectator.close_writing):
                with pytest.raises(RingError, match="this handle is not"):
                    call()
        with pytest.raises(RingError, match="this handle has been closed"):
            spectator.poll()


def test_one_block_at_a_time(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"], writer=True, reader="a") as ring:
        with ring.reserve(), pytest.raises(RingError, match="being written already"):
            ring.reserve()
        with ring.read(), pytest.raises(RingError, match="being read already"):
            ring.read()


def test_names_and_arguments_are_checked(ring_name: Name) -> None:
    for wrong in ("rtevo-x", "/other", "/rtevo-a/b", "/rtevo-" + "x" * 21):
        with pytest.raises(RingError, match="27 characters at most"):
            Ring.create(wrong, SLOT, 4)
    name = ring_name()
    with pytest.raises(RingError, match="slots: expected 2"):
        Ring.create(name, SLOT, 1)
    with pytest.raises(RingError, match="structured dtype"):
        Ring.create(name, np.dtype("f4"), 4)
    with pytest.raises(RingError, match="Python objects"):
        Ring.create(name, np.dtype([("x", "O")]), 4)
    with pytest.raises(RingError, match="different names"):
        Ring.create(name, SLOT, 4, ["a", "a"])
    with pytest.raises(RingError, match="expected one of a, b, got 'c'"):
        Ring.create(name, SLOT, 4, ["a", "b"], reader="c")
    with pytest.raises(RingError, match="semaphore of reader 'a'"):
        Ring.create(name, SLOT, 4, [Reader("a", semaphore="nonsense")])


def test_a_ring_describes_itself(ring_name: Name) -> None:
    nested = np.dtype([("a", "<i2"), ("b", [("c", "<f8", (2,)), ("d", "S3")], (4,)), ("when", "<M8[ns]")], align=True)
    with Ring.create(ring_name(), nested, 4) as ring, Ring.attach(ring.name, slot_dtype=nested) as other:
        assert other.slot_dtype == nested
        assert other.slots == 4


def test_a_different_slot_is_refused_by_field(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4) as ring:
        other = np.dtype([("index", "<i4"), ("data", "<f4", (3, 6)), ("text", "S8")], align=True)
        with pytest.raises(RingMismatch) as caught:
            Ring.attach(ring.name, slot_dtype=other)
        assert caught.value.field == "slot size"
        other = np.dtype([("index", "<i4"), ("data", "<f4", (5, 3)), ("text", "S8")], align=True)
        with pytest.raises(RingMismatch, match=r"slot.data shape: expected \(5, 3\), found \(3, 5\)"):
            Ring.attach(ring.name, slot_dtype=other)
        other = np.dtype([("index", "<i4"), ("data", "<f4", (3, 5)), ("test", "S8")], align=True)
        with pytest.raises(RingMismatch, match=r"slot.test offset: expected 64, found no such field"):
            Ring.attach(ring.name, slot_dtype=other)


def test_one_wake_up_for_several_rings(ring_name: Name) -> None:
    shared = ring_name()
    reader = Reader("a", semaphore=shared)
    with (
        Ring.create(ring_name(), SLOT, 4, [reader], writer=True, reader="a") as one,
        Ring.create(ring_name(), SLOT, 4, [reader], writer=True, reader="a") as two,
        Ring.create(ring_name(), SLOT, 4, ["a"], reader="a") as stranger,
    ):
        assert wait_any([one, two], timeout_s=0) == []
        write(two, 1)
        assert wait_any([one, two], timeout_s=0) == [two]
        write(one, 1)
        assert wait_any([one, two]) == [one, two]
        assert read(one) + read(two) == 2
        two.close_writing()
        assert wait_any([one, two]) == [two]
        with pytest.raises(RingError, match="share one semaphore"):
            wait_any([one, stranger])


def test_waiting_for_several_rings_counts_as_waiting(ring_name: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader("a", semaphore=ring_name())
    with (
        Ring.create(ring_name(), SLOT, 4, [reader], writer=True, reader="a") as one,
        Ring.create(ring_name(), SLOT, 4, [reader], writer=True, reader="a") as two,
    ):
        write(two, 1)
        assert wait_any([one, two]) == [two]
        read(two)
        assert two.statistics().readers[0].waits == 0  # it was there already

        def sleep(deadline: int | None) -> bool:
            write(two, 2, 3)
            return True

        assert one._reader is not None
        monkeypatch.setattr(one._reader, "sleep", sleep)
        assert wait_any([one, two]) == [two]
        assert [read(two), read(two)] == [2, 3]
        found = two.statistics().readers[0]
        assert (found.waits, found.messages, one.statistics().readers[0].waits) == (1, 3, 0)
        assert 0 < found.wake_up_ns == found.wake_up_max_ns


def test_statistics(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a", Reader("b", critical=False)], writer=True, reader="a") as ring:
        write(ring, 1, 2, 3)
        read(ring)
        found = ring.statistics()
        assert (found.published, found.depth, found.state, found.slots) == (3, 2, "open", 4)
        assert (ring.published, ring.lag("a"), ring.lag("b")) == (3, 2, 3)
        assert found.lag == {"a": 2, "b": 3}
        assert found.consumed == {"a": 1, "b": 0}
        assert 0 < found.overhead_p50_ns <= found.overhead_p99_ns
        assert found.overhead_ns > 0
        assert found.readers[0].overhead_ns > 0
        assert found.readers[0].alive
        assert not found.readers[1].alive


def test_the_spread_of_costs(ring_name: Name) -> None:
    with Ring.create(ring_name(), SLOT, 4, ["a"]) as ring:
        assert (ring.statistics().overhead_p50_ns, ring.statistics().readers[0].overhead_p99_ns) == (0, 0)
        for cost in [500] * 10 + [1500] * 85 + [10**9] * 5:
            ring._segment.note_cost(PRODUCER + SPREAD, cost)
        found = ring.statistics()
        assert found.overhead_p50_ns == 1024 + 1024 * 40 // 85  # 10 are below 1024 ns, 85 from there to 2048
        assert found.overhead_p99_ns == int(1024 * 2**14 * 1.8)  # four of the last five, which has no upper end but the next power
        ring._segment.counts[(PRODUCER + SPREAD) // 4] = 2**32 - 1
        ring._segment.note_cost(PRODUCER + SPREAD, 0)
        assert ring._segment.counts[(PRODUCER + SPREAD) // 4] == 0


@pytest.mark.parametrize("slots", [2, 3, 7, 8])
def test_counters_wrap_around(ring_name: Name, slots: int) -> None:
    readers = ["a", Reader("watch", critical=False)]
    with (
        Ring.create(ring_name(), SLOT, slots, readers, writer=True, reader="a", first_sequence=2**64 - slots - 3) as ring,
        Ring.attach(ring.name, "watch") as watch,
    ):
        for value in range(6 * slots):
            write(ring, value)
            assert read(ring) == value
            if value % 5:
                continue
            read(watch)
            assert not ring.lag("a")
        found = ring.statistics()
        assert found.published == found.consumed["a"] == ring.published == 6 * slots
        assert ring.lag("a") == 0
        assert found.depth == 0
        write(ring, *range(slots))
        with pytest.raises(RingTimeout):
            write(ring, 0)
        assert [read(ring) for _ in range(slots)] == list(range(slots))
