"""The table of a session's rings: content and number of slots, the writer, and the readers that must not miss any."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from rtevo import records
from rtevo.config import Config
from rtevo.session.plan import Plan
from rtevo.session.sensors import physio_sizes
from rtevo.shm import Reader, Ring

__all__ = ["RINGS", "RingSpec", "create_rings", "looks_at_volumes", "numbered", "readers_of", "ring_name", "ring_names"]

MOST_PLACES = 16384


@dataclass(frozen=True)
class RingSpec:
    """One ring: content and number of slots, the writer, and the readers that must not miss any."""

    slot: Callable[[Plan], np.dtype[np.void]]
    slots: Callable[[Plan], int]
    critical: tuple[str, ...]


def _aligned(plan: Plan) -> np.dtype[np.void]:
    terms = sum(physio_sizes(plan.config, plan.tr_s)) if plan.config.physio.measured and not plan.localizer else None
    return records.aligned_dtype(plan.capacity if _saves_aligned(plan) else None, terms)


def _saves_aligned(plan: Plan) -> bool:
    return plan.config.record.save_volumes in ("aligned", "both")


def _small(plan: Plan) -> int:
    return max(256, 4 * plan.config.evolution.population)


def _every_image(plan: Plan) -> int:
    """Slots for messages on all images at once, at a session's end or when it is resumed: observers must not miss any."""
    settings = plan.config.evolution
    return max(_small(plan), min(4 * settings.generations * settings.population, MOST_PLACES))


def _generation(plan: Plan) -> int:
    return max(8, 2 * plan.config.evolution.population)  # and the probes in between


def _groups(plan: Plan) -> int:
    config = plan.config
    return 0 if config.decoder.method == "peak" else len(config.decoder.nuisance) + len(physio_sizes(config, plan.tr_s))


RINGS: dict[str, RingSpec] = {
    "volumes": RingSpec(lambda p: records.volume_dtype(p.capacity, p.config.acquisition.echoes), lambda p: 16, ("decode", "record")),
    "aligned": RingSpec(_aligned, lambda p: 16 if _saves_aligned(p) else 64, ("record",)),
    "placements": RingSpec(lambda p: records.placement_dtype(), lambda p: 64, ()),
    "scores": RingSpec(lambda p: records.score_dtype(len(p.maps), _groups(p)), _every_image, ("evolve",)),
    "series": RingSpec(lambda p: records.series_dtype(), lambda p: 1024, ("evolve",)),
    "fitness": RingSpec(lambda p: records.fitness_dtype(), _every_image, ()),
    "latents": RingSpec(lambda p: records.latent_dtype(p.config.evolution.latent_size, p.embedding_size), _small, ("generate",)),
    "images": RingSpec(lambda p: records.image_dtype(*p.image_size, p.embedding_size), _generation, ("bridge", "evolve", "record")),
    "refused": RingSpec(lambda p: records.image_dtype(*p.image_size, p.embedding_size), lambda p: 4, ("record",)),
    "physiology": RingSpec(lambda p: records.physiology_dtype(), lambda p: 256, ("decode", "record")),
    "events": RingSpec(lambda p: records.event_dtype(), lambda p: 1024, ("decode", "evolve")),
    "messages": RingSpec(lambda p: records.message_dtype(), lambda p: 256, ()),  # the supervisor's
}
DEALT = ("images", "refused")  # rings of which each device has one
LOCALIZER = {
    "volumes": ("align", "record"),
    "aligned": ("record",),
    "images": ("bridge", "record"),
    "events": ("align", "pictures"),
    "physiology": ("record",),
    "messages": (),
}
"""Rings of a localizer, and their critical readers."""
OBSERVER = "record"  # reads every ring; it holds up only those that it is critical for


def looks_at_volumes(config: Config) -> bool:
    """Whether evolution uses volumes in place of scores, for any condition: else there is no ring ``series``."""
    return config.evolution.strategy == "direct"


def ring_name(session: str, ring: str) -> str:
    """Name of a session's ring in shared memory."""
    return f"/rtevo-{session}-{ring}"


def numbered(name: str, devices: int) -> tuple[str, ...]:
    """Names of a stage or ring of which there is one for each device: ``images``, ``images-1``, ..."""
    return (name, *(f"{name}-{k}" for k in range(1, devices)))


def readers_of(ring: str, devices: int = 1, localizer: bool = False) -> list[str]:
    """Names of a ring's readers, the critical ones first."""
    base = ring.partition("-")[0]
    critical = LOCALIZER[base] if localizer else numbered("generate", devices) if base == "latents" else RINGS[base].critical
    return [*critical, *([OBSERVER] if OBSERVER not in critical else [])]


def ring_names(plan: Plan, names: Iterable[str] = RINGS) -> list[str]:
    """Return the names of a session's rings out of the requested ones: all of those that each device has, and those of this session."""
    names = [name for name in names if not plan.localizer or name in LOCALIZER]
    names = [name for name in names if name != "physiology" or plan.config.physio.measured]
    names = [name for name in names if name != "series" or looks_at_volumes(plan.config)]
    return [each for name in names for each in (numbered(name, plan.devices) if name in DEALT else (name,))]


def create_rings(plan: Plan, stack: ExitStack) -> dict[str, Ring]:
    """Create every ring of a session; `stack` unlinks them."""
    rings = {}
    for name in ring_names(plan):
        base = name.partition("-")[0]
        spec, critical = RINGS[base], LOCALIZER[base] if plan.localizer else RINGS[base].critical
        readers = [
            Reader(r, critical=r != OBSERVER or r in critical, semaphore=f"/rtevo-{plan.name}-{r}")
            for r in readers_of(name, plan.devices, plan.localizer)
        ]
        ring = Ring.create(ring_name(plan.name, name), spec.slot(plan), spec.slots(plan), readers, writer=name == "messages")
        rings[name] = stack.enter_context(ring)
    return rings
