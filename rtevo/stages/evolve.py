"""``scores``, ``events`` and ``images`` -> ``latents`` and ``fitness``."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.evolve import Course, Request, Told
from rtevo.evolve.series import warm_up
from rtevo.evolve.together import Link
from rtevo.latent import LatentSpace
from rtevo.outside import parse_json
from rtevo.past.evolution import go_through, measured, volumes_of
from rtevo.record import ImageRecord, earlier, is_measured, of_kind, seal, secret_of
from rtevo.records import EventKind, Given, Projected, RunClock
from rtevo.session.context import WAIT_S, Context, Turns, serve
from rtevo.session.course import make_course, state_of
from rtevo.session.plan import MEASURED
from rtevo.session.rings import looks_at_volumes
from rtevo.session.safety import avoid_of
from rtevo.session.silence import Answers
from rtevo.shm import Ring

STATE_BYTES = 1 << 20  # that the state of a session that is sealed is filled up to: how long it is depends on what drives it
SERIES_STATE_BYTES = 1 << 22  # the same where it may hold the volumes, too: some conditions keep them, others do not


class _Evolve:
    """State of the evolve stage between scores."""

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.config.evolution
        self.space = LatentSpace.load(context.plan.latent_space)
        avoid = avoid_of(context.config, self.space, context.plan.out)
        self.course: Course = make_course(context.config, context.plan.condition, self.space, avoid)
        self.latents_out, self.fitness_out = context.writer("latents"), context.writer("fitness")
        self.run = RunClock(context.plan.tr_s, context.plan.first_volume)
        self.elapsed_s, self.scored_ns, self.saved = self.run.begins_s, 0, -1
        self.scores_taken = self.volumes_taken = 0
        self.last_offset_ns: int | None = None
        self.approved = context.config.safety.approval == "each"  # then images wait for the operator, not for being painted
        self.asked: dict[tuple[int, int], NDArray[np.float32]] = {}
        self.shown: set[tuple[int, int]] = set()
        self.over: set[tuple[int, int]] = set()  # shown to their end
        self.done = False
        self.secret = secret_of(asdict(context.config))
        self.answers = Answers(context.plan.condition) if context.plan.condition in MEASURED else None
        if context.plan.part:
            self.take_up()
        self.go_on()

    def take_up(self) -> None:
        """Restore the state of the interruption: request the images not shown yet, and publish what the log lacks."""
        plan = self.context.plan
        log = earlier(plan.out, plan.part)
        images = of_kind(log, ImageRecord) if self.settings.use_post_encodings else []
        place = {(r.generation, r.candidate): self.space.to_latent(r.embedding[np.newaxis])[0] for r in images}
        try:
            past = go_through(self.course, log, measured(log, plan.condition), place, volumes=volumes_of(log))
        except ValueError as error:
            raise DataError(f"{plan.out}: its log does not match the session's settings: {error}") from None
        self.scores_taken, self.volumes_taken = past.scores_taken, past.volumes_taken
        for told, taken in past.told:
            self.publish([told], taken)
        if plan.rebaseline or plan.condition in MEASURED:  # nothing more will be known of what was shown
            self.publish(self.course.give_up(past.shown), given_up=Given.UP)
        self.asked, self.shown = dict(past.latents), set(past.shown)
        for key in past.refused:
            self.refuse(key, measured=key in past.measured, go_on=False)
        self.ask(past.pending)

    def go_on(self) -> None:
        """Request the images that are due; close ``latents`` when there will be none and all are scored."""
        if self.done:
            return
        self.ask(self.course.due(self.elapsed_s))
        if self.course.generation > self.saved:
            self.save()
        if self.course.finished and not self.course.missing:
            self.finish()

    def ask(self, requests: Sequence[Request]) -> None:
        """Have images painted."""
        for request in requests:
            with self.latents_out.reserve(timeout_s=30) as slot:
                slot["generation"], slot["candidate"], slot["probe"] = request.generation, request.candidate, request.probe
                slot["scores_taken"], slot["seed"] = self.scores_taken, self.noise_seed(request.generation, request.candidate)
                slot["volumes_taken"], slot["onsets_taken"] = self.volumes_taken, len(self.shown)
                slot["scored_ns"], slot["evolved_ns"] = self.scored_ns, time.monotonic_ns()
                slot["latent"], slot["embedding"] = request.latent, self.space.to_embedding(request.latent)
            self.asked[request.generation, request.candidate] = request.latent
        if requests:
            self.last_offset_ns = None

    def noise_seed(self, generation: int, candidate: int) -> int:
        """Seed of one picture's diffusion noise."""
        seed = self.context.config.generator.noise_seed or self.context.config.session.seed
        if self.context.config.generator.same_noise:
            return seed
        return int(np.random.SeedSequence([seed, generation, candidate]).generate_state(1)[0])

    def save(self) -> None:
        """Save what another run needs to continue from here."""
        self.saved = self.course.generation
        path = self.context.plan.out / "evolution.json"
        partial = path.with_name(path.name + ".part")
        state = json.dumps(state_of(self.course, self.space)).encode()
        multiple = SERIES_STATE_BYTES if looks_at_volumes(self.context.config) else STATE_BYTES
        partial.write_bytes(seal(state, self.secret, multiple) if self.secret else state)
        os.replace(partial, path)

    def finish(self) -> None:
        """Request no more images; scores that still arrive are used and recorded."""
        if not self.done:
            self.done = True
            self.course.stop()
            self.latents_out.close_writing()

    def refuse(self, key: tuple[int, int], *, measured: bool, go_on: bool = True) -> None:
        """Record that an image may not be shown, or was taken away, and continue without it.

        Parameters
        ----------
        key : (int, int)
            Generation and candidate.
        measured : bool
            For its content, and not because it could not be judged.
        go_on : bool
            Request the images that are due then.
        """
        for told in self.course.refuse(*key, self.asked.get(key) if measured else None, shown=key in self.shown):
            self.publish([told], given_up=Given.REFUSED if (told.generation, told.candidate) == key else Given.NO)
        self.last_offset_ns = self.last_offset_ns or (self.context.clock.now_ns() if self.course.all_shown else None)
        if go_on:
            self.go_on()

    def publish(self, told: Sequence[Told], taken: int | None = None, given_up: Given = Given.NO) -> None:
        """Publish the fitness that evolution has received, after so many scores (default: all processed ones)."""
        for each in told:
            with self.fitness_out.reserve(timeout_s=30) as slot:
                slot["generation"], slot["candidate"], slot["given_up"] = each.generation, each.candidate, given_up
                slot["scores_taken"] = self.scores_taken if taken is None else taken
                slot["fitness"], slot["fitness_se"], slot["decided_ns"] = each.fitness, each.fitness_se, time.monotonic_ns()

    def image(self, slot: Any) -> None:
        """Record a picture that was refused; use the re-encoded latent as the candidate's if the session says so."""
        if slot["refused"]:
            self.refuse((int(slot["generation"]), int(slot["candidate"])), measured=is_measured(parse_json(slot["verdict"])))
        elif self.settings.use_post_encodings:
            latent = self.space.to_latent(np.array(slot["embedding"])[None])[0]
            self.course.place(int(slot["generation"]), int(slot["candidate"]), latent)

    def take(self, slot: Any, value: float, error: float, scored_ns: int, link: Link | None = None) -> None:
        """Process a candidate's score or rating, and continue if it was waited for."""
        self.scored_ns, self.scores_taken = scored_ns, self.scores_taken + 1
        self.publish(self.course.score(int(slot["generation"]), int(slot["candidate"]), value, error, link))
        self.go_on()

    def score(self, slot: Any) -> None:
        """Process a decoded score."""
        if self.context.plan.condition not in MEASURED:
            link = Link.of(slot["onset_s"], slot["measured"], slot["measured_se"], slot["neighbours"])
            self.take(slot, float(slot["score"]), float(slot["score_se"]), int(slot["scored_ns"]), link)

    def volume(self, slot: Any) -> None:
        """Add a volume, if the strategy uses volumes; images are requested as others appear."""
        self.volumes_taken += 1
        self.course.volume(int(slot["part"]), projected(slot))

    def event(self, slot: Any) -> None:
        """Follow what is shown; take a rating."""
        kind, t_ns = slot["kind"], int(slot["t_ns"])
        if kind == EventKind.TRIGGER:
            self.run = self.run.triggered(t_ns)
        if self.run.trigger_ns is not None:  # before it no time of the run has passed
            self.elapsed_s = self.run.seconds(t_ns)
        key = int(slot["generation"]), int(slot["candidate"])
        if kind == EventKind.ONSET:
            self.shown.add(key)
            self.course.appeared(*key, self.run.seconds(t_ns), self.context.config.presentation.image_s)
            self.course.show()
            self.go_on()
        elif kind in (EventKind.TAKEN, EventKind.REFUSED) and key not in self.over:
            if key in self.shown:
                self.course.cut_short(*key, self.run.seconds(t_ns))
            self.refuse(key, measured=kind == EventKind.TAKEN)
        elif kind == EventKind.OFFSET:
            self.over.add(key)
            known_ns = max(t_ns, self.context.clock.now_ns())  # it may have been on its way for a minute, and its score comes yet
            self.last_offset_ns = known_ns if self.course.all_shown else None
        elif kind == EventKind.FIXATION and slot["value"] != 1 and not self.approved and self.course.look_further_ahead():
            self.context.log.warning("evolve: an image was late: from now on %d are requested ahead", self.course.ahead)
            self.go_on()
        elif kind == MEASURED.get(self.context.plan.condition):
            self.hear(float(slot["value"]))
            self.take(slot, float(slot["value"]), math.nan, int(slot["received_ns"]))

    def hear(self, value: float) -> None:
        """Raise an alarm where a participant does not answer any more."""
        if self.answers is not None and (news := self.answers.take(value)) is not None:
            self.context.log.log(logging.ERROR if news.alarm else logging.WARNING, "evolve: %s", news.text)

    def overdue(self) -> bool:
        """Whether missing scores are no longer waited for."""
        if self.done or self.last_offset_ns is None or not self.course.missing:
            return False
        return self.context.clock.now_s() > self.last_offset_ns / 1e9 + self.settings.score_deadline_s

    def give_up(self) -> None:
        """Go on without the scores that are missing."""
        self.context.log.warning(
            "evolve: %d scores of generation %d did not come within %g s of its end: evolution continues without them",
            self.course.missing, self.course.generation, self.settings.score_deadline_s,
        )  # fmt: skip
        self.publish(self.course.give_up(), given_up=Given.UP)
        self.go_on()


def projected(slot: Any) -> Projected:
    """Read a slot of ``series``."""
    fields = {name: slot[name].item() for name in slot.dtype.names if name not in ("part", "motion_mm")}
    return Projected(motion_mm=tuple(slot["motion_mm"].tolist()), **fields)


def run(context: Context) -> None:
    """``scores``, ``events`` and ``images`` -> ``latents`` and ``fitness``."""
    inputs: dict[str, Ring | Turns] = {"images": context.images()}
    inputs |= {name: context.reader(name) for name in ("events", "scores")}
    if looks_at_volumes(context.config):
        warm_up()
        inputs["series"] = context.reader("series")
    work = _Evolve(context)  # publishes the first images, so that they are painted when the trigger comes
    handlers = {"images": work.image, "events": work.event, "scores": work.score, "series": work.volume}
    context.ready()
    while inputs and not context.clock.get("abort"):
        ended = serve(inputs, handlers, WAIT_S)
        if "scores" in ended and not work.done:
            context.log.warning("evolve: the scanner ended during generation %d", work.course.generation)
        if context.clock.ending or "scores" in ended:
            work.finish()
        elif work.overdue():
            work.give_up()
    work.finish()
    work.save()
    work.fitness_out.close_writing()
