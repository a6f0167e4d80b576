"""Is a model folder fit for a session? Files, hashes, weights, and some images, as fast as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import ModelError
from rtevo.generate.base import GeneratorSettings
from rtevo.generate.folder import ModelFolder, describe, weight_summary
from rtevo.generate.hashes import fingerprint, hash_files
from rtevo.generate.tiny import TINY_UNCLIP

__all__ = ["Report", "Trial", "check", "check_files", "try_out"]


@dataclass(frozen=True, eq=False)
class Trial:
    """What a generator did.

    Parameters
    ----------
    description : str
        Of the generator that painted.
    load_s : float
        Until it was warm, s.
    times_s : tuple of float
        When each image of a request was there, from the request, s.
    pixels : ndarray, uint8 (H, W, 3)
        The first of them.
    change : float
        Mean absolute difference between the first and the second, which have the same noise and other embeddings, grey levels.
    memory : tuple of int, optional
        Memory of the GPU that is still free, and all of it, bytes; None on a CPU.
    """

    description: str
    load_s: float
    times_s: tuple[float, ...]
    pixels: NDArray[np.uint8]
    change: float
    memory: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Report:
    """What a check has found.

    Parameters
    ----------
    folder : ModelFolder
    fingerprint : str
        SHA-256 of the model's files.
    trial : Trial
        What the generator did with it.
    """

    folder: ModelFolder
    fingerprint: str
    trial: Trial


def check(settings: GeneratorSettings, path: Path, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Check a model folder.

    Parameters
    ----------
    settings : GeneratorSettings
        How to paint; its `model_path` gives way to `path`.
    path : Path
        Model folder.
    tell : callable, optional
        Told each finding, in one line, as it is made.

    Returns
    -------
    Report

    Raises
    ------
    ModelError
        With what is wrong: something is missing, damaged, not as published, does not fit, or gives no pictures that follow their
        embeddings.
    """
    folder, mark = check_files(path, tell)
    trial = try_out(GeneratorSettings(**{**vars(settings), "model_path": path}), 2, tell)
    tell(f"image: {trial.times_s[0]:.3f} s; another embedding changes it by {trial.change:.1f} grey levels")
    return Report(folder, mark, trial)


def check_files(path: Path, tell: Callable[[str], None] = lambda _: None) -> tuple[ModelFolder, str]:
    """Check a model folder's files, and compare them with what was published where that is known; gives their fingerprint too."""
    folder = describe(path)
    height, width = folder.image_size
    tell(f"folder: complete; embeddings of {folder.embedding_size} numbers, images of {width} x {height} px")
    for name, text in weight_summary(path).items():
        tell(f"{name}: {text}")
    files = hash_files(path)
    known, mark = sum(bool(f.published) for f in files), fingerprint(files)
    compared = f"{known} as published" if known else "nothing beside them says what was published"
    tell(f"hashes: {len(files)} files, {sum(f.size for f in files) / 1e6:.1f} MB, {compared}; fingerprint {mark[:16]}")
    return folder, mark


def try_out(settings: GeneratorSettings, images: int, tell: Callable[[str], None] = lambda _: None) -> Trial:
    """Load the generator that a session would have, and ask it for images of different embeddings from the same noise.

    Parameters
    ----------
    settings : GeneratorSettings
    images : int
        Asked for together, >= 2.
    tell : callable, optional
        Told what is being done.

    Raises
    ------
    ModelError
        The model or the device cannot be used, or the images do not follow their embeddings.
    """
    from rtevo.generate import load

    started = time.monotonic()
    with load(settings, tell) as generator:
        tell(f"generator: {generator.description}")
        generator.warm_up()
        load_s = time.monotonic() - started
        embeddings = np.random.default_rng(0).standard_normal((images, generator.embedding_size), np.float32)
        started, times_s, pixels = time.monotonic(), [], []
        for painted in generator.paint(embeddings, np.zeros(images, np.uint64)):
            times_s.append(time.monotonic() - started)
            pixels.append(painted.pixels)
        change = float(np.abs(pixels[0].astype(np.float64) - pixels[1]).mean())
        if change == 0:
            where = settings.model_path or TINY_UNCLIP
            deaf = "its IP-Adapter" if describe(where).adapter else "its class_labels"
            raise ModelError(f"{where}: expected another image for another embedding, got the same: the network ignores {deaf}")
        return Trial(generator.description, load_s, tuple(times_s), pixels[0], change, _memory(settings.device))


def _memory(device: str) -> tuple[int, int] | None:
    """Free and total memory of a GPU, bytes."""
    import torch

    from rtevo.generate.loading import pick_device

    found = pick_device(device)
    return None if found.type == "cpu" else torch.cuda.mem_get_info(found)
