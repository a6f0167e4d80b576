"""Every ring -> the session's log and files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rtevo.session.context import LOST_S, WAIT_S, Context
from rtevo.session.rings import ring_names
from rtevo.shm import Ring, RingClosed, RingOverrun, RingTimeout, WriterLost, wait_any

if TYPE_CHECKING:
    from rtevo.record import Recorder


def run(context: Context) -> None:
    """Every ring -> the session's log and files."""
    from rtevo.record import Recorder

    save_raw = context.config.record.save_volumes in ("raw", "both")
    recorder = Recorder(context.plan.out, save_raw, context.plan.part)
    inputs = {name: context.reader(name) for name in ring_names(context.plan)}
    context.ready()
    with recorder.log:
        while inputs:
            leaving = bool(context.clock.get("abort"))
            taken = _take_all(recorder, inputs, context, 0 if leaving else WAIT_S)
            if taken:
                recorder.log.sync()
            elif leaving:
                break


def _take_all(recorder: Recorder, inputs: dict[str, Ring], context: Context, timeout_s: float) -> int:
    """Record what the rings have; forget those that have ended. Gives the number of records.

    The rings are looked at against the flow and recorded along it: whatever ends the session, no effect is in the log without its cause.
    """
    if not wait_any(list(inputs.values()), timeout_s):
        return 0
    clock_ns = context.clock.now_ns()
    found = {name: _drain(name, inputs, context) for name in reversed(list(inputs))}
    for name in reversed(found):
        for slot in found[name]:
            recorder.take(name.partition("-")[0], slot, clock_ns)
    while recorder.problems:
        context.log.warning("record: %s", recorder.problems.pop(0))
    return sum(map(len, found.values()))


def _drain(name: str, inputs: dict[str, Ring], context: Context) -> list[Any]:
    """Copy what a ring has."""
    ring, taken = inputs[name], []
    try:
        while True:
            with ring.read(timeout_s=0) as slot:
                copy, lost = slot.copy(), ring.lost
            if lost:
                context.log.warning("record: the disk was slower than '%s': %d records are not in the log", name, lost)
            taken.append(copy)
    except RingOverrun as overrun:
        context.log.warning("record: the disk was slower than '%s': %s", name, overrun)
    except RingTimeout:
        pass
    except WriterLost:
        time.sleep(LOST_S)  # the supervisor starts it again, or ends the session
    except RingClosed:
        del inputs[name]
    return taken
