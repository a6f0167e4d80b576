"""The reference backend: the unchanged diffusers pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from rtevo.errors import ModelError
from rtevo.generate.base import GeneratorSettings, Painted, check_request
from rtevo.generate.folder import FAMILIES, ModelFolder
from rtevo.generate.loading import pick_device, with_scheduler
from rtevo.generate.models import load_model
from rtevo.generate.parts import draw_noise, to_pixels

__all__ = ["EagerGenerator", "precision_of"]

log = logging.getLogger(__name__)


def precision_of(settings: GeneratorSettings, device: torch.device) -> torch.dtype:
    """Numeric types in which the networks compute."""
    half = device.type == "cuda" if settings.precision == "auto" else settings.precision == "float16"
    return torch.float16 if half else torch.float32


class EagerGenerator:
    """Paints with the model's diffusers pipeline, called with ``image_embeds`` (``ip_adapter_image_embeds``).

    Two steps are done outside the pipeline, so that a picture is the same on every device: noise is drawn on the CPU in single
    precision, and the embedding is noised there. In single precision the result equals the plain pipeline's, bit for bit.

    Parameters
    ----------
    folder : ModelFolder
    settings : GeneratorSettings
    on_progress : callable, optional
        Called with one line for each step of the work.

    Raises
    ------
    ModelError
        The folder cannot be loaded, the device is missing, or its memory does not suffice.
    """

    backend = "eager"

    def __init__(self, folder: ModelFolder, settings: GeneratorSettings, on_progress: Callable[[str], None] | None = None) -> None:
        self.device = pick_device(settings.device)
        self.dtype = precision_of(settings, self.device)
        folder = folder.at(settings.px)
        self.settings, self.folder = settings, folder
        self.embedding_size, self.image_size = folder.embedding_size, folder.image_size
        if self.device.type == "cpu":
            torch.set_num_threads(settings.threads)
        with self._out_of_memory():
            self._model: Any = load_model(folder, settings, self.device, self.dtype, on_progress)
        self._own_scheduler = self._pipe.scheduler
        self._schedule()
        log.info("generator: %s", self.description)

    @property
    def description(self) -> str:
        """Backend, device, precision and scheduler."""
        device = f"cpu ({torch.get_num_threads()} threads)" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        height, width = self.image_size
        tiny = f", tiny decoder {self.settings.tiny_vae.name}" if self.settings.tiny_vae else ""
        family = FAMILIES[self.folder.kind]
        return (
            f"{self.backend}, {device}, {str(self.dtype).removeprefix('torch.')}, {self._scheduler_name}, {self.settings.steps} steps, "
            f"guidance {self.settings.guidance_scale:g}, {width} x {height} px, model {self.folder.path.name} ({family}){tiny}"
        )

    def paint(self, embeddings: ArrayLike, seeds: ArrayLike) -> Iterator[Painted]:
        """Paint images one by one; see :meth:`rtevo.generate.Generator.paint`."""
        if self._model is None:
            raise ValueError("generator: expected an open one, this one has been closed")
        return self._paint(*check_request(embeddings, seeds, self.embedding_size))

    def reschedule(self, scheduler: str, steps: int) -> None:
        """Change scheduler and steps; see :meth:`rtevo.generate.Generator.reschedule`."""
        self.settings = replace(self.settings, scheduler=scheduler, steps=steps)
        self._schedule()

    @property
    def prediction_type(self) -> str:
        """The scheduler's prediction type: ``epsilon``, ``v_prediction`` or ``sample``."""
        return str(self._own_scheduler.config.get("prediction_type", "epsilon"))

    def predicting(self, prediction_type: str) -> None:
        """Use another prediction type from now on, whatever the model's scheduler names."""
        self._own_scheduler = type(self._own_scheduler).from_config(self._own_scheduler.config, prediction_type=prediction_type)
        self._schedule()

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embedding (e,) of a picture (H, W, 3)."""
        with self._computing():
            return self._encode(pixels)

    def warm_up(self) -> None:
        """Paint one group of images of each size; see :meth:`rtevo.generate.Generator.warm_up`."""
        count = 1 if self.settings.batch == 1 else 1 + self.settings.batch
        embeddings = np.random.default_rng(0).standard_normal((count, self.embedding_size), np.float32)
        for _ in self.paint(embeddings, np.arange(count, dtype=np.uint64)):
            pass

    def close(self) -> None:
        """Free the device."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def _pipe(self) -> Any:
        return self._model.pipe

    def _schedule(self) -> None:
        """Apply the settings' scheduler and steps."""
        scheduler = with_scheduler(self._own_scheduler, self.settings.scheduler)
        try:
            scheduler.set_timesteps(self.settings.steps, device=self.device)
        except ValueError as problem:
            raise ModelError(f"[generator] steps: expected a number that {type(scheduler).__name__} can do: {problem}") from problem
        self._pipe.scheduler, self._scheduler_name = scheduler, type(scheduler).__name__

    def _groups(self, count: int) -> Iterator[slice]:
        """Yield the groups of images that are denoised together: the first alone, so that it is ready soonest, then `batch` at a time."""
        if count:
            yield slice(0, 1)
        for start in range(1, count, self.settings.batch):
            yield slice(start, min(start + self.settings.batch, count))

    def _paint(self, embeddings: NDArray[np.float32], seeds: list[int]) -> Iterator[Painted]:
        for part in self._groups(len(seeds)):
            with self._computing():
                latents = self._denoise(torch.from_numpy(embeddings[part]), seeds[part])
            for i in range(len(latents)):
                with self._computing():
                    pixels, embedding = self._finish(latents[i : i + 1])
                yield Painted(part.start + i, pixels, embedding)

    def _conditions(self, embeddings: torch.Tensor, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Generator]]:
        """Return the network's conditions (n, k) for embeddings (n, e), the noise (n, c, h, w), and its generators."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise, latents = draw_noise(generators, self._model.noise_size, self.folder.latent_shape)
        return self._model.condition(embeddings, noise), latents, generators

    def _denoise(self, embeddings: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """Return the latents (n, c, h, w) of embeddings (n, e)."""
        condition, noise, generators = self._conditions(embeddings, seeds)
        latents: torch.Tensor = self._model.denoise(condition, noise, generators, self.settings.steps)
        return latents

    def _finish(self, latents: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the pixels (H, W, 3) of latents (1, c, h, w), and their re-encoding (e,)."""
        pixels = to_pixels(self._decode(latents)[0])
        return pixels, self._encode(pixels)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the image (1, 3, H, W), -1 to 1, of latents (1, c, h, w)."""
        image: torch.Tensor = self._model.decode(latents)
        return image

    def _encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embedding (e,) of pixels (H, W, 3), as the pipeline encodes an input picture."""
        seen = self._pipe.feature_extractor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
        embedding = self._pipe.image_encoder(seen.to(self.device, self.dtype)).image_embeds[0].float().cpu()
        if not torch.isfinite(embedding).all():
            raise ModelError(
                "image encoder: expected finite numbers for a picture, got others (weights damaged, or half precision overflowed)"
            )
        return np.asarray(embedding.numpy(), np.float32)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute without gradients; never held across a yield to the caller."""
        with self._out_of_memory(), torch.inference_mode():
            yield

    @contextmanager
    def _out_of_memory(self) -> Iterator[None]:
        """Raise a ModelError if the device runs out of memory."""
        try:
            yield
        except torch.OutOfMemoryError as problem:
            raise ModelError(
                f"generator on {self.device}: out of memory with batch {self.settings.batch} at {self.image_size[1]} x "
                f"{self.image_size[0]} px; close other programs that use the device, or lower [generator] batch or px ({problem})"
            ) from problem
