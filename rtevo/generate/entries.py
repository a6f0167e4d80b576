"""Checks of a model folder's names: no code, and only known classes for each component (``model_index.json`` is imported by name)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtevo.errors import ModelError
from rtevo.outside import shown

__all__ = ["check_entries"]

CODE = (".py", ".pyc", ".pyd", ".so", ".dll")
_CLIP_IMAGES = (("transformers",), r"CLIP(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
_NETWORK = (("diffusers",), r"UNet2DConditionModel")
_SCHEDULER = (("diffusers",), r"[A-Za-z0-9]+Scheduler")
ENTRIES: dict[str, tuple[tuple[str, ...], str]] = {
    "feature_extractor": _CLIP_IMAGES,
    "image_processor": _CLIP_IMAGES,
    "image_encoder": (("transformers",), r"CLIPVisionModelWithProjection"),
    "image_normalizer": (("stable_diffusion", "diffusers"), r"StableUnCLIPImageNormalizer"),
    "image_noising_scheduler": (("diffusers",), r"DDPMScheduler"),
    "tokenizer": (("transformers",), r"CLIPTokenizer(Fast)?"),
    "tokenizer_2": (("transformers",), r"CLIPTokenizer(Fast)?"),
    "text_encoder": (("transformers",), r"CLIPTextModel"),
    "text_encoder_2": (("transformers",), r"CLIPTextModelWithProjection"),
    "safety_checker": (("stable_diffusion",), r"StableDiffusionSafetyChecker"),  # of Stable Diffusion 1.5; not loaded
    "unet": _NETWORK,
    "scheduler": _SCHEDULER,
    "vae": (("diffusers",), r"AutoencoderKL"),
    "movq": (("diffusers", "diffusers.models.vq_model"), r"VQModel"),
}
"""Libraries and classes of each component."""


def check_entries(path: Path, index: Mapping[str, Any]) -> None:
    """Refuse a model folder that could run code when it is loaded, even if diffusers permits it.

    Parameters
    ----------
    path : Path
        The folder.
    index : mapping
        Its ``model_index.json``.

    Raises
    ------
    ModelError
        The folder holds code, or names a class that is not in :data:`ENTRIES`.
    """
    if code := sorted(file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in CODE):
        raise ModelError(f"{path}: expected weights and settings, found code ({shown(code[0])}): remove it")
    where = path / "model_index.json"
    if not isinstance(index.get("_class_name"), (str, type(None))):
        raise ModelError(f"{where} _class_name: expected the name of a class, found {shown(repr(index['_class_name']))}")
    for name, entry in index.items():
        if not isinstance(entry, (list, dict)) or entry in ([None, None], []):
            continue
        libraries, kind = ENTRIES.get(name, ((), ""))
        known = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
        if not known or entry[0] not in libraries or not re.fullmatch(kind, entry[1]):
            expected = f"{' or '.join(libraries)} with {kind}" if libraries else "no such component"
            raise ModelError(f"{where} {shown(name)}: expected {expected}, found {shown(repr(entry))}")
