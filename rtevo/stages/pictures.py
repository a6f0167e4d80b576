"""A folder of pictures -> ``images``, in the order of a localizer's schedule."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rtevo.localizer import Trial
from rtevo.localizer.pictures import Pixels, load_pixels, marked
from rtevo.records import EventKind
from rtevo.session.context import WAIT_S, Context, serve
from rtevo.wire import digest

__all__ = ["AHEAD", "pixels_of", "run"]

AHEAD = 6
"""Number of pictures that the presenter holds beyond the one on the screen; the ring has room for one more."""
_MARKS = 4  # stream of random numbers
OVER = (EventKind.OFFSET, EventKind.TAKEN, EventKind.REFUSED)


def pixels_of(context: Context) -> dict[tuple[str, bool], Pixels]:
    """Load every picture of the schedule, by its name and whether it has the dot."""
    config, folder = context.config, context.plan.pictures
    assert folder is not None
    dots = config.localizer.task == "detection"
    wanted = {(trial.name, dots and trial.target) for trial in context.plan.trials}
    plain = {name: load_pixels(folder / name, config.presentation.background) for name in {name for name, _ in wanted}}
    found = {}
    for number, (name, dot) in enumerate(sorted(wanted)):
        rng = np.random.default_rng([config.session.seed, _MARKS, number])
        found[name, dot] = marked(plain[name], rng) if dot else plain[name]
    return found


class _Pictures:
    """The pictures still to be shown."""

    def __init__(self, context: Context) -> None:
        self.context, self.out = context, context.writer("images")
        self.trials = list(context.plan.trials)
        self.dots = context.config.localizer.task == "detection"
        self.pixels = pixels_of(context)
        self.sha256 = {key: digest(np.ascontiguousarray(pixels)) for key, pixels in self.pixels.items()}
        self.sent, self.done = 0, False
        self.begun, self.over = set[tuple[int, int]](), set[tuple[int, int]]()  # shown or taken out before; no longer on the screen
        self.go_on()

    def go_on(self) -> None:
        """Publish the next pictures; close ``images`` when all have been shown."""
        while not self.done and self.sent < min(len(self.trials), len(self.begun) + 1 + AHEAD):
            self.publish(self.trials[self.sent])
            self.sent += 1
        if len(self.over) == len(self.trials):
            self.finish()

    def publish(self, trial: Trial) -> None:
        """Publish one picture."""
        key = trial.name, self.dots and trial.target
        with self.out.reserve(timeout_s=None) as slot:
            slot["generation"], slot["candidate"] = trial.key
            slot["scored_ns"], slot["attempt"], slot["refused"], slot["verdict"] = 0, 0, 0, b"[]"
            slot["evolved_ns"] = slot["painted_ns"] = time.monotonic_ns()
            slot["sha256"], slot["pixels"] = self.sha256[key].encode(), self.pixels[key]

    def event(self, slot: Any) -> None:
        """Record the presenter's events."""
        key = int(slot["generation"]), int(slot["candidate"])
        if slot["kind"] in (EventKind.ONSET, *OVER):
            self.begun.add(key)
        if slot["kind"] in OVER:
            self.over.add(key)
        self.go_on()

    def finish(self) -> None:
        """Publish no more pictures."""
        if not self.done:
            self.done = True
            self.out.close_writing()


def run(context: Context) -> None:
    """A folder of pictures -> ``images``."""
    work = _Pictures(context)
    inputs = {"events": context.reader("events")}
    context.ready()
    while inputs and not context.clock.get("abort"):
        serve(inputs, {"events": work.event}, WAIT_S)
        if context.clock.ending:
            work.finish()
    work.finish()
