"""Check of a model folder: files, hashes, weights, and some images, as fast as possible."""

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
"""How much better pictures must follow their embeddings with another prediction type for that to count as the right one: networks with
random weights differ by 0.05 at most, the built-in model by 0.49."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Results of a generator's trial.

    Parameters
    ----------
    description : str
        Description of the generator.
    load_s : float
        Time until it was warm, s.
    times_s : tuple of float
        Time from the request to each image, s.
    pixels : ndarray, uint8 (H, W, 3)
        The first image.
    change : float
        Mean absolute difference between the first and the second image (same noise, different embeddings), grey levels.
    memory : tuple of int, optional
        Free and total memory of the GPU, bytes; None on a CPU.
    """

    description: str
    load_s: float
    times_s: tuple[float, ...]
    pixels: NDArray[np.uint8]
    change: float
    memory: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Report:
    """Results of a check.

    Parameters
    ----------
    folder : ModelFolder
    fingerprint : str
        SHA-256 of the model's files.
    trial : Trial
        Results of the generator's trial.
    """

    folder: ModelFolder
    fingerprint: str
    trial: Trial


def check(settings: GeneratorSettings, path: Path, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Check a model folder.

    Parameters
    ----------
    settings : GeneratorSettings
        How to paint; `path` replaces its `model_path`.
    path : Path
        Model folder.
    tell : callable, optional
        Called with each finding, in one line, as it is made.

    Returns
    -------
    Report

    Raises
    ------
    ModelError
        A part is missing, damaged, not as published, or does not fit; the pictures do not follow their embeddings, or follow them only with
        another prediction type than the scheduler's.
    """
    folder, mark = check_files(path, tell)
    trial = try_out(GeneratorSettings(**{**vars(settings), "model_path": path}), 2, tell, predictions=True)
    tell(f"image: {trial.times_s[0]:.3f} s; another embedding changes it by {trial.change:.1f} grey levels")
    return Report(folder, mark, trial)


def check_files(path: Path, tell: Callable[[str], None] = lambda _: None) -> tuple[ModelFolder, str]:
    """Check a model folder's files, and compare them with published hashes, if known; return the fingerprint too."""
    folder = describe(path)
    height, width = folder.image_size
    tell(f"folder: complete; embeddings of {folder.embedding_size} numbers, images of {width} x {height} px")
    for name, text in weight_summary(path).items():
        tell(f"{name}: {text}")
    files = hash_files(path)
    known, mark = sum(bool(f.published) for f in files), fingerprint(files)
    compared = f"{known} as published" if known else "no published hashes to compare with"
    tell(f"hashes: {len(files)} files, {sum(f.size for f in files) / 1e6:.1f} MB, {compared}; fingerprint {mark[:16]}")
    return folder, mark


def try_out(settings: GeneratorSettings, images: int, tell: Callable[[str], None] = lambda _: None, predictions: bool = False) -> Trial:
    """Load a session's generator, and paint images of different embeddings from the same noise.

    Parameters
    ----------
    settings : GeneratorSettings
    images : int
        Images of one request, >= 2.
    tell : callable, optional
        Called with each step of the work.
    predictions : bool
        Whether to check, with 8 more images, that the scheduler's prediction type is the network's.

    Raises
    ------
    ModelError
        The model or the device cannot be used, or the images do not follow their embeddings, or only with another prediction type.
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
            raise ModelError(f"{where}: expected different images for different embeddings, got the same: the network ignores {deaf}")
        if predictions and hasattr(generator, "predicting"):  # not with workers elsewhere
            _check_prediction(generator, settings.model_path or TINY_UNCLIP, tell)
        return Trial(generator.description, load_s, tuple(times_s), pixels[0], change, _memory(settings.device))


def _check_prediction(generator: Any, where: Path, tell: Callable[[str], None]) -> None:
    """Compare how well pictures re-encode to the requested embeddings with the scheduler's prediction type and with the other."""
    asked = np.array([generator.encode(drawing) for drawing in _drawings()])
    given = generator.prediction_type
    found = {}
    for kind in (given, *sorted({"epsilon", "v_prediction"} - {given})):
        generator.predicting(kind)
        try:
            painted = np.array([p.embedding for p in generator.paint(asked, np.arange(len(asked), dtype=np.uint64))])
        except ModelError as problem:  # black or not finite: possible with the wrong type
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
            f"{where}/scheduler/scheduler_config.json prediction_type: expected the type of the network's training, found {given}, "
            f"but with {best} pictures follow their embeddings better (nearer to their own than to others', cosine similarity: {said}): "
            "copy the model's own scheduler folder again"
        )
    sure = "" if found[given] > min(found.values()) + BETTER else "; the two are too close to tell which is right"
    tell(f"prediction_type: {given}; pictures are nearer to their own embeddings than to others' by {said}{sure}")


def _drawings(side: int = 224) -> list[NDArray[np.uint8]]:
    """Return four pictures (side, side, 3) that no encoder confuses: disc, stripes, square, cross."""
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
    """Return how much nearer embeddings (n, e) are to the requested than to the others (n, e): difference of mean cosine similarities."""
    a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (found, asked))
    near = a @ b.T
    own = float(np.trace(near))
    others = (float(near.sum()) - own) / float(near.size - len(near))
    return own / float(len(near)) - others


def _memory(device: str) -> tuple[int, int] | None:
    """Return the free and total memory of a GPU, bytes."""
    import torch

    from rtevo.generate.loading import pick_device

    if device.startswith(DASK):
        return None
    found = pick_device(device)
    return None if found.type == "cpu" else torch.cuda.mem_get_info(found)
