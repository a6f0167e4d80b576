"""``volumes`` -> ``aligned``, for a run without a decoder (a localizer)."""

from __future__ import annotations

import json
import time
from typing import Any

from rtevo.realign import first_echo
from rtevo.record.making import making_of
from rtevo.records import EventKind, RunClock, VolumeFlag, put_volume, volume_of
from rtevo.session.aligning import Aligning
from rtevo.session.context import WAIT_S, Context, serve
from rtevo.session.decoding import Aligned
from rtevo.session.pulses import PulseWatch

__all__ = ["run"]


class _Align:
    """The state of the align stage between volumes."""

    def __init__(self, context: Context) -> None:
        from rtevo import realign

        settings = context.config.decoder
        realign.warm_up(lambda text: context.progress(text))
        self.context, self.out = context, context.writer("aligned")
        self.aligning = Aligning(
            settings.threads, settings.spike_mm, lambda grid, said: making_of(context.config.acquisition, grid, said or {})
        )
        self.save = context.config.record.save_volumes in ("aligned", "both")
        self.run = RunClock(context.plan.tr_s)
        self.events_taken = 0
        context.clock.set("placed", 1)  # without a decoder, images need not wait for a placement

    def event(self, slot: Any) -> None:
        """Record the trigger."""
        self.events_taken += 1
        if slot["kind"] == EventKind.TRIGGER:
            self.run = self.run.triggered(slot["t_ns"])

    def volume(self, slot: Any) -> None:
        """Align one volume, and publish its motion."""
        from rtevo.stages.ingest import NO_GRID

        flags, clock = int(slot["flags"]), self.context.clock
        volume, grid = volume_of(slot)
        missing = bool(flags & VolumeFlag.MISSING)
        said = json.loads(slot["acquisition"]) if slot["acquisition"] else None
        aligned: Aligned = self.aligning.align(int(slot["index"]), None if missing else volume, flags, grid, said)
        if not missing:
            clock.set("unusable", clock.get("unusable") + 1 if aligned.data is None else 0)
        with self.out.reserve(timeout_s=None) as out:  # a slow disk delays this, and loses nothing
            for name in ("index", "acquired_s", "closed_ns", "ingested_ns"):
                out[name] = slot[name]
            out["flags"], out["motion"], out["aligned_ns"] = aligned.flags, aligned.motion, time.monotonic_ns()
            out["framewise_displacement_mm"] = aligned.displacement_mm
            out["dvars_percent"], out["tsnr"], out["events_taken"] = aligned.dvars_percent, aligned.tsnr, self.events_taken
            if self.save:
                put_volume(out, first_echo(volume) if aligned.data is None else aligned.data, self.aligning.grid or NO_GRID)

    def finish(self) -> None:
        """Release all resources."""
        self.aligning.close()
        self.out.close_writing()


def run(context: Context) -> None:
    """``volumes`` -> ``aligned``."""
    work, pulses = _Align(context), PulseWatch(context)
    handlers = pulses.beside(work)
    inputs = {"events": context.reader("events"), "volumes": context.reader("volumes")}
    context.ready()
    while inputs and not context.clock.get("abort"):
        if "volumes" in serve(inputs, handlers, WAIT_S):
            pulses.finish()
            work.finish()
