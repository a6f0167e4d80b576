"""A pipeline's feature extractor as tensor operations, so that pictures are re-encoded on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rtevo.errors import ModelError

__all__ = ["Viewer"]

_BICUBIC = 3  # Pillow's number for it


class Viewer(nn.Module):
    """Resizes, crops and normalises pixels as ``CLIPImageProcessor`` does.

    Agrees with Pillow to one grey level: both use the antialiased cubic kernel with a = -0.5, Pillow in fixed point.

    Parameters
    ----------
    settings : mapping
        The feature extractor's configuration.

    Raises
    ------
    ModelError
        The configuration asks for something else.
    """

    mean: torch.Tensor
    gain: torch.Tensor

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        for key, wanted in (("do_resize", True), ("do_normalize", True), ("do_rescale", True), ("resample", _BICUBIC)):
            if settings.get(key, wanted) != wanted:
                raise ModelError(f"preprocessor_config.json {key}: expected {wanted}, found {settings[key]!r}: choose backend eager")
        size, crop = settings["size"], settings.get("crop_size")
        self.edge = int(size["shortest_edge"])
        self.crop = (int(crop["height"]), int(crop["width"])) if settings.get("do_center_crop", True) and crop else None
        std = torch.tensor(settings["image_std"], dtype=torch.float32)
        self.register_buffer("mean", (torch.tensor(settings["image_mean"], dtype=torch.float32) / std)[:, None, None])
        self.register_buffer("gain", (float(settings["rescale_factor"]) / std)[:, None, None])

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Return the image encoder's input.

        Parameters
        ----------
        picture : tensor, float32 (3, H, W)
            Whole numbers, 0 to 255.

        Returns
        -------
        tensor, float32 (1, 3, h, w)
        """
        height, width = picture.shape[1:]
        short = min(height, width)
        tall, wide = (int(side * self.edge / short) for side in (height, width))
        for sides in ((height, wide), (tall, wide)):  # columns first, rounded and clipped in between, as Pillow does
            if sides != tuple(picture.shape[1:]):
                picture = nn.functional.interpolate(picture[None], sides, mode="bicubic", antialias=True, align_corners=False)[0]
                picture = picture.round().clamp(0, 255)
        if self.crop:
            top, left = [(have - want) // 2 for have, want in zip(picture.shape[1:], self.crop, strict=True)]
            picture = picture[:, top : top + self.crop[0], left : left + self.crop[1]]
        return (picture * self.gain - self.mean)[None]
