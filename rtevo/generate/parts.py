"""Steps that all backends share: noise, the network's condition, pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtevo.errors import ModelError

__all__ = ["draw_noise", "drawing", "network_labels", "pixel_problem", "to_pixels"]


def draw_noise(
    generators: Sequence[torch.Generator], embedding_size: int, latent_shape: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the noise of pictures: on the CPU in single precision, so that it is the same for every backend.

    Every picture has its own generator, drawn from in the order in which diffusers draws: embedding, then latents.

    Parameters
    ----------
    generators : sequence of torch.Generator, (n,)
        CPU generators, freshly seeded.
    embedding_size : int
        0 if the network does not use noise in the embedding.
    latent_shape : tuple of int
        Channels, height, width.

    Returns
    -------
    embedding_noise : tensor, float32 (n, e)
    latent_noise : tensor, float32 (n, c, h, w)
    """
    embedding_noise, latent_noise = torch.empty((len(generators), embedding_size)), torch.empty((len(generators), *latent_shape))
    for g, embedding_row, latent_row in zip(generators, embedding_noise, latent_noise, strict=True):
        if embedding_size:
            torch.randn((1, embedding_size), generator=g, out=embedding_row[None])
        torch.randn((1, *latent_shape), generator=g, out=latent_row[None])
    return embedding_noise, latent_noise


@contextmanager
def drawing(scheduler: Any, draw: Callable[[torch.Size], torch.Tensor]) -> Iterator[None]:
    """Make a scheduler that draws noise at its steps use `draw`, called with a shape (n, c, h, w).

    diffusers draws in the network's precision, on the generator's device: different noise for every backend.
    """
    known = type(scheduler).step.__globals__
    own = known.get("randn_tensor")

    def drawn(shape: torch.Size, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None) -> torch.Tensor:
        return draw(torch.Size(shape)).to(device, dtype)

    if own is None:
        yield
        return
    known["randn_tensor"] = drawn
    try:
        yield
    finally:
        known["randn_tensor"] = own


def network_labels(embeddings: torch.Tensor, noise: torch.Tensor, level: int, normalizer: Any, schedule: Any) -> torch.Tensor:
    """Add noise to embeddings, and append the embedding of the noise level: the network's ``class_labels``.

    Even level 0 adds a little noise: it is the first step of the schedule. The unguided half of guidance uses zeros instead.

    Parameters
    ----------
    embeddings, noise : tensor, float32 (n, e)
        On the CPU.
    level : int
        Noise level, from 0.
    normalizer : StableUnCLIPImageNormalizer
        The pipeline's, float32 on the CPU.
    schedule : diffusers scheduler
        The pipeline's image noising scheduler.

    Returns
    -------
    tensor, float32 (n, 2 e)
    """
    from diffusers.models.embeddings import get_timestep_embedding

    levels = torch.full((len(embeddings),), level, dtype=torch.long)
    noised = normalizer.unscale(schedule.add_noise(normalizer.scale(embeddings), timesteps=levels, noise=noise))
    told = get_timestep_embedding(levels, embeddings.shape[-1], flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([noised, told], 1)


def to_pixels(decoded: torch.Tensor) -> NDArray[np.uint8]:
    """Convert one decoded image to pixels that may be shown.

    Parameters
    ----------
    decoded : tensor, float (3, H, W)
        Output of the decoder: -1 is black, 1 is white; values beyond are clipped. On any device.

    Returns
    -------
    ndarray, uint8 (H, W, 3)

    Raises
    ------
    ModelError
        The image is not finite, or entirely black: the result of an overflow of the network's precision.
    """
    image = decoded.float()
    broken = (~torch.isfinite(image)).sum()
    levels = (image / 2 + 0.5).clamp(0, 1).mul(255).round().nan_to_num()
    pixels: NDArray[np.uint8] = levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    problem = pixel_problem(int(broken), pixels)
    if problem:
        raise ModelError(problem)
    return pixels


def pixel_problem(broken: int, pixels: NDArray[np.uint8]) -> str:
    """Return the problem of a picture with `broken` non-finite numbers; empty if there is none."""
    if broken:
        return f"image: expected finite numbers, got {broken} of {pixels.size} that are not (weights damaged, or half precision overflowed)"
    if not pixels.any():
        return "image: expected a picture, got an entirely black one (weights damaged, or half precision overflowed)"
    return ""
