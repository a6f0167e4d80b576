"""``images`` -> the presenter; its reports -> ``events``.

If this process is killed, the supervisor restarts it. The new process finds its state in the session's shared words; the ring keeps every
image that the presenter does not have, because a slot is only released when the presenter has its image.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.config import presentation_settings, presenter_is_outside
from rtevo.records import NOTES, EventKind, named
from rtevo.session.clock import RUNNING, Clock
from rtevo.session.context import Context, Turns
from rtevo.shm import Ring, RingClosed, RingTimeout
from rtevo.wire import GIVEN, MAX_TEXT_BYTES, NEXT, PASSED, RESTART, TAKERS

if TYPE_CHECKING:
    from rtevo.bridge import Bridge, Physiology, Predecessor, PresenterEvent

_NUMBER = 32  # bits of the shared word for the number of an event in its ring; one more bit for its origin, then the presenter's number


class _LockStep:
    """Represents the presenter at the conductor, because the presenter's process cannot see the shared words."""

    def __init__(self, clock: Clock, link: Bridge) -> None:
        self.clock, self.link = clock, link
        self.grants, self.told = clock.get("presenter_grants"), RUNNING

    def _tell(self, wake_ns: int) -> None:
        if wake_ns != self.told:
            self.told = wake_ns
            self.clock.set("presenter_wake_ns", wake_ns)

    def busy(self) -> None:
        """Stop time before a message to the presenter, until it has handled the message."""
        self._tell(RUNNING)
        self.link.tick(self.clock.now_ns())

    def step(self) -> None:
        """Pass a granted time on to the presenter, and its next wake-up time back."""
        grants = self.clock.get("presenter_grants")
        if grants != self.grants:
            self.grants, self.told = grants, RUNNING  # as set by the conductor
            self.link.tick(self.clock.now_ns())
        idle_until_ns = self.link.idle_until_ns
        self._tell(RUNNING if idle_until_ns is None else idle_until_ns)


class _Images:
    """Passes images to the link, one at a time: the ring keeps each until the presenter has it.

    Images that the gate refused are skipped, as are those that the operator does not approve.
    """

    def __init__(self, ring: Turns, link: Bridge, context: Context) -> None:
        self.ring, self.link, self._context, config = ring, link, context, context.config
        self.ended = False
        self._held = ExitStack()
        self._waiting: Any = None  # a slot that needs the operator's approval
        self._given = {trial.key: trial for trial in context.plan.trials}  # the site's own pictures, which need no verdict
        self._each = config.safety.approval == "each" and not self._given
        self._approved: set[str] = set()
        self._unwanted: set[tuple[int, int]] = set()
        self._jitter_s, self._washout_s = config.presentation.washout_jitter_s, config.presentation.washout_s
        self._seed = config.session.seed

    def _order(self, action: str, text: str) -> None:
        """Carry out an operator's order for an image: GENERATION/CANDIDATE/SHA256 (its first digits); empty: the image on the screen."""
        if action == "show":
            self._approved.add(text)
            return
        key = (int(text.split("/")[0]), int(text.split("/")[1])) if text else (-1, -1)
        if text:
            self._unwanted.add(key)
        if not self.link.take_away(*key):
            self._context.log.warning(
                "bridge: nothing was taken away: %s", "the image is no longer on the screen" if text else "no image was on the screen"
            )

    def serve(self, lock_step: _LockStep | None, wanted: bool) -> None:
        """Carry out orders, release received images, send the next one; after the end, only release."""
        for action, text in self._context.orders():
            self._order(action, text)
        if self.ended or (wanted and self.link.in_flight):
            return
        slot = self._waiting if self._waiting is not None else self._next(lock_step)
        self._waiting = None
        if slot is None or not wanted or slot["refused"]:
            return
        key = int(slot["generation"]), int(slot["candidate"])
        sha256 = bytes(slot["sha256"]).decode()
        if key in self._unwanted:
            self.link.never_show(*key)
        elif self._each and named(*key, sha256) not in self._approved:
            self._waiting = slot
        elif (trial := self._given.get(key)) is not None:
            self.link.send_image(*key, slot["pixels"], trial.washout_s, verdict=GIVEN, sha256=sha256, image_s=trial.image_s)
        else:
            self.link.send_image(*key, slot["pixels"], self._washout(*key), verdict=PASSED, sha256=sha256)

    def _next(self, lock_step: _LockStep | None) -> Any:
        """Release the previous slot, and return the next one; None: none."""
        self._held.close()
        try:
            slot = self._held.enter_context(self.ring.read(timeout_s=0))
        except RingTimeout:
            return None
        except RingClosed:
            self.ended = True
            return None
        if lock_step:
            lock_step.busy()
        return slot

    def _washout(self, generation: int, candidate: int) -> float:
        """Return the random fixation after an image, s: always the same for the same image."""
        rng = np.random.default_rng([self._seed, 2, max(0, generation), max(0, candidate)])
        return self._washout_s + self._jitter_s * float(rng.random())


