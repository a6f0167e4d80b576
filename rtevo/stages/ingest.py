"""Scanner's files -> ``volumes``."""

from __future__ import annotations

import time
from typing import Any

from rtevo.errors import GeometryError
from rtevo.records import Grid
from rtevo.shm import Ring
from rtevo.stages.context import Context


def ingest(context: Context) -> None:
    """Scanner's files -> ``volumes``."""
    from rtevo.ingest import FolderSource

    plan, clock, settings = context.plan, context.clock, context.config.acquisition
    out = context.writer("volumes")
    source = FolderSource(
        plan.incoming,
        series=settings.series or None,
        patience_s=settings.patience_tr * plan.tr_s,
        stall_s=settings.stall_s,
        clock_ns=clock.now_ns,
    )
    context.ready()
    told = 0
    while True:
        delivered, draining = clock.get("delivered"), bool(clock.get("drain") or clock.get("abort"))
        volumes = source.poll()
        if draining:
            volumes += source.finish()
        for volume in volumes:
            _publish_volume(out, volume, plan.grid)
        for problem in source.problems[told:]:
            context.log.warning("ingest: %s", problem)
        told = len(source.problems)
        if draining or not volumes:
            clock.set("settled", delivered)
        if draining:
            break
        if not volumes:
            time.sleep(0.001 if clock.lock_step else 0.01)
    out.close_writing()


def _publish_volume(out: Ring, volume: Any, grid: Grid) -> None:
    if volume.data is not None and (difference := grid.difference(volume.grid)):
        raise GeometryError(f"volume {volume.index} ({volume.files[0]}) does not lie on the decoder's grid: {difference}")
    with out.reserve(timeout_s=30) as slot:
        slot["index"], slot["flags"], slot["acquired_s"] = volume.index, int(volume.flags), volume.acquired_s
        slot["closed_ns"] = volume.closed_ns
        slot["data"][...] = 0 if volume.data is None else volume.data
        slot["ingested_ns"] = time.monotonic_ns()
