"""The session's log -> streams of the Lab Streaming Layer, for another experiment or a lab's own page; see ``docs/live.md``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rtevo.records import NOTES, EventKind
from rtevo.session.context import Context

if TYPE_CHECKING:
    from rtevo.record import Record

LOOK_S = 0.05  # interval between reads of the log
PARAMETERS = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
MOTION = ("volume", "flags", "acquired", *PARAMETERS, "framewise_displacement", "dvars")
MOTION_UNITS = ("", "", "s", *("mm",) * 3, *("rad",) * 3, "mm", "percent")
SCORES = ("generation", "candidate", "revision", "onset", "score", "score_se", "reliability", "volumes")
SCORES_UNITS = ("", "", "", "s", "", "", "", "")


def run(context: Context) -> None:
    """The session's log -> streams, until the session is over."""
    from rtevo.record.log import LOG, LogFollower

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the library's messages must not reach the operator's terminal
    follower, streams = LogFollower(context.plan.out / LOG), Streams(context)
    streams.push(of_last_part(follower.new()))
    context.ready()
    over = False
    while not over:
        over = bool(context.clock.get("over") or context.clock.get("abort"))
        streams.push(follower.new())
        time.sleep(LOOK_S)


def of_last_part(records: Sequence[Record]) -> list[Record]:
    """Return the records since the session's last part began: earlier parts have other clocks, and were sent then."""
    from rtevo.record import Start

    begins = max((k for k, record in enumerate(records) if isinstance(record, Start)), default=0)
    return list(records[begins:])


class Streams:
    """Outlets ``rtevo-motion``, ``rtevo-scores`` and ``rtevo-events``.

    A sample's time stamp is the time of the volume's alignment, of the image's score, or of the event at the stimulus PC, on LSL's clock of
    the support computer. A blinded session, and one whose pictures the operator approves, sends no scores: these would reveal the arm.

    Parameters
    ----------
    context : Context
    """

    def __init__(self, context: Context) -> None:
        import pylsl

        self._pylsl, self._clock, self._name = pylsl, context.clock, context.plan.name
        self._motion = self._outlet("motion", MOTION, MOTION_UNITS)
        self._events = self._outlet("events", ("event",), ("JSON",), pylsl.cf_string)
        config = context.config
        hidden = config.session.condition == "blinded" or config.safety.approval != "none"
        self._scores = None if hidden else self._outlet("scores", SCORES, SCORES_UNITS)

    def _outlet(self, name: str, labels: Iterable[str], units: Iterable[str], form: int | None = None) -> Any:
        labels, lsl = list(labels), self._pylsl
        kind = "Markers" if form is not None else "fMRI"
        values = lsl.cf_double64 if form is None else form
        info = lsl.StreamInfo(f"rtevo-{name}", kind, len(labels), lsl.IRREGULAR_RATE, values, f"rtevo-{name}-{self._name}")
        info.set_channel_labels(labels)
        info.set_channel_units(list(units))
        return lsl.StreamOutlet(info)

    def push(self, records: Iterable[Record]) -> None:
        """Send the new records."""
        from rtevo.record import AlignedRecord, EventRecord, ScoreRecord

        lag_s = self._pylsl.local_clock() - time.monotonic()
        for r in records:
            if isinstance(r, AlignedRecord):
                sample = [r.index, r.flags, r.acquired_s, *r.motion, r.framewise_displacement_mm, r.dvars_percent]
                self._motion.push_sample(sample, r.aligned_ns / 1e9 + lag_s)
            elif isinstance(r, ScoreRecord) and self._scores is not None:
                sample = [r.generation, r.candidate, r.revision, r.onset_s, r.score, r.score_se, r.reliability, r.volumes_used]
                self._scores.push_sample(sample, r.scored_ns / 1e9 + lag_s)
            elif isinstance(r, EventRecord) and r.kind not in NOTES:
                text = {"event": EventKind(r.kind).name.lower(), "generation": r.generation, "candidate": r.candidate, "text": r.text}
                ago_s = (self._clock.now_ns() - r.t_ns) / 1e9
                self._events.push_sample([json.dumps(text)], self._pylsl.local_clock() - ago_s)
