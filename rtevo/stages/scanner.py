"""The surroundings of a watched session in a rehearsal: the scanner room and the stimulus PC."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rtevo.config import Config, is_localizer, presenter_is_outside
from rtevo.session.clock import NEVER
from rtevo.session.context import Context
from rtevo.session.sensors import SIMULATED_SENSORS
from rtevo.session.simulation import simulation
from rtevo.simulate import Delivery, FaultyWriter, ParticipantLink, Room, run_scanner

__all__ = ["run"]

FAULTS = 6  # stream of random numbers of the faults
CALLING = "SIMULATOR"  # AE title


def run(context: Context) -> None:
    """Simulate the scanner room: see the presenter's screen, press the trigger, deliver a volume's files every TR."""
    config = context.config
    outside = presenter_is_outside(config)
    keys = Path(config.bridge.keys) if outside and config.bridge.keys else None
    keys = keys / "support.json" if keys is not None and keys.is_dir() else keys
    with ParticipantLink(config.simulation.participant or context.plan.participant_endpoint, keys=keys) as link:
        (_replay if context.config.acquisition.source == "replay" else _simulate)(context, link)
    context.clock.set("scanner_wake_ns", NEVER)


def _simulate(context: Context, link: ParticipantLink) -> None:
    from rtevo.simulate.dicom import MosaicWriter
    from rtevo.simulate.echoes import ECHO_S
    from rtevo.simulate.send import PushEncoder

    plan, clock = context.plan, context.clock
    settings = simulation(context.config, plan.tr_s, plan.part)
    head = settings.head()
    started = datetime.datetime(2000, 1, 1, 12) if clock.lock_step else None  # the same files, byte for byte, every time
    name = "rtevo_simulated_bold"
    encoders: list[Any]
    if context.config.acquisition.delivery == "push":
        encoders = [PushEncoder(head.grid, plan.tr_s, name, settings.echo_times_s)]
    else:
        times_s = settings.echo_times_s or (ECHO_S,)
        echoes = [(k + 1, len(times_s), te_s) for k, te_s in enumerate(times_s)]
        started = started or datetime.datetime.now()
        encoders = [MosaicWriter(plan.incoming, head.grid, plan.tr_s, description=name, started=started, echo=echo) for echo in echoes]
    context.ready()
    if not (told := context.wait_for_go()):
        return
    with _delivery(context, told) as delivery:
        writer = FaultyWriter(encoders[0], delivery, encoders[1:])
        run_scanner(
            settings, writer, link, clock, plan.out,
            head=head, on_volume=lambda index: clock.set("delivered", index + 1), patience_s=_patience_s(context.config),
            first_volume=plan.first_volume, task=_task(context.config), sensors=plan.runtime / SIMULATED_SENSORS,
        )  # fmt: skip


def _task(config: Config) -> str:
    """Return the participant's task in a localizer."""
    return config.localizer.task if is_localizer(config) and config.localizer.task != "none" else ""


def _patience_s(config: Config) -> float:
    """Return the longest wait for the presenter, which is longer for another computer."""
    return 3600.0 if presenter_is_outside(config) else 60.0


@contextmanager
def _delivery(context: Context, told: dict[str, Any]) -> Iterator[Delivery]:
    """Yield the delivery of the scanner's files: to the watched folder or over the network, with faults if the session has some."""
    from rtevo.simulate.send import PushSender, StoreSender

    plan, settings, faults = context.plan, context.config.acquisition, context.config.simulation.faults
    with ExitStack() as stack:
        into: Any = plan.incoming
        if settings.delivery == "dicom":
            into = stack.enter_context(StoreSender("127.0.0.1", told["volumes_port"], settings.ae_title, CALLING)).send
        elif settings.delivery == "push":
            into = stack.enter_context(PushSender(f"tcp://127.0.0.1:{told['volumes_port']}")).send
        delivery = Delivery(into, faults, seed=[FAULTS, context.config.session.seed])
        try:
            yield delivery
            delivery.finish()
        finally:
            if faults:
                (plan.out / "faults.tsv").write_text(delivery.faults.table(delivery.fates), encoding="utf-8")


class _Stopped(Exception):  # noqa: N818 - the way out of a replay, not an error
    """Raised if the session ends before the recording does."""


def _replay(context: Context, link: ParticipantLink) -> None:
    from rtevo.ingest import Replay

    plan, clock, settings = context.plan, context.clock, context.config.acquisition
    recording = Replay(settings.folder, plan.incoming, series=settings.series or None, tr_s=plan.tr_s, echoes=settings.echoes)
    context.ready()
    if not (told := context.wait_for_go()):
        return
    volumes = 0

    def wait_until(t_s: float) -> None:
        nonlocal volumes
        clock.set("delivered", volumes)
        volumes += 1
        if not room.wait_until(room.start_s + t_s + plan.tr_s):
            raise _Stopped

    with Room(link, clock) as room, suppress(_Stopped):
        if room.begin(plan.tr_s, context.config.presentation.trigger_key, _patience_s(context.config)):
            with _delivery(context, told) as delivery:
                recording.run(wait_until, delivery.send)
            clock.set("delivered", volumes)
            clock.set("drain", 1)
            room.wait_until(math.inf)  # the participant must still see the presenter's last pictures