class _Start:
    """Time zero of the onsets: the trigger, or an earlier time that the operator accepts before the first image."""

    def __init__(self, context: Context) -> None:
        self._clock, self._tr_s, self._log = context.clock, context.plan.tr_s, context.log
        self._trigger: PresenterEvent | None = None
        self._shown = False

    def follow(self, event: PresenterEvent) -> None:
        """Record the trigger and the first image."""
        if event.kind == EventKind.TRIGGER:
            self._trigger = event
        self._shown |= event.kind == EventKind.ONSET

    def corrected(self, number: int) -> PresenterEvent | None:
        """Return the corrected trigger, if the operator has accepted one; `number`: see `PresenterEvent.sequence`."""
        shift = self._clock.get("start_accepted")
        if not shift:
            return None
        self._clock.set("start_accepted", 0)
        if self._trigger is None or self._shown:
            self._log.warning("bridge: the start can no longer be corrected: images have been shown, or the bridge was restarted")
            return None
        earlier_ns = round(shift * self._tr_s * 1e9 / (self._clock.speed or 1.0))
        text = f"corrected by {shift} repetition times, from the volumes' times"
        self._trigger = replace(self._trigger, mono_ns=self._trigger.mono_ns - earlier_ns, text=text, sequence=number)
        return self._trigger


def run(context: Context) -> None:
    """``images`` -> the presenter; its reports -> ``events``."""
    from rtevo.bridge import Bridge, Physiology

    config, clock = context.config, context.clock
    images, events = context.images(), context.writer("events")
    outside = presenter_is_outside(config)
    port = clock.get("bridge_port")
    with (
        Bridge(
            config.bridge.bind if outside else f"tcp://127.0.0.1:{port}",
            presentation_settings(config, visit=context.plan.visit is not None),
            keys=Path(config.bridge.keys) if outside and config.bridge.keys else None,
            lost_s=config.bridge.lost_s,
            session=f"{context.plan.name}-{context.plan.out.name}",
            predecessor=_predecessor(clock, events) if port else None,
        ) as link,
        ExitStack() as stack,
    ):
        sensor = None
        if config.session.condition == "physiology":
            sensor = stack.enter_context(closing(Physiology(config.bridge.osc, config.bridge.osc_path)))
        clock.set("bridge_port", int(link.endpoint.rsplit(":", 1)[1]))
        context.ready(endpoint=link.endpoint)
        context.wait_for_go()
        lock_step = _LockStep(clock, link) if clock.lock_step else None
        outgoing = _Images(images, link, context)
        ending = ended = False
        _pause(clock, link, None)  # this bridge may replace one that was killed in a pause
        start = _Start(context)
        met = outside or bool(port)  # the session's own presenter is starting, and must be informed even if there is nothing to show
        while not (outgoing.ended and ended):
            for event in [*link.poll(timeout_s=0.001 if lock_step else 0.005), *_physiology(sensor, link)]:
                _tell(context, event, last=outgoing.ended and not link.in_flight)
                _publish_event(events, event, clock)
                start.follow(event)
                ended |= event.kind == EventKind.END
                if sensor and event.kind == EventKind.ONSET:
                    sensor.onset(event.generation, event.candidate, event.mono_ns)
            if lock_step and not ended:  # after the end time stands still until the supervisor has seen this stage end
                lock_step.step()
            _pause(clock, link, lock_step)
            _at_the_door(clock, link)
            if corrected := start.corrected(-link.received):
                _publish_event(events, corrected, clock)
            outgoing.serve(lock_step, wanted=not (ending or ended))
            if ended and not ending:
                clock.set("end", 1)  # Escape: no more images are shown
            met |= link.connected or bool(clock.get("end"))
            if met and (clock.ending or (outgoing.ended and not link.in_flight)) and not ending:
                ending = True
                if lock_step:
                    lock_step.busy()
                stopped = bool(clock.get("end"))
                link.end(_reason(clock, stopped, context.plan.visit is not None), at_once=stopped)
            clock.set("images_told", int(outgoing.ended and (ending or not met)))
            if clock.get("abort"):
                break
        _tell_clock(context, link)
    events.close_writing()


