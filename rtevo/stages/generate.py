"""``latents`` -> ``images`` and ``refused``: one process for each device.

Every picture is judged here, before any other process sees it. A refused picture is painted once more, with other noise.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rtevo.config import Generator
from rtevo.gate import Gate, Verdict, check_gate
from rtevo.latent import LatentSpace
from rtevo.session.context import WAIT_S, Context
from rtevo.session.rings import numbered
from rtevo.session.safety import avoid_of, gate_of
from rtevo.shm import Ring, RingClosed, RingTimeout
from rtevo.wire import digest

__all__ = ["Deadline", "other_seed", "run", "settings_of"]

ATTEMPTS = 2  # to paint a picture that passes the gate
log = logging.getLogger("rtevo")


def settings_of(config: Generator, device: str, fingerprint: str = "") -> Any:
    """Return the generator's settings for one of the session's devices."""
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
    """Deadline of an image: `deadline_s` after its request, plus one cadence for each earlier image of the same request.

    The presenter holds fixation until a late image comes; here lateness is only logged.

    Parameters
    ----------
    deadline_s : float
        Real time, s.
    cadence_s : float
        Time from one onset to the next, real time, s.
    """

    def __init__(self, deadline_s: float, cadence_s: float) -> None:
        self.deadline_s, self.cadence_s = deadline_s, cadence_s
        self._asked: Counter[tuple[int, int]] = Counter()

    def due_ns(self, slot: Any) -> int:
        """Return when the image of this slot of ``latents`` is due; must be called for every slot, in order."""
        together = int(slot["generation"]), int(slot["scored_ns"])
        before = self._asked[together]
        self._asked[together] += 1
        return int(slot["evolved_ns"]) + round(1e9 * (self.deadline_s + before * self.cadence_s))


def run(context: Context) -> None:
    """``latents`` -> ``images`` and ``refused``."""
    devices = context.config.generator.devices
    own = numbered("generate", len(devices)).index(context.stage)
    space = LatentSpace.load(context.plan.latent_space)
    avoid = avoid_of(context.config, space, context.plan.out)
    model = context.kept.get((context.config.generator, context.plan.model_sha256), lambda: _Model(context, devices[own]))
    with gate_of(context.config, avoid, devices[own]) as gate:
        generator = model.warmed_up()
        log.info("%s: %s; gate: %s", context.stage, generator.description, gate.description)
        latents = context.reader("latents")
        images, refused = (context.writer(numbered(name, len(devices))[own]) for name in ("images", "refused"))
        check_gate(gate, *context.plan.image_size, space.to_embedding(np.zeros(space.latent_size, np.float32)))
        context.ready(generator=generator.description)
        work = _Work(context, latents, own, gate)
        while not (context.clock.ending or work.ended):
            for asked, attempt, painted, verdict in work.paint(generator):
                if verdict.refused:
                    _publish_image(refused, asked, attempt, painted, verdict)
                if attempt == ATTEMPTS - 1 or not verdict.refused:
                    _publish_image(images, asked, attempt, painted, verdict)
                    work.notice(asked)
        images.close_writing()
        refused.close_writing()


class _Model:
    """A loaded model that is kept over the runs of a visit; a context manager."""

    def __init__(self, context: Context, device: str) -> None:
        from rtevo.generate import load

        settings = settings_of(context.config.generator, device, context.plan.model_sha256)
        self._warm = False
        gc.disable()  # garbage collection takes a quarter of these libraries' import time
        self._generator = load(settings, on_progress=lambda text: log.info("%s: %s", context.stage, text))

    def __enter__(self) -> _Model:
        self._generator.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._generator.__exit__(kind, error, trace)

    def warmed_up(self) -> Any:
        """Return the generator; it has painted once."""
        if not self._warm:
            self._generator.warm_up()
            gc.freeze()  # later collections need not look at objects that stay
            gc.enable()
            self._warm = True
        return self._generator


Judged = tuple[Any, int, Any, Verdict]  # slot of ``latents``, attempt, painted picture, verdict of the gate


class _Work:
    """The requests to one device: every n-th of all latents, in order."""

    def __init__(self, context: Context, latents: Ring, own: int, gate: Gate) -> None:
        self._context, self._latents, self._gate = context, latents, gate
        self._own, self._devices = own, context.plan.devices
        self._seen, self.ended = 0, False
        speed = context.clock.speed or 1.0
        shown = context.config.presentation
        cadence_s = (shown.image_s + shown.washout_s) / speed
        self._deadline = Deadline(context.config.generator.deadline_s / speed or cadence_s, cadence_s)
        self._due: dict[tuple[int, int], int] = {}

    def paint(self, generator: Any) -> Iterator[Judged]:
        """Paint and judge the waiting requests; yield each attempt as soon as it is finished.

        In lock-step one slot at a time, held until its image is published, because time moves once every ring is drained.
        """
        if self._context.clock.lock_step:
            yield from self._paint_held(generator)
        else:
            yield from self._paint_all(generator, list(self._waiting()))

    def _paint_held(self, generator: Any) -> Iterator[Judged]:
        try:
            with self._latents.read(timeout_s=WAIT_S) as slot:
                if self._is_own(slot):
                    yield from self._paint_all(generator, [slot])
        except RingTimeout:
            return
        except RingClosed:
            self.ended = True

    def _paint_all(self, generator: Any, asked: list[Any]) -> Iterator[Judged]:
        """Paint several images; a refused one is painted again before the next, so that the order stays."""
        attempt = 0  # of the first image
        while asked:
            embeddings = np.array([slot["embedding"] for slot in asked])
            seeds = [other_seed(int(slot["seed"]), attempt if k == 0 else 0) for k, slot in enumerate(asked)]
            first, left = attempt, asked
            for painted in generator.paint(embeddings, np.array(seeds, np.uint64)):
                own = first if painted.index == 0 else 0
                verdict = self._gate.judge(painted.pixels, painted.embedding)
                yield asked[painted.index], own, painted, verdict
                if self._context.clock.ending:
                    return
                again = verdict.refused and own + 1 < ATTEMPTS
                left, attempt = asked[painted.index + (not again) :], own + 1 if again else 0
                if again:
                    break
            asked = left

    def _waiting(self) -> Iterator[Any]:
        """Yield copies of the slots that wait for this device; wait a moment for the first."""
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
        """Count a slot, and return whether it is this device's."""
        due_ns = self._deadline.due_ns(slot)
        own = self._seen % self._devices == self._own
        self._seen += 1
        if own:
            self._due[int(slot["generation"]), int(slot["candidate"])] = due_ns
        return own

    def notice(self, slot: Any) -> None:
        """Log a late image; none is late before the session's start, or in lock-step."""
        due_ns = self._due.pop((int(slot["generation"]), int(slot["candidate"])))
        started_ns, late_ns = self._context.clock.get("started_ns"), time.monotonic_ns() - due_ns
        if late_ns > 0 and started_ns and int(slot["evolved_ns"]) > started_ns and not self._context.clock.lock_step:
            log.warning(
                "%s: image %d of generation %d came %.2f s late: fixation is held in its place (set fewer [generator] steps or a faster "
                "backend; python -m bench.tune finds them)",
                self._context.stage, slot["candidate"], slot["generation"], late_ns / 1e9,
            )  # fmt: skip


def other_seed(seed: int, attempt: int) -> int:
    """Return the seed of an attempt's noise: the first attempt has the image's own."""
    return seed if attempt == 0 else int(np.random.SeedSequence([seed, attempt]).generate_state(1, np.uint64)[0])


def _publish_image(images: Ring, slot: Any, attempt: int, painted: Any, verdict: Verdict) -> None:
    with images.reserve(timeout_s=None) as out:  # waits for the operator's approval if need be
        for name in ("generation", "candidate", "scored_ns", "evolved_ns"):
            out[name] = slot[name]
        out["attempt"], out["refused"], out["verdict"] = attempt, verdict.refused, verdict.encoded()
        out["embedding"], out["pixels"] = painted.embedding, painted.pixels
        out["sha256"] = digest(np.ascontiguousarray(painted.pixels)).encode()
        out["painted_ns"] = time.monotonic_ns()
