"""Every ring -> the session's log and files."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from rtevo.session.context import LOST_S, WAIT_S, Context
from rtevo.session.rings import ring_names
from rtevo.shm import Ring, RingClosed, RingOverrun, RingTimeout, WriterLost, wait_any

if TYPE_CHECKING:
    from rtevo.record import Recorder


def run(context: Context) -> None:
    """Every ring -> the session's log and files."""
    from rtevo.record import Recorder, secret_of

    save_raw = context.config.record.save_volumes in ("raw", "both")
    recorder = Recorder(context.plan.out, save_raw, context.plan.part, context.plan.maps, secret_of(asdict(context.config)))
    inputs = {name: context.reader(name) for name in ring_names(context.plan)}
    context.ready()
    with recorder.log:
        held: list[Taken] = []
        while inputs or held:
            leaving = bool(context.clock.get("abort"))
            if take_all(recorder, inputs, held, context, 0 if leaving else WAIT_S):
                recorder.log.sync()
            elif leaving and not held:
                break
        recorder.flush()


class Taken(NamedTuple):
    """A message that was read but is not in the log yet."""

    published_ns: int
    ring: str
    slot: Any
    clock_ns: int


def take_all(recorder: Recorder, inputs: dict[str, Ring], held: list[Taken], context: Context, timeout_s: float) -> int:
    """Record the rings' messages; drop rings that have ended. Return the number of records.

    Messages are recorded in the order of publication, up to the moment at which this pass over the rings began; later ones are held for the
    next pass. The cause of a message was published before it, so that, however the session ends, no effect is in the log without its cause,
    although events and scores follow from each other in a circle.
    """
    if not held and not wait_any(list(inputs.values()), timeout_s):
        return 0
    until_ns = time.monotonic_ns()
    for name in list(inputs):
        held += _drain(name, inputs, context)
    held.sort(key=lambda taken: taken.published_ns)
    ready = [taken for taken in held if taken.published_ns <= until_ns]
    del held[: len(ready)]
    for taken in ready:
        recorder.take(taken.ring, taken.slot, taken.clock_ns)
    while recorder.problems:
        context.log.warning("record: %s", recorder.problems.pop(0))
    return len(ready)


def _drain(name: str, inputs: dict[str, Ring], context: Context) -> list[Taken]:
    """Copy a ring's messages."""
    ring, taken = inputs[name], []
    try:
        while True:
            with ring.read(timeout_s=0) as slot:
                copy = Taken(ring.published_ns, name.partition("-")[0], slot.copy(), context.clock.now_ns())
                lost = ring.lost
            if lost:
                context.log.warning("record: the disk was slower than '%s': %d records are not in the log", name, lost)
            taken.append(copy)
    except RingOverrun as overrun:
        context.log.warning("record: the disk was slower than '%s': %s", name, overrun)
    except RingTimeout:
        pass
    except WriterLost:
        time.sleep(LOST_S)  # the supervisor restarts the writer, or ends the session
    except RingClosed:
        del inputs[name]
    return taken
