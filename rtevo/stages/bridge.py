"""``images`` -> the presenter; what it reports -> ``events``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo.clock import RUNNING, Clock
from rtevo.config import Config
from rtevo.records import EventKind
from rtevo.shm import Ring
from rtevo.stages.context import Context, serve
from rtevo.wire import PresentationSettings

if TYPE_CHECKING:
    from rtevo.bridge import Bridge, PresenterEvent


class _LockStep:
    """Stands in for the presenter at the conductor: it lives on another computer and cannot see the shared words."""

    def __init__(self, clock: Clock, link: Bridge) -> None:
        self.clock, self.link = clock, link
        self.grants, self.told = clock.get("presenter_grants"), RUNNING

    def _tell(self, wake_ns: int) -> None:
        if wake_ns != self.told:
            self.told = wake_ns
            self.clock.set("presenter_wake_ns", wake_ns)

    def busy(self) -> None:
        """Something is about to be sent to the presenter: time stands still until it has dealt with it."""
        self._tell(RUNNING)
        self.link.tick(self.clock.now_ns())

    def step(self) -> None:
        """Pass a granted time on to the presenter, and what it waits for back."""
        grants = self.clock.get("presenter_grants")
        if grants != self.grants:
            self.grants, self.told = grants, RUNNING  # as the conductor has left it
            self.link.tick(self.clock.now_ns())
        idle_until_ns = self.link.idle_until_ns
        self._tell(RUNNING if idle_until_ns is None else idle_until_ns)


def bridge(context: Context) -> None:
    """``images`` -> the presenter; what it reports -> ``events``."""
    from rtevo.bridge import Bridge

    config, clock = context.config, context.clock
    inputs, events = {"images": context.reader("images")}, context.writer("events")
    watched = config.acquisition.source == "watch"
    with Bridge(
        config.bridge.bind if watched else "tcp://127.0.0.1:0",
        presentation_settings(config),
        keys=Path(config.bridge.keys) if watched and config.bridge.keys else None,
        lost_s=config.bridge.lost_s,
    ) as link:
        context.ready(endpoint=link.endpoint)
        context.wait_for_go()
        lock_step = _LockStep(clock, link) if clock.lock_step else None
        ending = ended = False

        def send(slot: Any) -> None:
            if lock_step:
                lock_step.busy()
            if not ending:
                link.send_image(int(slot["generation"]), int(slot["candidate"]), slot["pixels"])

        while inputs or not ended:
            for event in link.poll(timeout_s=0.001 if lock_step else 0.005):
                _publish_event(events, event, clock)
                ended |= event.kind == EventKind.END
            if lock_step and not ended:  # after the end time stands still until the supervisor has seen this stage leave
                lock_step.step()
            if inputs:
                serve(inputs, {"images": send}, timeout_s=0)
            if ended and not ending:
                clock.set("end", 1)  # Escape: nobody looks any more
            if (clock.ending or not inputs) and not ending:
                ending = True
                if lock_step:
                    lock_step.busy()
                link.end("failed" if clock.get("abort") else "stopped" if clock.get("end") else "finished")
            if clock.get("abort"):
                break
    events.close_writing()


def _publish_event(events: Ring, event: PresenterEvent, clock: Clock) -> None:
    with events.reserve(timeout_s=30) as slot:
        slot["kind"], slot["generation"], slot["candidate"] = event.kind, event.generation, event.candidate
        slot["t_ns"], slot["error_ns"] = clock.session_ns(event.mono_ns), event.error_ns
        slot["received_ns"], slot["value"], slot["response_time_s"] = time.monotonic_ns(), event.value, event.response_time_s
        slot["text"] = event.text.encode()[:96]


def presentation_settings(config: Config) -> PresentationSettings:
    """Give what the presenter is told in its welcome."""
    told = asdict(config.presentation)
    if config.session.condition != "ratings":
        told["rating_window_s"] = 0.0
    return PresentationSettings(**told, speed=config.session.speed)
