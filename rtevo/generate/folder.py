"""Contents of a model folder, from its JSON files and the sizes of its weights, without torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rtevo.errors import ConfigError, DataError, ModelError
from rtevo.generate.entries import check_entries
from rtevo.outside import parse_json, read_json

__all__ = ["ADAPTER", "ADAPTER_XL", "FAMILIES", "KANDINSKY", "PIPELINE", "ModelFolder", "describe", "weight_summary"]

PIPELINE = "StableUnCLIPImg2ImgPipeline"
KANDINSKY = "KandinskyV22Pipeline"
ADAPTER = "StableDiffusionPipeline"
ADAPTER_XL = "StableDiffusionXLPipeline"
"""The pipeline classes that a folder's ``model_index.json`` may name."""

FAMILIES = {
    PIPELINE: "Stable unCLIP",
    KANDINSKY: "Kandinsky 2.2",
    ADAPTER: "Stable Diffusion with an IP-Adapter",
    ADAPTER_XL: "Stable Diffusion XL with an IP-Adapter",
}

_UNCLIP_CONFIGS = {
    "feature_extractor": "preprocessor_config.json",
    "image_encoder": "config.json",
    "image_normalizer": "config.json",
    "image_noising_scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "text_encoder": "config.json",
    "unet": "config.json",
    "scheduler": "scheduler_config.json",
    "vae": "config.json",
}
_KANDINSKY_CONFIGS = {
    "image_processor": "preprocessor_config.json",
    "image_encoder": "config.json",
    "unet": "config.json",
    "scheduler": "scheduler_config.json",
    "movq": "config.json",
}
_ADAPTER_CONFIGS = {
    "image_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "text_encoder": "config.json",
    "unet": "config.json",
    "scheduler": "scheduler_config.json",
    "vae": "config.json",
}
_ADAPTER_XL_CONFIGS = _ADAPTER_CONFIGS | {"tokenizer_2": "tokenizer_config.json", "text_encoder_2": "config.json"}
_CONFIGS = {PIPELINE: _UNCLIP_CONFIGS, KANDINSKY: _KANDINSKY_CONFIGS, ADAPTER: _ADAPTER_CONFIGS, ADAPTER_XL: _ADAPTER_XL_CONFIGS}
_FILES = _UNCLIP_CONFIGS | _KANDINSKY_CONFIGS | _ADAPTER_XL_CONFIGS
_WEIGHTS = {
    "image_encoder": ("model", "pytorch_model"),
    "image_normalizer": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "movq": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
}
"""Stem of a component's weights: safetensors, and the older pickle."""


