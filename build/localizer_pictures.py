"""Paint the small set of pictures for a rehearsed localizer: ``rtevo/assets/localizer``.

    python build/localizer_pictures.py

The built-in model paints random points of the built-in latent space (about 5 minutes on one core). For each category, the pictures are kept
that the simulated participant's eye assigns to it most clearly, and least to another. No other part of rtevo depends on this choice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtevo.generate import TINY_LATENT_SPACE, GeneratorSettings, load
from rtevo.latent import LatentSpace
from rtevo.localizer import BUILT_IN
from rtevo.simulate.concept import ConceptPreference

CATEGORIES = ("animal", "face", "flag", "food")
EACH, PAINTED, BATCH, SEED = 12, 500, 10, 20


def paint() -> NDArray[np.uint8]:
    """Return pictures of random latents, uint8 (PAINTED, 64, 64, 3)."""
    space = LatentSpace.load(TINY_LATENT_SPACE)
    latents = np.random.default_rng(SEED).standard_normal((PAINTED, space.latent_size)).astype(np.float32)
    embeddings = space.to_embedding(latents)
    pixels = np.zeros((PAINTED, 64, 64, 3), np.uint8)
    with load(GeneratorSettings(steps=10, device="cpu")) as generator:
        for first in range(0, PAINTED, BATCH):
            for painted in generator.paint(embeddings[first : first + BATCH], np.zeros(BATCH, np.uint64)):
                pixels[first + painted.index] = painted.pixels
    return pixels


def choose(pixels: NDArray[np.uint8]) -> dict[str, list[int]]:
    """Return the numbers of the pictures of each category; none is in two."""
    likes = np.array([[ConceptPreference(name)(picture) for picture in pixels] for name in CATEGORIES])
    chosen: dict[str, list[int]] = {}
    for row, name in enumerate(CATEGORIES):
        clear = likes[row] - 0.5 * np.delete(likes, row, axis=0).max(axis=0)
        used = {k for own in chosen.values() for k in own}
        chosen[name] = [int(k) for k in np.argsort(-clear, kind="stable") if k not in used][:EACH]
    return chosen


def main(into: Path = BUILT_IN) -> None:
    """Paint, choose and write."""
    pixels = paint()
    for name, numbers in choose(pixels).items():
        (into / name).mkdir(parents=True, exist_ok=True)
        for place, number in enumerate(numbers, 1):
            Image.fromarray(pixels[number]).save(into / name / f"{name}-{place:02d}.png", optimize=True)


if __name__ == "__main__":
    main()
