"""Is a model folder fit for a session? Files, hashes, weights, and some images, as fast as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rtevo.errors import ModelError
from rtevo.generate.base import DASK, GeneratorSettings
from rtevo.generate.folder import ModelFolder, describe, weight_summary
from rtevo.generate.hashes import fingerprint, hash_files
from rtevo.generate.tiny import TINY_UNCLIP

__all__ = ["Report", "Trial", "check", "check_files", "try_out"]

BETTER = 0.1
"""How much better pictures must follow their embeddings with another prediction type before it is the right one: networks of random
weights differ by 0.05 at most, the built-in model by 0.49."""


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
        With what is wrong: something is missing, damaged, not as published, does not fit, gives no pictures that follow their embeddings,
        or gives such pictures with another prediction type than its scheduler names.
    """
    folder, mark = check_files(path, tell)
    trial = try_out(GeneratorSettings(**{**vars(settings), "model_path": path}), 2, tell, predictions=True)
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


def try_out(settings: GeneratorSettings, images: int, tell: Callable[[str], None] = lambda _: None, predictions: bool = False) -> Trial:
    """Load the generator that a session would have, and ask it for images of different embeddings from the same noise.

    Parameters
    ----------
    settings : GeneratorSettings
    images : int
        Asked for together, >= 2.
    tell : callable, optional
        Told what is being done.
    predictions : bool
        Whether to find out, with 8 images more, if the scheduler's prediction type is the network's.

    Raises
    ------
    ModelError
        The model or the device cannot be used, the images do not follow their embeddings, or do with another prediction type.
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
        if predictions and hasattr(generator, "predicting"):  # not of workers elsewhere
            _check_prediction(generator, settings.model_path or TINY_UNCLIP, tell)
        return Trial(generator.description, load_s, tuple(times_s), pixels[0], change, _memory(settings.device))


def _check_prediction(generator: Any, where: Path, tell: Callable[[str], None]) -> None:
    """Compare how well pictures re-encode to what was asked for with the scheduler's prediction type and with the other one."""
    asked = np.array([generator.encode(drawing) for drawing in _drawings()])
    given = generator.prediction_type
    found = {}
    for kind in (given, *sorted({"epsilon", "v_prediction"} - {given})):
        generator.predicting(kind)
        try:
            painted = np.array([p.embedding for p in generator.paint(asked, np.arange(len(asked), dtype=np.uint64))])
        except ModelError as problem:  # black, or not finite: with the wrong one that can be
            if kind == given:
                raise
            tell(f"prediction_type {kind}: {problem}")
            continue
        found[kind] = _followed(painted, asked)
    generator.predicting(given)
    said = ", ".join(f"{kind} {value:.2f}" for kind, value in found.items())
    best = max(found, key=lambda kind: found[kind])
    if found[best] > found[given] + BETTER:
        raise ModelError(
            f"{where}/scheduler/scheduler_config.json prediction_type: expected what the network was trained to predict, found {given}, "
            f"but with {best} pictures follow their embeddings better (nearer to their own than to others', cosine similarity: {said}): "
            "copy the model's own scheduler folder again"
        )
    sure = "" if found[given] > min(found.values()) + BETTER else "; too near to each other to say which is right"
    tell(f"prediction_type: {given}; pictures are nearer to their own embeddings than to others' by {said}{sure}")


def _drawings(side: int = 224) -> list[NDArray[np.uint8]]:
    """Four pictures (side, side, 3) that no encoder takes for each other: disc, stripes, square, cross."""
    s = side / 10
    drawn = []
    for back, front, boxes in (
        ("#fafafa", "#dc1e1e", ()),
        ("#142890", "#fad228", [(0, k, 10, k + 1) for k in (0, 2.5, 5, 7.5)]),
        ("#3c963c", "#141414", [(2.5, 2.5, 7.5, 7.5)]),
        ("#f0c8dc", "#783c14", [(4, 1, 6, 9), (1, 4, 9, 6)]),
    ):
        picture = Image.new("RGB", (side, side), back)
        pen = ImageDraw.Draw(picture)
        for box in boxes:
            pen.rectangle([s * x for x in box], fill=front)
        if not boxes:
            pen.ellipse([s * x for x in (2, 2, 8, 8)], fill=front)
        drawn.append(np.asarray(picture))
    return drawn


def _followed(found: NDArray[np.float32], asked: NDArray[np.float32]) -> float:
    """How much nearer embeddings (n, e) are to those asked for than to the others' (n, e): difference of mean cosine similarities."""
    a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (found, asked))
    near = a @ b.T
    own = float(np.trace(near))
    others = (float(near.sum()) - own) / float(near.size - len(near))
    return own / float(len(near)) - others


def _memory(device: str) -> tuple[int, int] | None:
    """Free and total memory of a GPU, bytes."""
    import torch

    from rtevo.generate.loading import pick_device

    if device.startswith(DASK):
        return None
    found = pick_device(device)
    return None if found.type == "cpu" else torch.cuda.mem_get_info(found)
