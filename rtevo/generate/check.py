"""Is a model folder fit for a session? Files, hashes, weights, and one image."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import ModelError
from rtevo.generate.base import Generator, GeneratorSettings
from rtevo.generate.folder import ModelFolder, describe, weight_summary
from rtevo.generate.hashes import fingerprint, hash_files

__all__ = ["Report", "check"]


@dataclass(frozen=True, eq=False)
class Report:
    """What a check has found.

    Parameters
    ----------
    folder : ModelFolder
    fingerprint : str
        SHA-256 of the model's files.
    description : str
        Of the generator that painted.
    seconds : float
        Time of one image, warm.
    pixels : ndarray, uint8 (H, W, 3)
        That image.
    change : float
        Mean absolute difference to the image of another embedding, grey levels.
    """

    folder: ModelFolder
    fingerprint: str
    description: str
    seconds: float
    pixels: NDArray[np.uint8]
    change: float


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
    from rtevo.generate import load

    folder = describe(path)
    height, width = folder.image_size
    tell(f"folder: complete; embeddings of {folder.embedding_size} numbers, images of {width} x {height} px")
    for name, text in weight_summary(path).items():
        tell(f"{name}: {text}")
    files = hash_files(path)
    known, mark = sum(bool(f.published) for f in files), fingerprint(files)
    compared = f"{known} as published" if known else "nothing beside them says what was published"
    tell(f"hashes: {len(files)} files, {sum(f.size for f in files) / 1e6:.1f} MB, {compared}; fingerprint {mark[:16]}")
    with load(GeneratorSettings(**{**vars(settings), "model_path": path}), tell) as generator:
        tell(f"generator: {generator.description}")
        generator.warm_up()
        seconds, pixels, change = _paint(generator, path)
        tell(f"image: {seconds:.3f} s; another embedding changes it by {change:.1f} grey levels")
        return Report(folder, mark, generator.description, seconds, pixels, change)


def _paint(generator: Generator, path: Path) -> tuple[float, NDArray[np.uint8], float]:
    """Paint two embeddings from the same noise: time of one, the first image, how much they differ."""
    embeddings = np.random.default_rng(0).standard_normal((2, generator.embedding_size), np.float32)
    seeds = np.zeros(1, np.uint64)
    started = time.monotonic()
    first = next(generator.paint(embeddings[:1], seeds)).pixels
    seconds = time.monotonic() - started
    second = next(generator.paint(embeddings[1:], seeds)).pixels
    change = float(np.abs(first.astype(np.float64) - second).mean())
    if change == 0:
        raise ModelError(f"{path}: expected another image for another embedding, got the same: the network ignores its class_labels")
    return seconds, first, change
