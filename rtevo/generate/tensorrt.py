"""The TensorRT backend: the compiled backend's loop, with the network and the decoder as engines.

Engines are of TensorRT or of TensorRT for RTX, whichever is installed and has engines for this model and GPU. Only the embeddings of
timesteps, prompt and picture, which are computed once, stay in torch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from rtevo.errors import ModelError
from rtevo.generate.base import GeneratorSettings
from rtevo.generate.compiled import CompiledGenerator
from rtevo.generate.eager import precision_of
from rtevo.generate.engines import EngineKey, cache_file, default_folder, find, read_plans, timing, write
from rtevo.generate.folder import ModelFolder
from rtevo.generate.hashes import fingerprint, hash_files
from rtevo.generate.loading import pick_device
from rtevo.generate.runner import Runner, RunnerError
from rtevo.outside import read_json

__all__ = [
    "MODULES",
    "Static",
    "TensorRTGenerator",
    "check_faster",
    "find_engines",
    "halves",
    "installed",
    "machine",
    "machine_key",
    "portable",
    "timed_on",
]

log = logging.getLogger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx")


def installed(names: tuple[str, ...] = MODULES) -> list[ModuleType]:
    """Import TensorRT and TensorRT for RTX, as far as installed.

    Raises
    ------
    ModelError
        Neither is installed, or their libraries do not load.
    """
    found, problems = [], []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as problem:
            problems.append(str(problem))
    if not found:
        raise ModelError(
            "[generator] backend tensorrt: expected TensorRT or TensorRT for RTX: pip install 'rtevo[tensorrt]', "
            f"or choose backend compiled ({'; '.join(problems)})"
        )
    return found


def portable(trt: Any) -> bool:
    """Whether a module's engines are for GPUs of named compute capabilities, not only for the GPU on which they were built."""
    return hasattr(trt, "ComputeCapability")


def machine(device: torch.device) -> tuple[str, str, str]:
    """Return the name of a device, its compute capability, and its driver's version."""
    if device.type != "cuda":
        return "cpu", "0.0", "none"
    version = Path("/sys/module/nvidia/version")
    driver = version.read_text().strip() if version.is_file() else f"for CUDA {torch.version.cuda}"
    return torch.cuda.get_device_name(device), ".".join(map(str, torch.cuda.get_device_capability(device))), driver


def timed_on(device: torch.device) -> str:
    """Return the description of the machine to which measured times belong."""
    gpu, _, driver = machine(device)
    return f"{gpu}, driver {driver}, torch {torch.__version__}"


def halves(folder: ModelFolder, guidance_scale: float) -> int:
    """Return the number of samples that the network evaluates for a picture: with the guidance as an input it needs one, not two."""
    told = read_json(folder.path / "unet" / "config.json").get("time_cond_proj_dim") is not None
    return 2 if guidance_scale > 1 and not told else 1


def machine_key(trt: Any, folder: ModelFolder, settings: GeneratorSettings, count: int, mark: str) -> EngineKey:
    """Return the key of an engine for `count` pictures on this machine."""
    device = pick_device(settings.device)
    gpu, capability, _ = machine(device)
    rows, size = count * halves(folder, settings.guidance_scale), folder.at(settings.px).image_size
    precision = str(precision_of(settings, device)).removeprefix("torch.")
    return EngineKey(mark, gpu, (capability,), f"{trt.__name__} {trt.__version__}", rows, *size, precision)


def find_engines(folder: ModelFolder, settings: GeneratorSettings) -> tuple[ModuleType, dict[int, Path]]:
    """Return the engines that run on this machine, by the number of pictures that they denoise together; and their module.

    Raises
    ------
    ModelError
        TensorRT is missing, or there is no engine (the message lists how others differ).
    """
    modules, mark = installed(), settings.fingerprint or fingerprint(hash_files(folder.path))
    where, problems = settings.engines or default_folder(folder.path), []
    for trt in modules:
        keys = {count: machine_key(trt, folder, settings, count, mark) for count in sorted({1, settings.batch})}
        try:
            return trt, {count: find(where, key) for count, key in keys.items()}
        except ModelError as problem:
            problems.append(str(problem))
    raise ModelError("; ".join(problems))


