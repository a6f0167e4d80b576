"""A CLIP safety checker, as a filter of the gate: it flags pictures, and never changes them.

The model compares a picture's CLIP embedding with a few concepts, each with its own threshold; concepts for special care lower the
thresholds of the others (Rando et al. 2022, arXiv:2210.04610, analyse it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Checker"]

CARE = 0.01  # by which thresholds are lowered for special care, as in the published checker


class Checker:
    """Flags pictures like the checker of a diffusers folder.

    Parameters
    ----------
    folder : str
        With ``config.json`` and weights of a ``StableDiffusionSafetyChecker``.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Attributes
    ----------
    version : str
    threshold : float
        Pictures above it are refused.
    reason : str
    """

    threshold, reason = 0.0, "the safety checker finds a concept"

    def __init__(self, folder: str, device: str = "cpu") -> None:
        import transformers
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        from rtevo.generate.loading import pick_device

        torch.set_num_threads(1)
        self.version = f"transformers {transformers.__version__}"
        self._device = pick_device(device)
        self._model = StableDiffusionSafetyChecker.from_pretrained(folder, local_files_only=True).eval().to(self._device)
        side = self._model.config.vision_config.image_size
        self._prepare = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> float:
        """Return how far the nearest concept lies beyond its threshold; above 0 the published checker flags the picture."""
        model: Any = self._model
        seen = self._prepare(images=pixels, return_tensors="pt").pixel_values.to(self._device)
        embedding = model.visual_projection(model.vision_model(seen)[1])
        direction = torch.nn.functional.normalize(embedding.float())

        def beyond(concepts: Any, thresholds: Any) -> Any:
            return direction @ torch.nn.functional.normalize(concepts.float()).T - thresholds

        special = beyond(model.special_care_embeds, model.special_care_embeds_weights)
        lowered = CARE if bool((special.round(decimals=3) > 0).any()) else 0.0
        return float((beyond(model.concept_embeds, model.concept_embeds_weights) + lowered).round(decimals=3).max())