def _at_the_door(clock: Clock, link: Bridge) -> None:
    """Report a waiting presenter to the operator, and admit it if the operator agrees."""
    waiting = link.waiting
    number = waiting[0] if waiting else 0
    clock.set("presenter_waits", number)
    clock.set("presenter_place", link.place)
    clock.set("presenter_process", link.process)
    if admitted := clock.get("presenter_admitted"):
        clock.set("presenter_admitted", 0)
        if admitted == number:
            link.admit(number)


def _reason(clock: Clock, stopped: bool, visit: bool) -> str:
    """Return the reason for the session's end, for the presenter."""
    if clock.get("restart"):
        return RESTART
    if visit:
        return NEXT
    return "failed" if clock.get("abort") else "stopped" if stopped else "finished"


def _pause(clock: Clock, link: Bridge, lock_step: _LockStep | None) -> None:
    """Hold the presenter's fixation until the decoder is placed, while images cannot be scored, and in the operator's pauses."""
    placed, held = clock.get("placed"), clock.get("held")
    paused = bool(clock.get("pause") or held) or not placed
    if lock_step and paused != link.paused:
        lock_step.busy()
    link.pause(paused)
    clock.set("placed_told", placed)
    clock.set("held_told", held)


def _physiology(sensor: Physiology | None, link: Bridge) -> list[PresenterEvent]:
    """Return the measured responses, as events."""
    from rtevo.bridge import PresenterEvent

    if sensor is None:
        return []
    return [
        PresenterEvent(EventKind.PHYSIOLOGY, generation, candidate, mono_ns, 0, value, sequence=-link.received)
        for generation, candidate, mono_ns, value in sensor.poll()
    ]


def _predecessor(clock: Clock, events: Ring) -> Predecessor:
    """Return the state of the bridge that this one replaces.

    The word is written just before its event is published; the ring shows whether that happened.
    """
    from rtevo.bridge import Predecessor

    word = clock.get("bridge_event")
    number, own, published = word >> (_NUMBER + 1), word >> _NUMBER & 1, word & (1 << _NUMBER) - 1
    done = own or events.published % (1 << _NUMBER) == published
    presenter = clock.get("presenter_place"), clock.get("presenter_process")
    return Predecessor(number if done else number - 1, bool(clock.get("triggered")), *presenter)


def _publish_event(events: Ring, event: PresenterEvent, clock: Clock) -> None:
    if event.kind == EventKind.TRIGGER:
        clock.set("trigger_ns", clock.session_ns(event.mono_ns))
        clock.set("trigger_error_ns", event.error_ns)
        clock.set("triggered", 1)
    elif event.kind == EventKind.ONSET:
        clock.set("shown", 1)
    published = (events.published + 1) % (1 << _NUMBER)
    clock.set("bridge_event", abs(event.sequence) << (_NUMBER + 1) | (event.sequence <= 0) << _NUMBER | published)
    with events.reserve(timeout_s=30) as slot:
        slot["kind"], slot["generation"], slot["candidate"] = event.kind, event.generation, event.candidate
        slot["t_ns"], slot["error_ns"] = clock.session_ns(event.mono_ns), event.error_ns
        slot["received_ns"], slot["value"], slot["response_time_s"] = time.monotonic_ns(), event.value, event.response_time_s
        slot["guess"], slot["text"] = event.guess, event.text.encode(errors="backslashreplace")[:MAX_TEXT_BYTES]


def _tell(context: Context, event: PresenterEvent, *, last: bool) -> None:
    """Log problems for the operator; after the last image a missing image is no problem."""
    if event.kind in NOTES:
        (context.log.info if event.kind == EventKind.READY else context.log.warning)("bridge: %s", event.text)
    elif event.kind == EventKind.FIXATION and not last:
        context.log.info("presenter holds fixation: %s", event.text.removeprefix("held: "))
    elif event.kind == EventKind.STOP_ASKED or (event.kind == EventKind.TAKEN and event.text == TAKERS[1]):
        what = "asks to stop: Stop ends the session" if event.kind == EventKind.STOP_ASKED else "has taken the image away"
        context.log.error("The participant %s", what)
    elif event.kind == EventKind.REFUSED:
        context.log.error("The stimulus PC has refused image %d/%d: %s", event.generation, event.candidate, event.text)
    elif event.kind == EventKind.OFFSET and event.value > 0:
        context.log.info("presenter dropped %d frames up to the end of image %d/%d", event.value, event.generation, event.candidate)


def _tell_clock(context: Context, link: Bridge) -> None:
    """Log the error bound of the stimulus PC's clock."""
    clock = link.clock
    if len(clock):
        offset_ns, error_ns = clock.now()
        context.log.info(
            "bridge: stimulus PC's clock: offset %.6f s, drift %+.2f ppm, known to %.3f ms",
            offset_ns / 1e9, clock.drift_ppm, error_ns / 1e6,
        )  # fmt: skip