@dataclass(frozen=True)
class ModelFolder:
    """The contents of a model folder.

    Parameters
    ----------
    path : Path
        The folder.
    kind : str
        `PIPELINE`, `KANDINSKY`, `ADAPTER` or `ADAPTER_XL`.
    embedding_size : int
        Numbers in an image embedding (1024: ViT-H, 768: ViT-L, 1280: ViT-bigG).
    image_size : tuple of int
        Height and width, pixels.
    latent_shape : tuple of int
        Channels, height and width of the latents that are denoised.
    noise_levels : int
        Number of noise levels: a level must be below it.
    variants : mapping of str to set of str
        The variants of each network's weights: ``""`` (plain) and ``"fp16"``.
    adapter : Path, optional
        The IP-Adapter's weights.
    loras : tuple of Path
        Weights that are added to the network's when it is loaded (LoRA), in the order of their names.
    """

    path: Path
    kind: str
    embedding_size: int
    image_size: tuple[int, int]
    latent_shape: tuple[int, int, int]
    noise_levels: int
    variants: Mapping[str, frozenset[str]]
    adapter: Path | None = None
    loras: tuple[Path, ...] = ()

    def at(self, px: int) -> ModelFolder:
        """Return the same model for images whose longer side has `px` pixels; 0 for the model's own size.

        Raises
        ------
        ConfigError
            The network cannot make that size.
        """
        longest, scale = max(self.image_size), self.image_size[0] // self.latent_shape[1]
        if px in (0, longest):
            return self
        height, width = (round(side * px / longest) for side in self.image_size)
        if px < 0 or any(side % (8 * scale) for side in (height, width)):
            raise ConfigError(f"[generator] px: expected 0 or a multiple of {8 * scale} for {self.path.name}, got {px}")
        return replace(self, image_size=(height, width), latent_shape=(self.latent_shape[0], height // scale, width // scale))

    def variant(self, name: str, half: bool) -> str | None:
        """Return the variant of a network's files to load, in the libraries' terms: the wanted precision, if there is a choice."""
        there = self.variants[name]
        return "fp16" if "fp16" in there and (half or "" not in there) else None


def describe(path: Path) -> ModelFolder:
    """Read the description of a model folder.

    Reads the JSON files and the first bytes of the weights: milliseconds, whatever the size of the model.

    Parameters
    ----------
    path : Path
        diffusers folder of a Stable unCLIP pipeline; of Kandinsky 2.2's decoder with its prior's image encoder beside it; or of Stable
        Diffusion 1.5 or XL with ``ip_adapter/`` (one file of weights) and ``image_encoder/`` beside it, and ``lora/`` if wanted.

    Returns
    -------
    ModelFolder

    Raises
    ------
    ModelError
        The folder or one of its components is missing, its pipeline is of another class, a file of weights is truncated, or the
        components do not fit each other.
    """
    path = Path(path)
    kind = _check_class(path)
    wanted = _CONFIGS[kind]
    missing = [name for name in wanted if not (path / name).is_dir()]
    if missing:
        raise ModelError(f"{path}: expected folders {', '.join(wanted)}; missing {', '.join(missing)}{_HINTS.get(kind, '')}")
    configs = {name: _read(path / name / file) for name, file in wanted.items()}
    for name in wanted:
        if name.startswith("tokenizer"):
            _check_tokenizer(path / name)
    adapter = _only_adapter(path) if kind in (ADAPTER, ADAPTER_XL) else None
    embedding_size = _number(configs, path, "image_encoder", "projection_dim", 512)
    latent_shape, image_size = _sizes(configs, path)
    if adapter is not None:
        _check_adapter(configs, path, embedding_size, adapter)
    else:
        (_check_fit if kind == PIPELINE else _check_kandinsky)(configs, path, embedding_size)
    return ModelFolder(
        path=path,
        kind=kind,
        embedding_size=embedding_size,
        image_size=image_size,
        latent_shape=latent_shape,
        noise_levels=_number(configs, path, "image_noising_scheduler", "num_train_timesteps", 1000) if kind == PIPELINE else 1,
        variants={name: _weights(path / name, *stems) for name, stems in _WEIGHTS.items() if name in wanted},
        adapter=adapter,
        loras=tuple(sorted((path / "lora").glob("*.safetensors"))) if adapter is not None else (),
    )


_HINTS = {
    KANDINSKY: "; image_encoder and image_processor come from the folder of Kandinsky's prior",
    ADAPTER: "; image_encoder comes from the IP-Adapter's folder: python -m rtevo.generate get",
    ADAPTER_XL: "; image_encoder comes from the IP-Adapter's folder: python -m rtevo.generate get",
}


def _only_adapter(path: Path) -> Path:
    """The IP-Adapter's file of weights."""
    found = sorted((path / "ip_adapter").glob("*.safetensors"))
    if len(found) != 1:
        raise ModelError(
            f"{path}/ip_adapter: expected one file of an IP-Adapter's weights (*.safetensors), found "
            f"{', '.join(file.name for file in found) or 'none'}: Stable Diffusion needs an adapter for the embedding "
            "(python -m rtevo.generate get)"
        )
    return found[0]


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object, or raise ModelError."""
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise ModelError(f"{file}: expected this file of the model, found none") from None
    except (OSError, DataError) as problem:
        raise ModelError(f"{file}: expected a JSON object, found something else: {problem}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found


def _check_class(path: Path) -> str:
    if not path.is_dir():
        raise ModelError(f"{path}: expected the folder of a diffusers pipeline, found {'a file' if path.exists() else 'nothing there'}")
    if not (path / "model_index.json").is_file():
        _refuse_cache(path)
        inside = sorted(entry.name for entry in path.iterdir())[:8]
        raise ModelError(f"{path}: expected model_index.json of a diffusers pipeline, found {', '.join(inside) or 'an empty folder'}")
    index = _read(path / "model_index.json")
    check_entries(path, index)
    found = index.get("_class_name")
    if found not in _CONFIGS:
        raise ModelError(f"{path / 'model_index.json'} _class_name: expected {' or '.join(_CONFIGS)}, found {found}")
    return str(found)


def _refuse_cache(path: Path) -> None:
    """Raise an error that lists the snapshots if a folder is not a model but a part of Hugging Face's cache, or holds the cache.

    The cache is laid out as ``[hub/]models--OWNER--NAME/{blobs, refs, snapshots/COMMIT}``, and files in ``refs`` name a branch's
    commit (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    caches = [path] if (path / "snapshots").is_dir() else [path.parent] if path.name == "snapshots" else []
    caches = caches or sorted([*path.glob("models--*"), *path.glob("hub/models--*")])
    found = [s for cache in caches for s in sorted((cache / "snapshots").glob("*")) if s.is_dir()]
    usable = [s for s in found if (s / "model_index.json").is_file() and _read(s / "model_index.json").get("_class_name") in _CONFIGS]
    if not caches:
        return
    what = f"{path}: expected the folder of a diffusers pipeline, found Hugging Face's cache"
    if not usable:
        inside = "; ".join(str(s) for s in found[:8]) or "no snapshot"
        raise ModelError(f"{what}, in which no snapshot is one of {' or '.join(_CONFIGS)}: {inside}")
    named = []
    for snapshot in usable:
        refs = snapshot.parent.parent / "refs"
        files = [file for file in sorted(refs.rglob("*")) if file.is_file()]
        branches = [file.relative_to(refs).as_posix() for file in files if file.read_text().strip() == snapshot.name]
        named.append(f"{snapshot}" + (f" ({', '.join(branches)})" if branches else ""))
    raise ModelError(f"{what}; name the snapshot: {' or '.join(named[:8])}")


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file() and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise ModelError(f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither")


def _weights(folder: Path, stem: str, old_stem: str) -> frozenset[str]:
    """Return the variants (``""`` or ``"fp16"``) with complete weights of a component."""
    found: set[str] = set()
    for variant in ("", "fp16"):
        dotted = f".{variant}" if variant else ""
        shards = sorted(folder.glob(f"{stem}{dotted}-*-of-*.safetensors")) + sorted(folder.glob(f"{stem}-*-of-*{dotted}.safetensors"))
        for file in [folder / f"{stem}{dotted}.safetensors", *shards]:
            if file.is_file():
                _read_header(file)
                found.add(variant)
        if (folder / f"{old_stem}{dotted}.bin").is_file():
            found.add(variant)
    if not found:
        raise ModelError(f"{folder}: expected weights in {stem}.safetensors, found none")
    return frozenset(found)


def _read_header(file: Path) -> dict[str, Any]:
    """Read the header of a safetensors file and compare its size with it (https://huggingface.co/docs/safetensors)."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":
                raise ValueError("a pointer of Git LFS; fetch the file itself with: git lfs pull")
            (header_size,) = struct.unpack("<Q", start)
            if header_size > min(size, 1 << 27):
                raise ValueError(f"a header of {header_size} bytes in a file of {size}")
            header = parse_json(stream.read(header_size), 1 << 27)
            header.pop("__metadata__", None)
            wanted = 8 + header_size + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (OSError, DataError, ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
        raise ModelError(f"{file}: expected safetensors weights, found something else: {problem}") from None
    if wanted != size:
        raise ModelError(f"{file}: expected {wanted} bytes as its header says, found {size}: copy the model again")
    return dict(header)


def weight_summary(path: Path) -> dict[str, str]:
    """Return, for each network of a model folder, a text with its number of weights in each precision."""
    summary: dict[str, str] = {}
    for name, (stem, _) in _WEIGHTS.items():
        if not (path / name).is_dir():
            continue
        said = []
        for file in sorted((path / name).glob(f"{stem}*.safetensors")):
            count: dict[str, int] = {}
            for tensor in _read_header(file).values():
                count[tensor["dtype"]] = count.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
            said.append(f"{' + '.join(f'{n / 1e6:.3g} M {kind}' for kind, n in sorted(count.items()))} in {file.name}")
        summary[name] = "; ".join(said) or "weights in a pickle only"
    for name in ("ip_adapter", "lora"):
        if files := sorted((path / name).glob("*.safetensors")):
            summary[name] = ", ".join(file.name for file in files)
    return summary


def _number(configs: Mapping[str, Mapping[str, Any]], path: Path, component: str, key: str, default: int | None = None) -> int:
    """Return an integer of a component's configuration."""
    found = configs[component].get(key, default)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ModelError(f"{path / component / _FILES[component]} {key}: expected a whole number >= 1, found {found!r}")
    return found


def _sizes(configs: Mapping[str, Mapping[str, Any]], path: Path) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Return the latent shape (channels, height, width) and the image size (height, width)."""
    sample = configs["unet"].get("sample_size")
    height, width = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
    decoder = "vae" if "vae" in configs else "movq"
    blocks = configs[decoder].get("block_out_channels")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise ModelError(f"{path}/unet/config.json sample_size: expected one or two whole numbers, found {sample!r}")
    if not isinstance(blocks, list) or not blocks:
        raise ModelError(f"{path}/{decoder}/config.json block_out_channels: expected a list of numbers, found {blocks!r}")
    scale = 2 ** (len(blocks) - 1)
    return (_number(configs, path, "unet", "in_channels", 4), height, width), (height * scale, width * scale)


def _check_fit(configs: Mapping[str, Mapping[str, Any]], path: Path, embedding_size: int) -> None:
    """Check that the components can work together."""
    kind = configs["unet"].get("class_embed_type")
    if kind != "projection":
        raise ModelError(
            f"{path}/unet/config.json class_embed_type: expected 'projection' (how an unCLIP network takes the image embedding), "
            f"found {kind!r}"
        )
    for component, key, wanted, why in (
        ("unet", "projection_class_embeddings_input_dim", 2 * embedding_size, "twice the image encoder's projection_dim"),
        ("image_normalizer", "embedding_dim", embedding_size, "the image encoder's projection_dim"),
        ("vae", "latent_channels", configs["unet"].get("in_channels", 4), "the unet's in_channels"),
        ("text_encoder", "hidden_size", configs["unet"].get("cross_attention_dim", 1280), "the unet's cross_attention_dim"),
    ):
        default = {"embedding_dim": 768, "latent_channels": 4, "hidden_size": 512}.get(key)
        found = configs[component].get(key, default)
        if found != wanted:
            raise ModelError(f"{path / component}/config.json {key}: expected {wanted} ({why}), found {found!r}")


def _check_kandinsky(configs: Mapping[str, Mapping[str, Any]], path: Path, embedding_size: int) -> None:
    """Check that the components of Kandinsky 2.2's decoder can work together."""
    for component, key, wanted, why in (
        ("unet", "encoder_hid_dim_type", "image_proj", "how Kandinsky 2.2's network takes the image embedding"),
        ("unet", "addition_embed_type", "image", "how Kandinsky 2.2's network takes the image embedding"),
        ("unet", "encoder_hid_dim", embedding_size, "the image encoder's projection_dim"),
        ("movq", "latent_channels", configs["unet"].get("in_channels", 4), "the unet's in_channels"),
    ):
        found = configs[component].get(key, {"latent_channels": 3}.get(key))
        if found != wanted:
            raise ModelError(f"{path / component}/config.json {key}: expected {wanted!r} ({why}), found {found!r}")


def _check_adapter(configs: Mapping[str, Mapping[str, Any]], path: Path, embedding_size: int, adapter: Path) -> None:
    """Check that an IP-Adapter fits the image encoder's embeddings and the network."""
    shapes = {name: tensor.get("shape", []) for name, tensor in _read_header(adapter).items()}
    cross = configs["unet"].get("cross_attention_dim", 1280)
    found = shapes.get("image_proj.proj.weight")
    if found is None:
        raise ModelError(
            f"{adapter}: expected a global IP-Adapter (image_proj.proj.weight), which takes one embedding of a picture, found another kind "
            "(plus, full face and face ID use patches or faces): choose ip-adapter_sd15, ip-adapter_sdxl or ip-adapter_sdxl_vit-h"
        )
    if not isinstance(cross, int) or found != [4 * cross, embedding_size]:
        raise ModelError(
            f"{adapter} image_proj.proj.weight: expected four times {cross} rows (the unet's cross_attention_dim) and {embedding_size} "
            f"columns (the image encoder's projection_dim), found shape {found}"
        )
    for component, key, wanted, why in (
        ("unet", "class_embed_type", None, "the adapter is the only input of the embedding"),
        ("unet", "encoder_hid_dim_type", None, "the adapter is the only input of the embedding"),
        ("vae", "latent_channels", configs["unet"].get("in_channels", 4), "the unet's in_channels"),
    ):
        there = configs[component].get(key, {"latent_channels": 4}.get(key))
        if there != wanted:
            raise ModelError(f"{path / component}/config.json {key}: expected {wanted!r} ({why}), found {there!r}")