def check_faster(folder: ModelFolder, settings: GeneratorSettings) -> None:
    """Check that the engines painted the reference's picture on this machine, faster than the compiled backend.

    Raises
    ------
    ModelError
        There are no engines, no times of this GPU, driver and torch, or the compiled backend is as fast.
    """
    own, here = find_engines(folder, settings)[1][1], timed_on(pick_device(settings.device))
    figures = timing(own, here)
    if not {"tensorrt_ms", "compiled_ms"} <= figures.keys():
        raise ModelError(
            f"{own}: expected times of this machine ({here}), found none: measure them with python build/engine.py MODEL_DIR --time"
        )
    if figures["tensorrt_ms"] >= figures["compiled_ms"]:
        raise ModelError(f"{own}: a picture takes {figures['tensorrt_ms']:.1f} ms with it, {figures['compiled_ms']:.1f} ms with compiled")


class TensorRTGenerator(CompiledGenerator):
    """Paints like :class:`CompiledGenerator`, with engines that ``build/engine.py`` has built.

    Raises
    ------
    ModelError
        TensorRT is missing, there is no engine for this model, GPU, version and size, or it cannot be loaded.
    """

    backend = "tensorrt"

    def __init__(self, folder: ModelFolder, settings: GeneratorSettings, on_progress: Callable[[str], None] | None = None) -> None:
        self._trt, self._found = find_engines(folder, settings)
        self._plans = {count: read_plans(own) for count, own in self._found.items()}  # before the model, to report missing files at once
        self._runners: dict[Path, Runner] = {}
        super().__init__(folder, settings, on_progress)

    def warm_up(self) -> None:
        """As :meth:`CompiledGenerator.warm_up`; also keep the kernels that TensorRT for RTX has compiled, for the next start."""
        super().warm_up()
        for file, runner in self._runners.items():
            data = runner.runtime_cache()
            if data and not (file.is_file() and file.stat().st_size == len(data)):
                try:
                    write(file, data)
                except OSError as problem:
                    log.warning("generator: the next start compiles TensorRT's kernels again: %s", problem)

    def close(self) -> None:
        """Free the device."""
        super().close()
        self._runners = {}

    def _networks(self) -> tuple[Callable[..., torch.Tensor], Callable[..., tuple[torch.Tensor, ...]]]:
        size = halves(self.folder, self.settings.guidance_scale)
        units = {size * count: Static(self._runner(count, "unet"), self.device) for count in self._found}
        self._denoiser._network = lambda sample, embedding, text: units[len(sample)](sample=sample, embedding=embedding, text=text)
        unet = self._denoiser.unet
        unet.down_blocks, unet.mid_block, unet.up_blocks = nn.ModuleList(), None, nn.ModuleList()  # the engine holds them
        if self.settings.tiny_vae is None:
            decoder = Static(self._runner(1, "vae"), self.device)
            decode: Callable[[torch.Tensor], torch.Tensor] = lambda latents: decoder(latents=latents)  # noqa: E731
            setattr(self._pipe, "vae" if hasattr(self._pipe, "vae") else "movq", None)
        else:
            decode = self._compiled(self._model.decode)
        self._plans = {}
        encode = self._compiled(self._encode_image)
        return self._denoiser, lambda latents: encode(decode(latents.to(self.dtype))[0])

    def _runner(self, count: int, network: str) -> Runner:
        gpu, _, driver = machine(self.device)
        file = cache_file(self._found[count], network, gpu, driver)
        try:
            runner = Runner(self._plans[count][network], self._trt, file.read_bytes() if file.is_file() else b"")
        except RunnerError as problem:
            raise ModelError(f"[generator] backend tensorrt: {problem}: build the engine again, or choose backend compiled") from problem
        self._runners[file] = runner
        return runner

    def _capturable(self, stream: int) -> bool:
        return all(runner.capturable(stream) for runner in self._runners.values())


class Static:
    """A runner with static buffers for its tensors; called with inputs by name, it returns its one output.

    Inputs that the engine lacks, because the network does not use them, are ignored.
    """

    def __init__(self, runner: Runner, device: torch.device) -> None:
        self._runner, self._device = runner, device
        self.tensors: dict[str, torch.Tensor] = {}
        for name, (shape, dtype) in {**runner.inputs, **runner.outputs}.items():
            self.tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
            runner.bind(name, self.tensors[name].data_ptr())
        (self._output,) = runner.outputs

    def __call__(self, **given: torch.Tensor) -> torch.Tensor:
        """Queue a run on the current stream; the result is valid until the next run."""
        for name in self._runner.inputs:
            self.tensors[name].copy_(given[name])
        self._runner.run(torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0)
        return self.tensors[self._output]
