"""Preparation of a localizer before its first process starts: its pictures, their schedule, its plan."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.config import Config
from rtevo.localizer import BUILT_IN, Picture, Trial, length_s, make_schedule, read_folder
from rtevo.record.making import check_maps, keep_maps
from rtevo.session.checks import (
    check_console,
    check_delivery,
    check_group,
    check_open_files,
    check_participant,
    describe_source,
    repetition_time,
)
from rtevo.session.plan import Plan

__all__ = ["LOCALIZER", "as_localizer", "prepare_localizer", "said_of", "schedule_of"]

LOCALIZER = "localizer"
"""The condition of a run without evolution."""
_ORDER = 5  # stream of random numbers


def as_localizer(config: Config) -> Config:
    """Return the settings of a localizer, with its section's durations and keys copied to [presentation]."""
    settings = config.localizer
    gap_s = settings.gap_s[0] if settings.design == "events" else settings.blank_s
    shown = replace(config.presentation, image_s=settings.image_s, washout_s=gap_s, washout_jitter_s=0.0)
    safety = replace(config.safety, approval="none")  # the pictures are the site's own choice
    return replace(config, presentation=shown, safety=safety, session=replace(config.session, condition="brain"))


def schedule_of(config: Config) -> tuple[Path, Mapping[str, Sequence[Picture]], tuple[Trial, ...]]:
    """Check the pictures of a localizer, and draw their schedule.

    Returns
    -------
    folder : Path
    categories : mapping of str to sequence of Picture
    trials : tuple of Trial

    Raises
    ------
    ConfigError
        The mistakes in the folder.
    """
    folder = Path(config.localizer.folder).resolve() if config.localizer.folder else BUILT_IN
    categories = read_folder(folder, config.presentation.background)
    session = config.session
    seed = [session.seed, _ORDER, session.run, *f"{session.participant}/{session.session}".encode()]  # another run, another order
    return folder, categories, make_schedule(config.localizer, categories, np.random.default_rng(seed))


def said_of(trials: Sequence[Trial], config: Config, tr_s: float) -> str:
    """Return a sentence about a localizer's pictures and duration."""
    names = list(dict.fromkeys(trial.category for trial in trials))
    whole_s = length_s(trials, config.presentation.baseline_s)
    blocks = len({trial.block for trial in trials})
    shown = (
        f"{blocks} blocks of {config.localizer.block_images} pictures" if config.localizer.design == "blocks" else f"{len(trials)} pictures"
    )
    targets = sum(trial.target for trial in trials)
    task = "no task" if config.localizer.task == "none" else f"{config.localizer.task}, {targets} targets"
    return (
        f"localizer: {len(names)} categories ({', '.join(sorted(names))}), {shown}, {task}; {int(whole_s // 60)} min {whole_s % 60:.0f} s: "
        f"let the scanner run for {int(np.ceil(whole_s / tr_s))} volumes of {tr_s:g} s"
    )


def prepare_localizer(config: Config, session_file: Path | None = None) -> Plan:
    """Check a localizer, and make the plan for its stages.

    Raises
    ------
    RtevoError
        For any mistake, before a process has started.
    """
    from rtevo.session.counting import default_folder
    from rtevo.session.prepare import make_plan, new_folder

    config = as_localizer(config)
    check_open_files()
    check_participant(config)
    folder, categories, trials = schedule_of(config)
    check_delivery(config)
    check_maps(config)
    token = check_console(config)
    source = describe_source(config)
    tr_s = repetition_time(config, source)
    group = check_group(config)
    out = new_folder(config.record.out or str(default_folder(config) or ""), group)
    try:
        if folder == BUILT_IN:
            folder = _keep(categories, out / "pictures")
        config = keep_maps(config, out)
        size = next(iter(categories.values()))[0].size
        rest: dict[str, Any] = {"tr_s": tr_s, "condition": LOCALIZER, "embedding_size": 0, "image_size": size, "token": token}
        return make_plan(config, out, out, None, source, session_file=session_file, trials=trials, pictures=folder, **rest)
    except BaseException:  # nothing has been recorded
        shutil.rmtree(out, ignore_errors=True)
        raise


def _keep(categories: Mapping[str, Sequence[Picture]], into: Path) -> Path:
    """Copy the built-in pictures into the run's folder, so that it holds all pictures shown, like a site's own folder."""
    for name, own in categories.items():
        (into / name).mkdir(parents=True)
        for picture in own:
            shutil.copyfile(picture.path, into / name / picture.path.name)
    return into
