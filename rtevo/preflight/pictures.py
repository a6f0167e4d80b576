"""Check of the pictures of a localizer, and their schedule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rtevo.localizer import length_s
from rtevo.preflight.findings import Finding, Known
from rtevo.records import Grid
from rtevo.session.localizer import said_of, schedule_of
from rtevo.session.simulation import simulation

__all__ = ["pictures"]


def pictures(known: Known) -> Iterator[Finding]:
    """Read every picture, and make the run's schedule; report the number of pictures and the scanner's running time."""
    config = known.config
    assert known.tr_s is not None
    known.tell("reading the pictures")
    folder, categories, known.trials = schedule_of(config)
    known.image_size, known.embedding_size = next(iter(categories.values()))[0].size, 0
    if known.source is not None:
        known.grid = known.source.grid
    elif config.acquisition.source == "simulate":
        known.grid = simulation(config, known.tr_s).grid
    else:  # not known yet: the largest possible
        x, y, z = config.acquisition.largest
        known.grid = Grid((x, y, z), np.eye(4))
    height, width = known.image_size
    read = ", ".join(f"{name} {len(own)}" for name, own in categories.items())
    figures: dict[str, float | None] = {
        "pictures": sum(map(len, categories.values())),
        "length_s": length_s(known.trials, config.presentation.baseline_s),
    }
    yield Finding("pictures", "pass", f"{folder}: {read}, {width} x {height} px; {said_of(known.trials, config, known.tr_s)}", "", figures)
