"""The TensorRT backend: the compiled backend's loop with the network and the decoder run as engines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from rtevo.errors import ModelError
from rtevo.generate.base import GeneratorSettings
from rtevo.generate.compiled import CompiledGenerator
from rtevo.generate.eager import precision_of
from rtevo.generate.engines import EngineKey, default_folder, find
from rtevo.generate.folder import PIPELINE, ModelFolder
from rtevo.generate.hashes import fingerprint, hash_files
from rtevo.generate.loading import pick_device
from rtevo.generate.runner import Runner, RunnerError

__all__ = ["TensorRTGenerator", "engine_key", "import_tensorrt"]

log = logging.getLogger(__name__)


def import_tensorrt() -> ModuleType:
    """Import tensorrt.

    Raises
    ------
    ModelError
        It is not installed, or its libraries do not load.
    """
    try:
        import tensorrt
    except ImportError as problem:
        raise ModelError(
            "[generator] backend tensorrt: expected TensorRT 8.6 or later: pip install 'rtevo[tensorrt]', "
            f"or choose backend compiled ({problem})"
        ) from problem
    module: ModuleType = tensorrt
    return module


def engine_key(model: str, device: torch.device, version: str, rows: int, size: tuple[int, int], precision: str) -> EngineKey:
    """Give the key of an engine on a device: its GPU's name and compute capability are the driver's."""
    if device.type == "cuda":
        gpu, capability = torch.cuda.get_device_name(device), ".".join(map(str, torch.cuda.get_device_capability(device)))
    else:
        gpu, capability = "cpu", "0.0"
    return EngineKey(model, gpu, capability, version, rows, *size, precision)


class TensorRTGenerator(CompiledGenerator):
    """Paints like :class:`CompiledGenerator`, with engines that ``build/engine.py`` has built and verified.

    Raises
    ------
    ModelError
        TensorRT is missing, there is no engine for this model, GPU, version and size, or it cannot be loaded.
    """

    backend = "tensorrt"

    def __init__(self, folder: ModelFolder, settings: GeneratorSettings, on_progress: Callable[[str], None] | None = None) -> None:
        if folder.kind != PIPELINE:
            raise ModelError(f"[generator] backend tensorrt: expected a Stable unCLIP model, found {folder.kind}: choose compiled")
        self._trt = import_tensorrt()
        device, mark = pick_device(settings.device), settings.fingerprint or fingerprint(hash_files(folder.path))
        precision, size = str(precision_of(settings, device)).removeprefix("torch."), folder.at(settings.px).image_size
        halves = 2 if settings.guidance_scale > 1 else 1
        self._plans = {
            count: find(
                settings.engines or default_folder(folder.path),
                engine_key(mark, device, self._trt.__version__, halves * count, size, precision),
            )
            for count in {1, settings.batch}
        }  # before the model: what is missing is said at once
        super().__init__(folder, settings, on_progress)

    def _networks(self) -> tuple[Callable[..., torch.Tensor], Callable[..., tuple[torch.Tensor, ...]]]:
        plans, scale = self._plans, self.settings.guidance_scale
        units = {count: _EngineUnet(self._runner(found["unet"]), self._model.prompt, scale, self.device) for count, found in plans.items()}
        self._denoiser = _Conditions(self._denoiser.time_embeddings, scale)
        self._pipe.unet = _Freed(self._pipe.unet)
        if self.settings.tiny_vae is None:
            self._decoder: Any = _EngineVae(self._runner(plans[1]["vae"]), self._pipe.vae.config.scaling_factor, self.device)
            self._pipe.vae = None
        else:
            self._decoder = self._compiled(self._model.decode)
        self._plans = {}
        encode = self._compiled(self._encode_image)
        return (
            lambda latents, time, labels: units[len(latents)](latents, time, labels),
            lambda latents: encode(self._decoder(latents.to(self.dtype))[0]),
        )

    def _runner(self, plan: bytes) -> Runner:
        try:
            return Runner(plan, self._trt)
        except RunnerError as problem:
            raise ModelError(f"[generator] backend tensorrt: {problem}: build the engine anew, or choose backend compiled") from problem


class _Conditions:
    """Stands where the compiled backend has its denoiser: an engine takes timesteps and class labels as they are."""

    def __init__(self, like: torch.Tensor, guidance_scale: float) -> None:
        self._device, self._guided = like.device, guidance_scale > 1
        self.time_embeddings = torch.zeros(0, device=like.device)

    def at(self, timesteps: torch.Tensor) -> None:
        """Take other timesteps (m,)."""
        self.time_embeddings = timesteps.to(self._device, torch.float32)

    def embed(self, labels: torch.Tensor) -> torch.Tensor:
        """Class labels (n or 2 n, 2 e), the unguided half, zeros, first."""
        return torch.cat([torch.zeros_like(labels), labels]) if self._guided else labels


class _Freed:
    """What is left of the network: its configuration."""

    def __init__(self, network: Any) -> None:
        self.config = network.config


class _Static:
    """A runner with static buffers for its tensors."""

    def __init__(self, runner: Runner, device: torch.device) -> None:
        self._runner, self._device = runner, device
        self.tensors: dict[str, torch.Tensor] = {}
        for name, (shape, dtype) in {**runner.inputs, **runner.outputs}.items():
            self.tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
            runner.bind(name, self.tensors[name].data_ptr())

    def run(self) -> None:
        """Queue a run on the current stream."""
        self._runner.run(torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0)


class _EngineUnet(_Static):
    """One guided evaluation of the network."""

    def __init__(self, runner: Runner, prompt: torch.Tensor, guidance_scale: float, device: torch.device) -> None:
        super().__init__(runner, device)
        self._scale = guidance_scale
        self.tensors["encoder_hidden_states"].copy_(prompt.expand_as(self.tensors["encoder_hidden_states"]))

    def __call__(self, latents: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Prediction float32 (n, c, h, w)."""
        given, guided = self.tensors, self._scale > 1
        given["sample"].copy_(torch.cat([latents, latents]) if guided else latents)
        given["timestep"].copy_(time)
        given["class_labels"].copy_(labels)
        self.run()
        found = given["prediction"].float()
        if not guided:
            return found
        off, on = found.chunk(2)
        return off + self._scale * (on - off)


class _EngineVae(_Static):
    """From latents to an image."""

    def __init__(self, runner: Runner, scaling_factor: float, device: torch.device) -> None:
        super().__init__(runner, device)
        self._scaling = scaling_factor

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Image (1, 3, H, W), -1 to 1."""
        self.tensors["latents"].copy_(latents / self._scaling)
        self.run()
        return self.tensors["image"]
