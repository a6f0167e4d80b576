"""``scores``, ``events`` and ``images`` -> ``latents`` and ``fitness``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rtevo.records import EventKind
from rtevo.stages.context import WAIT_S, Context, serve


class _Evolve:
    """State of the evolve stage between scores."""

    def __init__(self, context: Context) -> None:
        from rtevo.evolve import Truncation
        from rtevo.latent import LatentSpace

        self.context, settings = context, context.config.evolution
        self.settings = settings
        rng = np.random.default_rng(context.config.session.seed)
        self.evolver = Truncation(settings.population, settings.latent_size, settings.mutation_sd, rng)
        self.rng_sham = np.random.default_rng([context.config.session.seed, 1])
        self.space = LatentSpace.load(context.plan.latent_space)
        self.latents_out, self.fitness_out = context.writer("latents"), context.writer("fitness")
        self.generation = -1
        self.done = False
        self.next_generation(0)

    def next_generation(self, scored_ns: int) -> None:
        """Ask for the next latents and publish them; close ``latents`` after the last generation."""
        self.generation += 1
        if self.generation >= self.settings.generations:
            self.finish()
            return
        self.latents = self.evolver.ask()
        n = len(self.latents)
        self.measured, self.complete = np.full(n, np.nan), np.zeros(n, bool)
        self.last_event_ns: int | None = None
        for candidate, (latent, embedding) in enumerate(zip(self.latents, self.space.to_embedding(self.latents), strict=True)):
            with self.latents_out.reserve(timeout_s=30) as slot:
                slot["generation"], slot["candidate"] = self.generation, candidate
                slot["seed"] = self.noise_seed(candidate)
                slot["scored_ns"], slot["evolved_ns"] = scored_ns, time.monotonic_ns()
                slot["latent"], slot["embedding"] = latent, embedding

    def noise_seed(self, candidate: int) -> int:
        """Seed of one picture's diffusion noise."""
        seed = self.context.config.session.seed
        if self.context.config.generator.same_noise:
            return seed
        return int(np.random.SeedSequence([seed, self.generation, candidate]).generate_state(1)[0])

    def finish(self) -> None:
        """Close what this stage writes; what still arrives is only drained."""
        if not self.done:
            self.done = True
            self.latents_out.close_writing()
            self.fitness_out.close_writing()

    def measure(self, slot: Any, value: float, scored_ns: int) -> None:
        """Take one candidate's score or rating; a generation whose candidates are all in is followed by the next."""
        if self.done or slot["generation"] != self.generation:
            return
        candidate = int(slot["candidate"])
        self.measured[candidate], self.complete[candidate] = value, True
        if self.complete.all():
            self.conclude(scored_ns)

    def conclude(self, scored_ns: int) -> None:
        """Tell the evolver what is known of this generation and go on."""
        from rtevo.evolve import sham

        fitness = self.measured
        if self.context.config.session.condition == "sham":
            fitness = sham(fitness, self.rng_sham)
        for candidate, value in enumerate(fitness):
            with self.fitness_out.reserve(timeout_s=30) as slot:
                slot["generation"], slot["candidate"], slot["fitness"] = self.generation, candidate, value
                slot["decided_ns"] = time.monotonic_ns()
        self.evolver.tell(self.latents, fitness)
        self.next_generation(scored_ns)

    def image(self, slot: Any) -> None:
        """Take the re-encoded embedding as the parent where the session says so."""
        if self.settings.use_post_encodings and not self.done and slot["generation"] == self.generation:
            self.latents[int(slot["candidate"])] = self.space.to_latent(np.array(slot["embedding"])[None])[0]

    def score(self, slot: Any) -> None:
        """Take a decoded score."""
        if self.context.config.session.condition != "ratings":
            self.measure(slot, float(slot["score"]), int(slot["scored_ns"]))

    def event(self, slot: Any) -> None:
        """Take a rating; remember when a generation's last image ended."""
        if slot["kind"] == EventKind.RATING and self.context.config.session.condition == "ratings":
            self.measure(slot, float(slot["value"]), int(slot["received_ns"]))
        elif slot["kind"] == EventKind.OFFSET and not self.done:
            last = slot["generation"] == self.generation and slot["candidate"] == len(self.latents) - 1
            self.last_event_ns = int(slot["t_ns"]) if last else self.last_event_ns

    def overdue(self) -> bool:
        """Whether this generation's missing scores are no longer waited for."""
        deadline_s = self.settings.score_deadline_s
        return not self.done and self.last_event_ns is not None and self.context.clock.now_s() > self.last_event_ns / 1e9 + deadline_s


def evolve(context: Context) -> None:
    """``scores``, ``events`` and ``images`` -> ``latents`` and ``fitness``."""
    inputs = {name: context.reader(name) for name in ("images", "events", "scores")}
    work = _Evolve(context)  # publishes the first generation, so that its images are there when the trigger comes
    handlers = {"images": work.image, "events": work.event, "scores": work.score}
    context.ready()
    while inputs and not context.clock.get("abort"):
        ended = serve(inputs, handlers, WAIT_S)
        if "scores" in ended and not work.done:
            context.log.warning("evolve: the scanner ended during generation %d", work.generation)
        if context.clock.ending or "scores" in ended:
            work.finish()
        elif work.overdue():
            context.log.warning(
                "evolve: generation %d goes on with %d of %d scores: the others did not come within %g s",
                work.generation, int(work.complete.sum()), len(work.complete), work.settings.score_deadline_s,
            )  # fmt: skip
            work.conclude(time.monotonic_ns())
