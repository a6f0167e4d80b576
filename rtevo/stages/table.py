"""The table of processes: what each reads and writes, and when it counts as stalled.

A stage is a loop over rings: it waits until one of the rings that it reads has something, works on it in place, publishes what follows,
and only then lets go of what it read. It leaves when everything it reads has been closed and drained, so a session winds down in the
order of its flow: evolve closes ``latents``, then generate ``images``, then bridge ``events``; the scanner stops; ingest closes
``volumes``, then decode ``scores``.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from rtevo.config import presenter_is_outside
from rtevo.errors import RtevoError, full_disk
from rtevo.session.context import Context, Kept
from rtevo.session.plan import Plan
from rtevo.session.rings import DEALT, numbered, ring_names
from rtevo.shm import RingPeerLost
from rtevo.stages import align, bridge, console, decode, evolve, generate, ingest, live, physio, pictures, presenter, record, scanner
from rtevo.stops import ignore

__all__ = ["LOCALIZER", "STAGES", "Stage", "child_main", "stages_of"]


@dataclass(frozen=True)
class Stage:
    """One process.

    Parameters
    ----------
    name : str
    target : callable
        Called with a :class:`Context` in a new process.
    reads, writes : tuple of str
        Rings (record reads every one, as an observer).
    deadline_s : float
        A stage that has something to read and has not taken it for so long has stalled, s.
    rehearsal : bool
        Only in simulate and replay: a real session has it outside.
    restarts : int
        So often it is started again when it is killed: its rings keep what it had not done.
    observer : bool
        The session continues without it.
    stays : bool
        Between the runs of a visit its process stays, with what it has loaded.
    """

    name: str
    target: Callable[[Context], None]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    deadline_s: float = 30.0
    rehearsal: bool = False
    restarts: int = 0
    observer: bool = False
    stays: bool = False

    def wanted(self, plan: Plan) -> bool:
        """Whether a session has this process."""
        if self.name == "presenter":
            return not presenter_is_outside(plan.config)
        if self.name == "console":
            return plan.config.console.port > 0
        if self.name == "live":
            return plan.config.record.lsl
        if self.name == "physio":
            return plan.config.physio.measured
        return not self.rehearsal or plan.config.acquisition.source != "watch"


STAGES: tuple[Stage, ...] = (
    Stage("ingest", ingest.run, (), ("volumes",)),
    Stage("physio", physio.run, (), ("physiology",)),
    Stage("decode", decode.run, ("volumes", "events", "physiology"), ("aligned", "placements", "scores", "series"), stays=True),
    Stage("evolve", evolve.run, ("scores", "images", "events", "series"), ("latents", "fitness")),
    Stage("generate", generate.run, ("latents",), ("images", "refused"), deadline_s=120, stays=True),  # one for each device
    # it keeps an image unread as long as the stimulus PC cannot take it, and has a limit of its own ([bridge] lost_s)
    Stage("bridge", bridge.run, ("images",), ("events",), deadline_s=math.inf, restarts=3),
    Stage("record", record.run),
    Stage("console", console.run, restarts=3, observer=True),  # it reads the log
    Stage("live", live.run, restarts=3, observer=True),  # likewise
    Stage("scanner", scanner.run, rehearsal=True),
    Stage("presenter", presenter.run, rehearsal=True),
)


LOCALIZER: tuple[Stage, ...] = (
    Stage("align", align.run, ("volumes", "events"), ("aligned",)),
    Stage("pictures", pictures.run, ("events",), ("images",)),
    *(stage for stage in STAGES if stage.name not in ("decode", "evolve", "generate")),
)
"""Of a localizer: nothing is scored, and images come from a folder."""


def stages_of(plan: Plan) -> list[Stage]:
    """Return the processes of a session: those of the table that it needs, and one that paints for each device."""
    found: list[Stage] = []
    for stage in LOCALIZER if plan.localizer else STAGES:
        if not stage.wanted(plan):
            continue
        if stage.name == "generate":
            own = zip(*(numbered(name, plan.devices) for name in ("generate", *DEALT)), strict=True)
            found += [replace(stage, name=name, writes=tuple(rings)) for name, *rings in own]
        else:
            found.append(replace(stage, reads=tuple(ring_names(plan, stage.reads))))
    return found


NO_MEMORY = "found no memory left: end other programs on this computer, or raise the limit (ulimit -v, MemoryMax of a service)"


def child_main(stage: str, plan: Plan, pipe: Connection) -> None:
    """Run one stage in this process, of one run after the other where it stays; report ready, messages and a traceback through `pipe`."""
    ignore()  # Ctrl-C reaches every process of the terminal; it is the supervisor's
    following: Plan | None = plan
    with closing(Kept()) as kept:
        while following is not None:
            following = _serve(stage, following, pipe, kept)


def _serve(stage: str, plan: Plan, pipe: Connection, kept: Kept) -> Plan | None:
    """Run one stage of one run; returns the plan of the next, None where this process is to leave."""
    context = Context(stage, plan, pipe, kept)
    try:
        own = next(s for s in stages_of(plan) if s.name == stage)
        own.target(context)
        context.tell("done")
    except BaseException as error:
        full = full_disk(error, plan.out, plan.runtime) or (NO_MEMORY if isinstance(error, MemoryError) else "")
        text = full or (str(error) if isinstance(error, RtevoError) else traceback.format_exc())
        context.tell("error", text=text, follows=isinstance(error, RingPeerLost))
        raise SystemExit(1) from None
    finally:
        context.close()
    return context.wait_for_next() if own.stays and plan.visit is not None else None
