"""``latents`` -> ``images``: one process for each device."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.config import Generator
from rtevo.session.context import WAIT_S, Context
from rtevo.session.rings import numbered
from rtevo.shm import Ring, RingClosed, RingTimeout

__all__ = ["Deadline", "run", "settings_of"]

log = logging.getLogger("rtevo")


def settings_of(config: Generator, device: str, fingerprint: str = "") -> Any:
    """Give the generator's settings for one of the session's devices."""
    from rtevo.generate import GeneratorSettings

    return GeneratorSettings(
        model_path=_path(config.unclip_model_path),
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        noise_level=config.noise_level,
        threads=config.threads,
        device=device,
        batch=config.batch,
        scheduler=config.scheduler,
        backend=config.backend,
        px=config.px,
        tiny_vae=_path(config.tiny_vae),
        engines=_path(config.engines),
        fallback=config.fallback,
        repeatable=len(config.devices) > 1,
        fingerprint=fingerprint,
        workers_model=config.workers_model,
        workers_keys=_path(config.workers_keys),
        answer_s=config.answer_s,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


class Deadline:
    """When an image is late: `deadline_s` after it was asked for, and one cadence more for each that was asked for together before it.

    What is done about a late image is the presenter's: it holds fixation until the image is there. Here it is only noticed and logged.

    Parameters
    ----------
    deadline_s : float
        Real time, s.
    cadence_s : float
        From one onset to the next, real time, s.
    """

    def __init__(self, deadline_s: float, cadence_s: float) -> None:
        self.deadline_s, self.cadence_s = deadline_s, cadence_s
        self._asked: Counter[tuple[int, int]] = Counter()

    def due_ns(self, slot: Any) -> int:
        """When the image of this slot of ``latents`` is due; every slot must be given, in order."""
        together = int(slot["generation"]), int(slot["scored_ns"])
        before = self._asked[together]
        self._asked[together] += 1
        return int(slot["evolved_ns"]) + round(1e9 * (self.deadline_s + before * self.cadence_s))


def run(context: Context) -> None:
    """``latents`` -> ``images``."""
    from rtevo.generate import load

    devices = context.config.generator.devices
    own = numbered("generate", len(devices)).index(context.stage)
    settings = settings_of(context.config.generator, devices[own], context.plan.model_sha256)
    gc.disable()  # collecting takes a quarter of the time in which these libraries are imported
    with load(settings, on_progress=lambda text: log.info("%s: %s", context.stage, text)) as generator:
        generator.warm_up()
        gc.freeze()  # and what is there now stays: later collections need not look at it
        gc.enable()
        log.info("%s: %s", context.stage, generator.description)
        latents, images = context.reader("latents"), context.writer(numbered("images", len(devices))[own])
        context.ready(generator=generator.description)
        work = _Work(context, latents, own)
        while not (context.clock.ending or work.ended):
            for asked, painted in work.paint(generator):
                _publish_image(images, asked, painted)
                work.notice(asked)
        images.close_writing()


class _Work:
    """What is asked of one device: every n-th of all latents, in the order in which they come."""

    def __init__(self, context: Context, latents: Ring, own: int) -> None:
        self._context, self._latents = context, latents
        self._own, self._devices = own, context.plan.devices
        self._seen, self.ended = 0, False
        speed = context.clock.speed or 1.0
        shown = context.config.presentation
        cadence_s = (shown.image_s + shown.washout_s) / speed
        self._deadline = Deadline(context.config.generator.deadline_s / speed or cadence_s, cadence_s)
        self._due: dict[tuple[int, int], int] = {}

    def paint(self, generator: Any) -> Iterator[tuple[Any, Any]]:
        """Paint what has been asked for by now; gives each slot with its image, as soon as it is finished.

        In lock-step one slot at a time, which is held until its image is out: time moves on once every ring is drained.
        """
        if self._context.clock.lock_step:
            yield from self._paint_held(generator)
            return
        asked = list(self._waiting())
        if asked:
            embeddings, seeds = (np.array([slot[name] for slot in asked]) for name in ("embedding", "seed"))
            for painted in generator.paint(embeddings, seeds):
                yield asked[painted.index], painted
                if self._context.clock.ending:
                    return

    def _paint_held(self, generator: Any) -> Iterator[tuple[Any, Any]]:
        try:
            with self._latents.read(timeout_s=WAIT_S) as slot:
                if self._is_own(slot):
                    for painted in generator.paint(np.array(slot["embedding"])[None], np.array(slot["seed"])[None]):
                        yield slot, painted
        except RingTimeout:
            return
        except RingClosed:
            self.ended = True

    def _waiting(self) -> Iterator[Any]:
        """Copies of the slots that wait for this device; waits a moment for the first."""
        timeout_s = WAIT_S
        while True:
            try:
                with self._latents.read(timeout_s=timeout_s) as slot:
                    copy = slot.copy() if self._is_own(slot) else None
            except RingTimeout:
                return
            except RingClosed:
                self.ended = True
                return
            if copy is not None:
                timeout_s = 0
                yield copy

    def _is_own(self, slot: Any) -> bool:
        """Count a slot, and say whether it is this device's."""
        due_ns = self._deadline.due_ns(slot)
        own = self._seen % self._devices == self._own
        self._seen += 1
        if own:
            self._due[int(slot["generation"]), int(slot["candidate"])] = due_ns
        return own

    def notice(self, slot: Any) -> None:
        """Log an image that came late; none is before the session has started, or where time does not pass meanwhile."""
        due_ns = self._due.pop((int(slot["generation"]), int(slot["candidate"])))
        started_ns, late_ns = self._context.clock.get("started_ns"), time.monotonic_ns() - due_ns
        if late_ns > 0 and started_ns and int(slot["evolved_ns"]) > started_ns and not self._context.clock.lock_step:
            log.warning(
                "%s: image %d of generation %d came %.2f s late: fixation is held where it was due (fewer [generator] steps or a faster "
                "backend help; python -m bench.tune finds them)",
                self._context.stage, slot["candidate"], slot["generation"], late_ns / 1e9,
            )  # fmt: skip


def _publish_image(images: Ring, slot: Any, painted: Any) -> None:
    with images.reserve(timeout_s=60) as out:
        for name in ("generation", "candidate", "scored_ns", "evolved_ns"):
            out[name] = slot[name]
        out["embedding"], out["pixels"] = painted.embedding, painted.pixels
        out["painted_ns"] = time.monotonic_ns()
