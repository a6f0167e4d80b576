"""``latents`` -> ``images``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.shm import Ring, RingClosed, RingTimeout
from rtevo.stages.context import WAIT_S, Context


def generate(context: Context) -> None:
    """``latents`` -> ``images``."""
    from rtevo.generate import GeneratorSettings, load

    settings = context.config.generator
    generator = load(
        GeneratorSettings(
            model_path=Path(settings.unclip_model_path) if settings.unclip_model_path else None,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            noise_level=settings.noise_level,
            threads=settings.threads,
            device=settings.device,
        ),
        on_progress=lambda text: context.log.info("generate: %s", text),
    )
    generator.warm_up()
    latents, images = context.reader("latents"), context.writer("images")
    context.ready()
    while not context.clock.ending:
        try:
            with latents.read(timeout_s=WAIT_S) as slot:
                for painted in generator.paint(np.array(slot["embedding"])[None], np.array(slot["seed"])[None]):
                    _publish_image(images, slot, painted)
        except RingTimeout:
            continue
        except RingClosed:
            break
    images.close_writing()
    generator.close()


def _publish_image(images: Ring, slot: Any, painted: Any) -> None:
    with images.reserve(timeout_s=60) as out:
        for name in ("generation", "candidate", "scored_ns", "evolved_ns"):
            out[name] = slot[name]
        out["embedding"], out["pixels"] = painted.embedding, painted.pixels
        out["painted_ns"] = time.monotonic_ns()
