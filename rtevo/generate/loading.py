"""From a model folder to a diffusers pipeline on a device: offline, quiet and fast."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rtevo.errors import ModelError
from rtevo.generate.entries import check_entries
from rtevo.generate.folder import ADAPTER_XL, ModelFolder
from rtevo.outside import read_json

__all__ = [
    "load_adapter",
    "load_encoder",
    "load_kandinsky",
    "load_pipeline",
    "load_tiny_decoder",
    "pick_device",
    "quieten",
    "with_scheduler",
]


def pick_device(name: str) -> torch.device:
    """Return the device that the settings name.

    Raises
    ------
    ModelError
        The named CUDA device does not exist.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else f"no driver that suits CUDA {torch.version.cuda}"
        raise ModelError(f"[generator] device: expected a CUDA device for {name!r}, found none ({why}; see nvidia-smi)")
    if number >= torch.cuda.device_count():
        raise ModelError(f"[generator] device: expected a CUDA device below {torch.cuda.device_count()}, got {name!r}")
    return torch.device("cuda", number)


def load_pipeline(folder: ModelFolder, device: torch.device, dtype: torch.dtype, on_progress: Callable[[str], None] | None = None) -> Any:
    """Load a Stable unCLIP pipeline.

    Parameters
    ----------
    folder : ModelFolder
    device : torch.device
    dtype : torch.dtype
    on_progress : callable, optional
        Called with one line for each step of the work.

    Returns
    -------
    diffusers.StableUnCLIPImg2ImgPipeline

    Raises
    ------
    ModelError
        The libraries cannot load the folder, or weights are missing in it.
    """
    tell = on_progress or (lambda _: None)
    tell("importing diffusers")
    with _no_collection():
        quieten()
        import transformers
        from diffusers import AutoencoderKL, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
        from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    kinds = {
        "image_encoder": transformers.CLIPVisionModelWithProjection,
        "text_encoder": transformers.CLIPTextModel,
        "image_normalizer": StableUnCLIPImageNormalizer,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
    }
    tell(f"loading {folder.path} to {device}")
    with _explained(folder, "a Stable unCLIP pipeline"):
        networks = {name: _network(kind, folder, name, dtype) for name, kind in kinds.items()}
        extractor = _feature_extractor(folder.path / "feature_extractor")
        pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(
            folder.path, feature_extractor=extractor, local_files_only=True, **networks, **_others(folder)
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_kandinsky(folder: ModelFolder, device: torch.device, dtype: torch.dtype, on_progress: Callable[[str], None] | None = None) -> Any:
    """Load Kandinsky 2.2's decoder, and with it the image encoder and feature extractor of its prior.

    Parameters and errors as for :func:`load_pipeline`.

    Returns
    -------
    diffusers.KandinskyV22Pipeline
        With `image_encoder` and `feature_extractor`, as a Stable unCLIP pipeline has them.
    """
    tell = on_progress or (lambda _: None)
    tell("importing diffusers")
    with _no_collection():
        quieten()
        import transformers
        from diffusers import KandinskyV22Pipeline, UNet2DConditionModel, VQModel
    tell(f"loading {folder.path} to {device}")
    with _explained(folder, "Kandinsky 2.2's decoder"):
        kinds = {"unet": UNet2DConditionModel, "movq": VQModel}
        networks = {name: _network(kind, folder, name, dtype) for name, kind in kinds.items()}
        encoder = _network(transformers.CLIPVisionModelWithProjection, folder, "image_encoder", dtype)
        pipe = KandinskyV22Pipeline.from_pretrained(folder.path, local_files_only=True, **networks, **_others(folder))
        extractor = _feature_extractor(folder.path / "image_processor")
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    pipe.image_encoder, pipe.feature_extractor = encoder.to(device), extractor
    return pipe


def load_adapter(folder: ModelFolder, device: torch.device, dtype: torch.dtype, on_progress: Callable[[str], None] | None = None) -> Any:
    """Load Stable Diffusion 1.5 or XL with an IP-Adapter and its image encoder, and LoRA weights merged into the network.

    A decoder that overflows half precision, according to its configuration (``force_upcast``), is loaded in single precision.

    Parameters and errors as for :func:`load_pipeline`.

    Returns
    -------
    diffusers.StableDiffusionPipeline or diffusers.StableDiffusionXLPipeline
    """
    tell = on_progress or (lambda _: None)
    tell("importing diffusers")
    with _no_collection():
        quieten()
        import transformers
        from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    tell(f"loading {folder.path} to {device}")
    assert folder.adapter is not None
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": transformers.CLIPTextModel}
    kinds["image_encoder"] = transformers.CLIPVisionModelWithProjection
    if folder.kind == ADAPTER_XL:
        kinds["text_encoder_2"] = transformers.CLIPTextModelWithProjection
    with _explained(folder, "Stable Diffusion with an IP-Adapter"):
        parts: dict[str, Any] = {name: _network(kind, folder, name, dtype) for name, kind in kinds.items()}
        upcast = AutoencoderKL.load_config(folder.path / "vae", local_files_only=True).get("force_upcast", True)
        parts["vae"] = _network(AutoencoderKL, folder, "vae", torch.float32 if upcast and folder.kind == ADAPTER_XL else dtype)
        parts |= _others(folder)
        parts["feature_extractor"] = _adapter_extractor(folder, parts["image_encoder"].config.image_size)
        if folder.kind == ADAPTER_XL:
            pipe = StableDiffusionXLPipeline.from_pretrained(folder.path, local_files_only=True, add_watermarker=False, **parts)
        else:
            parts["safety_checker"] = None
            pipe = StableDiffusionPipeline.from_pretrained(folder.path, local_files_only=True, requires_safety_checker=False, **parts)
        _merge(pipe, folder)
        pipe.load_ip_adapter(str(folder.path), "ip_adapter", folder.adapter.name, image_encoder_folder=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _adapter_extractor(folder: ModelFolder, side: int) -> Any:
    """Return the folder's feature extractor, or without one, CLIP's default for an image encoder with this picture size."""
    import transformers

    if (folder.path / "feature_extractor" / "preprocessor_config.json").is_file():
        return _feature_extractor(folder.path / "feature_extractor")
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _merge(pipe: Any, folder: ModelFolder) -> None:
    """Add LoRA weights to the network's own, permanently."""
    for file in folder.loras:
        try:
            import peft  # noqa: F401
        except ImportError:
            raise ModelError(f"{file}: expected peft to merge LoRA weights, found none: pip install peft") from None
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        pipe.fuse_lora()
        pipe.unload_lora_weights()


def load_tiny_decoder(path: Path, folder: ModelFolder, dtype: torch.dtype) -> Any:
    """Load an ``AutoencoderTiny`` that decodes a model's latents to images of the same size.

    Raises
    ------
    ModelError
        The folder holds no such network, or one for other latents.
    """
    from diffusers import AutoencoderTiny

    try:
        tiny = AutoencoderTiny.from_pretrained(path, local_files_only=True, **{_dtype_keyword(): dtype}).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as problem:
        raise ModelError(
            f"[generator] tiny_vae {path}: expected the folder of an AutoencoderTiny that diffusers can load: {problem}"
        ) from problem
    scale = 2 ** (len(tiny.config.decoder_block_out_channels) - 1)
    wanted = (folder.latent_shape[0], folder.image_size[0] // folder.latent_shape[1])
    if (tiny.config.latent_channels, scale) != wanted:
        raise ModelError(
            f"[generator] tiny_vae {path}: expected one for {wanted[0]} latent channels and {wanted[1]} pixels a latent (the model's), "
            f"found {tiny.config.latent_channels} and {scale}"
        )
    return tiny


@contextmanager
def _explained(folder: ModelFolder, what: str) -> Iterator[None]:
    """Convert the libraries' errors on loading to a ModelError, except running out of memory."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        raise ModelError(f"{folder.path}: expected {what} that diffusers can load, but: {problem}") from problem


def load_encoder(folder: ModelFolder) -> tuple[Any, Any]:
    """Load a pipeline's image encoder (float32, on the CPU) and the feature extractor that prepares pictures for it.

    Raises
    ------
    ModelError
        The libraries cannot load them, or weights are missing.
    """
    with _no_collection():
        quieten()
        import transformers
    with _explained(folder, "an image encoder"):
        network = _network(transformers.CLIPVisionModelWithProjection, folder, "image_encoder", torch.float32)
        if folder.adapter is not None:
            return network, _adapter_extractor(folder, network.config.image_size)
        extractor = "feature_extractor" if (folder.path / "feature_extractor").is_dir() else "image_processor"  # Kandinsky
        return network, _feature_extractor(folder.path / extractor)


def with_scheduler(scheduler: Any, name: str) -> Any:
    """Replace a pipeline's scheduler by another kind with the same noise schedule; ``model`` keeps the scheduler."""
    import diffusers

    if name == "model":
        return scheduler
    known: dict[str, tuple[Any, dict[str, Any]]] = {
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
        "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
        "dpm++2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}),
        "unipc": (diffusers.UniPCMultistepScheduler, {"solver_order": 2}),
        "euler": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
        "lcm": (diffusers.LCMScheduler, {}),
    }
    kind, options = known[name]
    return kind.from_config(scheduler.config, **options)


def _network(kind: Any, folder: ModelFolder, name: str, dtype: torch.dtype) -> Any:
    """Load one network, or raise ModelError if weights are missing: the libraries only warn, and use random ones."""
    options: dict[str, Any] = {_dtype_keyword(): dtype} if kind.__module__.startswith("diffusers") else {"dtype": dtype}
    variant = folder.variant(name, dtype == torch.float16)
    network, report = kind.from_pretrained(folder.path / name, local_files_only=True, variant=variant, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{folder.path / name}: expected weights for {missing[0]} and {len(missing) - 1} others, found none in its files")
    return network.eval()


def _others(folder: ModelFolder) -> dict[str, Any]:
    """Load tokenizers and schedulers, each by its class in the table, so that diffusers imports nothing by a name in the folder."""
    import diffusers
    import transformers

    index = read_json(folder.path / "model_index.json")
    check_entries(folder.path, index)
    found = {}
    for name in ("tokenizer", "tokenizer_2", "scheduler", "image_noising_scheduler"):
        library, kind = index.get(name) or ("", "")
        if not kind:
            continue
        class_ = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind, None)
        if not isinstance(class_, type):
            raise ModelError(f"{folder.path / 'model_index.json'} {name}: this {library} has no {kind}")
        found[name] = class_.from_pretrained(folder.path / name, local_files_only=True)  # type: ignore[attr-defined]
    return found


def _feature_extractor(path: Path) -> Any:
    """Return the pipeline's feature extractor in its Pillow form: the same numbers with or without torchvision."""
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return kind.from_pretrained(path, local_files_only=True)


def _dtype_keyword() -> str:
    """Return this diffusers version's name of the argument for the precision."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"


def quieten() -> None:
    """Turn off progress bars and advice on the operator's terminal; errors are raised anyway."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector: imports make so many lasting objects that scanning them takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
