"""A ring does what a list does: random operations of a writer, two critical readers and an observer against a simple model."""

from __future__ import annotations

import itertools
import os
from contextlib import AbstractContextManager

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtevo.shm import Reader, Ring, RingClosed, RingOverrun, RingTimeout, WriterLost
from rtevo.shm.errors import RingError

SLOT = np.dtype([("value", "<i8"), ("data", "<i8", (9,))], align=True)
CRITICAL, OBSERVER = ("a", "b"), "watch"
_counter = itertools.count()

reader_names = st.sampled_from((*CRITICAL, OBSERVER))


class RingMachine(RuleBasedStateMachine):
    """The model: a list of everything published, and each reader's place in it."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[int] = []
        self.place = dict.fromkeys((*CRITICAL, OBSERVER), 0)
        self.handles: dict[str, Ring] = {}
        self.reading: dict[str, tuple[AbstractContextManager[np.void], np.void, bool]] = {}  # held blocks; overtaken?
        self.writing: tuple[AbstractContextManager[np.void], int] | None = None
        self.attempted = 0  # messages begun, published or not
        self.state = "open"

    @initialize(
        slots=st.integers(2, 6),
        first=st.one_of(st.just(0), st.integers(2**64 - 40, 2**64 - 1)),
    )
    def create(self, slots: int, first: int) -> None:
        name = f"/rtevo-h{os.getpid()}-{next(_counter)}"
        self.slots = slots
        readers = [*CRITICAL, Reader(OBSERVER, critical=False)]
        self.owner = Ring.create(name, SLOT, slots, readers, first_sequence=first)
        self.handles["writer"] = Ring.attach(name, writer=True)
        for reader in self.place:
            self.handles[reader] = Ring.attach(name, reader)

    def teardown(self) -> None:
        if hasattr(self, "owner"):
            for handle in self.handles.values():
                handle.close()
            self.owner.close()

    # -- the model -------------------------------------------------------------------------------------------------------------

    def lag(self, reader: str) -> int:
        return len(self.published) - self.place[reader]

    def full(self) -> bool:
        return any(self.lag(reader) == self.slots for reader in CRITICAL)

    def begin(self) -> None:
        """The writer takes a slot: readers of its message, and readers that have not read it yet, are overtaken."""
        overwritten = len(self.published) - self.slots
        if OBSERVER in self.reading and self.place[OBSERVER] <= overwritten:
            block, slot, _ = self.reading[OBSERVER]
            self.reading[OBSERVER] = (block, slot, True)
        self.attempted = max(self.attempted, len(self.published) + 1)

    # -- rules -----------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: "writer" not in self.handles)
    @rule()
    def attach_writer(self) -> None:
        if self.state == "ended":
            with pytest.raises(RingClosed):
                Ring.attach(self.owner.name, writer=True)
            return
        self.handles["writer"] = Ring.attach(self.owner.name, writer=True)
        self.state = "open"

    @precondition(lambda self: "writer" in self.handles and self.writing is None)
    @rule(value=st.integers(-(2**62), 2**62), outcome=st.sampled_from(["publish", "publish", "publish", "fail", "hold"]))
    def write(self, value: int, outcome: str) -> None:
        writer = self.handles["writer"]
        block = writer.reserve(timeout_s=0)
        if self.state == "ended" or self.full():
            with pytest.raises(RingClosed if self.state == "ended" else RingTimeout):
                block.__enter__()
            return
        slot = block.__enter__()
        self.begin()
        slot["value"] = value
        slot["data"][...] = value
        if outcome == "publish":
            block.__exit__(None, None, None)
            self.published.append(value)
        elif outcome == "fail":
            block.__exit__(KeyError, KeyError(), None)
        else:
            self.writing = (block, value)

    @precondition(lambda self: self.writing is not None)
    @rule(publish=st.booleans())
    def finish_writing(self, publish: bool) -> None:
        assert self.writing is not None
        block, value = self.writing
        self.writing = None
        if publish:
            block.__exit__(None, None, None)
            self.published.append(value)
        else:
            block.__exit__(KeyError, KeyError(), None)

    @precondition(lambda self: "writer" in self.handles)
    @rule(how=st.sampled_from(["fail"] * 8 + ["close", "close_writing"]))
    def writer_leaves(self, how: str) -> None:
        writer = self.handles["writer"]
        if how == "close_writing":
            writer.close_writing()
            self.state = "ended"
            return
        self.writing = None
        del self.handles["writer"]
        if how == "close":
            writer.close()
            self.state = "ended"
        else:
            writer.__exit__(KeyError, KeyError(), None)
            self.state = "broken" if self.state == "open" else self.state

    @rule(reader=reader_names)
    def attach_reader(self, reader: str) -> None:
        if reader in self.handles:
            with pytest.raises(RingError):
                Ring.attach(self.owner.name, reader)
            return
        self.handles[reader] = Ring.attach(self.owner.name, reader)

    @rule(reader=reader_names)
    def reader_leaves(self, reader: str) -> None:
        if reader in self.handles:
            self.handles.pop(reader).close()
            self.reading.pop(reader, None)

    @rule(reader=reader_names, hold=st.booleans())
    def read(self, reader: str, hold: bool) -> None:
        if reader not in self.handles or reader in self.reading:
            return
        ring = self.handles[reader]
        block = ring.read(timeout_s=0)
        if self.lag(reader) == 0:
            expected = {"open": RingTimeout, "ended": RingClosed, "broken": WriterLost}[self.state]
            with pytest.raises(expected):
                block.__enter__()
            return
        slot = block.__enter__()
        if reader == OBSERVER and self.place[reader] <= self.attempted - 1 - self.slots:  # overtaken before
            self.place[reader] = len(self.published) - self.slots // 2
        assert slot["value"] == self.published[self.place[reader]]
        assert (slot["data"] == slot["value"]).all()
        self.reading[reader] = (block, slot, False)
        if not hold:
            self.finish_reading(reader)

    @precondition(lambda self: "writer" in self.handles and self.writing is None and self.state == "open")
    @rule(count=st.integers(1, 13))
    def flow(self, count: int) -> None:
        """Write and let the critical readers follow; the observer stays where it is."""
        for value in range(count):
            for reader in CRITICAL:
                if reader in self.handles and reader not in self.reading and self.lag(reader):
                    self.read(reader, hold=False)
            self.write(value, "publish")

    @rule(reader=reader_names)
    def finish_reading(self, reader: str) -> None:
        if reader not in self.reading:
            return
        block, slot, overtaken = self.reading.pop(reader)
        if overtaken:
            with pytest.raises(RingOverrun):
                block.__exit__(None, None, None)
        else:
            assert slot["value"] == self.published[self.place[reader]]
            assert (slot["data"] == slot["value"]).all()
            block.__exit__(None, None, None)
        self.place[reader] += 1

    # -- always ----------------------------------------------------------------------------------------------------------------

    @invariant()
    def the_counters_agree(self) -> None:
        if not hasattr(self, "owner"):
            return
        found = self.owner.statistics()
        assert found.published == len(self.published)
        assert found.consumed == self.place
        assert found.lag == {reader: self.lag(reader) for reader in self.place}
        assert found.depth == max(self.lag(reader) for reader in CRITICAL)
        assert self.owner.closed == (self.state == "ended")
        for reader in self.place:
            if reader in self.handles:
                assert self.handles[reader].poll() == (self.lag(reader) > 0)


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
