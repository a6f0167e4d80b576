"""The simulated participant of a session file's rehearsal."""

from __future__ import annotations

import math

from rtevo.config import Config
from rtevo.simulate import Simulation
from rtevo.simulate.echoes import echo_times_s
from rtevo.simulate.today import Today

__all__ = ["simulation"]

FIELD_OF_VIEW_MM = (240.0, 240.0, 115.5)


def simulation(config: Config, tr_s: float, part: int = 0) -> Simulation:
    """Return the simulated participant of a session."""
    settings = config.simulation
    across = [math.ceil(extent / size - 1e-6) for extent, size in zip(FIELD_OF_VIEW_MM, settings.voxel_mm, strict=True)]
    return Simulation(
        seed=config.session.seed,
        participant_seed=settings.participant_seed,
        tr_s=tr_s,
        shape=(across[0], across[1], across[2]),
        voxel_size_mm=(settings.voxel_mm[0], settings.voxel_mm[1], settings.voxel_mm[2]),
        amplitude_percent=settings.amplitude_percent,
        refractory=settings.refractory,
        tsnr=settings.tsnr,
        motion_mm=settings.motion_mm,
        physiology_percent=settings.physiology_percent,
        prefers=settings.prefers,
        areas=settings.areas,
        keys=config.presentation.rating_keys,
        trigger_key=config.presentation.trigger_key,
        part=part,
        echo_times_s=echo_times_s(config.acquisition.echoes),
        today=Today.parse(settings.today) if settings.today else None,
    )
