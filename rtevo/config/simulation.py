"""Keys of the simulated participant and scanner."""

from __future__ import annotations

from dataclasses import dataclass

from rtevo.config.keys import above, at_least, key

__all__ = ["Simulation"]


@dataclass(frozen=True)
class Simulation:
    """The simulated participant."""

    participant_seed: int = key(1, "seed of the simulated participant: head, hidden voxels, preference", *at_least(0))
    prefers: str = key(
        "animal",
        "preference: name or keyword of an emoji (spider, fruit; --prefers list); empty = colours and their layout, by participant_seed",
    )
    areas: tuple[str, ...] = key(
        (), 'concepts with their own areas in this brain, which respond to pictures of them: names or keywords as for prefers, as "face"'
    )
    amplitude_percent: float = key(3.0, "response to a preferred image, percent of the signal", *at_least(0))
    refractory: bool = key(
        False, "short intervals and pictures like those just seen make responses smaller, as published (docs/evolution.md)"
    )
    tsnr: float = key(60.0, "temporal signal-to-noise ratio", *above(0))
    physiology_percent: float = key(
        0.0,
        "effect of pulse and respiration, standard deviation in grey matter, percent of the signal; 0 = none",
        *at_least(0),
    )
    motion_mm: float = key(0.3, "extent of head motion, mm (and degrees)", *at_least(0))
    voxel_mm: tuple[float, ...] = key(
        (3.0, 3.0, 3.3),
        "voxels of the simulated run, in a field of view of 240 x 240 x 115.5 mm; larger voxels take less computing",
        "three numbers of 1.5 to 10",
        lambda x: len(x) == 3 and all(1.5 <= v <= 10 for v in x),
    )
    today: str = key(
        "",
        "position of head and slices today, if not as in the decoder's run: shift=12 -8 5 (mm) and turn=4 -3 6 (degrees) of the head, "
        "slab=0 10 -6 (mm) of the slices, voxel=2.5 2.5 3 (mm), slices=axial, coronal or sagittal, person=2 (another person's head)",
    )
    participant: str = key(
        "",
        "simulate and replay: address at which the simulated participant sees a headless presenter that is started elsewhere; "
        "empty = the session starts its own presenter",
        "tcp://ADDRESS:PORT",
        lambda x: not x or x.startswith("tcp://"),
    )
    faults: str = key(
        "", "faults of the delivery (simulate and replay), e.g. drop=0.02, duplicate=0.05, grow=0.3, reorder=5: see docs/scanners.md"
    )
